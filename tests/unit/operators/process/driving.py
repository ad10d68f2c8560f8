"""A stream of rows and times, driven through an operator in pieces and across restarts.

What is promised of a process function is told by :func:`expected`: the same functions called
row by row, with Python dicts for state and a sorted list for timers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP, Batch
from helios_ray.operators.base import Operator, OperatorContext, StateKind, StateTable
from helios_ray.state.key_groups import (
    key_group_range,
    key_groups_of_batch,
    partition,
    subtask_of,
)

MAX_PARALLELISM = 8
SCHEMA = pa.schema([("k", pa.string()), ("n", pa.int64())])
ROWS = st.fixed_dictionaries({"k": st.sampled_from(["a", "b", "c"]), "n": st.integers(0, 9)})
EVENTS = st.lists(
    st.one_of(
        ROWS.map(lambda row: ("row", row)),
        ROWS.map(lambda row: ("row", row)),
        st.integers(1, 30).map(lambda at: ("watermark", at)),
        st.integers(1, 30).map(lambda at: ("clock", at)),
    ),
    max_size=40,
)
"""Rows, and watermarks and processing times that grow by what they say."""

CUTS = st.lists(st.sampled_from(["", "", "cut", "1", "2", "3"]), min_size=40, max_size=40)
"""After each event: nothing, the end of a batch, or a restart on so many subtasks."""


class Tasks:
    """The subtasks of one operator, driven as the execution drives them."""

    def __init__(self, make: Callable[[], Operator], uid: str = "p") -> None:
        self._make = make
        self._uid = uid
        self.watermark = -1
        self.now = 0
        self.out: list[Batch] = []
        self.start(1)

    def start(self, parallelism: int) -> None:
        self.operators: list[Any] = []
        for subtask in range(parallelism):
            operator = self._make()
            operator.open(
                OperatorContext(
                    uid=self._uid,
                    subtask=subtask,
                    parallelism=parallelism,
                    max_parallelism=MAX_PARALLELISM,
                    key_groups=key_group_range(subtask, parallelism, MAX_PARALLELISM),
                )
            )
            self.operators.append(operator)

    def rows(self, rows: Sequence[dict[str, Any]], schema: pa.Schema = SCHEMA) -> None:
        if rows:
            self.batch(pa.RecordBatch.from_pylist(list(rows), schema=schema))

    def batch(self, data: pa.RecordBatch, input_index: int = 0, key: str = "k") -> None:
        n = len(self.operators)
        owners = subtask_of(key_groups_of_batch(data, [key], MAX_PARALLELISM), n, MAX_PARALLELISM)
        for operator, part in zip(self.operators, partition(data, owners, n), strict=True):
            operator.set_processing_time(self.now)
            if part is not None:
                self.out += operator.process_batch(Batch(part), input_index)

    def broadcast(self, data: pa.RecordBatch) -> None:
        for operator in self.operators:
            self.out += operator.process_batch(Batch(data), 1)

    def set_watermark(self, timestamp: int) -> None:
        self.watermark = timestamp
        for operator in self.operators:
            self.out += operator.on_watermark(timestamp)

    def set_clock(self, now: int) -> None:
        self.now = now
        for operator in self.operators:
            operator.set_processing_time(now)
            while (due := operator.next_timer()) is not None and due <= now:
                self.out += operator.on_processing_time(now)

    def end(self) -> None:
        self.set_watermark(MAX_TIMESTAMP)
        for operator in self.operators:
            self.out += operator.end_input()

    def restart(self, parallelism: int) -> None:
        snapshots = [operator.snapshot() for operator in self.operators]
        self.start(parallelism)
        for operator, share in zip(self.operators, share_out(snapshots, parallelism), strict=True):
            operator.restore(share)
            if self.watermark >= 0:
                self.out += operator.on_watermark(self.watermark)

    def taken(self, tag: str | None = None) -> list[dict[str, Any]]:
        return [row for batch in self.out if batch.tag == tag for row in batch.data.to_pylist()]


def share_out(snapshots: Sequence[Any], parallelism: int) -> list[dict[str, StateTable]]:
    shares: list[dict[str, StateTable]] = [{} for _ in range(parallelism)]
    for name in {name for snapshot in snapshots for name in snapshot}:
        stored = [snapshot[name] for snapshot in snapshots if name in snapshot]
        whole = pa.concat_tables([s.table for s in stored], promote_options="default")
        for subtask, share in enumerate(shares):
            table = whole
            if stored[0].kind is StateKind.KEYED:
                own = key_group_range(subtask, parallelism, MAX_PARALLELISM)
                groups = whole["key_group"].to_numpy()
                table = whole.filter(pa.array((groups >= own.start) & (groups < own.stop)))
            elif stored[0].kind is StateKind.SPLIT:
                every_nth = range(subtask, whole.num_rows, parallelism)
                table = whole.take(pa.array(every_nth, pa.int64()))
            elif stored[0].kind is StateKind.BROADCAST:
                table = stored[subtask % len(stored)].table
            share[name] = StateTable(stored[0].kind, table)
    return shares


def drive(tasks: Tasks, events: Sequence[tuple[str, Any]], cuts: Sequence[str]) -> None:
    """Feed events, cutting batches and restarting where ``cuts`` says so."""
    waiting: list[dict[str, Any]] = []
    for (kind, what), cut in zip(events, cuts, strict=False):
        if kind == "row":
            waiting.append(what)
        if kind != "row" or cut:
            tasks.rows(waiting)
            waiting = []
        if kind == "watermark":
            tasks.set_watermark(max(tasks.watermark, 0) + what)
        elif kind == "clock":
            tasks.set_clock(tasks.now + what)
        if cut.isdigit():
            tasks.restart(int(cut))
    tasks.rows(waiting)
    tasks.end()


class Expected:
    """The same stream, one row at a time, in plain Python."""

    def __init__(self, on_row: Any, on_timer: Any) -> None:
        self._on_row, self._on_timer = on_row, on_timer
        self.state: dict[str, dict[str, Any]] = {}
        self.timers: dict[str, list[tuple[int, str]]] = {"event": [], "processing": []}
        self.watermark, self.now = -1, 0
        self.out: list[dict[str, Any]] = []

    def register(self, domain: str, time: int, key: str) -> None:
        if (time, key) not in self.timers[domain]:
            self.timers[domain].append((time, key))

    def delete(self, domain: str, time: int, key: str) -> None:
        if (time, key) in self.timers[domain]:
            self.timers[domain].remove((time, key))

    def fire(self, domain: str, limit: int) -> None:
        while due := [timer for timer in self.timers[domain] if timer[0] <= limit]:
            timer = min(due, key=lambda each: each[0])
            self.timers[domain].remove(timer)
            self._on_timer(self, domain, *timer)

    def run(self, events: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
        for kind, what in events:
            if kind == "row":
                self._on_row(self, what)
            elif kind == "watermark":
                self.watermark = max(self.watermark, 0) + what
            else:
                self.now += what
                self.fire("processing", self.now)
            self.fire("event", self.watermark)
        self.watermark = MAX_TIMESTAMP
        self.fire("event", MAX_TIMESTAMP)
        return self.out


def by_key(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["k"], []).append(row)
    return found
