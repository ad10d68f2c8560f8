"""What is told about a job while it runs.

Why it exists: the coordinator, the handle, the progress line and the metrics exporter speak
of the same few values.

May import: elements, identifiers, protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP
from helios_ray.identifiers import TaskId
from helios_ray.protocol.instructions import JobStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMetrics:
    """Counters of one task since its process started, and gauges.

    Args:
        uids: uids of the operators in the task, head to tail.
        backpressure: share of the last second in which an output had no room, 0 to 1.
        watermark: event time announced downstream (µs since the Unix epoch).
        queued_bytes: rows received and not yet processed.
        skipped_rows: rows that a user function failed on, under ``skip`` or ``dead_letter``.
    """

    task: TaskId
    uids: tuple[str, ...] = ()
    is_source: bool = False
    is_sink: bool = False
    rows_in: int = 0
    rows_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    backpressure: float = 0.0
    watermark: int = MIN_TIMESTAMP
    queued_bytes: int = 0
    skipped_rows: int = 0
    pid: int = 0
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReport:
    """How one checkpoint went.

    Args:
        outcome: ``completed``, ``committed`` or ``failed``.
        duration: seconds from trigger to the last acknowledgement.
        commit_latency: seconds from the durable manifest to the last sink's commit.
        size: bytes of sealed state.
        path: of the manifest, for people.
        finished_at: seconds since the Unix epoch.
    """

    checkpoint_id: int
    outcome: str
    duration: float = 0.0
    commit_latency: float = 0.0
    size: int = 0
    reason: str = ""
    path: str = ""
    finished_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """Where a job stands.

    Args:
        epoch: attempt number in storage.
        restarts: recoveries since the coordinator started.
        restored: the checkpoint that the current attempt resumed from.
        committed: the newest committed checkpoint.
        checkpoints: of the latest few, oldest first.
        completed_checkpoints, failed_checkpoints: since the coordinator started.
    """

    job: str
    status: JobStatus
    reason: str = ""
    epoch: int = 0
    restarts: int = 0
    restored: int | None = None
    committed: int | None = None
    next_checkpoint: int | None = None
    checkpoints: tuple[CheckpointReport, ...] = ()
    completed_checkpoints: int = 0
    failed_checkpoints: int = 0
    tasks: tuple[TaskMetrics, ...] = ()
    now: float = 0.0
    recovery_seconds: tuple[float, ...] = field(default=())

    @property
    def last_checkpoint(self) -> CheckpointReport | None:
        """The newest that completed or was committed."""
        done = [c for c in self.checkpoints if c.outcome != "failed"]
        return done[-1] if done else None

    @property
    def rows_read(self) -> int:
        """Rows that the sources have read in this attempt's processes."""
        return sum(t.rows_in for t in self.tasks if t.is_source)

    @property
    def rows_written(self) -> int:
        """Rows handed to sinks in this attempt's processes, committed or not."""
        return sum(t.rows_out for t in self.tasks if t.is_sink)

    @property
    def watermark(self) -> int | None:
        """The least event time over all tasks that have one (µs), or None."""
        times = [t.watermark for t in self.tasks if MIN_TIMESTAMP < t.watermark < MAX_TIMESTAMP]
        return min(times, default=None)
