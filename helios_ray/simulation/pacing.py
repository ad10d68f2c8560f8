"""A source that comes in pieces: any bounded source, cut and delayed at random.

Why it exists: what a program computes must not depend on where its batches are cut or on
which split comes first.

May import: connectors, errors, faults of this room.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from helios_ray.connectors.base import Json, NotYet, Poll, Source, Split, SplitReader
from helios_ray.errors import ConfigError, SourceUnavailableError
from helios_ray.simulation.faults import Dice


class PacedSource(Source):
    """Another source, read a few rows at a time.

    Args:
        source: what to read; it must end.
        dice: how many rows come at a time, when none do, and when reading fails.
        rows: at most at a time.
        pace: seconds from one read to the next, at most, as long as faults may strike.

    Raises:
        ConfigError: the source does not end.
    """

    def __init__(self, source: Source, dice: Dice, rows: int, pace: float) -> None:
        if not source.bounded:
            raise ConfigError(
                f"a simulated job must end, and {source!r} does not. Give the job a bounded "
                f"source, such as from_items([...])."
            )
        self.source = source
        self.dice = dice
        self.rows = rows
        self.pace = pace
        self.concurrent_splits = source.concurrent_splits
        self.discovery_interval = source.discovery_interval

    def __repr__(self) -> str:
        return repr(self.source)

    @property
    def bounded(self) -> bool:
        return True

    def schema(self) -> pa.Schema | None:
        return self.source.schema()

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        return self.source.discover_splits(parallelism)

    def open_split(self, split: Split) -> SplitReader:
        return _PacedReader(self, split)


class _PacedReader(SplitReader):
    def __init__(self, paced: PacedSource, split: Split) -> None:
        self._paced = paced
        self._reader = paced.source.open_split(split)
        self._split = split.split_id
        self._ready_at = 0.0

    def poll(self, max_rows: int, now: float) -> Poll:
        dice = self._paced.dice
        if dice.happens("read"):
            raise SourceUnavailableError(f"{self._split} cannot be read just now")
        if now < self._ready_at:
            return NotYet(self._ready_at)
        if dice.happens("slow_reader"):
            return NotYet(now + dice.rng.uniform(0.01, 1.0))
        if now < dice.plan.until:
            self._ready_at = now + self._paced.pace * dice.rng.random()
        return self._reader.poll(dice.rng.randint(1, min(max_rows, self._paced.rows)), now)

    def position(self) -> Json:
        return self._reader.position()

    def seek(self, position: Json) -> None:
        self._reader.seek(position)

    def close(self) -> None:
        self._reader.close()
