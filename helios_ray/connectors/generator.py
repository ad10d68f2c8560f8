"""Sources that make their rows up: a range of numbers, and a paced generator.

Why it exists: benchmarks, demonstrations and load tests need input of any size and rate.
What it promises: row ``n`` is a function of ``n`` alone, so that a replay repeats it exactly
and any parallelism gives the same rows; pace is kept on the clock that ``poll`` is given,
without drift, and what was missed is not made up for in one burst.

May import: elements, errors, connectors.base.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from helios_ray.connectors.base import (
    Exhausted,
    Json,
    NotYet,
    Poll,
    Rows,
    Source,
    Split,
    SplitReader,
)
from helios_ray.connectors.random_rows import check_schema, random_rows
from helios_ray.elements import Origin
from helios_ray.errors import ConfigError, SchemaChangedError, UserFunctionError

RowFunction: TypeAlias = Callable[[Any], "Mapping[str, Any] | pa.RecordBatch"]
"""From row numbers, an int64 numpy array, to the columns of those rows."""

_LIMIT = 1 << 63


class RangeSource(Source):
    """The integers of a range, in a column ``item`` of int64.

    Args:
        start: the number of integers if it stands alone, else the first of them.
        stop: where the range ends; not in it.
        step: from one to the next; not zero.

    Raises:
        ConfigError: an argument is not an integer, the step is zero, or a number does not fit
            64 bits.

    Example:
        >>> source = RangeSource(3)
        >>> [split] = source.discover_splits(parallelism=1)
        >>> source.open_split(split).poll(10, now=0.0).data.to_pydict()
        {'item': [0, 1, 2]}
    """

    def __init__(self, start: int, stop: int | None = None, step: int = 1) -> None:
        first, end = (0, start) if stop is None else (start, stop)
        for name, value in (("start", first), ("stop", end), ("step", step)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"RangeSource.{name} must be an integer, got {value!r}.")
            if not -_LIMIT <= value < _LIMIT:
                raise ConfigError(f"RangeSource.{name} must fit 64 bits, got {value}.")
        if step == 0:
            raise ConfigError("RangeSource.step must not be 0. Use 1, or -1 to count down.")
        self._range = range(first, end, step)

    @property
    def bounded(self) -> bool:
        return True

    def schema(self) -> pa.Schema:
        return pa.schema([("item", pa.int64())])

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        rows = len(self._range)
        cuts = [rows * i // parallelism for i in range(parallelism + 1)]
        return [
            Split(split_id=f"range[{begin}:{end}]", spec={"begin": begin, "end": end})
            for begin, end in itertools.pairwise(cuts)
            if begin < end
        ]

    def open_split(self, split: Split) -> SplitReader:
        return _RangeReader(self._range, split)

    def __repr__(self) -> str:
        return f"RangeSource({self._range.start}, {self._range.stop}, {self._range.step})"


class _RangeReader(SplitReader):
    def __init__(self, whole: range, split: Split) -> None:
        self._range = whole
        self._next = int(split.spec["begin"])
        self._end = int(split.spec["end"])

    def poll(self, max_rows: int, now: float) -> Poll:
        count = min(max_rows, self._end - self._next)
        if count <= 0:
            return Exhausted()
        # 64-bit sums wrap around, so this is right even where a product alone does not fit.
        first = self._range[self._next]
        values = first + np.arange(count, dtype=np.int64) * self._range.step
        origin = Origin("range", f"index {self._next}")
        self._next += count
        return Rows(pa.RecordBatch.from_arrays([pa.array(values)], names=["item"]), origin)

    def position(self) -> Json:
        return {"index": self._next}

    def seek(self, position: Json) -> None:
        self._next = int(position["index"])


class DataGenSource(Source):
    """Rows made up at a steady rate, for ever or until there are ``count`` of them.

    Args:
        rows: a schema, for random rows of its columns; or a function that gets an int64 numpy
            array of row numbers and returns those rows, as a dict of columns or a RecordBatch.
            It must depend on nothing but the row number: it is called again after a failure.
        rows_per_second: of the whole source, all subtasks together; None: as fast as they are
            taken.
        count: number of rows; None: without end.
        schema: what the function returns; found by calling it for row 0 if None.
        seed: of the random rows.
        catch_up: after a stall, at most the rows of this much time are due at once.
        batch_interval: rows that fall due within this time are given together.

    Raises:
        ConfigError: an argument is wrong.
        UserFunctionError: the function raises for row 0.

    Example:
        >>> source = DataGenSource(lambda n: {"n": n, "even": n % 2 == 0}, count=4)
        >>> source.schema()
        n: int64
        even: bool
        >>> [split] = source.discover_splits(parallelism=1)
        >>> source.open_split(split).poll(10, now=0.0).data.to_pydict()
        {'n': [0, 1, 2, 3], 'even': [True, False, True, False]}
    """

    # Splits never end before the source does: all that a subtask has must be read in turn.
    concurrent_splits = 1 << 30

    def __init__(
        self,
        rows: RowFunction | pa.Schema,
        rows_per_second: float | None = None,
        count: int | None = None,
        *,
        schema: pa.Schema | None = None,
        seed: int = 0,
        catch_up: timedelta = timedelta(seconds=1),
        batch_interval: timedelta = timedelta(milliseconds=2),
    ) -> None:
        if rows_per_second is not None and not 0 < rows_per_second < math.inf:
            raise ConfigError(
                f"DataGenSource.rows_per_second must be above 0, got {rows_per_second}. Use None "
                f"for as fast as possible."
            )
        if count is not None and count < 0:
            raise ConfigError(
                f"DataGenSource.count must not be negative, got {count}. Use None for no end."
            )
        for name, span in (("catch_up", catch_up), ("batch_interval", batch_interval)):
            if span < timedelta(0):
                raise ConfigError(f"DataGenSource.{name} must not be negative, got {span}.")
        self._rate = rows_per_second
        self._count = count
        self._catch_up = catch_up.total_seconds()
        self._batch_interval = batch_interval.total_seconds()
        if isinstance(rows, pa.Schema):
            check_schema(rows)
            self._function: RowFunction = random_rows(rows, seed)
            self._schema = rows
        elif callable(rows):
            self._function = rows
            self._schema = schema or _call(rows, np.zeros(1, np.int64), None).schema
        else:
            raise ConfigError(
                f"DataGenSource needs a function of row numbers or a pa.Schema, got {rows!r}."
            )

    @property
    def bounded(self) -> bool:
        return self._count is not None

    def schema(self) -> pa.Schema:
        return self._schema

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        return [
            Split(
                split_id=f"rows%{parallelism}={residue}",
                spec={"residue": residue, "modulus": parallelism},
            )
            for residue in range(parallelism)
        ]

    def open_split(self, split: Split) -> SplitReader:
        return _DataGenReader(
            self._function,
            self._schema,
            _Pace(self._rate, split, self._catch_up),
            split,
            self._count,
            self._batch_interval,
        )

    def __repr__(self) -> str:
        return f"DataGenSource(rows_per_second={self._rate}, count={self._count})"


class _Pace:
    """When each row of a split is due, on the clock of ``poll``.

    Rows are counted from the first one after opening or seeking. The time of a row is computed
    from its number and one fixed start, never from the time of the row before: errors do not
    add up.
    """

    def __init__(self, rate: float | None, split: Split, catch_up: float) -> None:
        self._rate = rate
        self._residue = int(split.spec["residue"])
        self._modulus = int(split.spec["modulus"])
        self._catch_up = catch_up
        self._start: float | None = None
        self._first = 0

    def restart(self) -> None:
        """Forget the past: what was missed is not owed."""
        self._start = None

    def due_at(self, k: int) -> float:
        """When the split's ``k``-th row is due. Needs :meth:`due` to have been called."""
        assert self._start is not None
        assert self._rate is not None
        # Residues shift the splits against each other, so that together they run evenly.
        return self._start + (self._residue + (k - self._first) * self._modulus) / self._rate

    def due(self, k: int, now: float, most: int) -> int:
        """How many rows from the ``k``-th on are due, up to ``most``."""
        if self._rate is None:
            return most
        if self._start is None:
            self._start, self._first = now, k
        late = now - self.due_at(k) - self._catch_up
        if late > 0:
            self._start += late
        estimate = int((now - self.due_at(k)) * self._rate / self._modulus) + 1
        count = max(0, min(most, estimate))
        # Rounding may be off by one; `due_at` is what counts, so that a caller who comes back
        # at the time it gave finds a row.
        while count < most and self.due_at(k + count) <= now:
            count += 1
        while count > 0 and self.due_at(k + count - 1) > now:
            count -= 1
        return count


class _DataGenReader(SplitReader):
    def __init__(
        self,
        function: RowFunction,
        schema: pa.Schema,
        pace: _Pace,
        split: Split,
        count: int | None,
        batch_interval: float,
    ) -> None:
        self._function = function
        self._schema = schema
        self._pace = pace
        self._residue = int(split.spec["residue"])
        self._modulus = int(split.spec["modulus"])
        rows = None if count is None else max(0, -(-(count - self._residue) // self._modulus))
        self._rows = rows
        self._batch_interval = batch_interval
        self._next = 0
        self._not_before = -math.inf

    def poll(self, max_rows: int, now: float) -> Poll:
        most = max_rows if self._rows is None else min(max_rows, self._rows - self._next)
        if most <= 0:
            return Exhausted()
        if now < self._not_before:
            return NotYet(self._not_before)
        count = self._pace.due(self._next, now, most)
        if count == 0:
            return NotYet(self._pace.due_at(self._next))
        first = self._next * self._modulus + self._residue
        numbers = first + np.arange(count, dtype=np.int64) * self._modulus
        rows = _call(self._function, numbers, self._schema)
        self._next += count
        if count < max_rows:
            # Everything due has been given: let the next rows gather.
            self._not_before = now + self._batch_interval
        return Rows(rows, Origin("generator", f"row {first}"))

    def position(self) -> Json:
        return {"row": self._next}

    def seek(self, position: Json) -> None:
        self._next = int(position["row"])
        self._not_before = -math.inf
        self._pace.restart()


def _call(function: RowFunction, numbers: Any, schema: pa.Schema | None) -> pa.RecordBatch:
    """The rows of these numbers, checked.

    Raises:
        UserFunctionError: the function raised, or did not return one row for each number.
        SchemaChangedError: its columns are not those of ``schema``.
    """
    where = f"DataGenSource: the function of rows {numbers[0]} to {numbers[-1]}"
    try:
        answer = function(numbers)
        batch = (
            answer
            if isinstance(answer, pa.RecordBatch)
            else pa.RecordBatch.from_pydict(dict(answer))
        )
    except Exception as error:
        raise UserFunctionError(
            f"{where} failed: {type(error).__name__}: {error}. It gets an int64 numpy array of row "
            f"numbers and must return a dict of columns or a RecordBatch."
        ) from error
    if batch.num_rows != len(numbers):
        raise UserFunctionError(
            f"{where} returned {batch.num_rows} rows, expected {len(numbers)}: one for each number."
        )
    if schema is None or batch.schema.equals(schema):
        return batch
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0 or not batch.schema.field(at).type.equals(field.type):
            got = "no such column" if at < 0 else batch.schema.field(at).type
            raise SchemaChangedError(
                f"{where}: expected column {field.name!r} to be {field.type}, got {got}. Return "
                f"Arrow or numpy arrays of a fixed type, or pass schema=."
            )
    if batch.num_columns != len(schema):
        raise SchemaChangedError(
            f"{where}: expected the columns {schema.names}, got {batch.schema.names}. Always "
            f"return the same columns."
        )
    columns = [batch.column(name) for name in schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
