"""From key values to slots, for keyed and unkeyed streams, without growing forever.

Why it exists: windows come and go, and with them their keys. A :class:`KeySpace` numbers keys
densely like :class:`~helios_ray.state.index.KeyIndex`, holds the one slot of a stream without
keys, and can forget the keys that no state refers to any more.

May import: operators.window_aggregates, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from helios_ray.operators.window_aggregates.groups import Ints
from helios_ray.state.hashing import decoded
from helios_ray.state.index import KeyIndex, as_int64

FORGET_ABOVE = 65_536
"""Fewer slots than this are never worth forgetting."""


class KeySpace:
    """Slots of keys.

    Args:
        keys: key columns; none for a stream that is one group.
        schema: of the batches to come.
        max_parallelism: number of key groups.

    Example:
        >>> space = KeySpace((), pa.schema([("x", pa.int64())]), 128)
        >>> space.slots(pa.record_batch({"x": [4, 5]})).tolist(), space.groups().tolist()
        ([0, 0], [0])
    """

    def __init__(self, keys: Sequence[str], schema: pa.Schema, max_parallelism: int) -> None:
        self.keys = tuple(keys)
        self._input = schema
        self._max_parallelism = max_parallelism
        self._index = self._fresh()
        self._table: pa.Table | None = None

    def _fresh(self) -> KeyIndex | None:
        if not self.keys:
            return None
        return KeyIndex(self.keys, self._input, self._max_parallelism)

    def __len__(self) -> int:
        return 1 if self._index is None else len(self._index)

    @property
    def schema(self) -> pa.Schema:
        """The key columns, encodings undone."""
        return pa.schema([]) if self._index is None else self._index.schema

    def slots(self, batch: pa.RecordBatch) -> Ints:
        """The slot of every row."""
        if self._index is None:
            return np.zeros(batch.num_rows, np.int64)
        return self._index.slots(batch)

    def groups(self) -> Ints:
        """The key group of every slot, int32; a stream without keys is all in group 0."""
        if self._index is None:
            return np.zeros(1, np.int32)
        found: Ints = self._index.key_groups().to_numpy()
        return found

    def take(self, slots: Ints) -> list[pa.Array]:
        """The key columns of the given slots."""
        if self._index is None:
            return []
        if self._table is None or self._table.num_rows != len(self._index):
            self._table = self._index.key_table().combine_chunks()
        taken = self._table.take(pa.array(slots)).combine_chunks()
        return [
            column.chunk(0) if column.num_chunks else pa.array([], column.type)
            for column in taken.columns
        ]

    def restore(self, columns: Sequence[pa.Array], rows: int) -> Ints:
        """The slots of keys that state holds, in the order of their first row."""
        if self._index is None:
            return np.zeros(rows, np.int64)
        table = pa.Table.from_arrays(list(columns), names=list(self.keys))
        return self._index.restore(table)

    def worth_forgetting(self, live: int) -> bool:
        """Whether at most ``live`` keys in use make it worth to number them afresh: often
        enough that memory follows the live state, and seldom enough that it costs little."""
        return self._index is not None and len(self) > 2 * live + FORGET_ABOVE

    def forget(self, used: Ints) -> Ints:
        """Keep only the keys of ``used`` slots; returns the new slot of every old one, -1 for
        those forgotten."""
        mapping = np.full(len(self), -1, np.int64)
        columns = self.take(used)
        self._index = self._fresh()
        self._table = None
        mapping[used] = self.restore(columns, len(used))
        return mapping


def batch_slots(batch: pa.RecordBatch, keys: Sequence[str]) -> tuple[Ints, int]:
    """The slot of every row within its batch, in the order in which keys first appear, and how
    many there are. Keys are equal as they are to a :class:`KeySpace`.

    Example:
        >>> batch_slots(pa.record_batch({"a": ["x", "y", "x"], "b": [1, 1, 2]}), ["a", "b"])
        (array([0, 1, 2]), 3)
        >>> batch_slots(pa.record_batch({"b": [0.0, None, -0.0]}), ["b"])
        (array([0, 1, 0]), 2)
    """
    codes, width = np.zeros(batch.num_rows, np.int64), 1
    for key in keys:
        array = decoded(batch.column(key))
        if _fixed_width(array.type):
            nulls = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
            array = pa.array(as_int64(array), mask=nulls)
        encoded = array.dictionary_encode(null_encoding="encode")
        found = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        if width == 1:
            codes, width = found, len(encoded.dictionary)
            continue
        folded = pa.array(codes * len(encoded.dictionary) + found).dictionary_encode()
        codes = folded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        width = len(folded.dictionary)
    return codes, width


def _fixed_width(kind: pa.DataType) -> bool:
    """Whether values of a kind are 64-bit numbers at most."""
    return bool(
        pt.is_integer(kind)
        or pt.is_floating(kind)
        or pt.is_boolean(kind)
        or pt.is_temporal(kind)
        or pt.is_null(kind)
    )
