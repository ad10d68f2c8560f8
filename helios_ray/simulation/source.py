"""Numbered input for simulated jobs.

Why it exists: each row has an identity, so loss and duplication show, and a place in its
split, so disorder shows.

May import: connectors, errors, faults of this room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from helios_ray.connectors.base import (
    Exhausted,
    Json,
    NotYet,
    Poll,
    Rows,
    Source,
    Split,
    SplitReader,
)
from helios_ray.elements import Origin
from helios_ray.errors import SourceUnavailableError
from helios_ray.simulation.faults import Dice

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("split", pa.int64()),
        ("n", pa.int64()),
        ("key", pa.int64()),
        ("ts", pa.int64()),
        ("count", pa.int64()),
    ]
)


class NumberedSource(Source):
    """``splits`` splits of ``rows`` rows each; row n of a split has key ``n * step % keys``.

    Args:
        name: tells the rows of several sources apart.
        dice: how many rows come at a time, and when none do.
        pace: seconds from one read to the next, at most.
        released: where given, a split holds its last row back until this says yes: for long
            stretches it is idle.
    """

    def __init__(
        self,
        name: str,
        splits: int,
        rows: int,
        keys: int,
        dice: Dice,
        pace: float = 0.0,
        released: Callable[[], bool] | None = None,
    ) -> None:
        self.name = name
        self.splits = splits
        self.rows = rows
        self.keys = keys
        self.pace = pace
        self.released = released
        self._dice = dice

    @property
    def bounded(self) -> bool:
        return True

    def schema(self) -> pa.Schema:
        return SCHEMA

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        return [Split(split_id=f"{self.name}-{i}", spec={"index": i}) for i in range(self.splits)]

    def open_split(self, split: Split) -> SplitReader:
        return _Reader(self, split.spec["index"], self._dice)

    def row_key(self, split: int, n: int) -> int:
        """Key of a row."""
        return (split * 7 + n * 3) % self.keys

    def row_time(self, split: int, n: int) -> int:
        """Event time of a row (µs)."""
        return n * 1000

    def row_count(self, split: int, n: int) -> int:
        """What a row adds to the count of its key."""
        return 1

    def expected(self) -> list[tuple[str, int, int, int]]:
        """Every row, in order per split."""
        return [
            (self.name, s, n, self.row_key(s, n))
            for s in range(self.splits)
            for n in range(self.rows)
        ]


class TimedSource(NumberedSource):
    """Rows out of order by up to ``bound`` microseconds, numbered through in ``count``.

    All splits are read side by side: one that had not begun could not hold event time back.

    Args:
        late_every: every so many rows, on average, one is far too late; 0 is never.
    """

    bound = 4000

    def __init__(
        self,
        name: str,
        splits: int,
        rows: int,
        keys: int,
        dice: Dice,
        pace: float = 0.0,
        *,
        late_every: int = 0,
    ) -> None:
        super().__init__(name, splits, rows, keys, dice, pace)
        self.concurrent_splits = splits
        self.late_every = late_every

    def row_time(self, split: int, n: int) -> int:
        jitter = (split * 7919 + n * 104_729) % (self.bound + 1)
        if self.late_every and (n * 31 + split) % self.late_every == self.late_every - 1:
            return max(0, n * 1000 - 15_000 - jitter)
        return n * 1000 + jitter

    def row_count(self, split: int, n: int) -> int:
        return split * 10_000 + n

    def every_row(self) -> list[dict[str, Any]]:
        """The rows as they come."""
        return [
            {
                "source": self.name,
                "split": split,
                "n": n,
                "key": key,
                "ts": self.row_time(split, n),
                "count": self.row_count(split, n),
            }
            for _, split, n, key in self.expected()
        ]


class _Reader(SplitReader):
    def __init__(self, source: NumberedSource, index: int, dice: Dice) -> None:
        self._source = source
        self._index = index
        self._dice = dice
        self._next = 0
        self._ready_at = 0.0

    def poll(self, max_rows: int, now: float) -> Poll:
        source = self._source
        if self._next >= source.rows:
            return Exhausted()
        if self._dice.happens("read"):
            raise SourceUnavailableError(f"{source.name} cannot be read just now")
        if now < self._ready_at:
            return NotYet(self._ready_at)
        if self._dice.happens("slow_reader"):
            return NotYet(now + self._dice.rng.uniform(0.01, 1.0))
        count = min(max_rows, source.rows - self._next, self._dice.rng.randint(1, 9))
        if source.released is not None and not source.released():
            count = min(count, source.rows - 1 - self._next)
            if count == 0:
                return NotYet(now + 0.2)
        self._ready_at = now + source.pace * self._dice.rng.random()
        first, self._next = self._next, self._next + count
        numbers = range(first, self._next)
        data = pa.record_batch(
            [
                pa.array([source.name] * count),
                pa.array([self._index] * count, pa.int64()),
                pa.array(numbers, pa.int64()),
                pa.array([source.row_key(self._index, n) for n in numbers], pa.int64()),
                pa.array([source.row_time(self._index, n) for n in numbers], pa.int64()),
                pa.array([source.row_count(self._index, n) for n in numbers], pa.int64()),
            ],
            schema=SCHEMA,
        )
        return Rows(data, Origin(f"{source.name}-{self._index}", str(first)))

    def position(self) -> Json:
        return self._next

    def seek(self, position: Json) -> None:
        self._next = int(position)
