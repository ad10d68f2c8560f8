"""The durable records of a job: what storage must hold to resume from it alone.

Why it exists: the coordinator's core decides *which* record to write *when* (protocol),
the checkpoint room decides *how* it looks in storage (checkpoint). Both speak of these
plain values. The rules they carry are told in ``protocol/coordinator.py``.

    epochs/00000007                   EpochRecord       who owns the job now
    epochs/00000007.restore           RestoreRecord     where that owner resumed from
    checkpoints/0000000042/manifest   Manifest          the checkpoint exists
    checkpoints/0000000042/committed  CommittedMarker   every sink has committed it

All four are created only if absent and never changed.

May import: elements, identifiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.identifiers import TaskId


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """An attempt to run the job. The newest epoch owns it; all older ones are fenced.

    Args:
        epoch: attempt number, from 1.
        owner: a random token; tells the claimant of an ambiguous write whether it won.
        headroom: how many checkpoint ids past the last durable one this epoch may use.
    """

    epoch: int
    owner: str
    headroom: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRecord:
    """Where an epoch resumed. Written before the epoch touches any external system.

    It decides for good which manifests of older epochs count: those up to ``checkpoint_id``
    do; a manifest of an older epoch that turns up later (a write that timed out and
    happened after all) does not, because its transactions were aborted.

    Args:
        checkpoint_id: the checkpoint resumed from, or None for a start from nothing.
        first_checkpoint_id: the first id this epoch uses.
    """

    epoch: int
    owner: str
    checkpoint_id: int | None
    first_checkpoint_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateObject:
    """One sealed object of a snapshot: one state table of one operator subtask.

    Args:
        operator: uid of the operator whose state it is.
        subtask: which subtask wrote it.
        name: the state table's name.
        kind: a ``StateKind`` value.
        path: where it is, relative to the job's directory, or None if it is inline.
        inline: the sealed bytes themselves, for small state.
        size: bytes as sealed.
        raw_size: bytes of Arrow data before compression and encryption.
        rows: rows in the table.
        key_id: the key that wrapped its data key.
        digest: SHA-256 of the sealed bytes, hex.
    """

    operator: str
    subtask: int
    name: str
    kind: str
    path: str | None
    inline: bytes | None = field(default=None, repr=False)
    size: int
    raw_size: int
    rows: int
    key_id: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTransaction:
    """A committable as the manifest keeps it.

    Args:
        transaction: a ``TransactionId``, as text.
        sink: uid of the sink operator.
        checkpoint_id: the checkpoint it was prepared in; at most the manifest's own.
        payload: JSON.
    """

    transaction: str
    sink: str
    checkpoint_id: int
    payload: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSnapshot:
    """What one task contributes to a checkpoint; travels in its acknowledgement.

    Args:
        task: who.
        objects: its sealed state.
        prepared: every transaction of its sink that is prepared and not known committed.
        watermark: the event time (µs) that the task had announced downstream.
        finished: the task has seen the end of all its input and flushed its operators.
    """

    task: TaskId
    objects: tuple[StateObject, ...] = ()
    prepared: tuple[PreparedTransaction, ...] = ()
    watermark: int = MIN_TIMESTAMP
    finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A checkpoint, complete: names everything needed to restore it.

    Args:
        job: job name.
        epoch: who wrote it.
        owner: that epoch's owner token.
        checkpoint_id: its id.
        created_at: seconds since the Unix epoch.
        duration: seconds from trigger to the last acknowledgement.
        max_parallelism: number of key groups the state is cut into.
        parallelism: subtasks by operator uid.
        tasks: one snapshot per task.
        final: the checkpoint after the last record of a bounded job.
    """

    job: str
    epoch: int
    owner: str
    checkpoint_id: int
    created_at: float
    duration: float
    max_parallelism: int
    parallelism: Mapping[str, int]
    tasks: tuple[TaskSnapshot, ...]
    final: bool = False

    @property
    def prepared(self) -> tuple[PreparedTransaction, ...]:
        """Every transaction that this checkpoint decides to commit, oldest first."""
        every = (p for task in self.tasks for p in task.prepared)
        return tuple(sorted(every, key=lambda p: (p.checkpoint_id, p.transaction)))

    @property
    def paths(self) -> frozenset[str]:
        """Every object in storage that this checkpoint needs."""
        return frozenset(o.path for t in self.tasks for o in t.objects if o.path is not None)

    @property
    def state_size(self) -> int:
        """Bytes of sealed state, inline included."""
        return sum(o.size for t in self.tasks for o in t.objects)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedMarker:
    """Every sink subtask has acknowledged the commit of this checkpoint."""

    checkpoint_id: int
    epoch: int


Record: TypeAlias = EpochRecord | RestoreRecord | Manifest | CommittedMarker
