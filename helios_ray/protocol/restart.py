"""Restart strategies: after a failure, how long to wait, or whether to give up.

Why it exists: a strategy is frozen configuration; what it remembers lives in a small state
object beside it, so that configuration can be compared, printed and pickled.

May import: errors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from datetime import timedelta

from helios_ray.errors import ConfigError


def _positive(owner: str, field: str, value: timedelta) -> None:
    if value <= timedelta(0):
        raise ConfigError(
            f"{owner}.{field} must be longer than zero, got {value}. Pass a timedelta such as "
            f"timedelta(seconds=1)."
        )


class RestartState(ABC):
    """What a strategy remembers of past failures."""

    @abstractmethod
    def on_failure(self, now: float, jitter: float) -> float | None:
        """Return seconds to wait before the next attempt, or None to give up.

        Args:
            now: seconds on a clock that only grows.
            jitter: random number in [0, 1).
        """

    def on_progress(self) -> None:
        """A checkpoint was committed: whatever failed before has been got over."""


class RestartStrategy(ABC):
    """How a job answers failures."""

    @abstractmethod
    def begin(self) -> RestartState:
        """A fresh memory, for one run of a job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRestart(RestartStrategy):
    """The first failure ends the job. It can be resumed from storage."""

    def begin(self) -> RestartState:
        return _NoRestartState()


class _NoRestartState(RestartState):
    def on_failure(self, now: float, jitter: float) -> float | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedDelay(RestartStrategy):
    """Up to ``attempts`` restarts in all, ``delay`` apart.

    Example:
        >>> state = FixedDelay(attempts=1, delay=timedelta(seconds=3)).begin()
        >>> state.on_failure(0.0, 0.5), state.on_failure(9.0, 0.5)
        (3.0, None)
    """

    attempts: int = 3
    delay: timedelta = timedelta(seconds=1)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(
                f"FixedDelay.attempts must be at least 1, got {self.attempts}. Use NoRestart() to "
                f"fail at the first failure."
            )
        if self.delay < timedelta(0):
            raise ConfigError(f"FixedDelay.delay must not be negative, got {self.delay}.")

    def begin(self) -> RestartState:
        return _FixedDelayState(self)


class _FixedDelayState(RestartState):
    def __init__(self, strategy: FixedDelay) -> None:
        self._strategy = strategy
        self._failures = 0

    def on_failure(self, now: float, jitter: float) -> float | None:
        self._failures += 1
        if self._failures > self._strategy.attempts:
            return None
        return self._strategy.delay.total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialBackoff(RestartStrategy):
    """Waits longer after each failure, and starts over after a quiet time.

    The wait, though not the count, also starts over when a checkpoint was committed since the
    last failure.

    Args:
        initial: wait after the first failure.
        maximum: longest wait.
        multiplier: growth, at least 1.
        jitter: share of the wait that is random, in [0, 1].
        reset_after: this long without a failure, and the wait starts over.
        attempts: failures in a row (no quiet time between them) before giving up; None: never.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    initial: timedelta = timedelta(milliseconds=100)
    maximum: timedelta = timedelta(seconds=30)
    multiplier: float = 2.0
    jitter: float = 0.1
    reset_after: timedelta = timedelta(minutes=1)
    attempts: int | None = 10

    def __post_init__(self) -> None:
        _positive("ExponentialBackoff", "initial", self.initial)
        _positive("ExponentialBackoff", "reset_after", self.reset_after)
        if self.maximum < self.initial:
            raise ConfigError(
                f"ExponentialBackoff.maximum must be at least initial ({self.initial}), got "
                f"{self.maximum}."
            )
        if self.multiplier < 1:
            raise ConfigError(
                f"ExponentialBackoff.multiplier must be at least 1, got {self.multiplier}."
            )
        if not 0 <= self.jitter <= 1:
            raise ConfigError(f"ExponentialBackoff.jitter must be in [0, 1], got {self.jitter}.")
        if self.attempts is not None and self.attempts < 1:
            raise ConfigError(
                f"ExponentialBackoff.attempts must be at least 1 or None, got {self.attempts}."
            )

    def begin(self) -> RestartState:
        return _ExponentialBackoffState(self)


class _ExponentialBackoffState(RestartState):
    def __init__(self, strategy: ExponentialBackoff) -> None:
        self._strategy = strategy
        self._failures = 0
        self._without_progress = 0
        self._last: float | None = None

    def on_progress(self) -> None:
        # The wait starts over; the count does not: a job that fails at one record for ever
        # may commit a checkpoint before it each time.
        self._without_progress = 0

    def on_failure(self, now: float, jitter: float) -> float | None:
        strategy = self._strategy
        if self._last is not None and now - self._last > strategy.reset_after.total_seconds():
            self._failures = 0
            self._without_progress = 0
        self._last = now
        self._failures += 1
        self._without_progress += 1
        if strategy.attempts is not None and self._failures > strategy.attempts:
            return None
        longest = strategy.maximum.total_seconds()
        wait = strategy.initial.total_seconds()
        for _ in range(self._without_progress - 1):
            wait = min(longest, wait * strategy.multiplier)
        return wait * (1 - strategy.jitter * jitter)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRate(RestartStrategy):
    """Gives up when more than ``failures`` happen within ``interval``."""

    failures: int = 3
    interval: timedelta = timedelta(minutes=5)
    delay: timedelta = timedelta(seconds=1)

    def __post_init__(self) -> None:
        if self.failures < 1:
            raise ConfigError(f"FailureRate.failures must be at least 1, got {self.failures}.")
        _positive("FailureRate", "interval", self.interval)
        if self.delay < timedelta(0):
            raise ConfigError(f"FailureRate.delay must not be negative, got {self.delay}.")

    def begin(self) -> RestartState:
        return _FailureRateState(self)


class _FailureRateState(RestartState):
    def __init__(self, strategy: FailureRate) -> None:
        self._strategy = strategy
        self._times: deque[float] = deque(maxlen=strategy.failures + 1)

    def on_failure(self, now: float, jitter: float) -> float | None:
        self._times.append(now)
        window = self._strategy.interval.total_seconds()
        if sum(now - t <= window for t in self._times) > self._strategy.failures:
            return None
        return self._strategy.delay.total_seconds()
