"""The temporal join: each row with the version of the other side that was in force at its time.

Why it exists: orders come with the price of their moment, trades with the rate of theirs. The
answer must not depend on which side arrived first, so rows of the left wait until the
watermark says that every version of their time has come.

    left_schema, right_schema   UNION   the columns of each side
    watermark                   KEYED   how far event time has come, by key group
    left                        KEYED   rows that wait
    right                       KEYED   versions in force and to come

May import: elements, errors, operators, watermarks, windowing, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP, Batch
from helios_ray.operators.joins.columns import SUFFIX, check_how
from helios_ray.operators.joins.side import owned
from helios_ray.operators.joins.sides import LEFT, RIGHT, InputSchemas
from helios_ray.operators.joins.temporal_versions import Versions, by_time
from helios_ray.operators.joins.timed import SideRows, TimedJoinOperator
from helios_ray.operators.user_functions import OnError
from helios_ray.operators.window_aggregates.groups import Mask
from helios_ray.operators.windows.runs import Run, RunStore, concat
from helios_ray.watermarks import EventTime
from helios_ray.windowing import microseconds

TemporalHow: TypeAlias = Literal["inner", "left"]


class TemporalJoinOperator(TimedJoinOperator):
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
        >>> from helios_ray.operators.base import OperatorContext
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
        input_schemas: InputSchemas = (None, None),
    ) -> None:
        check_how(how, self.what, get_args(TemporalHow))
        self._how = how
        self._meaning = f"temporal join, {how}"
        self._tolerance = (
            None if tolerance is None else microseconds("tolerance", tolerance, least=0)
        )
        self._waiting = RunStore(by_time)
        self._versions: Versions | None = None
        self._look_at = 0
        self._in_force: pa.Table | None = None
        """Versions in force as the state has them, until they change."""
        super().__init__(
            left_keys, right_keys, left_time, right_time,
            on_error=on_error, input_schemas=input_schemas, suffix=suffix,
        )  # fmt: skip

    # ------------------------------------------------------------------------------- rows

    def late(self, index: int, rows: SideRows) -> Mask | None:
        late = super().late(index, rows)
        if index == LEFT or late is None:
            return late
        null = self.sides[RIGHT].null_keys(rows.data)
        if null is not None:  # they are left out, whenever they come
            late &= ~null
        old = np.flatnonzero(late)
        if len(old):
            slots = rows.slots[old]
            versions = self._open_versions()
            late[old] = ~versions.answering(slots, rows.times[old], self.marks(slots))
        return late

    def fold(self, index: int, rows: SideRows) -> list[Batch]:
        if index == LEFT:
            run = Run(rows.times, rows.slots, owned(rows.data).columns)
            self._waiting.add(by_time(run))
            return []
        null = self.sides[RIGHT].null_keys(rows.data)
        if null is not None:
            rows = rows.filter(~null)
        versions = self._open_versions()
        past = super().late(index, rows) if len(rows.times) else None
        if past is not None and past.any():
            passed = rows.filter(past)
            versions.keep(passed.slots, passed.times, owned(passed.data))
            self._in_force = None
            rows = rows.filter(~past)
        if len(rows.times):
            versions.add(rows.slots, rows.times, owned(rows.data))
        return []

    def _open_versions(self) -> Versions:
        if self._versions is None:
            self._versions = Versions(self.sides.schema(RIGHT), self._tolerance)
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
                self._in_force = None
                self._versions.advance(timestamp, nobody, nobody)
                self._versions.settle()
        self._waiting.drop_through(timestamp)
        self.forget_keys()
        return out

    def _answered(self, asking: Run, watermark: int) -> list[Batch]:
        """Rows whose time has come, with their versions."""
        schema = self.sides.schema(LEFT)
        left = pa.RecordBatch.from_arrays(asking.columns, schema=schema)
        order = np.argsort(asking.units, kind="stable")
        versions = self._versions
        if versions is None:
            return [] if self._how == "inner" else self.sides.lone(LEFT, left, order)
        self._in_force = None
        found = versions.advance(watermark, asking.slots[order], asking.units[order])
        if self._how == "inner":
            matched = found >= 0
            order, found = order[matched], found[matched]
        rows, places = versions.kept.fetch(found)
        out = self.sides.results(LEFT, left, order, rows, places)
        versions.settle()
        return out

    def forget_keys(self) -> None:
        waiting, versions = self._waiting, self._versions
        if self.sides.schema(LEFT) is None and self.sides.schema(RIGHT) is None:
            return
        space = self.sides.space
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
            self._in_force = None
        # Looking for keys in use costs as many steps as there are keys.
        self._look_at = len(space) + len(space) // 4

    # ------------------------------------------------------------------------------ state

    def kept(self, index: int) -> pa.Table:
        if index == LEFT:
            return pa.concat_tables(self.kept_runs(LEFT, self._waiting))
        if self._versions is None:
            return self.sides[RIGHT].state_schema().empty_table()
        if self._in_force is None:
            slots, rows = self._versions.in_force()
            self._in_force = self.sides.table(RIGHT, rows, slots)
        runs = self.kept_runs(RIGHT, self._versions.future)
        return pa.concat_tables([self._in_force, *runs])
