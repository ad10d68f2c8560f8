"""What every window operator shares: keys, event times, late rows, runs, results, state.

Why it exists: a kind of window says which partial rows belong together and when they are
due; all else is here. Rows of a batch are lifted to partial rows, which go into a
:class:`~helios_ray.operators.windows.runs.RunStore`; what is due comes out, is merged and
finished.

    input_schema   UNION   the types of the columns the operator reads
    watermark      KEYED   how far event time has come, by key group
    windows        KEYED   key_group, key.<name>, <unit columns>, value.<partial columns>

May import: errors, elements, operators, watermarks, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, DataError, PlanError
from helios_ray.operators.base import OperatorContext, OperatorSnapshot, StateTable
from helios_ray.operators.keyed import KeyedOperator
from helios_ray.operators.rows import OutputSchema
from helios_ray.operators.user_functions import FailureHandler, around, position, truncated
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
    ProcessResults,
    RowsAggregate,
)
from helios_ray.operators.windows.runs import RunStore
from helios_ray.operators.windows.settings import WindowSettings
from helios_ray.operators.windows.slices import LATEST
from helios_ray.operators.windows.stored import WindowState
from helios_ray.operators.windows.timing import EventClock
from helios_ray.state.hashing import logical_type

LATE = "late"
"""Tag of the side output that carries rows beyond the allowed lateness."""

LATE_ROWS = "operator.late_rows"
_EMITTED_ROWS = 65_536


class WindowedOperator(KeyedOperator):
    """Base of the window operators.

    Args:
        settings: everything that was asked for.

    Raises:
        ConfigError: a name that is taken, no aggregations.
        MissingColumnError: a column is not in ``settings.input_schema``.
        PlanError: a type that cannot be a key, cannot be aggregated so, or is no event time.
    """

    what = "window"
    table_name = "windows"
    unit_fields: tuple[str, ...] = ("slice",)
    """Names of a run's units and of its further number columns, in the state."""
    space: KeySpace
    store: RunStore

    def __init__(self, settings: WindowSettings) -> None:
        self.settings = settings
        self.keys = settings.keys
        self.clock = EventClock()
        self.late_rows = 0
        self._failures = FailureHandler("window", settings.on_error)
        declared = settings.process.output_schema if settings.process is not None else None
        self._declared = declared
        self._output = OutputSchema("process_window")
        self.aggregates: list[WindowAggregate] = []
        self._results: AggregateResults | ProcessResults | None = None
        self._reads: list[str] = []
        if settings.process is None:
            reserved = (WINDOW_START, WINDOW_END)
            check_window_aggregations(self.keys, settings.aggregations, "window", reserved)
        elif WINDOW_START in self.keys or WINDOW_END in self.keys:
            raise ConfigError(f"window: {WINDOW_START} and {WINDOW_END} cannot be key columns.")
        if settings.input_schema is not None:
            self.output_schema(settings.input_schema)

    # ------------------------------------------------------------------ columns and types

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid
        self._output.open(context)
        if not self.keys and context.parallelism != 1:
            raise PlanError(
                f"{self.where}: a window over a stream without keys is one task, got parallelism="
                f"{context.parallelism}. Set parallelism to 1, or use key_by."
            )

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

    def build(self, schema: pa.Schema) -> None:
        self.aggregates = self._make(schema, self.where)
        fields = self._head_fields(schema, self.where)
        process = self.settings.process
        if process is None:
            self._results = AggregateResults(fields, self.aggregates)
        else:
            if self._declared is not None:
                self._output = OutputSchema("process_window", pa.schema([*fields, *self._declared]))
                self._output.open(self.context)
            kept = self.aggregates[0]
            assert isinstance(kept, RowsAggregate)
            self._results = ProcessResults(fields, process, kept, self.where, self._output)
        self._reads = schema.names
        self.store = self.make_store()

    def make_store(self) -> RunStore:
        """An empty store of runs of this kind of window."""
        raise NotImplementedError

    def _begin(self, schema: pa.Schema) -> None:
        self.space = KeySpace(self.keys, schema, self.context.max_parallelism)
        self.build(schema)
        self.input_schema = schema

    # ------------------------------------------------------------------------------- rows

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        self.prepare(batch.data.schema, batch.origin)
        if batch.data.num_rows == 0:
            return []
        rows = self._timed(batch)
        out: list[Batch] = []
        if rows.data.num_rows:
            slots = self.space.slots(rows.data)
            late = self.late(rows.times, slots)
            if late is not None and late.any():
                out.append(self._side(batch, rows.numbers[late]))
                rows, slots = _chosen(rows, ~late), slots[~late]
        if rows.data.num_rows:
            out += self.fold(rows, slots)
            self._forget_keys()
        return out + self._failures.drain()

    def late(self, times: Ints, slots: Ints) -> Mask | None:
        """Which rows are beyond the allowed lateness; None for none."""
        return None

    def fold(self, rows: Rows, slots: Ints) -> list[Batch]:
        """Take up rows that are in time; return what they make due."""
        raise NotImplementedError

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
        return _chosen(rows, good)

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

    def _side(self, batch: Batch, numbers: Ints) -> Batch:
        self.late_rows += len(numbers)
        data = batch.data.take(pa.array(numbers))
        return Batch(data, around(batch.origin), LATE)

    # ---------------------------------------------------------------------- partial rows

    def lift(self, groups: Groups, rows: Rows) -> list[pa.Array]:
        """Partial columns of all aggregates."""
        return [column for a in self.aggregates for column in a.lift(groups, rows)]

    def merge_columns(self, groups: Groups, columns: Sequence[pa.Array]) -> list[pa.Array]:
        """Partial columns of all aggregates, one row per group."""
        merged, at = [], 0
        for aggregate in self.aggregates:
            width = len(aggregate.fields)
            merged += aggregate.merge(groups, columns[at : at + width])
            at += width
        return merged

    def emit(
        self, slots: Ints, bounds: tuple[Ints, Ints] | None, columns: Sequence[pa.Array]
    ) -> list[Batch]:
        """The results of windows.

        Args:
            slots: their keys.
            bounds: their starts and ends, or None for windows without.
            columns: their partial columns.
        """
        if len(slots) == 0:
            return []
        assert self._results is not None
        assert self.input_schema is not None
        head = self.space.take(slots)
        kind = self.window_type(self._time_type(self.input_schema, self.where))
        if bounds is None:
            head += [pa.nulls(len(slots), kind), pa.nulls(len(slots), kind)]
        else:
            head += [pa.array(bound).cast(kind) for bound in bounds]
        made = self._results.rows(head, columns)
        if made is None:
            return []
        return [
            Batch(made.slice(start, _EMITTED_ROWS))
            for start in range(0, made.num_rows, _EMITTED_ROWS)
        ]

    def _forget_keys(self) -> None:
        if self.space.worth_forgetting(self.live_rows()):
            self.remap(self.space.forget(self.used_slots()))

    def live_rows(self) -> int:
        """At least as many as there are keys in use."""
        return self.store.rows

    def used_slots(self) -> Ints:
        """The slots in use."""
        return self.store.used_slots()

    def remap(self, mapping: Ints) -> None:
        """Slots have new numbers."""
        self.store.remap(mapping)

    # ------------------------------------------------------------------------------ state

    def counters(self) -> Mapping[str, int]:
        return {**self._failures.counters(), LATE_ROWS: self.late_rows}

    def snapshot(self) -> OperatorSnapshot:
        tables: dict[str, StateTable] = dict(self.clock.snapshot(self.context))
        if self.input_schema is not None:
            tables.update(self.state_format().snapshot(self.store))
            if self.settings.process is not None and self._declared is None:
                tables.update(self._output.snapshot())
        return tables

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self.clock.restore(state, self.context)
        schema = self.restored_schema(state)
        if schema is None:
            return
        self._check_same_columns(schema)
        self._begin(schema)
        self._output.restore(state)
        run = self.state_format().restore(state)
        if run is not None:
            self.store.add(run)

    def restored_schema(self, state: Mapping[str, StateTable]) -> pa.Schema | None:
        """The input columns that state was made of."""
        return WindowState.schema_of(state, self.context, self.where)

    def state_format(self) -> WindowState:
        """How runs look in a checkpoint."""
        fields: list[pa.Field] = [f for a in self.aggregates for f in a.fields]
        assert self.input_schema is not None
        return WindowState(
            name=self.table_name,
            input_schema=self.input_schema,
            space=self.space,
            unit_fields=self.unit_fields,
            value_fields=fields,
            context=self.context,
            where=self.where,
        )


def _chosen(rows: Rows, mask: Mask) -> Rows:
    data: Any = rows.data.filter(pa.array(mask))
    return Rows(data, rows.times[mask], rows.batch, rows.numbers[mask], rows.failures)
