"""Shapes that move and count rows.

Why it exists: what they do is simple, so each row can be followed: to its sink, in its order,
with its count.

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

May import: plan, operators, and the simulation below ``plans``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from helios_ray.operators.reduce import ReduceOperator
from helios_ray.plan.physical import Chain, OperatorSpec, Partitioning, SinkSpec
from helios_ray.simulation.expectations import Expectation, Expected, Identity
from helios_ray.simulation.ledger import Ledger
from helios_ray.simulation.operators import Farewell, HoldUntilWatermark, Unlucky, farewell
from helios_ray.simulation.shapes.builder import Builder, Shape
from helios_ray.simulation.source import NumberedSource

NAMES = (
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


def counting(b: Builder, sink: SinkSpec | None) -> Chain:
    """A running count per key."""
    dice = b.dice
    operators = [
        OperatorSpec(uid="unlucky", name="unlucky", factory=lambda: Unlucky(dice)),
        OperatorSpec(uid="count", name="count", factory=lambda: ReduceOperator(["key"], add_up)),
        OperatorSpec(uid="farewell", name="farewell", factory=Farewell),
    ]
    if b.timed:
        ledger = b.ledger

        def moved(before: int, after: int) -> None:
            if ledger.witness is not None:
                ledger.witness.on_watermark(before, after)

        factory = partial(HoldUntilWatermark, moved)
        operators.insert(1, OperatorSpec(uid="hold", name="hold", factory=factory))
    return b.add(
        Chain(
            uid="unlucky",
            name="keyed",
            parallelism=b.out_width,
            operators=tuple(operators),
            sink=sink,
        )
    )


def build(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """The shape that the builder names."""
    b.timed = b.timed or b.shape == "idle"
    first = NumberedSource("a", rng.randint(1, 4), rng.randint(5, 60), b.keys, b.dice, b.pace)
    sources = [first]
    if b.shape in ("union", "idle"):
        second = NumberedSource("b", rng.randint(1, 3), rng.randint(2, 30), b.keys, b.dice, b.pace)
        sources.append(second)
    if b.shape == "idle":
        sources[1].released = _after(sources[0], b.ledger)
    direct = b.sink("out") if b.shape == "direct" else None
    heads = [b.head(s, sink=direct) for s in sources]
    rows = tuple(row for s in sources for row in s.expected())
    return _connect(b, heads, rows)


def _after(first: NumberedSource, ledger: Ledger) -> Callable[[], bool]:
    """Whether the timely rows of ``first`` are through: time did not wait for the other one."""
    # All but those that the last watermark of each split cannot cover.
    timely = first.splits * (first.rows - 1)
    return lambda: sum(row[0] == first.name for row in ledger.rows()) >= timely


def _connect(b: Builder, heads: list[Chain], rows: tuple[Identity, ...]) -> dict[str, Expected]:
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
    keyed = counting(b, b.sink("out") if chained else None)
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


SHAPES: dict[str, Shape] = dict.fromkeys(NAMES, build)
