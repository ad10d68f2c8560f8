"""Python values to Arrow arrays, and Arrow arrays to a fixed type, without loss.

Why it exists: Arrow on its own would cut ``1.5`` down to ``1`` for an int64 column and drop
the time of day from a datetime among dates. Here values are first given the type that Arrow
infers and then cast, safely and within one family of types.

May import: Arrow.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.types as pt


def convert(values: list[Any], target: pa.DataType | None) -> pa.Array:
    """Python values as an Arrow array of ``target``, or of the type Arrow infers.

    Raises:
        pyarrow.ArrowInvalid, pyarrow.ArrowTypeError: a value does not fit.

    Example:
        >>> convert([1, None], pa.float64()).to_pylist()
        [1.0, None]
    """
    if target is not None and _only_direct(target):
        return pa.array(values, target)
    array = pa.array(values)
    if pt.is_date(array.type) and any(isinstance(v, datetime.datetime) for v in values):
        raise pa.ArrowInvalid("a datetime among dates would lose its time of day")
    return array if target is None else fit(array, target)


def _only_direct(target: pa.DataType) -> bool:
    """Types that Arrow does not infer from Python values by itself."""
    return isinstance(target, pa.BaseExtensionType) or bool(
        pt.is_map(target) or pt.is_union(target) or pt.is_interval(target)
    )


def fit(array: pa.Array, target: pa.DataType) -> pa.Array:
    """``array`` as ``target``: itself, nulls, or a safe cast within its family of types."""
    kind = array.type
    if kind == target or pt.is_null(target):
        return array
    if pt.is_null(kind):
        return pa.nulls(len(array), target)
    if not _same_family(kind, target):
        raise pa.ArrowInvalid(f"{kind} does not become {target}")
    return array.cast(target)


def _same_family(kind: pa.DataType, target: pa.DataType) -> bool:
    if pt.is_null(kind) or kind == target:
        return True
    if pt.is_dictionary(kind):
        return _same_family(kind.value_type, target)
    if pt.is_dictionary(target):
        return _same_family(kind, target.value_type)
    if _is_list(kind) and _is_list(target):
        return _same_family(kind.value_type, target.value_type)
    if pt.is_struct(kind) and pt.is_struct(target):
        known = {field.name: field.type for field in target}
        return all(f.name in known and _same_family(f.type, known[f.name]) for f in kind)
    return any(test(kind) and test(target) for test in _FAMILIES)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pt.is_binary(kind)
        or pt.is_large_binary(kind)
        or pt.is_binary_view(kind)
        or pt.is_fixed_size_binary(kind)
    )


def _is_instant(kind: pa.DataType) -> bool:
    return bool(pt.is_timestamp(kind) or pt.is_date(kind))


_FAMILIES: tuple[Callable[[pa.DataType], bool], ...] = (
    _is_number,
    _is_text,
    _is_binary,
    _is_instant,
    pt.is_time,
    pt.is_duration,
)
