"""Windows of every kind, with every aggregate that SQL knows."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray import DataStream, StreamExecutionEnvironment, col
from helios_ray.aggregates import (
    AggregateFunction,
    arg_max,
    arg_min,
    collect_list,
    count,
    count_distinct,
    max_,
    mean,
    min_,
    quantile,
    stddev,
    sum_,
    top_k,
    variance,
)
from helios_ray.windows import (
    CountWindow,
    GlobalWindow,
    ProcessWindowFunction,
    SessionWindow,
    SlidingWindow,
    Trigger,
    TumblingWindow,
)
from tests.oracle.data import Data
from tests.oracle.query import query

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def bounds(size: str) -> str:
    """SQL of a tumbling window's bounds."""
    start = f"time_bucket(interval '{size}', ts, timestamp '1970-01-01')"
    return f"{start} as window_start, {start} + interval '{size}' as window_end"


@query(
    f"""select origin, {bounds("1 hour")}, count(*) as flights, count(dep_delay) as departed,
        sum(distance) as miles, avg(dep_delay) as delay, min(dep_delay) as least,
        max(dep_delay) as most from flights group by all"""
)
def tumbling_hour_by_origin(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("origin")
        .window(TumblingWindow(HOUR))
        .aggregate(
            flights=count(),
            departed=count("dep_delay"),
            miles=sum_("distance"),
            delay=mean("dep_delay"),
            least=min_("dep_delay"),
            most=max_("dep_delay"),
            uid="hourly",
        )
    )


@query(
    f"""select carrier, {bounds("1 day")}, count(distinct dest) as dests,
        count(distinct tailnum) as planes from flights group by all"""
)
def tumbling_day_distinct(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("carrier")
        .window(TumblingWindow(DAY))
        .aggregate(dests=count_distinct("dest"), planes=count_distinct("tailnum"), uid="daily")
    )


@query(
    """select origin, (midnight at time zone 'America/New_York') as window_start,
        ((midnight + interval 1 day) at time zone 'America/New_York') as window_end,
        count(*) as n from flights group by all"""
)
def tumbling_day_of_new_york(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    # The disorder was made by ts, in local time, which is hours from UTC all the year.
    return (
        data.flights(env)
        .key_by("origin")
        .window(TumblingWindow(DAY, tz="America/New_York"), time="utc")
        .aggregate(n=count(), uid="daily")
        .select(
            "origin",
            "n",
            window_start=col("window_start"),
            window_end=col("window_end"),
        )
    )


@query(
    """with w as (select *, time_bucket(interval '6 hours', ts, timestamp '1970-01-01 02:00') as s
        from flights)
        select carrier, s as window_start, s + interval '6 hours' as window_end,
        stddev_samp(distance) as spread, var_pop(distance) as variance from w group by all"""
)
def tumbling_with_offset(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("carrier")
        .window(TumblingWindow(timedelta(hours=6), offset=timedelta(hours=2)))
        .aggregate(spread=stddev("distance"), variance=variance("distance", ddof=0), uid="w")
    )


def sliding(size: int, slide: int, key: str, results: str) -> str:
    """SQL of sliding windows of whole hours."""
    return f"""
        with w as (
            select f.*, unnest(generate_series(
                time_bucket(interval '{slide} hours', ts - interval '{size - slide} hours',
                            timestamp '1970-01-01'),
                time_bucket(interval '{slide} hours', ts, timestamp '1970-01-01'),
                interval '{slide} hours')) as s
            from flights f)
        select {key}, s as window_start, s + interval '{size} hours' as window_end, {results}
        from w where ts >= s and ts < s + interval '{size} hours' group by all"""


@query(sliding(3, 1, "origin", "count(*) as n, sum(distance) as miles, max(dep_delay) as worst"))
def sliding_3h_1h(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("origin")
        .window(SlidingWindow(timedelta(hours=3), HOUR))
        .aggregate(n=count(), miles=sum_("distance"), worst=max_("dep_delay"), uid="w")
    )


@query(sliding(24, 6, "carrier, dest", "count(*) as n, avg(air_time) as airborne"))
def sliding_day_by_route(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("carrier", "dest")
        .window(SlidingWindow(DAY, timedelta(hours=6)))
        .aggregate(n=count(), airborne=mean("air_time"), uid="w")
    )


@query(sliding(5, 2, "origin", "count(distinct carrier) as carriers"))
def sliding_by_an_uneven_slide(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("origin")
        .window(SlidingWindow(timedelta(hours=5), timedelta(hours=2)))
        .aggregate(carriers=count_distinct("carrier"), uid="w")
    )


def session(keys: str, minutes: int, results: str) -> str:
    """SQL of sessions: rows of a key less than a gap apart."""
    gap = f"interval '{minutes} minutes'"
    return f"""
        with marked as (
            select *, ts - lag(ts) over (partition by {keys} order by ts) >= {gap} as breaks
            from flights),
        numbered as (
            select *, sum(coalesce(cast(breaks as int), 0))
                over (partition by {keys} order by ts rows unbounded preceding) as session
            from marked)
        select {keys}, min(ts) as window_start, max(ts) + {gap} as window_end, {results}
        from numbered group by {keys}, session"""


@query(session("tailnum", 480, "count(*) as legs, sum(distance) as miles"))
def sessions_of_planes(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("tailnum")
        .window(SessionWindow(timedelta(hours=8)))
        .aggregate(legs=count(), miles=sum_("distance"), uid="w")
    )


@query(session("carrier, origin", 90, "count(*) as n, max(distance) as far, min(id) as lowest"))
def sessions_of_carriers(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("carrier", "origin")
        .window(SessionWindow(timedelta(minutes=90)))
        .aggregate(n=count(), far=max_("distance"), lowest=min_("id"), uid="w")
    )


@query(
    """select carrier, n * 500 as window_start, (n + 1) * 500 as window_end, 500 as rows
        from (select carrier, unnest(range(count(*) // 500)) as n from flights group by carrier)"""
)
def windows_of_500_rows(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("carrier")
        .window(CountWindow(500))
        .aggregate(rows=count(), uid="w")
    )


@query(
    """select dest, cast(null as timestamp) as window_start, cast(null as timestamp) as window_end,
        count(*) as n, max(arr_delay) as worst from flights group by dest"""
)
def one_window_for_all_time(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("dest")
        .window(GlobalWindow())
        .aggregate(n=count(), worst=max_("arr_delay"), uid="w")
    )


@query(
    f"""select {bounds("1 day")}, count(*) as n, arg_max(tailnum, distance * 1000000 + id) as far,
        arg_min(tailnum, distance * 1000000 + id) as near from flights where tailnum is not null
        group by all"""
)
def days_of_all_airports_together(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .filter(pc.field("tailnum").is_valid())
        .with_columns(by=col("distance") * 1_000_000 + col("id"))
        .window_all(TumblingWindow(DAY))
        .aggregate(n=count(), far=arg_max("tailnum", "by"), near=arg_min("tailnum", "by"), uid="w")
    )


@query(
    f"""with hourly as (select origin, {bounds("1 hour")}, count(*) as n from flights group by all)
        select origin, time_bucket(interval '1 day', window_start) as window_start,
        time_bucket(interval '1 day', window_start) + interval '1 day' as window_end,
        max(n) as busiest, count(*) as hours from hourly group by all"""
)
def windows_over_windows(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("origin")
        .window(TumblingWindow(HOUR))
        .aggregate(n=count(), uid="hourly")
        .key_by("origin")
        .window(TumblingWindow(DAY))
        .aggregate(busiest=max_("n"), hours=count(), uid="daily")
    )


@query(
    f"""select origin, {bounds("7 days")}, quantile_cont(dep_delay, 0.5) as median,
        quantile_cont(dep_delay, 0.9) as p90 from flights group by all""",
    near={"median": 1.0, "p90": 3.0},
)
def quantiles_of_weeks(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("origin")
        .window(TumblingWindow(timedelta(days=7)))
        .aggregate(median=quantile("dep_delay", 0.5), p90=quantile("dep_delay", 0.9), uid="w")
    )


@query(
    f"""select carrier, {bounds("1 day")}, list_sort(list(distance), 'desc')[:3] as longest,
        list(distance * 1000000 + id order by distance * 1000000 + id desc)[:2] as two
        from flights group by all"""
)
def the_longest_of_each_day(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .with_columns(by=col("distance") * 1_000_000 + col("id"))
        .key_by("carrier")
        .window(TumblingWindow(DAY))
        .aggregate(longest=top_k("distance", 3), two=top_k("by", 2), uid="w")
    )


@query(
    f"""select carrier, {bounds("1 hour")}, list_sort(list(distinct id)) as ids
        from flights where carrier in ('HA', 'AS', 'OO') group by all"""
)
def lists_of_rare_carriers(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .filter(col("carrier").isin(["HA", "AS", "OO"]))
        .key_by("carrier")
        .window(TumblingWindow(HOUR))
        .aggregate(ids=collect_list("id"), uid="w")
        # In the order of event time; flights of one minute in that of arrival.
        .map(lambda row: {**row, "ids": sorted(row["ids"])})
    )


class SumOfSquares(AggregateFunction):
    """A user's own aggregate."""

    result_type = pa.int64()

    def create(self) -> int:
        return 0

    def add(self, accumulator: int, row: dict[str, int]) -> int:
        return accumulator + row["distance"] ** 2

    def merge(self, one: int, other: int) -> int:
        return one + other

    def result(self, accumulator: int) -> int:
        return accumulator


@query(
    f"""select origin, {bounds("1 day")}, sum(distance * distance) as squares
        from flights group by all"""
)
def an_aggregate_of_the_users_own(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("origin")
        .window(TumblingWindow(DAY))
        .aggregate(squares=SumOfSquares(), uid="w")
    )


class Spread(ProcessWindowFunction):
    """A user's function of all rows of a window."""

    output_schema = pa.schema([("spread", pa.int64()), ("planes", pa.int64())])

    def process(self, key: dict[str, str], window: object, rows: pa.Table) -> object:
        bounds = pc.min_max(rows["distance"]).as_py()
        planes = pc.count_distinct(rows["tailnum"]).as_py()
        yield {"spread": bounds["max"] - bounds["min"], "planes": planes}


@query(
    f"""select carrier, {bounds("1 day")}, max(distance) - min(distance) as spread,
        count(distinct tailnum) as planes from flights group by all"""
)
def a_function_of_each_window(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return data.flights(env).key_by("carrier").window(TumblingWindow(DAY)).process(Spread, uid="w")


@query(f"select origin, {bounds('1 hour')}, count(*) as n from flights group by all")
def late_rows_update_their_windows(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    """Windows go by a time that is hours ahead of the watermark: most rows come late."""
    windows = (
        data.flights(env)
        .with_columns(early=col("ts") - pa.scalar(timedelta(hours=8)))
        .key_by("origin")
        .window(TumblingWindow(HOUR), time="early")
        .allowed_lateness(timedelta(days=2))
        .aggregate(n=count(), uid="w")
    )
    eight = pa.scalar(timedelta(hours=8))
    return (
        windows.key_by("origin", "window_start", "window_end")
        .aggregate(n=max_("n"), emit="final", uid="last")
        .with_columns(
            window_start=col("window_start") + eight, window_end=col("window_end") + eight
        )
    )


@query("select origin, count(*) as n from flights group by origin")
def on_time_and_late_rows_are_all_rows(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    """What is late depends on the arrival; that every row is in one of both does not."""
    windows = (
        data.flights(env)
        .with_columns(early=col("ts") - pa.scalar(timedelta(hours=8)))
        .key_by("origin")
        .window(TumblingWindow(HOUR), time="early")
        .aggregate(n=count(), uid="w")
    )
    late = windows.late().with_columns(n=col("distance") * 0 + 1).select("origin", "n")
    return (
        windows.select("origin", "n")
        .union(late)
        .key_by("origin")
        .aggregate(n=sum_("n"), emit="final", uid="all")
    )


@query(f"select origin, {bounds('1 day')}, sum(distance) as miles from flights group by all")
def early_results_end_in_the_right_one(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("origin")
        .window(TumblingWindow(DAY))
        .trigger(Trigger.early(rows=50))
        .aggregate(miles=sum_("distance"), uid="w")
        .key_by("origin", "window_start", "window_end")
        .aggregate(miles=max_("miles"), emit="final", uid="last")
    )


@query(f"select origin, {bounds('1 day')}, sum(distance) as miles from flights group by all")
def discarded_pieces_add_up(env: StreamExecutionEnvironment, data: Data) -> DataStream:
    return (
        data.flights(env)
        .key_by("origin")
        .window(TumblingWindow(DAY))
        .trigger(Trigger.early(every=timedelta(milliseconds=50)))
        .discarding()
        .aggregate(miles=sum_("distance"), uid="w")
        .key_by("origin", "window_start", "window_end")
        .aggregate(miles=sum_("miles"), emit="final", uid="last")
    )
