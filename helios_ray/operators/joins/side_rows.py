"""One row of one side per key, and how such rows are found again.

Why it exists: the version of a key that is in force, or its row in a table, is replaced time
and again and looked up in between. Rows are appended and never changed; a slot points at one
of them. Chunks of similar size are joined, so there are O(log n) of them, and rows that
nothing points at are left out once they are the greater part: a replaced row costs amortised
constant time, however small the batches are. (Source: O'Neil et al., "The Log-Structured
Merge-Tree", 1996; size tiers.)

May import: Arrow, numpy.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from helios_ray.operators.joins.matching import Ints

LARGEST_CHUNK = 256 << 20
"""Bytes; larger chunks are not joined: strings of more than 2 GiB do not fit one."""

_SPARE_ROWS = 1024


class LatestRows:
    """At most one row per slot.

    Args:
        schema: of a row.

    Example:
        >>> latest = LatestRows(pa.schema([("v", pa.string())]))
        >>> latest.put(np.array([0, 1]), pa.record_batch({"v": ["a", "b"]}))
        >>> latest.put(np.array([1]), pa.record_batch({"v": ["c"]}))
        >>> rows, places = latest.fetch(latest.of(np.array([1, 9, 0])))
        >>> [rows["v"][p].as_py() if p >= 0 else None for p in places.tolist()]
        ['c', None, 'a']
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._chunks: list[pa.RecordBatch] = []
        self._starts: list[int] = []
        self._end = 0
        self._pointers = np.full(_SPARE_ROWS, -1, np.int64)
        self._live = 0

    def __len__(self) -> int:
        """How many slots have a row."""
        return self._live

    def append(self, rows: pa.RecordBatch) -> int:
        """Add rows that no slot points at yet; returns the number of the first.

        Numbers hold until :meth:`point` is called.
        """
        first = self._end
        if rows.num_rows:
            self._chunks.append(rows)
            self._starts.append(first)
            self._end += rows.num_rows
            self._join()
        return first

    def point(self, slots: Ints, numbers: Ints) -> None:
        """Let distinct slots point at rows."""
        if len(slots):
            size = int(slots.max()) + 1
            if size > len(self._pointers):
                grown = np.full(max(size, 2 * len(self._pointers)), -1, np.int64)
                grown[: len(self._pointers)] = self._pointers
                self._pointers = grown
            self._live += int(np.count_nonzero(self._pointers[slots] < 0))
            self._pointers[slots] = numbers
        if self._end > 2 * self._live + _SPARE_ROWS:
            self._drop_unused()

    def put(self, slots: Ints, rows: pa.RecordBatch) -> None:
        """Set the rows of distinct slots."""
        first = self.append(rows)
        self.point(slots, np.arange(first, first + len(slots)))

    def of(self, slots: Ints) -> Ints:
        """The number of the row of each slot, -1 where it has none."""
        size = len(self._pointers)
        if len(slots) == 0 or int(slots.max()) < size:
            found: Ints = self._pointers[slots]
            return found
        return np.where(slots < size, self._pointers[np.minimum(slots, size - 1)], -1)

    def fetch(self, numbers: Ints) -> tuple[pa.RecordBatch, Ints]:
        """Rows by number (-1 for none): a batch that has them, and where they are in it."""
        if not self._chunks:
            return self._empty(), numbers
        if len(self._chunks) == 1:
            return self._chunks[0], numbers
        chunk = np.searchsorted(np.array(self._starts), numbers, "right") - 1
        touched = np.flatnonzero(np.bincount(chunk[numbers >= 0], minlength=1))
        if len(touched) == 0:
            return self._empty(), numbers
        if len(touched) == 1:
            one = int(touched[0])
            return self._chunks[one], np.where(numbers < 0, -1, numbers - self._starts[one])
        places = np.full(len(numbers), -1, np.int64)
        parts, filled = [], 0
        for one in touched.tolist():
            mine = np.flatnonzero(chunk == one)
            parts.append(self._chunks[one].take(pa.array(numbers[mine] - self._starts[one])))
            places[mine] = np.arange(filled, filled + len(mine))
            filled += len(mine)
        return joined(parts, self.schema), places

    def slots(self) -> Ints:
        """The slots that have a row, ascending."""
        found: Ints = np.flatnonzero(self._pointers >= 0)
        return found

    def rows(self) -> pa.RecordBatch:
        """The rows of ``slots()``, in that order."""
        rows, places = self.fetch(self._pointers[self.slots()])
        return rows.take(pa.array(places))

    def remap(self, mapping: Ints) -> None:
        """Slots have new numbers; rows of those mapped to -1 are dropped."""
        old = self.slots()
        numbers, slots = self._pointers[old], mapping[old]
        kept = slots >= 0
        self._pointers = np.full(_SPARE_ROWS, -1, np.int64)
        self._live = 0
        self.point(slots[kept], numbers[kept])

    def _empty(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist([], schema=self.schema)

    def _join(self) -> None:
        chunks, starts = self._chunks, self._starts
        while len(chunks) > 1 and chunks[-2].num_rows <= 2 * chunks[-1].num_rows:
            if chunks[-2].nbytes + chunks[-1].nbytes > LARGEST_CHUNK:
                return
            chunks[-2:] = [joined(chunks[-2:], self.schema)]
            starts.pop()

    def _drop_unused(self) -> None:
        """Keep only the rows that slots point at, in the order in which they came."""
        slots = self.slots()
        numbers = self._pointers[slots]
        order = np.argsort(numbers)
        wanted = numbers[order]
        bounds = np.searchsorted(wanted, [*self._starts, self._end])
        chunks, starts, end = [], [], 0
        for i, chunk in enumerate(self._chunks):
            mine = wanted[bounds[i] : bounds[i + 1]]
            if len(mine):
                chunks.append(chunk.take(pa.array(mine - self._starts[i])))
                starts.append(end)
                end += len(mine)
        self._chunks, self._starts, self._end = chunks, starts, end
        self._pointers[slots[order]] = np.arange(end)
        self._join()


def joined(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """Some batches, at least one, as one."""
    if len(batches) == 1:
        return batches[0]
    columns = [pa.concat_arrays([batch.column(i) for batch in batches]) for i in range(len(schema))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def last_rows(slots: Ints) -> Ints:
    """The row at which each slot last appears, ascending.

    Example:
        >>> last_rows(np.array([3, 1, 3, 0])).tolist()
        [1, 2, 3]
    """
    if len(slots) == 0:
        return np.empty(0, np.int64)
    rows = np.arange(len(slots))
    last = np.empty(int(slots.max()) + 1, np.int64)
    last[slots] = rows  # of equal slots, the last write stays
    found: Ints = np.flatnonzero(last[slots] == rows)
    return found
