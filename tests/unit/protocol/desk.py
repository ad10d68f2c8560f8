"""A coordinator core on a desk: its storage answers when asked to, its tasks say what is put
into their mouths, and whatever it asks for lies in a tray until somebody looks."""

from __future__ import annotations

from typing import Any, TypeVar

from helios_ray.identifiers import TaskId
from helios_ray.protocol import instructions as i
from helios_ray.protocol.checkpoints import CheckpointRules
from helios_ray.protocol.coordinator import CoordinatorCore, CoordinatorRules, JobShape
from helios_ray.protocol.instructions import JobStatus
from helios_ray.protocol.messages import (
    CommitAcknowledged,
    Heartbeat,
    ResolveTransactions,
    SnapshotAcknowledged,
    TaskPhase,
    TransactionsResolved,
)
from helios_ray.protocol.recovery import Catalog, CheckpointSummary
from helios_ray.records import (
    CommittedMarker,
    EpochRecord,
    Manifest,
    PreparedTransaction,
    Record,
    RestoreRecord,
    TaskSnapshot,
)

SOURCE = TaskId("source", 0)
MAP = TaskId("map", 0)
SINK = TaskId("sink", 0)
SINK_2 = TaskId("sink", 1)
TASKS = (SOURCE, MAP, SINK, SINK_2)
SHAPE = JobShape(
    job="job",
    tasks=TASKS,
    sources=(SOURCE,),
    sinks={"sink": (SINK, SINK_2)},
    parallelism={"source": 1, "map": 1, "sink": 2},
    max_parallelism=8,
)

T = TypeVar("T")


def rules(**checkpoints: Any) -> CoordinatorRules:
    """Rules with round numbers; checkpoints only on request unless an interval is given."""
    return CoordinatorRules(
        checkpoints=CheckpointRules(**{"interval": None, "timeout": 100.0, **checkpoints}),
        heartbeat_timeout=1000.0,
        deploy_timeout=2000.0,
        stall_timeout=50.0,
        resend_interval=2.0,
        storage_retry=0.5,
        storage_attempts=3,
    )


class Storage:
    """Records by place, created only if absent."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}

    def create(self, record: Record) -> Record | None:
        match record:
            case EpochRecord(epoch=n):
                place = f"epoch {n}"
            case RestoreRecord(epoch=n):
                place = f"restore {n}"
            case Manifest(checkpoint_id=n):
                place = f"manifest {n}"
            case CommittedMarker(checkpoint_id=n):
                place = f"committed {n}"
        existing = self.records.get(place)
        if existing is None:
            self.records[place] = record
        return existing

    def of(self, kind: type[T]) -> list[T]:
        return [r for r in self.records.values() if isinstance(r, kind)]

    def catalog(self) -> Catalog:
        committed = {m.checkpoint_id for m in self.of(CommittedMarker)}
        return Catalog(
            epochs=tuple(self.of(EpochRecord)),
            restores=tuple(self.of(RestoreRecord)),
            checkpoints=tuple(
                CheckpointSummary(
                    checkpoint_id=m.checkpoint_id,
                    epoch=m.epoch,
                    committed=m.checkpoint_id in committed,
                    final=m.final,
                )
                for m in self.of(Manifest)
            ),
        )

    def manifest(self, checkpoint_id: int) -> Manifest:
        return next(m for m in self.of(Manifest) if m.checkpoint_id == checkpoint_id)


class Desk:
    """A coordinator core, and everything it has asked for and not been given."""

    def __init__(
        self,
        settings: CoordinatorRules | None = None,
        *,
        shape: JobShape = SHAPE,
        storage: Storage | None = None,
        owner: str = "me",
        restore: int | str | None = "latest",
    ) -> None:
        self.core = CoordinatorCore(
            shape, settings or rules(), owner=owner, restore=restore, jitter=lambda: 0.0
        )
        self.shape = shape
        self.store = storage or Storage()
        self.now = 0.0
        self.tray: list[i.Instruction] = []

    # ------------------------------------------------------------------------- the tray

    def tell(self, event: i.Event) -> list[i.Instruction]:
        told = self.core.handle(event, self.now)
        self.tray += told
        return told

    def wait(self, seconds: float) -> list[i.Instruction]:
        self.now += seconds
        return self.tell(i.Tick())

    def take(self, kind: type[T]) -> T:
        """The first thing of a kind in the tray."""
        found = next((t for t in self.tray if isinstance(t, kind)), None)
        assert found is not None, f"no {kind.__name__} among {self.tray}"
        self.tray.remove(found)  # type: ignore[arg-type]
        return found

    def clear(self) -> None:
        self.tray.clear()

    def sent(self, kind: type[T]) -> list[tuple[TaskId, T]]:
        """Messages of a kind in the tray, with their addressees."""
        return [
            (t.task, t.message)
            for t in self.tray
            if isinstance(t, i.Send) and isinstance(t.message, kind)
        ]

    def statuses(self) -> list[JobStatus]:
        return [t.status for t in self.tray if isinstance(t, i.ReportStatus)]

    # -------------------------------------------------------------------------- answers

    def answer(self, asked: i.Instruction) -> list[i.Instruction]:
        """Storage does what it was asked, and says so."""
        if asked in self.tray:
            self.tray.remove(asked)
        match asked:
            case i.ReadCatalog(request):
                return self.tell(i.CatalogRead(request, self.store.catalog()))
            case i.ReadEpochs(request):
                epochs = tuple(e.epoch for e in self.store.of(EpochRecord))
                return self.tell(i.EpochsRead(request, epochs))
            case i.ReadManifest(request, checkpoint_id):
                return self.tell(i.ManifestRead(request, self.store.manifest(checkpoint_id)))
            case i.WriteRecord(request, record):
                return self.tell(i.RecordWritten(request, self.store.create(record)))
        raise AssertionError(asked)

    def settle(self) -> None:
        """Storage answers everything, and what is asked because of that."""
        kinds = i.ReadCatalog | i.ReadEpochs | i.ReadManifest | i.WriteRecord
        while asked := next((t for t in self.tray if isinstance(t, kinds)), None):
            self.answer(asked)

    def beat(self, phase: TaskPhase, *tasks: TaskId, stalled_for: float = 0.0) -> None:
        for task in tasks or self.shape.tasks:
            beat = Heartbeat(task=task, epoch=self.core.epoch, phase=phase, stalled_for=stalled_for)
            self.tell(beat)

    def resolve(self, *, sweep: bool = False) -> None:
        for task, message in self.sent(ResolveTransactions):
            if message.sweep is sweep:
                done = TransactionsResolved(
                    task=task, epoch=message.epoch, sink=message.sink, sweep=sweep
                )
                self.tell(done)

    def acknowledge(
        self, checkpoint_id: int, *tasks: TaskId, finished: bool = False, prepared: bool = False
    ) -> None:
        for task in tasks or self.shape.tasks:
            waiting: tuple[PreparedTransaction, ...] = ()
            if prepared and task.operator == "sink":
                name = f"helios:job:sink:{task.subtask}:{self.core.epoch}:{checkpoint_id}"
                waiting = (
                    PreparedTransaction(transaction=name, sink="sink", checkpoint_id=checkpoint_id),
                )
            snapshot = TaskSnapshot(task=task, finished=finished, prepared=waiting)
            self.tell(
                SnapshotAcknowledged(
                    task=task,
                    epoch=self.core.epoch,
                    checkpoint_id=checkpoint_id,
                    snapshot=snapshot,
                )
            )

    def commit(self, checkpoint_id: int, *tasks: TaskId) -> None:
        for task in tasks or self.core.sink_tasks:
            done = CommitAcknowledged(task=task, epoch=self.core.epoch, checkpoint_id=checkpoint_id)
            self.tell(done)

    # ---------------------------------------------------------------------------- scenes

    def claim(self) -> Desk:
        """From the beginning, or a restart that is due, until the tasks are to join."""
        if self.core.status is JobStatus.CREATED:
            self.tell(i.Begin())
        self.settle()
        return self

    def run(self) -> Desk:
        """Until every task runs."""
        self.claim()
        self.beat(TaskPhase.READY)
        self.resolve()
        self.beat(TaskPhase.RUNNING)
        self.settle()
        self.clear()
        return self

    def checkpoint(self, checkpoint_id: int) -> None:
        """Ask for a checkpoint, and let it go through."""
        self.tell(i.CheckpointRequested())
        self.acknowledge(checkpoint_id, prepared=True)
        self.settle()
        self.commit(checkpoint_id)
        self.settle()
        self.clear()
