"""A join of rows that are kept for a while only.

Why it exists: which rows meet hangs on the clock, so results are not known beforehand. But no
pair comes twice, no row is lost, none both has a partner and has none, and none is given up
before its time: after a restore, too, it has been there since it first came.

    fading-join   all pairs of a key that meet; lone rows when they go

May import: operators, plan, watermarks, and the simulation below ``plans``.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pyarrow as pa

from helios_ray.elements import MAX_TIMESTAMP, Batch
from helios_ray.operators.base import Operator
from helios_ray.operators.joins.columns import JoinHow
from helios_ray.operators.joins.regular import RegularJoinOperator
from helios_ray.plan.physical import OperatorSpec
from helios_ray.simulation.expectations import Checked, Expected, Row
from helios_ray.simulation.shapes.builder import Builder, Shape, hashed
from helios_ray.simulation.source import SCHEMA
from helios_ray.watermarks import WatermarkStrategy

_STAMP = "read_at"
_ROWS = SCHEMA.append(pa.field(_STAMP, pa.timestamp("us", "UTC")))

_KEY, _NUMBERS, _READ = 3, (5, 11), (6, 12)
"""Where a result has the key, and of both sides the row's number and when it was read."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

_HOW: tuple[JoinHow, ...] = ("inner", "left", "right", "full")


class LeftAt(Operator):
    """Adds the time at which a row leaves (µs); ``MAX_TIMESTAMP`` once the input has ended."""

    def __init__(self) -> None:
        self._now = 0
        self._ended = False

    def set_processing_time(self, now: int) -> None:
        self._now = now

    def on_watermark(self, timestamp: int) -> list[Batch]:
        self._ended = timestamp == MAX_TIMESTAMP
        return []

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        at = MAX_TIMESTAMP if self._ended else self._now
        column = pa.array([at] * batch.data.num_rows, pa.int64())
        return [Batch(batch.data.append_column("left_at", column), batch.origin, batch.tag)]


def fading_join(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    how, ttl = rng.choice(_HOW), timedelta(milliseconds=rng.choice((5, 100, 1000)))
    sides = [b.timed_source(rng, name, most=30) for name in ("a", "b")]
    heads = [b.head(side, WatermarkStrategy.processing_time(_STAMP)) for side in sides]
    left_at = OperatorSpec(uid="left-at", name="left-at", factory=LeftAt)
    factory = partial(
        RegularJoinOperator, ["key"], ["key"], how=how, ttl=ttl,
        input_schemas=(_ROWS, _ROWS),
    )  # fmt: skip
    hashed(heads, b.last("join", factory, behind=(left_at,)), b)
    keys: list[dict[int, int]] = [
        {row["count"]: row["key"] for row in side.every_row()} for side in sides
    ]
    return {"out": Checked(sinks=("out",), check=partial(_wrong, keys, how, ttl))}


def _wrong(keys: list[dict[int, int]], how: JoinHow, ttl: timedelta, rows: list[Row]) -> str:
    """What must not be, among the results."""
    pairs: Counter[tuple[Any, Any]] = Counter()
    paired: tuple[set[int], set[int]] = (set(), set())
    lone: tuple[set[int], set[int]] = (set(), set())
    for row in rows:
        numbers = row[_NUMBERS[0]], row[_NUMBERS[1]]
        pairs[numbers] += 1
        for place, number in enumerate(numbers):
            if number is None:
                continue
            if keys[place].get(number) != row[_KEY]:
                return f"row {number} of side {place} in a result of key {row[_KEY]}"
            (lone if None in numbers else paired)[place].add(number)
        if None in numbers:
            read_at: datetime = row[_READ[0 if numbers[1] is None else 1]]
            if row[-1] < (read_at + ttl - _EPOCH) // timedelta(microseconds=1):
                return f"{numbers}, read at {read_at}, was given up at {row[-1]}: before its time"
    if repeated := [pair for pair, times in pairs.items() if times > 1]:
        return f"{len(repeated)} results more than once, first {repeated[0]}"
    for place, outer in enumerate((("left", "full"), ("right", "full"))):
        if both := lone[place] & paired[place]:
            return f"side {place}: {len(both)} rows with a partner and without, first {min(both)}"
        if how not in outer and lone[place]:
            return f"side {place}: row {min(lone[place])} has no partner, and was not asked for"
        lost = keys[place].keys() - lone[place] - paired[place]
        if how in outer and lost:
            return f"side {place}: {len(lost)} rows lost, first {min(lost)}"
    return ""


SHAPES: dict[str, Shape] = {"fading-join": fading_join}
