"""The interval join: rows of two streams of the same key whose times are close enough.

    left row at t   meets   right rows from t + lower to t + upper

Why it exists: a window join misses pairs on the two sides of a window's boundary. Here each row
has an interval of its own. A pair comes out as soon as both rows are there; a row that has had
no partner comes out once the watermark says that none can come any more:

    a left row at t    is kept until the watermark reaches t + upper
    a right row at t   is kept until the watermark reaches t - lower

and not at all where that has passed when it comes. A row is late when its own time is at or
before the watermark: partners of it may be gone. (Semantics: Flink's interval join.)

The result belongs to the left row's time, which may lie before the watermark by up to
``upper``: the watermark is passed on that much later. See ``result_time``.

May import: errors, elements, operators, watermarks, windowing, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP, Batch
from helios_ray.errors import ConfigError
from helios_ray.operators.joins.columns import SUFFIX, JoinHow, check_how
from helios_ray.operators.joins.interval_buffer import IntervalBuffer, IntervalRun
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.joins.sides import LEFT, RIGHT, InputSchemas
from helios_ray.operators.joins.timed import SideRows, TimedJoinOperator
from helios_ray.operators.user_functions import OnError
from helios_ray.operators.window_aggregates.groups import stable_order
from helios_ray.operators.windows.slices import LATEST
from helios_ray.watermarks import EventTime
from helios_ray.windowing import microseconds

ResultTime: TypeAlias = Literal["left", "right", "either"]
"""Whose event time a result is given downstream."""

_MATCHED = pa.field("matched", pa.bool_())
_FAR = 4 * LATEST - 1


class IntervalJoinOperator(TimedJoinOperator):
    """See the module's docstring. Input 0 is the left, input 1 the right.

    Results have the columns of :class:`JoinColumns`. Rows with a null in their key meet nothing
    and come out at once where their side's lone rows do. Late rows go to the side outputs
    ``late`` (left) and ``late_right`` and are counted as ``operator.late_rows``.

    Args:
        left_keys, right_keys: key columns of both sides, in the same order.
        left_time, right_time: where rows carry their event time.
        lower, upper: from the left row's time to that of its partners; may be negative.
        how: which rows without a partner appear.
        suffix: for columns of the right whose names the left has.
        lower_inclusive, upper_inclusive: whether a partner exactly there is one.
        on_error: what to do with rows without an event time.
        result_time: the time column that is the results' event time downstream: of the left
            (watermarks are held back by ``upper``, if positive), of the right (by ``-lower``,
            if positive), or of either. Lone rows of the other side have none.
        input_schemas: where they are known, everything is checked at once.

    Raises:
        ConfigError: an empty interval, no such ``how``, no keys.
        MissingColumnError, PlanError, SchemaChangedError: columns or types that do not do.

    Example:
        >>> from helios_ray.operators.base import OperatorContext
        >>> second = timedelta(seconds=1)
        >>> join = IntervalJoinOperator(["id"], ["id"], "ts", "at", -second, second)
        >>> join.open(OperatorContext(uid="near"))
        >>> left = pa.record_batch({"id": [1, 1], "ts": [1_000_000, 5_000_000]})
        >>> right = pa.record_batch({"id": [1], "at": [1_500_000]})
        >>> join.process_batch(Batch(left), 0)
        []
        >>> [made] = join.process_batch(Batch(right), 1)
        >>> made.data.to_pylist()
        [{'id': 1, 'ts': 1000000, 'at': 1500000}]
        >>> join.output_watermark(9_000_000)
        8000000
    """

    what = "interval_join"

    def __init__(
        self,
        left_keys: Sequence[str],
        right_keys: Sequence[str],
        left_time: str | EventTime,
        right_time: str | EventTime,
        lower: timedelta,
        upper: timedelta,
        *,
        how: JoinHow = "inner",
        suffix: str = SUFFIX,
        lower_inclusive: bool = True,
        upper_inclusive: bool = True,
        on_error: OnError = "raise",
        result_time: ResultTime = "left",
        input_schemas: InputSchemas = (None, None),
    ) -> None:
        check_how(how, self.what)
        if result_time not in get_args(ResultTime):
            raise ConfigError(
                f"{self.what}: result_time must be one of {list(get_args(ResultTime))}, got "
                f"{result_time!r}."
            )
        first = microseconds("lower", lower, least=-LATEST) + (0 if lower_inclusive else 1)
        last = microseconds("upper", upper, least=-LATEST) - (0 if upper_inclusive else 1)
        if first > last:
            raise ConfigError(
                f"{self.what}: no time is from lower={lower!r} "
                f"({'included' if lower_inclusive else 'excluded'}) to upper={upper!r} "
                f"({'included' if upper_inclusive else 'excluded'}). Give lower the smaller one: "
                f"both count from the left row's time."
            )
        self._meaning = f"interval join, {how}, from {first} to {last} us"
        # Of each side: where its partners are, and how long a row waits for them.
        self._reach = ((first, last), (-last, -first))
        self._wait = (last, -first)
        self._outer = (how in ("left", "full"), how in ("right", "full"))
        slack = {"left": last, "right": -first, "either": max(last, -first)}
        self._slack = max(0, slack[result_time])
        super().__init__(
            left_keys, right_keys, left_time, right_time,
            on_error=on_error, input_schemas=input_schemas, suffix=suffix,
        )  # fmt: skip
        self._buffers = (self._buffer(LEFT), self._buffer(RIGHT))

    def _buffer(self, index: int) -> IntervalBuffer:
        def as_table(data: pa.RecordBatch, slots: Ints) -> pa.Table:
            return self.sides.table(index, data, slots)

        return IntervalBuffer(as_table, self._outer[index])

    # ------------------------------------------------------------------------------- rows

    def fold(self, index: int, rows: SideRows) -> list[Batch]:
        out: list[Batch] = []
        null = self.sides[index].null_keys(rows.data)
        if null is not None:
            if self._outer[index]:
                out += self.sides.lone(index, rows.data, np.flatnonzero(null))
            rows = rows.filter(~null)
        if len(rows.times) == 0:
            return out
        # By time; in any case a copy, so that what is kept holds no foreign memory.
        rows = rows.take(stable_order(rows.times))
        order = stable_order(rows.slots)
        matched = np.zeros(len(rows.times), np.bool_) if self._outer[index] else None
        low, high = self._reach[index]
        partners = self._buffers[1 - index]
        for found in partners.probe(rows.slots, rows.times + low, rows.times + high, order):
            if matched is not None:
                matched[found.asked] = True
            partners.mark(found)
            out += self.sides.results(index, rows.data, found.asked, found.run.data, found.rows)
        gone = int(np.searchsorted(rows.times, self._gone_through(index), "right"))
        if gone and matched is not None:
            out += self.sides.lone(index, rows.data, np.flatnonzero(~matched[:gone]))
        if gone == 0:
            run = IntervalRun(rows.data, rows.times, rows.slots, matched, order)
        else:
            rest = rows.take(np.arange(gone, len(rows.times)))
            flags = None if matched is None else matched[gone:]
            run = IntervalRun(rest.data, rest.times, rest.slots, flags)
        self._buffers[index].add(run)
        return out

    def _gone_through(self, index: int) -> int:
        """Rows of this side up to this time can get no partner any more."""
        return max(-_FAR, min(_FAR, self.clock.watermark - self._wait[index]))

    # ------------------------------------------------------------------------------- time

    def on_watermark(self, timestamp: int) -> list[Batch]:
        if not self.clock.advance(timestamp):
            return []
        out: list[Batch] = []
        for index, buffer in enumerate(self._buffers):
            for data, rows in buffer.drop_through(self._gone_through(index)):
                out += self.sides.lone(index, data, rows)
        self.forget_keys()
        return out

    def output_watermark(self, timestamp: int) -> int:
        """Held back so that no result is late by its ``result_time``."""
        if timestamp in (MIN_TIMESTAMP, MAX_TIMESTAMP):
            return timestamp
        return max(MIN_TIMESTAMP, timestamp - self._slack)

    # ------------------------------------------------------------------------------ state

    def live_rows(self) -> int:
        return sum(map(len, self._buffers))

    def used_slots(self) -> Ints:
        return np.concatenate([buffer.used_slots() for buffer in self._buffers])

    def remap(self, mapping: Ints) -> None:
        for buffer in self._buffers:
            buffer.remap(mapping)

    def extras(self, index: int) -> Sequence[pa.Field]:
        return (_MATCHED,) if self._outer[index] else ()

    def kept(self, index: int) -> pa.Table:
        return self._buffers[index].kept(self.sides[index].state_schema(self.extras(index)))

    def put_back(self, index: int, rows: SideRows, extras: Sequence[pa.Array]) -> None:
        matched = np.zeros(len(rows.times), np.bool_) if self._outer[index] else None
        if matched is not None:
            matched[:] = extras[0].to_numpy(zero_copy_only=False)
        order = stable_order(rows.times)
        rows = rows.take(order)
        flags = None if matched is None else matched[order]
        self._buffers[index].add(IntervalRun(rows.data, rows.times, rows.slots, flags))
