"""What the coordinator and the tasks say to each other.

Why it exists: these few messages are the whole conversation. Each carries the epoch of its
sender; a receiver of another epoch refuses it (rule 13). Every message may be lost, late or
repeated; the state machines on both sides are written for that.

May import: identifiers, records.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from helios_ray.identifiers import TaskId
from helios_ray.records import Manifest, PreparedTransaction, TaskSnapshot

# ----------------------------------------------------------------- coordinator to task


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetTask:
    """Forget everything; become part of ``epoch``, with the state of ``manifest``.

    Args:
        first_checkpoint_id: the first id that this epoch uses.
    """

    epoch: int
    manifest: Manifest | None
    first_checkpoint_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveTransactions:
    """To one subtask of each sink: settle what earlier epochs left behind (rules 2 and 6).

    Args:
        commit: prepared in the checkpoint being restored, or before it: commit these.
        abort_epochs: for sinks that cannot list what is prepared, what may have been prepared
            after it: per older epoch, its first and last possible checkpoint id.
        width: the most subtasks that the sink has had; for the same kind of sink.
        sweep: this is the second look, after the last commit, for what zombies prepared since.
    """

    epoch: int
    sink: str
    commit: tuple[PreparedTransaction, ...]
    abort_epochs: tuple[tuple[int, int, int], ...] = ()
    width: int = 1
    sweep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTask:
    """Everyone is ready: process."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerCheckpoint:
    """To sources and to tasks whose inputs have ended: take checkpoint ``checkpoint_id``.

    Args:
        suspend: a source stops reading after it: the job is being stopped.
    """

    epoch: int
    checkpoint_id: int
    suspend: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortCheckpoint:
    """The checkpoint will not complete. No transaction is aborted by this (rule 3)."""

    epoch: int
    checkpoint_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitCheckpoint:
    """The manifest is durable: commit everything prepared up to ``checkpoint_id``."""

    epoch: int
    checkpoint_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSource:
    """To a source in a group: read no split whose watermark is beyond ``limit`` (µs).

    Args:
        number: of two limits, the one with the greater number counts.
    """

    epoch: int
    number: int
    limit: int


ToTask: TypeAlias = (
    ResetTask
    | ResolveTransactions
    | StartTask
    | TriggerCheckpoint
    | AbortCheckpoint
    | CommitCheckpoint
    | LimitSource
)

# ----------------------------------------------------------------- task to coordinator


class TaskPhase(enum.Enum):
    """How far a task has come in its epoch, in this order."""

    BLANK = "blank"
    READY = "ready"
    RUNNING = "running"
    DRAINING = "draining"
    """All input has ended, and operators still wait for time or for answers."""
    FINISHED = "finished"
    FAILED = "failed"


class FailureKind(enum.Enum):
    """Why a task failed; decides whether trying again makes sense (rule 14)."""

    RAISED = "raised"
    """It may do better next time."""
    PERMANENT = "permanent"
    """Bad input, a wrong setting, lost data: it would raise again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Where a task stands. Repeats what ready, running and so on would otherwise say once.

    Args:
        stalled_for: seconds that the processing thread has been inside one call.
    """

    task: TaskId
    epoch: int
    phase: TaskPhase
    stalled_for: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionsResolved:
    """All transactions of earlier epochs of ``sink`` are settled."""

    task: TaskId
    epoch: int
    sink: str
    sweep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotAcknowledged:
    """The task's part of the checkpoint is durable, or inside this message."""

    task: TaskId
    epoch: int
    checkpoint_id: int
    snapshot: TaskSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDeclined:
    """The task could not write its part. The job goes on; the checkpoint does not."""

    task: TaskId
    epoch: int
    checkpoint_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitAcknowledged:
    """Everything that the subtask had prepared up to ``checkpoint_id`` is committed."""

    task: TaskId
    epoch: int
    checkpoint_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed:
    """The task cannot go on in this epoch."""

    task: TaskId
    epoch: int
    kind: FailureKind
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceProgress:
    """From a source in a group: how far it is.

    Args:
        number: of two reports in an epoch, the one with the greater number counts.
        watermark: the least of the splits being read (µs); ``MIN_TIMESTAMP`` if one of them has
            not come to its first row.
        idle: it has nothing to read for now, and holds nobody back.
    """

    task: TaskId
    epoch: int
    number: int
    watermark: int
    idle: bool


ToCoordinator: TypeAlias = (
    Heartbeat
    | TransactionsResolved
    | SnapshotAcknowledged
    | SnapshotDeclined
    | CommitAcknowledged
    | TaskFailed
    | SourceProgress
)
