"""The task body: see the room's docstring.

The one step of a checkpoint (rule 10) is ``_take_checkpoint``: sink pre-commit, barrier to
every output, snapshot by reference, and the order to seal it. Nothing can come in between.

May import: plan, protocol, operators, connectors and below.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from helios_ray.connectors.base import SinkContext, Split, TransactionalSink
from helios_ray.elements import (
    MAX_TIMESTAMP,
    MIN_TIMESTAMP,
    Batch,
    CheckpointBarrier,
    EndOfInput,
    Idle,
    Origin,
    StreamElement,
    Watermark,
)
from helios_ray.errors import (
    ConfigError,
    DataError,
    FatalCommitError,
    PlanError,
    StateMismatchError,
)
from helios_ray.execution.actions import Action, SealSnapshot, SendCredit, SendFrame, Tell
from helios_ray.execution.chain import OperatorChain
from helios_ray.execution.outputs import ChannelOptions, OutputGate
from helios_ray.execution.restore import RestoredTask
from helios_ray.execution.sink import SinkDriver
from helios_ray.execution.source import STATE_NAME, SourceDriver
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.operators.base import Operator, OperatorContext, OperatorSnapshot
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.protocol.channels import Frame
from helios_ray.protocol.messages import (
    AbortCheckpoint,
    CommitAcknowledged,
    CommitCheckpoint,
    FailureKind,
    Heartbeat,
    ResolveTransactions,
    StartTask,
    TaskFailed,
    TaskPhase,
    ToTask,
    TransactionsResolved,
    TriggerCheckpoint,
)
from helios_ray.protocol.task import (
    AdvanceWatermark,
    BecomeIdle,
    FinishInput,
    GrantCredit,
    Instruction,
    ProcessBatches,
    TakeCheckpoint,
    TaskCore,
)
from helios_ray.state.key_groups import key_group_range

PERMANENT_ERRORS = (DataError, ConfigError, PlanError, FatalCommitError, StateMismatchError)
"""Errors that would come again: the job fails at once instead of restarting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Settings of a task body.

    Args:
        channels: see there.
        source_rows: rows that a source reads at a time.
        batch_bytes: rows waiting are processed together up to this size.
        heartbeat_interval: seconds.
    """

    channels: ChannelOptions = field(default_factory=ChannelOptions)
    source_rows: int = 16_384
    batch_bytes: int = 4 << 20
    heartbeat_interval: float = 1.0


@dataclass(slots=True)
class TaskCounters:
    """Running totals of one task since its process started; for metrics."""

    rows_in: int = 0
    rows_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    commits: int = 0
    commit_seconds: float = 0.0
    blocked_steps: int = 0


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
        self._chain_spec = plan.chain(task.operator)
        self._options = options
        by_edge = {edge.index: edge.input_index for edge in plan.edges}
        self.core = TaskCore(
            [(c, by_edge[c.edge]) for c in plan.inputs(task)],
            credit_threshold=max(1, options.channels.window_bytes // 4),
        )
        self.counters = TaskCounters()
        self.phase = TaskPhase.BLANK
        self._actions: list[Action] = []
        self._now = 0.0
        self._heartbeat_at = 0.0
        self._poll_at: float | None = None
        self._suspended = False
        self._ended = False
        self._announced = MIN_TIMESTAMP
        self._chain: OperatorChain | None = None
        self._outputs: OutputGate | None = None
        self._source: SourceDriver | None = None
        self._sink: SinkDriver | None = None

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
            if self.core.reset(
                epoch,
                watermark=restored.watermark if restored else MIN_TIMESTAMP,
                finished=restored.finished if restored else False,
            ):
                self._close()
                self._build(restored or RestoredTask(), splits, first_checkpoint_id)
                self.phase = TaskPhase.READY
                self._announced = self.core.watermark
            if epoch == self.core.epoch:
                self._beat()
        return self._take()

    def _build(
        self, restored: RestoredTask, splits: Sequence[Split], first_checkpoint_id: int
    ) -> None:
        spec, plan, task = self._chain_spec, self._plan, self.task
        epoch = self.core.epoch
        self._suspended, self._ended, self._poll_at = False, False, 0.0
        self._outputs = OutputGate(plan, task, epoch, self._options.channels)
        groups = key_group_range(task.subtask, spec.parallelism, plan.max_parallelism)
        operators: list[tuple[Operator, OperatorContext]] = []
        for o in spec.operators:
            context = OperatorContext(
                job=plan.job,
                uid=o.uid,
                subtask=task.subtask,
                parallelism=spec.parallelism,
                max_parallelism=plan.max_parallelism,
                key_groups=groups,
            )
            operators.append((o.factory(), context))
        self._chain = OperatorChain(operators, spec.uid, self._emit)
        self._chain.restore(restored.state)
        if spec.source is not None:
            self._source = SourceDriver(spec.source, task.subtask, spec.parallelism)
            state = restored.state.get(spec.source.uid)
            if state is None:
                self._source.begin(splits)
            else:
                self._source.restore(state[STATE_NAME], restored.watermark)
        if spec.sink is not None:
            self._sink = SinkDriver(
                spec.sink,
                SinkContext(
                    job=plan.job,
                    sink_uid=spec.sink.uid,
                    subtask=task.subtask,
                    parallelism=spec.parallelism,
                    epoch=epoch,
                ),
                first_checkpoint_id,
            )

    def _close(self) -> None:
        parts = [self._source, self._chain, self._sink]
        self._source = self._chain = self._sink = self._outputs = None
        for part in parts:
            if part is not None:
                # What is left of an epoch that failed must not stop the next one.
                with contextlib.suppress(Exception):
                    part.close()

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
                    # Operators and those downstream learn where event time stood.
                    if self._announced > MIN_TIMESTAMP:
                        self._advance_time(self._announced)
                self._carry_out(instructions)
                self._beat()
            case TriggerCheckpoint(epoch=epoch, checkpoint_id=checkpoint_id, suspend=suspend):
                self._carry_out(self.core.trigger(epoch, checkpoint_id))
                self._suspended = self._suspended or suspend
            case AbortCheckpoint(epoch=epoch, checkpoint_id=checkpoint_id):
                self.core.abort(epoch, checkpoint_id)
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
        if self.phase is not TaskPhase.RUNNING or self._outputs is None or self._outputs.full:
            return False
        if self._source is None:
            return self.core.has_work
        return not self._suspended and self._poll_at is not None and self._poll_at <= self._now

    def step(self, now: float) -> list[Action]:
        """Do one piece of work: some rows, one mark, or what time makes due."""
        with self._guard(now):
            if self.phase in (TaskPhase.RUNNING, TaskPhase.FINISHED):
                self._work()
            if self._sink is not None:
                committed, resolved = self._sink.retry(self._now)
                self._committed(committed)
                self._resolved(resolved)
        if self._outputs is not None:
            for frame in self._outputs.flush(self._now):
                self._actions.append(SendFrame(frame))
                self.counters.bytes_out += frame.size
        if self._now >= self._heartbeat_at and self.core.epoch:
            self._beat()
        return self._take()

    def next_wakeup(self) -> float:
        """When ``step`` should be called next, if nothing comes in before."""
        times = [self._heartbeat_at]
        if self._outputs is not None:
            times.append(self._outputs.next_wakeup() or self._heartbeat_at)
        if self._sink is not None:
            times.append(self._sink.next_retry() or self._heartbeat_at)
        if self.phase is TaskPhase.RUNNING:
            timer = self._chain.next_timer() if self._chain is not None else None
            if timer is not None:
                times.append(timer / 1_000_000)
            if self._poll_at is not None and self._source is not None and not self._suspended:
                times.append(self._poll_at)
        return min(times)

    def _work(self) -> None:
        assert self._outputs is not None
        assert self._chain is not None
        timer = self._chain.next_timer()
        if timer is not None and timer <= self._now * 1_000_000:
            self._chain.fire_timers(int(self._now * 1_000_000))
        if self.phase is not TaskPhase.RUNNING:
            return
        if self._outputs.full:
            self.counters.blocked_steps += 1
        elif self._source is not None:
            self._read()
        else:
            self._carry_out(self.core.advance(self._options.batch_bytes))

    def _read(self) -> None:
        assert self._source is not None
        if self._suspended or (self._poll_at is not None and self._poll_at > self._now):
            return
        elements, self._poll_at = self._source.poll(self._options.source_rows, self._now)
        if elements:
            self._poll_at = self._now
        for element in elements:
            match element:
                case Batch():
                    self._process((element,), 0)
                case Watermark(timestamp):
                    self._advance_time(timestamp)
                case _:
                    self._broadcast(element)
        if self._source.exhausted:
            self._carry_out(self.core.source_exhausted())

    # -------------------------------------------------------------------- instructions

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case ProcessBatches(input_index, batches):
                    self._process(batches, input_index)
                case AdvanceWatermark(timestamp):
                    self._advance_time(timestamp)
                case BecomeIdle():
                    self._broadcast(Idle())
                case TakeCheckpoint(checkpoint_id):
                    self._take_checkpoint(checkpoint_id)
                case FinishInput(flush):
                    self._finish(flush=flush)
                case GrantCredit(channel, consumed):
                    self._actions.append(SendCredit(self.core.epoch, channel, consumed))

    def _process(self, batches: Sequence[Batch], input_index: int) -> None:
        assert self._chain is not None
        for batch in concatenate(batches):
            self.counters.rows_in += batch.data.num_rows
            self.counters.bytes_in += batch.data.nbytes
            self._chain.process(batch, input_index)

    def _advance_time(self, timestamp: int) -> None:
        assert self._chain is not None
        leaving = self._chain.advance_time(timestamp)
        if timestamp == MAX_TIMESTAMP:
            # Local to the task: downstream, the end of this input is not the end of time.
            return
        self._announced = max(self._announced, leaving)
        self._broadcast(Watermark(self._announced))

    def _emit(self, operator: str, batch: Batch) -> None:
        assert self._outputs is not None
        self.counters.rows_out += batch.data.num_rows
        if self._sink is not None and batch.tag is None:
            self._sink.write(batch.data)
        else:
            self._outputs.emit(operator, batch, self._now)

    def _broadcast(self, element: StreamElement) -> None:
        assert self._outputs is not None
        if not self._ended:
            self._outputs.broadcast(element, self._now)

    def _take_checkpoint(self, checkpoint_id: int) -> None:
        self._broadcast(CheckpointBarrier(checkpoint_id))
        if self._sink is not None:
            self._sink.prepare(checkpoint_id)
        assert self._chain is not None
        state: dict[str, OperatorSnapshot] = self._chain.snapshot()
        if self._source is not None and self._chain_spec.source is not None:
            state[self._chain_spec.source.uid] = {STATE_NAME: self._source.snapshot()}
        self._actions.append(
            SealSnapshot(
                epoch=self.core.epoch,
                checkpoint_id=checkpoint_id,
                state=state,
                prepared=self._sink.prepared if self._sink is not None else (),
                watermark=self._announced,
                finished=self._ended,
            )
        )

    def _finish(self, *, flush: bool) -> None:
        assert self._chain is not None
        if flush:
            self._advance_time(MAX_TIMESTAMP)
            self._chain.end_input()
        self._broadcast(EndOfInput())
        self._ended = True
        self.phase = TaskPhase.FINISHED
        self._beat()

    def _committed(self, checkpoint_id: int | None) -> None:
        if checkpoint_id is not None:
            self.counters.commits += 1
            self._tell(
                CommitAcknowledged(
                    task=self.task, epoch=self.core.epoch, checkpoint_id=checkpoint_id
                )
            )

    def _resolved(self, request: ResolveTransactions | None) -> None:
        if request is not None:
            self._tell(
                TransactionsResolved(
                    task=self.task,
                    epoch=self.core.epoch,
                    sink=request.sink,
                    sweep=request.sweep,
                )
            )

    # --------------------------------------------------------------------------- helpers

    @property
    def watermark(self) -> int:
        """Event time announced downstream (µs)."""
        return self._announced

    @property
    def skipped_rows(self) -> int:
        """Rows on which a user function failed and was told to go on."""
        chain = self._chain
        if chain is None:
            return 0
        return sum(o.counters().get("operator.skipped_rows", 0) for o in chain.operators.values())

    @property
    def is_transactional(self) -> bool:
        """Whether the task's sink takes part in two-phase commit."""
        return self._sink is not None and isinstance(self._sink.sink, TransactionalSink)

    def _tell(
        self, message: Heartbeat | TaskFailed | CommitAcknowledged | TransactionsResolved
    ) -> None:
        self._actions.append(Tell(message))

    def _beat(self) -> None:
        self._heartbeat_at = self._now + self._options.heartbeat_interval
        self._tell(Heartbeat(task=self.task, epoch=self.core.epoch, phase=self.phase))

    def _guard(self, now: float) -> _Guard:
        self._now = max(self._now, now)
        return _Guard(self)

    def _failed(self, error: Exception) -> None:
        self.phase = TaskPhase.FAILED
        kind = FailureKind.PERMANENT if is_permanent(error) else FailureKind.RAISED
        reason = f"{type(error).__name__}: {error}"
        self._tell(TaskFailed(task=self.task, epoch=self.core.epoch, kind=kind, reason=reason))

    def _take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


class _Guard:
    """Turns an exception in what a task runs into the failure of the task."""

    def __init__(self, body: TaskBody) -> None:
        self._body = body

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._body._failed(error)
        return True


def is_permanent(error: BaseException) -> bool:
    """Whether an error would come again after a restart."""
    return isinstance(error, PERMANENT_ERRORS)


def concatenate(batches: Sequence[Batch]) -> list[Batch]:
    """Join neighbours of one schema, so that a task that has fallen behind catches up.

    Rows of a joined batch name the origin of the first part.
    """
    if len(batches) <= 1:
        return list(batches)
    joined: list[Batch] = []
    run: list[Batch] = []
    for batch in batches:
        if run and not batch.data.schema.equals(run[0].data.schema):
            joined.append(_join(run))
            run = []
        run.append(batch)
    joined.append(_join(run))
    return joined


def _join(run: list[Batch]) -> Batch:
    if len(run) == 1:
        return run[0]
    first = run[0].origin
    origin = None if first is None else Origin(first.split, f"{first.position} and on")
    return Batch(pa.concat_batches([b.data for b in run]), origin)
