"""What a schedule of kills promises, for any seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helios_ray.runtime.failpoints import COORDINATOR, COORDINATOR_STEPS, STEPS
from tests.chaos.job import FILES, ROWS, SOURCE, TOTALS
from tests.chaos.schedule import TASK_VICTIMS, WHILE_RECOVERING, draw

seeds = st.integers(0, 1_000_000)


@given(st.integers(20, 60), seeds)
def test_twenty_kills_come_to_every_step_and_to_every_kind_of_process(
    kills: int, seed: int
) -> None:
    drawn = draw(kills, seed)
    assert {kill.step for kill in drawn} >= set(STEPS)
    at_random = {kill.victim for kill in drawn if not kill.step and not kill.opens}
    assert {SOURCE, TOTALS, COORDINATOR} <= at_random
    assert at_random & {ROWS, FILES}
    at_steps = [kill.victim == COORDINATOR for kill in drawn if kill.step]
    assert any(at_steps)
    assert not all(at_steps)


@given(st.integers(1, 60), seeds)
def test_as_many_are_drawn_as_were_asked_for_and_the_same_again(kills: int, seed: int) -> None:
    drawn = draw(kills, seed)
    assert len(drawn) == kills
    assert drawn == draw(kills, seed)


@given(st.integers(1, 60), seeds)
def test_nobody_waits_for_a_victim_that_never_comes(kills: int, seed: int) -> None:
    drawn = draw(kills, seed)
    for kill in drawn:
        if kill.step and kill.victim == COORDINATOR:
            assert kill.step in COORDINATOR_STEPS
        elif kill.step:
            assert kill.victim in TASK_VICTIMS[kill.step]
    for before, kill in zip([None, *drawn], drawn, strict=False):
        opened = before is not None and before.opens
        assert opened == (kill.step in WHILE_RECOVERING)
    assert not drawn[-1].opens
