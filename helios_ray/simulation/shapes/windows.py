"""Shapes with event-time windows.

Why it exists: windows hold rows until event time says so; a lost watermark, a watermark that
is too early, or state from the wrong moment changes a result.

    windows      tumbling, sliding or session windows per key; now and then a second, coarser
                 window over the results of the first
    late         one row in a few is far too late: with discarding windows, the rows of all
                 results and the late rows together are the input, each row once

May import: operators, plan, aggregates, windowing, watermarks, and the simulation below
``plans``.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

from helios_ray.aggregates import collect_list, count, max_, min_, sum_
from helios_ray.operators.windows.operator import window_operator
from helios_ray.plan.physical import Partitioning
from helios_ray.simulation.expectations import Expected, Multiset, Row
from helios_ray.simulation.shapes.builder import Builder, Shape
from helios_ray.watermarks import EventTime
from helios_ray.windowing import (
    SessionWindow,
    SlidingWindow,
    Trigger,
    TumblingWindow,
)

TimeWindow: TypeAlias = TumblingWindow | SlidingWindow | SessionWindow

COARSE = 10_000
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


def windows_of(spec: TimeWindow, times: Sequence[int]) -> dict[tuple[int, int], list[int]]:
    """Which of these event times (µs) are in which windows, told in plain Python."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    if isinstance(spec, SessionWindow):
        gap = spec.gap // _MICROSECOND
        session: list[int] = []
        for index in sorted(range(len(times)), key=lambda i: times[i]):
            if session and times[index] - times[session[-1]] >= gap:
                found[times[session[0]], times[session[-1]] + gap] = session
                session = []
            session.append(index)
        if session:
            found[times[session[0]], times[session[-1]] + gap] = session
        return found
    size = spec.size // _MICROSECOND
    step = spec.slide // _MICROSECOND if isinstance(spec, SlidingWindow) else size
    for index, time in enumerate(times):
        for start in range((time // step) * step, time - size, -step):
            found[start, start + size].append(index)
    return found


def draw_window(rng: random.Random) -> TimeWindow:
    """A window of some thousand microseconds: some rows are in it."""
    ms = partial(timedelta, milliseconds=1)
    return rng.choice(
        (
            TumblingWindow(ms() * rng.choice((2, 5, 30))),
            SlidingWindow(ms() * 6, ms() * rng.choice((2, 3, 4))),
            SessionWindow(timedelta(microseconds=rng.choice((900, 2500)))),
        )
    )


def as_microseconds(value: Any) -> Any:
    """A datetime as microseconds since the Unix epoch; anything else as it is."""
    return (value - _EPOCH) // _MICROSECOND if isinstance(value, datetime) else value


def _plain(row: Row) -> Iterable[Row]:
    yield tuple(as_microseconds(value) for value in row)


def windows(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    spec = draw_window(rng)
    sources = [b.timed_source(rng, name) for name in ("a", "b")[: rng.choice((1, 1, 2))]]
    heads = [b.timed_head(source) for source in sources]
    results = {"rows": count(), "total": sum_("n"), "low": min_("n"), "high": max_("ts")}
    first = partial(window_operator, ["key"], "ts", spec, results)
    nested = rng.random() < 0.4
    chain = b.operator("window", first) if nested else b.last("window", first)
    for head in heads:
        b.connect(head, chain, Partitioning.HASH)
    fine = [row for source in sources for row in source.every_row()]
    expected = _first_results(spec, fine)
    if nested:
        sums = {"windows": count(), "total": sum_("total")}
        span = TumblingWindow(timedelta(microseconds=COARSE))
        time = EventTime("window_end", -1)
        coarse = b.last("coarse", partial(window_operator, ["rows"], time, span, sums))
        b.connect(chain, coarse, Partitioning.HASH, "rows")
        expected = _second_results(expected)
    return {"out": Multiset(rows=expected, read={"out": _plain})}


def _first_results(spec: TimeWindow, rows: list[dict[str, Any]]) -> Counter[Row]:
    results: Counter[Row] = Counter()
    for key in {row["key"] for row in rows}:
        mine = [row for row in rows if row["key"] == key]
        for (start, end), members in windows_of(spec, [row["ts"] for row in mine]).items():
            inside = [mine[index] for index in members]
            numbers = [row["n"] for row in inside]
            high = max(row["ts"] for row in inside)
            results[key, start, end, len(inside), sum(numbers), min(numbers), high] += 1
    return results


def _second_results(first: Counter[Row]) -> Counter[Row]:
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for (_, _, end, rows, total, _, _), times in first.items():
        groups[rows, (end - 1) // COARSE * COARSE] += [total] * times
    return Counter(
        (rows, start, start + COARSE, len(totals), sum(totals))
        for (rows, start), totals in groups.items()
    )


def late(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    ms = timedelta(milliseconds=1)
    spec = rng.choice((TumblingWindow(ms * 5), SessionWindow(ms * 2)))
    trigger = rng.choice((None, Trigger.early(rows=3), Trigger.early(every=ms * 200)))
    source = b.timed_source(rng, late_every=rng.choice((4, 9)))
    head = b.timed_head(source)
    lateness = rng.choice((0, 0, 8))
    factory = partial(
        window_operator,
        ["key"],
        "ts",
        spec,
        {"numbers": collect_list("count")},
        trigger=trigger,
        allowed_lateness=ms * lateness,
        accumulating=False,
    )
    chain = b.last("window", factory)
    b.connect(head, chain, Partitioning.HASH)
    side = b.sink_chain("late", b.out_width)
    b.connect(chain, side, Partitioning.REBALANCE, operator="window", tag="late")
    rows = Counter((row["count"],) for row in source.every_row())
    read = {"out": lambda row: [(number,) for number in row[-1]], "late": lambda row: [row[-1:]]}
    # Where nothing makes it speak again, a window of a key speaks once.
    once = {"out": lambda row: row[:2]} if lateness == 0 and trigger is None else {}
    return {"out and late": Multiset(rows=rows, read=read, once=once)}


SHAPES: dict[str, Shape] = {"windows": windows, "late": late}
