"""Everything that is asked of a window operator.

Why it exists: the kinds of windows take the same settings; they are checked once, and each
kind says what it cannot do.

May import: errors, operators, windowing, watermarks, Arrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import pyarrow as pa

from helios_ray.errors import ConfigError
from helios_ray.operators.user_functions import OnError
from helios_ray.operators.window_aggregates.specs import WindowAggregation, WindowAggregations
from helios_ray.operators.windows.results import ProcessWindowFunction
from helios_ray.watermarks import EventTime
from helios_ray.windowing import (
    ZERO,
    CountWindow,
    GlobalWindow,
    SessionWindow,
    SlidingWindow,
    Trigger,
    TumblingWindow,
    WindowSpec,
    microseconds,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSettings:
    """What to compute, over what, and when to say it.

    Args:
        keys: key columns; none for one window over all rows.
        time_column: event time: a timestamp, or an integer of microseconds. May be None for
            count and global windows. An :class:`EventTime` may shift it.
        window: the kind of window.
        aggregations: results by name.
        process: a function of the window's rows instead of aggregations.
        allowed_lateness: how long after its end a window still takes rows.
        trigger: when windows speak.
        accumulating: each time a window speaks it gives the result of all its rows so far;
            otherwise (discarding) of the rows since it last spoke.
        on_error: what to do with rows without an event time, and where a user's
            AggregateFunction raises. Rows that are left out are not counted anywhere.
        input_schema: where it is known, everything is checked at once.

    Raises:
        ConfigError: settings that do not fit each other.
    """

    keys: tuple[str, ...]
    time_column: str | EventTime | None
    window: WindowSpec
    aggregations: WindowAggregations = field(default_factory=dict)
    process: ProcessWindowFunction | None = None
    allowed_lateness: timedelta = ZERO
    trigger: Trigger = field(default_factory=Trigger)
    accumulating: bool = True
    on_error: OnError = "raise"
    input_schema: pa.Schema | None = None

    def __post_init__(self) -> None:
        kinds = (TumblingWindow, SlidingWindow, SessionWindow, CountWindow, GlobalWindow)
        if not isinstance(self.window, kinds):
            raise ConfigError(
                f"window must be a TumblingWindow, SlidingWindow, SessionWindow, CountWindow or "
                f"GlobalWindow, got {self.window!r}."
            )
        if len(set(self.keys)) != len(self.keys):
            raise ConfigError(f"window names a key column twice: {list(self.keys)}.")
        timeless = isinstance(self.window, (CountWindow, GlobalWindow))
        if self.time_column is None and not timeless:
            raise ConfigError(
                f"{type(self.window).__name__} needs an event time column, got None. Give the "
                f"source a watermark strategy, or name the column."
            )
        if not isinstance(self.trigger, Trigger):
            raise ConfigError(
                f"trigger must be Trigger.on_watermark() or Trigger.early(...), got "
                f"{self.trigger!r}."
            )
        if microseconds("allowed_lateness", self.allowed_lateness, least=0) and timeless:
            raise ConfigError(
                f"{type(self.window).__name__} has no end in event time for a row to be late for; "
                f"got allowed_lateness={self.allowed_lateness!r}. Leave it out."
            )
        if isinstance(self.window, CountWindow) and self.trigger.is_early:
            raise ConfigError(
                "CountWindow speaks when it is full; it takes no early trigger. Use a "
                "CountWindow with a smaller slide, or GlobalWindow with Trigger.early(rows=...)."
            )
        if self.process is not None and not isinstance(self.process, ProcessWindowFunction):
            raise ConfigError(
                f"process must be a ProcessWindowFunction, got {self.process!r}. Derive from it "
                f"and define process(key, window, rows)."
            )
        if self.process is not None and self.aggregations:
            raise ConfigError("a window takes aggregations or a ProcessWindowFunction, not both.")
        if not isinstance(self.aggregations, Mapping):
            raise ConfigError(f"aggregations must be by name, got {self.aggregations!r}.")

    @property
    def time(self) -> EventTime | None:
        """``time_column`` as what it means."""
        return EventTime.of(self.time_column)

    @property
    def signature(self) -> str:
        """What partial rows mean beyond their columns: the cut of time, the size of sketches."""
        sized = [
            f"{name} of n={a.n} precision={a.precision} compression={a.compression} by={a.by}"
            for name, a in sorted(self.aggregations.items())
            if isinstance(a, WindowAggregation)
        ]
        return "; ".join([f"window {self.window}", *sized])

    @property
    def lateness(self) -> int:
        """``allowed_lateness`` in microseconds."""
        return microseconds("allowed_lateness", self.allowed_lateness, least=0)
