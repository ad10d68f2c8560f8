"""min and max of values that numpy cannot hold: strings, binaries, decimals.

May import: operators.accumulator_base, operators.segments, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.operators.accumulator_base import Accumulator
from helios_ray.operators.aggregation import Aggregation
from helios_ray.operators.segments import Segments, Values
from helios_ray.state.columns import ValuePool
from helios_ray.state.hashing import decoded
from helios_ray.state.index import Slots


class OrderedAccumulator(Accumulator):
    """min and max of values numpy cannot hold: strings, binaries, decimals.

    The values of a batch and the current ones of its keys are ranked together; ranks are
    integers and fold like any others; the winners go back into an Arrow pool.
    """

    def __init__(self, name: str, aggregation: Aggregation, kind: pa.DataType) -> None:
        self._field = pa.field(f"{name}.{aggregation.function}", kind)
        self._largest = aggregation.function == "max"
        self._pool = ValuePool(pa.schema([self._field]))

    @property
    def fields(self) -> list[pa.Field]:
        return [self._field]

    def resize(self, size: int) -> None:
        self._pool.resize(size)

    def update(self, slots: Slots, array: pa.Array | None) -> None:
        self._fold(slots, array, Segments(slots))

    def merge(self, slots: Slots, partial: Sequence[pa.Array]) -> None:
        self.update(slots, partial[0])

    def running(self, segments: Segments, slots: Slots, array: pa.Array | None) -> pa.Array:
        return self._fold(slots, array, segments)

    def result(self, slots: Slots) -> pa.Array:
        return _one_chunk(self._pool.take(slots).column(0))

    def freeze(self) -> list[pa.ChunkedArray | pa.Array]:
        return [self._pool.gather().column(0)]

    def restore(self, slots: Slots, columns: Sequence[pa.Array]) -> None:
        self._put(slots, columns[0])

    def _put(self, slots: Slots, values: pa.Array) -> None:
        rows = pa.RecordBatch.from_arrays([values], schema=self._pool.schema)
        self._pool.put(slots, rows)

    def _fold(self, slots: Slots, array: pa.Array | None, segments: Segments) -> pa.Array:
        assert array is not None, "min and max have a column"
        current = self._pool.take(segments.slots).column(0)
        incoming = decoded(array)
        chunks = [
            *current.chunks,
            incoming if incoming.type == self._field.type else incoming.cast(self._field.type),
        ]
        both = pa.chunked_array(chunks, self._field.type)
        distinct = both.unique().drop_null()
        ranks, ordered = _ranks(distinct, both)
        nothing = -1 if self._largest else len(ordered)
        ranks = np.where(ranks < 0, nothing, ranks)
        known = len(segments.slots)
        ufunc = np.maximum if self._largest else np.minimum
        every, last = segments.running(ufunc, ranks[:known], ranks[known:])
        changed = last != ranks[:known]
        self._put(segments.slots[changed], _pick(ordered, last[changed]))
        return _pick(ordered, every)


def _ranks(distinct: pa.Array, values: pa.ChunkedArray) -> tuple[Values, pa.Array]:
    """For each value its place in sorted order (-1 for null), and the sorted values."""
    ordered = distinct.take(pc.sort_indices(distinct))
    found = pc.index_in(values, value_set=ordered)
    return pc.fill_null(found, -1).to_numpy().astype(np.int64), ordered


def _pick(ordered: pa.Array, ranks: Values) -> pa.Array:
    """The values at ``ranks``; null where there is no such rank."""
    out = (ranks < 0) | (ranks >= len(ordered))
    return ordered.take(pa.array(ranks, mask=out))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
