"""A simulated task process, driving the real task body.

Why it exists: under Ray this is an actor. Here it is an object whose mail arrives when the
scheduler says so. Whatever decides anything is in the body; this only carries.

May import: execution, protocol and below, and storage and requests of this room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.execution.actions import (
    Action,
    SealSnapshot,
    SendCredit,
    SendFrame,
    StartRequest,
    Tell,
)
from helios_ray.execution.restore import RestoredTask, objects_for, share_out
from helios_ray.execution.settings import TaskOptions
from helios_ray.execution.task import TaskBody
from helios_ray.identifiers import TaskId
from helios_ray.operators.base import Response
from helios_ray.protocol.channels import Frame
from helios_ray.protocol.messages import (
    FailureKind,
    Heartbeat,
    ResetTask,
    SnapshotAcknowledged,
    SnapshotDeclined,
    TaskFailed,
    ToTask,
)
from helios_ray.records import StateObject, TaskSnapshot
from helios_ray.simulation.requests import start_request
from helios_ray.simulation.storage import StorageTrouble

if TYPE_CHECKING:
    from helios_ray.simulation.world import Cluster


LONGEST_STALL = 40.0
"""Virtual seconds after which a stalled process is put to death by somebody."""

BLOCKED_PAUSE = 0.05


def most_queued(options: TaskOptions, channels: int, largest_emission: int) -> int:
    """Bytes that may wait in a task: per channel a window, and the frame that exceeds it."""
    c = options.channels
    return channels * (c.window_bytes + c.frame_bytes + largest_emission)


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
        settings = cluster.world.settings
        self._most_queued = most_queued(
            settings.options, len(self.body.core.channels), settings.largest_emission
        )
        self.alive = True
        self.hung = False
        self._wake_at: float | None = None
        self._loading = 0
        self._watermark = MIN_TIMESTAMP
        self._epoch = 0

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

    def respond(self, epoch: int, operator: str, response: Response) -> None:
        """A request of an operator has ended."""
        if self.alive and not self.hung:
            now = self.cluster.world.now
            self.perform(self.body.respond(epoch, operator, response, now))

    def stall(self, since: float) -> None:
        """The processing thread is stuck in one call; another still gives signs of life."""
        world, body = self.cluster.world, self.body
        if not self.alive or world.now - since > LONGEST_STALL:
            self.alive = False
            return
        self.hung = True
        beat = Heartbeat(
            task=self.task,
            epoch=body.core.epoch,
            phase=body.phase,
            stalled_for=world.now - since,
        )
        self.cluster.send_to_coordinator(beat)
        world.at(1.0, lambda: self.stall(since))

    def perform(self, actions: list[Action]) -> None:
        """Carry out what the body asks for, and come back when it wants."""
        self._check()
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
                case StartRequest():
                    start_request(self, action)
        self._schedule()

    def _schedule(self) -> None:
        world = self.cluster.world
        if not self.alive or self.hung:
            return
        at = world.now if self.body.ready else max(world.now, self._next_wakeup())
        at += world.rng.uniform(0.0005, 0.003)
        if self._wake_at is None or at < self._wake_at:
            self._wake_at = at
            world.at(at - world.now, lambda: self.wake() if self._wake_at == at else None)

    def _next_wakeup(self) -> float:
        at = self.body.next_wakeup()
        if self.body.blocked and at <= self.cluster.world.now:
            # Only credit helps; it wakes the task when it comes.
            return self.cluster.world.now + BLOCKED_PAUSE
        return at

    def _check(self) -> None:
        """What must hold after whatever the body did."""
        body, judge = self.body, self.cluster.world.judge
        if body.core.epoch < self._epoch:
            judge.violation(f"{self.task}: epoch went back from {self._epoch}")
        if body.core.epoch > self._epoch:
            self._epoch, self._watermark = body.core.epoch, body.watermark
        if body.watermark < self._watermark:
            judge.violation(f"{self.task}: watermark went back from {self._watermark}")
        self._watermark = body.watermark
        if body.core.queued_bytes > self._most_queued:
            judge.violation(f"{self.task}: {body.core.queued_bytes} bytes queued")

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
            lambda trouble: self._load_failed(trouble, message, left, loaded),
        )

    def _load_failed(
        self,
        trouble: StorageTrouble,
        message: ResetTask,
        left: list[StateObject],
        loaded: list[tuple[StateObject, pa.Table]],
    ) -> None:
        if not trouble.missing:
            self._load(message, left, loaded)
        elif self.alive and not self.hung and self._loading == message.epoch:
            self.cluster.world.judge.on_missing(message.epoch, trouble.reason)
            self.cluster.send_to_coordinator(
                TaskFailed(
                    task=self.task,
                    epoch=message.epoch,
                    kind=FailureKind.RAISED,
                    reason=trouble.reason,
                )
            )

    def _loaded(self, message: ResetTask, loaded: list[tuple[StateObject, pa.Table]]) -> None:
        if not self.alive or self.hung:
            return
        restored: RestoredTask | None = None
        if message.manifest is not None:
            restored = share_out(loaded, message.manifest, self.cluster.plan, self.task)
        source = self.cluster.plan.chain(self.task.operator).source
        width = self.cluster.plan.chain(self.task.operator).parallelism
        splits = () if source is None else source.source.discover_splits(width)
        self.perform(
            self.body.reset(
                message.epoch,
                restored,
                splits,
                message.first_checkpoint_id,
                self.cluster.world.now,
            )
        )
        due = MIN_TIMESTAMP if restored is None else restored.watermark
        if self.body.core.epoch == message.epoch and self.body.watermark < due:
            self.cluster.world.judge.violation(
                f"{self.task}: resumes at watermark {self.body.watermark}, the checkpoint has {due}"
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
                lambda trouble: self._decline(order, trouble.reason),
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
