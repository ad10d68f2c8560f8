"""Growable columns of state whose snapshots are references, not copies.

Why it exists: a snapshot is taken between two batches and must cost microseconds, yet the
accumulators it shows go on changing. :class:`GrowableColumn` hands out its buffer as an
immutable Arrow array and copies on the next write below the frozen length (copy-on-write);
:class:`ValuePool` does the same for values that numpy cannot hold, by never writing in place.

May import: Arrow, numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_FIRST_CAPACITY = 1024


class GrowableColumn:
    """A numpy array that grows, starting every new place with ``fill``.

    Args:
        data_type: fixed-width Arrow type of the frozen form.
        dtype: numpy type of the same width.
        fill: value of places not written yet.

    Example:
        >>> column = GrowableColumn(pa.int64(), np.int64, 0)
        >>> column.resize(2)
        >>> frozen = column.freeze()
        >>> column.writable()[0] = 7
        >>> frozen.to_pylist(), column.freeze().to_pylist()
        ([0, 0], [7, 0])
    """

    __slots__ = ("_array", "_frozen", "_size", "data_type", "fill")

    def __init__(self, data_type: pa.DataType, dtype: Any, fill: Any) -> None:
        self.data_type = data_type
        self.fill = fill
        self._array: npt.NDArray[Any] = np.full(0, fill, dtype)
        self._size = 0
        self._frozen = 0

    def __len__(self) -> int:
        return self._size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of the places."""
        return self._array.dtype

    def resize(self, size: int) -> None:
        """Grow to ``size`` places; a smaller size changes nothing."""
        if size > len(self._array):
            grown = np.full(max(size, 2 * len(self._array), _FIRST_CAPACITY), self.fill, self.dtype)
            grown[: self._size] = self._array[: self._size]
            self._array = grown
            self._frozen = 0
        self._size = max(size, self._size)

    def view(self) -> npt.NDArray[Any]:
        """The places, for reading only."""
        return self._array[: self._size]

    def writable(self) -> npt.NDArray[Any]:
        """The places, for writing: whatever was frozen is copied first."""
        if self._frozen:
            self._array = self._array.copy()
            self._frozen = 0
        return self._array[: self._size]

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Append. Writes past what is frozen, so nothing is copied."""
        start = self._size
        self.resize(start + len(values))
        self._array[start : self._size] = values

    def freeze(self) -> pa.Array:
        """The places as an Arrow array that never changes, without copying them."""
        self._frozen = max(self._frozen, self._size)
        buffer = pa.py_buffer(self._array)
        return pa.Array.from_buffers(self.data_type, self._size, [None, buffer])


class ValuePool:
    """One row of any Arrow types per slot: runs of rows, and which row each slot points at.

    Writing appends a run and moves pointers; nothing is written in place. Once runs hold
    more than twice the live rows they are compacted, so the cost of a write is amortised
    over the rows written and memory stays within a factor of the live state.

    Args:
        schema: of a row.

    Example:
        >>> pool = ValuePool(pa.schema([("v", pa.string())]))
        >>> pool.put(np.array([0, 1]), pa.record_batch({"v": ["a", "b"]}))
        >>> pool.put(np.array([1]), pa.record_batch({"v": ["c"]}))
        >>> pool.gather().to_pydict()
        {'v': ['a', 'c']}
    """

    __slots__ = ("_frozen", "_pending", "_pointers", "_rows", "_run", "schema")

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._run: pa.Table = schema.empty_table()
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0
        self._pointers = GrowableColumn(pa.int64(), np.int64, -1)
        self._frozen: pa.Table | None = None

    def __len__(self) -> int:
        return len(self._pointers)

    def resize(self, size: int) -> None:
        """Make room for ``size`` slots; new ones hold null in every column."""
        if size > len(self._pointers):
            self._pointers.resize(size)
            self._frozen = None

    def put(self, slots: npt.NDArray[Any], rows: pa.RecordBatch) -> None:
        """Set the rows of distinct slots.

        Args:
            slots: distinct, not negative; grows the pool where needed.
            rows: of the pool's schema, one a slot.
        """
        if len(slots) == 0:
            return
        self.resize(int(slots.max()) + 1)
        self._pointers.writable()[slots] = np.arange(self._rows, self._rows + len(slots))
        self._pending.append(rows)
        self._rows += len(slots)
        self._frozen = None
        if self._rows > 2 * len(self._pointers) + _FIRST_CAPACITY:
            self._replace(self.gather())

    def take(self, slots: npt.NDArray[Any]) -> pa.Table:
        """The rows of the given slots, null where nothing was put."""
        pointers = self._pointers.view()[slots]
        return self._merged().take(pa.array(pointers, mask=pointers < 0))

    def gather(self) -> pa.Table:
        """The rows of all slots, in slot order; computed once per change."""
        if self._frozen is None:
            self._frozen = self.take(np.arange(len(self._pointers)))
        return self._frozen

    def _merged(self) -> pa.Table:
        if self._pending:
            tables = [self._run, pa.Table.from_batches(self._pending, self.schema)]
            self._run = pa.concat_tables(tables)
            self._pending = []
            if self._run.num_columns and self._run.column(0).num_chunks > 16:
                self._run = self._run.combine_chunks()
        return self._run

    def _replace(self, table: pa.Table) -> None:
        self._run = table
        self._rows = table.num_rows
        self._pointers = GrowableColumn(pa.int64(), np.int64, -1)
        self._pointers.extend(np.arange(self._rows))
