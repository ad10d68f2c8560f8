"""The columns of blocks, as columns of a stream.

Why it exists: blocks come from other hands. One may lack a column, call it null, or hold
tensors of a type of its own; a stream has one schema, of types that Arrow itself knows.

May import: errors, Arrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from helios_ray.errors import ConfigError, CorruptInputError

_TENSOR = "ray.data.arrow_tensor"
"""Ray's own tensors of one shape; the second version carries ``_v2`` behind this."""


def stream_schema(schema: pa.Schema, where: str) -> pa.Schema:
    """The schema of a block as that of a stream: Ray's tensors as Arrow's, no metadata.

    Raises:
        ConfigError: a column has a type that only Ray Data can read, or there are two of one
            name, or there is none at all.
    """
    if not schema.names:
        raise ConfigError(
            f"{where}: expected columns, got rows without any. Select at least one column."
        )
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise ConfigError(f"{where}: columns {twice} are there more than once. Rename them.")
    return pa.schema([(field.name, _type(field, where)) for field in schema])


def _type(field: pa.Field, where: str) -> pa.DataType:
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        name = kind.extension_name
        if name.startswith(_TENSOR):
            value = kind.storage_type.value_type
            if pa.types.is_integer(value) or pa.types.is_floating(value):
                return pa.fixed_shape_tensor(value, list(kind.shape))
        elif name.startswith("arrow."):
            return kind
    elif not _holds_extension(kind):
        return kind
    raise ConfigError(
        f"{where}: column {field.name!r} has type {kind}, which no stream can hold. Tensors of "
        f"one shape and of numbers are taken as they are; convert anything else to plain Arrow "
        f"types first, or leave it out: dataset.drop_columns([{field.name!r}])."
    )


def _holds_extension(kind: pa.DataType) -> bool:
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return any(isinstance(t, pa.BaseExtensionType) or _holds_extension(t) for t in inner)


def common_schema(schemas: Sequence[pa.Schema], where: str) -> pa.Schema:
    """One schema that rows of all these fit into.

    Raises:
        ConfigError: a column has types that have nothing in common.
    """
    try:
        return pa.unify_schemas(list(schemas), promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ConfigError(
            f"{where}: its blocks have no common schema ({error}). Cast the column in the "
            f"dataset, so that every block has one type."
        ) from error


def check_fits(found: pa.Schema, wanted: pa.Schema, where: str) -> None:
    """Whether rows of one schema can be read as rows of the schema that was planned for.

    Raises:
        ConfigError: they cannot; names the column.
    """
    for field in found:
        at = wanted.get_field_index(field.name)
        if at < 0:
            raise ConfigError(
                f"{where} has a column {field.name!r}: {field.type}, which the dataset's schema "
                f"did not tell when the job was built. {_WAY_OUT}"
            )
        expected = wanted.field(at).type
        try:
            both = pa.unify_schemas(
                [pa.schema([("c", expected)]), pa.schema([("c", field.type)])],
                promote_options="permissive",
            )
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            both = None
        if both is None or both.field(0).type != expected:
            raise ConfigError(
                f"{where}: column {field.name!r} expected {expected}, as the dataset's schema "
                f"told when the job was built, got {field.type}. {_WAY_OUT}"
            )


_WAY_OUT = (
    "Cast it in the dataset, or pass dataset.materialize(), of which every block is looked at "
    "when the job is built."
)


def conform(block: Any, schema: pa.Schema, where: str) -> pa.Table:
    """A block with the columns and types of a stream. What fits is not copied.

    Raises:
        CorruptInputError: a value does not fit its column's type.
    """
    table = block if isinstance(block, pa.Table) else pa.Table.from_pandas(block)
    columns = []
    for field in schema:
        at = table.schema.get_field_index(field.name)
        if at < 0:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(at)
        if column.type == field.type:
            columns.append(column)
            continue
        try:
            columns.append(_converted(column, field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise CorruptInputError(
                f"{where}: column {field.name!r} is {column.type} there and does not fit "
                f"{field.type}: {error}. Cast it in the dataset."
            ) from error
    return pa.Table.from_arrays(columns, schema=schema)


def _converted(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if not isinstance(kind, pa.FixedShapeTensorType):
        return column.cast(kind)
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    chunks = [_tensors(chunk, kind) for chunk in column.chunks]
    return pa.chunked_array(chunks, type=kind)


def _tensors(chunk: pa.Array, kind: pa.DataType) -> pa.Array:
    """Ray's tensors as Arrow's: the same numbers in the same buffer, behind another type."""
    storage = chunk.storage
    size = math.prod(kind.shape)
    plain = pa.list_(kind.value_type, size)
    if storage.null_count:
        return pa.ExtensionArray.from_storage(kind, storage.cast(plain))
    values = storage.flatten()
    if values.type != kind.value_type:
        values = values.cast(kind.value_type)
    if len(values) != size * len(chunk):
        raise pa.ArrowInvalid(f"expected tensors of shape {list(kind.shape)}")
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(values, size))
