"""The job under fire: numbers, a running count by key, and the same rows into two sinks.

Why it exists: each input has a number and each output says which input it came from and how many
its key has had. So a reader of either sink can tell a loss, a duplicate, state that was taken up
too old or too new, and a wrong order.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray import StreamExecutionEnvironment
from helios_ray.checkpoint import (
    CheckpointConfig,
    CheckpointStorage,
    EncryptionConfig,
    FileKeyProvider,
)
from helios_ray.connectors.base import Exhausted, NotYet, Poll, Source, Split, SplitReader
from helios_ray.connectors.files import FileSink
from helios_ray.connectors.generator import DataGenSource
from helios_ray.connectors.postgres import PostgresSink
from helios_ray.protocol.restart import FixedDelay

JOB = "chaos"
SOURCE, TOTALS, ROWS, FILES = "numbers", "totals", "rows", "files"
TABLE = "totals"
KEYS = 61
PARALLELISM = 2


class Numbers:
    """Makes row ``n``: its number, a key that the seed shuffles, and a one to count."""

    def __init__(self, seed: int) -> None:
        self._factor = 2 * seed + 1_000_003

    def __call__(self, n: Any) -> dict[str, Any]:
        return {
            "n": n,
            "key": (n * self._factor) % 1_000_033 % KEYS,
            "count": np.ones(len(n), np.int64),
        }


class UpToHorizon(Source):
    """A generator that reads no further than a file allows, and ends where the file says so.

    Why: how many rows there shall have been is decided during the run, and nobody must have read
    beyond that.

    Args:
        rows: makes the rows.
        rows_per_second: of all subtasks together.
        horizon: the file; see :func:`write_horizon`.
    """

    concurrent_splits = DataGenSource.concurrent_splits

    def __init__(self, rows: Numbers, rows_per_second: float, horizon: Path) -> None:
        # Batches of a few rows: one row at a time would measure what a batch costs, on two cores.
        self._generator = DataGenSource(
            rows, rows_per_second, batch_interval=timedelta(milliseconds=25)
        )
        self._horizon = horizon

    @property
    def bounded(self) -> bool:
        return True

    def schema(self) -> pa.Schema:
        return self._generator.schema()

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        return self._generator.discover_splits(parallelism)

    def open_split(self, split: Split) -> SplitReader:
        return _Reader(self._generator.open_split(split), split, self._horizon)


class _Reader(SplitReader):
    def __init__(self, inner: SplitReader, split: Split, horizon: Path) -> None:
        self._inner = inner
        self._residue = int(split.spec["residue"])
        self._modulus = int(split.spec["modulus"])
        self._file = horizon
        self._rows = 0

    def poll(self, max_rows: int, now: float) -> Poll:
        left = self._left()
        if left <= 0:
            word, number = self._file.read_text().split()
            self._rows = -(-(int(number) - self._residue) // self._modulus)
            left = self._left()
            if left <= 0:
                return Exhausted() if word == "end" else NotYet(now + 0.05)
        return self._inner.poll(min(max_rows, left), now)

    def _left(self) -> int:
        return self._rows - int(self._inner.position()["row"])

    def position(self) -> Any:
        return self._inner.position()

    def seek(self, position: Any) -> None:
        self._inner.seek(position)


def write_horizon(file: Path, number: int, *, end: bool) -> None:
    """Let the source read the rows below ``number``; ``end``: there shall be no more."""
    draft = file.with_suffix(".draft")
    draft.write_text(f"{'end' if end else 'more'} {number}")
    draft.rename(file)


def add(so_far: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """One more of a key: this row, and how many there have been."""
    return {**row, "count": so_far["count"] + row["count"]}


def build(
    *,
    seed: int,
    rows_per_second: float,
    interval: timedelta,
    horizon: Path,
    dsn: str,
    output: str,
    output_options: dict[str, Any],
    format: str,
    storage: CheckpointStorage,
    keys: Path,
) -> StreamExecutionEnvironment:
    """The job, not started."""
    env = (
        StreamExecutionEnvironment()
        .with_checkpoint_config(
            CheckpointConfig(
                interval=interval,
                min_pause=interval / 4,
                storage=storage,
                encryption=EncryptionConfig(key_provider=FileKeyProvider(keys)),
            )
        )
        .with_parallelism(PARALLELISM)
        # Kills come closer together than any cluster fails: waiting is not what is measured.
        .with_restart_strategy(FixedDelay(attempts=1_000_000, delay=timedelta(0)))
        .build()
    )
    totals = (
        env.from_source(UpToHorizon(Numbers(seed), rows_per_second, horizon), uid=SOURCE)
        .key_by("key")
        .reduce(add, uid=TOTALS)
    )
    # Actors of their own: a sink can die alone.
    totals.sink_to(PostgresSink(dsn, table=TABLE), uid=ROWS).disable_chaining()
    totals.sink_to(
        FileSink(output, format=format, storage_options=output_options), uid=FILES
    ).disable_chaining()
    return env
