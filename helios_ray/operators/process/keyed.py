"""The operator of :class:`KeyedProcessFunction`.

Why it exists: a function that defines ``process_element`` is called row by row; one that
defines ``process_batches`` gets each batch as one table in which the rows of a key stand
together, and works on columns of state.

May import: elements, errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError
from helios_ray.operators.base import OperatorContext
from helios_ray.operators.process.context import BatchContext
from helios_ray.operators.process.driver import ProcessOperator, rows_of
from helios_ray.operators.process.function import KeyedProcessFunction
from helios_ray.operators.rows import to_rows
from helios_ray.operators.segments import Segments
from helios_ray.operators.user_functions import OnError
from helios_ray.state.hashing import check_keys


class KeyedProcessOperator(ProcessOperator):
    """Drives a :class:`KeyedProcessFunction`.

    Args:
        keys: key columns.
        function: an instance, or a class without arguments.
        schema: of the main output; inferred from its first rows where it is None.
        side_outputs: schema, or None, by tag.
        on_error: under ``skip`` and ``dead_letter`` a call that raised leaves no trace in
            state, timers or outputs; in ``process_batches`` a call is a whole batch.
        input_schema: where it is known, the keys are checked at once.

    Raises:
        ConfigError: no keys, no such function, or one that defines neither or both of
            ``process_element`` and ``process_batches``.
        MissingColumnError, PlanError: a key is not a column of ``input_schema``, or cannot
            be a key.
    """

    def __init__(
        self,
        keys: Sequence[str],
        function: KeyedProcessFunction | type[KeyedProcessFunction],
        *,
        schema: pa.Schema | None = None,
        side_outputs: Mapping[str, pa.Schema | None] | None = None,
        on_error: OnError = "raise",
        input_schema: pa.Schema | None = None,
    ) -> None:
        if isinstance(keys, str):
            keys = [keys]
        if not keys:
            raise ConfigError("process needs at least one key column. Use key_by before it.")
        super().__init__(
            function, KeyedProcessFunction, keys,
            schema=schema, side_outputs=side_outputs, on_error=on_error,
        )  # fmt: skip
        kind: Any = type(self._template)
        base = KeyedProcessFunction
        self._batched = kind.process_batches is not base.process_batches
        if self._batched == (kind.process_element is not base.process_element):
            have = "both" if self._batched else "neither"
            raise ConfigError(
                f"process: {kind.__name__} must define process_element(row, ctx) or "
                f"process_batches(table, ctx), and defines {have}."
            )
        if input_schema is not None:
            check_keys(input_schema, self.keys, "process")

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._batch_ctx = BatchContext(context, self.backend, self._out)
        self._batch_ctx.timer_service = self._timers
        self._batch_ctx.opened()

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        data = batch.data
        if data.num_rows == 0:
            return []
        slots = self.backend.begin(data, self.keys, batch.origin)
        if self._batched:
            self._call_table(batch, Segments(slots))
        else:
            self._call_rows(self.function.process_element, rows_of(data), slots, batch)
        return self._finish(batch)

    def _call_table(self, batch: Batch, segments: Segments) -> None:
        scope, ctx, data = self._scope, self._batch_ctx, batch.data
        order = segments.order
        if not np.array_equal(order, np.arange(len(order))):
            data = data.take(pa.array(order))
        keys = self.backend.key_columns.take(pa.array(segments.first_rows))
        scope.enter_distinct(segments.slots)
        ctx.begin(segments, keys)
        if self._careful:
            scope.undo = [self._out.mark()]
        try:
            result: Any = self.function.process_batches(pa.Table.from_batches([data]), ctx)
            if result is not None:
                self._out.add_tables(result)
        except Exception as error:
            self._take_back()
            self._failures.failed(error, to_rows(batch.data), 0, batch)
        scope.undo = None
        if self._timers.overdue:
            self._fire_event_timers(scope.watermark)
