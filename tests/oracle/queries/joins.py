"""Joins of flights with the weather and with planes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow as pa

from helios_ray import DataStream, StreamExecutionEnvironment, col
from helios_ray.aggregates import count, mean
from helios_ray.windows import SessionWindow, SlidingWindow, TumblingWindow
from tests.oracle.data import Data
from tests.oracle.queries.windows import bounds
from tests.oracle.query import query

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def flights_of(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    """The columns of flights that joins need."""
    return data.flights(env).select("id", "ts", "origin", "carrier", "tailnum", "dest")


def weather_of(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    """The columns of the weather that joins need."""
    return data.weather(env).select("weather_id", "seen", "origin", "temp", "visib")


@query(
    f"""with f as (select id, origin, {bounds("1 hour")} from flights)
        select f.*, weather_id from f join weather w
        on f.origin = w.origin and w.seen >= window_start and w.seen < window_end"""
)
def window_join_inner(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    weather = weather_of(env, data).key_by("origin")
    return (
        flights_of(env, data)
        .key_by("origin")
        .join(weather, window=TumblingWindow(HOUR), uid="join")
        .select("id", "origin", "weather_id", "window_start", "window_end")
    )


@query(
    f"""with f as (select id, dest as place, {bounds("1 day")} from flights where carrier = 'F9'),
        g as (select id, dest as place, {bounds("1 day")} from flights where carrier = 'VX')
        select f.id, coalesce(f.place, g.place) as place, g.id as other,
        coalesce(f.window_start, g.window_start) as window_start
        from f full join g on f.place = g.place and f.window_start = g.window_start"""
)
def window_join_full(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    flights = flights_of(env, data).select("id", "ts", "carrier", place="dest")
    one = flights.filter(col("carrier") == "F9").select("id", "ts", "place").key_by("place")
    two = flights.filter(col("carrier") == "VX").select("ts", "place", other="id").key_by("place")
    return one.join(two, how="full", window=TumblingWindow(DAY), uid="join").select(
        "id", "place", "other", "window_start"
    )


@query(
    """with s as (select unnest(generate_series(timestamp '2012-12-31', timestamp '2014-01-01',
            interval 1 hour)) as s),
        f as (select s, id, origin from flights, s
            where carrier = 'OO' and ts >= s and ts < s + interval 2 hour),
        w as (select s, weather_id, origin from weather, s
            where seen >= s and seen < s + interval 2 hour)
        select f.s as window_start, f.origin, id, weather_id
        from f left join w on f.s = w.s and f.origin = w.origin"""
)
def sliding_window_join_left(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    weather = weather_of(env, data).key_by("origin")
    return (
        flights_of(env, data)
        .filter(col("carrier") == "OO")
        .key_by("origin")
        .join(weather, how="left", window=SlidingWindow(2 * HOUR, HOUR), uid="join")
        .select("window_start", "origin", "id", "weather_id")
    )


@query(
    """select f.id, f.origin, weather_id, temp from flights f join weather w
        on f.origin = w.origin and w.seen <= f.ts and w.seen > f.ts - interval 1 hour"""
)
def interval_join_with_the_weather(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    weather = weather_of(env, data).key_by("origin")
    return (
        flights_of(env, data)
        .key_by("origin")
        .interval_join(weather, -HOUR, timedelta(0), lower_inclusive=False, uid="join")
        .select("id", "origin", "weather_id", "temp")
    )


@query(
    """select f.id, f.origin, w.seen from flights f left join weather w
        on f.origin = w.origin and w.visib < 1 and w.seen between f.ts and f.ts + interval 2 hour"""
)
def interval_join_left(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    fog = weather_of(env, data).filter(col("visib") < 1).key_by("origin")
    return (
        flights_of(env, data)
        .key_by("origin")
        .interval_join(fog, timedelta(0), 2 * HOUR, how="left", uid="join")
        .select("id", "origin", "seen")
    )


@query(
    """with a as (select id, dest, ts from flights where carrier = 'F9'),
        b as (select id, dest, ts from flights where carrier = 'WN' and origin = 'LGA')
        select a.id, b.id as other, coalesce(a.dest, b.dest) as dest from a full join b
        on a.dest = b.dest and b.ts between a.ts - interval 30 minute and a.ts + interval 3 hour"""
)
def interval_join_full(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    flights = data.flights(env).select("id", "ts", "dest", "carrier", "origin")
    one = flights.filter(col("carrier") == "F9").select("id", "ts", "dest").key_by("dest")
    two = (
        flights.filter((col("carrier") == "WN") & (col("origin") == "LGA"))
        .select("ts", "dest", other="id")
        .key_by("dest")
    )
    return one.interval_join(
        two, timedelta(minutes=-30), timedelta(hours=3), how="full", uid="join"
    ).select("id", "other", "dest")


@query(
    """select f.id, w.weather_id, w.temp from flights f asof left join
        (select * from weather where temp is not null) w
        on f.origin = w.origin and f.ts >= w.seen"""
)
def temporal_join_with_the_weather(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    weather = weather_of(env, data).filter(col("temp").is_valid()).key_by("origin")
    return (
        flights_of(env, data)
        .key_by("origin")
        .temporal_join(weather, uid="join")
        .select("id", "weather_id", "temp")
    )


@query(
    """select f.id, w.weather_id from flights f asof join
        (select * from weather where visib < 2) w on f.origin = w.origin and f.ts >= w.seen
        where f.ts - w.seen <= interval 3 hour"""
)
def temporal_join_within_three_hours(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    fog = weather_of(env, data).filter(col("visib") < 2).key_by("origin")
    return (
        flights_of(env, data)
        .key_by("origin")
        .temporal_join(fog, how="inner", tolerance=3 * HOUR, uid="join")
        .select("id", "weather_id")
    )


@query("""select id, manufacturer, seats, built from flights left join planes using (tailnum)""")
def enriched_with_planes(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        flights_of(env, data)
        .enrich(data.planes(env), "tailnum", uid="enrich")
        .select("id", "manufacturer", "seats", "built")
    )


@query(
    f"""select manufacturer, {bounds("1 day")}, count(*) as n, avg(seats) as seats
        from flights join planes using (tailnum) group by all"""
)
def enriched_then_windowed(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        flights_of(env, data)
        .enrich(data.planes(env), {"tailnum": "tailnum"}, how="inner", uid="enrich")
        .key_by("manufacturer")
        .window(TumblingWindow(DAY))
        .aggregate(n=count(), seats=mean("seats"), uid="w")
    )


@query("select id, engines from flights join planes using (tailnum) where carrier = 'UA'")
def regular_join_inner(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    united = flights_of(env, data).filter(col("carrier") == "UA")
    return (
        united.key_by("tailnum")
        .join(data.planes(env).key_by("tailnum"), uid="join")
        .select("id", "engines")
    )


@query(
    """select id, tailnum, seats from (select * from flights where carrier = 'MQ') f
        full join planes using (tailnum)"""
)
def regular_join_full(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    envoy = flights_of(env, data).filter(col("carrier") == "MQ")
    return (
        envoy.key_by("tailnum")
        .join(data.planes(env).key_by("tailnum"), how="full", uid="join")
        .select("id", "tailnum", "seats")
    )


def tally(_key: dict[str, Any], _window: Any, flights: pa.Table, weather: pa.Table) -> Any:
    """How many rows of each side there are."""
    yield {"flights": flights.num_rows, "hours": weather.num_rows}


@query(
    f"""with f as (select origin, {bounds("1 day")}, count(*) as flights from flights group by all),
        w as (select origin, time_bucket(interval 1 day, seen) as window_start, count(*) as hours
            from weather group by all)
        select coalesce(f.origin, w.origin) as origin,
        coalesce(f.window_start, w.window_start) as window_start,
        coalesce(flights, 0) as flights, coalesce(hours, 0) as hours
        from f full join w on f.origin = w.origin and f.window_start = w.window_start"""
)
def co_grouped_by_day(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    weather = weather_of(env, data).key_by("origin")
    return (
        flights_of(env, data)
        .key_by("origin")
        .co_group(
            weather,
            TumblingWindow(DAY),
            tally,
            schema=pa.schema([("flights", pa.int64()), ("hours", pa.int64())]),
            uid="both",
        )
        .select("origin", "window_start", "flights", "hours")
    )


@query(
    """with sides as (
            select dest as place, ts, id, 1 as side from flights where carrier = 'F9'
            union all select dest, ts, id, 2 from flights where carrier = 'WN'),
        marked as (select *, coalesce(ts - lag(ts) over (partition by place order by ts)
            >= interval 6 hour, false) as breaks from sides),
        numbered as (select *, sum(cast(breaks as int)) over (partition by place order by ts
            rows unbounded preceding) as s from marked)
        select a.place, a.id, b.id as other from numbered a join numbered b
        on a.place = b.place and a.s = b.s and a.side = 1 and b.side = 2"""
)
def session_window_join(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    flights = flights_of(env, data).select("id", "ts", "carrier", place="dest")
    one = flights.filter(col("carrier") == "F9").select("id", "ts", "place").key_by("place")
    two = flights.filter(col("carrier") == "WN").select("ts", "place", other="id").key_by("place")
    return one.join(two, window=SessionWindow(timedelta(hours=6)), uid="join").select(
        "place", "id", "other"
    )
