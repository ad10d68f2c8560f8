"""co_group: a user's function of all rows of a key and window, of both streams.

Why it exists: what a join cannot say (compare counts, pick the best pair, look at what is
missing) is a few lines of Python over two tables.

May import: errors, elements, operators, watermarks, windowing, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, PlanError, UserFunctionError
from helios_ray.operators.base import OperatorContext, OperatorSnapshot, StateTable
from helios_ray.operators.joins.columns import parts
from helios_ray.operators.joins.side import plain_schema
from helios_ray.operators.joins.sides import LEFT, RIGHT, InputSchemas
from helios_ray.operators.joins.window_base import TwoSidedWindowOperator
from helios_ray.operators.joins.window_rows import TIME, Ended, order_in_cells
from helios_ray.operators.rows import OutputSchema, Row
from helios_ray.operators.user_functions import OnError
from helios_ray.operators.windows.fragments import column_of
from helios_ray.operators.windows.results import (
    WINDOW_END,
    WINDOW_START,
    Window,
    returned_rows,
)
from helios_ray.watermarks import EventTime
from helios_ray.windowing import SessionWindow, SlidingWindow, TumblingWindow

CoGroupFunction: TypeAlias = Callable[
    [Row, Window, pa.Table, pa.Table], Iterable[Mapping[str, Any]] | pa.Table
]
"""From key, window and the rows of both sides to rows of results."""


class CoGroupOperator(TwoSidedWindowOperator):
    """Calls ``function(key, window, left, right)`` for each key and window that has rows.

    ``key`` holds the key columns' values under the names of the left, ``left`` and ``right``
    are the rows of both sides by event time and then order of arrival, all columns; one of them
    may be empty. The function returns rows as dicts, or a table; the key columns,
    ``window_start`` and ``window_end`` come first in each result by themselves. Keys with a
    null form a group like any other (as in GROUP BY, other than in a join). The event time of
    results is ``EventTime("window_end", -1)``. Late rows go to the side outputs ``late`` (left)
    and ``late_right`` and are counted as ``operator.late_rows``.

    Args:
        left_keys, right_keys: key columns of both sides, in the same order.
        left_time, right_time: where rows carry their event time.
        window: tumbling, sliding, or sessions of the rows of both sides of a key.
        function: see above.
        schema: the columns it returns, where they shall be known before it has run.
        on_error: what to do with rows without an event time, and with the rows of a key and
            window on which the function raises.
        input_schemas: where they are known, everything is checked at once.

    Raises:
        ConfigError: another kind of window, no function, no keys.
        MissingColumnError, PlanError, SchemaChangedError: columns, names or types that do not
            do.

    Example:
        >>> from datetime import timedelta
        >>> def missing(key, window, orders, payments):
        ...     return [{"missing": orders.num_rows - payments.num_rows}]
        >>> window = TumblingWindow(timedelta(microseconds=10))
        >>> operator = CoGroupOperator(["id"], ["order"], "t", "t", window, missing)
        >>> operator.open(OperatorContext(uid="unpaid"))
        >>> operator.process_batch(Batch(pa.record_batch({"id": [1, 1], "t": [3, 4]})), 0)
        []
        >>> operator.process_batch(Batch(pa.record_batch({"order": [1], "t": [9]})), 1)
        []
        >>> [made] = operator.on_watermark(9)
        >>> made.data.select(["id", "missing"]).to_pylist()
        [{'id': 1, 'missing': 1}]
    """

    what = "co_group"

    def __init__(
        self,
        left_keys: Sequence[str],
        right_keys: Sequence[str],
        left_time: str | EventTime,
        right_time: str | EventTime,
        window: TumblingWindow | SlidingWindow | SessionWindow,
        function: CoGroupFunction,
        *,
        schema: pa.Schema | None = None,
        on_error: OnError = "raise",
        input_schemas: InputSchemas = (None, None),
    ) -> None:
        if not callable(function):
            raise ConfigError(
                f"{self.what}: function must be callable as function(key, window, left, right), "
                f"got {function!r}."
            )
        self._function = function
        self._declared = schema
        self._output = OutputSchema(self.what)
        self._meaning = f"co_group, {window}"
        super().__init__(
            left_keys, right_keys, left_time, right_time, window,
            on_error=on_error, input_schemas=input_schemas, joined=False,
        )  # fmt: skip
        own = {*self.sides[LEFT].keys, WINDOW_START, WINDOW_END}
        if len(own) != len(self.sides[LEFT].keys) + 2:
            raise ConfigError(
                f"{self.what}: {WINDOW_START} and {WINDOW_END} cannot be key columns."
            )
        clash = [name for name in (schema.names if schema is not None else []) if name in own]
        if clash:
            raise PlanError(
                f"{self.what}: schema= names {clash[0]!r}, which is added to each result by "
                f"itself. Leave it out."
            )

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._output.open(context)

    def output_schema(
        self, left: pa.Schema | None, right: pa.Schema | None, uid: str = "operator"
    ) -> pa.Schema | None:
        super().output_schema(left, right, uid)
        if left is None or self._declared is None:
            return None
        return pa.schema([*self._head_fields(left), *self._declared])

    def _head_fields(self, left: pa.Schema) -> list[pa.Field]:
        plain = plain_schema(left)
        keys = [plain.field(key) for key in self.sides[LEFT].keys]
        return [*keys, *self.window_fields(left)]

    # ------------------------------------------------------------------------------- rows

    def finish(self, ended: Ended) -> list[Batch]:
        size = len(ended.starts)
        if size == 0:
            return []
        left, right = self._tables(ended, LEFT), self._tables(ended, RIGHT)
        head = self._heads(ended)
        made: list[Row] = []
        for own, lefts, rights in zip(head.to_pylist(), left, right, strict=True):
            made += self._call(own, lefts, rights)
        if not made:
            return []
        self._fix_types(made, head.schema)
        return [Batch(self._output.from_rows(made[part])) for part in parts(len(made))]

    def _tables(self, ended: Ended, index: int) -> Iterator[pa.Table]:
        """The rows of a side, cell by cell."""
        run, rows, cells = ended.runs[index], ended.rows[index], ended.cells[index]
        size = len(ended.starts)
        table = pa.Table.from_batches([self.rows_of(ended, index)])
        if run is not None:
            order = order_in_cells(cells, column_of(run, TIME)[rows], size)
            table = table.take(pa.array(rows[order])).combine_chunks()
        start = 0
        for count in np.bincount(cells, minlength=size).tolist():
            yield table.slice(start, count)
            start += count

    def _heads(self, ended: Ended) -> pa.RecordBatch:
        """Key and window columns of every cell."""
        slots = np.zeros(len(ended.starts), np.int64)
        for run, rows, cells in zip(ended.runs, ended.rows, ended.cells, strict=True):
            if run is not None:
                slots[cells] = run.slots[rows]
        fields = self._head_fields(self.sides[LEFT].required())
        bounds = zip((ended.starts, ended.ends), fields[-2:], strict=True)
        arrays = [*self.sides.space.take(slots), *(pa.array(b).cast(f.type) for b, f in bounds)]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def _call(self, own: Row, left: pa.Table, right: pa.Table) -> list[Row]:
        key = {name: own[name] for name in self.sides[LEFT].keys}
        window = Window(own[WINDOW_START], own[WINDOW_END])
        try:
            found = returned_rows(self._function(key, window, left, right), list(own))
        except Exception as error:
            if self._failures.on_error == "raise":
                raise UserFunctionError(
                    f"{self.sides.where}: the function raised {type(error).__name__}: {error} on "
                    f"key {key!r:.200} in {window}. Fix the function and resume the job, or pass "
                    f"on_error='skip' or on_error='dead_letter' to go on without such windows."
                ) from error
            rows = [*left.to_pylist(), *right.to_pylist()]
            self._failures.failed(error, rows, 0, _NOWHERE)
            return []
        return [{**own, **row} for row in found]

    def _fix_types(self, made: list[Row], head: pa.Schema) -> None:
        """Before the first results decide on the columns: key and window columns are known."""
        if self._output.schema is not None:
            return
        if self._declared is not None:
            declared = pa.schema([*head, *self._declared])
            self._output = OutputSchema(self.what, declared)
            self._output.open(self.context)
            return
        free = [{k: v for k, v in row.items() if k not in head.names} for row in made]
        guess = OutputSchema(self.what)
        guess.open(self.context)
        rest = list(guess.from_rows(free).schema) if any(free) else []
        self._output.schema = pa.schema([*head, *rest])

    # ------------------------------------------------------------------------------ state

    def snapshot(self) -> OperatorSnapshot:
        return {**super().snapshot(), **self._output.snapshot()}

    def restore(self, state: Mapping[str, StateTable]) -> None:
        super().restore(state)
        if self._declared is None:
            self._output.restore(state)


_NOWHERE = Batch(pa.RecordBatch.from_arrays([], names=[]))
"""Rows of a window come from many batches: none of them names their place."""
