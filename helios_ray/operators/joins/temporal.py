"""The temporal join: each row with the version of the other side that was in force at its time.

Why it exists: orders come with the price of their moment, trades with the rate of theirs. The
answer must not depend on which side arrived first, so rows of the left wait until the
watermark says that every version of their time has come.

    left_schema, right_schema   UNION   the columns of each side
    watermark                   KEYED   how far event time has come, by key group
    left                        KEYED   rows that wait: key_group, time int64 (µs), row.<name>
    right                       KEYED   versions: key_group, time int64 (µs), row.<name>

May import: elements, errors, operators, watermarks, windowing, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP, Batch
from helios_ray.operators.base import (
    Operator,
    OperatorContext,
    OperatorSnapshot,
    StateKind,
    StateTable,
)
from helios_ray.operators.joins.columns import SUFFIX, check_how
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.joins.side import LEFT, NAMES, RIGHT, JoinSides, Schemas, sliced
from helios_ray.operators.joins.temporal_times import RowTimes
from helios_ray.operators.joins.temporal_versions import Versions, by_time
from helios_ray.operators.user_functions import FailureHandler, OnError, around
from helios_ray.operators.windows.runs import Run, RunStore, concat
from helios_ray.operators.windows.timing import EventClock
from helios_ray.watermarks import EventTime
from helios_ray.windowing import microseconds

TemporalHow: TypeAlias = Literal["inner", "left"]

LATE = "late"
"""Tag of the side output with rows of the left that came after their time."""

LATE_RIGHT = "late_right"
"""Tag of the side output with versions that came after what they could have answered."""

LATE_ROWS = "operator.late_rows"
_TIME = pa.schema([pa.field("time", pa.int64())])
_TABLE = "table"


class TemporalJoinOperator(Operator):
    """Joins each row of the left with the latest version of its key that is not younger.

    Of versions of the same time the last that arrived counts. Results come when the watermark
    has reached a row's time, in time order. Rows of the left that come after that go to the side
    output ``late``; so do versions, to ``late_right``, unless they are at least as new as
    the one in force and can still be asked for. Both are counted as ``operator.late_rows``. A
    version with a null in its key answers nothing and is left out.

    Args:
        left_keys, right_keys: key columns, in the same order.
        left_time, right_time: event time of a row; from when on a version is in force.
        how: ``"inner"`` drops rows without a version, ``"left"`` fills in nulls.
        suffix: for columns of the right whose names the left has.
        tolerance: the greatest age of a version at a row's time; None for any.
        on_error: what to do with rows whose event time is null or out of range.
        input_schemas: of both sides; where they are known, the columns are checked at once.

    Raises:
        ConfigError: no keys, an unknown ``how`` or ``on_error``, a negative tolerance.
        MissingColumnError, PlanError, SchemaChangedError: columns do not fit.

    Example:
        >>> join = TemporalJoinOperator(["coin"], ["coin"], "at", "since")
        >>> join.open(OperatorContext(uid="priced"))
        >>> trades = pa.record_batch({"coin": ["x", "x"], "at": [12, 25]})
        >>> prices = pa.record_batch({"coin": ["x", "x"], "since": [10, 20], "price": [1.5, 2.5]})
        >>> join.process_batch(Batch(trades), 0), join.process_batch(Batch(prices), 1)
        ([], [])
        >>> join.on_watermark(30)[0].data["price"].to_pylist()
        [1.5, 2.5]
    """

    what = "temporal_join"

    def __init__(
        self,
        left_keys: Sequence[str],
        right_keys: Sequence[str],
        left_time: str | EventTime,
        right_time: str | EventTime,
        *,
        how: TemporalHow = "inner",
        suffix: str = SUFFIX,
        tolerance: timedelta | None = None,
        on_error: OnError = "raise",
        input_schemas: Schemas = (None, None),
    ) -> None:
        check_how(how, self.what, get_args(TemporalHow))
        self._how = how
        self._tolerance = (
            None if tolerance is None else microseconds("tolerance", tolerance, least=0)
        )
        self._failures = FailureHandler(self.what, on_error)
        self._timing = [
            RowTimes(self.what, name, time, self._failures)
            for name, time in zip(NAMES, (left_time, right_time), strict=True)
        ]
        self._sides = JoinSides(self.what, (left_keys, right_keys), suffix, input_schemas)
        for timing, schema in zip(self._timing, input_schemas, strict=True):
            if schema is not None:
                timing.check(schema)
        self.clock = EventClock()
        self._waiting = RunStore(by_time)
        self._versions: Versions | None = None
        self._late_rows = 0
        self._look_at = 0
        self._stored: StateTable | None = None

    def output_schema(self, left: pa.Schema, right: pa.Schema, uid: str = "operator") -> pa.Schema:
        """The columns of the results; raises as the constructor does."""
        for timing, schema in zip(self._timing, (left, right), strict=True):
            timing.check(schema, uid)
        return self._sides.output_schema(left, right, uid)

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid
        self._sides.open(context)

    # ------------------------------------------------------------------------------- rows

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        if batch.data.num_rows == 0:
            return []
        side = input_index
        if self._sides.schema(side) is None:
            self._timing[side].check(batch.data.schema, self.context.uid)
        rows = self._sides.plain(batch, side)
        times, good = self._timing[side].read(batch, rows)
        if side == RIGHT:
            comparable = self._sides.comparable(rows, side)
            if comparable is not None:
                good = comparable if good is None else good & comparable
        numbers = np.arange(rows.num_rows)
        if good is not None:
            numbers = np.flatnonzero(good)
            rows, times = rows.take(pa.array(numbers)), times[numbers]
        out: list[Batch] = []
        if rows.num_rows:
            slots = self._sides.slots(rows, side)
            marks = self._marks(slots)
            take = self._wait if side == LEFT else self._take_versions
            late = take(rows, slots, times, marks)
            if len(late):
                self._late_rows += len(late)
                data = batch.data.take(pa.array(numbers[late]))
                tag = LATE if side == LEFT else LATE_RIGHT
                out.append(Batch(data, around(batch.origin), tag))
            self._forget_keys()
        return out + self._failures.drain()

    def _marks(self, slots: Ints) -> Ints:
        """The watermark of every row's key group."""
        if self.clock.ahead is not None:
            marks = self.clock.of(self._sides.space.groups()[slots])
            assert marks is not None
            return marks
        return np.broadcast_to(np.int64(self.clock.watermark), len(slots))

    def _wait(self, rows: pa.RecordBatch, slots: Ints, times: Ints, marks: Ints) -> Ints:
        """Hold rows of the left; returns those that are late."""
        late = np.flatnonzero(times <= marks)
        run = Run(times, slots, rows.columns)
        if len(late):
            run = run.filter(times > marks)
        self._waiting.add(by_time(run))
        return late

    def _take_versions(self, rows: pa.RecordBatch, slots: Ints, times: Ints, marks: Ints) -> Ints:
        """Take up versions; returns those that come too late."""
        versions = self._open_versions()
        late = np.flatnonzero(times <= marks)
        if len(late) == 0:
            versions.add(slots, times, rows)
            return late
        chosen = rows.take(pa.array(late))
        taken = versions.add_late(slots[late], times[late], marks[late], chosen)
        if taken.any():
            self._stored = None
        rest = np.flatnonzero(times > marks)
        if len(rest):
            versions.add(slots[rest], times[rest], rows.take(pa.array(rest)))
        refused: Ints = late[~taken]
        return refused

    def _open_versions(self) -> Versions:
        if self._versions is None:
            self._versions = Versions(self._sides.schema(RIGHT), self._tolerance)
        return self._versions

    # ----------------------------------------------------------------------------- time

    def on_watermark(self, timestamp: int) -> list[Batch]:
        if not self.clock.advance(timestamp):
            return []
        runs = self._waiting.between(MIN_TIMESTAMP, timestamp)
        asking = concat(runs) if runs else None
        out = [] if asking is None else self._answered(asking, timestamp)
        if asking is None and self._versions is not None:
            nobody = np.empty(0, np.int64)
            if self._versions.future.between(MIN_TIMESTAMP, timestamp):
                self._stored = None
                self._versions.advance(timestamp, nobody, nobody)
                self._versions.settle()
        self._waiting.drop_through(timestamp)
        self._forget_keys()
        return out

    def _answered(self, asking: Run, watermark: int) -> list[Batch]:
        """Rows whose time has come, with their versions."""
        schema = self._sides.schema(LEFT)
        left = pa.RecordBatch.from_arrays(asking.columns, schema=schema)
        order = np.argsort(asking.units, kind="stable")
        versions = self._versions
        if versions is None:
            if self._how == "inner":
                return []
            right = self._sides.columns().right.empty_table()
            none = np.full(len(order), -1)
            return sliced(self._sides.columns().assemble(left, order, right, none))
        self._stored = None
        found = versions.advance(watermark, asking.slots[order], asking.units[order])
        if self._how == "inner":
            matched = found >= 0
            order, found = order[matched], found[matched]
        rows, places = versions.kept.fetch(found)
        result = self._sides.columns().assemble(left, order, rows, places)
        versions.settle()
        return sliced(result)

    def _forget_keys(self) -> None:
        waiting, versions = self._waiting, self._versions
        if self._sides.schema(LEFT) is None and self._sides.schema(RIGHT) is None:
            return
        space = self._sides.space
        rows = waiting.rows + (versions.future.rows if versions is not None else 0)
        if len(space) < self._look_at or not space.worth_forgetting(rows):
            return
        live = [] if versions is None else [versions.live(self.clock.watermark)]
        if space.worth_forgetting(rows + sum(map(len, live))):
            live.append(waiting.used_slots())
            if versions is not None:
                live.append(versions.future.used_slots())
            mapping = space.forget(np.unique(np.concatenate(live)))
            waiting.remap(mapping)
            if versions is not None:
                versions.remap(mapping)
            self._stored = None
        # Looking for keys in use costs as many steps as there are keys.
        self._look_at = len(space) + len(space) // 4

    # ------------------------------------------------------------------------------ state

    def counters(self) -> Mapping[str, int]:
        """``operator.late_rows`` and ``operator.skipped_rows``, since ``open``."""
        return {**self._failures.counters(), LATE_ROWS: self._late_rows}

    def snapshot(self) -> OperatorSnapshot:
        tables = {**self.clock.snapshot(self.context), **self._sides.snapshot()}
        if self._waiting.runs:
            parts = self._run_tables(self._waiting, LEFT)
            tables["left"] = StateTable(StateKind.KEYED, pa.concat_tables(parts))
        if self._versions is not None:
            if self._stored is None:
                slots, times, rows = self._versions.in_force()
                arrays = [pa.array(times), *rows.columns]
                table = self._sides.stored(RIGHT, _TIME, slots, arrays)
                self._stored = StateTable(StateKind.KEYED, table)
            parts = [self._stored.table, *self._run_tables(self._versions.future, RIGHT)]
            tables["right"] = StateTable(StateKind.KEYED, pa.concat_tables(parts))
        return tables

    def _run_tables(self, store: RunStore, side: int) -> list[pa.Table]:
        """The rows of runs; each run's table is made once."""
        tables = []
        for run in store.runs:
            table = run.cache.get(_TABLE)
            if table is None:
                arrays = [pa.array(run.units), *run.columns]
                table = self._sides.stored(side, _TIME, run.slots, arrays)
                run.cache[_TABLE] = table
            tables.append(table)
        return tables

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self.clock.restore(state, self.context)
        self._sides.restore(state)
        for added, rows, slots in self._sides.restored(state, "left", LEFT, _TIME):
            self._waiting.add(by_time(Run(added.column(0).to_numpy(), slots, rows.columns)))
        for added, rows, slots in self._sides.restored(state, "right", RIGHT, _TIME):
            versions = self._open_versions()
            times = added.column(0).to_numpy()
            past = times <= self._marks(slots)
            for mask, take in ((past, versions.keep), (~past, versions.add)):
                chosen = np.flatnonzero(mask)
                if len(chosen):
                    take(slots[chosen], times[chosen], rows.take(pa.array(chosen)))
