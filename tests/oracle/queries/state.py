"""State per key over the whole stream: running aggregates, best rows, functions with timers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray import DataStream, StreamExecutionEnvironment, col
from helios_ray.aggregates import count, max_, mean, sum_
from helios_ray.functions import (
    CoProcessFunction,
    KeyedProcessFunction,
    ListState,
    MapState,
    ProcessContext,
    ReducingState,
    ValueState,
)
from tests.oracle.data import Data
from tests.oracle.query import query


@query(
    """select carrier, dest, count(*) as n, sum(distance) as miles, avg(arr_delay) as delay
        from flights group by all"""
)
def totals_by_route(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("carrier", "dest")
        .aggregate(
            n=count(), miles=sum_("distance"), delay=mean("arr_delay"), emit="final", uid="totals"
        )
    )


@query("select distinct carrier, origin, dest from flights")
def distinct_routes(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("carrier", "origin", "dest")
        .deduplicate(uid="once")
        .select("carrier", "origin", "dest")
    )


@query(
    """select carrier, id, rank from (select *, row_number() over (
        partition by carrier order by arr_delay * 1000000 + id desc nulls last) as rank
        from flights) where rank <= 5"""
)
def the_five_latest_of_each_carrier(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .with_columns(by=col("arr_delay") * 1_000_000 + col("id"))
        .key_by("carrier")
        .top_n(5, "by", emit="final", uid="best")
        .select("carrier", "id", "rank")
    )


@query(
    """select origin, id, rank from (select *, row_number() over (
        partition by origin order by distance * 1000000 + id) as rank from flights)
        where rank <= 3"""
)
def the_three_shortest_of_each_airport(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .with_columns(by=col("distance") * 1_000_000 + col("id"))
        .key_by("origin")
        .top_n(3, "by", ascending=True, emit="final", uid="best")
        .select("origin", "id", "rank")
    )


@query(
    """select dest, arg_max(id, arr_delay * 1000000 + id) as id from flights
        where arr_delay is not null group by dest"""
)
def reduced_to_the_latest(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .filter(col("arr_delay").is_valid())
        .with_columns(by=col("arr_delay") * 1_000_000 + col("id"))
        .select("dest", "id", "by")
        .key_by("dest")
        .reduce(lambda a, b: a if a["by"] >= b["by"] else b, uid="reduce")
        # Every step is said; the last one is the greatest.
        .key_by("dest")
        .top_n(1, "by", emit="final", uid="last")
        .select("dest", "id")
    )


class Turnaround(KeyedProcessFunction):
    """The time from one departure of a plane to its next, in the order of event time.

    Rows wait in a map until the watermark says that nothing can come before them.
    """

    waiting = MapState(pa.int64(), pa.int64())
    last = ValueState(pa.int64())

    def process_element(self, row: dict[str, Any], ctx: ProcessContext) -> None:
        self.waiting.put(row["order"], row["id"])
        ctx.timer_service.register_event_time(row["minute"])

    def on_timer(self, timestamp: int, ctx: ProcessContext) -> Iterable[dict[str, Any]]:
        for order, row_id in sorted(self.waiting.items()):
            minute = order >> 20
            if minute * 60_000_000 > timestamp:
                continue
            self.waiting.remove(order)
            if self.last.value() is not None:
                yield {"id": row_id, "minutes": minute - self.last.value()}
            self.last.update(minute)


@query(
    """select id, minutes from (
            select id, date_diff('minute', lag(ts) over (partition by tailnum order by ts, id), ts)
                as minutes from flights where tailnum is not null)
        where minutes is not null"""
)
def from_departure_to_departure(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .filter(col("tailnum").is_valid())
        .map_batches(_minutes, batch_format="pyarrow")
        .key_by("tailnum")
        .process(
            Turnaround, schema=pa.schema([("id", pa.int64()), ("minutes", pa.int64())]), uid="turn"
        )
    )


def _minutes(batch: pa.Table) -> pa.Table:
    time = batch["ts"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    order = (time // 60_000_000 << 20) + batch["id"].to_numpy()
    return pa.table(
        {"tailnum": batch["tailnum"], "id": batch["id"], "order": order, "minute": time}
    )


class MilesSoFar(KeyedProcessFunction):
    """The total of each key, a batch at a time; says it when the input has ended."""

    miles = ValueState(pa.int64(), default=0)
    flights = ValueState(pa.int64(), default=0)

    def process_batches(self, table: pa.Table, ctx: Any) -> dict[str, Any]:
        miles = np.add.reduceat(table["distance"].to_numpy(), ctx.starts)
        miles = miles + self.miles.get_column().to_numpy()
        flights = ctx.counts + self.flights.get_column().to_numpy()
        self.miles.put_column(miles)
        self.flights.put_column(flights)
        return {"tailnum": ctx.keys["tailnum"], "miles": miles, "flights": flights}


@query("select tailnum, sum(distance) as miles, count(*) as flights from flights group by tailnum")
def a_batched_function(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("tailnum")
        .process(MilesSoFar, uid="miles")
        .key_by("tailnum")
        .aggregate(miles=max_("miles"), flights=max_("flights"), emit="final", uid="last")
    )


class Visits(KeyedProcessFunction):
    """Lists and reduced values, said by a timer at the very end of the year."""

    dests = MapState(pa.string(), pa.int64())
    longest = ReducingState(pa.int64(), max)
    delays = ListState(pa.int64())

    def process_element(self, row: dict[str, Any], ctx: ProcessContext) -> None:
        self.dests.put(row["dest"], (self.dests.get(row["dest"]) or 0) + 1)
        self.longest.add(row["distance"])
        if row["arr_delay"] is not None and row["arr_delay"] > 600:
            self.delays.add(row["arr_delay"])
        ctx.timer_service.register_event_time(1_500_000_000_000_000)

    def on_timer(self, timestamp: int, ctx: ProcessContext) -> dict[str, Any]:
        return {
            "carrier": ctx.current_key,
            "dests": len(list(self.dests.items())),
            "flights": sum(n for _, n in self.dests.items()),
            "longest": self.longest.get(),
            "delays": sum(self.delays.get()),
        }


@query(
    """select carrier, count(distinct dest) as dests, count(*) as flights,
        max(distance) as longest, coalesce(sum(arr_delay) filter (arr_delay > 600), 0) as delays
        from flights group by carrier"""
)
def every_kind_of_state(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return data.flights(env).key_by("carrier").process(Visits, uid="visits")


class BothSides(CoProcessFunction):
    """Rows of two streams counted in one state."""

    flights = ValueState(pa.int64(), default=0)
    hours = ValueState(pa.int64(), default=0)

    def process_element1(self, row: dict[str, Any], ctx: ProcessContext) -> dict[str, Any]:
        self.flights.update(self.flights.value() + 1)
        return self._so_far(ctx)

    def process_element2(self, row: dict[str, Any], ctx: ProcessContext) -> dict[str, Any]:
        self.hours.update(self.hours.value() + 1)
        return self._so_far(ctx)

    def _so_far(self, ctx: ProcessContext) -> dict[str, Any]:
        return {
            "origin": ctx.current_key,
            "flights": self.flights.value(),
            "hours": self.hours.value(),
        }


@query(
    """select origin, (select count(*) from flights f where f.origin = w.origin) as flights,
        count(*) as hours from weather w group by origin"""
)
def two_streams_in_one_state(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    both = data.flights(env).key_by("origin").connect(data.weather(env).key_by("origin"))
    return (
        both.process(BothSides, uid="both")
        .key_by("origin")
        .aggregate(flights=max_("flights"), hours=max_("hours"), emit="final", uid="last")
    )
