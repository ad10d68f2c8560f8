"""Shapes whose windows do not follow the event times of rows.

Why it exists: what ends these windows is a number of rows, the end of the input, or the clock;
and rows may have become partial rows before they are shuffled.

    counted   windows of so many rows of a key
    global    one window for all rows of a key, which may speak before the end
    best      the n best rows of each key, at the end
    halves    windows of event time, aggregated before a shuffle and after it; by key, or in one
              task, while the sources are in several
    clock     windows of the time at which rows were read: none is late, none is in two

May import: operators, plan, aggregates, windowing, watermarks, and the simulation below
``plans``.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import Any

from helios_ray.aggregates import collect_list, count, max_, min_, sum_
from helios_ray.operators.top_n import TopNOperator
from helios_ray.operators.window_aggregates.specs import WindowAggregations as Computed
from helios_ray.operators.windows.operator import window_operator
from helios_ray.plan.physical import OperatorSpec, Partitioning
from helios_ray.simulation.expectations import Expected, Multiset, Row, as_it_is
from helios_ray.simulation.shapes.builder import Builder, Shape
from helios_ray.simulation.shapes.windows import as_microseconds, windows_of
from helios_ray.simulation.source import TimedSource
from helios_ray.watermarks import WatermarkStrategy
from helios_ray.windowing import (
    CountWindow,
    GlobalWindow,
    SlidingWindow,
    Trigger,
    TumblingWindow,
)

_MS = timedelta(milliseconds=1)
_STAMP = "read_at"


def _by_key(source: TimedSource) -> dict[int, list[int]]:
    """The numbers of the rows of each key, as they come."""
    numbers: dict[int, list[int]] = defaultdict(list)
    for row in source.every_row():
        numbers[row["key"]].append(row["count"])
    return numbers


def counted(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    # One split: rows of a key come in one order, whatever happens.
    source = TimedSource("a", 1, rng.randint(5, 60), b.keys, b.dice, b.pace)
    size, slide = rng.choice(((1, 1), (3, 3), (4, 2), (5, 3), (7, 7)))
    spec = CountWindow(size, slide)
    computed: Computed = {"numbers": collect_list("count"), "total": sum_("n")}
    chain = b.last("window", partial(window_operator, ["key"], None, spec, computed))
    b.connect(b.timed_head(source), chain, Partitioning.HASH)
    rows: Counter[Row] = Counter()
    for key, numbers in _by_key(source).items():
        for end in range(slide, len(numbers) + 1, slide):
            start = max(0, end - size)
            inside = tuple(numbers[start:end])
            rows[key, start, end, inside, sum(inside)] += 1

    def read(row: Row) -> Iterable[Row]:
        key, start, end, numbers, total = row
        yield key, start, end, tuple(numbers), total

    return {"out": Multiset(rows=rows, read={"out": read})}


def whole(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    source = b.timed_source(rng)
    trigger = rng.choice((None, Trigger.early(rows=3), Trigger.early(every=_MS * 200)))
    factory = partial(
        window_operator, ["key"], None, GlobalWindow(), {"numbers": collect_list("count")},
        trigger=trigger, accumulating=False,
    )  # fmt: skip
    chain = b.last("window", factory)
    b.connect(b.timed_head(source), chain, Partitioning.HASH)
    rows = Counter((key, n) for key, numbers in _by_key(source).items() for n in numbers)
    read = {"out": lambda row: [(row[0], number) for number in row[-1]]}
    once = {"out": lambda row: row[:1]} if trigger is None else {}
    return {"out": Multiset(rows=rows, read=read, once=once)}


def best(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    source, n, ascending = b.timed_source(rng), rng.choice((1, 3, 100)), rng.random() < 0.5
    factory = partial(TopNOperator, ["key"], n, "count", ascending=ascending, emit="final")
    chain = b.last("best", factory)
    b.connect(b.timed_head(source), chain, Partitioning.HASH)
    rows = Counter(
        (key, number, rank)
        for key, numbers in _by_key(source).items()
        for rank, number in enumerate(sorted(numbers, reverse=not ascending)[:n], 1)
    )
    return {"out": Multiset(rows=rows, read={"out": lambda row: [(row[3], row[5], row[6])]})}


def halves(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    keys = rng.choice(((), ("key",)))
    spec = rng.choice((TumblingWindow(_MS * 5), SlidingWindow(_MS * 6, _MS * 2), GlobalWindow()))
    b.width = max(2, b.width)
    if not keys:
        b.out_width = 1
    computed = {"rows": count(), "total": sum_("count"), "low": min_("n"), "high": max_("ts")}
    time = None if isinstance(spec, GlobalWindow) else "ts"
    factory = partial(window_operator, keys, time, spec, computed)
    local = OperatorSpec(uid="local", name="local", factory=partial(factory, half="local"))
    # A few rows in each partial row, or too few for it to be worth making.
    b.keys = rng.choice((1, b.keys))
    source = b.timed_source(rng)
    chain = b.last("window", partial(factory, half="merge"))
    how = Partitioning.HASH if keys else Partitioning.REBALANCE
    b.connect(b.timed_head(source, (local,)), chain, how)
    groups: dict[Row, list[dict[str, Any]]] = defaultdict(list)
    for row in source.every_row():
        groups[tuple(row[key] for key in keys)].append(row)
    rows: Counter[Row] = Counter()
    for key, mine in groups.items():
        inside: dict[Any, list[int]] = {(None, None): [*range(len(mine))]}
        if not isinstance(spec, GlobalWindow):
            inside = windows_of(spec, [row["ts"] for row in mine])
        for bounds, members in inside.items():
            chosen = [mine[index] for index in members]
            total, low = sum(r["count"] for r in chosen), min(r["n"] for r in chosen)
            rows.update([(*key, *bounds, len(chosen), total, low, max(r["ts"] for r in chosen))])
    read = {"out": lambda row: [tuple(as_microseconds(value) for value in row)]}
    return {"out": Multiset(rows=rows, read=read)}


def clock(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    source = b.timed_source(rng)
    head = b.head(source, WatermarkStrategy.processing_time(_STAMP))
    computed: Computed = {
        "numbers": collect_list("count"), "first": min_(_STAMP), "last": max_(_STAMP)
    }  # fmt: skip
    spec = TumblingWindow(_MS * rng.choice((1, 50, 2000)))
    chain = b.last("window", partial(window_operator, ["key"], _STAMP, spec, computed))
    b.connect(head, chain, Partitioning.HASH)
    late = b.sink_chain("late", b.out_width)
    b.connect(chain, late, Partitioning.REBALANCE, operator="window", tag="late")
    rows = Counter((key, n) for key, numbers in _by_key(source).items() for n in numbers)

    def read(row: Row) -> Iterable[Row]:
        key, start, end, numbers, first, last = row
        inside = start <= first <= last < end and end - start == spec.size
        for number in numbers:
            yield (key, number) if inside else ("outside its window", *row)

    return {
        "out and late": Multiset(
            rows=rows, read={"out": read, "late": as_it_is}, once={"out": lambda row: row[:2]}
        )
    }


SHAPES: dict[str, Shape] = {
    "counted": counted,
    "global": whole,
    "best": best,
    "halves": halves,
    "clock": clock,
}
