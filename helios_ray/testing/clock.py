"""A clock that stands still until a test moves it.

Why it exists: what depends on processing time is tested to the microsecond and without waiting.
Sources, operators and task bodies never read a clock, they are handed ``now``: hand them this.

May import: errors.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from helios_ray.errors import ConfigError


class ManualClock:
    """Seconds since the Unix epoch, as a test wants them.

    Args:
        start: when it begins; with a time zone.

    Raises:
        ConfigError: ``start`` has no time zone.

    Example:
        >>> clock = ManualClock(datetime(2024, 1, 1, tzinfo=timezone.utc))
        >>> clock.advance(timedelta(milliseconds=1500))
        1704067201.5
        >>> clock.now()
        1704067201.5
    """

    def __init__(self, start: datetime = datetime(2024, 1, 1, tzinfo=timezone.utc)) -> None:
        if start.tzinfo is None:
            raise ConfigError(
                f"ManualClock(start=…) needs a time zone, got {start!r}. Add tzinfo=timezone.utc."
            )
        # In whole microseconds: sums of floats would drift.
        self._micros = (start - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(
            microseconds=1
        )

    def now(self) -> float:
        """Seconds."""
        return self._micros / 1_000_000

    @property
    def micros(self) -> int:
        """Microseconds since the Unix epoch."""
        return self._micros

    def advance(self, by: timedelta) -> float:
        """Move on; return the new ``now``.

        Raises:
            ConfigError: ``by`` is negative: clocks of tasks never go back.
        """
        if by < timedelta():
            raise ConfigError(
                f"ManualClock.advance expects zero or more, got {by}. Make another clock to go back"
                f" in time, as a restore on another machine would see it."
            )
        self._micros += by // timedelta(microseconds=1)
        return self.now()
