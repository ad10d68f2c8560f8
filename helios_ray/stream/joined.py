"""Joins of keyed streams, by window, by interval, by version in time, or for good.

Why it exists: two streams of one key meet here; the kinds differ in how long a row waits for
its partners.

May import: plan, operators, windowing, watermarks, base of this room.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from helios_ray.errors import ConfigError, PlanError
from helios_ray.operators.joins.co_group import CoGroupOperator
from helios_ray.operators.joins.columns import SUFFIX, JoinHow
from helios_ray.operators.joins.interval_join import IntervalJoinOperator, ResultTime
from helios_ray.operators.joins.regular import RegularJoinOperator
from helios_ray.operators.joins.temporal import TemporalJoinOperator
from helios_ray.operators.joins.timed import LATE_RIGHT
from helios_ray.operators.joins.window_join import WindowJoinOperator
from helios_ray.operators.windows.base import LATE
from helios_ray.plan.graph import CallSite, PlanWarning, describe_function
from helios_ray.plan.options import OperatorOptions
from helios_ray.stream.base import BaseStream, OnError, made, where
from helios_ray.stream.windowed import WINDOW_TIME
from helios_ray.watermarks import EventTime
from helios_ray.windowing import SessionWindow, SlidingWindow, TumblingWindow

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from helios_ray.stream.data_stream import DataStream
    from helios_ray.stream.keyed_stream import KeyedStream

JoinWindow = TumblingWindow | SlidingWindow | SessionWindow
_RESULT_TIME: dict[str, ResultTime] = {"inner": "left", "left": "left", "right": "right"}
"""Whose time the results of an interval join go by; of a full one, lone rows have but one."""

AnyTime = str | EventTime | None


class KeyedJoins(BaseStream):
    """The methods of a keyed stream that join it with another.

    Keys are compared in their order; a null in a key equals nothing. Results have all columns
    of this stream, then those of the other without its key columns; a name that both have
    gets ``suffix``.
    """

    _keys: tuple[str, ...]

    def join(
        self,
        other: KeyedStream,
        *,
        how: JoinHow = "inner",
        window: JoinWindow | None = None,
        ttl: timedelta | None = None,
        time: AnyTime = None,
        other_time: AnyTime = None,
        suffix: str = SUFFIX,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Join rows of equal keys: those of the same window, or all there have been.

        With ``window``, results come when the window is over, with ``window_start`` and
        ``window_end``. Without, each row is joined at once with all rows of the other stream
        that came before it and are kept; a row without a partner comes out (where ``how``
        wants it) when its ``ttl`` has run out or the input has ended, since only then is it
        known to have none.

        Args:
            other: keyed by as many columns of the same types.
            how: which rows without a partner appear: ``"inner"`` none, ``"left"`` those of
                this stream, ``"right"`` those of ``other``, ``"full"`` both.
            window: tumbling, sliding or session windows.
            ttl: how long a row is kept (processing time), without ``window``; None is for
                ever, so that the state grows with the input.
            time, other_time: event time columns, where they are not the streams' own.
            suffix: for columns of ``other`` whose names this stream has.
            on_error: what becomes of rows without an event time.

        Raises:
            PlanError: keys or names that do not fit each other, or no event time.
            ConfigError: both ``window`` and ``ttl``.

        Example:
            >>> from helios_ray import StreamExecutionEnvironment
            >>> env = StreamExecutionEnvironment()
            >>> orders = env.from_items([{"id": 1, "price": 3.5}], uid="orders")
            >>> users = env.from_items([{"order": 1, "user": "ann"}], uid="users")
            >>> orders.key_by("id").join(users.key_by("order"), how="left", uid="join")
            DataStream[id: int64, price: double, user: string]
        """
        factory: partial[Any]
        if window is None:
            factory = partial(
                RegularJoinOperator, self._keys, _keys(other, "join"), how=how, ttl=ttl,
                suffix=suffix,
            )  # fmt: skip
            return self._join("join", other, factory, how, options, lone=how != "inner")
        if ttl is not None:
            raise ConfigError(
                f"{where('join')}: rows of a window join are kept for as long as their window "
                f"lasts; got ttl={ttl!r} as well. Leave out one of the two."
            )
        if not isinstance(window, JoinWindow):
            raise PlanError(
                f"{where('join')}: expected a TumblingWindow, SlidingWindow or SessionWindow, got "
                f"{window!r}."
            )
        factory = partial(
            WindowJoinOperator, self._keys, _keys(other, "join"),
            *self._times(other, time, other_time, "join"), window,
            how=how, suffix=suffix, on_error=on_error,
        )  # fmt: skip
        detail = f"{how} by {window}"
        return self._join(
            "join",
            other,
            factory,
            detail,
            options,
            on_error=on_error,
            time=WINDOW_TIME,
            late=True,
            lone=how != "inner",
        )

    def interval_join(
        self,
        other: KeyedStream,
        lower: timedelta,
        upper: timedelta,
        *,
        how: JoinHow = "inner",
        lower_inclusive: bool = True,
        upper_inclusive: bool = True,
        time: AnyTime = None,
        other_time: AnyTime = None,
        suffix: str = SUFFIX,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Join each row with the other stream's rows of its key from ``lower`` to ``upper``
        after it (before it, where negative).

        Pairs come out as soon as both are there; a row without a partner (where ``how`` wants
        it) when event time says that none can come. The results' event time is this stream's
        (for ``"right"`` the other's); those of a full join have none.

        Args:
            lower, upper: bounds of other time minus this time.
            lower_inclusive, upper_inclusive: whether the bounds themselves belong to it.
            how, time, other_time, suffix, on_error: as for :meth:`join`.

        Raises:
            PlanError: keys or names that do not fit each other, or no event time.
            ConfigError: ``lower`` is greater than ``upper``.
        """
        left, right = self._times(other, time, other_time, "interval_join")
        factory = partial(
            IntervalJoinOperator, self._keys, _keys(other, "interval_join"), left, right,
            lower, upper, how=how, suffix=suffix, lower_inclusive=lower_inclusive,
            upper_inclusive=upper_inclusive, on_error=on_error,
            result_time=_RESULT_TIME.get(how, "either"),
        )  # fmt: skip
        found: EventTime | None = None
        if how in ("inner", "left"):
            found = left
        elif how == "right":
            taken = self._schema is not None and right.column in self._schema.names
            found = EventTime(f"{right.column}{suffix}" if taken else right.column, right.shift)
        return self._join(
            "interval_join", other, factory, f"{how}, from {lower} to {upper}", options,
            on_error=on_error, time=found, late=True, lone=how != "inner",
        )  # fmt: skip

    def temporal_join(
        self,
        other: KeyedStream,
        *,
        how: Literal["inner", "left"] = "left",
        tolerance: timedelta | None = None,
        time: AnyTime = None,
        other_time: AnyTime = None,
        suffix: str = SUFFIX,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Join each row with the newest version of its key as of the row's event time.

        Rows wait until event time has reached them, so the answer does not depend on which
        stream was faster; they come out in the order of time.

        Args:
            other: the versions: a row per change of a key.
            how: ``"left"`` keeps rows for which there was no version yet.
            tolerance: the greatest age of a version; None is any.
            time, other_time, suffix, on_error: as for :meth:`join`.

        Raises:
            PlanError: keys or names that do not fit each other, or no event time.
        """
        factory = partial(
            TemporalJoinOperator, self._keys, _keys(other, "temporal_join"),
            *self._times(other, time, other_time, "temporal_join"),
            how=how, suffix=suffix, tolerance=tolerance, on_error=on_error,
        )  # fmt: skip
        return self._join(
            "temporal_join", other, factory, how, options,
            on_error=on_error, time=self._time_of(time, "temporal_join"), late=True,
            lone=how != "inner",
        )  # fmt: skip

    def co_group(
        self,
        other: KeyedStream,
        window: JoinWindow,
        function: Callable[..., Any],
        *,
        schema: pa.Schema | None = None,
        time: AnyTime = None,
        other_time: AnyTime = None,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Call ``function`` with all rows of both streams, per window and key.

        Args:
            window: tumbling, sliding or session windows.
            function: called as ``function(key, window, rows, other_rows)``: the key a dict,
                ``window`` with ``start`` and ``end``, the rows Arrow tables, of which one may
                be empty; returns what a ``ProcessWindowFunction`` may.
            schema: the columns that it returns.
            time, other_time, on_error: as for :meth:`join`.

        Raises:
            PlanError: keys that do not fit each other, or no event time.
        """
        factory = partial(
            CoGroupOperator, self._keys, _keys(other, "co_group"),
            *self._times(other, time, other_time, "co_group"), window, function,
            schema=schema, on_error=on_error,
        )  # fmt: skip
        return self._join(
            "co_group", other, factory, f"{window}  {describe_function(function)}", options,
            on_error=on_error, time=WINDOW_TIME, late=True,
        )  # fmt: skip

    def _times(
        self, other: BaseStream, time: AnyTime, other_time: AnyTime, kind: str
    ) -> tuple[EventTime, EventTime]:
        return self._time_of(time, kind), other._time_of(other_time, f"{kind} (the other stream)")

    def _join(
        self,
        kind: str,
        other: KeyedStream,
        factory: partial[Any],
        detail: str,
        options: OperatorOptions,
        *,
        on_error: OnError = "raise",
        time: EventTime | None = None,
        late: bool = False,
        lone: bool = True,
    ) -> DataStream:
        inputs = self._with(other, kind)
        left, right = self._schema, other._schema
        # A side that has sent nothing yet is known all the same.
        factory = partial(factory, input_schemas=(left, right))
        operator = made(kind, factory)
        schema = None
        if left is not None and right is not None:
            schema = made(kind, lambda: operator.output_schema(left, right))
        elif lone:
            site = CallSite.here()
            warnings.warn_explicit(
                f"{where(kind)}: rows without a partner need the columns of both sides, and "
                f"{'both are' if left is right else 'one is'} known only when the job runs: a "
                f"subtask that has such a row before it has seen one of the other side fails. "
                f"Declare schema= where map or process makes the rows.",
                PlanWarning, site.file, site.line,
            )  # fmt: skip
        return self._operator(
            kind,
            factory,
            options,
            inputs=inputs,
            schema=schema,
            detail=detail,
            on_error=on_error,
            side_outputs={LATE: left, LATE_RIGHT: right} if late else None,
            stateful=True,
            uses_event_time=late,
            time=time,
            keeps_time=False,
        )


def _keys(other: BaseStream, kind: str) -> Sequence[str]:
    found: tuple[str, ...] | None = getattr(other, "keys", None)
    if found is None:
        raise PlanError(
            f"{where(kind)}: the other stream must be keyed as well, got {other!r}. Write "
            f"a.key_by('x').{kind}(b.key_by('y'), ...)."
        )
    return found
