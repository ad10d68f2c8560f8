"""One row in, rows out: map, flat_map and filter.

Why it exists: these are the operators people write first. Rows are dicts; a stream of plain
items has them in the column ``item``, so a row function always receives a dict
(``row["item"]``) and may return either a dict or a plain value, as in Ray Data.

The output schema of map and flat_map is that of their first rows (or ``schema=``), is part
of the snapshot, and never changes afterwards; see :mod:`helios_ray.operators.rows`.

May import: elements, errors, operators, Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError
from helios_ray.operators.base import Operator, OperatorContext, OperatorSnapshot, StateTable
from helios_ray.operators.expressions import (
    CompiledExpression,
    Expression,
    filter_rows,
    is_expression,
)
from helios_ray.operators.rows import InputSchema, OutputSchema, Row, as_row, to_rows
from helios_ray.operators.user_functions import FailureHandler, OnError, around, position, truncated


class _RowOperator(Operator):
    """What map and flat_map share: a function of a row, and results of one schema."""

    what: str

    def __init__(
        self, fn: Callable[[Row], Any], schema: pa.Schema | None, on_error: OnError
    ) -> None:
        if not callable(fn):
            raise ConfigError(f"{self.what} needs a function of a row, got {fn!r}.")
        self._fn = fn
        self._failures = FailureHandler(self.what, on_error)
        self._output = OutputSchema(self.what, schema)

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid
        self._output.open(context)

    def _results(self, row: Row) -> list[Row]:
        raise NotImplementedError

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        rows = to_rows(batch.data)
        results: list[Row] = []
        sources: list[int] = []
        for index, row in enumerate(rows):
            try:
                produced = self._results(row)
            except Exception as error:
                # The function may have changed the dict it was given: show the row as it came.
                came = to_rows(batch.data.slice(index, 1))
                self._failures.failed(error, came, index, batch)
                continue
            results += produced
            sources += [index] * len(produced)
        out: list[Batch] = []
        if results:

            def describe(i: int) -> str:
                place = position(batch, sources[i])
                read = f", read from {place}" if place else ""
                return f"row {sources[i]} of the batch ({truncated(rows[sources[i]])}{read})"

            self._output.model = batch.data.schema
            same = sources == list(range(len(rows)))
            origin = batch.origin if same else around(batch.origin)
            out.append(Batch(self._output.from_rows(results, describe), origin, batch.tag))
        return out + self._failures.drain()

    def counters(self) -> Mapping[str, int]:
        return self._failures.counters()

    def snapshot(self) -> OperatorSnapshot:
        return self._output.snapshot()

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self._output.restore(state)


class MapOperator(_RowOperator):
    """One row for each row.

    Args:
        fn: given a row (a dict of Python values), returns a dict, or any other value, which
            becomes ``{"item": value}``.
        schema: of the output; inferred from the first batch where it is None.
        on_error: what to do when ``fn`` raises.

    Example:
        >>> operator = MapOperator(lambda row: {"twice": row["x"] * 2})
        >>> operator.open(OperatorContext(uid="double"))
        >>> batch = Batch(pa.record_batch({"x": [1, 2]}))
        >>> [b.data.to_pydict() for b in operator.process_batch(batch)]
        [{'twice': [2, 4]}]
    """

    what = "map"

    def __init__(
        self,
        fn: Callable[[Row], Any],
        schema: pa.Schema | None = None,
        *,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(fn, schema, on_error)

    def _results(self, row: Row) -> list[Row]:
        return [as_row(self._fn(row))]


class FlatMapOperator(_RowOperator):
    """Any number of rows for each row.

    Args:
        fn: given a row, returns an iterable of rows or plain values; a generator is fine. A
            row whose iteration raises midway gives nothing at all.
        schema, on_error: as for :class:`MapOperator`.

    Example:
        >>> operator = FlatMapOperator(lambda row: row["text"].split())
        >>> operator.open(OperatorContext(uid="words"))
        >>> batch = Batch(pa.record_batch({"text": ["to be", "", "or"]}))
        >>> [b.data.to_pydict() for b in operator.process_batch(batch)]
        [{'item': ['to', 'be', 'or']}]
    """

    what = "flat_map"

    def __init__(
        self,
        fn: Callable[[Row], Iterable[Any]],
        schema: pa.Schema | None = None,
        *,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(fn, schema, on_error)

    def _results(self, row: Row) -> list[Row]:
        produced = self._fn(row)
        if isinstance(produced, (str, bytes, Mapping)) or not isinstance(produced, Iterable):
            raise TypeError(
                f"flat_map expects an iterable of rows, got {type(produced).__name__} "
                f"{truncated(produced)}; return a list, [] for nothing"
            )
        return [as_row(value) for value in produced]


class FilterOperator(Operator):
    """The rows for which a condition holds, in their order.

    Args:
        predicate: ``col("price") > 100``, ``pc.field("price") > 100``, or a function of a row
            whose result is taken as true or false. An expression that is null for a row
            drops it.
        on_error: what to do when a row function raises.
        input_schema: where it is known, the expression is checked at once.

    Raises:
        MissingColumnError: the expression names a column that ``input_schema`` lacks.
        PlanError: the expression is no condition.

    Example:
        >>> from helios_ray.operators.expressions import col
        >>> operator = FilterOperator(col("price") > 100)
        >>> operator.open(OperatorContext(uid="big"))
        >>> batch = Batch(pa.record_batch({"price": [90, None, 120]}))
        >>> [b.data.to_pydict() for b in operator.process_batch(batch)]
        [{'price': [120]}]
    """

    def __init__(
        self,
        predicate: Callable[[Row], Any] | Expression | pc.Expression,
        *,
        on_error: OnError = "raise",
        input_schema: pa.Schema | None = None,
    ) -> None:
        if not is_expression(predicate) and not callable(predicate):
            raise ConfigError(
                f"filter needs an expression such as col('price') > 100 or a function of a row, "
                f"got {predicate!r}."
            )
        self._predicate: Any = predicate
        self._failures = FailureHandler("filter", on_error)
        self._input = InputSchema("filter")
        self._compiled: CompiledExpression | None = None
        if input_schema is not None and is_expression(predicate):
            CompiledExpression(predicate, input_schema, "filter").require_boolean()

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        if is_expression(self._predicate):
            mask = self._by_expression(batch)
        else:
            mask = self._by_function(batch)
        kept = filter_rows(batch.data, mask)
        letters = self._failures.drain()
        if kept.num_rows == 0:
            return letters
        if kept is batch.data:
            return [batch, *letters]
        return [Batch(kept, around(batch.origin), batch.tag), *letters]

    def _by_expression(self, batch: Batch) -> pa.Array:
        new = self._input.check(batch.data.schema, self.context.uid, batch.origin)
        if new or self._compiled is None:
            where = f"filter {self.context.uid!r}"
            compiled = CompiledExpression(self._predicate, batch.data.schema, where)
            self._compiled = compiled.require_boolean()
        return self._compiled.evaluate(batch.data)

    def _by_function(self, batch: Batch) -> pa.Array:
        fn = self._predicate
        keep = []
        for index, row in enumerate(to_rows(batch.data)):
            try:
                keep.append(bool(fn(row)))
            except Exception as error:
                came = to_rows(batch.data.slice(index, 1))
                self._failures.failed(error, came, index, batch)
                keep.append(False)
        return pa.array(keep, pa.bool_())

    def counters(self) -> Mapping[str, int]:
        return self._failures.counters()
