"""How the tests of joins in event time drive operators, and the loops they are compared with.

Left rows are ``k, ts, id``; right rows ``key`` (a dictionary), ``at, rid``: other names and
another physical type of the same key. A script is a list of steps that is played once to an
operator and once, row by row, to plain Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias
from unittest import mock

import pyarrow as pa
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP, Batch
from helios_ray.operators.joins import columns, interval_buffer, side, window_rows
from helios_ray.operators.windows import keys, runs
from helios_ray.state.key_groups import key_groups_of_batch, partition, subtask_of
from tests.unit.operators.support import MAX_PARALLELISM, opened, share_out

LEFT = pa.schema([("k", pa.string()), ("ts", pa.int64()), ("id", pa.int64())])
RIGHT = pa.schema(
    [("key", pa.dictionary(pa.int32(), pa.string())), ("at", pa.int64()), ("rid", pa.int64())]
)
SCHEMAS = (LEFT, RIGHT)
KEYS = (("k",), ("key",))
NAMES = ["a", "b", "c", "d", None]
HOWS = ["inner", "left", "right", "full"]


@dataclass(frozen=True)
class Row:
    """A row of either side."""

    side: int
    key: str | None
    time: int
    id: int


Pair: TypeAlias = tuple[int | None, int | None]
"""Ids of a left and a right row; None for no partner."""

Step: TypeAlias = tuple[Any, ...]
"""``("rows", [Row, ...])`` of one side, ``("watermark", to, lags)`` or ``("restore", n)``."""


def lefts(*rows: tuple[Any, int, int]) -> list[Row]:
    return [Row(0, *row) for row in rows]


def rights(*rows: tuple[Any, int, int]) -> list[Row]:
    return [Row(1, *row) for row in rows]


def table(rows: Sequence[Row]) -> pa.RecordBatch:
    schema = SCHEMAS[rows[0].side]
    columns = [r.key for r in rows], [r.time for r in rows], [r.id for r in rows]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@cache
def owner(key: str | None, parallelism: int) -> int:
    data = pa.record_batch({"k": pa.array([key], pa.string())})
    groups = key_groups_of_batch(data, ["k"], MAX_PARALLELISM)
    return int(subtask_of(groups, parallelism, MAX_PARALLELISM)[0])


@dataclass
class Subtasks:
    """All subtasks of one operator."""

    make: Callable[[], Any]
    parallelism: int = 1
    late: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    counted: int = 0
    announced: int = MIN_TIMESTAMP
    """The watermark that the operators have passed on, while there is one for all."""

    def __post_init__(self) -> None:
        self.operators = self._opened()

    def _opened(self) -> list[Any]:
        return [opened(self.make(), "j", i, self.parallelism) for i in range(self.parallelism)]

    def play(self, step: Step) -> list[Batch]:
        kind, *rest = step
        if kind == "rows":
            return self.send(*rest)
        return self.advance(*rest) if kind == "watermark" else self.rescale(*rest)

    def send(self, rows: Sequence[Row]) -> list[Batch]:
        if not rows:
            return []
        data = table(rows)
        groups = key_groups_of_batch(data, KEYS[rows[0].side], MAX_PARALLELISM)
        parts = partition(
            data, subtask_of(groups, self.parallelism, MAX_PARALLELISM), self.parallelism
        )
        out = []
        for operator, part in zip(self.operators, parts, strict=True):
            if part is not None:
                out += operator.process_batch(Batch(part), rows[0].side)
        return self._main(out)

    def advance(self, watermark: int, lags: Sequence[int] = (0,)) -> list[Batch]:
        out = []
        for i, operator in enumerate(self.operators):
            out += operator.on_watermark(watermark - lags[i % len(lags)])
        found = self._main(out)
        self.announced = max(
            self.announced, self.operators[0].output_watermark(watermark - max(lags))
        )
        return found

    def rescale(self, parallelism: int) -> list[Batch]:
        """A checkpoint, and a fresh start from it."""
        snapshots = [operator.snapshot() for operator in self.operators]
        self.counted += self._late_now()
        self.parallelism = parallelism
        self.operators = self._opened()
        for operator, state in zip(self.operators, share_out(snapshots, parallelism), strict=True):
            operator.restore(state)
        return []

    def _late_now(self) -> int:
        return sum(o.counters()["operator.late_rows"] for o in self.operators)

    @property
    def late_rows(self) -> int:
        return self.counted + self._late_now()

    def end(self) -> list[Batch]:
        out = self.advance(MAX_TIMESTAMP)
        for operator in self.operators:
            out += self._main(operator.end_input())
        return out

    def _main(self, out: list[Batch]) -> list[Batch]:
        for batch in out:
            if batch.tag is not None:
                side = ["late", "late_right"].index(batch.tag)
                assert batch.data.schema.equals(SCHEMAS[side])
                self.late[side].extend(batch.data[2].to_pylist())
        return [batch for batch in out if batch.tag is None]


@dataclass
class Marks:
    """How far event time has come for each key: a key never forgets what its owner has seen."""

    parallelism: int = 1
    of: dict[str | None, int] = field(default_factory=lambda: dict.fromkeys(NAMES, MIN_TIMESTAMP))

    def advance(self, watermark: int, lags: Sequence[int] = (0,)) -> None:
        for key in NAMES:
            own = watermark - lags[owner(key, self.parallelism) % len(lags)]
            self.of[key] = max(self.of[key], own)


def key_of(subtask: int, parallelism: int) -> str:
    """A key that this subtask owns."""
    return next(k for k in map(str, range(1000)) if owner(k, parallelism) == subtask)


@contextmanager
def tight_limits(tight: bool) -> Iterator[None]:
    """Merge runs, forget keys and cut results at every opportunity, or never merge."""
    with ExitStack() as stack:
        limits: list[tuple[Any, str, int]] = []
        limits += [(columns, "EMITTED_ROWS", 2), (side, "_LOOSE_BYTES", 0)] if tight else []
        limits += [(runs, "FANOUT", 2), (keys, "FORGET_ABOVE", 0)] if tight else []
        limits += [(window_rows, "_SPREAD_ROWS", 2)] if tight else []
        limits += [(interval_buffer, "_SMALL", 4096 if tight else 0)]
        for module, name, value in limits:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def many_keys(steps: int, behind: int) -> Iterator[tuple[list[Row], list[Row], int]]:
    """Left rows of ever new keys, for each a right row ``behind`` steps later, and watermarks."""
    for i in range(steps):
        partner = rights((f"key{i - behind}", i, steps + i)) if i >= behind else []
        yield lefts((f"key{i}", i, i)), partner, i - 1


def scripts(*, restores: bool = True) -> st.SearchStrategy[list[Step]]:
    """Rows of both sides in any order, watermarks that some rows are behind of, restores."""
    row = st.tuples(st.sampled_from(NAMES), st.integers(-8, 14))
    rows = st.tuples(st.just("rows"), st.integers(0, 1), st.lists(row, max_size=6))
    watermark = st.tuples(
        st.just("watermark"), st.integers(-2, 9), st.lists(st.integers(0, 6), max_size=3)
    )
    if not restores:
        kinds = st.one_of(rows, rows, rows, watermark)
        return st.lists(kinds, max_size=16).map(lambda raw: _placed(raw, lagging=False))
    restore = st.tuples(st.just("restore"), st.integers(1, 3))
    kinds = st.one_of(rows, rows, rows, watermark, restore)
    # From the start there may be several subtasks, whose clocks differ.
    return st.tuples(restore, st.lists(kinds, max_size=16)).map(
        lambda raw: _placed([raw[0], *raw[1]], lagging=True)
    )


def _placed(raw: list[Any], lagging: bool) -> list[Step]:
    """Times count from where the watermark is; ids from 0."""
    at, ids = 0, 0
    steps: list[Step] = []
    for kind, *rest in raw:
        if kind == "rows":
            side, rows = rest
            placed = [Row(side, key, at + time, ids + i) for i, (key, time) in enumerate(rows)]
            ids += len(rows)
            steps.append(("rows", placed))
        elif kind == "watermark":
            at += rest[0]
            steps.append(("watermark", at, (rest[1] or [0]) if lagging else [0]))
        else:
            steps.append((kind, *rest))
    return steps


def joined(rows: Sequence[Row], meets: Callable[[Row, Row], bool], how: str) -> list[Pair]:
    """The pairs of two nested loops, and the rows that are in none as ``how`` says."""
    left = [row for row in rows if row.side == 0]
    right = [row for row in rows if row.side == 1]
    pairs: list[Pair] = [
        (one.id, other.id)
        for one in left
        for other in right
        if one.key is not None and one.key == other.key and meets(one, other)
    ]
    if how in ("left", "full"):
        matched = {pair[0] for pair in pairs}
        pairs += [(row.id, None) for row in left if row.id not in matched]
    if how in ("right", "full"):
        matched = {pair[1] for pair in pairs}
        pairs += [(None, row.id) for row in right if row.id not in matched]
    return pairs


def pairs_of(batches: Sequence[Batch], rows: dict[int, Row]) -> Counter[Any]:
    """Ids of the results, and their windows if they have some; all columns are checked."""
    found: Counter[Any] = Counter()
    for batch in batches:
        for result in batch.data.to_pylist():
            pair: tuple[Any, ...] = (result["id"], result["rid"])
            one, other = (None if i is None else rows[i] for i in pair)
            assert result["k"] == (one or other).key  # type: ignore[union-attr]
            assert result["ts"] == (one.time if one else None)
            assert result["at"] == (other.time if other else None)
            if "window_start" in result:
                bounds = (_micros(result[name]) for name in ("window_start", "window_end"))
                pair = (*pair, *bounds)
            found[pair] += 1
    return found


def rows_of(script: Sequence[Step]) -> dict[int, Row]:
    return {row.id: row for kind, *rest in script if kind == "rows" for row in rest[0]}


def _micros(moment: Any) -> int:
    return int(pa.scalar(moment, pa.timestamp("us")).cast(pa.int64()).as_py())
