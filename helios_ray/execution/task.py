"""The task body: see the room's docstring.

The one step of a checkpoint (rule 10) is ``_take_checkpoint``: sink pre-commit, barrier to
every output, snapshot by reference, and the order to seal it. Nothing can come in between.

May import: plan, protocol, operators, connectors and below.
"""

from __future__ import annotations

from collections.abc import Sequence

from helios_ray.connectors.base import Split
from helios_ray.elements import (
    MIN_TIMESTAMP,
    Batch,
    CheckpointBarrier,
    StreamElement,
)
from helios_ray.execution.actions import Action, SealSnapshot, SendCredit, SendFrame
from helios_ray.execution.assembly import TaskParts, assemble
from helios_ray.execution.failures import Guard
from helios_ray.execution.failures import is_permanent as is_permanent
from helios_ray.execution.flow import Flow
from helios_ray.execution.outbox import Outbox
from helios_ray.execution.outputs import OutputGate
from helios_ray.execution.restore import RestoredTask
from helios_ray.execution.settings import TaskCounters as TaskCounters
from helios_ray.execution.settings import TaskOptions as TaskOptions
from helios_ray.execution.sink import SinkDriver
from helios_ray.execution.source import SourceDriver
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.operators.base import Response
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.protocol.channels import Frame
from helios_ray.protocol.messages import (
    AbortCheckpoint,
    CommitCheckpoint,
    LimitSource,
    ResolveTransactions,
    StartTask,
    TaskPhase,
    ToTask,
    TriggerCheckpoint,
)
from helios_ray.protocol.task import (
    AdvanceWatermark,
    BecomeIdle,
    FinishInput,
    GrantCredit,
    InputEnded,
    Instruction,
    ProcessBatches,
    TakeCheckpoint,
    TaskCore,
)

_RUNNING = (TaskPhase.RUNNING, TaskPhase.DRAINING)
"""Phases in which operators are called."""


class TaskBody:
    """One task, without threads, clocks or I/O of its own.

    Every method that takes ``now`` (seconds, a clock that only grows) returns the actions to
    carry out, in order. An exception in user code or a connector never escapes: it becomes a
    ``TaskFailed`` message, and the body waits to be reset.

    Args:
        plan: the whole job.
        task: which task this is.
        options: settings.
    """

    def __init__(self, plan: PhysicalPlan, task: TaskId, options: TaskOptions) -> None:
        self._plan = plan
        self.task = task
        self._options = options
        by_edge = {edge.index: edge.input_index for edge in plan.edges}
        self.core = TaskCore(
            [(c, by_edge[c.edge]) for c in plan.inputs(task)],
            credit_threshold=max(1, options.channels.window_bytes // 4),
        )
        self.counters = TaskCounters()
        self.phase = TaskPhase.BLANK
        self._outbox = Outbox(task)
        self._flow = Flow(self.core, self._outbox, self.counters)
        self._heartbeat_at = 0.0
        self._parts: TaskParts | None = None

    # ------------------------------------------------------------------------ the epoch

    def reset(
        self,
        epoch: int,
        restored: RestoredTask | None,
        splits: Sequence[Split],
        first_checkpoint_id: int,
        now: float,
    ) -> list[Action]:
        """Join an epoch with the state of its checkpoint.

        Args:
            epoch: repeated and older ones are answered or ignored.
            restored: state from the checkpoint, or None for a start from nothing.
            splits: all splits of the source, for a source that has no state.
            first_checkpoint_id: the first id of the epoch.
            now: seconds.
        """
        with self._guard(now):
            if epoch > self.core.epoch:
                # Before the epoch changes: a heartbeat of another thread must not say of the new
                # epoch how far this task had come in the old one.
                self.phase = TaskPhase.BLANK
            if self.core.reset(
                epoch,
                watermark=restored.watermark if restored else MIN_TIMESTAMP,
                finished=restored.finished if restored else False,
            ):
                self._close()
                self._build(restored or RestoredTask(), splits, first_checkpoint_id)
                self.phase = TaskPhase.READY
                self._flow.announced = self.core.watermark
            if epoch == self.core.epoch:
                self._beat()
        return self._take()

    def _build(
        self, restored: RestoredTask, splits: Sequence[Split], first_checkpoint_id: int
    ) -> None:
        self._parts = assemble(
            self._plan,
            self.task,
            self.core.epoch,
            restored,
            splits,
            first_checkpoint_id,
            self._options.channels,
            self._flow.emit,
        )
        self._flow.join(self._parts)

    def _close(self) -> None:
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()

    @property
    def _joined(self) -> TaskParts:
        """The parts of a task that has joined an epoch."""
        assert self._parts is not None
        return self._parts

    @property
    def _outputs(self) -> OutputGate | None:
        return None if self._parts is None else self._parts.outputs

    @property
    def _source(self) -> SourceDriver | None:
        return None if self._parts is None else self._parts.source

    @property
    def _sink(self) -> SinkDriver | None:
        return None if self._parts is None else self._parts.sink

    def close(self) -> None:
        """Release everything; the task will not be used again."""
        self._close()
        self.phase = TaskPhase.BLANK

    # ------------------------------------------------------------------ from the outside

    def handle(self, message: ToTask, now: float) -> list[Action]:
        """A message from the coordinator, other than the reset."""
        with self._guard(now):
            if message.epoch == self.core.epoch and self.phase is not TaskPhase.FAILED:
                self._on_message(message)
        return self._take()

    def _on_message(self, message: ToTask) -> None:
        match message:
            case StartTask(epoch=epoch):
                starting = self.core.phase is TaskPhase.READY
                instructions = self.core.start(epoch)
                if starting:
                    self.phase = TaskPhase.RUNNING
                    self._flow.set_processing_time()
                    self._flow.resume()
                self._carry_out(instructions)
                self._settle()
                self._beat()
            case TriggerCheckpoint(epoch=epoch, checkpoint_id=checkpoint_id, suspend=suspend):
                self._carry_out(self.core.trigger(epoch, checkpoint_id))
                if suspend and self._source is not None:
                    self._source.suspend()
            case AbortCheckpoint(epoch=epoch, checkpoint_id=checkpoint_id):
                self.core.abort(epoch, checkpoint_id)
            case LimitSource() if self._source is not None:
                self._source.limit(message)
            case CommitCheckpoint(checkpoint_id=checkpoint_id) if self._sink is not None:
                self._committed(self._sink.commit(checkpoint_id, self._now))
            case ResolveTransactions() if self._sink is not None:
                self._resolved(self._sink.resolve(message, self._now))

    def receive(self, frame: Frame, now: float) -> list[Action]:
        """A frame from upstream."""
        with self._guard(now):
            if self.phase is not TaskPhase.FAILED:
                self.core.receive(frame)
        return self._take()

    def respond(self, epoch: int, operator: str, response: Response, now: float) -> list[Action]:
        """A request of an operator has ended; one of another epoch is of no interest.

        Args:
            epoch, operator: as ``StartRequest`` said.
            response: how it ended.
            now: seconds.
        """
        with self._guard(now):
            if epoch == self.core.epoch and self.phase in _RUNNING:
                self._flow.set_processing_time()
                self._flow.respond(operator, response)
                self._settle()
        return self._take()

    def confirm(self, epoch: int, channel: ChannelId, sequence: int) -> None:
        """A frame that this task sent has arrived."""
        if epoch == self.core.epoch and self._outputs is not None:
            self._outputs.confirm(channel, sequence)

    def credit(self, epoch: int, channel: ChannelId, consumed: int) -> None:
        """A receiver has consumed that many bytes of a channel."""
        if epoch == self.core.epoch and self._outputs is not None:
            self._outputs.grant(channel, consumed)

    def fail(self, error: BaseException, now: float) -> list[Action]:
        """Something went wrong outside the body; end the epoch with it."""
        with self._guard(now):
            raise error
        return self._take()

    # -------------------------------------------------------------------------- stepping

    @property
    def ready(self) -> bool:
        """Whether ``step`` would find work right now."""
        if self.phase not in _RUNNING or self.blocked:
            return False
        if self._source is None or self.phase is TaskPhase.DRAINING:
            return self.core.has_work
        return not self.core.held_inputs and self._source.ready(self._now)

    @property
    def blocked(self) -> bool:
        """Whether there is no room downstream: nothing to do until credit comes in."""
        return self._outputs is None or self._outputs.full

    def step(self, now: float) -> list[Action]:
        """Do one piece of work: some rows, one mark, or what time makes due."""
        with self._guard(now):
            if self.phase in _RUNNING:
                self._work()
            if self._sink is not None:
                committed, resolved = self._sink.retry(self._now)
                self._committed(committed)
                self._resolved(resolved)
        if self._outputs is not None:
            for frame in self._outputs.flush(self._now):
                self._outbox.put(SendFrame(frame))
                self.counters.bytes_out += frame.size
        if self._now >= self._heartbeat_at and self.core.epoch:
            self._beat()
        return self._take()

    def next_wakeup(self) -> float:
        """When ``step`` should be called next, if nothing comes in before."""
        times = [self._heartbeat_at]
        if self._parts is not None:
            reads = self.phase is TaskPhase.RUNNING and not self.core.held_inputs
            times += self._parts.wakeups(timers=self.phase in _RUNNING, reads=reads)
        return min(times)

    def _work(self) -> None:
        self._flow.set_processing_time()
        if self._flow.fire_timers():
            self._settle()
        source = self._source
        if self.blocked:
            self.counters.blocked_steps += 1
        elif source is None or self.phase is TaskPhase.DRAINING:
            self._carry_out(self.core.advance(self._options.batch_bytes))
        elif not self.core.held_inputs:
            self._flow.read(source, self._options.source_rows)
            if source.exhausted:
                self._settle()
                self._carry_out(self.core.source_exhausted())
        self._settle()

    def _settle(self) -> None:
        if self.phase in _RUNNING:
            self._flow.settle()
        if self.core.phase is TaskPhase.DRAINING and self.phase is TaskPhase.RUNNING:
            # Nobody sends barriers any more: the coordinator must know whom to ask.
            self.phase = TaskPhase.DRAINING
            self._beat()

    # -------------------------------------------------------------------- instructions

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case ProcessBatches(input_index, batches):
                    self._process(batches, input_index)
                case AdvanceWatermark(timestamp):
                    self._flow.advance_time(timestamp)
                case BecomeIdle():
                    self._flow.become_idle()
                case TakeCheckpoint(checkpoint_id):
                    self._take_checkpoint(checkpoint_id)
                case InputEnded(input_index):
                    self._flow.end_one_input(input_index)
                case FinishInput(flush):
                    self._finish(flush=flush)
                case GrantCredit(channel, consumed):
                    self._outbox.put(SendCredit(self.core.epoch, channel, consumed))

    def _process(self, batches: Sequence[Batch], input_index: int) -> None:
        self._flow.process(batches, input_index)

    def _broadcast(self, element: StreamElement) -> None:
        self._flow.broadcast(element)

    def _take_checkpoint(self, checkpoint_id: int) -> None:
        self._broadcast(CheckpointBarrier(checkpoint_id))
        if self._sink is not None:
            self._sink.prepare(checkpoint_id)
        self._outbox.put(
            SealSnapshot(
                epoch=self.core.epoch,
                checkpoint_id=checkpoint_id,
                state=self._joined.state(),
                prepared=self._sink.prepared if self._sink is not None else (),
                watermark=self._flow.announced,
                finished=self._flow.ended,
            )
        )

    def _finish(self, *, flush: bool) -> None:
        self._flow.finish(flush=flush)
        self.phase = TaskPhase.FINISHED
        self._beat()

    def _committed(self, checkpoint_id: int | None) -> None:
        if checkpoint_id is not None:
            self.counters.commits += 1
            self._outbox.committed(self.core.epoch, checkpoint_id)

    def _resolved(self, request: ResolveTransactions | None) -> None:
        if request is not None:
            self._outbox.resolved(self.core.epoch, request)

    # --------------------------------------------------------------------------- helpers

    @property
    def watermark(self) -> int:
        """Event time announced downstream (µs)."""
        return self._flow.announced

    @property
    def _now(self) -> float:
        return self._flow.now

    @property
    def skipped_rows(self) -> int:
        """Rows on which a user function failed and was told to go on."""
        return 0 if self._parts is None else self._parts.skipped_rows

    @property
    def is_transactional(self) -> bool:
        """Whether the task's sink takes part in two-phase commit."""
        return self._sink is not None and self._sink.is_transactional

    def _beat(self) -> None:
        self._heartbeat_at = self._now + self._options.heartbeat_interval
        self._outbox.beat(self.core.epoch, self.phase)

    def _guard(self, now: float) -> Guard:
        self._flow.now = max(self._now, now)
        return Guard(self._failed)

    def _failed(self, error: Exception) -> None:
        self.phase = TaskPhase.FAILED
        self._outbox.failed(self.core.epoch, error)

    def _take(self) -> list[Action]:
        return self._outbox.take()
