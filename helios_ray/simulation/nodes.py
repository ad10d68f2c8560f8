"""Simulated processes: a task and a coordinator, each driving the real core.

Why it exists: under Ray these are actors. Here they are objects whose mail arrives when the
scheduler says so. Whatever decides anything is in the cores; these only carry.

May import: execution, plan, checkpoint (retention), protocol and below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from helios_ray.checkpoint.retention import plan_retention, superseded_checkpoints
from helios_ray.connectors.base import TransactionalSink
from helios_ray.execution.actions import Action, SealSnapshot, SendCredit, SendFrame, Tell
from helios_ray.execution.restore import RestoredTask, objects_for, share_out
from helios_ray.execution.task import TaskBody
from helios_ray.identifiers import TaskId
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.protocol import instructions as i
from helios_ray.protocol.channels import Frame
from helios_ray.protocol.coordinator import CoordinatorCore, JobShape
from helios_ray.protocol.messages import (
    ResetTask,
    SnapshotAcknowledged,
    SnapshotDeclined,
    ToCoordinator,
    ToTask,
)
from helios_ray.records import Manifest, StateObject, TaskSnapshot

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
    )


class SimTask:
    """A task's process.

    Args:
        cluster: where it runs.
        task: which task.
        incarnation: which process of that task.
    """

    def __init__(self, cluster: Cluster, task: TaskId, incarnation: int) -> None:
        self.cluster = cluster
        self.task = task
        self.incarnation = incarnation
        self.body = TaskBody(cluster.plan, task, cluster.world.task_options)
        self.alive = True
        self.hung = False
        self._wake_at: float | None = None
        self._loading = 0

    # ----------------------------------------------------------------------------- mail

    def on_message(self, message: ToTask) -> None:
        """Mail from the coordinator."""
        if not self.alive or self.hung:
            return
        if isinstance(message, ResetTask):
            self._reset(message)
        else:
            self.perform(self.body.handle(message, self.cluster.world.now))

    def on_frame(self, frame: Frame) -> None:
        """A frame from upstream."""
        if self.alive and not self.hung:
            self.perform(self.body.receive(frame, self.cluster.world.now))

    def wake(self) -> None:
        """Do one piece of work."""
        self._wake_at = None
        if self.alive and not self.hung:
            self.perform(self.body.step(self.cluster.world.now))

    def perform(self, actions: list[Action]) -> None:
        """Carry out what the body asks for, and come back when it wants."""
        for action in actions:
            match action:
                case SendFrame(frame):
                    self.cluster.send_frame(self, frame)
                case SendCredit(epoch, channel, consumed):
                    self.cluster.send_credit(epoch, channel, consumed)
                case Tell(message):
                    self.cluster.send_to_coordinator(message)
                case SealSnapshot():
                    self._seal(action)
        self._schedule()

    def _schedule(self) -> None:
        world = self.cluster.world
        if not self.alive or self.hung:
            return
        at = world.now if self.body.ready else max(world.now, self.body.next_wakeup())
        at += world.rng.uniform(0.0005, 0.003)
        if self._wake_at is None or at < self._wake_at:
            self._wake_at = at
            world.at(at - world.now, lambda: self.wake() if self._wake_at == at else None)

    # ---------------------------------------------------------------------------- reset

    def _reset(self, message: ResetTask) -> None:
        world = self.cluster.world
        if message.epoch <= self.body.core.epoch:
            self.perform(self.body.reset(message.epoch, None, (), 0, world.now))
            return
        if self._loading >= message.epoch:
            return
        self._loading = message.epoch
        manifest = message.manifest
        objects = [] if manifest is None else objects_for(manifest, self.cluster.plan, self.task)
        self._load(message, objects, [])

    def _load(
        self,
        message: ResetTask,
        left: list[StateObject],
        loaded: list[tuple[StateObject, pa.Table]],
    ) -> None:
        if self._loading != message.epoch:
            return
        if not left:
            self._loaded(message, loaded)
            return
        o = left[0]
        self.cluster.world.storage.call(
            lambda: self.cluster.world.storage.objects[str(o.path)],
            lambda table: self._load(message, left[1:], [*loaded, (o, table)]),
            lambda _reason, _unknown: self._load(message, left, loaded),
        )

    def _loaded(self, message: ResetTask, loaded: list[tuple[StateObject, pa.Table]]) -> None:
        if not self.alive or self.hung:
            return
        restored: RestoredTask | None = None
        if message.manifest is not None:
            restored = share_out(loaded, message.manifest, self.cluster.plan, self.task)
        source = self.cluster.plan.chain(self.task.operator).source
        splits = () if source is None else source.source.discover_splits(1)
        self.perform(
            self.body.reset(
                message.epoch,
                restored,
                splits,
                message.first_checkpoint_id,
                self.cluster.world.now,
            )
        )

    # ------------------------------------------------------------------------- snapshots

    def _seal(self, order: SealSnapshot) -> None:
        tables: list[tuple[StateObject, pa.Table]] = []
        for uid, snapshot in order.state.items():
            for name, state in snapshot.items():
                path = (
                    f"state/{order.epoch:08}/{uid}/{self.task.subtask}/"
                    f"{order.checkpoint_id:010}-{name}"
                )
                o = StateObject(
                    operator=uid,
                    subtask=self.task.subtask,
                    name=name,
                    kind=state.kind.value,
                    path=path,
                    size=1,
                    raw_size=1,
                    rows=state.table.num_rows,
                )
                tables.append((o, state.table))
        self._upload(order, tables, [])

    def _upload(
        self, order: SealSnapshot, left: list[tuple[StateObject, pa.Table]], done: list[StateObject]
    ) -> None:
        if not self.alive or self.hung:
            return
        if left:
            o, table = left[0]
            self.cluster.world.storage.call(
                lambda: self.cluster.world.storage.objects.__setitem__(str(o.path), table),
                lambda _: self._upload(order, left[1:], [*done, o]),
                lambda reason, _unknown: self._decline(order, reason),
                fault="upload",
            )
            return
        self.cluster.send_to_coordinator(
            SnapshotAcknowledged(
                task=self.task,
                epoch=order.epoch,
                checkpoint_id=order.checkpoint_id,
                snapshot=TaskSnapshot(
                    task=self.task,
                    objects=tuple(done),
                    prepared=order.prepared,
                    watermark=order.watermark,
                    finished=order.finished,
                ),
            )
        )

    def _decline(self, order: SealSnapshot, reason: str) -> None:
        self.cluster.send_to_coordinator(
            SnapshotDeclined(
                task=self.task,
                epoch=order.epoch,
                checkpoint_id=order.checkpoint_id,
                reason=reason,
            )
        )


class SimCoordinator:
    """The coordinator's process."""

    def __init__(self, cluster: Cluster, core: CoordinatorCore) -> None:
        self.cluster = cluster
        self.core = core
        self.alive = True
        self._wake_at: float | None = None

    def on_event(self, event: i.Event) -> None:
        """Mail, answers from storage, time."""
        if not self.alive:
            return
        for instruction in self.core.handle(event, self.cluster.world.now):
            self._perform(instruction)
        if self.core.status.terminal:
            self.cluster.shut_down()
        self._schedule()

    def on_message(self, message: ToCoordinator) -> None:
        """Mail from a task."""
        self.on_event(message)

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
                self.cluster.replace(task, incarnation)
            case i.Send(task, message):
                self.cluster.send_to_task(task, message)
            case i.RetainCheckpoints(epoch, committed):
                self._retain(epoch, committed)
            case _:
                self.cluster.on_report(instruction)

    def _storage(self, request: int, action, answer) -> None:  # type: ignore[no-untyped-def]
        self.cluster.world.storage.call(
            action,
            lambda result: self.on_event(answer(result)),
            lambda reason, unknown: self.on_event(i.StorageFailed(request, reason, unknown)),
        )

    # ------------------------------------------------------------------------- retention

    def _retain(self, epoch: int, committed: int) -> None:
        world = self.cluster.world
        storage = world.storage

        def sweep() -> None:
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
            for n in plan.checkpoints:
                # A process may die between any two of these.
                if world.dice.happens("storage"):
                    return
                world.judge.on_drop(n)
                storage.records.pop(f"checkpoints/{n:010}/committed", None)
                storage.records.pop(f"checkpoints/{n:010}/manifest", None)
            for path in plan.objects:
                if world.dice.happens("storage"):
                    return
                world.judge.on_delete(path)
                storage.objects.pop(path, None)

        world.at(world.dice.latency(), lambda: sweep() if self.alive else None)
