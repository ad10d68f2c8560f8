"""Operators that work on whole columns: filter, select, with_columns.

Why it exists: an expression is checked against the schema when it is written and runs as
Arrow kernels, at a hundredth of the price of a row function.

May import: plan, operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from helios_ray.errors import PlanError
from helios_ray.operators.base import Operator
from helios_ray.operators.expressions import is_expression
from helios_ray.operators.projection import SelectOperator, WithColumnsOperator
from helios_ray.operators.stateless import FilterOperator
from helios_ray.plan.graph import describe_function
from helios_ray.plan.options import OperatorOptions, node_fields
from helios_ray.plan.schema import check_predicate, project, with_columns
from helios_ray.stream.base import (
    AnyExpression,
    BaseStream,
    OnError,
    Row,
    check_callable,
    where,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from helios_ray.stream.data_stream import DataStream


class Columns(BaseStream):
    """The methods of a stream that compute with columns."""

    def filter(
        self,
        predicate: Callable[[Row], bool] | AnyExpression,
        *,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Keep the rows for which ``predicate`` is true; null counts as false.

        Args:
            predicate: an Arrow expression (fast: no Python per row), or a function of a row.

        Raises:
            MissingColumnError: the expression names a column that is not there.
            PlanError: the expression is not boolean.

        Example:
            >>> import pyarrow.compute as pc
            >>> from helios_ray import StreamExecutionEnvironment
            >>> numbers = StreamExecutionEnvironment().from_range(10, uid="numbers")
            >>> numbers.filter(pc.field("itme") > 3)
            Traceback (most recent call last):
            ...
            helios_ray.errors.MissingColumnError: ... Did you mean 'item'?
        """
        if is_expression(predicate):
            check_predicate(predicate, self._schema, where("filter"))
        else:
            check_callable("filter", predicate)
        return self._operator(
            "filter",
            partial(FilterOperator, predicate, on_error=on_error),
            options,
            schema=self._schema,
            detail=describe_function(predicate),
            on_error=on_error,
        )

    def select(
        self,
        *columns: str | Mapping[str, AnyExpression],
        uid: str | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | None = None,
        resources: Mapping[str, float] | None = None,
        **expressions: AnyExpression,
    ) -> DataStream:
        """Keep and compute columns, in the order given; all others go.

        Args:
            columns: names of columns to keep, or mappings of names to expressions (for names
                that are also options, such as ``name``).
            expressions: new columns by name.

        Raises:
            MissingColumnError: a column is not there; offers the nearest.

        Example:
            >>> from helios_ray import StreamExecutionEnvironment, col
            >>> numbers = StreamExecutionEnvironment().from_range(10, uid="numbers")
            >>> numbers.select("item", half=col("item") / 2.0)
            DataStream[item: int64, half: double]
        """
        options = OperatorOptions(
            uid=uid, name=name, parallelism=parallelism, num_cpus=num_cpus,
            num_gpus=num_gpus, memory=memory, resources=resources,
        )  # fmt: skip
        node_fields(options, "select")
        chosen: dict[str, Any] = {}
        for column in columns:
            if isinstance(column, str):
                chosen[column] = column
            elif isinstance(column, Mapping):
                chosen.update(column)
            else:
                raise PlanError(
                    f"{where('select')}: expected a column name or a mapping of names to "
                    f"expressions, got {column!r}. Write select('a', b=pc.field('x') + 1)."
                )
        chosen.update(expressions)
        if not chosen:
            raise PlanError(f"{where('select')}: name at least one column, as in select('a', 'b').")
        return self._columns("select", SelectOperator, chosen, project, options)

    def with_columns(
        self,
        columns: Mapping[str, AnyExpression] | None = None,
        /,
        *,
        uid: str | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | None = None,
        resources: Mapping[str, float] | None = None,
        **expressions: AnyExpression,
    ) -> DataStream:
        """Add columns, or replace those of the same name in place.

        All expressions see the columns as they come in. Args and errors as for :meth:`select`.

        Example:
            >>> import pyarrow.compute as pc
            >>> from helios_ray import StreamExecutionEnvironment
            >>> numbers = StreamExecutionEnvironment().from_range(10, uid="numbers")
            >>> numbers.with_columns(big=pc.field("item") > 5)
            DataStream[item: int64, big: bool]
        """
        options = OperatorOptions(
            uid=uid, name=name, parallelism=parallelism, num_cpus=num_cpus,
            num_gpus=num_gpus, memory=memory, resources=resources,
        )  # fmt: skip
        node_fields(options, "with_columns")
        chosen = {**(columns or {}), **expressions}
        if not chosen:
            raise PlanError(
                f"{where('with_columns')}: give at least one column, as in "
                f"with_columns(total=pc.field('price') * pc.field('amount'))."
            )
        return self._columns("with_columns", WithColumnsOperator, chosen, with_columns, options)

    def _columns(
        self,
        kind: str,
        operator: Callable[[dict[str, Any]], Operator],
        chosen: dict[str, Any],
        infer: Callable[[pa.Schema | None, Mapping[str, Any], str], pa.Schema | None],
        options: OperatorOptions,
    ) -> DataStream:
        here = where(kind)
        for column, expression in chosen.items():
            if not isinstance(expression, str) and not is_expression(expression):
                raise PlanError(
                    f"{here}: column {column!r} must be an expression or a column's name, "
                    f"got {expression!r}. Write lit(1) for a constant, and map(fn) for a Python "
                    f"function."
                )
        return self._operator(
            kind,
            partial(operator, chosen),
            options,
            schema=infer(self._schema, chosen, here),
            detail=", ".join(n if str(e) == n else f"{n}={e}" for n, e in chosen.items()),
        )
