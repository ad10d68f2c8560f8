"""A simulated coordinator process, driving the real coordinator core.

Why it exists: under Ray this is an actor. Here it may die between any two instructions that
the core hands out. Whatever decides anything is in the core; this only carries.

May import: execution, checkpoint (retention), protocol and below, and storage of this room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from helios_ray.checkpoint.retention import plan_retention, superseded_checkpoints
from helios_ray.connectors.base import TransactionalSink
from helios_ray.execution.drift import alignment_of
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.protocol import instructions as i
from helios_ray.protocol.coordinator import CoordinatorCore
from helios_ray.protocol.instructions import JobStatus
from helios_ray.protocol.messages import ToCoordinator
from helios_ray.protocol.settings import JobShape
from helios_ray.records import Manifest
from helios_ray.simulation.storage import StorageTrouble

if TYPE_CHECKING:
    from helios_ray.simulation.world import Cluster


def shape_of(plan: PhysicalPlan) -> JobShape:
    """What the coordinator must know of a plan."""
    sinks = {
        chain.sink.uid: chain.tasks
        for chain in plan.chains
        if chain.sink is not None and isinstance(chain.sink.factory(), TransactionalSink)
    }
    return JobShape(
        job=plan.job,
        tasks=plan.tasks,
        sources=plan.source_tasks,
        sinks=sinks,
        parallelism=plan.parallelism,
        max_parallelism=plan.max_parallelism,
        alignment=alignment_of(plan),
    )


class SimCoordinator:
    """The coordinator's process.

    Args:
        cluster: where it runs.
        core: what decides.
    """

    def __init__(self, cluster: Cluster, core: CoordinatorCore) -> None:
        self.cluster = cluster
        self.core = core
        self.alive = True
        self.dies_after: int | None = None
        self._epoch = 0
        self._wake_at: float | None = None

    def on_event(self, event: i.Event) -> None:
        """Mail, answers from storage, time."""
        if not self.alive:
            return
        over = self.core.status.terminal
        instructions = self.core.handle(event, self.cluster.world.now)
        self._check(event, instructions, over=over)
        for instruction in instructions:
            if self._dies_now():
                return
            self._perform(instruction)
        if self.core.status.terminal:
            self.cluster.shut_down()
        self._schedule()

    def on_message(self, message: ToCoordinator) -> None:
        """Mail from a task."""
        self.on_event(message)

    def _dies_now(self) -> bool:
        """Whether the process dies in the middle of a list of instructions."""
        if self.dies_after is None:
            return False
        self.dies_after -= 1
        if self.dies_after >= 0:
            return False
        self.cluster.crash()
        self.cluster.world.launch_later(self.cluster.world.rng.uniform(0.05, 2.0))
        return True

    def _check(self, event: i.Event, told: list[i.Instruction], *, over: bool) -> None:
        """What must hold whatever the core does."""
        core, judge = self.core, self.cluster.world.judge
        if over and told:
            judge.violation(f"{self.cluster.owner}: instructions after the end: {told[:2]}")
        if core.epoch < self._epoch:
            judge.violation(f"{self.cluster.owner}: epoch went back from {self._epoch}")
        self._epoch = core.epoch
        if isinstance(event, i.EpochsRead) and max(event.epochs, default=0) > core.epoch:
            quiet = all(isinstance(t, i.ReportStatus) for t in told)
            if not quiet or (told and core.status is not JobStatus.FENCED):
                judge.violation(
                    f"{self.cluster.owner}: knows it is fenced, and goes on: {told[:2]}"
                )

    def _schedule(self) -> None:
        world = self.cluster.world
        wakeup = self.core.next_wakeup()
        if not self.alive or wakeup is None:
            return
        at = max(world.now + 0.001, wakeup)
        if self._wake_at is None or at < self._wake_at or self._wake_at <= world.now:
            self._wake_at = at
            world.at(at - world.now, lambda: self._tick(at))

    def _tick(self, at: float) -> None:
        if self._wake_at == at:
            self._wake_at = None
            self.on_event(i.Tick())

    def _perform(self, instruction: i.Instruction) -> None:
        storage = self.cluster.world.storage
        match instruction:
            case i.ReadCatalog(request):
                self._storage(request, storage.catalog, lambda c: i.CatalogRead(request, c))
            case i.ReadEpochs(request):
                self._storage(
                    request,
                    lambda: tuple(e.epoch for e in storage.catalog().epochs),
                    lambda e: i.EpochsRead(request, e),
                )
            case i.ReadManifest(request, checkpoint_id):
                self._storage(
                    request,
                    lambda: storage.manifest(checkpoint_id),
                    lambda m: i.ManifestRead(request, m),
                )
            case i.WriteRecord(request, record):
                self._storage(
                    request,
                    lambda: storage.create(record),
                    lambda existing: i.RecordWritten(request, existing),
                )
            case i.ReplaceTask(task, incarnation):
                self._note(f"starts {task} for the {incarnation}. time")
                self.cluster.replace(task, incarnation)
            case i.Send(task, message):
                self.cluster.send_to_task(task, message)
            case i.ReportStatus(status, reason):
                self._note(f"{status.value} {reason}")
            case i.ReportCheckpoint(checkpoint_id, outcome, reason=reason):
                self._note(f"checkpoint {checkpoint_id} {outcome} {reason}")
            case i.RetainCheckpoints(epoch, committed):
                world = self.cluster.world
                world.at(world.dice.latency(), lambda: self._retain(epoch, committed))

    def _note(self, what: str) -> None:
        self.cluster.world.note(f"{self.cluster.owner} epoch {self.core.epoch}: {what}")

    def _storage(
        self, request: int, action: Callable[[], Any], answer: Callable[[Any], i.Event]
    ) -> None:
        self.cluster.world.storage.call(
            action,
            lambda result: self.on_event(answer(result)),
            lambda trouble: self._storage_failed(request, trouble),
        )

    def _storage_failed(self, request: int, trouble: StorageTrouble) -> None:
        if self.alive and trouble.missing:
            self.cluster.world.judge.on_missing(self.core.epoch, trouble.reason)
        self.on_event(
            i.StorageFailed(request, trouble.reason, trouble.unknown, permanent=trouble.missing)
        )

    # ------------------------------------------------------------------------- retention

    def _retain(self, epoch: int, committed: int) -> None:
        """Decide by what storage lists now; then delete, one thing after another."""
        world = self.cluster.world
        storage = world.storage
        if not self.alive or world.dice.happens("retention"):
            return
        manifests = {
            m.checkpoint_id: m for m in storage.records.values() if isinstance(m, Manifest)
        }
        plan = plan_retention(
            {n: m.paths for n, m in manifests.items()},
            {path: int(path.split("/")[1]) for path in storage.objects},
            retain_count=self.core.rules.checkpoints.retain_count,
            newest_committed=committed,
            current_epoch=epoch,
            superseded=superseded_checkpoints(
                {n: m.epoch for n, m in manifests.items()}, storage.catalog().restores
            ),
            pinned=() if self.core.restored is None else (self.core.restored,),
        )
        calls = [partial(self._drop, n) for n in plan.checkpoints]
        calls += [partial(self._delete, path) for path in plan.objects]
        self._delete_next(calls)

    def _delete_next(self, calls: Sequence[Callable[[], None]]) -> None:
        world = self.cluster.world
        # A process may die, and a deletion may fail, between any two of these.
        if not calls or not self.alive or world.dice.happens("retention"):
            return
        calls[0]()
        world.at(world.dice.latency() / 4, lambda: self._delete_next(calls[1:]))

    def _drop(self, checkpoint_id: int) -> None:
        records = self.cluster.world.storage.records
        self.cluster.world.judge.on_drop(checkpoint_id)
        records.pop(f"checkpoints/{checkpoint_id:010}/committed", None)
        records.pop(f"checkpoints/{checkpoint_id:010}/manifest", None)

    def _delete(self, path: str) -> None:
        self.cluster.world.judge.on_delete(path)
        self.cluster.world.storage.objects.pop(path, None)
