"""Shapes with joins of two streams, in step by event time or not.

Why it exists: a join keeps rows of both sides until it knows that no partner will come; one
that is dropped too early, kept too long, or joined twice after a crash, shows.

    window-join    rows of a key in the same window; sessions span both sides
    interval-join  rows of a key whose times are near each other
    temporal-join  each row with the version in force at its time
    co-group       what a function makes of both sides' rows of a key and window
    regular-join   all pairs of a key; lone rows when the input has ended

Rows without a partner appear as ``how`` says.

May import: operators, plan, windowing, and the simulation below ``plans``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any

import pyarrow as pa

from helios_ray.operators.joins.co_group import CoGroupOperator
from helios_ray.operators.joins.columns import JoinHow
from helios_ray.operators.joins.interval_join import IntervalJoinOperator
from helios_ray.operators.joins.regular import RegularJoinOperator
from helios_ray.operators.joins.temporal import TemporalHow, TemporalJoinOperator
from helios_ray.operators.joins.window_join import WindowJoinOperator
from helios_ray.simulation.expectations import Expected, Multiset, Row
from helios_ray.simulation.shapes.builder import Builder, Shape, hashed
from helios_ray.simulation.shapes.windows import as_microseconds, draw_window, windows_of
from helios_ray.simulation.source import SCHEMA, TimedSource

KEY, LEFT, RIGHT_TIME, RIGHT = 3, 5, 9, 10
"""Where the results of a join have what tells them apart; windows are behind."""

_BOTH = (SCHEMA, SCHEMA)
_HOW: tuple[JoinHow, ...] = ("inner", "left", "right", "full")


def _sides(b: Builder, rng: random.Random, most: int = 30) -> tuple[TimedSource, TimedSource]:
    return b.timed_source(rng, "a", most=most), b.timed_source(rng, "b", most=most)


def _joined(
    b: Builder,
    sides: Iterable[TimedSource],
    factory: Callable[[], Any],
    rows: Counter[Row],
    columns: tuple[int, ...],
) -> dict[str, Expected]:
    heads = [b.timed_head(side) for side in sides]
    hashed(heads, b.last("join", factory), b)

    def read(row: Row) -> Iterable[Row]:
        yield tuple(as_microseconds(row[c]) for c in columns)

    return {"out": Multiset(rows=rows, read={"out": read})}


def matched(
    left: list[dict[str, Any]],
    right: list[dict[str, Any]],
    fits: Callable[[dict[str, Any], dict[str, Any]], bool],
    how: JoinHow,
) -> Iterable[Row]:
    """Key and numbers of the pairs that fit, and of the lone rows that ``how`` wants."""
    met: set[int] = set()
    for one in left:
        partners = [other for other in right if one["key"] == other["key"] and fits(one, other)]
        met.update(id(other) for other in partners)
        for other in partners:
            yield one["key"], one["count"], other["count"]
        if not partners and how in ("left", "full"):
            yield one["key"], one["count"], None
    if how in ("right", "full"):
        for other in right:
            if id(other) not in met:
                yield other["key"], None, other["count"]


def window_join(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    sides, spec, how = _sides(b, rng), draw_window(rng), rng.choice(_HOW)
    left, right = (side.every_row() for side in sides)
    rows: Counter[Row] = Counter()
    for key in {row["key"] for row in left + right}:
        mine = [row for row in left + right if row["key"] == key]
        for window, members in windows_of(spec, [row["ts"] for row in mine]).items():
            inside = [mine[index] for index in members]
            ours = [row for row in inside if row["source"] == "a"]
            theirs = [row for row in inside if row["source"] == "b"]
            rows.update((*pair, *window) for pair in matched(ours, theirs, lambda *_: True, how))
    factory = partial(
        WindowJoinOperator, ["key"], ["key"], "ts", "ts", spec, how=how, input_schemas=_BOTH
    )
    return _joined(b, sides, factory, rows, (KEY, LEFT, RIGHT, 11, 12))


def co_group(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    sides, spec = _sides(b, rng), draw_window(rng)
    both = [row for side in sides for row in side.every_row()]
    rows: Counter[Row] = Counter()
    for key in {row["key"] for row in both}:
        mine = [row for row in both if row["key"] == key]
        for window, members in windows_of(spec, [row["ts"] for row in mine]).items():
            ours, theirs = (
                tuple(sorted(mine[m]["count"] for m in members if mine[m]["source"] == name))
                for name in ("a", "b")
            )
            rows.update([(key, *window, ours, theirs, True)])
    factory = partial(
        CoGroupOperator, ["key"], ["key"], "ts", "ts", spec, _numbers, schema=_NUMBERS,
        input_schemas=_BOTH,
    )  # fmt: skip
    hashed([b.timed_head(side) for side in sides], b.last("join", factory), b)

    def read(row: Row) -> Iterable[Row]:
        yield tuple(tuple(v) if isinstance(v, list) else as_microseconds(v) for v in row)

    return {"out": Multiset(rows=rows, read={"out": read})}


_NUMBERS = pa.schema(
    [("a", pa.list_(pa.int64())), ("b", pa.list_(pa.int64())), ("ordered", pa.bool_())]
)


def _numbers(_: Any, __: Any, left: pa.Table, right: pa.Table) -> list[dict[str, Any]]:
    """The numbers of both sides' rows, and whether these came in the order of time."""
    times = [side["ts"].to_pylist() for side in (left, right)]
    numbers = [sorted(side["count"].to_pylist()) for side in (left, right)]
    ordered = all(these == sorted(these) for these in times)
    return [{"a": numbers[0], "b": numbers[1], "ordered": ordered}]


def interval_join(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    sides, how = _sides(b, rng), rng.choice(_HOW)
    lower, upper = rng.choice(((-2000, 2000), (0, 5000), (-6000, -1000), (1000, 3000)))
    left, right = (side.every_row() for side in sides)
    near = matched(left, right, lambda x, y: lower <= y["ts"] - x["ts"] <= upper, how)
    factory = partial(
        IntervalJoinOperator, ["key"], ["key"], "ts", "ts",
        timedelta(microseconds=lower), timedelta(microseconds=upper),
        how=how, input_schemas=_BOTH,
    )  # fmt: skip
    return _joined(b, sides, factory, Counter(near), (KEY, LEFT, RIGHT))


def temporal_join(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    sides = _sides(b, rng)
    how: TemporalHow = rng.choice(("inner", "left"))
    left, right = (side.every_row() for side in sides)
    rows: Counter[Row] = Counter()
    for one in left:
        times = [v["ts"] for v in right if v["key"] == one["key"] and v["ts"] <= one["ts"]]
        if times or how == "left":
            rows[one["key"], one["count"], max(times, default=None)] += 1
    factory = partial(
        TemporalJoinOperator, ["key"], ["key"], "ts", "ts", how=how, input_schemas=_BOTH
    )
    # Of versions of one time the last that arrived is in force: its time tells enough.
    return _joined(b, sides, factory, rows, (KEY, LEFT, RIGHT_TIME))


def regular_join(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    sides, how = _sides(b, rng, most=20), rng.choice(_HOW)
    left, right = (side.every_row() for side in sides)
    pairs = matched(left, right, lambda *_: True, how)
    factory = partial(RegularJoinOperator, ["key"], ["key"], how=how, input_schemas=_BOTH)
    return _joined(b, sides, factory, Counter(pairs), (KEY, LEFT, RIGHT))


SHAPES: dict[str, Shape] = {
    "window-join": window_join,
    "co-group": co_group,
    "interval-join": interval_join,
    "temporal-join": temporal_join,
    "regular-join": regular_join,
}
