"""A whole job in one thread: virtual time, mail, storage, crashes, all from one seed.

Why it exists: correctness of the protocol comes from running it through more misfortune in
minutes than a cluster meets in years, and from replaying exactly the run that went wrong.
(Models: FoundationDB's simulation, TigerBeetle's VOPR.)

A *world* holds what survives everything: storage and the external ledger. A *cluster* is one
coordinator and its tasks; when the coordinator is lost a new cluster takes over, while the
old one may go on for a while without knowing that it is dead.

May import: execution, plan, checkpoint, protocol and below.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

from helios_ray.execution.settings import TaskOptions
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.protocol import instructions as i
from helios_ray.protocol.channels import Frame
from helios_ray.protocol.coordinator import CoordinatorCore
from helios_ray.protocol.instructions import JobStatus
from helios_ray.protocol.messages import (
    FailureKind,
    TaskFailed,
    ToCoordinator,
    ToTask,
    TriggerCheckpoint,
)
from helios_ray.protocol.settings import CoordinatorRules
from helios_ray.simulation.control import SimCoordinator, shape_of
from helios_ray.simulation.faults import Dice
from helios_ray.simulation.judge import Judge
from helios_ray.simulation.ledger import Ledger
from helios_ray.simulation.nodes import SimTask
from helios_ray.simulation.requests import RequestLoop
from helios_ray.simulation.storage import SimStorage

LONGEST_RUN = 200.0
"""Virtual seconds without a fault after which a run counts as stuck."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a scenario decides besides the plan.

    Args:
        shape: the plan's, by name.
        largest_emission: bytes that one step of a task can put on one channel, at the most.
        most_steps: after which a run counts as going round in circles.
    """

    shape: str
    rules: CoordinatorRules
    options: TaskOptions
    largest_emission: int = 64 * 1024
    most_steps: int = 200_000


class World:
    """See the module's docstring.

    Args:
        plan: the job; its sources and sinks share this world's dice and ledger.
        settings: rules of the cores.
        dice: randomness and faults.
        ledger: the external system.
        judge: watches the invariants.
    """

    def __init__(
        self, plan: PhysicalPlan, settings: Settings, dice: Dice, ledger: Ledger, judge: Judge
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.task_options = settings.options
        self.dice = dice
        self.rng: random.Random = dice.rng
        self.ledger = ledger
        self.judge = judge
        self.now = 0.0
        self.steps = 0
        self.deadline = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._tie = 0
        self.storage = SimStorage(dice, self.at, judge.on_record)
        ledger.witness = judge
        judge.watch(self)
        self.clusters: list[Cluster] = []
        self.launching = 0
        self.calm = False
        self.requests = RequestLoop()
        self.refused: str | None = None
        self.trace: Callable[[str], None] | None = None

    def close(self) -> None:
        """The run is over."""
        self.requests.close()

    def at(self, delay: float, call: Callable[[], None]) -> None:
        """Run something after ``delay`` virtual seconds."""
        self._tie += 1
        heapq.heappush(self._queue, (self.now + max(0.0, delay), self._tie, call))

    def note(self, what: str) -> None:
        """Tell whoever follows the run."""
        if self.trace is not None:
            self.trace(f"{self.now:10.4f}  {what}")

    def thrown(self, kind: str, where: str) -> None:
        """A fault has been thrown."""
        self.dice.thrown[kind] += 1
        self.note(f"FAULT {kind} {where}")

    @property
    def current_or_none(self) -> Cluster | None:
        """The cluster that was started last, if any was."""
        return self.clusters[-1] if self.clusters else None

    @property
    def current(self) -> Cluster:
        """The cluster that was started last."""
        return self.clusters[-1]

    def launch(self) -> Cluster:
        """Start the job, as after a submit or a restart of the coordinator."""
        cluster = Cluster(self, f"owner-{len(self.clusters) + 1}")
        self.clusters.append(cluster)
        cluster.start()
        return cluster

    def launch_later(self, delay: float) -> None:
        """Start the job anew after a while."""
        self.launching += 1

        def start() -> None:
            self.launching -= 1
            if not self.calm:
                self.launch()

        self.at(delay, start)

    def run(self) -> JobStatus:
        """Run until the job has ended and nobody is left who could disturb it.

        Returns:
            The status in which the last cluster ended.
        """
        self.deadline = max(self.now, self.dice.plan.until) + LONGEST_RUN
        while self._queue:
            time, _, call = heapq.heappop(self._queue)
            self.now = max(self.now, time)
            self.dice.now = self.now
            self.steps += 1
            call()
            if self.now > self.deadline or self.steps > self.settings.most_steps:
                self.judge.violation(
                    f"stuck: {LONGEST_RUN:.0f} virtual seconds after the last fault the job is "
                    f"{self.current.coordinator.core.status.value}"
                )
                break
            if self.current.ended and not self.launching and all(c.ended for c in self.clusters):
                break
        return self.current.coordinator.core.status


class Cluster:
    """One coordinator and its tasks."""

    def __init__(self, world: World, owner: str) -> None:
        self.world = world
        self.plan = world.plan
        self.owner = owner
        self.alive = True
        self.coordinator = SimCoordinator(
            self,
            CoordinatorCore(
                shape_of(world.plan),
                world.settings.rules,
                owner=owner,
                restore="latest",
                jitter=world.rng.random,
            ),
        )
        self.tasks: dict[TaskId, SimTask] = {}
        self._busy_until: dict[tuple[ChannelId, int], float] = {}
        self._zombies: list[SimTask] = []

    def start(self) -> None:
        """Run the job."""
        self.coordinator.on_event(i.Begin())

    @property
    def ended(self) -> bool:
        """The coordinator has reached a final status, or is gone."""
        return not self.coordinator.alive or self.coordinator.core.status.terminal

    # ----------------------------------------------------------------------------- mail

    def _mail(self, call: Callable[[], None], drop: str, duplicate: str) -> None:
        dice = self.world.dice
        if dice.happens(drop):
            return
        self.world.at(dice.latency(), call)
        if dice.happens(duplicate):
            self.world.at(dice.latency() * 3, call)

    def send_to_task(self, task: TaskId, message: ToTask) -> None:
        """From the coordinator."""
        if isinstance(message, TriggerCheckpoint):
            self.world.judge.on_trigger(message.epoch, message.checkpoint_id)
        node = self.tasks.get(task)
        if node is not None:
            self._mail(
                lambda: node.on_message(message) if self.alive else None,
                "drop_message",
                "duplicate_message",
            )

    def send_to_coordinator(self, message: ToCoordinator) -> None:
        """From a task."""
        if isinstance(message, TaskFailed) and message.kind is FailureKind.PERMANENT:
            self.world.refused = message.reason
        self._mail(
            lambda: self.coordinator.on_message(message), "drop_message", "duplicate_message"
        )

    def send_frame(self, sender: SimTask, frame: Frame) -> None:
        """From task to task; in order per channel, as actor calls of one submitter are."""
        dice, world = self.world.dice, self.world
        if dice.happens("drop_frame"):
            return
        lane = (frame.channel, sender.incarnation)
        arrival = max(world.now + dice.latency(), self._busy_until.get(lane, 0.0) + 1e-6)
        self._busy_until[lane] = arrival

        def deliver() -> None:
            receiver = self.tasks.get(frame.channel.downstream)
            if receiver is None or not receiver.alive or not self.alive:
                return
            receiver.on_frame(frame)
            if not dice.happens("drop_confirm"):
                world.at(dice.latency(), confirm)

        def confirm() -> None:
            if sender.alive and not sender.hung:
                sender.body.confirm(frame.epoch, frame.channel, frame.sequence)
                sender.perform([])

        world.at(arrival - world.now, deliver)
        if dice.happens("duplicate_frame"):
            world.at(arrival - world.now + dice.latency(), deliver)

    def send_credit(self, epoch: int, channel: ChannelId, consumed: int) -> None:
        """From a receiver to a sender."""

        def deliver() -> None:
            sender = self.tasks.get(channel.upstream)
            if sender is not None and sender.alive and not sender.hung:
                sender.body.credit(epoch, channel, consumed)
                sender.perform([])

        self.world.at(self.world.dice.latency(), deliver)

    # ---------------------------------------------------------------------------- crashes

    def replace(self, task: TaskId, incarnation: int) -> None:
        """Start a blank process for a task. The old one is told to die, and may not hear it."""
        old = self.tasks.get(task)
        if old is not None and old not in self._zombies:
            old.alive = False
        self.tasks[task] = SimTask(self, task, incarnation)

    def crash_task(self, task: TaskId, *, zombie: bool = False, silent: bool = False) -> None:
        """A process dies, or is cut off and goes on as a zombie.

        Args:
            silent: nobody reports the death; only missing heartbeats tell.
        """
        node = self.tasks.get(task)
        if node is None or not node.alive:
            return
        world = self.world
        if zombie:
            self._zombies.append(node)
            world.at(world.rng.uniform(0.5, 30.0), lambda: setattr(node, "alive", False))
        else:
            node.alive = False
        if not silent:
            lost = i.TaskLost(task, node.incarnation, "simulated crash")
            world.at(world.rng.uniform(0.01, 0.5), lambda: self.coordinator.on_event(lost))

    def hang_task(self, task: TaskId) -> None:
        """A process stops answering, and neither works nor dies."""
        node = self.tasks.get(task)
        if node is not None:
            node.hung = True

    def shut_down(self) -> None:
        """The job has ended here: its tasks are stopped. Zombies do not hear of it."""
        for node in self.tasks.values():
            if node not in self._zombies:
                node.alive = False

    def crash(self) -> None:
        """Everything of this cluster is gone at once."""
        self.alive = False
        self.coordinator.alive = False
        for node in [*self.tasks.values(), *self._zombies]:
            node.alive = False
