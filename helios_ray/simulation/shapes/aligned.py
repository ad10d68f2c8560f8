"""Sources that wait for each other.

Why it exists: limits are messages, and messages get lost, late and repeated; a job must come
to its end all the same, and while nobody dies no source may be further ahead than agreed.

    aligned   a fast source and a slow one in one group, into one count

May import: plan, connectors, watermarks, and the simulation below ``plans``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta

from helios_ray.connectors.base import Exhausted, Json, Poll, Rows, Split, SplitReader
from helios_ray.plan.physical import Partitioning
from helios_ray.simulation.expectations import Expectation, Expected
from helios_ray.simulation.faults import Dice
from helios_ray.simulation.operators import farewell
from helios_ray.simulation.shapes.basic import counting
from helios_ray.simulation.shapes.builder import Builder, Shape
from helios_ray.simulation.source import NumberedSource
from helios_ray.watermarks import WatermarkStrategy


class Course:
    """How far the splits of all sources are, and how far ahead one was read at the most.

    Splits begin at event time 0. Positions are those of the last reader that was opened.
    """

    def __init__(self, sources: Sequence[NumberedSource]) -> None:
        self.places = {(s.name, i): 0 for s in sources for i in range(s.splits)}
        self.greatest_lead = 0

    def reads(self, split: tuple[str, int]) -> None:
        """A split is about to be read."""
        lead = self.places[split] - min(self.places.values())
        self.greatest_lead = max(self.greatest_lead, lead)


class RacingSource(NumberedSource):
    """A source that notes in a ``Course`` how far it is; reads its splits side by side.

    Args:
        course: filled in once all sources are there.
    """

    course: Course | None = None

    def __init__(
        self, name: str, splits: int, rows: int, keys: int, dice: Dice, pace: float
    ) -> None:
        super().__init__(name, splits, rows, keys, dice, pace)
        self.concurrent_splits = splits

    def open_split(self, split: Split) -> SplitReader:
        place = (self.name, int(split.spec["index"]))
        return _Racing(super().open_split(split), place, self)


class _Racing(SplitReader):
    def __init__(self, reader: SplitReader, place: tuple[str, int], source: RacingSource) -> None:
        self._reader = reader
        self._place = place
        self._source = source
        self._note(0)

    def _note(self, rows: int) -> None:
        course = self._source.course
        if course is None:
            return
        ended = rows >= self._source.rows
        time = self._source.row_time(self._place[1], max(0, rows - 1))
        # One that has ended holds nobody back.
        course.places[self._place] = (1 << 62) if ended else time

    def poll(self, max_rows: int, now: float) -> Poll:
        answer = self._reader.poll(max_rows, now)
        if isinstance(answer, Rows):
            if self._source.course is not None:
                self._source.course.reads(self._place)
            self._note(int(self._reader.position()))
        elif isinstance(answer, Exhausted):
            self._note(self._source.rows)
        return answer

    def position(self) -> Json:
        return self._reader.position()

    def seek(self, position: Json) -> None:
        self._reader.seek(position)
        self._note(int(position))


def race(
    b: Builder, strategy: WatermarkStrategy, sources: Sequence[NumberedSource]
) -> dict[str, Expected]:
    """All sources into one count, which keeps rows until their time has come."""
    b.timed = True
    heads = [b.head(s, strategy) for s in sources]
    keyed = counting(b, b.sink("out"))
    for head in heads:
        b.connect(head, keyed, Partitioning.HASH)
    rows = tuple(row for s in sources for row in s.expected())
    rows += tuple(farewell(subtask) for subtask in range(b.out_width))
    return {"out": Expectation(rows=rows, counted=True)}


def build(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """A fast source and a slow one, perhaps idle at times, perhaps with splits in turn."""
    drift = timedelta(milliseconds=rng.choice((1, 5, 20)))
    strategy = WatermarkStrategy.monotonic("ts")
    strategy = strategy.with_alignment("race", drift, timedelta(seconds=rng.choice((0.1, 1.0))))
    if rng.random() < 0.5:
        strategy = strategy.with_idleness(timedelta(seconds=1))
    kind = rng.choice((NumberedSource, RacingSource))
    sources = [
        kind(name, rng.randint(1, 4), rng.randint(5, 60), b.keys, b.dice, pace)
        for name, pace in (("a", 0.0), ("b", b.pace))
    ]
    return race(b, strategy, sources)


SHAPES: dict[str, Shape] = {"aligned": build}
