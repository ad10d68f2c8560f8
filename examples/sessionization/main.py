"""Clicks into visits: session windows per user, the path through the shop, clicks that come late.

    python examples/sessionization/main.py

A visit is a user's clicks with less than half an hour between them. Two windows of the same
kind run over it: one aggregates (vectorized, keeps a few numbers per visit), one hands all
clicks of a visit to a function (keeps the clicks) that reads the path off them. Phones without
a network send their clicks late: up to two minutes are waited for, the rest is counted and kept.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

import pyarrow as pa

from helios_ray import (
    CheckpointConfig,
    CheckpointStorage,
    JobResult,
    StreamExecutionEnvironment,
    WatermarkStrategy,
)
from helios_ray.aggregates import count, count_distinct, first, last, sum_
from helios_ray.checkpoint import CheckpointConfigWarning, EncryptionConfig, FileKeyProvider
from helios_ray.connectors.base import Exhausted, Poll, Rows, Source, Split, SplitReader
from helios_ray.windows import ProcessWindowFunction, SessionWindow, Window

JOB = "sessionization"
GAP = timedelta(minutes=30)
DISORDER = timedelta(minutes=2)
"""How much later than younger clicks one may arrive and still be part of its visit."""

CLICK = pa.schema(
    [
        ("upload", pa.int64()),
        ("user", pa.string()),
        ("ts", pa.timestamp("us", "UTC")),
        ("page", pa.string()),
        ("cents", pa.int64()),
    ]
)


class Uploads(Source):
    """Clicks as the phones send them: an upload at a time, in the order of arrival.

    A source of one's own is this much: what there is to read (one split), how to read it, and
    a position that a checkpoint can store. The watermark moves after each upload, so an upload
    is what "late" is measured by.
    """

    def __init__(self, clicks: pa.Table) -> None:
        self.clicks = clicks.combine_chunks()
        self.sizes = clicks["upload"].value_counts().field(1).to_pylist()

    @property
    def bounded(self) -> bool:
        return True

    def schema(self) -> pa.Schema:
        return self.clicks.schema

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        return [Split(split_id="uploads")]

    def open_split(self, split: Split) -> SplitReader:
        return UploadsReader(self.clicks, self.sizes)


class UploadsReader(SplitReader):
    def __init__(self, clicks: pa.Table, sizes: Sequence[int]) -> None:
        self.clicks, self.sizes = clicks, sizes
        self.upload = self.row = 0

    def poll(self, max_rows: int, now: float) -> Poll:
        if self.upload == len(self.sizes):
            return Exhausted()
        size = self.sizes[self.upload]
        [batch] = self.clicks.slice(self.row, size).to_batches()
        self.upload, self.row = self.upload + 1, self.row + size
        return Rows(batch)

    def position(self) -> Any:
        return {"upload": self.upload, "row": self.row}

    def seek(self, position: Any) -> None:
        self.upload, self.row = position["upload"], position["row"]


class Path(ProcessWindowFunction):
    """The pages of a visit in the order of the clicks, and how it ended."""

    output_schema = pa.schema([("path", pa.string()), ("outcome", pa.string())])

    def process(
        self, key: Mapping[str, Any], window: Window, rows: pa.Table
    ) -> Iterator[dict[str, Any]]:
        # The rows come by event time: no sorting here, whatever the order of arrival was.
        pages = rows["page"].to_pylist()
        outcome = "bought" if "paid" in pages else "left a cart" if "cart" in pages else "looked"
        yield {"path": " > ".join(pages), "outcome": outcome}


def build(env: StreamExecutionEnvironment) -> None:
    """Describe the job: clicks in; visits, paths and late clicks out."""
    clicks = env.from_source(
        Uploads(tables()["clicks"]),
        WatermarkStrategy.bounded_out_of_orderness("ts", DISORDER),
        uid="clicks",
    )
    visits = clicks.key_by("user").window(SessionWindow(GAP))
    numbers = visits.aggregate(
        clicks=count(),
        pages=count_distinct("page"),
        landed_on=first("page"),
        left_from=last("page"),
        cents=sum_("cents"),
        uid="visits",
    )
    numbers.collect(uid="numbers")
    visits.process(Path, uid="paths-of-visits").collect(uid="paths")
    # Both windows leave out the same clicks: one of them says which.
    numbers.late().collect(uid="late", parallelism=1)


# ------------------------------------------------------------- the input, and what is right


USERS = 300
START = datetime(2026, 3, 2, 6, tzinfo=timezone.utc)
DAY = timedelta(hours=16)
NEXT = {
    "home": ["search", "search", "offers", "product"],
    "search": ["product", "product", "search"],
    "offers": ["product", "home"],
    "product": ["product", "cart", "search", "home"],
    "cart": ["paid", "product", "home"],
    "paid": ["home"],
}


@cache
def tables() -> dict[str, pa.Table]:
    """The input by name, as the queries below see it: a day of clicks as they arrive."""
    dice = random.Random(1402)
    clicks: list[tuple[datetime, dict[str, Any]]] = []
    for n in range(USERS):
        for _ in range(dice.randint(1, 4)):
            ts, page = START + DAY * dice.random(), "home"
            visit: list[dict[str, Any]] = []
            for _ in range(dice.randint(1, 12)):
                cents = dice.randint(500, 20_000) if page == "paid" else None
                visit.append({"user": f"user-{n:03}", "ts": ts, "page": page, "cents": cents})
                ts += timedelta(seconds=dice.expovariate(1 / 90), microseconds=1)
                page = dice.choice(NEXT[page])
            # Without a network the whole visit is sent later, at once.
            online = dice.random() > 0.06
            found = ts + timedelta(hours=1) * dice.random()
            clicks += [
                (click["ts"] + DISORDER / 2 * dice.random() if online else found, click)
                for click in visit
            ]
    clicks.sort(key=lambda pair: pair[0])
    rows, upload, until = [], -1, START
    for arrival, click in clicks:  # what arrived in one minute is one upload
        if arrival >= until:
            upload, until = upload + 1, arrival + timedelta(minutes=1)
        rows.append({"upload": upload, **click})
    return {"clicks": pa.Table.from_pylist(rows, schema=CLICK)}


# A click joins the visits it touches first, and is late if what comes of that was over for event
# time when its upload came. ``reach`` follows a click that would be late alone from click to click
# of those before it; where that ends decides.
_GAP = f"INTERVAL {GAP // timedelta(seconds=1)} SECOND"
_JUDGED = f"""
    uploads AS (SELECT upload, max(ts) AS newest FROM clicks GROUP BY upload),
    known AS (
        SELECT upload, max(newest) OVER (
            ORDER BY upload ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) - INTERVAL {DISORDER // timedelta(seconds=1)} SECOND AS event_time FROM uploads
    ),
    placed AS (
        SELECT numbered.*, event_time, coalesce(ts + {_GAP} <= event_time, false) AS old
        FROM (SELECT *, row_number() OVER () AS arrival FROM clicks) numbered
        JOIN known USING (upload)
    ),
    reach AS (
        SELECT arrival, ts AS reached FROM placed WHERE old
        UNION
        SELECT reach.arrival, other.ts FROM reach JOIN placed AS mine USING (arrival)
        JOIN placed AS other ON other.user = mine.user AND other.arrival < mine.arrival
            AND other.ts > reached AND other.ts < reached + {_GAP}
    ),
    judged AS (
        SELECT placed.*, old AND furthest + {_GAP} <= event_time AS late
        FROM placed LEFT JOIN (
            SELECT arrival, max(reached) AS furthest FROM reach GROUP BY arrival
        ) USING (arrival)
    )
"""
_VISITS = f"""
    WITH RECURSIVE {_JUDGED},
    begun AS (
        SELECT *, lag(ts) OVER (PARTITION BY user ORDER BY ts) + {_GAP} AS over,
            lag(old) OVER (PARTITION BY user ORDER BY ts) AS after_old,
            coalesce(
                over <= ts OR (over <= event_time AND NOT old AND NOT after_old), over IS NULL
            ) AS begins
        FROM judged WHERE late IS NOT TRUE
    ),
    numbered AS (
        SELECT *, count(*) FILTER (begins) OVER (PARTITION BY user ORDER BY ts) AS visit FROM begun
    )
    SELECT user, min(ts) AS window_start, max(ts) + {_GAP} AS window_end,
"""
ORACLE: dict[str, str] = {
    "numbers": _VISITS
    + """
           count(*) AS clicks, count(DISTINCT page) AS pages, arg_min(page, ts) AS landed_on,
           arg_max(page, ts) AS left_from, sum(cents)::BIGINT AS cents
    FROM numbered GROUP BY user, visit
    """,
    "paths": _VISITS
    + """
           string_agg(page, ' > ' ORDER BY ts) AS path,
           CASE WHEN bool_or(page = 'paid') THEN 'bought'
                WHEN bool_or(page = 'cart') THEN 'left a cart' ELSE 'looked' END AS outcome
    FROM numbered GROUP BY user, visit
    """,
    "late": f"WITH RECURSIVE {_JUDGED} SELECT upload, user, ts, page, cents FROM judged WHERE late",
}
"""By uid of a sink: the query over ``tables()`` whose rows are the sink's, in any order."""


# -------------------------------------------------------------------------------- the program


def report(result: JobResult) -> str:
    """The day in figures."""
    numbers, paths = result.collect("numbers"), result.collect("paths")
    late = result.collect("late")
    outcomes = paths.group_by(["outcome"]).aggregate([([], "count_all")])
    ways = paths.group_by(["path"]).aggregate([([], "count_all")])
    ways = ways.sort_by([("count_all", "descending"), ("path", "ascending")]).slice(0, 8)
    lines = ["most travelled paths"]
    lines += [f"{row['count_all']:>6}  {row['path']}" for row in ways.to_pylist()]
    lines += ["", "how visits ended"]
    for row in outcomes.sort_by([("count_all", "descending")]).to_pylist():
        lines.append(f"{row['count_all']:>6}  {row['outcome']}")
    clicks = sum(numbers["clicks"].to_pylist())
    spent = sum(cents or 0 for cents in numbers["cents"].to_pylist()) / 100
    lines += [
        "",
        f"{late.num_rows} clicks of {len(set(late['user'].to_pylist()))} users came after their "
        f"visit was over; they are in the sink 'late'",
        f"sessionization: visits={numbers.num_rows} clicks={clicks} late={late.num_rows} "
        f"of={tables()['clicks'].num_rows} spent={spent:,.2f}",
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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sessions-") as scratch:
        env = environment(args.state or scratch, args.key_file)
        build(env)
        print(report(env.execute(JOB)))


if __name__ == "__main__":
    main()
