"""Column expressions, compiled once into a chain of Arrow kernel calls.

Why it exists: Arrow evaluates its own ``pyarrow.compute.Expression`` only by building a
query plan, which costs about 0.3 ms per batch; the kernels inside cost 0.01 ms. An
expression here is checked against the stream's schema when the dataflow is built and then
runs as plain kernel calls.

Two spellings are taken. :func:`col` and :func:`lit` make an :class:`Expression`, whose every
operation is a kernel. A ``pyarrow.compute.Expression`` (``pc.field("price") > 100``) is
translated by :mod:`helios_ray.operators.arrow_expressions` where that is exact, and
otherwise evaluated by Arrow itself: slower on small batches, never different.

Null semantics are Arrow's: comparing with null gives null, ``&`` and ``|`` are Kleene's, and
a filter keeps a row only where its predicate is true. Arithmetic is checked: overflow and
integer division by zero raise. ``/`` of two integers truncates, as Arrow's does.

May import: errors, state, Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from helios_ray.errors import ConfigError, DataError, PlanError
from helios_ray.state.hashing import missing_column

Evaluator: TypeAlias = Callable[[pa.RecordBatch], Any]
"""Gives an Arrow array, or a scalar where the expression names no column."""


class Expression:
    """A computation over the columns of a batch. Build with :func:`col` and :func:`lit`.

    ``== != < <= > >= + - * / & | ~ -`` work as in ``pyarrow.compute``; every other kernel is
    reached with :meth:`call`. ``and``, ``or``, ``not`` and ``in`` cannot be overloaded in
    Python and raise.

    Example:
        >>> batch = pa.record_batch({"price": [90, None, 120], "tax": [9, 1, 12]})
        >>> big = (col("price") + col("tax") > 100) & col("tax").is_valid()
        >>> CompiledExpression(big, batch.schema).evaluate(batch).to_pylist()
        [False, None, True]
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def columns(self) -> frozenset[str]:
        """The columns it reads."""
        raise NotImplementedError

    def compile(self, schema: pa.Schema, where: str) -> Evaluator:
        """The kernel calls for batches of ``schema``; MissingColumnError without a column."""
        raise NotImplementedError

    def call(self, function: str, *arguments: Any, options: Any = None) -> Expression:
        """Apply any Arrow compute function, with this expression as its first argument.

        Args:
            function: name in Arrow's registry (``pyarrow.compute.list_functions()``).
            arguments: further arguments, expressions or plain values.
            options: a ``pyarrow.compute.FunctionOptions``.

        Raises:
            ConfigError: there is no such function, or it is not row by row.

        Example:
            >>> name = col("name").call("utf8_upper")
            >>> batch = pa.record_batch({"name": ["ab"]})
            >>> CompiledExpression(name, batch.schema).evaluate(batch).to_pylist()
            ['AB']
        """
        return _call(function, self, *arguments, options=options)

    def cast(self, data_type: Any, *, safe: bool = True) -> Expression:
        """Convert to an Arrow type; ``safe`` refuses what would lose information."""
        kind = pa.type_for_alias(data_type) if isinstance(data_type, str) else data_type
        options = pc.CastOptions.safe(kind) if safe else pc.CastOptions.unsafe(kind)
        return _call("cast", self, options=options)

    def is_null(self) -> Expression:
        """Whether the value is null; NaN is not."""
        return _call("is_null", self, options=pc.NullOptions(nan_is_null=False))

    def is_valid(self) -> Expression:
        """Whether the value is not null."""
        return _call("is_valid", self)

    def is_nan(self) -> Expression:
        """Whether the value is NaN."""
        return _call("is_nan", self)

    def isin(self, values: Iterable[Any]) -> Expression:
        """Whether the value is one of ``values``; null is, where ``values`` has None."""
        return _IsIn(self, pa.array(list(values)))

    def fill_null(self, value: Any) -> Expression:
        """The value, or ``value`` where it is null."""
        return _call("coalesce", self, value)

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return _call("equal", self, other)

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        return _call("not_equal", self, other)

    def __lt__(self, other: Any) -> Expression:
        return _call("less", self, other)

    def __le__(self, other: Any) -> Expression:
        return _call("less_equal", self, other)

    def __gt__(self, other: Any) -> Expression:
        return _call("greater", self, other)

    def __ge__(self, other: Any) -> Expression:
        return _call("greater_equal", self, other)

    def __add__(self, other: Any) -> Expression:
        return _call("add_checked", self, other)

    def __radd__(self, other: Any) -> Expression:
        return _call("add_checked", other, self)

    def __sub__(self, other: Any) -> Expression:
        return _call("subtract_checked", self, other)

    def __rsub__(self, other: Any) -> Expression:
        return _call("subtract_checked", other, self)

    def __mul__(self, other: Any) -> Expression:
        return _call("multiply_checked", self, other)

    def __rmul__(self, other: Any) -> Expression:
        return _call("multiply_checked", other, self)

    def __truediv__(self, other: Any) -> Expression:
        return _call("divide_checked", self, other)

    def __rtruediv__(self, other: Any) -> Expression:
        return _call("divide_checked", other, self)

    def __neg__(self) -> Expression:
        return _call("negate_checked", self)

    def __and__(self, other: Any) -> Expression:
        return _call("and_kleene", self, other)

    def __rand__(self, other: Any) -> Expression:
        return _call("and_kleene", other, self)

    def __or__(self, other: Any) -> Expression:
        return _call("or_kleene", self, other)

    def __ror__(self, other: Any) -> Expression:
        return _call("or_kleene", other, self)

    def __invert__(self) -> Expression:
        return _call("invert", self)

    def __bool__(self) -> bool:
        raise ConfigError(
            f"{self!r} stands for a whole column and is neither true nor false. Combine "
            f"expressions with &, | and ~ in parentheses instead of and, or and not, and use "
            f".isin([...]) instead of in."
        )

    def __iter__(self) -> Any:
        raise TypeError(f"{self!r} stands for a whole column and cannot be iterated over")

    def __contains__(self, item: object) -> bool:
        raise ConfigError(f"{self!r} cannot be searched with in; use .isin([...])")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Column(Expression):
    name: str

    def columns(self) -> frozenset[str]:
        return frozenset([self.name])

    def compile(self, schema: pa.Schema, where: str) -> Evaluator:
        found = schema.get_all_field_indices(self.name)
        if not found:
            raise missing_column(self.name, schema, where)
        if len(found) > 1:
            raise PlanError(f"{where}: the stream has {len(found)} columns named {self.name!r}.")
        index = found[0]
        return lambda batch: batch.column(index)

    def __repr__(self) -> str:
        return f"col({self.name!r})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Literal(Expression):
    value: Any

    def columns(self) -> frozenset[str]:
        return frozenset()

    def compile(self, schema: pa.Schema, where: str) -> Evaluator:
        value = self.value
        return lambda _: value

    def __repr__(self) -> str:
        return f"lit({self.value.as_py()!r})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Call(Expression):
    function: str
    arguments: tuple[Expression, ...]
    options: Any = None

    def columns(self) -> frozenset[str]:
        return frozenset().union(*(a.columns() for a in self.arguments))

    def compile(self, schema: pa.Schema, where: str) -> Evaluator:
        call = pc.get_function(self.function).call
        options = self.options
        parts = [a.compile(schema, where) for a in self.arguments]
        if len(parts) == 1:
            only = parts[0]
            return lambda batch: call([only(batch)], options)
        if len(parts) == 2:
            left, right = parts
            return lambda batch: call([left(batch), right(batch)], options)
        return lambda batch: call([part(batch) for part in parts], options)

    def __repr__(self) -> str:
        return f"{self.function}({', '.join(map(repr, self.arguments))})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _IsIn(Expression):
    argument: Expression
    values: pa.Array

    def columns(self) -> frozenset[str]:
        return self.argument.columns()

    def compile(self, schema: pa.Schema, where: str) -> Evaluator:
        inner = CompiledExpression(self.argument, schema, where)
        try:
            values = self.values.cast(inner.type)
        except pa.ArrowInvalid as error:
            raise PlanError(
                f"{where}: isin() compares {inner.type} with {self.values.type}, and {error}. "
                f"Cast one side."
            ) from error
        options = pc.SetLookupOptions(value_set=values)
        call = pc.get_function("is_in").call
        part = self.argument.compile(schema, where)
        return lambda batch: call([part(batch)], options)

    def __repr__(self) -> str:
        return f"{self.argument!r}.isin({self.values.to_pylist()!r})"


def col(name: str) -> Expression:
    """The column ``name`` of the stream.

    Example:
        >>> col("price") > 100
        greater(col('price'), lit(100))
    """
    return _Column(name)


def lit(value: Any, data_type: pa.DataType | None = None) -> Expression:
    """A constant.

    Args:
        value: a Python value or ``pyarrow.Scalar``.
        data_type: its Arrow type; inferred by Arrow where it is not given.
    """
    scalar = value if isinstance(value, pa.Scalar) else pa.scalar(value, data_type)
    return _Literal(scalar)


def _call(function: str, *arguments: Any, options: Any = None) -> Expression:
    try:
        kind = pc.get_function(function).kind
    except KeyError:
        raise ConfigError(
            f"Arrow has no compute function {function!r}. See pyarrow.compute.list_functions()."
        ) from None
    if kind != "scalar" and function != "cast":
        raise ConfigError(
            f"{function!r} is a {kind} function: its result for a row would depend on the other "
            f"rows of the batch. Use an aggregate, or map_batches."
        )
    parts = tuple(a if isinstance(a, Expression) else lit(a) for a in arguments)
    return _Call(function, parts, options)


class CompiledExpression:
    """An expression bound to a schema.

    Args:
        expression: an :class:`Expression`, a ``pyarrow.compute.Expression``, or the name of
            a column.
        schema: of the batches to come.
        where: who asks, for messages (``filter 'big-bids'``).

    Raises:
        MissingColumnError: a column is not in ``schema``.
        PlanError: the types do not fit, or ``expression`` is none.
    """

    def __init__(self, expression: Any, schema: pa.Schema, where: str = "expression") -> None:
        self.where = where
        self.expression = expression
        self._evaluate = self._build(expression, schema)
        empty = schema.empty_table().combine_chunks().to_batches()
        probe = empty[0] if empty else empty_batch(schema)
        try:
            self.type: pa.DataType = self._evaluate(probe).type
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise PlanError(
                f"{where}: {expression!s} cannot be computed on the columns {_describe(schema)}: "
                f"{error} Cast a column (.cast(...)) or change the expression."
            ) from error

    def _build(self, expression: Any, schema: pa.Schema) -> Evaluator:
        if isinstance(expression, str):
            expression = col(expression)
        if isinstance(expression, Expression):
            return expression.compile(schema, self.where)
        if isinstance(expression, pc.Expression):
            from helios_ray.operators.arrow_expressions import compile_arrow_expression

            return compile_arrow_expression(expression, schema, self.where)
        raise PlanError(
            f"{self.where}: expected col(...), a pyarrow.compute expression or a column name, got "
            f"{type(expression).__name__}."
        )

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """One value a row.

        Raises:
            DataError: a value cannot be computed (overflow, division by zero, lossy cast).
        """
        try:
            result = self._evaluate(batch)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{self.where}: {self.expression!s} failed on a batch of {batch.num_rows} rows: "
                f"{error} Cast to a wider type first, or filter the offending rows out."
            ) from error
        if isinstance(result, pa.Scalar):
            return pa.repeat(result, batch.num_rows)
        return result

    def require_boolean(self) -> CompiledExpression:
        """Raise PlanError unless the result is boolean; returns itself."""
        if not pt.is_boolean(self.type):
            raise PlanError(
                f"{self.where} needs a condition, and {self.expression!s} gives {self.type}. "
                f"Compare it with something."
            )
        return self


def is_expression(value: object) -> bool:
    """Whether ``value`` is an expression of either spelling."""
    return isinstance(value, (Expression, pc.Expression))


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """A batch of no rows."""
    return pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in schema], schema=schema)


def filter_rows(batch: pa.RecordBatch, mask: pa.Array) -> pa.RecordBatch:
    """The rows where ``mask`` is true; ``batch`` itself, not copied, where all are."""
    if mask.true_count == batch.num_rows:
        return batch
    return batch.filter(mask)


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name}: {f.type}" for f in schema)
