"""Shapes with process functions: state and timers by key, on one input and on two.

Why it exists: a timer that is lost, fires twice, fires before all rows are there, or finds
state of another moment, changes what is emitted.

    timers       event-time timers sum up the rows of each key bucket by bucket; rows
                 themselves are held until a processing-time timer, or the end, lets them go
    batches      running sums by key, a sorted table at a time
    pairs        two keyed streams: every pair of rows of a key, once
    rules        a keyed stream beside a broadcast one: what every subtask has made of all rules,
                 told for each row at the end, and what was known of them when it came

May import: operators, plan, state (declarations), and the simulation below ``plans``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray.elements import MAX_TIMESTAMP
from helios_ray.operators.process.connected import BroadcastProcessOperator, CoProcessOperator
from helios_ray.operators.process.function import (
    BroadcastProcessFunction,
    CoProcessFunction,
    KeyedProcessFunction,
)
from helios_ray.operators.process.keyed import KeyedProcessOperator
from helios_ray.plan.physical import Partitioning
from helios_ray.simulation.expectations import Expected, Multiset, Row, as_it_is
from helios_ray.simulation.shapes.builder import Builder, Shape, hashed
from helios_ray.simulation.source import NumberedSource
from helios_ray.state.keyed.declarations import BroadcastState, ListState, MapState, ValueState

BUCKET = 4000
HELD = 120_000
"""Microseconds of processing time for which a row is held."""

_ROW = pa.struct([("n", pa.int64()), ("ts", pa.int64())])


class Buckets(KeyedProcessFunction):
    """Emits ``(key, end of bucket or -1, number of rows or the row's own)``."""

    rows = ListState(_ROW)
    held = MapState(pa.int64(), pa.int64())

    def process_element(self, row: Any, ctx: Any) -> None:
        self.rows.add({"n": row["count"], "ts": row["ts"]})
        ctx.timer_service.register_event_time(row["ts"] // BUCKET * BUCKET + BUCKET - 1)
        due = ctx.timer_service.current_processing_time + HELD
        self.held.put(row["count"], due)
        ctx.timer_service.register_processing_time(due)
        # The end of the input lets go what has not been held for long enough.
        ctx.timer_service.register_event_time(MAX_TIMESTAMP)

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[dict[str, int]]:
        key = ctx.current_key
        if ctx.time_domain == "processing" or timestamp == MAX_TIMESTAMP:
            for number, due in self.held.items():
                if ctx.time_domain == "event" or due <= timestamp:
                    self.held.remove(number)
                    yield {"key": key, "bucket": -1, "n": number}
            return
        rows = self.rows.get()
        self.rows.update([row for row in rows if row["ts"] > timestamp])
        numbers = [row["n"] for row in rows if row["ts"] <= timestamp]
        yield {"key": key, "bucket": timestamp, "n": sum(numbers)}


def timers(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    source = b.timed_source(rng)
    head = b.timed_head(source)
    chain = b.last("process", partial(KeyedProcessOperator, ["key"], Buckets))
    b.connect(head, chain, Partitioning.HASH)
    rows = source.every_row()
    expected = Counter((row["key"], -1, row["count"]) for row in rows)
    buckets: Counter[tuple[int, int]] = Counter()
    for row in rows:
        buckets[row["key"], row["ts"] // BUCKET * BUCKET + BUCKET - 1] += row["count"]
    expected.update((*bucket, total) for bucket, total in buckets.items())
    return {"out": Multiset(rows=expected, read={"out": as_it_is})}


class Sums(KeyedProcessFunction):
    """Emits, when the input has ended, the sum and number of the rows of each key."""

    total = ValueState(pa.int64(), default=0)
    rows = ValueState(pa.int64(), default=0)

    def process_batches(self, table: pa.Table, ctx: Any) -> None:
        numbers = table["count"].to_numpy()
        self.total.put_column(
            self.total.get_column().to_numpy() + np.add.reduceat(numbers, ctx.starts)
        )
        self.rows.put_column(self.rows.get_column().to_numpy() + ctx.counts)
        for _ in ctx.each_key():
            ctx.timer_service.register_event_time(MAX_TIMESTAMP)

    def on_timer(self, timestamp: int, ctx: Any) -> dict[str, int]:
        return {"key": ctx.current_key, "rows": self.rows.value(), "total": self.total.value()}


def batches(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    source = b.timed_source(rng)
    head = b.timed_head(source)
    chain = b.last("process", partial(KeyedProcessOperator, ["key"], Sums))
    b.connect(head, chain, Partitioning.HASH)
    numbers: dict[int, list[int]] = {}
    for row in source.every_row():
        numbers.setdefault(row["key"], []).append(row["count"])
    expected = Counter((key, len(mine), sum(mine)) for key, mine in numbers.items())
    return {"out": Multiset(rows=expected, read={"out": as_it_is})}


class Pairs(CoProcessFunction):
    """Emits every pair of a row of the first stream and one of the second, of equal keys."""

    first = ListState(pa.int64())
    second = ListState(pa.int64())

    def process_element1(self, row: Any, ctx: Any) -> Iterator[dict[str, int]]:
        self.first.add(row["count"])
        for other in self.second.get():
            yield {"key": row["key"], "a": row["count"], "b": other}

    def process_element2(self, row: Any, ctx: Any) -> Iterator[dict[str, int]]:
        self.second.add(row["count"])
        for other in self.first.get():
            yield {"key": row["key"], "a": other, "b": row["count"]}


def pairs(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    sources = [b.timed_source(rng, name, most=25) for name in ("a", "b")]
    heads = [b.timed_head(source) for source in sources]
    chain = b.last("process", partial(CoProcessOperator, ["key"], ["key"], Pairs))
    hashed(heads, chain, b)
    one, other = (source.every_row() for source in sources)
    expected = Counter(
        (x["key"], x["count"], y["count"]) for x in one for y in other if x["key"] == y["key"]
    )
    return {"out": Multiset(rows=expected, read={"out": as_it_is})}


def _hashed(so_far: int, number: int) -> int:
    """Tells the order, and the number, of what went in."""
    return (so_far * 31 + number + 1) % 1_000_003


class Rules(BroadcastProcessFunction):
    """Emits, when the input has ended, for each row its rule when it came, and the last one."""

    rules = BroadcastState(pa.int64(), pa.int64())
    rows = ListState(pa.struct([("count", pa.int64()), ("rule", pa.int64())]))

    def process_element(self, row: Any, ctx: Any) -> None:
        self.rows.add({"count": row["count"], "rule": self.rules.get(row["key"], 0)})
        ctx.timer_service.register_event_time(MAX_TIMESTAMP)

    def process_broadcast_element(self, row: Any, ctx: Any) -> None:
        self.rules.put(row["key"], _hashed(self.rules.get(row["key"], 0), row["n"]))

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[dict[str, int]]:
        key = ctx.current_key
        for row in self.rows.get():
            rule = self.rules.get(key, 0)
            yield {"key": key, "n": row["count"], "then": row["rule"], "rule": rule}


def rules(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    source = b.timed_source(rng)
    # One split: all subtasks get its rows in one order.
    table = NumberedSource("t", 1, rng.randint(1, 30), rng.randint(1, b.keys), b.dice, b.pace)
    chain = b.last("process", partial(BroadcastProcessOperator, ["key"], Rules))
    b.connect(b.timed_head(source), chain, Partitioning.HASH)
    b.connect(b.head(table), chain, Partitioning.BROADCAST, input_index=1)
    stages: dict[int, list[int]] = {key: [0] for key in range(b.keys)}
    for _, _, n, key in table.expected():
        stages[key].append(_hashed(stages[key][-1], n))
    rows = source.every_row()
    expected = Counter((r["key"], r["count"], stages[r["key"]][-1], True) for r in rows)

    def read(row: Row) -> Iterator[Row]:
        key, number, then, rule = row
        yield key, number, rule, then in stages[key]

    return {"out": Multiset(rows=expected, read={"out": read})}


SHAPES: dict[str, Shape] = {
    "timers": timers,
    "batches": batches,
    "pairs": pairs,
    "rules": rules,
}
