"""Results for the driver, exactly once, whatever dies in between.

Why it exists: ``stream.collect()`` must not lose what was committed when the coordinator or
the driver is killed. So results go where checkpoints go: sealed Arrow objects beside them,
made visible by a marker that is created once. They are as durable and as secret as state.

    collect/<uid>/prepared/<transaction>     sealed rows
    collect/<uid>/committed/<transaction>    marker

May import: checkpoint, connectors, identifiers, errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from helios_ray.checkpoint.catalog import CheckpointCatalog
from helios_ray.checkpoint.config import CheckpointConfig
from helios_ray.checkpoint.sealed import Binding
from helios_ray.checkpoint.snapshots import Sealer
from helios_ray.connectors.base import (
    CommitOutcome,
    Committable,
    Json,
    SinkContext,
    TransactionalSink,
)
from helios_ray.errors import (
    CheckpointNotFoundError,
    FatalCommitError,
    RetryableCommitError,
    StorageError,
    StorageNotFoundError,
)
from helios_ray.identifiers import TransactionId


def _file(transaction: TransactionId) -> str:
    t = transaction
    return f"{t.checkpoint:010}-{t.subtask:05}-{t.epoch:08}"


def _transaction(job: str, uid: str, file: str) -> TransactionId:
    checkpoint, subtask, epoch = (int(part) for part in file.split("-"))
    return TransactionId(job, uid, subtask, epoch, checkpoint)


def _binding(t: TransactionId) -> Binding:
    return Binding(
        job=t.job,
        epoch=t.epoch,
        checkpoint_id=t.checkpoint,
        operator=t.sink,
        subtask=t.subtask,
        name="collect",
    )


class CollectSink(TransactionalSink):
    """The sink behind ``collect()``.

    Args:
        config: where checkpoints go, and under which keys.
        job: job name.
        uid: of the sink.
    """

    def __init__(self, *, config: CheckpointConfig, job: str, uid: str) -> None:
        self._config = config
        self._job = job
        self._uid = uid
        self._batches: list[pa.RecordBatch] = []
        self._transaction: TransactionId | None = None

    def open(self, context: SinkContext) -> None:
        self._sealer = Sealer(self._config.encryption)
        self._store = self._config.storage.open().scoped(self._job)

    def _path(self, kind: str, transaction: TransactionId) -> str:
        return f"collect/{self._uid}/{kind}/{_file(transaction)}"

    def begin(self, transaction: TransactionId) -> None:
        self._transaction, self._batches = transaction, []

    def write(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)

    def prepare(self) -> Json:
        assert self._transaction is not None
        table = pa.Table.from_batches(self._batches)
        sealed = self._sealer.seal_table(table, _binding(self._transaction))
        self._store.put(self._path("prepared", self._transaction), sealed.data)
        self._batches = []
        return {"rows": table.num_rows}

    def commit_transaction(self, committable: Committable) -> CommitOutcome:
        transaction = committable.transaction
        try:
            if self._store.exists(self._path("committed", transaction)):
                return CommitOutcome.ALREADY_COMMITTED
            if not self._store.exists(self._path("prepared", transaction)):
                raise FatalCommitError(
                    f"collected rows of {transaction} are gone from {self._store.describe()}; "
                    f"somebody deleted them. Restore the directory from a copy."
                )
            self._store.put_if_absent(self._path("committed", transaction), b"")
        except StorageError as error:
            raise RetryableCommitError(f"cannot commit {transaction}: {error}") from error
        return CommitOutcome.COMMITTED

    def abort_transaction(self, transaction: TransactionId, payload: Json = None) -> None:
        try:
            if not self._store.exists(self._path("committed", transaction)):
                self._store.delete(self._path("prepared", transaction))
        except StorageError as error:
            raise RetryableCommitError(f"cannot abort {transaction}: {error}") from error

    def list_prepared(self, prefix: str) -> Iterable[TransactionId] | None:
        try:
            prepared = self._store.list(f"collect/{self._uid}/prepared/")
            committed = {
                p.rsplit("/", 1)[1] for p in self._store.list(f"collect/{self._uid}/committed/")
            }
        except StorageError as error:
            raise RetryableCommitError(f"cannot list {prefix}*: {error}") from error
        files = (p.rsplit("/", 1)[1] for p in prepared)
        return [_transaction(self._job, self._uid, f) for f in files if f not in committed]


def read_collected(config: CheckpointConfig, job: str, uid: str | None = None) -> pa.Table:
    """What a ``collect()`` sink has committed so far, in the order of commits.

    Args:
        config: the job's.
        job: its name.
        uid: of the sink; may be left out if the job has one.

    Raises:
        CheckpointNotFoundError: there is no such sink, or there are several.
    """
    tables = list(read_transactions(config, committed_transactions(config, job, uid)))
    if not tables:
        return pa.table({})
    return pa.concat_tables(tables, promote_options="permissive")


def committed_transactions(
    config: CheckpointConfig, job: str, uid: str | None = None
) -> list[TransactionId]:
    """The transactions of a ``collect()`` sink that are committed and count, in order.

    Args and errors as for :func:`read_collected`.
    """
    store = config.storage.open().scoped(job)
    markers = [p.split("/") for p in store.list("collect/")]
    uids = sorted({parts[1] for parts in markers if len(parts) == 4})
    if uid is None:
        if len(uids) > 1:
            raise CheckpointNotFoundError(
                f"job {job!r} collects in several places: {uids}. Name one: results(uid)."
            )
        uid = uids[0] if uids else ""
    first_epoch = _first_epoch(CheckpointCatalog(store, Sealer(config.encryption)))
    found = [
        _transaction(job, uid, parts[3])
        for parts in sorted(markers)
        if len(parts) == 4 and parts[1] == uid and parts[2] == "committed"
    ]
    return [t for t in found if t.epoch >= first_epoch]


def read_transactions(
    config: CheckpointConfig, transactions: Iterable[TransactionId]
) -> Iterator[pa.Table]:
    """The rows of committed transactions, one table each; opened one at a time.

    Raises:
        CheckpointNotFoundError: somebody deleted one.
    """
    sealer = Sealer(config.encryption)
    opened = config.storage.open()
    for t in transactions:
        try:
            data = opened.scoped(t.job).get(f"collect/{t.sink}/prepared/{_file(t)}")
        except StorageNotFoundError as error:
            raise CheckpointNotFoundError(
                f"collected rows of {t} were committed and are gone: {error}"
            ) from error
        yield sealer.open_table(data, _binding(t))


def _first_epoch(catalog: CheckpointCatalog) -> int:
    """The epoch that last started from nothing: results of earlier histories do not count."""
    fresh = [
        epoch
        for epoch in catalog.inventory().restores
        if (record := catalog.restore(epoch)) is not None and record.checkpoint_id is None
    ]
    return max(fresh, default=0)
