"""Restart strategies: how long to wait, and when to give up."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.errors import ConfigError
from helios_ray.protocol.restart import (
    ExponentialBackoff,
    FailureRate,
    FixedDelay,
    NoRestart,
    RestartStrategy,
)


def waits(strategy: RestartStrategy, times: list[float], jitter: float = 0.0) -> list[float | None]:
    state = strategy.begin()
    return [state.on_failure(t, jitter) for t in times]


def test_none_gives_up_at_once() -> None:
    assert waits(NoRestart(), [0.0]) == [None]


def test_fixed_delay_counts_all_failures_ever() -> None:
    strategy = FixedDelay(attempts=2, delay=timedelta(seconds=3))
    assert waits(strategy, [0.0, 9e9, 9e9]) == [3.0, 3.0, None]


def test_backoff_doubles_up_to_its_maximum_and_starts_over_after_a_quiet_time() -> None:
    strategy = ExponentialBackoff(
        initial=timedelta(seconds=1),
        maximum=timedelta(seconds=5),
        reset_after=timedelta(seconds=60),
        jitter=0.5,
    )
    assert waits(strategy, [0.0, 1.0, 3.0, 7.0, 12.0]) == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert waits(strategy, [0.0, 10.0, 70.0, 131.0]) == [1.0, 2.0, 4.0, 1.0]
    assert waits(strategy, [0.0], jitter=1.0) == [0.5]


def test_the_wait_but_not_the_count_starts_over_once_a_checkpoint_was_committed() -> None:
    strategy = ExponentialBackoff(initial=timedelta(seconds=1), jitter=0.0, attempts=4)
    state = strategy.begin()
    assert [state.on_failure(0.0, 0.0), state.on_failure(1.0, 0.0)] == [1.0, 2.0]
    state.on_progress()
    assert [state.on_failure(2.0, 0.0), state.on_failure(3.0, 0.0)] == [1.0, 2.0]
    state.on_progress()
    assert state.on_failure(4.0, 0.0) is None


def test_backoff_gives_up_after_so_many_failures_in_a_row() -> None:
    strategy = ExponentialBackoff(attempts=2, reset_after=timedelta(seconds=60))
    assert waits(strategy, [0.0, 1.0, 2.0])[-1] is None
    assert None not in waits(strategy, [0.0, 1.0, 100.0, 101.0, 200.0])


def test_failure_rate_gives_up_when_too_many_fall_into_the_interval() -> None:
    strategy = FailureRate(failures=2, interval=timedelta(seconds=10), delay=timedelta(seconds=1))
    assert waits(strategy, [0.0, 5.0, 10.5, 11.0]) == [1.0, 1.0, 1.0, None]


@given(
    st.lists(st.floats(0, 1000), max_size=30).map(sorted),
    st.floats(0, 1, exclude_max=True),
)
def test_backoff_never_waits_longer_than_its_maximum(times: list[float], jitter: float) -> None:
    strategy = ExponentialBackoff(attempts=None, maximum=timedelta(seconds=7), jitter=1.0)
    for wait in waits(strategy, times, jitter):
        assert wait is not None
        assert 0 < wait <= 7.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedDelay(attempts=0), "Use NoRestart"),
        (lambda: FixedDelay(delay=timedelta(seconds=-1)), "must not be negative"),
        (lambda: ExponentialBackoff(initial=timedelta(0)), "longer than zero"),
        (lambda: ExponentialBackoff(maximum=timedelta(microseconds=1)), "at least initial"),
        (lambda: ExponentialBackoff(multiplier=0.5), "at least 1"),
        (lambda: ExponentialBackoff(jitter=2.0), r"in \[0, 1\]"),
        (lambda: ExponentialBackoff(attempts=0), "at least 1 or None"),
        (lambda: FailureRate(failures=0), "at least 1"),
        (lambda: FailureRate(interval=timedelta(0)), "longer than zero"),
        (lambda: FailureRate(delay=timedelta(seconds=-1)), "must not be negative"),
    ],
)
def test_wrong_settings_are_refused_when_they_are_made(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
