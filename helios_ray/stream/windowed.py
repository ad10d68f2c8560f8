"""A stream cut into windows: what can be asked of each window.

Why it exists: ``stream.window(spec)`` says which rows belong together, and when; what is then
computed from them is said here.

May import: plan, operators, aggregates, windowing, watermarks, base of this room.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from helios_ray.errors import ConfigError, PlanError
from helios_ray.operators.aggregation import Aggregation
from helios_ray.operators.window_aggregates.specs import (
    WindowAggregations,
    check_window_aggregations,
)
from helios_ray.operators.windows.base import LATE
from helios_ray.operators.windows.operator import halves, window_operator
from helios_ray.operators.windows.results import WINDOW_END, ProcessWindowFunction
from helios_ray.plan.graph import TwoStage, describe_function
from helios_ray.plan.options import OperatorOptions, node_fields
from helios_ray.plan.schema import describe_schema
from helios_ray.stream.base import BaseStream, OnError, by_name, made, where
from helios_ray.watermarks import EventTime
from helios_ray.windowing import (
    ZERO,
    CountWindow,
    GlobalWindow,
    Trigger,
    WindowSpec,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from helios_ray.stream.data_stream import DataStream

WINDOW_TIME = EventTime(WINDOW_END, -1)
"""Results of a window belong to its last microsecond: a coarser window gets them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowedStream:
    """Rows in windows; made by ``window`` and ``window_all``. Its methods return a new one.

    ==========================  =======================================================
    ``aggregate``               results by name, vectorized
    ``process``                 a :class:`ProcessWindowFunction` of all rows of a window
    ``count sum min max mean``  one aggregate
    ``trigger``                 when a window speaks; by default, when it is over
    ``allowed_lateness``        how long after its end a window still takes rows
    ``discarding``              results of the rows since the window last spoke only
    ==========================  =======================================================

    Results have the key columns, ``window_start`` and ``window_end``, then what was computed;
    their event time is ``window_end`` (the last microsecond before it, so that they fall into
    the coarser window that holds theirs). Rows that come too late are counted as
    ``operator.late_rows`` and go to ``results.late()``: those of which every window has been over
    for the allowed lateness. A session counts as it is with the row in it, so an old row that
    touches one that goes on is not late.

    Example:
        >>> from datetime import timedelta
        >>> from helios_ray import StreamExecutionEnvironment, WatermarkStrategy
        >>> from helios_ray.aggregates import count, max_
        >>> from helios_ray.windows import TumblingWindow
        >>> env = StreamExecutionEnvironment()
        >>> bids = env.from_items(
        ...     [{"auction": 7, "price": 3.5, "ts": 1}], WatermarkStrategy.monotonic("ts"), uid="b")
        >>> hot = bids.key_by("auction").window(TumblingWindow(timedelta(seconds=10)))
        >>> hot.aggregate(bids=count(), top=max_("price"), uid="hot").schema.names
        ['auction', 'window_start', 'window_end', 'bids', 'top']
    """

    stream: BaseStream
    keys: tuple[str, ...]
    spec: WindowSpec
    time: EventTime | None = None
    lateness: timedelta = ZERO
    when: Trigger = field(default_factory=Trigger)
    accumulating: bool = True

    def __repr__(self) -> str:
        keys = f" by {', '.join(self.keys)}" if self.keys else ""
        return f"WindowedStream[{describe_schema(self.stream.schema)}{keys}; {self._said()}]"

    def _said(self) -> str:
        """The window and what was asked of it beside the usual, for people."""
        parts = [str(self.spec)]
        if self.when.is_early:
            parts.append(str(self.when))
        if self.lateness:
            parts.append(f"lateness {self.lateness}")
        if not self.accumulating:
            parts.append("discarding")
        return ", ".join(parts)

    # ---------------------------------------------------------------------- when it speaks

    def trigger(self, trigger: Trigger) -> WindowedStream:
        """Say when windows speak: ``Trigger.early(rows=100)`` before they are over as well.

        Raises:
            PlanError: it is no Trigger.
        """
        if not isinstance(trigger, Trigger):
            raise PlanError(
                f"{where('trigger')}: expected Trigger.on_watermark() or Trigger.early(...), got "
                f"{trigger!r}."
            )
        return replace(self, when=trigger)

    def allowed_lateness(self, lateness: timedelta) -> WindowedStream:
        """Keep windows for ``lateness`` after their end: rows that still come make them speak
        again, with all their rows."""
        return replace(self, lateness=lateness)

    def discarding(self) -> WindowedStream:
        """Each time a window speaks, give the result of the rows since it last spoke only."""
        return replace(self, accumulating=False)

    # ------------------------------------------------------------------------ what it says

    def aggregate(
        self,
        aggregations: WindowAggregations | None = None,
        /,
        *,
        on_error: OnError = "raise",
        local_aggregation: bool | None = None,
        uid: str | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | None = None,
        resources: Mapping[str, float] | None = None,
        **named: Any,
    ) -> DataStream:
        """One row per window and key with the results of ``aggregations``.

        Args:
            aggregations: results by name; for names that are also options, such as ``name``.
            on_error: what becomes of rows without an event time, of those on which a user's
                ``AggregateFunction.add`` raises, and of results of windows on which its
                ``result`` does (one row skipped each). ``create`` and ``merge`` fail the job.
            local_aggregation: whether to aggregate each batch before the shuffle as well, where
                nobody reads the late rows or the dead letters. None does so where that cannot
                change a digit and makes rows fewer: all but sums and means of floats,
                variances, quantiles, lists, and a user's own. True does so for those too;
                tumbling, sliding and global windows can.
            named: results by name, as in ``bids=count(), top=max_("price")``; see
                ``helios_ray.aggregates``.

        Raises:
            MissingColumnError: a column is not there; offers the nearest.
            PlanError: a column of that type cannot be aggregated so.
            ConfigError: settings that do not fit each other.
        """
        options = OperatorOptions(
            uid=uid, name=name, parallelism=parallelism, num_cpus=num_cpus,
            num_gpus=num_gpus, memory=memory, resources=resources,
        )  # fmt: skip
        node_fields(options, "window.aggregate")
        chosen = by_name(aggregations, named, "window.aggregate")
        if not chosen:
            raise ConfigError(
                f"{where('window.aggregate')}: give at least one result, as in aggregate(n=count())"
            )
        detail = ", ".join(f"{n}={a}" for n, a in chosen.items())
        split = self._splits(chosen, local_aggregation)
        computed = {"aggregations": chosen}
        return self._operator("window", computed, detail, on_error, options, split=split)

    def process(
        self,
        function: ProcessWindowFunction | type[ProcessWindowFunction],
        *,
        schema: pa.Schema | None = None,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """What ``function`` makes of all rows of each window, which are kept until then.

        Args:
            function: an instance, or a class without arguments.
            schema: the columns it returns; also its attribute ``output_schema``.
            on_error: what becomes of rows without an event time, and of windows on which the
                function raises: ``"skip"`` and ``"dead_letter"`` leave out what it makes of
                that window and count one skipped row; the dead letter says key, window and
                number of rows.

        Raises:
            ConfigError: it is no ProcessWindowFunction, or settings do not fit each other.
        """
        instance: Any = function() if isinstance(function, type) else function
        if schema is not None:
            instance = copy.copy(instance)
            instance.output_schema = schema
        detail = describe_function(function)
        return self._operator("window", {"process": instance}, detail, on_error, options)

    def count(self, *, uid: str | None = None) -> DataStream:
        """Rows per window and key, in a column ``count``."""
        return self.aggregate({"count": Aggregation("count")}, uid=uid)

    def sum(self, column: str, *, uid: str | None = None) -> DataStream:
        """The sum of a column, in a column ``sum_<column>``."""
        return self.aggregate({f"sum_{column}": Aggregation("sum", column)}, uid=uid)

    def min(self, column: str, *, uid: str | None = None) -> DataStream:
        """The least value of a column, in a column ``min_<column>``."""
        return self.aggregate({f"min_{column}": Aggregation("min", column)}, uid=uid)

    def max(self, column: str, *, uid: str | None = None) -> DataStream:
        """The greatest value of a column, in a column ``max_<column>``."""
        return self.aggregate({f"max_{column}": Aggregation("max", column)}, uid=uid)

    def mean(self, column: str, *, uid: str | None = None) -> DataStream:
        """The mean of a column, in a column ``mean_<column>``."""
        return self.aggregate({f"mean_{column}": Aggregation("mean", column)}, uid=uid)

    def _splits(self, aggregations: WindowAggregations, asked: bool | None) -> bool:
        """Whether to offer the half that can run before a shuffle.

        Raises:
            ConfigError: it was asked for, and these windows have none.
        """
        if asked is False:
            return False
        here = where("window.aggregate")
        check_window_aggregations(self.keys, aggregations, here)
        found = made("window", partial(halves, self.spec, aggregations, self.stream.schema))
        if asked and found is None:
            raise ConfigError(
                f"{here}: local_aggregation=True does not go with {self.spec}: which rows make a "
                f"window up depends on the rows of all subtasks. Leave it out, or take "
                f"tumbling, sliding or global windows."
            )
        return found is not None if asked else found == "exact"

    def _operator(
        self,
        kind: str,
        computed: Mapping[str, Any],
        detail: str,
        on_error: OnError,
        options: OperatorOptions,
        *,
        split: bool = False,
    ) -> DataStream:
        stream = self.stream
        if not self.keys:
            options = one_task(options, "window_all")
        factory = partial(
            window_operator,
            self.keys,
            self.time,
            self.spec,
            **computed,
            allowed_lateness=self.lateness,
            trigger=self.when,
            accumulating=self.accumulating,
            on_error=on_error,
        )
        known = stream.schema
        schema = None
        if known is not None:
            operator = made(kind, partial(factory, input_schema=known))
            schema = made(kind, lambda: operator.output_schema(known))
        timed = not isinstance(self.spec, CountWindow | GlobalWindow)
        stages: TwoStage | None = None
        if split:
            stages = TwoStage(
                local=partial(factory, half="local"), merge=partial(factory, half="merge")
            )
        return stream._operator(
            kind,
            factory,
            options,
            two_stage=stages,
            schema=schema,
            detail=f"{self._said()}  {detail}",
            on_error=on_error,
            side_outputs={LATE: known},
            stateful=True,
            uses_event_time=timed,
            time=WINDOW_TIME if timed else None,
            keeps_time=False,
        )


def one_task(options: OperatorOptions, kind: str) -> OperatorOptions:
    """Options of an operator that sees all rows in one task.

    Raises:
        ConfigError: another parallelism was asked for.
    """
    if options.get("parallelism") not in (None, 1):
        raise ConfigError(
            f"{where(kind)}: without a key all rows meet in one task, got parallelism="
            f"{options['parallelism']}. Leave it out, or use key_by(...).window(...)."
        )
    return {**options, "parallelism": 1}


def windowed(
    stream: BaseStream,
    keys: Sequence[str],
    spec: WindowSpec,
    time: str | EventTime | None,
    kind: str,
) -> WindowedStream:
    """Windows over a stream; checks what can be checked on the line that says so.

    Raises:
        PlanError: ``spec`` is no window, or there is no event time.
        MissingColumnError: there is no such event time column.
    """
    if not isinstance(spec, WindowSpec):
        raise PlanError(
            f"{where(kind)}: expected a TumblingWindow, SlidingWindow, SessionWindow, CountWindow "
            f"or GlobalWindow, got {spec!r}. Write {kind}(TumblingWindow(timedelta(minutes=1)))."
        )
    found = EventTime.of(time)
    if not isinstance(spec, CountWindow | GlobalWindow) or time is not None:
        found = stream._time_of(time, kind)
    return WindowedStream(stream=stream, keys=tuple(keys), spec=spec, time=found)
