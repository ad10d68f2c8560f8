"""Sources that wait for each other, in a whole job whose messages get lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

import pytest

from helios_ray.identifiers import TaskId
from helios_ray.protocol.checkpoints import CheckpointRules
from helios_ray.protocol.messages import LimitSource, ToTask
from helios_ray.protocol.settings import CoordinatorRules
from helios_ray.simulation.expectations import Expected
from helios_ray.simulation.faults import Dice, FaultPlan
from helios_ray.simulation.judge import Judge
from helios_ray.simulation.ledger import Ledger
from helios_ray.simulation.run import play
from helios_ray.simulation.scenarios import draw_options, draw_rules
from helios_ray.simulation.shapes import aligned
from helios_ray.simulation.shapes.aligned import Course, RacingSource
from helios_ray.simulation.shapes.builder import Builder
from helios_ray.simulation.world import Cluster, Settings, World
from helios_ray.watermarks import WatermarkStrategy

DRIFT = 10_000
FIRST_BATCH = 8000
"""Event time of the last row of the longest first batch: where a source may have begun."""

LOST_MAIL = {"drop_message": 0.2, "duplicate_message": 0.2, "delay": 0.2}


def world_of(
    seed: int,
    faults: FaultPlan | None,
    build: Callable[[Builder, random.Random], dict[str, Expected]],
    rules: CoordinatorRules | None = None,
) -> World:
    rng = random.Random(seed)
    drawn = FaultPlan.draw(rng)
    dice = Dice(rng, faults or drawn)
    ledger = Ledger(dice)
    b = Builder(
        dice=dice,
        ledger=ledger,
        shape="aligned",
        width=rng.choice((1, 2, 3)),
        out_width=rng.choice((1, 2)),
        can_list=True,
        timed=True,
        chained=True,
        keys=3,
        pace=0.2,
        aligned=False,
    )
    drawn_rules = draw_rules(rng)
    options = draw_options(rng)
    expected = build(b, rng)
    settings = Settings("aligned", rules or drawn_rules, options)
    return World(b.plan(), settings, dice, ledger, Judge(expected))


def race(
    seed: int, strategy: WatermarkStrategy, faults: FaultPlan | None = None
) -> tuple[World, Course]:
    """A fast source and a slow one, without anything that would set the job back."""
    courses: list[Course] = []

    def build(b: Builder, rng: random.Random) -> dict[str, Expected]:
        sources = [
            RacingSource(name, rng.randint(1, 3), 60, b.keys, b.dice, pace)
            for name, pace in (("fast", 0.0), ("slow", 0.3))
        ]
        course = Course(sources)
        courses.append(course)
        for source in sources:
            source.course = course
        return aligned.race(b, strategy, sources)

    # Only the last checkpoint, and as many tries at it as it takes.
    checkpoints = CheckpointRules(interval=None, timeout=2.0, tolerable_failures=1000)
    rules = CoordinatorRules(checkpoints=checkpoints, resend_interval=1.0)
    world = world_of(seed, faults or FaultPlan(), build, rules)
    assert play(world).total() == 1
    assert world.judge.violations == []
    return world, courses[0]


MONOTONIC = WatermarkStrategy.monotonic("ts")
ALIGNED = MONOTONIC.with_alignment("g", timedelta(microseconds=DRIFT), timedelta(seconds=1))


@pytest.mark.parametrize("mail", [{}, LOST_MAIL])
def test_no_source_runs_further_ahead_than_agreed_though_messages_get_lost(
    mail: dict[str, float],
) -> None:
    for seed in range(8):
        _, course = race(seed, ALIGNED, FaultPlan(until=60.0, **mail))
        assert 0 < course.greatest_lead <= FIRST_BATCH + DRIFT


def test_without_an_alignment_the_fast_source_runs_away() -> None:
    leads = [race(seed, MONOTONIC)[1].greatest_lead for seed in range(4)]
    assert min(leads) > FIRST_BATCH + DRIFT


def test_waiting_ends_soon_after_the_slow_source_has_moved() -> None:
    """It takes messages, not update intervals: else reading would go at one drift a second."""
    alone = [race(seed, MONOTONIC)[0].now for seed in range(3)]
    together = [race(seed, ALIGNED)[0].now for seed in range(3)]
    assert sum(together) < 1.5 * sum(alone)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_a_job_ends_though_nine_of_ten_limits_are_lost(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    send, luck = Cluster.send_to_task, random.Random(seed)
    lost: list[int] = []

    def forgetful(self: Cluster, task: TaskId, message: ToTask) -> None:
        if isinstance(message, LimitSource) and luck.random() < 0.9:
            lost.append(message.number)
        else:
            send(self, task, message)

    monkeypatch.setattr(Cluster, "send_to_task", forgetful)
    _, course = race(seed, ALIGNED)
    assert len(lost) > 8
    assert course.greatest_lead <= FIRST_BATCH + DRIFT


def test_jobs_with_alignment_keep_every_promise_under_all_faults() -> None:
    thrown = 0
    for seed in range(20):
        world = world_of(seed, None, aligned.build)
        statuses = play(world)
        assert (seed, world.judge.violations) == (seed, [])
        assert statuses["finished"] == 1
        thrown += world.dice.thrown.total()
    assert thrown > 200
