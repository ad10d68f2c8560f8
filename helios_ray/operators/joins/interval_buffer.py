"""The kept rows of one side of an interval join, searchable by key and time.

Why it exists: rows stay as long as a partner may come, and each batch of the other side asks
for the rows of its keys in stretches of time. Rows are kept in runs that are sorted by time;
over each lies an index by key, an array of numbers

    code(row) = slot * length + place in time

in ascending order. The rows of a slot in a stretch of time are then one range of codes: two
searches by time give the places, two by code the range. Nothing overflows, whatever the times.

What the watermark lets go is a prefix of each run: dropped by moving its start. Runs of similar
size are merged, newest first, so there are O(log n) of them and each row is copied O(log n)
times. (Source: Bentley, Saxe, "Decomposable searching problems", 1980: the logarithmic method.)

May import: operators, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from helios_ray.operators.joins.matching import Ints, expand
from helios_ray.operators.window_aggregates.groups import Mask, stable_order

_SMALL = 4096
"""Runs that are smaller together than this are always merged."""

_LARGEST = 1 << 30
"""Bytes of a run above which it is not merged: string columns end at 2 GiB."""


class IntervalRun:
    """Rows sorted by time.

    Args:
        data: the rows.
        times, slots: their event times (µs, ascending) and keys.
        matched: which have had a partner; None where nobody asks.
        order: the rows by slot, and within each by time.
    """

    __slots__ = ("codes", "data", "matched", "order", "slots", "start", "table", "times")

    def __init__(
        self,
        data: pa.RecordBatch,
        times: Ints,
        slots: Ints,
        matched: Mask | None,
        order: Ints | None = None,
    ) -> None:
        self.data = data
        self.times = times
        self.slots = slots
        self.matched = matched
        self.order = stable_order(slots) if order is None else order
        self.codes: Ints = slots[self.order] * len(slots) + self.order
        self.start = 0
        """Rows before this one are dropped."""
        self.table: pa.Table | None = None
        """All rows, as the state has them."""

    def __len__(self) -> int:
        return len(self.slots) - self.start

    def compacted(self) -> IntervalRun:
        """Without the dropped rows."""
        if self.start == 0:
            return self
        live = slice(self.start, None)
        rows = pa.array(np.arange(self.start, len(self.slots)))
        order = self.order[self.order >= self.start] - self.start
        matched = None if self.matched is None else self.matched[live].copy()
        data = self.data.take(rows)
        return IntervalRun(data, self.times[live].copy(), self.slots[live].copy(), matched, order)

    def remapped(self, mapping: Ints) -> IntervalRun:
        """Under new numbers of slots, in the same order."""
        run = self.compacted()
        moved = IntervalRun(run.data, run.times, mapping[run.slots], run.matched, run.order)
        moved.table = run.table
        return moved


class Found(NamedTuple):
    """Rows of a run that are partners of rows that were asked for.

    Args:
        run: whose.
        asked: rows asked for, one a pair.
        rows: rows of the run, one a pair.
    """

    run: IntervalRun
    asked: Ints
    rows: Ints


class IntervalBuffer:
    """Runs, oldest and largest first.

    Args:
        as_table: rows and their slots as the state has them.
        tracked: whether to keep which rows have had a partner.
    """

    def __init__(self, as_table: Callable[[pa.RecordBatch, Ints], pa.Table], tracked: bool) -> None:
        self._as_table = as_table
        self._tracked = tracked
        self._kept: pa.Table | None = None
        self.runs: list[IntervalRun] = []

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def add(self, run: IntervalRun) -> None:
        """Keep more rows."""
        if len(run) == 0:
            return
        self._kept = None
        runs = self.runs
        runs.append(run)
        while len(runs) > 1 and _alike(runs[-2], runs[-1]):
            last, before = runs.pop(), runs.pop()
            runs.append(_merged(before.compacted(), last.compacted()))

    def probe(self, slots: Ints, lows: Ints, highs: Ints, order: Ints) -> Iterator[Found]:
        """Kept rows of each of ``slots`` with times from its ``lows`` to its ``highs``.

        Args:
            slots: keys asked for.
            lows, highs: first and last instant, both included; best ascending.
            order: the rows asked for by slot: neighbours in it are looked up together.
        """
        for run in self.runs:
            length = len(run.slots)
            first = np.searchsorted(run.times, lows, "left")
            last = np.searchsorted(run.times, highs, "right")
            some = (last > first)[order]
            asked = order if some.all() else order[some]
            if len(asked) == 0:
                continue
            base = slots[asked] * length
            begin = np.searchsorted(run.codes, base + first[asked], "left")
            end = np.searchsorted(run.codes, base + last[asked], "left")
            owners, places = expand(begin, end - begin)
            if len(owners):
                yield Found(run, asked[owners], run.order[places])

    def mark(self, found: Found) -> None:
        """These rows have had a partner."""
        if found.run.matched is not None:
            found.run.matched[found.rows] = True
            self._kept = None

    def drop_through(self, time: int) -> Iterator[tuple[pa.RecordBatch, Ints]]:
        """Drop the rows up to ``time`` (µs).

        Yields:
            Data and the numbers of those rows that never had a partner, where that is kept.
        """
        emptied = False
        for i, run in enumerate(self.runs):
            if int(run.times[run.start]) > time:
                continue
            stop = int(np.searchsorted(run.times, time, "right"))
            if run.matched is not None:
                alone = np.flatnonzero(~run.matched[run.start : stop]) + run.start
                if len(alone):
                    yield run.data, alone
            run.start = stop
            self._kept = None
            emptied = emptied or len(run) == 0
            if 2 * stop > len(run.slots) and len(run):
                self.runs[i] = run.compacted()
        if emptied:
            self.runs = [run for run in self.runs if len(run)]

    def used_slots(self) -> Ints:
        """The slots that rows refer to, with repetitions."""
        slots = [run.slots[run.start :] for run in self.runs]
        return np.concatenate(slots) if slots else np.zeros(0, np.int64)

    def remap(self, mapping: Ints) -> None:
        """Slots have new numbers; their order has not changed."""
        self.runs = [run.remapped(mapping) for run in self.runs]

    def kept(self, schema: pa.Schema) -> pa.Table:
        """The rows as the state has them, by reference.

        Args:
            schema: of the state; ends in ``matched`` where that is kept.
        """
        if self._kept is None:
            tables = [schema.empty_table()]
            for run in self.runs:
                if run.table is None:
                    run.table = self._as_table(run.data, run.slots)
                table = run.table.slice(run.start)
                if run.matched is not None:  # Arrow packs booleans: this is a copy
                    flags = pa.array(run.matched[run.start :])
                    table = table.append_column(schema.field(-1), flags)
                tables.append(table)
            self._kept = pa.concat_tables(tables)
        return self._kept


def _alike(older: IntervalRun, newer: IntervalRun) -> bool:
    if len(older) > 2 * len(newer) and len(older) + len(newer) > _SMALL:
        return False
    return bool(older.data.nbytes + newer.data.nbytes <= _LARGEST)


def _merged(older: IntervalRun, newer: IntervalRun) -> IntervalRun:
    columns = [
        pa.concat_arrays(pair) for pair in zip(older.data.columns, newer.data.columns, strict=True)
    ]
    data = pa.RecordBatch.from_arrays(columns, schema=older.data.schema)
    times = np.concatenate([older.times, newer.times])
    slots = np.concatenate([older.slots, newer.slots])
    matched: Mask | None = None
    if older.matched is not None and newer.matched is not None:
        matched = np.concatenate([older.matched, newer.matched])
    if older.times[-1] > newer.times[0]:
        by_time = np.argsort(times, kind="stable")  # two sorted runs: one pass
        data = data.take(pa.array(by_time))
        times, slots = times[by_time], slots[by_time]
        matched = None if matched is None else matched[by_time]
    return IntervalRun(data, times, slots, matched)
