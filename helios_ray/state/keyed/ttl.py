"""When state expires.

Why it exists: state that nobody will ask for again must not be kept, nor written to every
checkpoint. A state declared with a :class:`StateTtl` carries a deadline per value (per entry
of a map, per element of a list). What is past its deadline is never returned, never in a
snapshot, and removed in the background, a bounded number of cells at a time.

Time is processing time, or the watermark for ``clock="event"``. What is written before the
clock is known (no watermark yet) starts its life at the first time that becomes known.

May import: elements, errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias, get_args

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP
from helios_ray.errors import ConfigError

Refresh: TypeAlias = Literal["write", "read"]
Clock: TypeAlias = Literal["processing", "event"]

PENDING = MAX_TIMESTAMP
"""The deadline of what was written before the clock was known."""

SWEEP_CELLS = 16_384
"""Cells looked at in one step of the clean-up: some 15 µs."""

IDLE_SWEEP = 1_000_000
"""Processing time (µs) between two steps of the clean-up while no rows come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTtl:
    """How long state lives.

    Args:
        duration: after the last refresh; at least a microsecond.
        refresh: ``"write"`` counts from the last write, ``"read"`` from the last write or read.
        clock: ``"processing"`` or ``"event"`` (the operator's watermark).

    Raises:
        ConfigError: a duration that is not positive, an unknown refresh or clock.

    Example:
        >>> StateTtl(duration=timedelta(minutes=5)).microseconds
        300000000
    """

    duration: timedelta
    refresh: Refresh = "write"
    clock: Clock = "processing"

    def __post_init__(self) -> None:
        if not isinstance(self.duration, timedelta) or self.duration <= timedelta(0):
            raise ConfigError(
                f"StateTtl.duration must be a positive timedelta, got {self.duration!r}. Leave ttl "
                f"out for state that never expires."
            )
        if self.refresh not in get_args(Refresh):
            raise ConfigError(f"StateTtl.refresh must be 'write' or 'read', got {self.refresh!r}.")
        if self.clock not in get_args(Clock):
            raise ConfigError(
                f"StateTtl.clock must be 'processing' or 'event', got {self.clock!r}."
            )

    @property
    def microseconds(self) -> int:
        """The duration in µs."""
        return self.duration // timedelta(microseconds=1)

    def deadline(self, now: int) -> int:
        """When what is written at ``now`` (µs) expires."""
        if now == MIN_TIMESTAMP:
            return PENDING
        return min(now + self.microseconds, PENDING - 1)


def as_ttl(ttl: StateTtl | timedelta | None) -> StateTtl | None:
    """A bare duration stands for the defaults."""
    return StateTtl(duration=ttl) if isinstance(ttl, timedelta) else ttl
