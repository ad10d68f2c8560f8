"""When a call that failed is made again.

Why it exists: services fail for a moment; the settings are public and are checked once.

May import: errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from helios_ray.errors import ConfigError

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncRetry:
    """How often a failed call is made again, and after which pauses.

    Attempts are counted anew after a restart of the job.

    Args:
        attempts: calls in all, the first one included; 1 is no retry.
        initial: pause before the second call.
        multiplier: each further pause is so many times the one before; at least 1.
        maximum: no pause is longer.
        on: exceptions worth another call; a timeout is a ``TimeoutError``.

    Raises:
        ConfigError: a value out of range, by name.

    Example:
        >>> retry = AsyncRetry(attempts=4, initial=timedelta(seconds=1), on=(TimeoutError, OSError))
        >>> [retry.pause(n) // 1_000_000 for n in (1, 2, 3)]
        [1, 2, 4]
        >>> retry.applies(1, OSError()), retry.applies(1, KeyError()), retry.applies(4, OSError())
        (True, False, False)
    """

    attempts: int = 3
    initial: timedelta = timedelta(milliseconds=100)
    multiplier: float = 2.0
    maximum: timedelta = timedelta(seconds=10)
    on: tuple[type[Exception], ...] = (Exception,)

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise ConfigError(
                f"AsyncRetry: attempts must be a number of calls, at least 1, "
                f"got {self.attempts!r}."
            )
        for name in ("initial", "maximum"):
            value = getattr(self, name)
            if not isinstance(value, timedelta) or value < timedelta():
                raise ConfigError(
                    f"AsyncRetry: {name} must be a timedelta that is not negative, got {value!r}."
                )
        if self.maximum < self.initial:
            raise ConfigError(
                f"AsyncRetry: maximum must not be less than initial ({self.initial}), "
                f"got {self.maximum}."
            )
        number = isinstance(self.multiplier, (int, float)) and self.multiplier is not True
        if not number or not 1 <= self.multiplier < float("inf"):
            raise ConfigError(
                f"AsyncRetry: multiplier must be a number, at least 1, got {self.multiplier!r}."
            )
        on = self.on if isinstance(self.on, tuple) else (self.on,)
        if not on or not all(isinstance(e, type) and issubclass(e, Exception) for e in on):
            raise ConfigError(
                f"AsyncRetry: on must be exception classes, such as (TimeoutError, OSError), "
                f"got {self.on!r}."
            )
        object.__setattr__(self, "on", on)

    def applies(self, attempt: int, error: Exception) -> bool:
        """Whether call number ``attempt``, which failed with ``error``, is made again."""
        return attempt < self.attempts and isinstance(error, self.on)

    def pause(self, attempt: int) -> int:
        """Microseconds between call number ``attempt`` and the next."""
        longest = self.maximum // _MICROSECOND
        pause = float(self.initial // _MICROSECOND)
        for _ in range(attempt - 1):
            pause *= self.multiplier
            if pause >= longest:
                return longest
        return min(longest, int(pause))
