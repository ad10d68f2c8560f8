"""Plans to simulate, drawn from a seed.

Why it exists: shapes differ in what can go wrong: fan-in, fan-out, idle inputs, two shuffles
in a row, several sinks of different kinds, a sink chained to its source.

    keyed      source ─hash─> count ─> sink (chained to it, or behind an edge); every count
               adds a row when its input has ended
    union      two sources into one count
    idle       two sources, one of which is silent until the other is through
    two-sinks  count ─> two transactional sinks
    mixed      count ─> a transactional sink and one that is not
    deep       source ─hash by key─> count ─hash by split─> sink
    rebalance  source ─in turn─> sink
    broadcast  source ─to all─> sink
    direct     the sink is chained to the source

May import: plan, operators, connectors, watermarks and this room.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

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
from helios_ray.simulation.faults import Dice
from helios_ray.simulation.judge import Expectation, Identity
from helios_ray.simulation.ledger import Ledger, LedgerSink, LogSink
from helios_ray.simulation.operators import (
    Farewell,
    HoldUntilWatermark,
    Unlucky,
    farewell,
)
from helios_ray.simulation.source import NumberedSource
from helios_ray.watermarks import WatermarkStrategy

SHAPES = (
    "keyed",
    "union",
    "idle",
    "two-sinks",
    "mixed",
    "deep",
    "rebalance",
    "broadcast",
    "direct",
)


def add_up(total: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Running count per key: the row, counted."""
    return {**row, "count": total["count"] + row["count"]}


@dataclass(frozen=True, slots=True)
class Job:
    """A plan, and what each of its sinks must hold in the end."""

    shape: str
    plan: PhysicalPlan
    expected: dict[str, Expectation]


@dataclass(slots=True)
class _Builder:
    dice: Dice
    ledger: Ledger
    shape: str
    width: int
    out_width: int
    can_list: bool
    timed: bool
    chained: bool
    chains: list[Chain] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    def connect(self, up: Chain, down: Chain, how: Partitioning, key: str = "key") -> None:
        self.edges.append(
            Edge(
                index=len(self.edges),
                upstream=up.uid,
                operator=up.uids[-1],
                downstream=down.uid,
                partitioning=how,
                keys=(key,) if how is Partitioning.HASH else (),
            )
        )

    def add(self, chain: Chain) -> Chain:
        self.chains.append(chain)
        return chain

    def sink(self, uid: str) -> SinkSpec:
        ledger, can_list = self.ledger, self.can_list
        if uid == "log":
            return SinkSpec(uid=uid, name=uid, factory=lambda: LogSink(ledger))
        return SinkSpec(uid=uid, name=uid, factory=lambda: LedgerSink(ledger, can_list=can_list))

    def sink_chain(self, uid: str, width: int) -> Chain:
        return self.add(Chain(uid=uid, name=uid, parallelism=width, sink=self.sink(uid)))

    def head(self, source: NumberedSource) -> Chain:
        strategy = None
        if self.timed:
            strategy = WatermarkStrategy.monotonic("ts").with_idleness(timedelta(seconds=1))
        uid = f"source-{source.name}"
        return self.add(
            Chain(
                uid=uid,
                name=uid,
                parallelism=self.width,
                source=SourceSpec(uid=uid, name=uid, source=source, watermarks=strategy),
                sink=self.sink("out") if self.shape == "direct" else None,
            )
        )

    def keyed(self, sink: SinkSpec | None) -> Chain:
        dice = self.dice
        operators = [
            OperatorSpec(uid="unlucky", name="unlucky", factory=lambda: Unlucky(dice)),
            OperatorSpec(
                uid="count", name="count", factory=lambda: ReduceOperator(["key"], add_up)
            ),
            OperatorSpec(uid="farewell", name="farewell", factory=Farewell),
        ]
        if self.timed:
            ledger = self.ledger

            def moved(before: int, after: int) -> None:
                if ledger.witness is not None:
                    ledger.witness.on_watermark(before, after)

            factory = partial(HoldUntilWatermark, moved)
            operators.insert(1, OperatorSpec(uid="hold", name="hold", factory=factory))
        return self.add(
            Chain(
                uid="unlucky",
                name="keyed",
                parallelism=self.out_width,
                operators=tuple(operators),
                sink=sink,
            )
        )

    def plan(self) -> PhysicalPlan:
        return PhysicalPlan(
            job="simulated",
            chains=tuple(self.chains),
            edges=tuple(self.edges),
            max_parallelism=16,
        )


def draw_plan(rng: random.Random, dice: Dice, ledger: Ledger) -> Job:
    """A plan of one of the ``SHAPES``."""
    shape = rng.choice(SHAPES)
    keys = rng.randint(1, 6)
    pace = rng.choice((0.0, 0.05, 0.3))
    b = _Builder(
        dice=dice,
        ledger=ledger,
        shape=shape,
        width=rng.choice((1, 2, 2, 3)),
        out_width=rng.choice((1, 2, 2, 3)),
        can_list=rng.random() < 0.6,
        timed=rng.random() < 0.4 or shape == "idle",
        chained=rng.random() < 0.6,
    )
    sources = [NumberedSource("a", rng.randint(1, 4), rng.randint(5, 60), keys, dice, pace)]
    if shape in ("union", "idle"):
        second = NumberedSource("b", rng.randint(1, 3), rng.randint(2, 30), keys, dice, pace)
        sources.append(second)
    if shape == "idle":
        sources[1].released = _after(sources[0], ledger)
    heads = [b.head(s) for s in sources]
    rows = tuple(row for s in sources for row in s.expected())
    expected = _connect(b, heads, rows)
    return Job(shape, b.plan(), expected)


def _after(first: NumberedSource, ledger: Ledger) -> Any:
    """Whether the timely rows of ``first`` are through: time did not wait for the other one."""
    # All but those that the last watermark of each split cannot cover.
    timely = first.splits * (first.rows - 1)
    return lambda: sum(row[0] == first.name for row in ledger.rows()) >= timely


def _connect(b: _Builder, heads: list[Chain], rows: tuple[Identity, ...]) -> dict[str, Expectation]:
    if b.shape == "direct":
        return {"out": Expectation(rows=rows, keyed=False)}
    if b.shape in ("rebalance", "broadcast"):
        sink = b.sink_chain("out", b.out_width)
        rebalance = b.shape == "rebalance"
        b.connect(heads[0], sink, Partitioning.REBALANCE if rebalance else Partitioning.BROADCAST)
        copies = 1 if rebalance else b.out_width
        return {"out": Expectation(rows=rows, copies=copies, keyed=False)}
    several = {"two-sinks": ("out", "copy"), "mixed": ("out", "log")}.get(b.shape, ("out",))
    chained = b.chained and b.shape in ("keyed", "union", "idle")
    keyed = b.keyed(b.sink("out") if chained else None)
    rows += tuple(farewell(subtask) for subtask in range(b.out_width))
    for head in heads:
        b.connect(head, keyed, Partitioning.HASH)
    counted = Expectation(rows=rows, counted=True)
    if chained:
        return {"out": counted}
    if b.shape == "deep":
        b.connect(keyed, b.sink_chain("out", b.width), Partitioning.HASH, "split")
        return {"out": Expectation(rows=rows)}
    for uid in several:
        b.connect(keyed, b.sink_chain(uid, b.out_width), Partitioning.FORWARD)
    return {
        uid: Expectation(rows=rows, at_least_once=True) if uid == "log" else counted
        for uid in several
    }
