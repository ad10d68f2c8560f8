"""Shapes with operators that hold rows back, or drop some.

Why it exists: rows that wait inside an operator are in no channel and in no sink; only its
snapshot has them.

    steady       rows in turn through a rate limit
    distinct     the first row of each key
    ask          rows through calls to the outside that fail, time out, or are never answered;
                 results in order or as they come

May import: operators, plan, and the simulation below ``plans``.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from functools import partial
from typing import Any

from helios_ray.aggregates import collect_list
from helios_ray.operators.async_map import AsyncMapOperator
from helios_ray.operators.async_map_retry import AsyncRetry
from helios_ray.operators.deduplicate import DeduplicateOperator
from helios_ray.operators.rate_limit import RateLimitOperator
from helios_ray.operators.windows.operator import window_operator
from helios_ray.plan.physical import Partitioning
from helios_ray.simulation.expectations import Expectation, Expected, Multiset
from helios_ray.simulation.faults import Dice
from helios_ray.simulation.requests import pause
from helios_ray.simulation.shapes.builder import Builder, Shape
from helios_ray.windowing import TumblingWindow


def steady(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    source = b.timed_source(rng)
    head = b.timed_head(source)
    chain = b.last("steady", partial(RateLimitOperator, rng.choice((20, 100, 1000))))
    b.connect(head, chain, Partitioning.REBALANCE)
    rows = tuple(source.expected())
    return {"out": Expectation(rows=rows, keyed=False)}


def distinct(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    b.keys = rng.choice((2, 30))
    source = b.timed_source(rng)
    head = b.timed_head(source)
    chain = b.last("distinct", partial(DeduplicateOperator, ["key"]))
    b.connect(head, chain, Partitioning.HASH)
    rows = Counter({(row["key"],): 1 for row in source.every_row()})
    return {"out": Multiset(rows=rows, read={"out": lambda row: [row[3:4]]})}


class _Service:
    """Something outside, which now and then is not there."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice

    async def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        await pause(self._dice.rng.choice((0.0, 0.01, 0.1)))
        if self._dice.happens("request_failed"):
            raise ConnectionError("the service is not there just now")
        return row


def ask(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    source = b.timed_source(rng)
    head = b.timed_head(source)
    b.patient = True
    ordered = rng.random() < 0.5
    # Enough attempts to outlast the faults: a row that fails for good would end the job.
    retry = AsyncRetry(attempts=1000, initial=timedelta(milliseconds=20))
    factory = partial(
        AsyncMapOperator,
        _Service(b.dice),
        ordered=ordered,
        capacity=rng.choice((1, 3, 20)),
        timeout=rng.choice((None, timedelta(seconds=1))),
        retry=retry,
    )
    # What is behind it must not see event time pass the rows that are under way.
    sums = partial(
        window_operator, ["key"], "ts", TumblingWindow(timedelta(milliseconds=5)),
        {"numbers": collect_list("count")},
    )  # fmt: skip
    rows = source.every_row()
    if rng.random() < 0.5:
        chain = b.last("ask", factory)
        expected: Expected = (
            Expectation(rows=tuple(source.expected()), keyed=True)
            if ordered
            else Multiset(
                rows=Counter((row["count"],) for row in rows),
                read={"out": lambda row: [row[-1:]]},
            )
        )
    else:
        chain = b.operator("ask", factory)
        window = b.last("window", sums)
        b.connect(chain, window, Partitioning.HASH)
        expected = Multiset(
            rows=Counter((row["count"],) for row in rows),
            read={"out": lambda row: [(number,) for number in row[-1]]},
        )
    b.connect(head, chain, Partitioning.HASH)
    return {"out": expected}


SHAPES: dict[str, Shape] = {"steady": steady, "distinct": distinct, "ask": ask}
