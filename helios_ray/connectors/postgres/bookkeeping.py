"""What the sinks keep in the database about themselves: what was committed, who may write.

Why it exists: PostgreSQL forgets a prepared transaction the moment it is committed or
rolled back, so "no such transaction" could mean done or lost. A row written *inside* the
transaction tells them apart for good. A second table holds the newest epoch of each sink.

    helios_transactions   sink, subtask, epoch, checkpoint: this one, and all before it of the
                          same subtask and epoch, are committed (commits come in order)
    helios_epochs         sink, epoch: writers of older epochs are refused

Promises: a handful of rows per subtask and attempt, however long the stream; nothing of it
is locked by a transaction that stays prepared, except rows that are being deleted.

May import: errors, identifiers, connectors.base, postgres.address, postgres.columns.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

from helios_ray.connectors.base import CommitOutcome
from helios_ray.connectors.postgres.address import session_prefix
from helios_ray.connectors.postgres.columns import quoted
from helios_ray.errors import FencedError, SinkUnavailableError
from helios_ray.identifiers import TransactionId

TRANSACTIONS = "helios_transactions"
EPOCHS = "helios_epochs"

DDL_LOCK = 0x68656C696F73
"""Advisory lock for CREATE TABLE IF NOT EXISTS, which two sessions may not run at once."""

_LONGEST_GID = 199
_NUMBERS = 10 + 1 + 20 + 1 + 20
"""Room for ``<subtask>:<epoch>:<checkpoint>``."""
_TERMINATE_MS = 10_000


def literal(text: str) -> str:
    """An SQL string literal.

    Example:
        >>> literal("it's")
        "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def gid_prefix(prefix: str) -> str:
    """What a sink's transactions are called in PostgreSQL, whose names have 199 bytes.

    A longer prefix is replaced by its hash; as a sink knows its own prefix, names read back
    all the same.
    """
    if len(prefix) + _NUMBERS <= _LONGEST_GID:
        return prefix
    return f"helios#{hashlib.sha256(prefix.encode()).hexdigest()}:"


def gid_of(transaction: TransactionId) -> str:
    """The name of a transaction in PostgreSQL.

    Example:
        >>> gid_of(TransactionId("j", "out", 1, 7, 42))
        'helios:j:out:1:7:42'
        >>> len(gid_of(TransactionId("j" * 128, "s" * 128, 1, 7, 42))) < 200
        True
    """
    prefix = TransactionId.prefix(transaction.job, transaction.sink)
    return gid_prefix(prefix) + str(transaction)[len(prefix) :]


def transaction_of(gid: str, prefix: str) -> TransactionId | None:
    """Read a name back, or None if it is nobody's of that prefix."""
    short = gid_prefix(prefix)
    if not gid.startswith(short):
        return None
    try:
        return TransactionId.parse(prefix + gid[len(short) :])
    except ValueError:
        return None


class Bookkeeping:
    """The two tables of one schema, seen by one subtask of one sink.

    Args:
        schema: where the tables live; that of the sink's table.
        job: job name.
        sink: uid of the sink operator.
        epoch: of this attempt.
    """

    def __init__(self, schema: str, job: str, sink: str, epoch: int) -> None:
        self.prefix = TransactionId.prefix(job, sink)
        self.epoch = epoch
        self._transactions = f"{quoted(schema)}.{TRANSACTIONS}"
        self._epochs = f"{quoted(schema)}.{EPOCHS}"

    def create(self, control: Any) -> None:
        """Create the tables where they are missing."""
        with control.transaction():
            control.execute("select pg_advisory_xact_lock(%s)", (DDL_LOCK,))
            control.execute(
                f"create table if not exists {self._transactions} (sink text not null, "
                "subtask integer not null, epoch bigint not null, checkpoint bigint not null, "
                "primary key (sink, subtask, epoch, checkpoint))"
            )
            control.execute(
                f"create table if not exists {self._epochs} "
                "(sink text primary key, epoch bigint not null)"
            )

    def fence(self, control: Any) -> None:
        """Shut out older epochs: record ours, then end the connections of theirs.

        After this returns, what an older epoch has prepared shows in ``pg_prepared_xacts``,
        and it can prepare nothing more: its connections are gone, and a new one of it reads
        the row written here before anything else.

        Raises:
            FencedError: a newer epoch was here first.
            SinkUnavailableError: a connection of an older epoch could not be ended.
        """
        # Before too: a stopped process may sit on the row in the middle of an upsert.
        self._end_older_sessions(control)
        row = control.execute(
            f"insert into {self._epochs} as known values (%s, %s) on conflict (sink) do update "
            "set epoch = greatest(known.epoch, excluded.epoch) returning epoch",
            (self.prefix, self.epoch),
        ).fetchone()
        if row[0] > self.epoch:
            raise self.fenced(row[0])
        self._end_older_sessions(control)

    def _end_older_sessions(self, control: Any) -> None:
        rows = control.execute(
            "select pid, pg_terminate_backend(pid, %s) from pg_stat_activity where "
            "datname = current_database() and pid <> pg_backend_pid() "
            "and case when starts_with(application_name, %s) "
            "then split_part(application_name, ':', 4)::bigint < %s else false end",
            (_TERMINATE_MS, session_prefix(self.prefix), self.epoch),
        ).fetchall()
        stuck = [pid for pid, ended in rows if not ended]
        if stuck:
            alive = control.execute(
                "select count(*) from pg_stat_activity where pid = any(%s)", (stuck,)
            ).fetchone()
            if alive[0]:
                raise SinkUnavailableError(
                    f"sink {self.prefix}: connections of an older attempt (server processes "
                    f"{stuck}) did not end within {_TERMINATE_MS} ms. End them by "
                    "pg_terminate_backend; the job may then be resumed."
                )

    def check_epoch(self, control: Any) -> None:
        """See that we are still the newest.

        Raises:
            FencedError: we are not.
        """
        row = control.execute(
            f"select epoch from {self._epochs} where sink = %s", (self.prefix,)
        ).fetchone()
        if row is not None and row[0] > self.epoch:
            raise self.fenced(row[0])

    def epoch_query(self) -> str:
        """Reads the newest epoch and holds it until the transaction ends (a short one)."""
        return f"select epoch from {self._epochs} where sink = {literal(self.prefix)} for share"

    def record(self, transaction: TransactionId) -> str:
        """The statement that a transaction writes about itself; returns no row if fenced.

        It deletes what it makes superfluous: the rows of earlier checkpoints of its subtask
        and epoch, all but those that a transaction still prepared is deleting already.
        """
        mine = (
            f"sink = {literal(self.prefix)} and subtask = {transaction.subtask} "
            f"and epoch = {transaction.epoch} and checkpoint < {transaction.checkpoint}"
        )
        return (
            f"with swept as (delete from {self._transactions} where ctid = any(array("
            f"select ctid from {self._transactions} where {mine} for update skip locked))) "
            f"insert into {self._transactions} (sink, subtask, epoch, checkpoint) "
            f"select {literal(self.prefix)}, {transaction.subtask}, {transaction.epoch}, "
            f"{transaction.checkpoint} where not exists (select 1 from {self._epochs} "
            f"where sink = {literal(self.prefix)} and epoch > {self.epoch}) returning checkpoint"
        )

    def is_committed(self, control: Any, transaction: TransactionId) -> bool:
        """Whether a transaction that is prepared no longer was committed."""
        row = control.execute(
            f"select exists (select 1 from {self._transactions} where sink = %s and subtask = %s "
            "and epoch = %s and checkpoint >= %s)",
            (self.prefix, transaction.subtask, transaction.epoch, transaction.checkpoint),
        ).fetchone()
        return bool(row[0])

    def commit(self, control: Any, transaction: TransactionId) -> CommitOutcome | None:
        """Commit; None if there is no such transaction and never was a committed one.

        Raises:
            FencedError: a newer epoch has taken over.
        """
        import psycopg

        self.check_epoch(control)
        with suppress(psycopg.errors.UndefinedObject):
            control.execute(f"commit prepared {literal(gid_of(transaction))}")
            return CommitOutcome.COMMITTED
        if self.is_committed(control, transaction):
            return CommitOutcome.ALREADY_COMMITTED
        return None

    def list_prepared(self, control: Any, prefix: str) -> list[TransactionId]:
        """Prepared transactions of this database, oldest checkpoint first."""
        rows = control.execute(
            "select gid from pg_prepared_xacts "
            "where database = current_database() and starts_with(gid, %s)",
            (gid_prefix(prefix),),
        ).fetchall()
        found = (transaction_of(gid, prefix) for (gid,) in rows)
        return sorted(
            (t for t in found if t is not None), key=lambda t: (t.epoch, t.checkpoint, t.subtask)
        )

    def fenced(self, newest: int | None = None) -> FencedError:
        """The error of an attempt that is no longer the newest."""
        which = "a newer epoch" if newest is None else f"epoch {newest}"
        return FencedError(
            f"sink {self.prefix}: this is epoch {self.epoch} of the job, and {which} has taken "
            "over in the database. This attempt may neither write nor commit; it ends, and "
            "nothing is to be done."
        )
