"""Jobs to simulate: a plan, its rules and its faults, all drawn from a seed.

Why it exists: settings differ in what can go wrong, and so do the shapes of plans (see
``plans``).

May import: plan, execution, protocol and this room.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from helios_ray.execution.outputs import ChannelOptions
from helios_ray.execution.settings import TaskOptions
from helios_ray.protocol.checkpoints import CheckpointRules
from helios_ray.protocol.restart import (
    ExponentialBackoff,
    FailureRate,
    FixedDelay,
    NoRestart,
    RestartStrategy,
)
from helios_ray.protocol.settings import CoordinatorRules
from helios_ray.simulation.faults import Dice, FaultPlan
from helios_ray.simulation.judge import Judge
from helios_ray.simulation.ledger import Ledger
from helios_ray.simulation.plans import SHAPES, draw_plan
from helios_ray.simulation.world import Settings, World

STALL_TIMEOUT = 4.0
"""Seconds inside one call after which a simulated task counts as hung."""


def draw_restart(rng: random.Random) -> RestartStrategy:
    """Mostly one that never gives up, so that the rest of the run is not wasted."""
    patient = ExponentialBackoff(
        initial=timedelta(milliseconds=50), maximum=timedelta(seconds=1), attempts=None
    )
    return rng.choice(
        (
            patient,
            patient,
            patient,
            FixedDelay(attempts=3, delay=timedelta(milliseconds=200)),
            FailureRate(failures=3, interval=timedelta(seconds=5), delay=timedelta()),
            NoRestart(),
        )
    )


def draw_rules(rng: random.Random) -> CoordinatorRules:
    """Settings of the coordinator."""
    return CoordinatorRules(
        checkpoints=CheckpointRules(
            interval=rng.choice((0.1, 0.2, 0.5, 2.0)),
            min_pause=rng.choice((0.0, 0.0, 0.1)),
            max_concurrent=rng.choice((1, 1, 2, 3)),
            timeout=rng.choice((0.5, 2.0, 10.0)),
            tolerable_failures=rng.choice((0, 1, 3)),
            retain_count=rng.choice((1, 2, 3)),
        ),
        restart=draw_restart(rng),
        heartbeat_timeout=5.0,
        deploy_timeout=20.0,
        stall_timeout=STALL_TIMEOUT,
        resend_interval=1.0,
        storage_retry=0.1,
        storage_attempts=8,
    )


def draw_options(rng: random.Random) -> TaskOptions:
    """Settings of the tasks."""
    return TaskOptions(
        channels=ChannelOptions(
            frame_bytes=rng.choice((256, 4096)),
            buffer_timeout=rng.choice((0.0, 0.02)),
            window_bytes=rng.choice((1024, 1 << 16)),
            repeat_timeout=2.0,
        ),
        source_rows=16,
        heartbeat_interval=1.0,
    )


def build(seed: int, faults: FaultPlan | None = None, shapes: Sequence[str] = SHAPES) -> World:
    """The world of a seed.

    Args:
        seed: decides everything.
        faults: instead of those the seed would draw.
        shapes: of plans to draw from.
    """
    rng = random.Random(seed)
    drawn = FaultPlan.draw(rng)
    dice = Dice(rng, drawn if faults is None else replace(faults))
    ledger = Ledger(dice)
    rules = draw_rules(rng)
    options = draw_options(rng)
    job = draw_plan(rng, dice, ledger, shapes)
    if job.patient:
        rules = replace(rules, checkpoints=replace(rules.checkpoints, timeout=60.0))
    return World(job.plan, Settings(job.shape, rules, options), dice, ledger, Judge(job.expected))
