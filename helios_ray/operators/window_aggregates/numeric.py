"""count, sum, mean, min, max, variance and standard deviation as partial rows.

Why it exists: the first five fold through the very accumulators of the running aggregates,
so that both mean the same by a null, a NaN or an overflow. Variances keep count, mean and the
sum of squared distances, which merge without cancellation (Chan, Golub, LeVeque, "Updating
Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).

May import: operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.operators.accumulator_base import Accumulator
from helios_ray.operators.accumulators import make_accumulator
from helios_ray.operators.aggregation import Aggregation
from helios_ray.operators.segments import Values
from helios_ray.operators.window_aggregates.base import Rows, WindowAggregate
from helios_ray.operators.window_aggregates.groups import Groups, sums
from helios_ray.state.hashing import decoded, values_buffer


class FoldedAggregate(WindowAggregate):
    """count, sum, mean, min or max, by an accumulator of the running aggregates.

    Args:
        name: output column.
        aggregation: what to compute.
        schema: of the stream.
        where: who asks, for messages.
    """

    def __init__(self, name: str, aggregation: Aggregation, schema: pa.Schema, where: str) -> None:
        super().__init__(name)
        self._aggregation = aggregation
        self._schema = schema
        self._where = where
        self._fields = self._make().partial_fields
        self._type = aggregation.output_type(schema, where)

    @property
    def fields(self) -> list[pa.Field]:
        return self._fields

    @property
    def result_type(self) -> pa.DataType:
        return self._type

    def _make(self) -> Accumulator:
        return make_accumulator(self.name, self._aggregation, self._schema, self._where)

    def lift(self, groups: Groups, rows: Rows) -> list[pa.Array]:
        name = self._aggregation.column
        if name is None:
            return [pa.array(groups.counts)]
        column = rows.data.column(name)
        if self._aggregation.function == "count" and column.null_count == 0:
            return [pa.array(groups.counts)]
        accumulator = self._sized(groups.size)
        if len(groups):
            accumulator.update(groups.codes, column)
        return self._frozen(accumulator)

    def merge(self, groups: Groups, columns: Sequence[pa.Array]) -> list[pa.Array]:
        accumulator = self._sized(groups.size)
        if len(groups):
            accumulator.merge(groups.codes, columns)
        return self._frozen(accumulator)

    def finish(self, columns: Sequence[pa.Array]) -> pa.Array:
        if self._aggregation.function == "count":
            return columns[0]
        size = len(columns[0])
        accumulator = self._sized(size)
        if size:
            accumulator.merge(np.arange(size), columns)
        return accumulator.result(np.arange(size))

    def _sized(self, size: int) -> Accumulator:
        accumulator = self._make()
        accumulator.resize(size)
        return accumulator

    def _frozen(self, accumulator: Accumulator) -> list[pa.Array]:
        columns = []
        for field, column in zip(self._fields, accumulator.freeze(), strict=True):
            array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            columns.append(array if array.type == field.type else array.cast(field.type))
        return columns


class VarianceAggregate(WindowAggregate):
    """Variance or standard deviation of an integer or float column, as float64.

    Args:
        name: output column.
        column: what to aggregate.
        ddof: what is taken off the number of values: 1 for a sample, 0 for a population.
            With no more values than that the result is null.
        root: the standard deviation instead of the variance.
    """

    def __init__(self, name: str, column: str, ddof: int, *, root: bool) -> None:
        super().__init__(name)
        self._column = column
        self._ddof = ddof
        self._root = root

    @property
    def fields(self) -> list[pa.Field]:
        return [
            pa.field(f"{self.name}.count", pa.int64()),
            pa.field(f"{self.name}.mean", pa.float64()),
            pa.field(f"{self.name}.m2", pa.float64()),
        ]

    @property
    def result_type(self) -> pa.DataType:
        return pa.float64()

    def lift(self, groups: Groups, rows: Rows) -> list[pa.Array]:
        groups, values = valid_floats(groups, rows.data.column(self._column))
        ones = np.ones(len(values), np.int64)
        return self._fold(groups, ones, values, np.zeros(len(values)))

    def merge(self, groups: Groups, columns: Sequence[pa.Array]) -> list[pa.Array]:
        counts, means, squares = (
            values_buffer(column, kind)
            for column, kind in zip(columns, (np.int64, np.float64, np.float64), strict=True)
        )
        return self._fold(groups, counts, means, squares)

    def _fold(self, groups: Groups, counts: Values, means: Values, m2: Values) -> list[pa.Array]:
        size = groups.size
        total = np.zeros(size, np.int64)
        np.add.at(total, groups.codes, counts)
        mean = sums(groups.codes, means * counts, size) / np.maximum(total, 1)
        away = means - mean[groups.codes]
        squares = sums(groups.codes, m2 + counts * away * away, size)
        return [pa.array(total), pa.array(mean), pa.array(squares)]

    def finish(self, columns: Sequence[pa.Array]) -> pa.Array:
        counts = values_buffer(columns[0], np.int64)
        squares = values_buffer(columns[2], np.float64)
        free = counts - self._ddof
        result = squares / np.maximum(free, 1)
        if self._root:
            result = np.sqrt(result)
        return pa.array(result, mask=free <= 0)


def valid_floats(groups: Groups, column: pa.Array) -> tuple[Groups, Values]:
    """The values that are not null as float64, and their groups."""
    column = decoded(column)
    if column.null_count:
        mask = column.is_valid().to_numpy(zero_copy_only=False)
        groups, column = groups.where(mask), column.drop_null()
    values: Values = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return groups, values
