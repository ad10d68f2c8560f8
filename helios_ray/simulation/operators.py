"""Operators for simulated jobs: one waits for event time, one for the end, one fails.

Why it exists: a lost or early watermark must show in the output, and so must an end of input
that is told twice, or never; and user code raises.

May import: operators, state, elements, and faults, judge and source of this room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import MIN_TIMESTAMP, Batch
from helios_ray.operators.base import Operator, OperatorSnapshot, StateKind, StateTable
from helios_ray.simulation.expectations import Identity
from helios_ray.simulation.faults import Dice
from helios_ray.simulation.source import SCHEMA
from helios_ray.state.key_groups import key_groups_of_batch


class Unlucky(Operator):
    """Passes rows on, and now and then raises instead.

    Args:
        dice: when.
    """

    def __init__(self, dice: Dice) -> None:
        self._dice = dice

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        if self._dice.happens("process"):
            raise RuntimeError("the user's code failed, and would not the next time")
        return [batch]


class Farewell(Operator):
    """Passes rows on, and adds one of its own when its input has ended."""

    def end_input(self) -> list[Batch]:
        source, split, n, key = farewell(self.context.subtask)
        row = {"source": source, "split": split, "n": n, "key": key, "ts": 0, "count": 1}
        return [Batch(pa.RecordBatch.from_pylist([row], schema=SCHEMA))]


def farewell(subtask: int) -> Identity:
    """What a subtask of ``Farewell`` adds."""
    return ("end", subtask, 0, -1 - subtask)


class HoldUntilWatermark(Operator):
    """Keeps rows until the watermark reaches their ``ts``, then lets them go in time order.

    Args:
        on_watermark: told the watermark before and after each step.
    """

    def __init__(self, on_watermark: Callable[[int, int], None]) -> None:
        self._moved = on_watermark
        self._held: list[pa.RecordBatch] = []
        self._watermark = MIN_TIMESTAMP

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        self._held.append(batch.data)
        return self.on_watermark(self._watermark)

    def on_watermark(self, timestamp: int) -> list[Batch]:
        self._moved(self._watermark, timestamp)
        self._watermark = timestamp
        if not self._held:
            return []
        table = pa.Table.from_batches(self._held)
        due = pc.less_equal(table.column("ts"), timestamp)
        leaving = table.filter(due)
        self._held = table.filter(pc.invert(due)).to_batches()
        order = pc.sort_indices(leaving, sort_keys=[("ts", "ascending")])
        return [Batch(b) for b in leaving.take(order).combine_chunks().to_batches()]

    def snapshot(self) -> OperatorSnapshot:
        if not self._held:
            return {}
        table = pa.Table.from_batches(self._held).combine_chunks()
        batch = table.to_batches()[0]
        groups = key_groups_of_batch(batch, ["key"], self.context.max_parallelism)
        table = table.append_column("key_group", pa.array(groups, pa.int32()))
        return {"held": StateTable(StateKind.KEYED, table)}

    def restore(self, state: Mapping[str, StateTable]) -> None:
        if "held" in state:
            self._held = state["held"].table.drop_columns(["key_group"]).to_batches()
