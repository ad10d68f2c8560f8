"""What goes into the coordinator core besides messages, and all that comes out of it.

Why it exists: the core talks to storage, tasks and users only through these values, so that
Ray and the simulator can carry them and tests can compare them.

May import: identifiers, records, and the messages of this room.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from helios_ray.identifiers import TaskId
from helios_ray.protocol.messages import ToCoordinator as ToCoordinator
from helios_ray.protocol.messages import ToTask as ToTask
from helios_ray.protocol.recovery import Catalog
from helios_ray.records import Manifest, Record


class JobStatus(enum.Enum):
    """Where a job stands."""

    CREATED = "created"
    CLAIMING = "claiming"
    RESTORING = "restoring"
    DEPLOYING = "deploying"
    RESOLVING = "resolving"
    RUNNING = "running"
    FINISHING = "finishing"
    RESTARTING = "restarting"
    FINISHED = "finished"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FAILED = "failed"
    FENCED = "fenced"

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self in _TERMINAL


_TERMINAL = {
    JobStatus.FINISHED,
    JobStatus.STOPPED,
    JobStatus.CANCELLED,
    JobStatus.FAILED,
    JobStatus.FENCED,
}

# ------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Begin:
    """Run the job."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; look at what is due."""


@dataclass(frozen=True, slots=True)
class CatalogRead:
    """Answer to ``ReadCatalog``."""

    request: int
    catalog: Catalog


@dataclass(frozen=True, slots=True)
class EpochsRead:
    """Answer to ``ReadEpochs``."""

    request: int
    epochs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ManifestRead:
    """Answer to ``ReadManifest``."""

    request: int
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class RecordWritten:
    """Answer to ``WriteRecord``: it is durable, or another record stands in its place.

    Args:
        existing: None if this call created it; else what stands there.
    """

    request: int
    existing: Record | None


@dataclass(frozen=True, slots=True)
class StorageFailed:
    """A storage call ended in an error.

    Args:
        unknown: no answer came: the call may have taken effect, or may yet (rule 16).
        permanent: trying again cannot help (wrong key, tampered object, no such bucket).
    """

    request: int
    reason: str
    unknown: bool
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class TaskLost:
    """A task's process is gone.

    Args:
        incarnation: that of the ``ReplaceTask`` which started the process; the death of an
            earlier one is old news.
    """

    task: TaskId
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class CheckpointRequested:
    """A user asks for a checkpoint now."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A user asks the job to take a last checkpoint, commit it, and end."""


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """A user asks the job to end now; it can be resumed from its last checkpoint."""


Event: TypeAlias = (
    Begin
    | Tick
    | CatalogRead
    | EpochsRead
    | ManifestRead
    | RecordWritten
    | StorageFailed
    | TaskLost
    | CheckpointRequested
    | StopRequested
    | CancelRequested
    | ToCoordinator
)

# ------------------------------------------------------------------------ instructions


@dataclass(frozen=True, slots=True)
class ReadCatalog:
    """Read epochs, restore records and checkpoint summaries."""

    request: int


@dataclass(frozen=True, slots=True)
class ReadEpochs:
    """Read only which epochs have been claimed."""

    request: int


@dataclass(frozen=True, slots=True)
class ReadManifest:
    """Open one manifest."""

    request: int
    checkpoint_id: int


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """Create a record unless one stands in its place."""

    request: int
    record: Record


@dataclass(frozen=True, slots=True)
class ReplaceTask:
    """Make sure the task's old process is gone and start a blank one."""

    task: TaskId
    incarnation: int


@dataclass(frozen=True, slots=True)
class Send:
    """Deliver a message to a task."""

    task: TaskId
    message: ToTask


@dataclass(frozen=True, slots=True)
class RetainCheckpoints:
    """``committed`` is committed: drop what ``retain_count`` allows to drop (rule 17)."""

    epoch: int
    committed: int


@dataclass(frozen=True, slots=True)
class ReportCheckpoint:
    """For metrics and progress: how a checkpoint went."""

    checkpoint_id: int
    outcome: str
    duration: float = 0.0
    size: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ReportStatus:
    """For the user: the job's status changed."""

    status: JobStatus
    reason: str = ""


Instruction: TypeAlias = (
    ReadCatalog
    | ReadEpochs
    | ReadManifest
    | WriteRecord
    | ReplaceTask
    | Send
    | RetainCheckpoints
    | ReportCheckpoint
    | ReportStatus
)
