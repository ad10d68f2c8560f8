"""Which Arrow column goes into which PostgreSQL column, and how.

Why it exists: rows go in by binary COPY, where the server believes the bytes: an int64
sent into an ``integer`` column is an error at best. So every column is settled before the
first row: sent as it is, cast in Arrow (checked: a value that does not fit is an error),
or sent as text and cast by the server (``jsonb``, ``uuid``, enums).

Promises: no value is changed silently, except that timestamps finer than a microsecond,
which PostgreSQL cannot hold, are cut to microseconds.

May import: errors.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.errors import ConfigError, DataError

_ARROW_OF: dict[str, Any] = {
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "bool": pa.bool_(),
    "text": pa.string(),
    "varchar": pa.string(),
    "bpchar": pa.string(),
    "json": pa.string(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "interval": pa.duration("us"),
}

_SQL_NAME = {
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float4": "real",
    "float8": "double precision",
    "bool": "boolean",
    "timestamptz": "timestamp with time zone",
}

_NUMBERS = {"int2", "int4", "int8", "float4", "float8", "numeric"}
_MOMENTS = {"date", "timestamp", "timestamptz"}
_TEXTS = {"text", "varchar", "bpchar", "json"}


def quoted(identifier: str) -> str:
    """An SQL identifier, whatever characters it has.

    Example:
        >>> quoted('a"b')
        '"a""b"'
    """
    return '"' + identifier.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """A column that the table has.

    Args:
        name: as in the table.
        udt: the server's short name of the type; arrays start with ``_``.
        sql_type: the type as one writes it in SQL.
        required: it must be given: not null, without a default.
        writable: False for generated columns.
    """

    name: str
    udt: str
    sql_type: str
    required: bool
    writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """How one column of the batches goes in.

    Args:
        name: of the column.
        arrow_type: what is sent.
        stage_type: SQL type of what is sent, where a staging table is needed.
        cast: SQL type that the server casts to, or None: sent in its own type.
    """

    name: str
    arrow_type: Any
    stage_type: str
    cast: str | None


def natural_udt(arrow: Any) -> str | None:
    """The PostgreSQL type that holds an Arrow type, or None if there is none.

    Example:
        >>> natural_udt(pa.int64()), natural_udt(pa.list_(pa.string()))
        ('int8', '_text')
        >>> natural_udt(pa.struct([("x", pa.int64())])) is None
        True
    """
    t = pa.types
    if t.is_dictionary(arrow):
        return natural_udt(arrow.value_type)
    if t.is_list(arrow) or t.is_large_list(arrow):
        inner = natural_udt(arrow.value_type)
        return None if inner is None or inner.startswith("_") else f"_{inner}"
    if t.is_timestamp(arrow):
        return "timestamp" if arrow.tz is None else "timestamptz"
    rules: list[tuple[Any, str]] = [
        (t.is_int8, "int2"), (t.is_int16, "int2"), (t.is_uint8, "int2"),
        (t.is_int32, "int4"), (t.is_uint16, "int4"),
        (t.is_int64, "int8"), (t.is_uint32, "int8"), (t.is_uint64, "int8"),
        (t.is_float16, "float4"), (t.is_float32, "float4"), (t.is_float64, "float8"),
        (t.is_decimal, "numeric"), (t.is_boolean, "bool"), (t.is_null, "text"),
        (t.is_string, "text"), (t.is_large_string, "text"), (t.is_string_view, "text"),
        (t.is_binary, "bytea"), (t.is_large_binary, "bytea"),
        (t.is_fixed_size_binary, "bytea"), (t.is_binary_view, "bytea"),
        (t.is_date, "date"), (t.is_time, "time"), (t.is_duration, "interval"),
    ]  # fmt: skip
    return next((udt for rule, udt in rules if rule(arrow)), None)


def sql_type(udt: str) -> str:
    """A type as one writes it in SQL.

    Example:
        >>> sql_type("int8"), sql_type("_float8")
        ('bigint', 'double precision[]')
    """
    if udt.startswith("_"):
        return f"{sql_type(udt[1:])}[]"
    return _SQL_NAME.get(udt, udt)


def create_columns(schema: pa.Schema, table: str) -> list[str]:
    """The column list of CREATE TABLE for rows of ``schema``.

    Raises:
        ConfigError: a column has a type that PostgreSQL has nothing for.
    """
    lines = []
    for field in schema:
        udt = natural_udt(field.type)
        if udt is None:
            raise ConfigError(_no_place(table, field))
        lines.append(f"{quoted(field.name)} {sql_type(udt)}")
    return lines


def plan_columns(schema: pa.Schema, columns: list[TableColumn], table: str) -> list[Ingest]:
    """Settle how rows of ``schema`` go into a table that has ``columns``.

    Raises:
        ConfigError: a column is missing on either side or has a type that does not go in;
            names each.
    """
    duplicates = sorted({n for n in schema.names if schema.names.count(n) > 1})
    if duplicates:
        raise ConfigError(f"table {table}: the rows have two columns named {duplicates}")
    known = {column.name: column for column in columns}
    problems = []
    plan: list[Ingest] = []
    for field in schema:
        column = known.get(field.name)
        if column is None:
            near = difflib.get_close_matches(field.name, list(known), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            problems.append(f"the table has no column {field.name!r}{hint}")
        elif not column.writable:
            problems.append(f"column {field.name!r} is generated and cannot be written")
        else:
            ingest = _ingest(field, column)
            if ingest is None:
                problems.append(
                    f"column {field.name!r} is {column.sql_type} and the rows have {field.type}"
                )
            else:
                plan.append(ingest)
    problems += [
        f"the rows lack column {column.name!r}, which may not be null"
        for column in columns
        if column.required and column.name not in schema.names
    ]
    if problems:
        raise ConfigError(
            f"table {table} cannot hold these rows: {'; '.join(problems)}. The rows have "
            f"{schema.names}, the table has {list(known)}. Rename or cast with .select(...), or "
            "alter the table."
        )
    return plan


def _ingest(field: Any, column: TableColumn) -> Ingest | None:
    natural, udt, arrow = natural_udt(field.type), column.udt, field.type
    if natural is None:
        return None
    if pa.types.is_null(arrow):
        target = _arrow_of(udt)
        if target is not None:
            return _as(field.name, target, udt)
        return Ingest(name=field.name, arrow_type=pa.string(), stage_type="text",
                      cast=column.sql_type)  # fmt: skip
    if udt == "numeric" and natural == "numeric":
        return _as(field.name, arrow, udt)
    if udt == "numeric" and natural in {"int2", "int4", "int8"}:
        return _as(field.name, pa.decimal128(20, 0), udt)
    if natural == udt or (natural in _TEXTS and udt in _TEXTS):
        return _as(field.name, _plain(arrow, udt), udt)
    fits = {natural, udt} <= _NUMBERS or {natural, udt} <= _MOMENTS
    target = _arrow_of(udt)
    if fits and target is not None:
        return _as(field.name, target, udt)
    if fits or natural == "text":
        # No Arrow type for it: the server reads the text or the number.
        own = _plain(arrow, natural)
        stage = sql_type(natural)
        return Ingest(name=field.name, arrow_type=own, stage_type=stage, cast=column.sql_type)
    if natural.startswith("_") and udt.startswith("_") and {natural[1:], udt[1:]} <= _NUMBERS:
        element = _arrow_of(udt[1:])
        if element is not None:
            return _as(field.name, pa.list_(element), udt)
    return None


def _as(name: str, arrow: Any, udt: str) -> Ingest:
    return Ingest(name=name, arrow_type=arrow, stage_type=sql_type(udt), cast=None)


def _arrow_of(udt: str) -> Any:
    if udt.startswith("_"):
        inner = _ARROW_OF.get(udt[1:])
        return None if inner is None else pa.list_(inner)
    return _ARROW_OF.get(udt)


def _plain(arrow: Any, udt: str) -> Any:
    """``arrow`` if the driver writes it in that type without a loss, else what it is cast to."""
    large = pa.types.is_large_string(arrow) or pa.types.is_large_binary(arrow)
    if large or (udt == "numeric") or pa.types.is_fixed_size_binary(arrow):
        return arrow
    return _arrow_of(udt) or arrow


def cast_table(table: pa.Table, plan: list[Ingest], name: str) -> pa.Table:
    """The rows as they are sent.

    Raises:
        DataError: a value does not fit its column; names the column and the value.
    """
    arrays = []
    for ingest in plan:
        column = table.column(ingest.name)
        if column.type != ingest.arrow_type:
            options = pc.CastOptions(ingest.arrow_type, allow_time_truncate=True)
            try:
                column = pc.cast(column, options=options)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"table {name}, column {ingest.name!r}: a value of type {column.type} does "
                    f"not fit {ingest.stage_type}: {error}. Widen the column, or cast or filter "
                    "before the sink; then resume the job from its last checkpoint."
                ) from error
        arrays.append(column)
    return pa.Table.from_arrays(arrays, names=[ingest.name for ingest in plan])


def _no_place(table: str, field: Any) -> str:
    return (
        f"table {table} cannot be created: PostgreSQL has no type for column {field.name!r} of "
        f"type {field.type}. Turn it into text (JSON) or separate columns before the sink."
    )


def select_list(plan: list[Ingest]) -> str:
    """The columns of a staging table, cast to the types of the target."""
    return ", ".join(
        f"{quoted(i.name)}::{i.cast}" if i.cast is not None else quoted(i.name) for i in plan
    )
