"""Aggregates whose partial rows hold lists: collect_list, top_k, count_distinct.

Why it exists: what needs more than one value per group keeps them as Arrow lists, one a
partial row. Merging flattens the lists with the group of each element, decides which elements
stay, and cuts them into lists again; no list is looked at in Python.

May import: operators.window_aggregates, state, Arrow, numpy.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from helios_ray.operators.segments import Values
from helios_ray.operators.window_aggregates.base import Rows, WindowAggregate
from helios_ray.operators.window_aggregates.chosen import sortable
from helios_ray.operators.window_aggregates.groups import Groups, Ints, stable_order
from helios_ray.state.hashing import decoded, hash_array


class ListAggregate(WindowAggregate):
    """Parallel lists per partial row; a subclass says which elements stay.

    Subclasses name the element columns and define :meth:`elements` and :meth:`keep`.
    """

    @property
    @abstractmethod
    def element_fields(self) -> list[pa.Field]:
        """Columns of an element."""

    @property
    def fields(self) -> list[pa.Field]:
        return [
            pa.field(f"{self.name}.{f.name}", pa.large_list(f.type)) for f in self.element_fields
        ]

    @abstractmethod
    def elements(self, groups: Groups, rows: Rows) -> tuple[Groups, list[pa.Array]]:
        """The elements that rows stand for, and their groups."""

    @abstractmethod
    def keep(self, groups: Groups, columns: list[pa.Array]) -> Ints:
        """Which elements stay, ordered by group and within the group as they shall stand."""

    def lift(self, groups: Groups, rows: Rows) -> list[pa.Array]:
        groups, columns = self.elements(groups, rows)
        return self._cut(groups, columns)

    def merge(self, groups: Groups, columns: Sequence[pa.Array]) -> list[pa.Array]:
        lengths = list_lengths(columns[0])
        inside = Groups(np.repeat(groups.codes, lengths), groups.size)
        return self._cut(inside, [column.flatten() for column in columns])

    def _cut(self, groups: Groups, columns: list[pa.Array]) -> list[pa.Array]:
        kept = self.keep(groups, columns)
        counts = np.bincount(groups.codes[kept], minlength=groups.size)
        index = pa.array(kept)
        return [as_lists(counts, column.take(index)) for column in columns]


class CollectAggregate(ListAggregate):
    """The values that are not null, by event time and then order of arrival.

    Args:
        name: output column.
        column: what to collect.
        kind: its type, encodings undone.
    """

    def __init__(self, name: str, column: str, kind: pa.DataType) -> None:
        super().__init__(name)
        self._column = column
        self._kind = kind

    @property
    def element_fields(self) -> list[pa.Field]:
        return [pa.field("value", self._kind), pa.field("time", pa.int64())]

    @property
    def result_type(self) -> pa.DataType:
        return pa.list_(self._kind)

    def elements(self, groups: Groups, rows: Rows) -> tuple[Groups, list[pa.Array]]:
        value, times = decoded(rows.data.column(self._column)), pa.array(rows.times)
        return valid_only(groups, [value, times])

    def keep(self, groups: Groups, columns: list[pa.Array]) -> Ints:
        return groups.order_by(columns[1].to_numpy())

    def finish(self, columns: Sequence[pa.Array]) -> pa.Array:
        return columns[0].cast(self.result_type)


class TopAggregate(ListAggregate):
    """The values of the ``n`` rows with the greatest ``by``, greatest first.

    Args:
        name: output column.
        column: whose values.
        kind: its type, encodings undone.
        by: the column to order by.
        by_kind: its type.
        n: how many. Of rows with an equal ``by`` the earlier ones win; NaN comes last.
    """

    def __init__(
        self, name: str, column: str, kind: pa.DataType, by: str, by_kind: pa.DataType, n: int
    ) -> None:
        super().__init__(name)
        self._column, self._kind = column, kind
        self._by, self._by_kind = by, by_kind
        self._n = n

    @property
    def element_fields(self) -> list[pa.Field]:
        return [
            pa.field("value", self._kind),
            pa.field("by", self._by_kind),
            pa.field("time", pa.int64()),
        ]

    @property
    def result_type(self) -> pa.DataType:
        return pa.list_(self._kind)

    def elements(self, groups: Groups, rows: Rows) -> tuple[Groups, list[pa.Array]]:
        value = decoded(rows.data.column(self._column))
        by = decoded(rows.data.column(self._by))
        return valid_only(groups, [value, by, pa.array(rows.times)])

    def keep(self, groups: Groups, columns: list[pa.Array]) -> Ints:
        by_time = stable_order(columns[2].to_numpy())
        sooner = Groups(groups.codes[by_time], groups.size)
        order = by_time[sooner.order_by(descending(columns[1])[by_time])]
        place = np.arange(len(order)) - groups.starts[groups.codes[order]]
        kept: Ints = order[place < self._n]
        return kept

    def finish(self, columns: Sequence[pa.Array]) -> pa.Array:
        return columns[0].cast(self.result_type)


class DistinctAggregate(ListAggregate):
    """The exact number of distinct values that are not null.

    Equality is that of keys: one NaN, one zero.

    Args:
        name: output column.
        column: whose values.
        kind: its type, encodings undone.
    """

    def __init__(self, name: str, column: str, kind: pa.DataType) -> None:
        super().__init__(name)
        self._column = column
        self._kind = kind
        hash_array(pa.array([], kind), column)  # raises for what cannot be compared

    @property
    def element_fields(self) -> list[pa.Field]:
        return [pa.field("value", self._kind)]

    @property
    def result_type(self) -> pa.DataType:
        return pa.int64()

    def elements(self, groups: Groups, rows: Rows) -> tuple[Groups, list[pa.Array]]:
        return valid_only(groups, [decoded(rows.data.column(self._column))])

    def keep(self, groups: Groups, columns: list[pa.Array]) -> Ints:
        codes, distinct = value_codes(columns[0])
        pairs = groups.codes * np.int64(distinct) + codes
        order = stable_order(pairs)
        ordered = pairs[order]
        fresh = np.ones(len(order), np.bool_)
        fresh[1:] = ordered[1:] != ordered[:-1]
        kept: Ints = order[fresh]
        return kept

    def finish(self, columns: Sequence[pa.Array]) -> pa.Array:
        return pa.array(list_lengths(columns[0]))


def value_codes(array: pa.Array) -> tuple[Ints, int]:
    """A number for each distinct value, and how many there are."""
    if pt.is_floating(array.type):
        # -0.0 is 0.0; Arrow's dictionary already has one NaN for every NaN of equal bits.
        values = array.to_numpy(zero_copy_only=False) + 0
        array = pa.array(np.where(values != values, np.asarray(np.nan, values.dtype), values))
    encoded = array.dictionary_encode()
    codes: Ints = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, max(1, len(encoded.dictionary))


def descending(array: pa.Array) -> Values:
    """Numbers that sort a column from its greatest value to its least, NaN last."""
    order = sortable(array)
    if order.dtype.kind == "f":
        return np.where(order != order, order, -order)
    return ~order  # reverses every integer type without overflow


def valid_only(groups: Groups, columns: list[pa.Array]) -> tuple[Groups, list[pa.Array]]:
    """Leave out the elements of which any column is null."""
    if not any(column.null_count for column in columns):
        return groups, columns
    mask = np.ones(len(groups), np.bool_)
    for column in columns:
        if column.null_count:
            mask &= column.is_valid().to_numpy(zero_copy_only=False)
    chosen = pa.array(mask)
    return groups.where(mask), [column.filter(chosen) for column in columns]


def list_lengths(column: pa.Array) -> Ints:
    """The number of elements of every list."""
    lengths: Ints = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def as_lists(counts: Ints, values: pa.Array) -> pa.Array:
    """Cut values into large lists of the given lengths."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)
