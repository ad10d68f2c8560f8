"""How the window tests drive operators: rows in batches, watermarks, snapshots, rescaling; and
what they tell them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from unittest import mock

import pyarrow as pa
from hypothesis import strategies as st

from helios_ray.aggregates import collect_list, count, first, last, max_, sum_
from helios_ray.elements import MIN_TIMESTAMP, Batch
from helios_ray.operators.windows import grouping, keys, runs, sliced
from helios_ray.state.key_groups import key_groups_of_batch, partition, subtask_of
from tests.unit.operators.support import MAX_PARALLELISM, opened, share_out

SCHEMA = pa.schema([("k", pa.string()), ("ts", pa.int64()), ("x", pa.int64()), ("id", pa.int64())])
AGGREGATIONS = {
    "n": count(),
    "total": sum_("x"),
    "top": max_("x"),
    "first": first("id"),
    "last": last("id"),
    "ids": collect_list("id"),
}

Row: TypeAlias = dict[str, Any]
Result: TypeAlias = tuple[Any, int, int, tuple[int, ...]]
"""Key, window start, window end, the ids of the rows in event time order."""


def table(rows: Sequence[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=SCHEMA)


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Rows in batches, watermarks that only mostly tell the truth, restarts, time passing."""
    steps: list[tuple[str, Any]] = []
    row_id, clock = 0, draw(st.integers(-60, 40))
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["rows"] * 5 + ["watermark"] * 3 + ["restart", "tick"]))
        if kind == "rows":
            rows: list[Row] = []
            for _ in range(draw(st.integers(1, 9))):
                row_id += 1
                rows.append(
                    {
                        "k": draw(st.sampled_from("abcde")),
                        "ts": clock + draw(st.integers(-25, 12)),
                        "x": draw(st.none() | st.integers(-9, 9)),
                        "id": row_id,
                    }
                )
            steps.append(("rows", rows))
        elif kind == "watermark":
            jump = draw(st.sampled_from([3, 8, 15, 10**15]))
            clock += draw(st.integers(1, jump)) if clock < 10**15 else 1
            steps.append(("watermark", clock - draw(st.integers(0, 6))))
        else:
            steps.append((kind, draw(st.integers(1, 3))))
    return steps


@dataclass
class Subtasks:
    """All subtasks of one window operator."""

    make: Callable[[], Any]
    parallelism: int = 1
    watermark: int = MIN_TIMESTAMP
    late: list[int] = field(default_factory=list)
    lateness_counted: int = 0

    def __post_init__(self) -> None:
        self.operators = self._opened(self.parallelism)

    def _opened(self, parallelism: int) -> list[Any]:
        return [opened(self.make(), "w", i, parallelism) for i in range(parallelism)]

    def send(self, rows: Sequence[Row]) -> list[Batch]:
        data = table(rows)
        groups = key_groups_of_batch(data, ["k"], MAX_PARALLELISM)
        parts = partition(
            data, subtask_of(groups, self.parallelism, MAX_PARALLELISM), self.parallelism
        )
        out = []
        for operator, part in zip(self.operators, parts, strict=True):
            if part is not None:
                out += operator.process_batch(Batch(part))
        return self._main(out)

    def advance(self, watermark: int, lags: Sequence[int] = ()) -> list[Batch]:
        """``lags``: by how much each subtask is behind."""
        self.watermark = max(watermark, self.watermark)
        out = []
        for i, operator in enumerate(self.operators):
            out += operator.on_watermark(watermark - (lags[i % len(lags)] if lags else 0))
        return self._main(out)

    def owner(self, key: str) -> int:
        """The subtask that a key belongs to."""
        groups = key_groups_of_batch(pa.record_batch({"k": [key]}), ["k"], MAX_PARALLELISM)
        return int(subtask_of(groups, self.parallelism, MAX_PARALLELISM)[0])

    def tick(self, now: int) -> list[Batch]:
        """Processing time has come to ``now`` everywhere, whether or not a timer is due."""
        return self._main([b for o in self.operators for b in o.on_processing_time(now)])

    def rescale(self, parallelism: int) -> list[Batch]:
        """A checkpoint, and a fresh start from it."""
        snapshots = [operator.snapshot() for operator in self.operators]
        self._count_late()
        behind = min(o.clock.watermark for o in self.operators)
        self.parallelism = parallelism
        self.operators = self._opened(parallelism)
        out = []
        for operator, state in zip(self.operators, share_out(snapshots, parallelism), strict=True):
            operator.restore(state)
            if behind > MIN_TIMESTAMP:
                out += operator.on_watermark(behind)
        return self._main(out)

    def _count_late(self) -> None:
        self.lateness_counted += sum(o.counters()["operator.late_rows"] for o in self.operators)

    @property
    def late_rows(self) -> int:
        return self.lateness_counted + sum(
            o.counters()["operator.late_rows"] for o in self.operators
        )

    def _main(self, out: list[Batch]) -> list[Batch]:
        for batch in out:
            if batch.tag == "late":
                assert batch.data.schema.equals(SCHEMA)
                self.late += batch.data["id"].to_pylist()
        return [batch for batch in out if batch.tag is None]


def results(batches: Sequence[Batch], rows: dict[int, Row], *, ties: bool = True) -> list[Result]:
    """What was emitted, checked against the rows that each window says it holds.

    ``ties``: rows of equal event times are promised to stand in their order of arrival.
    """
    found = []
    for batch in batches:
        for row in batch.data.to_pylist():
            ids = row["ids"]
            values = [v for i in ids if (v := rows[i]["x"]) is not None]
            assert row["n"] == len(ids)
            assert row["total"] == (sum(values) if values else None)
            assert row["top"] == max(values, default=None)
            assert row["first"] == ids[0]
            assert row["last"] == ids[-1]
            times = [rows[i]["ts"] for i in ids]
            assert times == sorted(times)
            if not ties:
                ids = sorted(ids, key=lambda i: (rows[i]["ts"], i))
            found.append((row["k"], micros(row["window_start"]), micros(row["window_end"]), ids))
    return [(k, s, e, tuple(ids)) for k, s, e, ids in found]


def micros(moment: Any) -> Any:
    """Microseconds since the epoch of a datetime; anything else as it is."""
    if moment is None or isinstance(moment, int):
        return moment
    return pa.scalar(moment).cast(pa.int64()).as_py()


@contextmanager
def tight_limits(tight: bool) -> Iterator[None]:
    """Merge runs, forget keys, cut results and avoid tables at every opportunity."""
    if not tight:
        yield
        return
    with (
        mock.patch.object(runs, "FANOUT", 2),
        mock.patch.object(keys, "FORGET_ABOVE", 0),
        mock.patch.object(sliced, "_SPREAD_ROWS", 2),
        mock.patch.object(grouping, "_DENSE_LEAST", 0),
        mock.patch.object(grouping, "_DENSE_ROWS", 0),
    ):
        yield
