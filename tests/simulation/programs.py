"""Programs of users in the simulated world, against plain Python: what each property needs.

A property is a few lines::

    @given(case=cases(), rows=rows_of(key=..., v=...))
    @few
    def test_...(case, rows):
        stage = Stage(case)
        result = stage.stream(rows).key_by("key").aggregate(...)
        assert stage.run(result) == multiset(<the same in plain Python>)
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from helios_ray import StreamExecutionEnvironment, WatermarkStrategy
from helios_ray.connectors.base import Exhausted, Json, Poll, Rows, Source, Split, SplitReader
from helios_ray.simulation.faults import FaultPlan
from helios_ray.simulation.programs import SimulatedResult
from helios_ray.stream import DataStream
from helios_ray.testing import simulate

Row = dict[str, Any]

few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
"""A run of a program takes tens of milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a program must not depend on.

    Args:
        seed: of the simulation: faults, cuts between batches, delays.
        splits: of each source.
        parallelism: of everything.
        bound: of the disorder of event times.
        calm: no faults at all.
    """

    seed: int
    splits: int
    parallelism: int
    bound: timedelta = timedelta(milliseconds=5)
    calm: bool = False


def cases() -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        seed=st.integers(0, 2**32 - 1),
        splits=st.integers(1, 4),
        parallelism=st.integers(1, 3),
        bound=st.integers(0, 20).map(lambda ms: timedelta(milliseconds=ms)),
        calm=st.sampled_from([False, False, False, True]),
    )


def rows_of(max_size: int = 60, **columns: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Row]]:
    return lists_of(st.fixed_dictionaries(columns), max_size)


def lists_of(
    items: st.SearchStrategy[Any], max_size: int, unique_by: Callable[[Any], Any] | None = None
) -> st.SearchStrategy[list[Any]]:
    """Lists, many of them long: left alone, Hypothesis seldom draws more than ten items."""
    return st.sampled_from([0, max_size // 4, max_size // 2]).flatmap(
        lambda least: st.lists(items, min_size=least, max_size=max_size, unique_by=unique_by)
    )


def multiset(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Rows as something to compare, whatever their order; lists keep theirs."""
    return Counter(json.dumps(dict(row), sort_keys=True, default=str) for row in rows)


class Stage:
    """An environment for one case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rng = random.Random(case.seed)
        self.env = StreamExecutionEnvironment().with_parallelism(case.parallelism).build()
        self.result: SimulatedResult | None = None
        self.dealt: dict[str, list[list[Row]]] = {}

    def stream(
        self,
        rows: Sequence[Row],
        *,
        schema: pa.Schema | None = None,
        time: str | None = None,
        disorder: timedelta | None = None,
        uid: str = "rows",
    ) -> DataStream:
        """Rows, dealt out to splits at random.

        Args:
            schema: needed where there may be no rows.
            time: column of event times (integers of µs, or datetimes): splits are in its
                order, but for the case's bound, and tell watermarks that fit: no row is late.
            disorder: how far rows are really out of order, where watermarks tell less.
            uid: of the source; ``dealt[uid]`` has the rows of each split as they are read.
        """
        split_rows: list[list[Row]] = [[] for _ in range(self.case.splits)]
        for row in rows:
            self.rng.choice(split_rows).append(row)
        strategy = None
        if time is not None:
            strategy = WatermarkStrategy.bounded_out_of_orderness(time, self.case.bound)
            for part in split_rows:
                self._disorder(part, time, self.case.bound if disorder is None else disorder)
        self.dealt[uid] = split_rows
        source = SplitRows(split_rows, schema or pa.Table.from_pylist(list(rows)).schema)
        return self.env.from_source(source, strategy, uid=uid)

    def _disorder(self, rows: list[Row], time: str, bound: timedelta) -> None:
        def arrival(row: Row) -> Any:
            delay = bound * self.rng.random()
            value = row[time]
            return value + (delay // timedelta(microseconds=1) if isinstance(value, int) else delay)

        rows.sort(key=arrival)

    def run(self, stream: DataStream) -> Counter[str]:
        """What a sink behind the stream holds in the end."""
        stream.collect(uid="out")
        return self.run_all()["out"]

    def rows(self, stream: DataStream) -> list[Row]:
        """The rows of a sink behind the stream, in the order of their commits."""
        self.run(stream)
        return self.committed("out")

    def committed(self, uid: str) -> list[Row]:
        """The rows of a sink after the run, in the order of their commits."""
        assert self.result is not None
        return self.result.rows(uid)

    def run_all(self) -> dict[str, Counter[str]]:
        """What every sink of the environment holds in the end, by uid."""
        faults = FaultPlan() if self.case.calm else None
        self.result = simulate(self.env, seed=self.case.seed, faults=faults)
        return {uid: multiset(table.to_pylist()) for uid, table in self.result.tables.items()}


class SplitRows(Source):
    """Rows by split; all splits are read side by side."""

    def __init__(self, splits: Sequence[Sequence[Row]], schema: pa.Schema) -> None:
        self._splits = [pa.RecordBatch.from_pylist(list(rows), schema=schema) for rows in splits]
        self._schema = schema
        self.concurrent_splits = len(splits)

    @property
    def bounded(self) -> bool:
        return True

    def schema(self) -> pa.Schema:
        return self._schema

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        return [Split(split_id=f"split-{i}", spec={"i": i}) for i in range(len(self._splits))]

    def open_split(self, split: Split) -> SplitReader:
        return _Reader(self._splits[split.spec["i"]])


class _Reader(SplitReader):
    def __init__(self, rows: pa.RecordBatch) -> None:
        self._rows = rows
        self._next = 0

    def poll(self, max_rows: int, now: float) -> Poll:
        if self._next >= self._rows.num_rows:
            return Exhausted()
        part = self._rows.slice(self._next, max_rows)
        self._next += part.num_rows
        return Rows(part)

    def position(self) -> Json:
        return self._next

    def seek(self, position: Json) -> None:
        self._next = int(position)
