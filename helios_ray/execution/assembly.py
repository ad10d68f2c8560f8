"""Putting a task together for an epoch: outputs, operators, source and sink, restored.

Why it exists: the same parts are made anew for every epoch, with the state of its checkpoint;
which parts there are is in the plan.

May import: plan, connectors, operators, state, and this room.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from helios_ray.connectors.base import SinkContext, Split
from helios_ray.execution.chain import Emit, OperatorChain
from helios_ray.execution.outputs import ChannelOptions, OutputGate
from helios_ray.execution.restore import RestoredTask
from helios_ray.execution.sink import SinkDriver
from helios_ray.execution.source import STATE_NAME, SourceDriver
from helios_ray.identifiers import TaskId
from helios_ray.operators.base import Operator, OperatorContext, OperatorSnapshot
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.state.key_groups import key_group_range


@dataclass(slots=True)
class TaskParts:
    """What a task is made of in one epoch."""

    outputs: OutputGate
    chain: OperatorChain
    source: SourceDriver | None = None
    sink: SinkDriver | None = None

    def state(self) -> dict[str, OperatorSnapshot]:
        """State tables by operator uid, by reference to immutable data."""
        state = self.chain.snapshot()
        if self.source is not None:
            state[self.source.uid] = {STATE_NAME: self.source.snapshot()}
        return state

    @property
    def skipped_rows(self) -> int:
        """Rows on which a user function failed and was told to go on."""
        operators = self.chain.operators.values()
        return sum(o.counters().get("operator.skipped_rows", 0) for o in operators)

    def wakeups(self, *, timers: bool, reads: bool) -> list[float]:
        """Times at which a part has something to do of itself.

        Args:
            timers: operators may be told the time.
            reads: the source may be asked.
        """
        times = [self.outputs.next_wakeup()]
        if self.sink is not None:
            times.append(self.sink.next_retry())
        if timers:
            timer = self.chain.next_timer()
            times.append(None if timer is None else timer / 1_000_000)
        if reads and self.source is not None:
            times.append(self.source.next_poll())
        return [t for t in times if t is not None]

    def close(self) -> None:
        """Close every part, whatever the others do."""
        for part in (self.source, self.chain, self.sink):
            if part is not None:
                # What is left of an epoch that failed must not stop the next one.
                with contextlib.suppress(Exception):
                    part.close()


def assemble(
    plan: PhysicalPlan,
    task: TaskId,
    epoch: int,
    restored: RestoredTask,
    splits: Sequence[Split],
    first_checkpoint_id: int,
    options: ChannelOptions,
    emit: Emit,
) -> TaskParts:
    """Make the parts of ``task`` and hand them their state.

    Args:
        plan: the whole job.
        task: which task.
        epoch: which attempt.
        restored: state from the checkpoint; empty for a start from nothing.
        splits: all splits of the source, for a source that has no state.
        first_checkpoint_id: the first id of the epoch.
        options: of the outputs.
        emit: takes what leaves the chain.
    """
    spec = plan.chain(task.operator)
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
    outputs = OutputGate(plan, task, epoch, options)
    parts = TaskParts(outputs, OperatorChain(operators, spec.uid, emit))
    try:
        parts.chain.restore(restored.state)
        if spec.source is not None:
            parts.source = SourceDriver(spec.source, task.subtask, spec.parallelism)
            state = restored.state.get(spec.source.uid)
            if state is None:
                parts.source.begin(splits)
            else:
                parts.source.restore(state[STATE_NAME], restored.watermark)
        if spec.sink is not None:
            sink_context = SinkContext(
                job=plan.job,
                sink_uid=spec.sink.uid,
                subtask=task.subtask,
                parallelism=spec.parallelism,
                epoch=epoch,
            )
            parts.sink = SinkDriver(spec.sink, sink_context, first_checkpoint_id)
    except BaseException:
        parts.close()
        raise
    return parts
