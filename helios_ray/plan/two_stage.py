"""An aggregate in two stages, as one operator: the local half and what merges its results.

Why it exists: the state of an aggregate that merges partial results is made of those results.
Whether its local half can run before the shuffle depends on the rest of the dataflow (who
else reads the rows, which actors are apart); whether a checkpoint can be restored must not.
So an aggregate that may run in two stages always does, in one place or in two.

May import: operators.base, elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from helios_ray.elements import Batch
from helios_ray.operators.base import Operator, OperatorContext, OperatorSnapshot, StateTable


class TwoStageOperator(Operator):
    """Feeds each batch through ``local`` and the results to ``merge``, whose state it has.

    Args:
        local: makes the first stage; it keeps nothing between batches.
        merge: makes the second.
    """

    def __init__(self, local: Callable[[], Operator], merge: Callable[[], Operator]) -> None:
        self._local = local()
        self._merge = merge()

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._local.open(context)
        self._merge.open(context)

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        partial = self._local.process_batch(batch, input_index)
        return [out for b in partial for out in self._merge.process_batch(b)]

    def end_input(self) -> list[Batch]:
        return self._merge.end_input()

    def counters(self) -> Mapping[str, int]:
        return self._merge.counters()

    def snapshot(self) -> OperatorSnapshot:
        return self._merge.snapshot()

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self._merge.restore(state)

    def close(self) -> None:
        self._local.close()
        self._merge.close()
