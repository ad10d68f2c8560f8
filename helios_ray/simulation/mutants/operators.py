"""Planted bugs in what operators keep, and in how a task drives them.

Why it exists: see the package.

May import: execution, operators, state, protocol, and the simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import pyarrow as pa

from helios_ray.elements import (
    MIN_TIMESTAMP,
    Batch,
    CheckpointBarrier,
    StreamElement,
    Watermark,
)
from helios_ray.execution.actions import SealSnapshot
from helios_ray.execution.chain import OperatorChain
from helios_ray.execution.flow import Flow
from helios_ray.execution.outputs import OutputChannel
from helios_ray.operators.async_map import AsyncMapOperator
from helios_ray.operators.async_map_rows import HeldRows
from helios_ray.operators.base import OperatorSnapshot
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.windows.base import WindowedOperator
from helios_ray.protocol.channels import Frame
from helios_ray.protocol.task import TaskCore
from helios_ray.simulation.mutants import Mutant
from helios_ray.simulation.nodes import SimTask
from helios_ray.state.keyed.backend import KeyedBackend
from helios_ray.state.keyed.tables import TIMERS

Original: TypeAlias = Callable[..., Any]


def time_is_lost(original: Original) -> Original:
    def reset(self: TaskCore, epoch: int, **restored: Any) -> bool:
        joined: bool = original(self, epoch, **{**restored, "watermark": MIN_TIMESTAMP})
        return joined

    return reset


def timers_are_lost(original: Original) -> Original:
    def snapshot(self: KeyedBackend) -> dict[str, pa.Table]:
        tables: dict[str, pa.Table] = original(self)
        return {name: table for name, table in tables.items() if name != TIMERS}

    return snapshot


def held_is_lost(original: Original) -> Original:
    def snapshot(self: Any) -> OperatorSnapshot:
        state: OperatorSnapshot = original(self)
        return {name: table for name, table in state.items() if name != "held"}

    return snapshot


def answered_counts_as_gone(original: Original) -> Original:
    def table(self: HeldRows) -> pa.Table | None:
        asked = self._asked
        self._asked = {n: row for n, row in asked.items() if not row.done}
        try:
            return original(self)
        finally:
            self._asked = asked

    return table


def held_is_overtaken(_: Original) -> Original:
    return lambda _, timestamp: timestamp


def watermark_overtakes(original: Original) -> Original:
    def put(self: OutputChannel, element: StreamElement, now: float) -> None:
        original(self, element, now)
        if isinstance(element, Watermark):
            self._buffer.insert(0, self._buffer.pop())

    return put


def end_does_not_wait(original: Original) -> Original:
    def hold(self: TaskCore, inputs: frozenset[int], **_: bool) -> None:
        original(self, inputs, outstanding=False)

    return hold


def barrier_passes_rows(original: Original) -> Original:
    def receive(self: TaskCore, frame: Frame) -> None:
        original(self, frame)
        queue = self._queues[frame.channel]
        if self._input_index[frame.channel] in self.held_inputs:
            ahead = [q for q in queue if isinstance(q[0], CheckpointBarrier)]
            behind = [q for q in queue if not isinstance(q[0], CheckpointBarrier)]
            queue.clear()
            queue.extend(ahead + behind)

    return receive


def snapshot_is_live(original: Original) -> Original:
    def seal(self: SimTask, order: SealSnapshot) -> None:
        def later() -> None:
            if self.alive and self.body.core.epoch == order.epoch:
                original(self, replace(order, state=self.body._joined.state()))

        self.cluster.world.at(0.3, later)

    return seal


def withholding_is_idleness(_: Original) -> Original:
    return property(lambda _: False)  # type: ignore[return-value]


def blocked_is_blocked(_: Original) -> Original:
    return lambda self: self._joined.chain.blocked_inputs(self._core.input_indexes)


def nobody_hears_of_an_end(_: Original) -> Original:
    return lambda *_: None


def late_rows_vanish(original: Original) -> Original:
    def side(self: WindowedOperator, batch: Batch, numbers: Ints) -> Batch:
        made: Batch = original(self, batch, numbers)
        return replace(made, data=made.data.slice(0, 0))

    return side


MUTANTS = [
    Mutant(
        "time-lost",
        "Rule 12: a task does not know after a restore how far event time had come.",
        TaskCore,
        "reset",
        time_is_lost,
        ("windows", "late", "timers"),
    ),
    Mutant(
        "timers-lost",
        "Rule 12: timers are not part of the snapshot.",
        KeyedBackend,
        "snapshot",
        timers_are_lost,
        ("timers", "batches"),
    ),
    Mutant(
        "requests-lost",
        "Rule 10: rows whose request is under way are in no snapshot.",
        AsyncMapOperator,
        "snapshot",
        held_is_lost,
        ("ask",),
    ),
    Mutant(
        "answers-lost",
        "Rule 10: a row with an answer that waits for its turn is in no snapshot.",
        HeldRows,
        "table",
        answered_counts_as_gone,
        ("ask",),
    ),
    Mutant(
        "held-overtaken",
        "Rule 12: event time goes on although rows are held for an answer.",
        AsyncMapOperator,
        "output_watermark",
        held_is_overtaken,
        ("ask",),
    ),
    Mutant(
        "watermark-overtakes",
        "Rule 12: the watermark is sent before the rows that wait in the output buffer.",
        OutputChannel,
        "put",
        watermark_overtakes,
        ("windows", "timers", "window-join"),
    ),
    Mutant(
        "end-does-not-wait",
        "Rule 8: the end of input does not wait for answers that are outstanding.",
        TaskCore,
        "hold",
        end_does_not_wait,
        ("ask",),
    ),
    Mutant(
        "barrier-passes-rows",
        "Rule 9: on a blocked input the barrier goes past the rows that wait there.",
        TaskCore,
        "receive",
        barrier_passes_rows,
        ("ask",),
    ),
    Mutant(
        "snapshot-live",
        "Rule 10: a snapshot is a view of state that goes on changing until it is sealed.",
        SimTask,
        "_seal",
        snapshot_is_live,
        ("counted", "timers", "batches", "pairs"),
    ),
    Mutant(
        "end-of-table-unheard",
        "Rule 8: an operator does not hear that one of its inputs has ended.",
        OperatorChain,
        "end_one_input",
        nobody_hears_of_an_end,
        ("enrich",),
    ),
    Mutant(
        "withholding-is-idleness",
        "Rule 12: a task says that it is idle while it holds rows that the end of a table lets go.",
        OperatorChain,
        "withholds",
        withholding_is_idleness,
        ("enrich-beside",),
    ),
    Mutant(
        "blocked-before-barrier",
        "Rule 9: rows of a blocked input wait, and its barrier with them, while that of the input "
        "they wait for is there.",
        Flow,
        "_blocked_inputs",
        blocked_is_blocked,
        ("enrich-beside",),
    ),
    Mutant(
        "late-rows-vanish",
        "Rule 12: rows that are too late are dropped silently.",
        WindowedOperator,
        "_side",
        late_rows_vanish,
        ("late",),
    ),
]
