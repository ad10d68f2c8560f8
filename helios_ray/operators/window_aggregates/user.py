"""Aggregates that a user writes: create, add, merge, result.

Why it exists: what no built-in aggregate does, a small class does. Accumulators live in the
state as Arrow values of a declared type, or as JSON text: never as pickles.

May import: errors, operators, Arrow.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from helios_ray.errors import UserFunctionError
from helios_ray.operators.rows import Row, to_rows
from helios_ray.operators.user_functions import truncated
from helios_ray.operators.window_aggregates.base import Failed, Rows, WindowAggregate
from helios_ray.operators.window_aggregates.groups import Groups


class AggregateFunction(ABC):
    """An aggregate of one's own, over rows as dicts.

    Set ``result_type`` to the Arrow type of the result. Set ``accumulator_type`` to the Arrow
    type of the accumulator, or leave it None for anything that JSON can hold (tuples come
    back as lists).

    Where ``add`` raises, the operator's ``on_error`` decides about the row. A row that is left
    out is left out of everything: no aggregate of the window counts it, whichever failed, no
    trigger and no count window does, and it opens no window. To that end the other rows of its
    batch are added once more, to fresh accumulators: ``add`` must depend on nothing but its
    arguments, and may be called more than once for a row.

    Where ``result`` raises, ``on_error`` decides about the result of that window and key.
    ``create``, ``merge`` and ``add_batch`` stand for many rows, or for none: where one of those
    raises, the job fails.

    Example:
        >>> class Product(AggregateFunction):
        ...     result_type = pa.float64()
        ...     accumulator_type = pa.float64()
        ...     def create(self): return 1.0
        ...     def add(self, accumulator, row): return accumulator * row["x"]
        ...     def merge(self, a, b): return a * b
        ...     def result(self, accumulator): return accumulator
        >>> Product().add(2.0, {"x": 3.0})
        6.0
    """

    result_type: pa.DataType
    accumulator_type: pa.DataType | None = None

    @abstractmethod
    def create(self) -> Any:
        """A fresh accumulator: what no rows at all amount to."""

    @abstractmethod
    def add(self, accumulator: Any, row: Row) -> Any:
        """The accumulator with one row more. If it raises, the row is handled by the
        operator's ``on_error``. The accumulator is thrown away then; but until the end of the
        batch other rows may see what was done to it in place, and fail on that."""

    @abstractmethod
    def merge(self, a: Any, b: Any) -> Any:
        """One accumulator for the rows of both."""

    @abstractmethod
    def result(self, accumulator: Any) -> Any:
        """What to emit."""

    def add_batch(self, accumulator: Any, rows: pa.RecordBatch) -> Any:
        """The accumulator with many rows more; override it to work on Arrow data at once.

        An override that raises fails the job: it cannot be told which row was to blame.
        """
        raise NotImplementedError


class UserAggregate(WindowAggregate):
    """Carries an :class:`AggregateFunction` out.

    Args:
        name: output column.
        function: what to call.
        where: who asks, for messages.
    """

    def __init__(self, name: str, function: AggregateFunction, where: str) -> None:
        super().__init__(name)
        self._function = function
        self._where = where
        self._json = function.accumulator_type is None
        self._vectorized = type(function).add_batch is not AggregateFunction.add_batch
        self.may_reject = not self._vectorized

    @property
    def fields(self) -> list[pa.Field]:
        kind = self._function.accumulator_type
        return [pa.field(f"{self.name}.accumulator", pa.string() if kind is None else kind)]

    @property
    def result_type(self) -> pa.DataType:
        return self._function.result_type

    def lift(self, groups: Groups, rows: Rows) -> list[pa.Array]:
        if self._vectorized:
            found = []
            data = rows.data.take(pa.array(groups.order))
            for start, count in zip(groups.starts.tolist(), groups.counts.tolist(), strict=True):
                accumulator = self._call("create")
                if count:
                    part = data.slice(start, count)
                    accumulator = self._call("add_batch", accumulator, part)
                found.append(accumulator)
            return [self._encoded(found)]
        dicts = to_rows(rows.data)
        found = [self._call("create") for _ in range(groups.size)]
        places: Iterable[tuple[int, int]] = enumerate(groups.codes.tolist())
        if rows.rejected:  # by another aggregate: a row is told of once
            places = [place for place in places if place[0] not in rows.rejected]
        for i, group in places:
            try:
                found[group] = self._function.add(found[group], dicts[i])
            except Exception as error:
                if rows.failures is None:
                    raise self._raised("add", error) from error
                original = to_rows(rows.data.slice(i, 1))
                rows.failures.failed(error, original, int(rows.numbers[i]), rows.batch)
                rows.rejected.add(i)
        return [] if rows.rejected else [self._encoded(found)]

    def merge(self, groups: Groups, columns: Sequence[pa.Array]) -> list[pa.Array]:
        accumulators = self._decoded(columns[0])
        merged: list[Any] = [None] * groups.size
        seen = [False] * groups.size
        for group, accumulator in zip(groups.codes.tolist(), accumulators, strict=True):
            if seen[group]:
                merged[group] = self._call("merge", merged[group], accumulator)
            else:
                merged[group], seen[group] = accumulator, True
        for group, there in enumerate(seen):
            if not there:
                merged[group] = self._call("create")
        return [self._encoded(merged)]

    def finish(self, columns: Sequence[pa.Array]) -> pa.Array:
        results = [self._call("result", a) for a in self._decoded(columns[0])]
        return self._array(results, self.result_type, "result")

    def finish_each(self, columns: Sequence[pa.Array], failed: Failed) -> pa.Array:
        results: list[Any] = []
        called = f"{type(self._function).__name__}.result for {self.name!r}"
        for i, accumulator in enumerate(self._decoded(columns[0])):
            try:
                results.append(self._function.result(accumulator))
            except Exception as error:
                failed(i, called, error)
                results.append(None)
        return self._array(results, self.result_type, "result")

    def _encoded(self, accumulators: list[Any]) -> pa.Array:
        if self._json:
            try:
                texts = [json.dumps(a) for a in accumulators]
            except (TypeError, ValueError) as error:
                raise UserFunctionError(
                    f"{self._where}: an accumulator of {type(self._function).__name__} for "
                    f"{self.name!r} is not JSON: {error}. Return JSON values from create, add and "
                    f"merge, or set accumulator_type to their Arrow type."
                ) from error
            return pa.array(texts, pa.string())
        return self._array(accumulators, self._function.accumulator_type, "accumulator")

    def _decoded(self, column: pa.Array) -> list[Any]:
        values = column.to_pylist()
        return [json.loads(v) for v in values] if self._json else values

    def _array(self, values: list[Any], kind: pa.DataType, what: str) -> pa.Array:
        try:
            return pa.array(values, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise UserFunctionError(
                f"{self._where}: a value of {type(self._function).__name__} for {self.name!r} is "
                f"not of its {what}_type {kind}: {error}. Return such values, or declare another "
                f"{what}_type."
            ) from error

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._function, method)(*arguments)
        except Exception as error:
            raise self._raised(method, error, arguments) from error

    def _raised(
        self, method: str, error: Exception, arguments: Sequence[Any] = ()
    ) -> UserFunctionError:
        told = f" on {', '.join(map(truncated, arguments))}" if method == "merge" else ""
        policy = "" if method == "add" else " on_error is asked about add and result only."
        return UserFunctionError(
            f"{self._where}: {type(self._function).__name__}.{method} for {self.name!r} raised "
            f"{type(error).__name__}: {error}{told}. Fix the function and resume the job.{policy}"
        )
