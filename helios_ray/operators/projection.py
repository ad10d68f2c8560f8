"""Columns chosen and computed, rows routed: select, with_columns, branch and union.

Why it exists: these work on whole columns and never look at a row in Python.

May import: elements, errors, operators, Arrow.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import Batch, Origin
from helios_ray.errors import ConfigError, PlanError
from helios_ray.operators.base import Operator, OperatorContext
from helios_ray.operators.expressions import (
    CompiledExpression,
    Expression,
    col,
    filter_rows,
    is_expression,
)
from helios_ray.operators.rows import InputSchema, Row, to_rows
from helios_ray.operators.user_functions import FailureHandler, OnError, around

AnyExpression: TypeAlias = "Expression | pc.Expression"


class _Projection(Operator):
    """Computes named columns of each batch with expressions compiled for its schema."""

    what: str

    def __init__(self) -> None:
        self._input = InputSchema(self.what)
        self._columns: list[tuple[str, CompiledExpression]] = []
        self._schema: pa.Schema | None = None

    @abstractmethod
    def _plan(self, schema: pa.Schema) -> list[tuple[str, Any]]:
        """The output columns, in order, for an input schema."""

    def _compile(self, schema: pa.Schema, where: str) -> list[tuple[str, CompiledExpression]]:
        return [(n, CompiledExpression(e, schema, where)) for n, e in self._plan(schema)]

    def output_schema(self, schema: pa.Schema, uid: str = "operator") -> pa.Schema:
        """The columns that come out where ``schema`` goes in.

        Raises:
            MissingColumnError: a column is not in ``schema``.
            PlanError: the types do not fit an expression.
        """
        columns = self._compile(schema, f"{self.what} {uid!r}")
        return pa.schema([pa.field(name, compiled.type) for name, compiled in columns])

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        schema = batch.data.schema
        if self._input.check(schema, self.context.uid, batch.origin) or self._schema is None:
            self._columns = self._compile(schema, f"{self.what} {self.context.uid!r}")
            self._schema = pa.schema([pa.field(n, c.type) for n, c in self._columns])
        arrays = [compiled.evaluate(batch.data) for _, compiled in self._columns]
        data = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        return [Batch(data, batch.origin, batch.tag)]


class SelectOperator(_Projection):
    """Only the named columns, in the named order.

    Args:
        columns: names; or new names with the column or expression each one holds.
        input_schema: where it is known, the columns are checked at once.

    Raises:
        ConfigError: no columns, or a name twice.
        MissingColumnError: a column is not in ``input_schema``.

    Example:
        >>> operator = SelectOperator({"id": "auction", "cents": col("price") * 100})
        >>> operator.open(OperatorContext(uid="s"))
        >>> batch = Batch(pa.record_batch({"auction": [7], "price": [3], "note": ["x"]}))
        >>> operator.process_batch(batch)[0].data.to_pydict()
        {'id': [7], 'cents': [300]}
    """

    what = "select"

    def __init__(
        self,
        columns: Sequence[str] | Mapping[str, str | AnyExpression],
        *,
        input_schema: pa.Schema | None = None,
    ) -> None:
        super().__init__()
        if isinstance(columns, str):
            columns = [columns]
        named = columns if isinstance(columns, Mapping) else {name: name for name in columns}
        if not named or len(named) != len(columns):
            raise ConfigError(f"select needs distinct columns, at least one, got {list(columns)}.")
        self._named = dict(named)
        if input_schema is not None:
            self.output_schema(input_schema)

    def _plan(self, schema: pa.Schema) -> list[tuple[str, Any]]:
        return list(self._named.items())


class WithColumnsOperator(_Projection):
    """All columns, and further ones; one of an existing name takes that column's place.

    Args:
        columns: expressions by name. All see the columns as they came in.
        input_schema: where it is known, the expressions are checked at once.

    Example:
        >>> operator = WithColumnsOperator({"total": col("price") + col("tax")})
        >>> operator.open(OperatorContext(uid="w"))
        >>> batch = Batch(pa.record_batch({"price": [3], "tax": [1]}))
        >>> operator.process_batch(batch)[0].data.to_pydict()
        {'price': [3], 'tax': [1], 'total': [4]}
    """

    what = "with_columns"

    def __init__(
        self,
        columns: Mapping[str, str | AnyExpression],
        *,
        input_schema: pa.Schema | None = None,
    ) -> None:
        super().__init__()
        if not columns:
            raise ConfigError("with_columns needs at least one column, got none.")
        self._named = dict(columns)
        if input_schema is not None:
            self.output_schema(input_schema)

    def _plan(self, schema: pa.Schema) -> list[tuple[str, Any]]:
        plan: dict[str, Any] = {name: col(name) for name in schema.names}
        plan.update(self._named)
        return list(plan.items())


class BranchOperator(Operator):
    """Routes each row to the side output of the first predicate that holds for it.

    Args:
        branches: predicates by tag, tried in order: expressions or functions of a row. A
            predicate that is null does not hold.
        default: tag of rows for which none holds; None is the main output.
        on_error: what to do when a row function raises.

    Example:
        >>> operator = BranchOperator({"big": col("price") > 100}, default="rest")
        >>> operator.open(OperatorContext(uid="b"))
        >>> out = operator.process_batch(Batch(pa.record_batch({"price": [90, 120, None]})))
        >>> {b.tag: b.data.to_pydict() for b in out}
        {'big': {'price': [120]}, 'rest': {'price': [90, None]}}
    """

    def __init__(
        self,
        branches: Mapping[str, Callable[[Row], Any] | AnyExpression],
        *,
        default: str | None = None,
        on_error: OnError = "raise",
        input_schema: pa.Schema | None = None,
    ) -> None:
        if not branches:
            raise ConfigError("branch needs at least one predicate, got none.")
        for tag, predicate in branches.items():
            if not is_expression(predicate) and not callable(predicate):
                raise ConfigError(
                    f"branch {tag!r} needs an expression or a function of a row, got {predicate!r}."
                )
            if input_schema is not None and is_expression(predicate):
                CompiledExpression(predicate, input_schema, f"branch {tag!r}").require_boolean()
        self._branches = dict(branches)
        self._default = default
        self._failures = FailureHandler("branch", on_error)
        self._input = InputSchema("branch")
        self._compiled: dict[str, CompiledExpression] = {}

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        data = batch.data
        if self._input.check(data.schema, self.context.uid, batch.origin):
            self._compiled = {
                tag: CompiledExpression(
                    predicate, data.schema, f"branch {self.context.uid!r} ({tag!r})"
                ).require_boolean()
                for tag, predicate in self._branches.items()
                if is_expression(predicate)
            }
        # Rows not routed yet, and where in the batch each of them stood.
        rest = data
        places = pa.array(range(data.num_rows), pa.int64()) if self._has_functions() else None
        out: list[Batch] = []
        for tag, predicate in self._branches.items():
            if rest.num_rows == 0:
                break
            compiled = self._compiled.get(tag)
            failed: pa.Array | None = None
            if compiled is not None:
                mask = pc.fill_null(compiled.evaluate(rest), False)
            else:
                mask, failed = self._by_function(predicate, rest, places, batch)
            taken = filter_rows(rest, mask)
            if taken.num_rows:
                out.append(Batch(taken, self._origin(taken, batch), tag))
            left = pc.invert(mask) if failed is None else pc.invert(pc.or_(mask, failed))
            if places is not None:
                places = places.filter(left)
            rest = filter_rows(rest, left)
        if rest.num_rows:
            out.append(Batch(rest, self._origin(rest, batch), self._default))
        return out + self._failures.drain()

    @staticmethod
    def _origin(part: pa.RecordBatch, batch: Batch) -> Origin | None:
        return batch.origin if part.num_rows == batch.data.num_rows else around(batch.origin)

    def _has_functions(self) -> bool:
        return len(self._compiled) < len(self._branches)

    def _by_function(
        self, fn: Any, rest: pa.RecordBatch, places: pa.Array, batch: Batch
    ) -> tuple[pa.Array, pa.Array]:
        """Whether each row is taken, and whether its function failed."""
        taken, failed = [], []
        for i, row in enumerate(to_rows(rest)):
            try:
                taken.append(bool(fn(row)))
                failed.append(False)
            except Exception as error:
                self._failures.failed(error, to_rows(rest.slice(i, 1)), places[i].as_py(), batch)
                taken.append(False)
                failed.append(True)
        return pa.array(taken, pa.bool_()), pa.array(failed, pa.bool_())

    def counters(self) -> Mapping[str, int]:
        return self._failures.counters()


class UnionOperator(Operator):
    """The rows of all inputs, which must have the same columns and types."""

    def __init__(self) -> None:
        self._input = InputSchema("union")

    @staticmethod
    def output_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
        """The one schema of all inputs.

        Raises:
            PlanError: two inputs differ; names both and the difference.
        """
        first, *others = schemas
        for i, other in enumerate(others, 1):
            if not first.equals(other):
                raise PlanError(
                    f"union: input 0 has ({_one_line(first)}) and input {i} has "
                    f"({_one_line(other)}). Bring them to one schema with select() and cast()."
                )
        return first

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        self._input.check(batch.data.schema, self.context.uid, batch.origin)
        return [batch]


def _one_line(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name}: {f.type}" for f in schema)
