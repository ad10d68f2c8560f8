"""What a window operator reads: which columns, which aggregates, and rows with an event time.

Why it exists: the operator that keeps windows and the half that runs before a shuffle read
the same rows in the same way, and refuse the same ones.

A row that a user's aggregate fails on is to be as one that never came, to every aggregate, to
triggers, to the numbers of count windows and to what is late for a session. So a batch is lifted
before any state is touched, and if that finds such rows it is begun again without them. Where no
row fails this costs nothing.

May import: errors, elements, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, DataError, UserFunctionError
from helios_ray.operators.base import OperatorContext
from helios_ray.operators.keyed import KeyedOperator
from helios_ray.operators.user_functions import FailureHandler, position, truncated
from helios_ray.operators.window_aggregates.base import Rows, WindowAggregate
from helios_ray.operators.window_aggregates.groups import Groups, Ints, Mask
from helios_ray.operators.window_aggregates.specs import (
    check_window_aggregations,
    make_window_aggregate,
    needed_columns,
)
from helios_ray.operators.windows.keys import KeySpace
from helios_ray.operators.windows.results import (
    WINDOW_END,
    WINDOW_START,
    AggregateResults,
    RowsAggregate,
)
from helios_ray.operators.windows.settings import WindowSettings
from helios_ray.operators.windows.slices import LATEST
from helios_ray.state.hashing import logical_type


class RowsRejected(UserFunctionError):
    """Rows are to be left out, and the rest of their batch to be taken up from the beginning.

    Args:
        numbers: their row numbers in the batch.
    """

    def __init__(self, numbers: Ints) -> None:
        super().__init__(f"a function raised on rows {numbers.tolist()} of the batch")
        self.numbers = numbers


class WindowReader(KeyedOperator):
    """Base of what reads the rows of windows.

    Args:
        settings: everything that was asked for.

    Raises:
        ConfigError: a name that is taken, no aggregations.
        MissingColumnError: a column is not in ``settings.input_schema``.
        PlanError: a type that cannot be a key, cannot be aggregated so, or is no event time.
    """

    what = "window"
    space: KeySpace

    def __init__(self, settings: WindowSettings) -> None:
        self.settings = settings
        self.keys = settings.keys
        self.aggregates: list[WindowAggregate] = []
        self._failures = FailureHandler("window", settings.on_error)
        declared = settings.process.output_schema if settings.process is not None else None
        self._declared = declared
        self._reads: list[str] = []
        if settings.process is None:
            reserved = (WINDOW_START, WINDOW_END)
            check_window_aggregations(self.keys, settings.aggregations, "window", reserved)
        elif WINDOW_START in self.keys or WINDOW_END in self.keys:
            raise ConfigError(f"window: {WINDOW_START} and {WINDOW_END} cannot be key columns.")
        if settings.input_schema is not None:
            self.output_schema(settings.input_schema)

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid

    def counters(self) -> Mapping[str, int]:
        return self._failures.counters()

    # ------------------------------------------------------------------ columns and types

    def output_schema(self, input_schema: pa.Schema, uid: str = "operator") -> pa.Schema | None:
        """Key columns, window_start, window_end, results; raises as the constructor does.

        None for a ProcessWindowFunction that does not declare its columns.
        """
        where = f"{self.what} {uid!r}"
        fields = self._head_fields(input_schema, where)
        if self.settings.process is None:
            return AggregateResults(fields, self._make(input_schema, where)).schema
        if self._declared is None:
            return None
        return pa.schema([*fields, *self._declared])

    def _head_fields(self, schema: pa.Schema, where: str) -> list[pa.Field]:
        keys = KeySpace(self.keys, schema, 1).schema if self.keys else pa.schema([])
        kind = self.window_type(self._time_type(schema, where))
        return [*keys, pa.field(WINDOW_START, kind), pa.field(WINDOW_END, kind)]

    def window_type(self, time_type: pa.DataType | None) -> pa.DataType:
        """The type of window_start and window_end."""
        zone = time_type.tz if time_type is not None and pa.types.is_timestamp(time_type) else None
        return pa.timestamp("us", zone)

    def _time_type(self, schema: pa.Schema, where: str) -> pa.DataType | None:
        time = self.settings.time
        return None if time is None else time.check(schema, where)

    def _make(self, schema: pa.Schema, where: str) -> list[WindowAggregate]:
        if self.settings.process is not None:
            plain = [pa.field(f.name, logical_type(f.type)) for f in schema]
            return [RowsAggregate(pa.schema(plain))]
        return [
            make_window_aggregate(name, aggregation, schema, where)
            for name, aggregation in self.settings.aggregations.items()
        ]

    def needed(self, schema: pa.Schema) -> Sequence[str]:
        self.output_schema(schema, self.context.uid)
        if self.settings.process is not None:
            return list(schema.names)
        time = self.settings.time
        names = [*self.keys, *([] if time is None else [time.column])]
        for aggregation in self.settings.aggregations.values():
            names += needed_columns(aggregation, schema)
        return list(dict.fromkeys(names))

    def _begin(self, schema: pa.Schema) -> None:
        self.space = KeySpace(self.keys, schema, self.context.max_parallelism)
        self._reads = schema.names
        self.aggregates = self._make(schema, self.where)
        self.build(schema)
        self.input_schema = schema

    # ------------------------------------------------------------------------------- rows

    def _timed(self, batch: Batch) -> Rows:
        """The rows that have an event time."""
        data = batch.data.select(self._reads)
        numbers = np.arange(data.num_rows)
        time = self.settings.time
        if time is None:
            return Rows(data, np.zeros(data.num_rows, np.int64), batch, numbers, self._failures)
        column = time.read(batch.data)
        good = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
        times = pc.fill_null(column, 0).to_numpy() if column.null_count else column.to_numpy()
        if int(times.min()) < -LATEST or int(times.max()) > LATEST:
            near = (times >= -LATEST) & (times <= LATEST)
            good = near if good is None else good & near
        rows = Rows(data, times, batch, numbers, self._failures)
        if good is None or good.all():
            return rows
        for i in np.flatnonzero(~good).tolist():
            self._untimed(batch, i, time.column)
        return chosen(rows, good)

    def _untimed(self, batch: Batch, index: int, name: str) -> None:
        row = batch.data.slice(index, 1).to_pylist()
        value = row[0][name]
        problem = f"event time column {name!r} is {'null' if value is None else 'out of range'}"
        error = DataError(problem)
        if self._failures.on_error != "raise":
            self._failures.failed(error, row, index, batch)
            return
        place = position(batch, index)
        source = f", read from {place}" if place else ""
        raise DataError(
            f"{self.where}: {problem} in row {index} of its batch {truncated(row[0])}{source}: it "
            f"belongs to no window. Filter such rows out before the window, or pass "
            f"on_error='skip' or on_error='dead_letter' to go on without them."
        )

    def without_rejected(self, rows: Rows, take_up: Callable[[Rows], list[Batch]]) -> list[Batch]:
        """What ``take_up`` makes of those rows that no user's function fails on.

        Args:
            rows: to take up.
            take_up: calls ``lift`` before it changes any state. It is called until no row is
                rejected (a function may fail on other rows once some are left out), and not
                without rows.
        """
        while len(rows.times):
            try:
                return take_up(rows)
            except RowsRejected as rejected:
                rows = chosen(rows, ~np.isin(rows.numbers, rejected.numbers))
        return []

    def lift(self, groups: Groups, rows: Rows) -> list[pa.Array]:
        """Partial columns of all aggregates.

        Raises:
            RowsRejected: some rows are to be left out; for :meth:`without_rejected`.
        """
        # What works on whole columns shall not fail on a row that is left out anyway.
        lifted = {a.name: a.lift(groups, rows) for a in self.aggregates if a.may_reject}
        if rows.rejected:
            raise RowsRejected(rows.numbers[sorted(rows.rejected)])
        return [
            column
            for a in self.aggregates
            for column in (lifted[a.name] if a.may_reject else a.lift(groups, rows))
        ]


def chosen(rows: Rows, mask: Mask) -> Rows:
    data: Any = rows.data.filter(pa.array(mask))
    return Rows(data, rows.times[mask], rows.batch, rows.numbers[mask], rows.failures)
