"""An operator for simulated jobs that depends on event time.

Why it exists: a lost or early watermark must show in the output, so something in the
simulated jobs has to wait for time to pass.

May import: operators, state, elements.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import MIN_TIMESTAMP, Batch
from helios_ray.operators.base import Operator, OperatorSnapshot, StateKind, StateTable
from helios_ray.state.key_groups import key_groups_of_batch


class HoldUntilWatermark(Operator):
    """Keeps rows until the watermark reaches their ``ts``, then lets them go in time order."""

    def __init__(self) -> None:
        self._held: list[pa.RecordBatch] = []
        self._watermark = MIN_TIMESTAMP

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        self._held.append(batch.data)
        return self.on_watermark(self._watermark)

    def on_watermark(self, timestamp: int) -> list[Batch]:
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
