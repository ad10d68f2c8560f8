"""The contracts of sources and sinks.

Why it exists: the runtime knows connectors only through these classes, so a connector is
one file and a user's own connector is a subclass. Everything here is called from one
thread, the processing thread of its task, unless a docstring says otherwise.

May import: elements, errors, identifiers.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa

from helios_ray.elements import Origin
from helios_ray.identifiers import TransactionId

Json: TypeAlias = Any
"""A value that ``json.dumps`` accepts: positions and committables are stored as JSON."""


# ---------------------------------------------------------------------------------- sources


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A part of a source that one reader reads from front to back.

    Args:
        split_id: unique within the source and stable across restarts.
        spec: what the connector needs to open it; JSON.
    """

    split_id: str
    spec: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows were read; ``origin`` says where the first of them stands."""

    data: pa.RecordBatch
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class NotYet:
    """No rows now. Ask again at ``retry_at``, on the clock given to ``poll`` (seconds)."""

    retry_at: float


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The split has ended and will never have rows again."""


Poll: TypeAlias = Rows | NotYet | Exhausted


class SplitReader(ABC):
    """Reads one split. Its position is exact: what ``seek(position())`` resumes at is the
    row after the last one returned, none skipped and none twice.
    """

    @abstractmethod
    def poll(self, max_rows: int, now: float) -> Poll:
        """Return up to ``max_rows`` rows without waiting for more to arrive.

        Args:
            max_rows: at least 1.
            now: seconds on a clock that only grows; pacing uses this, never its own clock.

        Raises:
            CorruptInputError: the input cannot be decoded; names the file and position.
        """

    @abstractmethod
    def position(self) -> Json:
        """The position after the last row that ``poll`` returned."""

    @abstractmethod
    def seek(self, position: Json) -> None:
        """Continue from a value that ``position`` returned, perhaps in another process."""

    def close(self) -> None:
        """Release files and connections."""


class Source(ABC):
    """Where rows come from. Instances are pickled to the cluster: keep connections out."""

    concurrent_splits: int = 1
    """How many splits one subtask keeps open at once: 1 reads them one after another."""

    discovery_interval: float | None = None
    """Seconds between looks for new splits, or None: the first look is the last."""

    @property
    @abstractmethod
    def bounded(self) -> bool:
        """Whether the source ends."""

    def schema(self) -> pa.Schema | None:
        """Columns and types of the rows, where they can be known before running.

        Raises:
            SourceUnavailableError: it can be known already that there is nothing to read.
        """
        return None

    @abstractmethod
    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        """List what there is to read, in a stable order.

        Called in one place when a job starts afresh, and, where ``discovery_interval`` is
        set, again by each subtask; splits already known are ignored by ``split_id``.

        Args:
            parallelism: number of subtasks, for sources that can be cut at will.
        """

    @abstractmethod
    def open_split(self, split: Split) -> SplitReader:
        """Open a split at its beginning; ``seek`` follows when there is a position."""


# ------------------------------------------------------------------------------------ sinks


class Guarantee(enum.Enum):
    """What a reader of the external system may rely on after any failure."""

    EXACTLY_ONCE = "exactly-once"
    """Two-phase commit: each result is there once, and only once its checkpoint completed."""
    IDEMPOTENT = "effectively-once"
    """Replays overwrite themselves: each result is there once, perhaps written again."""
    AT_LEAST_ONCE = "at-least-once"
    """Replays show as duplicates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkContext:
    """Who a sink instance is.

    Args:
        job: job name.
        sink_uid: uid of the sink operator.
        subtask: index of this subtask.
        parallelism: number of subtasks.
        epoch: attempt number; grows with every restart.
    """

    job: str
    sink_uid: str
    subtask: int
    parallelism: int
    epoch: int

    def transaction_id(self, checkpoint_id: int) -> TransactionId:
        """The name of this subtask's transaction for ``checkpoint_id`` in this epoch."""
        return TransactionId(self.job, self.sink_uid, self.subtask, self.epoch, checkpoint_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Committable:
    """The handle of a prepared transaction; travels in the checkpoint manifest.

    Args:
        transaction: its name.
        payload: what ``commit_transaction`` needs beyond the name; JSON.
    """

    transaction: TransactionId
    payload: Json = None


class CommitOutcome(enum.Enum):
    """How a commit ended well. Anything else is a RetryableCommitError or FatalCommitError."""

    COMMITTED = "committed"
    ALREADY_COMMITTED = "already-committed"


class Sink(ABC):
    """Where rows go. This plain kind is at-least-once, and the job says so when it starts.

    Instances are pickled to the cluster before ``open``: keep connections out until then.
    """

    guarantee: Guarantee = Guarantee.AT_LEAST_ONCE

    def check(self, schema: pa.Schema | None) -> None:
        """Called on the driver before the job starts: fail early, change nothing.

        Args:
            schema: of the rows to come, where it is known.

        Raises:
            SinkUnavailableError: there is no server, bucket or directory at that address.
            ConfigError: the sink cannot hold rows of that schema.
        """

    def open(self, context: SinkContext) -> None:
        """Connect. Called once per epoch, before anything else."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Take rows. They need not be durable before ``flush``."""

    def flush(self) -> None:
        """Make everything written so far durable; called before a checkpoint is acknowledged."""

    def close(self) -> None:
        """Release connections and whatever was begun and not prepared."""


class IdempotentSink(Sink):
    """A sink whose writes overwrite themselves when replayed (an upsert by key).

    Subclass and define :meth:`write_idempotent`.
    """

    guarantee = Guarantee.IDEMPOTENT

    @abstractmethod
    def write_idempotent(self, batch: pa.RecordBatch) -> None:
        """Write rows so that writing them again changes nothing."""

    def write(self, batch: pa.RecordBatch) -> None:
        self.write_idempotent(batch)


class TransactionalSink(Sink):
    """A sink that takes part in two-phase commit; what the runtime drives.

    The order of calls in one epoch, all on one thread::

        open, (commit_transaction | abort_transaction)* of what a restore found,
        (begin, write*, prepare)*, commit_transaction* interleaved after their prepare

    - ``begin`` is called lazily, before the first ``write`` after a ``prepare``: a checkpoint
      without rows has no transaction.
    - After ``prepare`` returns, the rows survive the death of the process, and nobody sees
      them until ``commit_transaction``. Several transactions may be prepared and not yet
      committed while the next is being written.
    - ``commit_transaction`` may come twice for one transaction, and from another process,
      subtask or epoch than the one that prepared it; the second time it answers
      ``ALREADY_COMMITTED``.
    - ``abort_transaction`` of an unknown or never prepared transaction is not an error, and
      of a committed one changes nothing.

    Users mostly subclass :class:`helios_ray.connectors.two_phase.TwoPhaseCommitSink`, which
    has the guide's three methods; ``commit(checkpoint_id)`` and ``abort(checkpoint_id)`` are
    its names, which is why those of this contract are longer.
    """

    guarantee = Guarantee.EXACTLY_ONCE

    @abstractmethod
    def begin(self, transaction: TransactionId) -> None:
        """Start the transaction that the following writes go to."""

    @abstractmethod
    def prepare(self) -> Json:
        """End the transaction begun last so that it survives, unseen; return the payload.

        Raises:
            FencedError: the external system has seen a newer epoch of this sink.
        """

    @abstractmethod
    def commit_transaction(self, committable: Committable) -> CommitOutcome:
        """Make a prepared transaction visible.

        Raises:
            RetryableCommitError: it may succeed later (connection lost, lock held).
            FatalCommitError: it is gone and was never committed. Data would be lost.
        """

    @abstractmethod
    def abort_transaction(self, transaction: TransactionId, payload: Json = None) -> None:
        """Throw a transaction away, prepared or not.

        Raises:
            RetryableCommitError: it may succeed later (connection lost, lock held).
        """

    @abstractmethod
    def list_prepared(self, prefix: str) -> Iterable[TransactionId] | None:
        """Every transaction whose id starts with ``prefix`` and is neither committed nor
        aborted, of whatever epoch and subtask, half-prepared leftovers of crashes included.

        ``None``, unlike an empty list, says that the sink cannot tell. The runtime then
        probes instead: it calls ``abort_transaction`` for the id of every checkpoint that an
        older epoch may have begun after the one restored, a finite set.
        """
