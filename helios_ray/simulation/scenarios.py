"""Jobs to simulate: a plan, its rules and its faults, all drawn from a seed.

Why it exists: shapes differ in what can go wrong (chained or not, fan-out, fan-in, idle
inputs, several sinks), and so do settings.

May import: plan, operators, protocol and this room.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from helios_ray.execution.outputs import ChannelOptions
from helios_ray.execution.task import TaskOptions
from helios_ray.operators.reduce import ReduceOperator
from helios_ray.plan.physical import (
    Chain,
    Edge,
    OperatorSpec,
    Partitioning,
    PhysicalPlan,
    SinkSpec,
    SourceSpec,
)
from helios_ray.protocol.checkpoints import CheckpointRules
from helios_ray.protocol.coordinator import CoordinatorRules
from helios_ray.protocol.restart import ExponentialBackoff
from helios_ray.simulation.faults import Dice, FaultPlan
from helios_ray.simulation.judge import Judge
from helios_ray.simulation.ledger import Ledger, LedgerSink
from helios_ray.simulation.operators import HoldUntilWatermark
from helios_ray.simulation.source import NumberedSource
from helios_ray.simulation.world import Settings, World
from helios_ray.watermarks import WatermarkStrategy


def add_up(total: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Running count per key: the row, counted."""
    return {**row, "count": total["count"] + row["count"]}


@dataclass(slots=True)
class _Builder:
    dice: Dice
    chains: list[Chain] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    def connect(self, up: Chain, down: Chain, how: Partitioning) -> None:
        keys = ("key",) if how is Partitioning.HASH else ()
        self.edges.append(
            Edge(
                index=len(self.edges),
                upstream=up.uid,
                operator=up.uids[-1],
                downstream=down.uid,
                partitioning=how,
                keys=keys,
            )
        )

    def add(self, chain: Chain) -> Chain:
        self.chains.append(chain)
        return chain


def draw_rules(rng: random.Random) -> CoordinatorRules:
    """Settings of the coordinator."""
    return CoordinatorRules(
        checkpoints=CheckpointRules(
            interval=rng.choice((0.2, 0.5, 2.0)),
            min_pause=rng.choice((0.0, 0.1)),
            max_concurrent=rng.choice((1, 1, 2, 3)),
            timeout=rng.choice((2.0, 10.0)),
            tolerable_failures=rng.choice((0, 1, 3)),
            retain_count=rng.choice((1, 2, 3)),
        ),
        restart=ExponentialBackoff(
            initial=timedelta(milliseconds=50), maximum=timedelta(seconds=1), attempts=None
        ),
        heartbeat_timeout=5.0,
        deploy_timeout=20.0,
        resend_interval=1.0,
        storage_retry=0.1,
        storage_attempts=8,
    )


def build(seed: int, faults: FaultPlan | None = None) -> World:
    """The world of a seed.

    Args:
        seed: decides everything.
        faults: instead of those the seed would draw.
    """
    rng = random.Random(seed)
    drawn = FaultPlan.draw(rng)
    dice = Dice(rng, faults or drawn)
    ledger = Ledger(dice)
    rules = draw_rules(rng)
    options = TaskOptions(
        channels=ChannelOptions(
            frame_bytes=rng.choice((256, 4096)),
            buffer_timeout=rng.choice((0.0, 0.02)),
            window_bytes=rng.choice((1024, 1 << 16)),
            repeat_timeout=2.0,
        ),
        source_rows=16,
        heartbeat_interval=1.0,
    )
    plan, expected, counted = draw_plan(rng, dice, ledger)
    judge = Judge(expected, counted)
    return World(plan, Settings(rules, options), dice, ledger, judge)


def draw_plan(
    rng: random.Random, dice: Dice, ledger: Ledger
) -> tuple[PhysicalPlan, dict[str, list[tuple[str, int, int, int]]], frozenset[str]]:
    """A plan, what each sink must hold in the end, and which sinks hold running counts."""
    b = _Builder(dice)
    can_list = rng.random() < 0.6
    shape = rng.choice(("keyed", "keyed", "union", "two-sinks", "direct", "idle"))
    keys = rng.randint(1, 6)
    width = rng.choice((1, 2, 2, 3))
    out_width = rng.choice((1, 2, 2, 3))
    sources = [
        NumberedSource("a", rng.randint(1, 4), rng.randint(5, 60), keys, dice),
    ]
    if shape in ("union", "idle"):
        sources.append(NumberedSource("b", rng.randint(1, 3), rng.randint(2, 30), keys, dice))
    timed = shape == "idle" or rng.random() < 0.4
    strategy = None
    if timed:
        strategy = WatermarkStrategy.monotonic("ts").with_idleness(timedelta(seconds=1))
    if shape == "idle":
        total = sources[0].splits * sources[0].rows

        def released() -> bool:
            # The idle source ends only once all timely rows of the other one came through,
            # but for those that the split's own last watermark cannot cover.
            seen = sum(row[0] == "a" for row in ledger.rows())
            return seen >= total - sources[0].splits

        sources[1].released = released

    heads = [
        b.add(
            Chain(
                uid=f"source-{s.name}",
                name=f"source {s.name}",
                parallelism=width if shape != "direct" else out_width,
                source=SourceSpec(
                    uid=f"source-{s.name}", name=s.name, source=s, watermarks=strategy
                ),
            )
        )
        for s in sources
    ]
    every = [row for s in sources for row in s.expected()]

    def sink(uid: str) -> SinkSpec:
        return SinkSpec(uid=uid, name=uid, factory=lambda: LedgerSink(ledger, can_list=can_list))

    if shape == "direct":
        b.chains[0] = replace(heads[0], sink=sink("out"))
        return _plan(b), {"out": every}, frozenset()
    count = OperatorSpec(uid="count", name="count", factory=lambda: ReduceOperator(["key"], add_up))
    operators: tuple[OperatorSpec, ...] = (count,)
    if timed:
        operators = (OperatorSpec(uid="hold", name="hold", factory=HoldUntilWatermark), count)
    chained = shape != "two-sinks" and rng.random() < 0.6
    keyed = b.add(
        Chain(
            uid=operators[0].uid,
            name="keyed",
            parallelism=out_width,
            operators=operators,
            sink=sink("out") if chained else None,
        )
    )
    for head in heads:
        b.connect(head, keyed, Partitioning.HASH)
    sinks = ["out"]
    if not chained:
        sinks = ["out", "copy"] if shape == "two-sinks" else ["out"]
        for uid in sinks:
            spec = sink(uid)
            chain = b.add(Chain(uid=uid, name=uid, parallelism=out_width, sink=spec))
            b.connect(keyed, chain, Partitioning.FORWARD)
    return _plan(b), dict.fromkeys(sinks, every), frozenset(sinks)


def _plan(b: _Builder) -> PhysicalPlan:
    return PhysicalPlan(
        job="simulated", chains=tuple(b.chains), edges=tuple(b.edges), max_parallelism=16
    )
