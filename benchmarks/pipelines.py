"""The jobs that are measured, and the sinks that measure them.

Why it exists: a benchmark's sink must cost next to nothing and must not trust anybody's
counters; these two only count, or only note how old each row is.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray.connectors.base import Sink, SinkContext


def monotonic_us() -> int:
    """Microseconds on the machine's monotonic clock, the same in every process."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


class CountingSink(Sink):
    """Throws rows away and writes how many there were, and when the first and last came.

    Args:
        directory: gets one JSON file per subtask.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rows = 0
        self.batches = 0

    def open(self, context: SinkContext) -> None:
        self.path = self.directory / f"{context.subtask}.json"

    def write(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        self.batches += 1

    def close(self) -> None:
        self.flush()

    def flush(self) -> None:
        self.path.write_text(json.dumps({"rows": self.rows, "batches": self.batches}))


class ArrivalSink(Sink):
    """Notes for every row its number, when it was made, and when it arrived.

    Args:
        directory: gets one ``.npy`` per subtask: rows of (n, made µs, arrived µs).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.seen: list[np.ndarray[Any, Any]] = []

    def open(self, context: SinkContext) -> None:
        self.path = self.directory / f"{context.subtask}.npy"

    def write(self, batch: pa.RecordBatch) -> None:
        now = monotonic_us()
        number = batch.column("n").to_numpy(zero_copy_only=False)
        made = batch.column("made").to_numpy(zero_copy_only=False)
        self.seen.append(np.stack([number, made, np.full(len(number), now)]))

    def flush(self) -> None:
        """Written at the end; benchmarks do not restart."""
        if self.seen:
            np.save(self.path, np.concatenate(self.seen, axis=1))


def ages_ms(directory: Path, rate: float, skip_seconds: float) -> np.ndarray[Any, Any]:
    """Age of every row in milliseconds, against the time it was meant to be made.

    The schedule is anchored at the row that was made least late; a stall of the generator
    counts against every row that it delayed (no coordinated omission).

    Args:
        rate: rows per second of the whole source.
        skip_seconds: of the beginning, for warming up.
    """
    seen = np.concatenate([np.load(path) for path in sorted(directory.glob("*.npy"))], axis=1)
    number, made, arrived = seen.astype(np.float64)
    meant = number * (1_000_000 / rate)
    start = float(np.min(made - meant))
    ages = (arrived - (start + meant)) / 1000
    return ages[number >= skip_seconds * rate]
