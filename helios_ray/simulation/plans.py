"""Plans to simulate, drawn from a seed.

Why it exists: shapes differ in what can go wrong: fan-in, fan-out, idle inputs, two shuffles
in a row, several sinks of different kinds, event time, timers, two inputs, rows that wait for
an answer or for a table. See ``shapes``.

May import: plan and this room.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from helios_ray.plan.physical import PhysicalPlan
from helios_ray.simulation.expectations import Expected
from helios_ray.simulation.faults import Dice
from helios_ray.simulation.ledger import Ledger
from helios_ray.simulation.shapes import basic, fading, flow, joins, process, tables, whole, windows
from helios_ray.simulation.shapes.builder import Builder, Shape

_SHAPES: dict[str, Shape] = {
    **basic.SHAPES,
    **windows.SHAPES,
    **whole.SHAPES,
    **process.SHAPES,
    **joins.SHAPES,
    **fading.SHAPES,
    **tables.SHAPES,
    **flow.SHAPES,
}

SHAPES = tuple(_SHAPES)
"""Every shape there is."""


@dataclass(frozen=True, slots=True)
class Job:
    """A plan, and what its sinks must hold in the end.

    Args:
        patient: barriers may have to wait behind rows that are let in slowly: no checkpoint may
            be given up for that, or the job would never get on.
    """

    shape: str
    plan: PhysicalPlan
    expected: dict[str, Expected]
    patient: bool


def draw_plan(
    rng: random.Random, dice: Dice, ledger: Ledger, shapes: Sequence[str] = SHAPES
) -> Job:
    """A plan of one of the ``shapes``."""
    shape = rng.choice(shapes)
    builder = Builder(
        dice=dice,
        ledger=ledger,
        shape=shape,
        width=rng.choice((1, 2, 2, 3)),
        out_width=rng.choice((1, 2, 2, 3)),
        can_list=rng.random() < 0.6,
        timed=rng.random() < 0.4,
        chained=rng.random() < 0.6,
        keys=rng.randint(1, 6),
        pace=rng.choice((0.0, 0.05, 0.3)),
        aligned=rng.random() < 0.3,
    )
    expected = _SHAPES[shape](builder, rng)
    return Job(shape, builder.plan(), expected, builder.patient)
