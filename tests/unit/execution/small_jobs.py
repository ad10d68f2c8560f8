"""Small plans, sources and sinks that the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa

from helios_ray.connectors.base import (
    CommitOutcome,
    Committable,
    Exhausted,
    Json,
    NotYet,
    Poll,
    Rows,
    SinkContext,
    Source,
    Split,
    SplitReader,
    TransactionalSink,
)
from helios_ray.elements import Origin
from helios_ray.errors import FatalCommitError, RetryableCommitError
from helios_ray.identifiers import TransactionId
from helios_ray.operators.base import Operator
from helios_ray.plan.physical import (
    Chain,
    Edge,
    OperatorSpec,
    Partitioning,
    PhysicalPlan,
    SinkSpec,
    SourceSpec,
)
from helios_ray.watermarks import WatermarkStrategy


class ListReader(SplitReader):
    """Reads the rows of a list; ``None`` in it stands for a second without rows."""

    def __init__(self, rows: list[int | None]) -> None:
        self._rows = rows
        self._next = 0
        self.closed = False

    def poll(self, max_rows: int, now: float) -> Poll:
        if self._next == len(self._rows):
            return Exhausted()
        if self._rows[self._next] is None:
            self._next += 1
            return NotYet(now + 1.0)
        taken: list[int] = []
        first = self._next
        while len(taken) < max_rows and self._next < len(self._rows):
            row = self._rows[self._next]
            if row is None:
                break
            taken.append(row)
            self._next += 1
        return Rows(pa.record_batch({"x": pa.array(taken, pa.int64())}), Origin("s", str(first)))

    def position(self) -> Json:
        return self._next

    def seek(self, position: Json) -> None:
        self._next = position

    def close(self) -> None:
        self.closed = True


class ListSource(Source):
    """Splits by name; what is put into ``splits`` later is found at the next look."""

    def __init__(
        self, splits: dict[str, list[int | None]], *, watch: float | None = None, together: int = 1
    ) -> None:
        self.splits = splits
        self.discovery_interval = watch
        self.concurrent_splits = together
        self.readers: list[ListReader] = []

    @property
    def bounded(self) -> bool:
        return self.discovery_interval is None

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        return [Split(split_id=name, spec={"name": name}) for name in self.splits]

    def open_split(self, split: Split) -> SplitReader:
        reader = ListReader(self.splits[split.spec["name"]])
        self.readers.append(reader)
        return reader


class Bank:
    """What sinks write to, and what it was asked, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.prepared: dict[str, list[int]] = {}
        self.committed: dict[str, list[int]] = {}
        self.busy = 0
        self.can_list = True


class BankSink(TransactionalSink):
    """A transactional sink into a ``Bank``."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._open = ""
        self._rows: list[int] = []

    def begin(self, transaction: TransactionId) -> None:
        self._open, self._rows = str(transaction), []

    def write(self, batch: pa.RecordBatch) -> None:
        self._rows += batch.column("x").to_pylist()

    def prepare(self) -> Json:
        self._bank.prepared[self._open] = self._rows
        return {"rows": len(self._rows)}

    def commit_transaction(self, committable: Committable) -> CommitOutcome:
        name = str(committable.transaction)
        self._count(f"commit {name}")
        if name in self._bank.committed:
            return CommitOutcome.ALREADY_COMMITTED
        if name not in self._bank.prepared:
            raise FatalCommitError(f"{name} is gone")
        self._bank.committed[name] = self._bank.prepared.pop(name)
        return CommitOutcome.COMMITTED

    def abort_transaction(self, transaction: TransactionId, payload: Json = None) -> None:
        self._count(f"abort {transaction}")
        self._bank.prepared.pop(str(transaction), None)

    def list_prepared(self, prefix: str) -> Iterable[TransactionId] | None:
        if not self._bank.can_list:
            return None
        return [TransactionId.parse(t) for t in self._bank.prepared if t.startswith(prefix)]

    def _count(self, call: str) -> None:
        if self._bank.busy:
            self._bank.busy -= 1
            raise RetryableCommitError("busy")
        self._bank.calls.append(call)


def sink_context(epoch: int = 3, subtask: int = 0, parallelism: int = 1) -> SinkContext:
    return SinkContext(
        job="job", sink_uid="out", subtask=subtask, parallelism=parallelism, epoch=epoch
    )


def plan_of(
    *,
    source: Source | None = None,
    widths: tuple[int, int] = (1, 1),
    partitioning: Partitioning = Partitioning.HASH,
    operators: Sequence[Callable[[], Operator]] = (),
    bank: Bank | None = None,
    watermarks: WatermarkStrategy | None = None,
) -> PhysicalPlan:
    """A source, an edge by column ``x``, and operators with a sink behind them."""
    where = bank or Bank()
    specs = tuple(
        OperatorSpec(uid=f"op-{n}", name=f"op-{n}", factory=f) for n, f in enumerate(operators)
    )
    down = specs[0].uid if specs else "out"
    up = Chain(
        uid="in",
        name="in",
        parallelism=widths[0],
        source=SourceSpec(
            uid="in", name="in", source=source or ListSource({}), watermarks=watermarks
        ),
    )
    out = Chain(
        uid=down,
        name=down,
        parallelism=widths[1],
        operators=specs,
        sink=SinkSpec(uid="out", name="out", factory=lambda: BankSink(where)),
    )
    edge = Edge(
        index=0,
        upstream="in",
        operator="in",
        downstream=down,
        partitioning=partitioning,
        keys=("x",) if partitioning is Partitioning.HASH else (),
    )
    return PhysicalPlan(job="job", chains=(up, out), edges=(edge,), max_parallelism=8)
