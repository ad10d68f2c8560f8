"""Columns of cells: read, written and frozen by cell number, whole batches at a time.

Why it exists: the values of a state are one Arrow type. Fixed-width values live in a numpy
array that is written in place (copied first if a snapshot points at it); any other value in
immutable runs with a pointer per cell. Both are the same to those above.

May import: errors, state, Arrow, numpy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from helios_ray.state.columns import GrowableColumn
from helios_ray.state.hashing import values_buffer
from helios_ray.state.index import Slots

_SPARE_ROWS = 1024
_LARGEST_MERGE = 1 << 30


class CellColumn(ABC):
    """One value per cell. A cell that was never written holds an arbitrary value."""

    __slots__ = ("kind",)

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind

    @abstractmethod
    def resize(self, size: int) -> None:
        """Make room for ``size`` cells."""

    @abstractmethod
    def write(self, cells: Slots, values: pa.Array) -> None:
        """Set distinct cells to values of ``kind``, none of them null."""

    @abstractmethod
    def read(self, cells: Slots) -> pa.Array:
        """The values of cells that were written."""

    @abstractmethod
    def read_one(self, cell: int) -> Any:
        """The value of one cell, as Python has it."""

    @abstractmethod
    def freeze(self) -> pa.Array | pa.ChunkedArray:
        """The values of all cells, all written, immutable and by reference where it can be."""

    @abstractmethod
    def release(self, cells: Slots) -> None:
        """The values of these cells are no longer needed."""


def cell_column(kind: pa.DataType) -> CellColumn:
    """The column for a type.

    Example:
        >>> column = cell_column(pa.string())
        >>> column.resize(3)
        >>> column.write(np.array([2, 0]), pa.array(["b", "a"]))
        >>> column.read(np.array([0, 2])).to_pylist()
        ['a', 'b']
    """
    return FixedColumn(kind) if _storage(kind) is not None else RunColumn(kind)


def _storage(kind: pa.DataType) -> Any:
    """The numpy type that holds values of a fixed-width type, or None."""
    if pt.is_boolean(kind):
        return np.uint8
    if pt.is_integer(kind) or pt.is_float32(kind) or pt.is_float64(kind):
        return kind.to_pandas_dtype()
    if pt.is_temporal(kind) and not pt.is_interval(kind):
        return np.int32 if kind.bit_width == 32 else np.int64
    return None


class FixedColumn(CellColumn):
    """Values of fixed width, in a numpy array."""

    __slots__ = ("_bool", "_column", "_plain")

    def __init__(self, kind: pa.DataType) -> None:
        super().__init__(kind)
        self._bool = pt.is_boolean(kind)
        self._plain = bool(pt.is_integer(kind) or pt.is_floating(kind))
        stored = pa.uint8() if self._bool else kind
        self._column = GrowableColumn(stored, _storage(kind), 0)

    def resize(self, size: int) -> None:
        self._column.resize(size)

    def write(self, cells: Slots, values: pa.Array) -> None:
        if self._bool:
            values = values.cast(pa.uint8())
        self._column.writable()[cells] = values_buffer(values, self._column.dtype)

    def read(self, cells: Slots) -> pa.Array:
        return self._array(self._column.view()[cells])

    def read_one(self, cell: int) -> Any:
        if self._plain:
            return self._column.view()[cell].item()
        return self.read(np.array([cell]))[0].as_py()

    def freeze(self) -> pa.Array:
        frozen = self._column.freeze()
        return frozen.cast(self.kind) if self._bool else frozen

    def release(self, cells: Slots) -> None:
        pass

    def _array(self, values: Any) -> pa.Array:
        buffer = pa.py_buffer(values)
        array = pa.Array.from_buffers(self._column.data_type, len(values), [None, buffer])
        return array.cast(self.kind) if self._bool else array


class RunColumn(CellColumn):
    """Values of any type: immutable runs, and for each cell the row that holds its value.

    Runs of similar size are merged, so that there are O(log n) of them; once more than half
    of the rows are dead the live ones are copied out. Both costs are amortised over writes.
    """

    __slots__ = ("_live", "_pointers", "_rows", "_runs", "_starts")

    def __init__(self, kind: pa.DataType) -> None:
        super().__init__(kind)
        self._pointers = GrowableColumn(pa.int64(), np.int64, -1)
        self._runs: list[pa.Array] = []
        self._starts: list[int] = []
        self._rows = 0
        self._live = 0

    def resize(self, size: int) -> None:
        self._pointers.resize(size)

    def write(self, cells: Slots, values: pa.Array) -> None:
        if len(cells) == 0:
            return
        pointers = self._pointers.writable()
        self._live += int(np.count_nonzero(pointers[cells] < 0))
        pointers[cells] = np.arange(self._rows, self._rows + len(cells))
        self._starts.append(self._rows)
        self._runs.append(values)
        self._rows += len(cells)
        self._merge()
        self._collect()

    def read(self, cells: Slots) -> pa.Array:
        return self._rows_at(self._pointers.view()[cells])

    def read_one(self, cell: int) -> Any:
        row = int(self._pointers.view()[cell])
        run = bisect_right(self._starts, row) - 1
        return self._runs[run][row - self._starts[run]].as_py()

    def freeze(self) -> pa.Array | pa.ChunkedArray:
        pointers = self._pointers.view()
        if np.array_equal(pointers, np.arange(self._rows)):
            return pa.chunked_array(self._runs, self.kind)
        return self._rows_at(pointers)

    def release(self, cells: Slots) -> None:
        if len(cells) == 0:
            return
        pointers = self._pointers.writable()
        self._live -= int(np.count_nonzero(pointers[cells] >= 0))
        pointers[cells] = -1
        self._collect()

    def _rows_at(self, rows: Slots) -> pa.Array:
        if len(rows) == 0:
            return pa.array([], self.kind)
        if len(self._runs) == 1:
            return self._runs[0].take(pa.array(rows))
        runs = np.searchsorted(np.array(self._starts), rows, side="right") - 1
        # Small unsigned integers sort by radix; rows of one run are then together.
        order = np.argsort(runs.astype(np.uint16), kind="stable")
        counts = np.bincount(runs, minlength=len(self._runs))
        parts, start = [], 0
        for run, count in enumerate(counts.tolist()):
            if count:
                local = rows[order[start : start + count]] - self._starts[run]
                parts.append(self._runs[run].take(pa.array(local)))
                start += count
        if len(parts) == 1:
            return parts[0]
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return pa.concat_arrays(parts).take(pa.array(back))

    def _merge(self) -> None:
        runs, starts = self._runs, self._starts
        while len(runs) > 1 and len(runs[-2]) <= 2 * len(runs[-1]):
            if runs[-2].nbytes + runs[-1].nbytes > _LARGEST_MERGE:
                return
            last = runs.pop()
            starts.pop()
            runs[-1] = pa.concat_arrays([runs[-1], last])

    def _collect(self) -> None:
        if self._rows <= 2 * self._live + _SPARE_ROWS:
            return
        pointers = self._pointers.writable()
        cells = np.flatnonzero(pointers >= 0)
        kept = self._rows_at(pointers[cells])
        pointers[cells] = np.arange(len(cells))
        self._runs, self._starts = ([kept], [0]) if len(cells) else ([], [])
        self._rows = len(cells)
