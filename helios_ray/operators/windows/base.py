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

import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import PlanError
from helios_ray.operators.base import OperatorContext, OperatorSnapshot, StateTable
from helios_ray.operators.rows import OutputSchema
from helios_ray.operators.user_functions import around
from helios_ray.operators.window_aggregates.base import Rows
from helios_ray.operators.window_aggregates.groups import Groups, Ints, Mask
from helios_ray.operators.windows.reading import WindowReader, chosen
from helios_ray.operators.windows.results import (
    AggregateResults,
    Heads,
    ProcessResults,
    RowsAggregate,
)
from helios_ray.operators.windows.runs import RunStore
from helios_ray.operators.windows.settings import WindowSettings
from helios_ray.operators.windows.stored import WindowState
from helios_ray.operators.windows.timing import EventClock

LATE = "late"
"""Tag of the side output that carries rows beyond the allowed lateness."""

LATE_ROWS = "operator.late_rows"
_EMITTED_ROWS = 65_536


class WindowedOperator(WindowReader):
    """Base of the window operators.

    Args:
        settings: everything that was asked for.

    Raises:
        ConfigError, MissingColumnError, PlanError: as :class:`~.reading.WindowReader` does.
    """

    table_name = "windows"
    unit_fields: tuple[str, ...] = ("slice",)
    """Names of a run's units and of its further number columns, in the state."""
    store: RunStore

    def __init__(self, settings: WindowSettings) -> None:
        self.clock = EventClock()
        self.late_rows = 0
        self._output = OutputSchema("process_window")
        self._results: AggregateResults | ProcessResults | None = None
        super().__init__(settings)

    # ------------------------------------------------------------------ columns and types

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._output.open(context)
        if not self.keys and context.parallelism != 1:
            raise PlanError(
                f"{self.where}: a window over a stream without keys is one task, got parallelism="
                f"{context.parallelism}. Set parallelism to 1, or use key_by."
            )

    def build(self, schema: pa.Schema) -> None:
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
            self._results = ProcessResults(fields, process, kept, self._output)
        self.store = self.make_store()

    def make_store(self) -> RunStore:
        """An empty store of runs of this kind of window."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------- rows

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        self.prepare(batch.data.schema, batch.origin)
        if batch.data.num_rows == 0:
            return []
        out = self.without_rejected(self._timed(batch), self._take_up_rows)
        self._forget_keys()
        return out + self._failures.drain()

    def _take_up_rows(self, rows: Rows) -> list[Batch]:
        slots = self.space.slots(rows.data)
        late = self.late(rows.times, slots)
        if late is None or not late.any():
            return self.fold(rows, slots)
        in_time = ~late
        out = self.fold(chosen(rows, in_time), slots[in_time]) if in_time.any() else []
        # Only now: which rows are late may depend on which are left out.
        return [self._side(rows.batch, rows.numbers[late]), *out]

    def late(self, times: Ints, slots: Ints) -> Mask | None:
        """Which rows are beyond the allowed lateness; None for none."""
        return None

    def fold(self, rows: Rows, slots: Ints) -> list[Batch]:
        """Take up rows that are in time; return what they make due.

        It lifts them before it changes any state: if rows are rejected it is called again with
        those that are left.
        """
        raise NotImplementedError

    def _side(self, batch: Batch, numbers: Ints) -> Batch:
        self.late_rows += len(numbers)
        data = batch.data.take(pa.array(numbers))
        return Batch(data, around(batch.origin), LATE)

    # ---------------------------------------------------------------------- partial rows

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
        made = self._results.rows(Heads(self._results.fields, head, self._failures), columns)
        cut: list[Batch] = []
        if made is not None:
            starts = range(0, made.num_rows, _EMITTED_ROWS)
            cut = [Batch(made.slice(start, _EMITTED_ROWS)) for start in starts]
        return cut + self._failures.drain()

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

    def signature(self) -> str:
        return self.settings.signature

    def counters(self) -> Mapping[str, int]:
        return {**super().counters(), LATE_ROWS: self.late_rows}

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
