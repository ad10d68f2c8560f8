"""What joins in event time share: the times of both sides, one clock, late rows, state.

Why it exists: a kind of join says which kept rows meet and until when they are kept; reading
batches, setting late rows aside and dealing state out is here.

    left_schema, right_schema   UNION   the columns of both sides
    left, right                 KEYED   kept rows of both sides
    watermark                   KEYED   how far event time has come, by key group

May import: errors, elements, operators, watermarks, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from helios_ray.elements import MAX_TIMESTAMP, Batch
from helios_ray.operators.base import (
    Operator,
    OperatorContext,
    OperatorSnapshot,
    StateKind,
    StateTable,
)
from helios_ray.operators.joins.columns import SUFFIX
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.joins.sides import LEFT, NAMES, RIGHT, InputSchemas, Sides
from helios_ray.operators.joins.times import RowTimes
from helios_ray.operators.user_functions import FailureHandler, OnError, around
from helios_ray.operators.window_aggregates.groups import Mask
from helios_ray.operators.windows.base import LATE, LATE_ROWS
from helios_ray.operators.windows.runs import RunStore
from helios_ray.operators.windows.timing import EventClock
from helios_ray.watermarks import EventTime

LATE_RIGHT = "late_right"
"""Tag of the side output that carries late rows of the right; those of the left have ``late``."""

_TABLE = "table"


class SideRows(NamedTuple):
    """Rows of one side, on their way in.

    Args:
        data: the rows, encodings undone.
        times: their event times (µs).
        slots: their keys.
        numbers: which rows of the batch they are.
    """

    data: pa.RecordBatch
    times: Ints
    slots: Ints
    numbers: Ints

    def take(self, rows: Ints) -> SideRows:
        """The given rows, copied."""
        data = self.data.take(pa.array(rows))
        return SideRows(data, self.times[rows], self.slots[rows], self.numbers[rows])

    def filter(self, mask: Mask) -> SideRows:
        """The rows of ``mask``; these rows themselves where it is true everywhere."""
        return self if mask.all() else self.take(np.flatnonzero(mask))


class TimedJoinOperator(Operator):
    """Base of the joins in event time. Input 0 is the left, input 1 the right.

    Args:
        left_keys, right_keys: key columns of both sides, in the same order.
        left_time, right_time: where rows carry their event time.
        on_error: what to do with rows that have none.
        input_schemas: where they are known, everything is checked at once.
        suffix, joined: as for :class:`~.sides.Sides`.

    Raises:
        ConfigError: no keys, or not as many on both sides; no event time.
        MissingColumnError, PlanError, SchemaChangedError: columns or types that do not do.
    """

    what: str
    _meaning: str
    """What kept rows are for; see :meth:`Operator.signature`."""

    def __init__(
        self,
        left_keys: Sequence[str],
        right_keys: Sequence[str],
        left_time: str | EventTime,
        right_time: str | EventTime,
        *,
        on_error: OnError,
        input_schemas: InputSchemas,
        suffix: str = SUFFIX,
        joined: bool = True,
    ) -> None:
        self._failures = FailureHandler(self.what, on_error)
        keys = (left_keys, right_keys)
        self.sides = Sides(self.what, keys, input_schemas, suffix, joined=joined)
        left, right = (
            RowTimes(self.what, name, time, self._failures)
            for name, time in zip(NAMES, (left_time, right_time), strict=True)
        )
        self.times = (left, right)
        self._check_times(*input_schemas)
        self.clock = EventClock()
        self.late_rows = 0
        if input_schemas[0] is not None and input_schemas[1] is not None:
            self.output_schema(*input_schemas)

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid
        self.sides.open(context)

    def output_schema(
        self, left: pa.Schema | None, right: pa.Schema | None, uid: str = "operator"
    ) -> pa.Schema | None:
        """The columns of the results, or None where they cannot be known yet.

        Raises:
            MissingColumnError, PlanError, SchemaChangedError: columns or types that do not do.
        """
        found = self.sides.output_schema(left, right, uid)
        self._check_times(left, right, uid)
        return found

    def _check_times(
        self, left: pa.Schema | None, right: pa.Schema | None, uid: str | None = None
    ) -> None:
        for times, schema in zip(self.times, (left, right), strict=True):
            if schema is not None:
                times.check(schema, uid)

    # ------------------------------------------------------------------------------- rows

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        if self.sides.schema(input_index) is None:
            self.times[input_index].check(batch.data.schema, self.context.uid)
        data = self.sides.read(batch, input_index)
        if data.num_rows == 0:
            return []
        times, good = self.times[input_index].read(batch, data)
        numbers = np.arange(len(times))
        rows = SideRows(data, times, numbers, numbers)
        if good is not None:
            rows = rows.filter(good)
        out: list[Batch] = []
        if len(rows.times):
            rows = rows._replace(slots=self.sides.slots(rows.data, input_index))
            late = self.late(input_index, rows)
            if late is not None and late.any():
                out.append(self._late(batch, rows.numbers[late], input_index))
                rows = rows.filter(~late)
        if len(rows.times):
            out += self.fold(input_index, rows)
            self.forget_keys()
        return out + self._failures.drain()

    def marks(self, slots: Ints) -> Ints:
        """The watermark of every row's key group."""
        if self.clock.ahead is None:
            return np.broadcast_to(np.int64(self.clock.watermark), len(slots))
        found = self.clock.of(self.sides.space.groups()[slots])
        assert found is not None
        return found

    def late(self, index: int, rows: SideRows) -> Mask | None:
        """Which rows of side ``index`` come too late: their time is not after the watermark.
        None for none."""
        if self.clock.ahead is None and int(rows.times.min()) > self.clock.watermark:
            return None
        late: Mask = rows.times <= self.marks(rows.slots)
        return late

    def fold(self, index: int, rows: SideRows) -> list[Batch]:
        """Take up rows of side ``index`` that are in time; return what they make due."""
        raise NotImplementedError

    def _late(self, batch: Batch, numbers: Ints, index: int) -> Batch:
        self.late_rows += len(numbers)
        data = batch.data.take(pa.array(numbers))
        return Batch(data, around(batch.origin), LATE if index == LEFT else LATE_RIGHT)

    def end_input(self) -> list[Batch]:
        return self.on_watermark(MAX_TIMESTAMP)

    # ------------------------------------------------------------------------------- keys

    def forget_keys(self) -> None:
        """Number the keys afresh where few of many are in use."""
        mapping = self.sides.forget_keys(self.live_rows(), self.used_slots)
        if mapping is not None:
            self.remap(mapping)

    def live_rows(self) -> int:
        """At least as many as there are keys in use."""
        raise NotImplementedError

    def used_slots(self) -> Ints:
        """The slots in use."""
        raise NotImplementedError

    def remap(self, mapping: Ints) -> None:
        """Slots have new numbers; their order has not changed."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------ state

    def counters(self) -> Mapping[str, int]:
        """``operator.late_rows`` and ``operator.skipped_rows``, since ``open``."""
        return {**self._failures.counters(), LATE_ROWS: self.late_rows}

    def signature(self) -> str:
        return self._meaning

    def input_types(self) -> tuple[pa.Schema | None, ...]:
        return (self.sides.schema(LEFT), self.sides.schema(RIGHT))

    def snapshot(self) -> OperatorSnapshot:
        tables = {**self.clock.snapshot(self.context), **self.sides.snapshot()}
        for index, name in enumerate(NAMES):
            if self.sides.schema(index) is not None:
                kept = self.kept(index)
                if kept.num_rows:
                    tables[name] = StateTable(StateKind.KEYED, kept)
        return tables

    def kept(self, index: int) -> pa.Table:
        """The kept rows of a side, as its state table."""
        raise NotImplementedError

    def kept_runs(self, index: int, store: RunStore, first: int = 0) -> list[pa.Table]:
        """Rows kept in runs, as tables of the state; each run's is made once.

        Args:
            first: the column of a run that is the first of the side.
        """
        tables = [self.sides[index].state_schema().empty_table()]
        for run in store.runs:
            table = run.cache.get(_TABLE)
            if table is None:
                schema = self.sides.schema(index)
                data = pa.RecordBatch.from_arrays(run.columns[first:], schema=schema)
                table = run.cache[_TABLE] = self.sides.table(index, data, run.slots)
            tables.append(table)
        return tables

    def extras(self, index: int) -> Sequence[pa.Field]:
        """What the operator adds to the kept rows of a side."""
        return ()

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self.clock.restore(state, self.context)
        self.sides.restore(state, tuple(times.time.column for times in self.times))
        for index, times in enumerate(self.times):
            for data, slots, extras in self.sides.restored(state, index, self.extras(index)):
                rows = SideRows(data, times.of(data), slots, np.arange(len(slots)))
                self.put_back(index, rows, extras)

    def put_back(self, index: int, rows: SideRows, extras: Sequence[pa.Array]) -> None:
        """Take up rows of a side that were kept."""
        self.fold(index, rows)
