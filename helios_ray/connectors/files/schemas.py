"""One schema for a whole stream of files.

Why it exists: every file of a source must give rows of the same columns and types, whatever
it happens to hold itself. What it promises: a column is cast only where no value can change
(``int32`` to ``int64``, all-null to anything); whatever else differs is a SchemaChangedError
that names the file, the column, what was expected and what came. Metadata (pandas indexes,
Parquet field ids) never counts as a difference.

May import: errors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from helios_ray.errors import ConfigError, SchemaChangedError

_EXACT_IN_FLOAT = {pa.float32(): 16, pa.float64(): 32}
_UNITS = ("s", "ms", "us", "ns")


def lossless(source: Any, target: Any) -> bool:
    """Whether every value of type ``source`` is a value of type ``target``.

    Example:
        >>> lossless(pa.int32(), pa.int64()), lossless(pa.int64(), pa.int32())
        (True, False)
        >>> lossless(pa.null(), pa.string()), lossless(pa.int64(), pa.float64())
        (True, False)
    """
    types = pa.types
    if source.equals(target) or types.is_null(source):
        return True
    if types.is_dictionary(source):
        return lossless(source.value_type, target)
    if types.is_dictionary(target):
        return lossless(source, target.value_type)
    if types.is_integer(source) and types.is_integer(target):
        if types.is_signed_integer(source) == types.is_signed_integer(target):
            return bool(source.bit_width <= target.bit_width)
        return bool(types.is_signed_integer(target) and source.bit_width < target.bit_width)
    if types.is_integer(source) and target in _EXACT_IN_FLOAT:
        return bool(source.bit_width <= _EXACT_IN_FLOAT[target])
    if types.is_floating(source) and types.is_floating(target):
        return bool(source.bit_width <= target.bit_width)
    if types.is_decimal(source) and types.is_decimal(target):
        whole = target.precision - target.scale >= source.precision - source.scale
        return bool(whole and target.scale >= source.scale)
    if types.is_timestamp(source) and types.is_timestamp(target):
        # A finer unit may overflow; the cast is checked and says so.
        finer = _UNITS.index(source.unit) <= _UNITS.index(target.unit)
        return bool(source.tz == target.tz and finer)
    for family in (_STRINGS, _BINARIES):
        if any(same(source) for same in family) and any(same(target) for same in family):
            return True
    if _is_list(source) and _is_list(target):
        return lossless(source.value_type, target.value_type)
    if types.is_struct(source) and types.is_struct(target):
        names = [field.name for field in source]
        return names == [field.name for field in target] and all(
            lossless(a.type, b.type) for a, b in zip(source, target, strict=True)
        )
    return False


_STRINGS: tuple[Callable[[Any], bool], ...] = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
)
_BINARIES: tuple[Callable[[Any], bool], ...] = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def plain(schema: pa.Schema) -> pa.Schema:
    """The schema of a stream that starts with files of ``schema``.

    Without metadata; every column nullable; dictionaries become their values, because one
    file's dictionary is not another's; and a nameless pandas index, which a frame saves or
    not depending on how it was made, is not a column.
    """
    skipped = _nameless_indexes(schema)
    fields = []
    for field in schema:
        if field.name not in skipped:
            kind = field.type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def _nameless_indexes(schema: pa.Schema) -> set[str]:
    try:
        pandas = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        indexes = pandas.get("index_columns", [])
    except (ValueError, AttributeError):
        return set()
    return {n for n in indexes if isinstance(n, str) and n.startswith("__index_level_")}


def select(schema: pa.Schema, columns: Sequence[str] | None, where: str) -> pa.Schema:
    """``schema`` cut down to ``columns``, in that order.

    Raises:
        ConfigError: a column is not there, or a name stands for two columns.
    """
    names = schema.names if columns is None else list(columns)
    for name in names:
        count = len(schema.get_all_field_indices(name))
        if count != 1:
            raise ConfigError(
                f"expected column {name!r} once in {where}, found it {count} times among "
                f"{schema.names}. Correct columns=, or rename the column in the files."
            )
    return pa.schema([schema.field(name) for name in names])


def check_file(found: pa.Schema, expected: pa.Schema, file: str, *, extras_allowed: bool) -> None:
    """Refuse a file whose columns cannot become those of the stream.

    Args:
        found: the file's own schema, as :func:`plain` leaves it.
        extras_allowed: the user chose columns, so others are there to be passed over.

    Raises:
        SchemaChangedError: names the file, the column, what was expected and what came.
    """
    for field in expected:
        count = len(found.get_all_field_indices(field.name))
        if count != 1:
            raise SchemaChangedError(
                f"{file}: expected column {field.name!r} ({field.type}) once, found it {count} "
                f"times; the file has {found.names}. Rewrite the file with that column, or leave "
                f"the column out with columns=."
            )
        kind = found.field(field.name).type
        if not lossless(kind, field.type):
            raise SchemaChangedError(
                f"{file}: expected column {field.name!r} to be {field.type}, got {kind}, which "
                f"cannot be converted without loss. Rewrite the file, or pass schema= with a "
                f"type that holds both."
            )
    extra = [name for name in found.names if expected.get_field_index(name) < 0]
    if extra and not extras_allowed:
        raise SchemaChangedError(
            f"{file}: expected the columns {expected.names}, got column {extra[0]!r} "
            f"({found.field(extra[0]).type}) besides. Pass columns= or schema= with the columns "
            f"to read, and others are passed over."
        )


def conform(batch: pa.RecordBatch, schema: pa.Schema, file: str, where: str) -> pa.RecordBatch:
    """The rows as ``schema`` has them: order of columns, types, no metadata.

    Raises:
        SchemaChangedError: a value does not fit, or is null where that is ruled out.
    """
    columns = []
    for field in schema:
        column = batch.column(field.name)
        if not column.type.equals(field.type):
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise SchemaChangedError(
                    f"{file} @ {where}: column {field.name!r} holds a value that is not a "
                    f"{field.type}: {error}. Rewrite the file, or pass a wider type in schema=."
                ) from error
        if not field.nullable and column.null_count:
            raise SchemaChangedError(
                f"{file} @ {where}: expected no nulls in column {field.name!r}, got "
                f"{column.null_count}. Rewrite the file, or declare the column nullable in schema=."
            )
        columns.append(column)
    if not columns:
        return batch.select([]).replace_schema_metadata(None)
    return pa.RecordBatch.from_arrays(columns, schema=schema)
