"""first, last, any_value, arg_min and arg_max: aggregates that choose one row.

Why it exists: a partial row is the chosen value with what it was chosen by, so merging is
choosing again. Earlier and later mean event time; rows of one event time stand in their order
of arrival.

May import: operators.window_aggregates, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from helios_ray.operators.segments import Values
from helios_ray.operators.window_aggregates.base import Rows, WindowAggregate
from helios_ray.operators.window_aggregates.groups import Groups, Ints, Mask, take_or_null
from helios_ray.state.hashing import decoded, values_buffer


class ChosenAggregate(WindowAggregate):
    """The value of one row of each group; rows whose value (or ``by``) is null do not count.

    Args:
        name: output column.
        column: whose value is the result.
        kind: its type, encodings undone.
        by: choose by this column (arg_min, arg_max), the earlier row where it is equal; None
            chooses by event time.
        by_kind: the type of ``by``.
        largest: the greatest ``by`` (or the latest row) instead of the least.
    """

    def __init__(
        self,
        name: str,
        column: str,
        kind: pa.DataType,
        *,
        by: str | None = None,
        by_kind: pa.DataType | None = None,
        largest: bool = False,
    ) -> None:
        super().__init__(name)
        self._column = column
        self._kind = kind
        self._by = by
        self._by_kind = by_kind
        self._largest = largest

    @property
    def fields(self) -> list[pa.Field]:
        fields = [
            pa.field(f"{self.name}.value", self._kind),
            pa.field(f"{self.name}.time", pa.int64()),
        ]
        if self._by_kind is not None:
            fields.append(pa.field(f"{self.name}.by", self._by_kind))
        return fields

    @property
    def result_type(self) -> pa.DataType:
        return self._kind

    def lift(self, groups: Groups, rows: Rows) -> list[pa.Array]:
        value = decoded(rows.data.column(self._column))
        by = decoded(rows.data.column(self._by)) if self._by is not None else None
        return self._choose(groups, value, rows.times, by)

    def merge(self, groups: Groups, columns: Sequence[pa.Array]) -> list[pa.Array]:
        by = columns[2] if self._by_kind is not None else None
        return self._choose(groups, columns[0], values_buffer(columns[1], np.int64), by)

    def finish(self, columns: Sequence[pa.Array]) -> pa.Array:
        return columns[0]

    def _choose(
        self, groups: Groups, value: pa.Array, times: Ints, by: pa.Array | None
    ) -> list[pa.Array]:
        rows = self._rows(groups, value, times, by)
        chosen_times = np.zeros(groups.size, np.int64)
        there = rows >= 0
        chosen_times[there] = times[rows[there]]
        columns = [take_or_null(value, rows), pa.array(chosen_times)]
        if by is not None:
            columns.append(take_or_null(by, rows))
        return columns

    def _rows(self, groups: Groups, value: pa.Array, times: Ints, by: pa.Array | None) -> Ints:
        candidates = np.ones(len(value), np.bool_)
        for column in (value, by):
            if column is not None and column.null_count:
                candidates &= column.is_valid().to_numpy(zero_copy_only=False)
        if by is None:
            return self._among(groups, candidates, times, largest=self._largest)
        order = sortable(by)
        index = np.flatnonzero(candidates)
        best = groups.where(candidates).best(order[index], largest=self._largest)
        candidates = np.zeros(len(value), np.bool_)
        candidates[index[best]] = True
        return self._among(groups, candidates, times, largest=False)

    def _among(self, groups: Groups, mask: Mask, times: Ints, *, largest: bool) -> Ints:
        """The earliest (latest) of the rows of ``mask`` in each group."""
        index = np.flatnonzero(mask)
        rows = Groups(groups.codes[index], groups.size).pick(
            times[index], largest=largest, last=largest
        )
        there = rows >= 0
        rows[there] = index[rows[there]]
        return rows


def sortable(array: pa.Array) -> Values:
    """Numbers in the order of the values, within this array; arbitrary under nulls."""
    kind = array.type
    if pt.is_integer(kind) or pt.is_floating(kind):
        return values_buffer(array, kind.to_pandas_dtype())
    if pt.is_boolean(kind):
        return values_buffer(array.cast(pa.uint8()), np.uint8)
    if pt.is_temporal(kind):
        return values_buffer(array, np.int32 if kind.bit_width == 32 else np.int64)
    if len(array) == 0:
        return np.zeros(0, np.int64)
    ranks: Values = pc.rank(array, sort_keys="ascending", tiebreaker="dense").to_numpy()
    return ranks.astype(np.int64)
