"""What an aggregate over a window is, as plain data, and the object that carries it out.

Why it exists: :class:`~helios_ray.operators.aggregation.Aggregation` says what running
aggregates can do; windows can do more. Both descriptions are accepted here, and a user's
:class:`~helios_ray.operators.window_aggregates.user.AggregateFunction` beside them.

May import: errors, operators, state, Arrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import pyarrow as pa
import pyarrow.types as pt

from helios_ray.errors import ConfigError, PlanError
from helios_ray.operators.aggregation import Aggregation
from helios_ray.operators.window_aggregates.base import WindowAggregate
from helios_ray.operators.window_aggregates.chosen import ChosenAggregate
from helios_ray.operators.window_aggregates.hyperloglog import ApproxDistinctAggregate
from helios_ray.operators.window_aggregates.lists import (
    CollectAggregate,
    DistinctAggregate,
    TopAggregate,
)
from helios_ray.operators.window_aggregates.numeric import FoldedAggregate, VarianceAggregate
from helios_ray.operators.window_aggregates.tdigest import QuantileAggregate
from helios_ray.operators.window_aggregates.user import AggregateFunction, UserAggregate
from helios_ray.state.hashing import logical_type, missing_column

WindowFunction: TypeAlias = Literal[
    "variance",
    "stddev",
    "first",
    "last",
    "any_value",
    "count_distinct",
    "approx_count_distinct",
    "quantile",
    "arg_min",
    "arg_max",
    "top_k",
    "collect_list",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowAggregation:
    """One aggregate that windows know beyond the running ones.

    Args:
        function: which.
        column: the column whose values are aggregated.
        by: the column that decides, for ``arg_min``, ``arg_max`` and ``top_k``.
        n: how many, for ``top_k``.
        q: the fraction, for ``quantile``.
        ddof: for ``variance`` and ``stddev``.
        precision: for ``approx_count_distinct``, 4 to 16.
        compression: for ``quantile``, 20 to 10,000.

    Raises:
        ConfigError: an unknown function or a setting out of bounds.
    """

    function: WindowFunction
    column: str
    by: str | None = None
    n: int = 1
    q: float = 0.5
    ddof: int = 1
    precision: int = 12
    compression: int = 200

    def __post_init__(self) -> None:
        if self.function not in get_args(WindowFunction):
            raise ConfigError(
                f"a window's aggregation is one of {', '.join(get_args(WindowFunction))}, got "
                f"{self.function!r}."
            )
        for name, column in (("column", self.column), ("by", self.by)):
            if not isinstance(column, str) and not (name == "by" and column is None):
                raise ConfigError(f"{self.function} needs a column's name, got {column!r}.")
        if self.function in ("arg_min", "arg_max") and self.by is None:
            raise ConfigError(f"{self.function}({self.column!r}) needs by=, the column to compare.")
        self._whole("n", self.n, 1, 2**31 - 1)
        self._whole("ddof", self.ddof, 0, 2**31 - 1)
        self._whole("precision", self.precision, 4, 16)
        self._whole("compression", self.compression, 20, 10_000)
        if not isinstance(self.q, (int, float)) or not 0 <= self.q <= 1:
            raise ConfigError(f"quantile's q must be a fraction from 0 to 1, got {self.q!r}.")

    def _whole(self, name: str, value: int, least: int, most: int) -> None:
        if not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(
                f"{self.function}'s {name} must be a whole number from {least} to {most}, got "
                f"{value!r}."
            )

    def __str__(self) -> str:
        return f"{self.function}({self.column})"


AnyAggregation: TypeAlias = Aggregation | WindowAggregation | AggregateFunction
WindowAggregations: TypeAlias = Mapping[str, AnyAggregation]

Merging: TypeAlias = Literal["exact", "rounded", "whole"]
"""What merging partial rows does to a result, where rows of one key come in the same order:

    exact    nothing: it is the same to the last bit, however the rows were cut into batches
    rounded  last digits depend on the cuts, or nobody knows (a user's own aggregate)
    whole    nothing, but partial rows are no smaller than the rows they stand for
"""


def merging_of(aggregation: AnyAggregation, schema: pa.Schema | None) -> Merging:
    """What merging does to the results of an aggregation.

    Args:
        aggregation: which.
        schema: of the stream, where it is known: sums of integers are exact.

    Example:
        >>> merging_of(Aggregation("max", "x"), None), merging_of(Aggregation("sum", "x"), None)
        ('exact', 'rounded')
        >>> merging_of(Aggregation("sum", "x"), pa.schema([("x", pa.int32())]))
        'exact'
    """
    match aggregation:
        case Aggregation(function="count" | "min" | "max"):
            return "exact"
        case Aggregation(function="sum"):
            kind = None if schema is None else aggregation.input_type(schema, "window")
            return "exact" if kind is not None and pt.is_integer(kind) else "rounded"
        case WindowAggregation(function="collect_list"):
            return "whole"
        case WindowAggregation(function="variance" | "stddev" | "quantile"):
            return "rounded"
        case WindowAggregation():
            return "exact"  # chosen by event time and then arrival, or a set of values
        case _:
            return "rounded"


def needed_columns(aggregation: AnyAggregation, schema: pa.Schema) -> list[str]:
    """The columns that an aggregation reads: all of them for a user's own."""
    match aggregation:
        case AggregateFunction():
            return list(schema.names)
        case WindowAggregation(column=column, by=by):
            return [column] if by is None else [column, by]
        case _:
            return [aggregation.column] if aggregation.column is not None else []


def make_window_aggregate(
    name: str, aggregation: AnyAggregation, schema: pa.Schema, where: str
) -> WindowAggregate:
    """The aggregate that carries a description out on a stream of ``schema``.

    Raises:
        MissingColumnError: a column is not in ``schema``.
        PlanError: the function does not apply to the column's type.
        ConfigError: a user's function does not declare its ``result_type``.
    """
    if isinstance(aggregation, AggregateFunction):
        if not isinstance(getattr(aggregation, "result_type", None), pa.DataType):
            raise ConfigError(
                f"{where}: {type(aggregation).__name__} must set result_type to the Arrow type of "
                f"its results, such as result_type = pa.float64()."
            )
        return UserAggregate(name, aggregation, where)
    if isinstance(aggregation, Aggregation):
        return FoldedAggregate(name, aggregation, schema, where)
    return _make(name, aggregation, schema, where)


def _make(
    name: str, aggregation: WindowAggregation, schema: pa.Schema, where: str
) -> WindowAggregate:
    column = aggregation.column
    kind = _kind(column, schema, where)
    by = aggregation.by
    match aggregation.function:
        case "variance" | "stddev":
            _need_number(aggregation, kind, where)
            root = aggregation.function == "stddev"
            return VarianceAggregate(name, column, aggregation.ddof, root=root)
        case "quantile":
            _need_number(aggregation, kind, where)
            return QuantileAggregate(name, column, float(aggregation.q), aggregation.compression)
        case "first" | "last" | "any_value":
            return ChosenAggregate(name, column, kind, largest=aggregation.function == "last")
        case "arg_min" | "arg_max":
            assert by is not None
            return ChosenAggregate(
                name,
                column,
                kind,
                by=by,
                by_kind=_ordered_kind(by, schema, where),
                largest=aggregation.function == "arg_max",
            )
        case "top_k":
            by = column if by is None else by
            by_kind = _ordered_kind(by, schema, where)
            return TopAggregate(name, column, kind, by, by_kind, aggregation.n)
        case "count_distinct":
            return DistinctAggregate(name, column, kind)
        case "approx_count_distinct":
            return ApproxDistinctAggregate(name, column, kind, aggregation.precision)
        case "collect_list":
            return CollectAggregate(name, column, kind)


def _kind(column: str, schema: pa.Schema, where: str) -> pa.DataType:
    found = schema.get_all_field_indices(column)
    if not found:
        raise missing_column(column, schema, where)
    if len(found) > 1:
        raise PlanError(f"{where}: the stream has {len(found)} columns named {column!r}.")
    return logical_type(schema.field(found[0]).type)


def _ordered_kind(column: str, schema: pa.Schema, where: str) -> pa.DataType:
    Aggregation("max", column).output_type(schema, where)  # raises where there is no order
    return _kind(column, schema, where)


def _need_number(aggregation: WindowAggregation, kind: pa.DataType, where: str) -> None:
    if not (pt.is_integer(kind) or pt.is_floating(kind)):
        raise PlanError(
            f"{where}: {aggregation.function} needs an integer or float column, and "
            f"{aggregation.column!r} is {kind}. Cast it first: "
            f"with_columns(x=col({aggregation.column!r}).cast('float64'))."
        )


def check_window_aggregations(
    keys: Sequence[str], aggregations: WindowAggregations, where: str, reserved: Sequence[str] = ()
) -> None:
    """What can be checked without a schema.

    Raises:
        ConfigError: no aggregation, something else, or a name that is taken.
    """
    if not aggregations:
        raise ConfigError(f"{where} needs at least one aggregation, such as n=count().")
    for name, aggregation in aggregations.items():
        if not isinstance(aggregation, (Aggregation, WindowAggregation, AggregateFunction)):
            raise ConfigError(
                f"{where}: {name!r} must be an aggregation such as count() or sum_('price'), or an "
                f"instance of an AggregateFunction, got {aggregation!r}."
            )
        if name in keys:
            raise ConfigError(
                f"{where}: {name!r} is both a key and a result. Give the result another name."
            )
    taken = [name for name in (*keys, *aggregations) if name in reserved]
    if taken:
        raise ConfigError(
            f"{where}: {taken[0]!r} is the name of a column that every window's result carries. "
            f"Give yours another name."
        )
