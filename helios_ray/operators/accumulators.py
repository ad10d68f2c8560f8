"""The accumulators of counts, sums, means, minima and maxima.

Order matters for floats, so every path adds a key's values one after another in the order
of the rows: the result does not depend on how the stream was cut into batches. (Merging
partial sums is the exception: they were added up elsewhere first.)

May import: errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from helios_ray.errors import DataError
from helios_ray.operators.accumulator_base import Accumulator, part_name
from helios_ray.operators.aggregation import Aggregation
from helios_ray.operators.components import Component, extreme
from helios_ray.operators.ordered import OrderedAccumulator
from helios_ray.operators.segments import Segments, Values
from helios_ray.state.hashing import decoded, values_buffer
from helios_ray.state.index import Slots


class NumericAccumulator(Accumulator):
    """count, sum, mean, and min/max of fixed-width values: columns of numbers.

    Whether there is a value at all is told by the count of non-null rows.
    """

    def __init__(
        self, name: str, aggregation: Aggregation, kind: pa.DataType | None, where: str
    ) -> None:
        self._name = name
        self._function = aggregation.function
        self._kind = kind
        where = f"{where}: {aggregation} as {name!r}"
        self._where = where
        self._count = Component(np.add, pa.int64(), np.int64, 0, where)
        self._value: Component | None = None
        if kind is None or aggregation.function == "count":
            pass
        elif aggregation.function in ("sum", "mean"):
            exact = aggregation.function == "sum" and pt.is_integer(kind)
            data_type, dtype = (pa.int64(), np.int64) if exact else (pa.float64(), np.float64)
            self._value = Component(np.add, data_type, dtype, 0, where)
        else:
            self._value = extreme(aggregation.function, kind, where)

    @property
    def fields(self) -> list[pa.Field]:
        count = pa.field(f"{self._name}.count", pa.int64())
        if self._value is None:
            return [count]
        value = pa.field(f"{self._name}.{part_name(self._function)}", self._value.column.data_type)
        return [count, value]

    @property
    def partial_fields(self) -> list[pa.Field]:
        fields = self.fields
        if self._kind is not None and pt.is_boolean(self._kind) and self._value is not None:
            fields[1] = fields[1].with_type(self._kind)
        return fields

    def resize(self, size: int) -> None:
        self._count.column.resize(size)
        if self._value is not None:
            self._value.column.resize(size)

    def update(self, slots: Slots, array: pa.Array | None) -> None:
        ones, values = self._contributions(array, len(slots))
        self._count.update(slots, ones)
        if self._value is not None and values is not None:
            self._value.update(slots, values)

    def merge(self, slots: Slots, partial: Sequence[pa.Array]) -> None:
        self._count.update(slots, values_buffer(partial[0], np.int64))
        if self._value is not None:
            self._value.update(slots, self._filled(self._value, partial[1]))

    def running(self, segments: Segments, slots: Slots, array: pa.Array | None) -> pa.Array:
        ones, values = self._contributions(array, len(slots))
        counts = self._count.running(segments, slots, ones)
        if self._value is None or values is None:
            return pa.array(counts)
        return self._finish(counts, self._value.running(segments, slots, values))

    def result(self, slots: Slots) -> pa.Array:
        counts = self._count.column.view()[slots]
        if self._value is None:
            return pa.array(counts)
        return self._finish(counts, self._value.column.view()[slots])

    def freeze(self) -> list[pa.ChunkedArray | pa.Array]:
        frozen = [self._count.column.freeze()]
        if self._value is not None:
            values = self._value.column.freeze()
            empty = self._count.column.view() == 0
            if self._function in ("min", "max") and empty.any():
                # The identity of min is no date or time: whoever opens the state sees null.
                values = pc.if_else(pa.array(empty), pa.scalar(None, values.type), values)
            frozen.append(values)
        return frozen

    def restore(self, slots: Slots, columns: Sequence[pa.Array]) -> None:
        self._count.restore(slots, values_buffer(columns[0], np.int64))
        if self._value is not None:
            self._value.restore(slots, self._filled(self._value, columns[1]))

    def _contributions(self, array: pa.Array | None, rows: int) -> tuple[Values, Values | None]:
        """What each row adds to the count, and its value; a null adds the identity."""
        if array is None:
            return np.ones(rows, np.int64), None
        array = decoded(array)
        ones = np.ones(rows, np.int64)
        if array.null_count:
            ones = array.is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
        if self._value is None:
            return ones, None
        return ones, self._filled(self._value, array)

    def _filled(self, component: Component, array: pa.Array) -> Values:
        """The numbers of a column, with the component's identity in place of null."""
        column = component.column
        values = self._numbers(array, column.dtype)
        if not array.null_count:
            return values
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        return np.where(valid, values, np.asarray(column.fill, column.dtype))

    def _numbers(self, array: pa.Array, dtype: np.dtype[Any]) -> Values:
        kind = array.type
        if pt.is_null(kind):
            return np.zeros(len(array), dtype)
        if pt.is_boolean(kind):
            return values_buffer(array.cast(pa.uint8()), np.uint8)
        if pt.is_uint64(kind) and dtype == np.int64:
            try:
                array = array.cast(pa.int64())
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{self._where} overflows: sums of integers are int64, and {error} Cast the "
                    f"column to float64 before summing it."
                ) from error
        native: Any = dtype
        if pt.is_integer(kind) or pt.is_floating(kind):
            native = array.type.to_pandas_dtype()
        return values_buffer(array, native).astype(dtype, copy=False)

    def _finish(self, counts: Values, values: Values) -> pa.Array:
        empty = counts == 0
        if self._function == "mean":
            values = values / np.where(empty, 1, counts)
        kind = self._kind if self._function in ("min", "max") else None
        mask = pa.array(empty) if empty.any() else None
        result = pa.array(values)
        if kind is not None and result.type != kind:
            # uint8 becomes bool; plain integers become the dates and times they stand for
            result = result.cast(kind) if pt.is_boolean(kind) else result.view(kind)
        return result if mask is None else pc.if_else(mask, pa.scalar(None, result.type), result)


def make_accumulator(
    name: str, aggregation: Aggregation, schema: pa.Schema, where: str
) -> Accumulator:
    """The accumulator of an aggregation over a stream of ``schema``.

    Raises:
        MissingColumnError: the column is not in ``schema``.
        PlanError: the function does not apply to its type.
    """
    aggregation.output_type(schema, where)
    kind = aggregation.input_type(schema, where)
    if aggregation.function in ("min", "max") and kind is not None and not _fixed_width(kind):
        return OrderedAccumulator(name, aggregation, kind)
    return NumericAccumulator(name, aggregation, kind, where)


def _fixed_width(kind: pa.DataType) -> bool:
    return bool(
        pt.is_integer(kind) or pt.is_floating(kind) or pt.is_boolean(kind) or pt.is_temporal(kind)
    )
