"""From key values to dense slots, a batch at a time.

Why it exists: keyed state lives in plain columns, one place per key. :class:`KeyIndex` gives
every key its place (slot), in the order in which keys are first seen, and remembers the keys
themselves as Arrow data so that a snapshot is a list of references.

How: a column whose values are 64-bit numbers goes through an open-addressing table probed
with numpy; any other column is dictionary-encoded by Arrow and only its distinct values meet
a Python dict. Composite keys fold: the code so far and the code of the next column make one
64-bit number, which goes through a table of its own. Equality is that of the key hash: one
NaN, one zero, nulls equal each other.

May import: errors, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from helios_ray.state.columns import GrowableColumn
from helios_ray.state.hashing import (
    GOLDEN,
    check_keys,
    decoded,
    float_bits,
    logical_type,
    values_buffer,
)
from helios_ray.state.key_groups import key_groups_of_batch

Slots: TypeAlias = npt.NDArray[np.int64]


class IntTable:
    """Dense codes for int64 values, in order of first appearance. Open addressing, linear
    probing, Fibonacci hashing (Knuth, TAOCP vol. 3, 6.4); at most half full.

    Example:
        >>> table = IntTable()
        >>> table.codes(np.array([7, 5, 7, -1])).tolist(), table.codes(np.array([-1, 9])).tolist()
        ([0, 1, 0, 2], [2, 3])
    """

    __slots__ = ("_bits", "_keys", "_size", "_table")

    def __init__(self) -> None:
        self._bits = 10
        self._table = np.full(1 << self._bits, -1, np.int64)
        self._keys = np.zeros(1 << (self._bits - 1), np.int64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def codes(self, values: npt.NDArray[np.int64]) -> Slots:
        """The code of every value; new values get the next codes."""
        codes = self._find(values)
        missing = np.flatnonzero(codes < 0)
        if len(missing):
            # dictionary_encode keeps the order of first appearance; np.unique would sort.
            encoded = pa.array(values[missing]).dictionary_encode()
            fresh = encoded.dictionary.to_numpy()
            start = self._size
            self._insert(fresh)
            codes[missing] = encoded.indices.to_numpy().astype(np.int64) + start
        return codes

    def _home(self, values: npt.NDArray[np.int64]) -> Slots:
        h = values.view(np.uint64)
        h = (h ^ (h >> np.uint64(32))) * GOLDEN
        home: Slots = (h >> np.uint64(64 - self._bits)).view(np.int64)
        return home

    def _find(self, values: npt.NDArray[np.int64]) -> Slots:
        mask = len(self._table) - 1
        place = self._home(values)
        codes: Slots = self._table[place]
        hit = self._keys[codes] == values  # meaningless where the place is empty: code -1
        pending = np.flatnonzero(~hit & (codes >= 0))
        while len(pending):
            place[pending] = (place[pending] + 1) & mask
            found = self._table[place[pending]]
            codes[pending] = found
            pending = pending[(found >= 0) & (self._keys[found] != values[pending])]
        return codes

    def _insert(self, fresh: npt.NDArray[np.int64]) -> None:
        needed = self._size + len(fresh)
        grow = needed >= len(self._keys)
        if grow:
            while needed >= 1 << (self._bits - 1):
                self._bits += 1
            keys = np.zeros(1 << (self._bits - 1), np.int64)
            keys[: self._size] = self._keys[: self._size]
            self._keys = keys
            self._table = np.full(1 << self._bits, -1, np.int64)
        self._keys[self._size : needed] = fresh
        start = 0 if grow else self._size
        self._place(np.arange(start, needed))
        self._size = needed

    def _place(self, codes: Slots) -> None:
        mask = len(self._table) - 1
        place = self._home(self._keys[codes])
        while len(codes):
            free = self._table[place] < 0
            self._table[place[free]] = codes[free]  # of several, the last one written stays
            lost = self._table[place] != codes
            codes = codes[lost]
            place = (place[lost] + 1) & mask


class _NumberColumn:
    """Codes for a column whose values fit 64 bits; null has a code of its own."""

    __slots__ = ("_null", "_table")

    def __init__(self) -> None:
        self._table = IntTable()
        self._null = -1

    def codes(self, array: pa.Array) -> Slots:
        values = as_int64(array)
        if array.null_count == 0 and self._null < 0:
            return self._table.codes(values)
        return self._with_nulls(array, values)

    def _with_nulls(self, array: pa.Array, values: npt.NDArray[np.int64]) -> Slots:
        """The table numbers the values; the null is woven in where it was first seen."""
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        codes = np.empty(len(values), np.int64)
        if self._null < 0:
            first = int(np.argmin(valid))
            codes[:first] = self._table.codes(values[:first])
            self._null = len(self._table)
            codes[first:] = self._shifted(values[first:], valid[first:])
            return codes
        codes[:] = self._shifted(values, valid)
        return codes

    def _shifted(self, values: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_]) -> Slots:
        codes = np.full(len(values), self._null, np.int64)
        found = self._table.codes(values[valid])
        codes[valid] = found + (found >= self._null)
        return codes


class _ObjectColumn:
    """Codes for strings, binaries and decimals: a dict over each batch's distinct values."""

    __slots__ = ("_codes",)

    def __init__(self) -> None:
        self._codes: dict[Any, int] = {}

    def codes(self, array: pa.Array) -> Slots:
        encoded = array.dictionary_encode(null_encoding="encode")
        known = self._codes
        fresh = [known.setdefault(v, len(known)) for v in encoded.dictionary.to_pylist()]
        lookup = np.array(fresh, np.int64)
        found: Slots = lookup[encoded.indices.to_numpy(zero_copy_only=False)]
        return found


def as_int64(array: pa.Array) -> npt.NDArray[np.int64]:
    """The values of a number-like column as 64 bits; arbitrary under nulls."""
    kind = array.type
    if pt.is_floating(kind):
        return float_bits(array)
    if pt.is_boolean(kind):
        return values_buffer(array.cast(pa.uint8()), np.uint8).astype(np.int64)
    if pt.is_null(kind):
        return np.zeros(len(array), np.int64)
    if pt.is_integer(kind):
        values = values_buffer(array, kind.to_pandas_dtype())
    else:
        values = values_buffer(array, np.int32 if kind.bit_width == 32 else np.int64)
    return values.astype(np.int64) if values.itemsize < 8 else values.view(np.int64)


def _is_number_like(kind: pa.DataType) -> bool:
    return bool(
        pt.is_integer(kind)
        or pt.is_floating(kind)
        or pt.is_boolean(kind)
        or pt.is_temporal(kind)
        or pt.is_null(kind)
    )


class KeyIndex:
    """Slots of the keys of one operator subtask.

    Args:
        keys: key columns, in order.
        schema: of the batches to come; holds at least the key columns.
        max_parallelism: number of key groups.

    Raises:
        MissingColumnError: a key is not a column.
        PlanError: a key column's type cannot be a key.

    Example:
        >>> schema = pa.schema([("a", pa.string()), ("b", pa.int64())])
        >>> index = KeyIndex(["a", "b"], schema)
        >>> batch = pa.record_batch({"a": ["x", "y", "x"], "b": [1, 1, 1]}, schema=schema)
        >>> index.slots(batch).tolist()
        [0, 1, 0]
        >>> index.key_table().to_pydict()
        {'a': ['x', 'y'], 'b': [1, 1]}
    """

    def __init__(self, keys: Sequence[str], schema: pa.Schema, max_parallelism: int = 128) -> None:
        check_keys(schema, keys)
        self.keys = tuple(keys)
        self.max_parallelism = max_parallelism
        fields = [schema.field(key) for key in keys]
        self.schema = pa.schema([pa.field(f.name, logical_type(f.type)) for f in fields])
        self._columns: list[_NumberColumn | _ObjectColumn] = [
            _NumberColumn() if _is_number_like(f.type) else _ObjectColumn() for f in self.schema
        ]
        self._folds = [IntTable() for _ in keys[1:]]
        self._size = 0
        self._chunks: list[pa.RecordBatch] = []
        self._key_groups = GrowableColumn(pa.int32(), np.int32, 0)

    def __len__(self) -> int:
        return self._size

    def key_columns(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The key columns of a batch in the types of this index (encodings undone)."""
        arrays = [decoded(batch.column(key)) for key in self.keys]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def slots(self, batch: pa.RecordBatch, key_columns: pa.RecordBatch | None = None) -> Slots:
        """The slot of every row; keys not seen before get the next slots.

        Args:
            batch: rows.
            key_columns: ``self.key_columns(batch)``, where the caller has it already.
        """
        if batch.num_rows == 0:
            return np.empty(0, np.int64)
        if key_columns is None:
            key_columns = self.key_columns(batch)
        codes = self._columns[0].codes(key_columns.column(0))
        for i, fold in enumerate(self._folds, 1):
            nxt = self._columns[i].codes(key_columns.column(i))
            codes = fold.codes((codes << np.int64(32)) | nxt)
        count = int(codes.max()) + 1
        if count > self._size:
            self._add(key_columns, codes, count)
        return codes

    def _add(self, key_columns: pa.RecordBatch, codes: Slots, count: int) -> None:
        # New codes appear in increasing order, so a new key's first row is where the running
        # maximum rises.
        peak = np.maximum.accumulate(np.maximum(codes, self._size - 1))
        before = np.empty_like(peak)
        before[0] = self._size - 1
        before[1:] = peak[:-1]
        fresh = key_columns.take(pa.array(np.flatnonzero(peak > before)))
        self._chunks.append(fresh)
        self._key_groups.extend(key_groups_of_batch(fresh, self.keys, self.max_parallelism))
        self._size = count
        self._compact()

    def _compact(self) -> None:
        """Merge runs of similar size, newest first, so that there are O(log n) of them."""
        chunks = self._chunks
        while len(chunks) > 1 and chunks[-2].num_rows <= 2 * chunks[-1].num_rows:
            last, before = chunks.pop(), chunks.pop()
            merged = pa.Table.from_batches([before, last], self.schema).combine_chunks()
            parts = merged.to_batches()
            chunks.extend(parts)
            if len(parts) != 1:  # strings past 2 GiB do not fit one chunk
                return

    def key_table(self) -> pa.Table:
        """Every key in slot order, by reference."""
        return pa.Table.from_batches(self._chunks, self.schema)

    def key_groups(self) -> pa.Array:
        """The key group of every slot, by reference, as int32."""
        return self._key_groups.freeze()

    def take_keys(self, slots: Slots) -> pa.Table:
        """The keys of the given slots."""
        return self.key_table().take(pa.array(slots))

    def restore(self, table: pa.Table) -> Slots:
        """Take up keys from a table that has the key columns; returns their slots in order."""
        batches = table.select(list(self.keys)).cast(self.schema).to_batches()
        found = [self.slots(batch) for batch in batches]
        return np.concatenate(found) if found else np.empty(0, np.int64)


__all__ = ["IntTable", "KeyIndex", "Slots", "as_int64"]
