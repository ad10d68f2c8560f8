"""From event time to slices, and from slices to windows.

Why it exists: overlapping windows share slices, the longest stretches that no window's
boundary cuts. A row goes into one slice; a window is a run of ``span`` slices, every ``step``
slices another one starts. (Source: Krishnamurthy, Wu, Franklin, "On-the-fly sharing for
streamed aggregation", SIGMOD 2006: panes of gcd(size, slide).)

    slice s   covers [start(s), start(s + 1))
    window j  covers slices j * step … j * step + span - 1

Fixed slices are counted from the epoch (plus the offset). Local days are counted by the
calendar: day ``d`` begins at the first instant at which the local clock shows that date at
the offset's time of day, or, where the clock jumps over it, the first instant after.

May import: windowing, operators.window_aggregates, numpy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from datetime import datetime, timedelta, timezone
from math import gcd
from zoneinfo import ZoneInfo

import numpy as np

from helios_ray.operators.window_aggregates.groups import Ints
from helios_ray.windowing import GlobalWindow, SlidingWindow, TumblingWindow, microseconds

LATEST = 2**61
"""Event times beyond ±this (µs, about 73,000 years) are refused: arithmetic stays exact."""

_END = 2 * LATEST

_DAY = 86_400_000_000
_SECOND = 1_000_000
_EPOCH = datetime(1970, 1, 1)
_FIRST_DAY = -719_162 + 3  # datetime's first date, and room for a zone's offset
_LAST_DAY = 2_932_896 - 3
_REMEMBERED = 4096


class Slicing(ABC):
    """How a kind of window cuts time.

    Args:
        span: slices in a window.
        step: slices from one window's start to the next.
    """

    def __init__(self, span: int, step: int) -> None:
        self.span = span
        self.step = step

    @abstractmethod
    def slices(self, times: Ints) -> Ints:
        """The slice of every event time (µs)."""

    @abstractmethod
    def starts(self, slices: Ints) -> Ints:
        """When slices begin (µs)."""

    def last_window_ended(self, time: int) -> int:
        """The last window whose end is at or before ``time`` (µs)."""
        inside = int(self.slices(np.array([max(-_END, min(time, _END))]))[0])
        return (inside - self.span) // self.step

    def first_window(self, slices: Ints) -> Ints:
        """The first window that a slice is part of."""
        first: Ints = (slices - self.span) // self.step + 1
        return first

    def last_window(self, slices: Ints) -> Ints:
        """The last window that a slice is part of."""
        last: Ints = slices // self.step
        return last

    def bounds(self, windows: Ints) -> tuple[Ints, Ints] | None:
        """Start and end (µs) of windows; None where they have none."""
        first = windows * self.step
        return self.starts(first), self.starts(first + self.span)


class FixedSlicing(Slicing):
    """Slices of one length, number 0 of which starts at ``offset`` (µs).

    Example:
        >>> slicing = FixedSlicing(length=10, offset=3, span=2, step=1)
        >>> slices = slicing.slices(np.array([-8, -7, 2, 3, 12, 13]))
        >>> slices.tolist(), slicing.starts(slices).tolist()
        ([-2, -1, -1, 0, 0, 1], [-17, -7, -7, 3, 3, 13])
    """

    def __init__(self, length: int, offset: int, span: int, step: int) -> None:
        super().__init__(span, step)
        self.length = length
        self.offset = offset

    def slices(self, times: Ints) -> Ints:
        found: Ints = (times - self.offset) // self.length if self.offset else times // self.length
        return found

    def starts(self, slices: Ints) -> Ints:
        starts: Ints = slices * self.length + self.offset
        return starts

    def last_window_ended(self, time: int) -> int:
        inside = (max(-_END, min(time, _END)) - self.offset) // self.length
        return (inside - self.span) // self.step


class LocalDays(Slicing):
    """Slices of local days.

    Args:
        tz: IANA name.
        days: days per slice.
        offset: µs on the local clock; whole days shift the count, the rest is the time of day
            at which a day begins.
    """

    def __init__(self, tz: str, days: int, offset: int, span: int, step: int) -> None:
        super().__init__(span, step)
        self._zone = ZoneInfo(tz)
        self._days = days
        shift, self._time = divmod(offset, _DAY)
        self._shift = shift % (days * step)
        self._known: OrderedDict[int, int] = OrderedDict()

    def slices(self, times: Ints) -> Ints:
        if len(times) == 0:
            return np.zeros(0, np.int64)
        # An offset of a zone is less than a day: a row's own local day and the next one begin
        # within two days of its UTC day. Only days that have rows are looked at.
        rough = np.unique(times // _DAY)
        days = np.unique(rough[:, None] + np.arange(-2, 4))
        begins = np.array([self._begin(day) for day in days.tolist()])
        local = days[np.searchsorted(begins, times, side="right") - 1]
        found: Ints = (local - self._shift) // self._days
        return found

    def starts(self, slices: Ints) -> Ints:
        distinct, codes = np.unique(slices, return_inverse=True)
        days = (distinct * self._days + self._shift).tolist()
        begins = np.array([self._begin(day) for day in days], np.int64)
        return begins[codes.reshape(slices.shape)]

    def _begin(self, day: int) -> int:
        """The first instant (µs) of a local day, counted from 1970-01-01."""
        known = self._known.get(day)
        if known is None:
            known = self._search(day)
            self._known[day] = known
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return known

    def _search(self, day: int) -> int:
        if not _FIRST_DAY <= day <= _LAST_DAY:
            return day * _DAY + self._time  # outside the calendar: no zone is known there
        wall = _EPOCH + timedelta(days=day, microseconds=self._time)
        instant = _micros(wall.replace(tzinfo=self._zone))
        if self._wall(instant) == wall:
            return instant
        # The clock jumps over that time: find the jump, to the microsecond.
        low, high = instant - 2 * _DAY, instant + 2 * _DAY
        while high - low > 1:
            middle = (low + high) // 2
            if self._wall(middle) >= wall:
                high = middle
            else:
                low = middle
        return high

    def _wall(self, instant: int) -> datetime:
        moment = _EPOCH.replace(tzinfo=timezone.utc) + timedelta(microseconds=instant)
        return moment.astimezone(self._zone).replace(tzinfo=None, fold=0)


class OneSlice(Slicing):
    """Everything in one window without bounds."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def slices(self, times: Ints) -> Ints:
        return np.zeros(len(times), np.int64)

    def starts(self, slices: Ints) -> Ints:
        return np.zeros(len(slices), np.int64)

    def last_window_ended(self, time: int) -> int:
        return -1 if time < LATEST else 0

    def bounds(self, windows: Ints) -> tuple[Ints, Ints] | None:
        return None


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH.replace(tzinfo=timezone.utc)) // timedelta(microseconds=1)


def slicing_of(window: TumblingWindow | SlidingWindow | GlobalWindow) -> Slicing:
    """How a window cuts time.

    Example:
        >>> ten = slicing_of(SlidingWindow(timedelta(seconds=10), timedelta(seconds=4)))
        >>> ten.span, ten.step
        (5, 2)
    """
    if isinstance(window, GlobalWindow):
        return OneSlice()
    size = microseconds("size", window.size)
    slide = microseconds("slide", window.slide) if isinstance(window, SlidingWindow) else size
    offset = window.offset // timedelta(microseconds=1)
    pane = gcd(size, slide)
    if window.tz is not None:
        return LocalDays(window.tz, pane // _DAY, offset, size // pane, slide // pane)
    return FixedSlicing(pane, offset % slide, size // pane, slide // pane)


__all__ = ["LATEST", "FixedSlicing", "LocalDays", "OneSlice", "Slicing", "slicing_of"]
