"""The window join: rows of two streams with the same key in the same window.

    left   ─┐                                       ┌─ pairs of rows
            ├─ kept by window ─ watermark passes ─▶ │
    right  ─┘                    a window's end     └─ rows without a partner, as how= says

May import: errors, elements, operators, watermarks, windowing, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import PlanError
from helios_ray.operators.joins.columns import SUFFIX, JoinHow, check_how, parts
from helios_ray.operators.joins.matching import Ints, equal_pairs, unmatched
from helios_ray.operators.joins.sides import LEFT, RIGHT, InputSchemas
from helios_ray.operators.joins.window_base import TwoSidedWindowOperator
from helios_ray.operators.joins.window_rows import Ended
from helios_ray.operators.user_functions import OnError
from helios_ray.operators.window_aggregates.groups import stable_order
from helios_ray.watermarks import EventTime
from helios_ray.windowing import SessionWindow, SlidingWindow, TumblingWindow


class WindowJoinOperator(TwoSidedWindowOperator):
    """See the module's docstring. Input 0 is the left, input 1 the right.

    Results have the columns of :class:`JoinColumns`, then ``window_start`` and ``window_end``
    (timestamps of microseconds, in the zone of the left's time column). They come by the
    window's end; their event time is ``EventTime("window_end", -1)``. Keys with a null equal
    nothing. Late rows go to the side outputs ``late`` (left) and ``late_right`` and are counted
    as ``operator.late_rows``.

    Args:
        left_keys, right_keys: key columns of both sides, in the same order.
        left_time, right_time: where rows carry their event time.
        window: tumbling, sliding (a pair comes out in each window that has both rows), or
            sessions of the rows of both sides of a key.
        how: which rows without a partner appear.
        suffix: for columns of the right whose names the left has.
        on_error: what to do with rows without an event time.
        input_schemas: where they are known, everything is checked at once.

    Raises:
        ConfigError: another kind of window, no such ``how``, no keys.
        MissingColumnError, PlanError, SchemaChangedError: columns, names or types that do not
            do.

    Example:
        >>> from datetime import timedelta
        >>> from helios_ray.operators.base import OperatorContext
        >>> window = TumblingWindow(timedelta(microseconds=10))
        >>> join = WindowJoinOperator(["id"], ["id"], "t", "at", window, how="left")
        >>> join.open(OperatorContext(uid="per-10"))
        >>> join.process_batch(Batch(pa.record_batch({"id": [1, 2], "t": [3, 4]})), 0)
        []
        >>> join.process_batch(Batch(pa.record_batch({"id": [1, 1], "at": [9, 10]})), 1)
        []
        >>> [made] = join.on_watermark(9)
        >>> made.data.select(["id", "t", "at"]).to_pydict()
        {'id': [1, 2], 't': [3, 4], 'at': [9, None]}
    """

    what = "window_join"

    def __init__(
        self,
        left_keys: Sequence[str],
        right_keys: Sequence[str],
        left_time: str | EventTime,
        right_time: str | EventTime,
        window: TumblingWindow | SlidingWindow | SessionWindow,
        *,
        how: JoinHow = "inner",
        suffix: str = SUFFIX,
        on_error: OnError = "raise",
        input_schemas: InputSchemas = (None, None),
    ) -> None:
        check_how(how, self.what)
        self._outer = (how in ("left", "full"), how in ("right", "full"))
        self._meaning = f"window join, {how}, {window}"
        self._schema: pa.Schema | None = None
        super().__init__(
            left_keys, right_keys, left_time, right_time, window,
            on_error=on_error, input_schemas=input_schemas, suffix=suffix,
        )  # fmt: skip

    def output_schema(
        self, left: pa.Schema | None, right: pa.Schema | None, uid: str = "operator"
    ) -> pa.Schema | None:
        joined = super().output_schema(left, right, uid)
        return None if joined is None else self._with_window(joined, left, f"{self.what} {uid!r}")

    def _with_window(self, joined: pa.Schema, left: pa.Schema, where: str) -> pa.Schema:
        fields = self.window_fields(left)
        for field in fields:
            if field.name in joined.names:
                raise PlanError(
                    f"{where}: results have a column {field.name!r} of their own, and so has one "
                    f"of the sides. Rename that with select(...) before the join."
                )
        return pa.schema([*joined, *fields])

    def finish(self, ended: Ended) -> list[Batch]:
        sides = [self._codes(ended, index) for index in (LEFT, RIGHT)]
        lefts, rights = equal_pairs(sides[LEFT], sides[RIGHT])
        pairs = [(lefts, rights)]
        if self._outer[LEFT]:
            alone = unmatched(len(sides[LEFT]), lefts)
            pairs.append((alone, np.full(len(alone), -1)))
        if self._outer[RIGHT]:
            alone = unmatched(len(sides[RIGHT]), rights)
            pairs.append((np.full(len(alone), -1), alone))
        lefts = np.concatenate([left for left, _ in pairs])
        rights = np.concatenate([right for _, right in pairs])
        if len(lefts) == 0:
            return []
        cells = np.where(lefts >= 0, _at(ended.cells[LEFT], lefts), _at(ended.cells[RIGHT], rights))
        order = stable_order(cells)
        return self._assemble(ended, lefts[order], rights[order], cells[order])

    def _codes(self, ended: Ended, index: int) -> Ints:
        """The cell of every row, -1 where its key equals nothing."""
        cells = ended.cells[index]
        run = ended.runs[index]
        if run is None:
            return cells
        null = self.sides[index].null_keys(self.rows_of(ended, index))
        return cells if null is None else np.where(null[ended.rows[index]], -1, cells)

    def _assemble(self, ended: Ended, lefts: Ints, rights: Ints, cells: Ints) -> list[Batch]:
        left, right = (self.rows_of(ended, index) for index in (LEFT, RIGHT))
        columns = self.sides.columns()
        if self._schema is None:
            self._schema = self._with_window(columns.schema, left.schema, self.sides.where)
        fields = self.window_fields(left.schema)
        rows = [_at(ended.rows[LEFT], lefts), _at(ended.rows[RIGHT], rights)]
        out = []
        for part in parts(len(lefts)):
            made = columns.assemble(left, rows[LEFT][part], right, rows[RIGHT][part])
            bounds = [
                pa.array(bound[cells[part]]).cast(field.type)
                for bound, field in zip((ended.starts, ended.ends), fields, strict=True)
            ]
            arrays = [*made.columns, *bounds]
            out.append(Batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema)))
        return out


def _at(values: Ints, places: Ints) -> Ints:
    """The values at ``places``, -1 where there is none."""
    found = np.full(len(places), -1)
    there = places >= 0
    found[there] = values[places[there]]
    return found
