"""Sensors that report late, out of order, or not at all: averages by the minute, and alerts.

    python examples/iot_alerting/main.py

Forty sensors measure a temperature every ten seconds; gateways upload what they have. Some
readings overtake each other, some wait in a gateway without a network, and some
sensors die. Per minute and sensor there is an average, said again when late readings change
it; readings too late for that are counted and kept; a sensor that is not heard of for two
minutes raises an alert, and another one when it is back.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray import (
    CheckpointConfig,
    CheckpointStorage,
    JobResult,
    StreamExecutionEnvironment,
    WatermarkStrategy,
)
from helios_ray.aggregates import count, max_, mean
from helios_ray.checkpoint import CheckpointConfigWarning, EncryptionConfig, FileKeyProvider
from helios_ray.connectors.base import Exhausted, Poll, Rows, Source, Split, SplitReader
from helios_ray.elements import MAX_TIMESTAMP
from helios_ray.functions import KeyedProcessFunction, ProcessContext, ValueState
from helios_ray.windows import Trigger, TumblingWindow

JOB = "iot-alerting"
MINUTE = timedelta(minutes=1)
DISORDER = timedelta(seconds=30)
"""How much later than younger readings one may arrive without being late."""

LATENESS = timedelta(minutes=5)
"""How long a minute that is over still takes readings."""

SILENCE = timedelta(minutes=2)
HOT = 80.0
EPOCH = datetime.fromtimestamp(0, timezone.utc)
TIME = pa.timestamp("us", "UTC")
READING = pa.schema(
    [("upload", pa.int64()), ("sensor", pa.string()), ("ts", TIME), ("celsius", pa.float64())]
)
ALERT = pa.schema([("sensor", pa.string()), ("alert", pa.string()), ("ts", TIME), ("last", TIME)])


class Gateways(Source):
    """Readings as the gateways send them: an upload at a time, in the order of arrival.

    The watermark moves after each upload, so an upload is what "late" is measured by.
    """

    def __init__(self, readings: pa.Table) -> None:
        self.readings = readings.combine_chunks()
        self.sizes = readings["upload"].value_counts().field(1).to_pylist()

    @property
    def bounded(self) -> bool:
        return True

    def schema(self) -> pa.Schema:
        return self.readings.schema

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        return [Split(split_id="uploads")]

    def open_split(self, split: Split) -> SplitReader:
        return GatewaysReader(self.readings, self.sizes)


class GatewaysReader(SplitReader):
    def __init__(self, readings: pa.Table, sizes: Sequence[int]) -> None:
        self.readings, self.sizes = readings, sizes
        self.upload = self.row = 0

    def poll(self, max_rows: int, now: float) -> Poll:
        if self.upload == len(self.sizes):
            return Exhausted()
        size = self.sizes[self.upload]
        [batch] = self.readings.slice(self.row, size).to_batches()
        self.upload, self.row = self.upload + 1, self.row + size
        return Rows(batch)

    def position(self) -> Any:
        return {"upload": self.upload, "row": self.row}

    def seek(self, position: Any) -> None:
        self.upload, self.row = position["upload"], position["row"]


class Watchdog(KeyedProcessFunction):
    """Barks when a sensor has not been heard of, and when it is heard again.

    Silence is measured in event time: when everything stands still, because the network does
    or because the job is being resumed after a crash, nobody is silent.
    """

    last = ValueState(TIME)
    silent = ValueState(pa.bool_(), default=False)

    def process_element(self, row: dict[str, Any], ctx: ProcessContext) -> Iterator[dict[str, Any]]:
        timers, due = ctx.timer_service, row["ts"] + SILENCE
        if (due - EPOCH) // timedelta(microseconds=1) <= timers.current_watermark:
            return  # news so old is no sign of life
        last = self.last.value()
        if last is not None and row["ts"] <= last:
            return  # overtaken by a younger one
        if self.silent.value():
            yield {"sensor": row["sensor"], "alert": "back", "ts": row["ts"], "last": last}
            self.silent.clear()
        elif last is not None:
            timers.delete_event_time(last + SILENCE)
        self.last.update(row["ts"])
        timers.register_event_time(due)

    def on_timer(self, timestamp: int, ctx: ProcessContext) -> Iterator[dict[str, Any]]:
        if ctx.timer_service.current_watermark == MAX_TIMESTAMP:
            return  # the input has ended, which is no failure of the sensor's
        self.silent.update(True)
        now = EPOCH + timedelta(microseconds=timestamp)
        yield {
            "sensor": ctx.current_key,
            "alert": "silent",
            "ts": now,
            "last": self.last.value(),
        }


def build(env: StreamExecutionEnvironment, *, early: timedelta | None = None) -> None:
    """Describe the job: readings in; minutes, alerts and late readings out.

    Args:
        env: where it is described.
        early: let minutes speak that often (by the clock on the wall) before they are over.
    """
    readings = env.from_source(
        Gateways(tables()["readings"]),
        # A subtask whose gateways send nothing for five seconds holds nobody's time back.
        WatermarkStrategy.bounded_out_of_orderness("ts", DISORDER).with_idleness(
            timedelta(seconds=5)
        ),
        uid="readings",
        parallelism=1,
    )
    windows = readings.key_by("sensor").window(TumblingWindow(MINUTE)).allowed_lateness(LATENESS)
    if early is not None:
        windows = windows.trigger(Trigger.early(every=early))
    minutes = windows.aggregate(
        readings=count(), mean=mean("celsius"), peak=max_("celsius"), uid="by-minute"
    )
    minutes.collect(uid="minutes", parallelism=1)
    minutes.late().collect(uid="too-late", parallelism=1)

    silences = readings.key_by("sensor").process(Watchdog, schema=ALERT, uid="watchdog")
    hot = minutes.filter(pc.field("mean") > HOT).select(
        "sensor", alert=pc.scalar("hot"), ts=pc.field("window_end"), last=pc.field("window_end")
    )
    silences.union(hot).collect(uid="alerts", parallelism=1)


# ------------------------------------------------------------- the input, and what is right


SENSORS = 40
START = datetime(2026, 3, 2, 12, tzinfo=timezone.utc)
LONG = timedelta(hours=2)
EVERY = timedelta(seconds=10)


@cache
def tables() -> dict[str, pa.Table]:
    """The input by name, as the queries below see it: two hours of readings as they arrive."""
    dice = random.Random(451)
    sent: list[tuple[datetime, dict[str, Any]]] = []
    for n in range(SENSORS):
        # Sensor 0 lives quietly, so that every upload has something new.
        dead = offline = hot = (START, START)
        if n % 8 == 1:
            dead = _while(dice, timedelta(minutes=dice.randint(4, 15)))
        if n % 8 == 2:  # measured and not sent: comes later, in time for its minutes or not
            offline = _while(dice, timedelta(minutes=dice.choice([4, 20])))
        if n % 8 == 3:
            hot = _while(dice, timedelta(minutes=5))
        level = dice.uniform(40, 60)
        for k in range(LONG // EVERY):
            ts = START + k * EVERY + timedelta(milliseconds=n)
            level += dice.uniform(-0.5, 0.5)
            if dead[0] <= ts < dead[1]:
                continue
            heat = 40.0 if hot[0] <= ts < hot[1] else 0.0
            celsius = round(4 * (level + heat)) / 4  # such a sensor tells quarters of a degree
            reading = {"sensor": f"sensor-{n:02}", "ts": ts, "celsius": celsius}
            arrival = ts + (DISORDER - EVERY) * (dice.random() if n else 0.0)
            if n and dice.random() < 0.005:  # sent again and again until it came through
                arrival += timedelta(seconds=dice.randint(60, 240))
            sent.append((max(arrival, offline[1]) if ts >= offline[0] else arrival, reading))
    sent.sort(key=lambda pair: pair[0])
    rows = [
        {"upload": (arrival - START) // EVERY, **reading}
        for arrival, reading in sent
        if arrival < START + LONG
    ]
    return {"readings": pa.Table.from_pylist(rows, schema=READING)}


def _while(dice: random.Random, length: timedelta) -> tuple[datetime, datetime]:
    """A stretch of the second half hour or later, over before the input is."""
    start = START + timedelta(minutes=30) + dice.random() * timedelta(minutes=60)
    return start, start + length


# How far event time had come when an upload arrived, and (for minutes) once it had been read.
_CLOCK = f"""
    newest AS (SELECT upload, max(ts) AS newest FROM readings GROUP BY upload),
    progress AS (
        SELECT upload, max(newest) OVER (ORDER BY upload) - INTERVAL '{DISORDER}' AS after
        FROM newest
    ),
    clock AS (SELECT *, lag(after) OVER (ORDER BY upload) AS before FROM progress),
    -- In the order of arrival: what a watermark of "before" means is "younger than this is over".
    judged AS (
        SELECT r.*, row_number() OVER () AS n, clock.before,
               time_bucket(INTERVAL 1 MINUTE, ts) AS minute,
               coalesce(minute + INTERVAL '{MINUTE + LATENESS}' <= before, false) AS too_late
        FROM readings AS r JOIN clock USING (upload)
    )
"""
_MINUTES = f"""
    WITH {_CLOCK},
    -- A minute speaks once it is over, and again with each upload that brings it something.
    over AS (
        SELECT minute, min(upload) AS upload
        FROM (SELECT DISTINCT minute FROM judged), clock
        WHERE after >= minute + INTERVAL 1 MINUTE GROUP BY minute
    ),
    spoken AS (
        SELECT DISTINCT sensor, minute,
               greatest(j.upload, coalesce(over.upload, 1e9::BIGINT)) AS upload
        FROM judged AS j LEFT JOIN over USING (minute) WHERE NOT too_late
    ),
    minutes AS (
        SELECT sensor, minute AS window_start, minute + INTERVAL 1 MINUTE AS window_end,
               count(*) AS readings, avg(celsius) AS mean, max(celsius) AS peak
        FROM spoken JOIN judged AS j USING (sensor, minute)
        WHERE NOT too_late AND j.upload <= spoken.upload
        GROUP BY sensor, minute, spoken.upload
    )
"""
ORACLE: dict[str, str] = {
    "minutes": f"{_MINUTES} FROM minutes",
    "too-late": f"WITH {_CLOCK} SELECT upload, sensor, ts, celsius FROM judged WHERE too_late",
    "alerts": f"""
        {_MINUTES},
        life AS (
            SELECT sensor, ts, before, max(ts) OVER (
                PARTITION BY sensor ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS last
            FROM judged WHERE before IS NULL OR ts + INTERVAL '{SILENCE}' >= before
        ),
        returns AS (SELECT * FROM life WHERE last + INTERVAL '{SILENCE}' < before),
        gone AS (
            SELECT sensor, max(ts) AS last FROM life GROUP BY sensor
            HAVING max(ts) + INTERVAL '{SILENCE}' < (SELECT max(after) FROM clock)
        )
        SELECT sensor, 'back' AS alert, ts, last FROM returns
        UNION ALL SELECT sensor, 'silent', last + INTERVAL '{SILENCE}', last FROM returns
        UNION ALL SELECT sensor, 'silent', last + INTERVAL '{SILENCE}', last FROM gone
        UNION ALL SELECT sensor, 'hot', window_end, window_end FROM minutes WHERE mean > {HOT}
    """,
}
"""By uid of a sink: the query over ``tables()`` whose rows are the sink's, in any order."""


# -------------------------------------------------------------------------------- the program


def report(result: JobResult) -> str:
    """What the two hours brought."""
    minutes, late = result.collect("minutes"), result.collect("too-late")
    alerts = result.collect("alerts")
    said: dict[tuple[str, datetime], int] = {}
    for row in minutes.select(["sensor", "window_start"]).to_pylist():
        which = row["sensor"], row["window_start"]
        said[which] = said.get(which, 0) + 1
    lines = []
    # The first reading of a backlog may be older than the alert that it ends.
    raised = [(max(row["ts"], row["last"] + SILENCE), row) for row in alerts.to_pylist()]
    for _, row in sorted(raised, key=lambda pair: (pair[0], pair[1]["sensor"])):
        gone = (row["ts"] - row["last"]).total_seconds()
        what = {
            "silent": f"silent since {row['last']:%H:%M:%S}",
            "back": f"back, {gone:.0f} s after {row['last']:%H:%M:%S}",
            "hot": f"above {HOT:.0f} °C on average over the last minute",
        }[row["alert"]]
        lines.append(f"{row['ts']:%H:%M:%S}  {row['sensor']}  {what}")
    kinds = alerts["alert"].to_pylist()
    lines += [
        "",
        f"{sum(times > 1 for times in said.values())} of {len(said)} minutes were corrected by "
        f"late readings; {late.num_rows} readings were too late for that",
        f"iot_alerting: readings={tables()['readings'].num_rows} minutes={len(said)} "
        f"versions={minutes.num_rows} too_late={late.num_rows} silent={kinds.count('silent')} "
        f"back={kinds.count('back')} hot={kinds.count('hot')}",
    ]
    return "\n".join(lines)


def environment(state: str, key_file: str | None = None) -> StreamExecutionEnvironment:
    """Checkpoints every second, sealed, in a directory."""
    with warnings.catch_warnings():
        # Short intervals cost throughput; an alert that is seen soon is the point here.
        warnings.simplefilter("ignore", CheckpointConfigWarning)
        config = CheckpointConfig(
            interval=timedelta(seconds=1),
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
    parser.add_argument("--early", type=float, help="seconds from one early result to the next")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iot-") as scratch:
        env = environment(args.state or scratch, args.key_file)
        build(env, early=None if args.early is None else timedelta(seconds=args.early))
        print(report(env.execute(JOB)))


if __name__ == "__main__":
    main()
