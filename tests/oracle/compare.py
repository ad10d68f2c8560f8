"""Two tables as multisets of rows, with floats near enough.

Why it exists: neither engine promises an order, nor how it adds floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

RELATIVE = 1e-9


def differences(
    streamed: pa.Table, batch: pa.Table, near: Mapping[str, float] | None = None
) -> list[str]:
    """What is in one and not in the other; empty if they are the same.

    Args:
        streamed, batch: of the same column names.
        near: by column, how far a value may be off.
    """
    allowed = dict(near or {})
    names = sorted(streamed.column_names)
    if names != sorted(batch.column_names):
        return [f"columns {names} and {sorted(batch.column_names)}"]
    loose = [n for n in names if n in allowed or _holds_floats(streamed.schema.field(n).type)]
    exact = [n for n in names if n not in loose]
    rows, expected = _rows(streamed, exact, loose), _rows(batch, exact, loose)
    found = []
    if len(rows) != len(expected):
        found.append(f"{len(rows)} rows, {len(expected)} expected")
    for row, want in zip(rows, expected, strict=False):
        if not _same(row, want, len(exact), [allowed.get(n) for n in loose]):
            found.append(f"{dict(zip(exact + loose, row, strict=True))} instead of {want}")
    return found


def _holds_floats(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_floats(kind.value_type)
    return bool(pa.types.is_floating(kind))


def _rows(table: pa.Table, exact: list[str], loose: list[str]) -> list[tuple[Any, ...]]:
    columns = [_plain(table.column(name)) for name in exact + loose]
    rows = zip(*columns, strict=True) if columns else ()
    # The exact columns come first, so that near values cannot change the order of keys.
    return sorted(rows, key=lambda row: [_sortable(value) for value in row])


def _plain(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
    return [_value(v) for v in column.to_pylist()]


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(v) for v in value)
    if type(value).__name__ == "Decimal":  # DuckDB's sums of integers
        return int(value) if value == int(value) else float(value)
    return value


def _sortable(value: Any) -> tuple[int, Any]:
    if value is None:
        return (0, 0)
    if isinstance(value, tuple):
        return (1, tuple(_sortable(v) for v in value))
    return (1, value)


def _same(
    row: tuple[Any, ...], want: tuple[Any, ...], exact: int, allowed: list[float | None]
) -> bool:
    if row[:exact] != want[:exact]:
        return False
    return all(
        _near(a, b, limit) for a, b, limit in zip(row[exact:], want[exact:], allowed, strict=True)
    )


def _near(a: Any, b: Any, limit: float | None) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_near(x, y, limit) for x, y in zip(a, b, strict=True))
    if a is None or b is None:
        return a is b
    if limit is not None:
        return bool(abs(a - b) <= limit)
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=1e-12)
