"""Columns and types at build time, and the errors about them.

Why it exists: a misspelt column is cheapest to hear about on the line that misspells it.
Where a schema is known it is carried from operator to operator; where a row function hides
it, ``None`` says so and the checks wait for the first batch.

May import: errors, operators.expressions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from helios_ray.errors import PlanError
from helios_ray.operators.expressions import CompiledExpression


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, or None.

    Example:
        >>> nearest("carier", ["carrier", "dep_delay"])
        'carrier'
        >>> nearest("x", ["carrier"]) is None
        True
    """
    by_lower = {n.lower(): n for n in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def expression_type(expression: Any, schema: pa.Schema, where: str) -> pa.DataType:
    """The type that an expression has over rows of ``schema``.

    Raises:
        MissingColumnError: it names a column that is not there.
        PlanError: its types do not fit together.

    Example:
        >>> import pyarrow.compute as pc
        >>> schema = pa.schema([("price", pa.float64())])
        >>> expression_type(pc.field("price") > 100, schema, "filter")
        DataType(bool)
    """
    return CompiledExpression(expression, schema, where).type


def check_predicate(predicate: Any, schema: pa.Schema | None, where: str) -> None:
    """Check that an expression can filter rows of ``schema``, where it is known.

    Raises:
        MissingColumnError: it names a column that is not there.
        PlanError: it is not boolean.
    """
    if schema is not None:
        CompiledExpression(predicate, schema, where).require_boolean()


def project(
    schema: pa.Schema | None, expressions: Mapping[str, Any], where: str
) -> pa.Schema | None:
    """The schema of columns computed by ``expressions``, or None where it cannot be known.

    Raises:
        MissingColumnError, PlanError: as :func:`expression_type`.
    """
    if schema is None:
        return None
    return pa.schema([(name, expression_type(e, schema, where)) for name, e in expressions.items()])


def with_columns(
    schema: pa.Schema | None, expressions: Mapping[str, Any], where: str
) -> pa.Schema | None:
    """``schema`` with computed columns replaced in place or put at the end.

    Example:
        >>> import pyarrow.compute as pc
        >>> with_columns(pa.schema([("a", pa.int64())]), {"b": pc.field("a") > 1}, "here").names
        ['a', 'b']
    """
    if schema is None:
        return None
    return project(schema, {**{name: name for name in schema.names}, **expressions}, where)


def union_schema(schemas: Sequence[pa.Schema | None], where: str) -> pa.Schema | None:
    """The one schema of a union, or None if any part is unknown.

    Raises:
        PlanError: two known schemas differ; names the columns that do.

    Example:
        >>> a = pa.schema([("x", pa.int64())])
        >>> union_schema([a, a], "here").names
        ['x']
    """
    known = [s for s in schemas if s is not None]
    for other in known[1:]:
        if differences := _differences(known[0], other):
            raise PlanError(
                f"{where}: a union needs streams of one schema, but {'; '.join(differences)}. "
                f"Bring them into line with select(...) before the union."
            )
    return known[0] if known and len(known) == len(schemas) else None


def _differences(first: pa.Schema, second: pa.Schema) -> list[str]:
    out = []
    for name in first.names:
        if name not in second.names:
            out.append(f"column {name!r} is only in the first")
        elif first.field(name).type != second.field(name).type:
            one, two = first.field(name).type, second.field(name).type
            out.append(f"column {name!r} is {one} in one and {two} in another")
    out += [f"column {n!r} is not in the first" for n in second.names if n not in first.names]
    if not out and first.names != second.names:
        out.append(f"the columns are in a different order ({first.names} and {second.names})")
    return out


def describe_schema(schema: pa.Schema | None) -> str:
    """One line for people.

    Example:
        >>> describe_schema(pa.schema([("a", pa.int64()), ("b", pa.string())]))
        'a: int64, b: string'
    """
    if schema is None:
        return "known when it runs"
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
