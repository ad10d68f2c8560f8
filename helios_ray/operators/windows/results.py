"""From fired windows to the rows that go downstream.

Why it exists: every kind of window ends in the same rows: the key, ``window_start``,
``window_end``, and the results of the aggregates, or of a user's function over the rows of
the window.

May import: elements, errors, operators, state, Arrow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import UserFunctionError
from helios_ray.operators.rows import OutputSchema, Row
from helios_ray.operators.user_functions import FailureHandler, truncated
from helios_ray.operators.window_aggregates.base import Rows, WindowAggregate
from helios_ray.operators.window_aggregates.groups import Groups, Ints
from helios_ray.operators.window_aggregates.lists import ListAggregate, list_lengths
from helios_ray.state.hashing import decoded

WINDOW_START = "window_start"
WINDOW_END = "window_end"
_NOWHERE = Batch(pa.RecordBatch.from_arrays([], names=[]))


def returned_rows(result: Any, head: Sequence[str]) -> list[Mapping[str, Any]]:
    """What a function of a window returned, as rows.

    Args:
        result: None, a row, an iterable of rows, or an Arrow table.
        head: columns that are added to each row.

    Raises:
        TypeError: something in it is no row.
        ValueError: a row has a column of ``head``.
    """
    if result is None:
        return []
    found = [result] if isinstance(result, Mapping) else result
    found = found.to_pylist() if isinstance(found, pa.Table) else list(found)
    for row in found:
        if not isinstance(row, Mapping):
            raise TypeError(f"expected rows as dicts or a pyarrow.Table, got {row!r:.200}")
        clash = [name for name in head if name in row]
        if clash:
            raise ValueError(f"column {clash[0]!r} is added to each result by itself; leave it out")
    return found


class Window(NamedTuple):
    """A window, as a user's function sees it.

    Args:
        start: its first instant; a row number for count windows, None for a global one.
        end: the first instant (row number) after it.
    """

    start: datetime | int | None
    end: datetime | int | None


class ProcessWindowFunction(ABC):
    """A function of all rows of a window of a key. The rows are kept until it is called.

    Example:
        >>> class Spread(ProcessWindowFunction):
        ...     def process(self, key, window, rows):
        ...         prices = rows["price"].to_pylist()
        ...         yield {"spread": max(prices) - min(prices)}
        >>> list(Spread().process({}, Window(None, None), pa.table({"price": [3, 7, 4]})))
        [{'spread': 4}]
    """

    output_schema: pa.Schema | None = None
    """The columns it returns, where they shall be known before it has run."""

    @abstractmethod
    def process(
        self, key: Row, window: Window, rows: pa.Table
    ) -> Iterable[Row] | Row | pa.Table | None:
        """What the window amounts to.

        Args:
            key: the key columns' values; empty for a stream without keys.
            window: which window.
            rows: its rows, by event time and then order of arrival, all columns.

        Returns:
            A row (a dict), any iterable of rows, a table, or None for nothing; without the key
            and window columns: those come first in each result by themselves.
        """


class RowsAggregate(ListAggregate):
    """The rows of a window themselves, in time order: the state of a ProcessWindowFunction."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__("row")
        self.schema = schema

    @property
    def element_fields(self) -> list[pa.Field]:
        return [*self.schema, pa.field("", pa.int64())]

    @property
    def result_type(self) -> pa.DataType:
        return pa.null()

    def elements(self, groups: Groups, rows: Rows) -> tuple[Groups, list[pa.Array]]:
        columns = [decoded(rows.data.column(name)) for name in self.schema.names]
        return groups, [*columns, pa.array(rows.times)]

    def keep(self, groups: Groups, columns: list[pa.Array]) -> Ints:
        return groups.order_by(columns[-1].to_numpy())

    def finish(self, columns: Sequence[pa.Array]) -> pa.Array:
        return pa.nulls(len(columns[0]))


class Heads:
    """Key and window columns of the windows that speak together, and which of them failed.

    Args:
        fields: key and window columns, the last two of which are the window's.
        columns: their values.
        failures: the operator's policy.
    """

    def __init__(
        self, fields: Sequence[pa.Field], columns: list[pa.Array], failures: FailureHandler
    ) -> None:
        self.names = [field.name for field in fields]
        self.columns = columns
        self.failed: set[int] = set()
        self._failures = failures

    def row(self, i: int) -> Row:
        """Key and window columns of one."""
        return {n: c[i].as_py() for n, c in zip(self.names, self.columns, strict=True)}

    def fail(self, i: int, called: str, error: Exception, rows: int | None = None) -> None:
        """A user's function raised on a window: it gives no result.

        Under ``skip`` and ``dead_letter`` that counts as one row skipped, whatever the window
        holds. The dead letter's row is ``{"key": {...}, "window_start": ..., "window_end": ...,
        "rows": ...}``; the number of rows is null where it is not known.

        Args:
            i: number of the window.
            called: class and method.
            error: what was raised.
            rows: how many rows the window holds.

        Raises:
            UserFunctionError: under the policy ``raise``.
        """
        own = self.row(i)
        key = {name: own[name] for name in self.names[:-2]}
        if self._failures.on_error == "raise":
            raise UserFunctionError(
                f"{self._failures.what} {self._failures.uid!r}: {called} raised "
                f"{type(error).__name__}: {error} on key {truncated(key)} in "
                f"{Window(own[WINDOW_START], own[WINDOW_END])}. Fix the function and resume the "
                f"job, or pass on_error='skip' or on_error='dead_letter' to go on without the "
                f"results of such windows."
            ) from error
        if i not in self.failed:
            bounds = {name: own[name] for name in (WINDOW_START, WINDOW_END)}
            letter = {"key": key, **bounds, "rows": rows}
            self._failures.failed(error, [letter], 0, _NOWHERE)
        self.failed.add(i)


class AggregateResults:
    """Rows of results of aggregates.

    Args:
        fields: key and window columns.
        aggregates: in the order of their columns.
    """

    def __init__(self, fields: Sequence[pa.Field], aggregates: Sequence[WindowAggregate]) -> None:
        self._aggregates = aggregates
        self.fields = list(fields)
        results = [pa.field(a.name, a.result_type) for a in aggregates]
        self.schema = pa.schema([*fields, *results])

    def rows(self, heads: Heads, columns: Sequence[pa.Array]) -> pa.RecordBatch:
        """One row per group that did not fail.

        Args:
            heads: key and window columns.
            columns: partial columns of all aggregates, one after another.
        """
        arrays, at = list(heads.columns), 0
        for aggregate in self._aggregates:
            width = len(aggregate.fields)
            arrays.append(aggregate.finish_each(columns[at : at + width], heads.fail))
            at += width
        made = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        if not heads.failed:
            return made
        return made.filter(pa.array([i not in heads.failed for i in range(made.num_rows)]))


class ProcessResults:
    """Rows that a user's function makes of the rows of each window.

    Args:
        fields: key and window columns, the last two of which are the window's.
        function: what to call.
        kept: the aggregate that holds the rows.
        output: holds the schema of the results.
    """

    def __init__(
        self,
        fields: Sequence[pa.Field],
        function: ProcessWindowFunction,
        kept: RowsAggregate,
        output: OutputSchema,
    ) -> None:
        self.fields = list(fields)
        self._function = function
        self._kept = kept
        self._output = output

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of the results, once known."""
        return self._output.schema

    def rows(self, heads: Heads, columns: Sequence[pa.Array]) -> pa.RecordBatch | None:
        """The rows of all groups, or None where the function returned none."""
        names = heads.names
        lengths = list_lengths(columns[0]).tolist()
        flat = [column.flatten() for column in columns[:-1]]
        table = pa.Table.from_arrays(flat, schema=self._kept.schema)
        called = f"{type(self._function).__name__}.process"
        values = [column.to_pylist() for column in heads.columns]
        made: list[Row] = []
        start = 0
        for i, length in enumerate(lengths):
            own = {name: column[i] for name, column in zip(names, values, strict=True)}
            key = {name: own[name] for name in names[:-2]}
            window = Window(own[WINDOW_START], own[WINDOW_END])
            try:
                rows = self._call(key, window, table.slice(start, length))
            except Exception as error:
                heads.fail(i, called, error, length)
            else:
                made += [{**own, **row} for row in rows]
            start += length
        if not made:
            return None
        return self._output.from_rows(self._typed(made, heads.columns, names))

    def _call(self, key: Row, window: Window, rows: pa.Table) -> list[Mapping[str, Any]]:
        result = self._function.process(key, window, rows)
        return returned_rows(result, [f.name for f in self.fields])

    def _typed(self, made: list[Row], head: list[pa.Array], names: list[str]) -> list[Row]:
        """Fix the types of key and window columns before the first rows decide on them."""
        if self._output.schema is None:
            own = [pa.field(n, a.type) for n, a in zip(names, head, strict=True)]
            free = [{k: v for k, v in row.items() if k not in names} for row in made]
            guess = OutputSchema("process_window")
            rest = list(guess.from_rows(free).schema) if any(free) else []
            self._output.schema = pa.schema([*own, *rest])
        return made
