"""What an aggregate is, as plain data: its function, its column, its result type.

Why it exists: the same description serves running aggregates, local pre-aggregation and
windows, and is checked against the stream's schema when the dataflow is built.

Null semantics are SQL's: aggregates skip nulls; over no values at all, ``count`` is 0 and
the others are null. NaN is skipped by ``min`` and ``max`` unless nothing else came, and makes
``sum`` and ``mean`` NaN, as in Arrow.

May import: errors, state, Arrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import pyarrow as pa
import pyarrow.types as pt

from helios_ray.errors import ConfigError, PlanError
from helios_ray.state.hashing import check_keys, logical_type, missing_column

Function: TypeAlias = Literal["count", "sum", "min", "max", "mean"]


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One aggregate of one column.

    Args:
        function: ``count``, ``sum``, ``min``, ``max`` or ``mean``.
        column: the column, or None for ``count`` of rows.

    Raises:
        ConfigError: another function, or no column where one is needed.
    """

    function: Function
    column: str | None = None

    def __post_init__(self) -> None:
        if self.function not in ("count", "sum", "min", "max", "mean"):
            raise ConfigError(
                f"an aggregation is count, sum, min, max or mean, got {self.function!r}."
            )
        if self.column is None and self.function != "count":
            raise ConfigError(f"{self.function} needs a column, got None; only count() has none.")
        if self.column is not None and not isinstance(self.column, str):
            raise ConfigError(f"{self.function} needs a column's name, got {self.column!r}.")

    def input_type(self, schema: pa.Schema, where: str) -> pa.DataType | None:
        """The type of the column, encodings undone; None for ``count`` of rows.

        Raises:
            MissingColumnError: the column is not in ``schema``.
        """
        if self.column is None:
            return None
        found = schema.get_all_field_indices(self.column)
        if not found:
            raise missing_column(self.column, schema, where)
        if len(found) > 1:
            raise PlanError(f"{where}: the stream has {len(found)} columns named {self.column!r}.")
        return logical_type(schema.field(found[0]).type)

    def output_type(self, schema: pa.Schema, where: str) -> pa.DataType:
        """The type of the result: int64 for counts and sums of integers, float64 for means
        and sums of floats, the column's own for min and max.

        Raises:
            MissingColumnError: the column is not in ``schema``.
            PlanError: the function does not apply to the column's type.
        """
        kind = self.input_type(schema, where)
        if self.function == "count" or kind is None:
            return pa.int64()
        if self.function in ("sum", "mean"):
            if pt.is_integer(kind):
                return pa.int64() if self.function == "sum" else pa.float64()
            if pt.is_floating(kind):
                return pa.float64()
            raise PlanError(
                f"{where}: {self.function} needs an integer or float column, and {self.column!r} "
                f"is {kind}. Cast it first: with_columns(x=col({self.column!r}).cast('float64'))."
            )
        if _has_order(kind):
            return kind
        raise PlanError(
            f"{where}: {self.function} needs a column whose values have an order (number, bool, "
            f"decimal, string, binary, date, time, timestamp, duration), and {self.column!r} is "
            f"{kind}. Select a part of it first."
        )

    def __str__(self) -> str:
        return f"{self.function}({self.column or ''})"


Aggregations: TypeAlias = Mapping[str, Aggregation]


def _has_order(kind: pa.DataType) -> bool:
    return bool(
        pt.is_integer(kind)
        or pt.is_floating(kind)
        or pt.is_boolean(kind)
        or pt.is_decimal(kind)
        or (pt.is_temporal(kind) and not pt.is_interval(kind))
        or pt.is_string(kind)
        or pt.is_large_string(kind)
        or pt.is_string_view(kind)
        or pt.is_binary(kind)
        or pt.is_large_binary(kind)
        or pt.is_binary_view(kind)
    )


def aggregate_schema(
    keys: Sequence[str], aggregations: Aggregations, schema: pa.Schema, where: str = "aggregate"
) -> pa.Schema:
    """The columns that come out: the keys (encodings undone), then the results by name.

    Raises:
        ConfigError: no aggregation, or a name that is also a key.
        MissingColumnError: a key or column is not in ``schema``.
        PlanError: a type cannot be a key, or cannot be aggregated so.
    """
    check_keys(schema, keys, where)
    check_names(keys, aggregations, where)
    fields = [pa.field(key, logical_type(schema.field(key).type)) for key in keys]
    fields += [pa.field(n, a.output_type(schema, where)) for n, a in aggregations.items()]
    return pa.schema(fields)


def check_names(keys: Sequence[str], aggregations: Aggregations, where: str) -> None:
    """What can be checked without a schema; raises ConfigError."""
    if not aggregations:
        raise ConfigError(f"{where} needs at least one aggregation, such as n=count().")
    for name, aggregation in aggregations.items():
        if not isinstance(aggregation, Aggregation):
            raise ConfigError(
                f"{where}: {name!r} must be an aggregation such as count() or sum_('price'), got "
                f"{aggregation!r}."
            )
        if name in keys:
            raise ConfigError(
                f"{where}: {name!r} is both a key and a result. Give the result another name."
            )
