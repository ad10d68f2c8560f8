"""What a window is, as plain data: its kind, its sizes, and when it speaks.

Why it exists: the same description travels from the fluent face through the plan to the
operator that carries it out, and is checked where it is written. Windows over event time are
half-open, ``[start, end)``: a row exactly at a boundary belongs to the later window.

May import: errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

from helios_ray.errors import ConfigError

ZERO = timedelta(0)
DAY = timedelta(days=1)
_MICROSECOND = timedelta(microseconds=1)
_LONGEST = 2**61


def microseconds(what: str, value: Any, *, least: int = 1) -> int:
    """A duration in microseconds, checked.

    Args:
        what: the setting's name, for the message.
        value: a ``timedelta``.
        least: the least number of microseconds allowed.

    Raises:
        ConfigError: not a ``timedelta``, or a shorter one.

    Example:
        >>> microseconds("size", timedelta(seconds=10))
        10000000
    """
    if not isinstance(value, timedelta):
        raise ConfigError(
            f"{what} must be a timedelta, got {value!r}. Write timedelta(seconds=10), say."
        )
    length = value // _MICROSECOND
    if length > _LONGEST:
        raise ConfigError(
            f"{what} must be at most 73,000 years, got {value!r}. Use GlobalWindow() for one "
            f"window without end."
        )
    if length < least:
        allowed = "positive" if least > 0 else "zero or more"
        raise ConfigError(f"{what} must be {allowed}, got {value!r}.")
    return length


def _check_count(what: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{what} must be a number of rows, 1 or more, got {value!r}.")


def _check_zone(what: str, tz: str | None, **lengths: timedelta) -> None:
    """Windows in a time zone are of whole days; hours would differ from hour to hour."""
    if tz is None:
        return
    try:
        ZoneInfo(tz)
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise ConfigError(
            f"{what}: tz must be an IANA time zone such as 'Europe/Berlin', got {tz!r}: {error}"
        ) from error
    for name, length in lengths.items():
        if length % DAY != ZERO:
            raise ConfigError(
                f"{what}: with tz={tz!r}, {name} must be whole days, got {length!r}: the local "
                f"clock is only followed from midnight to midnight. Leave tz out for windows of "
                f"fixed length, and shift them with offset=."
            )


def _shifted(offset: timedelta, tz: str | None) -> str:
    """The settings that most windows leave alone, for people."""
    sign = "-" if offset < ZERO else ""
    moved = f" offset {sign}{abs(offset)}" if offset else ""
    return moved + (f" in {tz}" if tz is not None else "")


@dataclass(frozen=True, slots=True)
class TumblingWindow:
    """Windows of one size, end to end.

    Args:
        size: length; with ``tz`` whole days.
        offset: shifts the boundaries, which otherwise stand at whole multiples of ``size``
            since the Unix epoch (in ``tz``: since the local midnight of that day). May be
            negative.
        tz: an IANA time zone: windows begin at local midnight (plus ``offset``, on the local
            clock), so a day may last 23 or 25 hours.

    Raises:
        ConfigError: a size that is not positive, an unknown time zone, or one with a size
            that is not whole days.

    Example:
        >>> print(TumblingWindow(timedelta(days=1), tz="America/New_York"))
        tumbling 1 day, 0:00:00 in America/New_York
    """

    size: timedelta
    offset: timedelta = ZERO
    tz: str | None = None

    def __post_init__(self) -> None:
        microseconds("TumblingWindow.size", self.size)
        microseconds("TumblingWindow.offset", self.offset, least=-_LONGEST)
        _check_zone("TumblingWindow", self.tz, size=self.size)

    def __str__(self) -> str:
        return f"tumbling {self.size}{_shifted(self.offset, self.tz)}"


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """Windows of one size, one starting every ``slide``; they overlap.

    Args:
        size: length; with ``tz`` whole days.
        slide: from one start to the next; at most ``size``, so that no row is in none.
        offset, tz: as for :class:`TumblingWindow`.

    Raises:
        ConfigError: as for :class:`TumblingWindow`, or a slide longer than the size.

    Example:
        >>> print(SlidingWindow(timedelta(seconds=10), timedelta(seconds=2)))
        sliding 0:00:10 every 0:00:02
    """

    size: timedelta
    slide: timedelta
    offset: timedelta = ZERO
    tz: str | None = None

    def __post_init__(self) -> None:
        microseconds("SlidingWindow.size", self.size)
        microseconds("SlidingWindow.slide", self.slide)
        microseconds("SlidingWindow.offset", self.offset, least=-_LONGEST)
        if self.slide > self.size:
            raise ConfigError(
                f"SlidingWindow.slide must be at most size ({self.size!r}), got {self.slide!r}: "
                f"rows between the windows would be in none. Filter those rows out before a "
                f"TumblingWindow if that is meant."
            )
        _check_zone("SlidingWindow", self.tz, size=self.size, slide=self.slide)

    def __str__(self) -> str:
        return f"sliding {self.size} every {self.slide}{_shifted(self.offset, self.tz)}"


@dataclass(frozen=True, slots=True)
class SessionWindow:
    """Rows of a key that follow each other in less than ``gap``.

    A session is ``[first row, last row + gap)``; two rows exactly ``gap`` apart are in two
    sessions, as their windows touch and do not overlap.

    A row is late when the session it belongs to was over, and the allowed lateness past, before
    it came. Sessions are merged first: a row that alone would be late belongs to a session of its
    key that is open still, or over but kept for the allowed lateness, if it is less than ``gap``
    away from it; and it makes one of two that it bridges.

    Args:
        gap: the silence that ends a session.

    Raises:
        ConfigError: a gap that is not positive.

    Example:
        >>> print(SessionWindow(timedelta(minutes=30)))
        session gap 0:30:00
    """

    gap: timedelta

    def __post_init__(self) -> None:
        microseconds("SessionWindow.gap", self.gap)

    def __str__(self) -> str:
        return f"session gap {self.gap}"


@dataclass(frozen=True, slots=True)
class CountWindow:
    """Windows of ``n`` rows of a key, in the order of arrival.

    Args:
        n: rows in a window.
        slide: rows from one window's end to the next, at most ``n``; by default ``n``. The
            first windows of a key hold fewer than ``n`` rows where ``slide`` is smaller.

    A window speaks once it is full: one that the end of the input finds unfinished does not.

    Raises:
        ConfigError: a number below 1, or a slide greater than ``n``.

    Example:
        >>> CountWindow(100).slide, CountWindow(100, 10).slide
        (100, 10)
        >>> print(CountWindow(100, 10))
        count 100 every 10
    """

    n: int
    slide: int = 0

    def __post_init__(self) -> None:
        _check_count("CountWindow.n", self.n)
        if self.slide == 0:
            object.__setattr__(self, "slide", self.n)
        _check_count("CountWindow.slide", self.slide)
        if self.slide > self.n:
            raise ConfigError(
                f"CountWindow.slide must be at most n ({self.n}), got {self.slide}: the rows "
                f"between the windows would be in none."
            )

    def __str__(self) -> str:
        return f"count {self.n}" + (f" every {self.slide}" if self.slide != self.n else "")


@dataclass(frozen=True, slots=True)
class GlobalWindow:
    """One window for all rows: it ends with the input, and before that speaks only early.

    Example:
        >>> print(GlobalWindow())
        global
    """

    def __str__(self) -> str:
        return "global"


WindowSpec: TypeAlias = TumblingWindow | SlidingWindow | SessionWindow | CountWindow | GlobalWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """When a window speaks: always once the watermark passes its end, and perhaps before.

    Build one with :meth:`on_watermark` or :meth:`early`.

    Args:
        rows: see :meth:`early`.
        every: see :meth:`early`.

    Raises:
        ConfigError: both, a number of rows below 1, or a duration that is not positive.
    """

    rows: int | None = None
    every: timedelta | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and self.every is not None:
            raise ConfigError(
                "Trigger.early takes rows= or every=, got both. Choose the one that the reader "
                "of the early results needs."
            )
        if self.rows is not None:
            _check_count("Trigger.rows", self.rows)
        if self.every is not None:
            microseconds("Trigger.every", self.every)

    def __str__(self) -> str:
        if self.rows is not None:
            return f"early every {self.rows} {'row' if self.rows == 1 else 'rows'}"
        return f"early every {self.every}" if self.every is not None else "on watermark"

    @classmethod
    def on_watermark(cls) -> Trigger:
        """Only when the watermark passes the window's end (and for late rows, after it)."""
        return cls()

    @classmethod
    def early(cls, *, rows: int | None = None, every: timedelta | None = None) -> Trigger:
        """Also before the window ends.

        Args:
            rows: once a window of a key has got that many rows since it last spoke. Looked at
                after each batch, so a window speaks at most once a batch.
            every: each time so much processing time has gone by, for the windows that got
                rows since they last spoke.

        Raises:
            ConfigError: neither or both.

        Example:
            >>> print(Trigger.early(rows=100), Trigger.on_watermark(), sep="; ")
            early every 100 rows; on watermark
        """
        if rows is None and every is None:
            raise ConfigError("Trigger.early needs rows= or every=, got neither.")
        return cls(rows=rows, every=every)

    @property
    def is_early(self) -> bool:
        """Whether a window may speak before it ends."""
        return self.rows is not None or self.every is not None


__all__ = [
    "CountWindow",
    "GlobalWindow",
    "SessionWindow",
    "SlidingWindow",
    "Trigger",
    "TumblingWindow",
    "WindowSpec",
    "microseconds",
]
