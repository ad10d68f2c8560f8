"""Which subtask owns a key: key → key group → subtask.

Why it exists: state is cut into ``max_parallelism`` key groups once and for all, and a
subtask owns a contiguous range of them. Rescaling hands out other ranges; no key ever
changes its group. (Source: key groups in Carbone et al., "State Management in Apache
Flink", VLDB 2017.)

What it promises: ``key_group = key_hash % max_parallelism``; subtask ``i`` of ``p`` owns the
groups ``[ceil(i * max / p), ceil((i + 1) * max / p))``; both are part of the storage format.

May import: errors, state.hashing, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from helios_ray.errors import ConfigError
from helios_ray.state.hashing import UInt64Array, check_keys, key_hash, logical_type

__all__ = [
    "DEFAULT_MAX_PARALLELISM",
    "MAX_KEY_GROUPS",
    "check_keys",
    "check_parallelism",
    "key_group_of",
    "key_group_range",
    "key_groups_of_batch",
    "key_hash",
    "partition",
    "subtask_of",
]

DEFAULT_MAX_PARALLELISM = 128
MAX_KEY_GROUPS = 32_768


def check_parallelism(parallelism: int, max_parallelism: int) -> None:
    """Raise ConfigError unless ``1 <= parallelism <= max_parallelism <= 32768``."""
    if not 1 <= max_parallelism <= MAX_KEY_GROUPS:
        raise ConfigError(
            f"max_parallelism must be 1 to {MAX_KEY_GROUPS}, got {max_parallelism}. It is the "
            f"number of parts state is cut into for good; the default is {DEFAULT_MAX_PARALLELISM}."
        )
    if not 1 <= parallelism <= max_parallelism:
        raise ConfigError(
            f"parallelism must be 1 to max_parallelism ({max_parallelism}), got {parallelism}. "
            f"Lower it, or start the job afresh with a larger max_parallelism."
        )


def key_group_of(
    hashes: UInt64Array, max_parallelism: int = DEFAULT_MAX_PARALLELISM
) -> npt.NDArray[np.int32]:
    """The key group of every hash, as int32 (the type of the ``key_group`` state column).

    Example:
        >>> key_group_of(np.array([0, 127, 128, 2**64 - 1], np.uint64)).tolist()
        [0, 127, 0, 127]
    """
    groups: npt.NDArray[np.int32] = (hashes % np.uint64(max_parallelism)).astype(np.int32)
    return groups


def key_groups_of_batch(
    batch: pa.RecordBatch, keys: Sequence[str], max_parallelism: int = DEFAULT_MAX_PARALLELISM
) -> npt.NDArray[np.int32]:
    """The key group of every row; raises as :func:`key_hash` does."""
    return key_group_of(key_hash(batch, keys), max_parallelism)


def key_group_range(
    subtask: int, parallelism: int, max_parallelism: int = DEFAULT_MAX_PARALLELISM
) -> range:
    """The contiguous key groups that a subtask owns; all subtasks' ranges tile all groups.

    Raises:
        ConfigError: a parallelism out of bounds, or no such subtask.

    Example:
        >>> [key_group_range(i, 3) for i in range(3)]
        [range(0, 43), range(43, 86), range(86, 128)]
    """
    check_parallelism(parallelism, max_parallelism)
    if not 0 <= subtask < parallelism:
        raise ConfigError(f"subtask must be 0 to {parallelism - 1}, got {subtask}.")
    first = -(-subtask * max_parallelism // parallelism)
    last = -(-(subtask + 1) * max_parallelism // parallelism)
    return range(first, last)


def subtask_of(
    key_groups: npt.NDArray[Any], parallelism: int, max_parallelism: int = DEFAULT_MAX_PARALLELISM
) -> npt.NDArray[np.int32]:
    """The subtask that owns each key group: the inverse of :func:`key_group_range`.

    Example:
        >>> subtask_of(np.array([0, 42, 43, 85, 86, 127]), 3).tolist()
        [0, 0, 1, 1, 2, 2]
    """
    check_parallelism(parallelism, max_parallelism)
    owner = np.arange(max_parallelism, dtype=np.int64) * parallelism // max_parallelism
    found: npt.NDArray[np.int32] = owner.astype(np.int32)[key_groups]
    return found


def partition(
    batch: pa.RecordBatch, target: npt.NDArray[Any], n: int
) -> list[pa.RecordBatch | None]:
    """Cut a batch into ``n`` by the target of each row, keeping the order of rows.

    Args:
        batch: rows.
        target: one integer in ``range(n)`` a row.
        n: number of parts.

    Returns:
        One batch a target, or None where no row goes. When all rows go to one target it is
        ``batch`` itself, not copied; otherwise the parts are fresh, and no part keeps the
        rows of another alive longer than one concatenation of all. Columns of string or
        binary views come out as plain strings and binaries: Arrow cannot take from views.

    Raises:
        ConfigError: ``target`` has another length than the batch, or a value out of range.

    Example:
        >>> batch = pa.record_batch({"x": [10, 11, 12]})
        >>> parts = partition(batch, np.array([1, 0, 1]), 3)
        >>> [p and p.to_pydict() for p in parts]
        [{'x': [11]}, {'x': [10, 12]}, None]
    """
    rows = batch.num_rows
    if len(target) != rows:
        raise ConfigError(f"target must have one entry a row: {rows} rows, {len(target)} entries.")
    batch = _takeable(batch)
    parts: list[pa.RecordBatch | None] = [None] * n
    if rows == 0:
        return parts
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= n:
        raise ConfigError(f"targets must be 0 to {n - 1}, got {low} to {high}.")
    if low == high:
        parts[low] = batch
        return parts
    # The stable sort of small unsigned integers is a radix sort.
    small = target.astype(np.uint8 if n <= 256 else np.uint16 if n <= 65_536 else np.int64)
    if n <= 4:
        for i in range(n):
            chosen = np.flatnonzero(small == i)
            if len(chosen):
                parts[i] = batch.take(pa.array(chosen))
        return parts
    order = np.argsort(small, kind="stable")
    ends = np.cumsum(np.bincount(small, minlength=n)).tolist()
    ordered = batch.take(pa.array(order))
    start = 0
    for i, end in enumerate(ends):
        if end > start:
            parts[i] = ordered.slice(start, end - start)
        start = end
    return parts


def _takeable(batch: pa.RecordBatch) -> pa.RecordBatch:
    schema = batch.schema
    for i, field in enumerate(schema):
        if pt.is_string_view(field.type) or pt.is_binary_view(field.type):
            schema = schema.set(i, field.with_type(logical_type(field.type)))
    return batch if schema.equals(batch.schema) else batch.cast(schema)
