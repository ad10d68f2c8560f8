"""The external system of a simulated job: it knows prepare, commit and abort by id, no more.

Why it exists: exactly-once is judged outside the runtime, by what a reader of the external
system sees. The ledger does not help: no fencing, no knowledge of epochs or checkpoints.

May import: connectors, identifiers, errors, and faults of this room.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from helios_ray.connectors.base import (
    CommitOutcome,
    Committable,
    Json,
    Sink,
    SinkContext,
    TransactionalSink,
)
from helios_ray.errors import FatalCommitError, RetryableCommitError, SinkUnavailableError
from helios_ray.identifiers import TransactionId
from helios_ray.simulation.faults import Dice

Row = tuple[Any, ...]


class Witness(Protocol):
    """Who is told of what happens to the external system."""

    def on_commit(self, transaction: TransactionId) -> None:
        """A transaction is about to become visible for the first time."""

    def on_abort(self, transaction: TransactionId) -> None:
        """A prepared transaction is about to be thrown away."""

    def on_write(self, context: SinkContext) -> None:
        """A sink is about to take rows."""

    def on_watermark(self, before: int, after: int) -> None:
        """An operator is told the event time."""


@dataclass(slots=True)
class Ledger:
    """Rows by transaction, and what became of each.

    Args:
        dice: faults of commits and prepares.
        witness: told before anything changes.
        log: rows of sinks that take no part in two-phase commit, by uid.
    """

    dice: Dice
    witness: Witness | None = None
    prepared: dict[str, list[Any]] = field(default_factory=dict)
    committed: dict[str, list[Any]] = field(default_factory=dict)
    log: dict[str, list[Any]] = field(default_factory=dict)

    def prepare(self, transaction: TransactionId, rows: list[Any]) -> None:
        """Keep rows, unseen."""
        if self.dice.happens("prepare"):
            raise SinkUnavailableError(f"ledger refused to prepare {transaction}")
        self.prepared[str(transaction)] = rows

    def commit(self, transaction: TransactionId) -> CommitOutcome:
        """Make rows visible."""
        key = str(transaction)
        if self.dice.happens("commit_fatal"):
            raise FatalCommitError(f"ledger refuses {key} for good (until somebody mends it)")
        if self.dice.happens("commit_retry"):
            raise RetryableCommitError(f"ledger is busy: {key}")
        if key in self.committed:
            return CommitOutcome.ALREADY_COMMITTED
        if key not in self.prepared:
            raise FatalCommitError(f"ledger does not know {key}: its rows are lost")
        if self.witness is not None:
            self.witness.on_commit(transaction)
        self.committed[key] = self.prepared.pop(key)
        if self.dice.happens("commit_lost_reply"):
            raise RetryableCommitError(f"ledger's answer for {key} was lost")
        return CommitOutcome.COMMITTED

    def abort(self, transaction: TransactionId) -> None:
        """Throw rows away; a committed transaction stays."""
        if self.dice.happens("commit_retry"):
            raise RetryableCommitError(f"ledger is busy: {transaction}")
        if str(transaction) in self.prepared:
            if self.witness is not None:
                self.witness.on_abort(transaction)
            del self.prepared[str(transaction)]

    def listing(self, prefix: str) -> list[TransactionId]:
        """What is prepared."""
        if self.dice.happens("list_prepared"):
            kind = self.dice.rng.choice((RetryableCommitError, SinkUnavailableError))
            raise kind(f"ledger does not list {prefix}")
        return [TransactionId.parse(t) for t in self.prepared if t.startswith(prefix)]

    def rows(self) -> Iterable[Any]:
        """What a reader sees, in the order in which it became visible."""
        for rows in self.committed.values():
            yield from rows


def rows_of(batch: pa.RecordBatch) -> Iterable[Row]:
    """Rows of a batch as tuples."""
    return zip(*(c.to_pylist() for c in batch.columns), strict=True)


class LedgerSink(TransactionalSink):
    """A sink into the ledger.

    Args:
        ledger: shared by all subtasks of all attempts, as an external system is.
        can_list: whether the external system can list what is prepared.
    """

    def __init__(self, ledger: Ledger, *, can_list: bool = True) -> None:
        self._ledger = ledger
        self._can_list = can_list
        self._context: SinkContext | None = None
        self._transaction: TransactionId | None = None
        self._rows: list[Any] = []

    def open(self, context: SinkContext) -> None:
        self._context = context

    def begin(self, transaction: TransactionId) -> None:
        self._transaction = transaction
        self._rows = []

    def write(self, batch: pa.RecordBatch) -> None:
        assert self._context is not None
        if self._ledger.witness is not None:
            self._ledger.witness.on_write(self._context)
        self._rows += self.keep(batch)

    def keep(self, batch: pa.RecordBatch) -> Iterable[Any]:
        """What the ledger remembers of a batch."""
        return rows_of(batch)

    def prepare(self) -> Json:
        assert self._transaction is not None
        self._ledger.prepare(self._transaction, self._rows)
        self._transaction, rows = None, self._rows
        self._rows = []
        return {"rows": len(rows)}

    def commit_transaction(self, committable: Committable) -> CommitOutcome:
        return self._ledger.commit(committable.transaction)

    def abort_transaction(self, transaction: TransactionId, payload: Json = None) -> None:
        self._ledger.abort(transaction)

    def list_prepared(self, prefix: str) -> Iterable[TransactionId] | None:
        return self._ledger.listing(prefix) if self._can_list else None


class LogSink(Sink):
    """A sink without transactions: rows are seen when they are written, again after a replay.

    Args:
        ledger: whose log takes the rows.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._uid = ""

    def open(self, context: SinkContext) -> None:
        self._uid = context.sink_uid

    def write(self, batch: pa.RecordBatch) -> None:
        self._ledger.log.setdefault(self._uid, []).extend(rows_of(batch))


class TableSink(LedgerSink):
    """A sink into the ledger that keeps whole batches, and now and then fails to take one."""

    def write(self, batch: pa.RecordBatch) -> None:
        if self._ledger.dice.happens("process"):
            raise RuntimeError("the user's code failed, and would not the next time")
        super().write(batch)

    def keep(self, batch: pa.RecordBatch) -> Iterable[Any]:
        return (batch,)
