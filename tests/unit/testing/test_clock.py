"""The clock that a test moves."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.errors import ConfigError
from helios_ray.testing import ManualClock


def test_it_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(datetime(2024, 5, 1, tzinfo=timezone.utc))
    assert clock.now() == clock.now() == datetime(2024, 5, 1, tzinfo=timezone.utc).timestamp()
    before = clock.micros
    assert clock.advance(timedelta(microseconds=7)) == clock.now()
    assert clock.micros - before == 7


@given(st.lists(st.integers(0, 10**9), max_size=30))
def test_many_small_steps_are_one_large_one(steps: list[int]) -> None:
    clock, other = ManualClock(), ManualClock()
    for step in steps:
        clock.advance(timedelta(microseconds=step))
    other.advance(timedelta(microseconds=sum(steps)))
    assert clock.now() == other.now()


def test_it_does_not_go_back_and_knows_its_zone() -> None:
    with pytest.raises(ConfigError, match="zero or more"):
        ManualClock().advance(timedelta(seconds=-1))
    with pytest.raises(ConfigError, match=r"tzinfo=timezone\.utc"):
        ManualClock(datetime(2024, 5, 1))
