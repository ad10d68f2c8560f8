"""Which kept rows of both sides belong to windows that have ended.

Why it exists: rows of both sides are kept as they came, in runs sorted by slice (or, for
sessions, by when they are due). When the watermark passes the end of windows, their rows come
out together with their *cells*: the window and key that each row belongs to. What is made of a
cell, pairs of rows or a user's result, is not decided here.

A row that overlapping windows share is kept once, and comes out by reference in each of them.

May import: operators, windowing, Arrow, numpy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.window_aggregates.groups import Groups, Mask, ranges, stable_order
from helios_ray.operators.windows.fragments import chain, column_of, late_rows
from helios_ray.operators.windows.grouping import group
from helios_ray.operators.windows.keys import KeySpace
from helios_ray.operators.windows.runs import Run, RunStore, concat
from helios_ray.operators.windows.slices import slicing_of
from helios_ray.operators.windows.timing import EventClock
from helios_ray.windowing import SessionWindow, SlidingWindow, TumblingWindow, microseconds

TIME = 0
"""Column of a run that holds event times; the columns of the side follow."""

NEVER = -(2**62)
_SPREAD_ROWS = 1 << 20
"""Rows of windows that are put together at a time."""


class Ended(NamedTuple):
    """Rows of windows that have ended, side by side.

    Args:
        runs: of each side, rows; None for none.
        rows: of each side, numbers of rows in its run; a row may be in several windows.
        cells: of each side, the cell of each of those.
        starts, ends: of each cell (µs). Cells are in the order of their windows.
    """

    runs: tuple[Run | None, Run | None]
    rows: tuple[Ints, Ints]
    cells: tuple[Ints, Ints]
    starts: Ints
    ends: Ints


class WindowRows(ABC):
    """The kept rows of both sides.

    Args:
        clock: the operator's.
    """

    def __init__(self, clock: EventClock) -> None:
        self.clock = clock
        self.stores = (RunStore(_by_unit), RunStore(_by_unit))

    def add(self, index: int, times: Ints, slots: Ints, data: pa.RecordBatch) -> None:
        """Keep rows of side ``index``."""
        run = Run(self.units(times), slots, [pa.array(times), *data.columns])
        # In any case a copy, so that what is kept holds no foreign memory.
        self.stores[index].add(run.take(stable_order(run.units)))

    @abstractmethod
    def units(self, times: Ints) -> Ints:
        """What runs are sorted by."""

    @abstractmethod
    def late(self, times: Ints, slots: Ints, space: KeySpace) -> Mask | None:
        """Which rows are too late for each of their windows; None for none.

        Args:
            times, slots: of the rows, in order of arrival.
        """

    @abstractmethod
    def take_ended(self, space: KeySpace) -> Iterator[Ended]:
        """The clock has been advanced: what that ends. Exhaust it before anything else."""

    @abstractmethod
    def follow_clock(self) -> None:
        """The clock was restored, or moved while nothing was kept: what has ended by now has
        spoken."""


class SlicedRows(WindowRows):
    """Rows in tumbling and sliding windows."""

    def __init__(self, clock: EventClock, window: TumblingWindow | SlidingWindow) -> None:
        super().__init__(clock)
        self.slicing = slicing_of(window)
        self._spoken = NEVER
        self._spoken_ahead: Ints | None = None
        """By key group, where a former owner had come further."""

    def units(self, times: Ints) -> Ints:
        return self.slicing.slices(times)

    def _ended(self, watermark: int) -> int:
        """The last window that has ended."""
        return self.slicing.last_window_ended(watermark + 1)

    def follow_clock(self) -> None:
        self._spoken = max(NEVER, self._ended(self.clock.watermark))
        if self.clock.ahead is not None:
            ended = [self._ended(mark) for mark in self.clock.ahead.tolist()]
            self._spoken_ahead = np.maximum(np.array(ended, np.int64), self._spoken)

    def late(self, times: Ints, slots: Ints, space: KeySpace) -> Mask | None:
        limit: Ints | int = self._spoken
        if self._spoken_ahead is not None:
            limit = np.maximum(self._spoken_ahead[space.groups()[slots]], self._spoken)
        else:
            first = self.slicing.slices(times.min(keepdims=True))
            if int(self.slicing.last_window(first)[0]) > self._spoken:
                return None
        late: Mask = self.slicing.last_window(self.slicing.slices(times)) <= limit
        return late

    def take_ended(self, space: KeySpace) -> Iterator[Ended]:
        before = self._spoken
        self._spoken = max(before, self._ended(self.clock.watermark))
        if self._spoken == before:
            return
        yield from self._between(before + 1, self._spoken, space)
        for store in self.stores:
            store.drop_through((self._spoken + 1) * self.slicing.step - 1)
        if self._spoken_ahead is not None and int(self._spoken_ahead.max()) <= self._spoken:
            self._spoken_ahead = None

    def _between(self, low: int, high: int, space: KeySpace) -> Iterator[Ended]:
        step, span = self.slicing.step, self.slicing.span
        found = [store.between(low * step, high * step + span - 1) for store in self.stores]
        runs = [_by_unit(concat(parts)) if parts else None for parts in found]
        units = [_NONE if run is None else run.units for run in runs]
        windows = self._windows_of(np.unique(np.concatenate(units)))
        windows = windows[(windows >= low) & (windows <= high)]
        begins = [np.searchsorted(u, windows * step, "left") for u in units]
        lengths = [
            np.searchsorted(u, windows * step + span, "left") - begin
            for u, begin in zip(units, begins, strict=True)
        ]
        for part in _parts(lengths[0] + lengths[1]):
            rows = [ranges(b[part], n[part]) for b, n in zip(begins, lengths, strict=True)]
            owners = [np.repeat(windows[part], n[part]) for n in lengths]
            yield self._cells(runs, rows, owners, space)

    def _windows_of(self, slices: Ints) -> Ints:
        first = self.slicing.first_window(slices)
        found: Ints = np.unique(ranges(first, self.slicing.last_window(slices) - first + 1))
        return found

    def _cells(
        self, runs: list[Run | None], rows: list[Ints], owners: list[Ints], space: KeySpace
    ) -> Ended:
        slots = [_slots(run, index) for run, index in zip(runs, rows, strict=True)]
        if self._spoken_ahead is not None:
            groups = space.groups()
            for i in range(2):  # leave out what a former owner of the key group has emitted
                fresh = owners[i] > self._spoken_ahead[groups[slots[i]]]
                rows[i], owners[i], slots[i] = rows[i][fresh], owners[i][fresh], slots[i][fresh]
        cells = group(np.concatenate(owners), np.concatenate(slots), len(space))
        starts, ends = self.slicing.bounds(cells.units) or (_NONE, _NONE)
        codes = cells.groups.codes
        lefts = len(rows[0])
        return Ended(
            (runs[0], runs[1]), (rows[0], rows[1]), (codes[:lefts], codes[lefts:]), starts, ends
        )


class SessionRows(WindowRows):
    """Rows in sessions of a key, over both sides.

    A row comes up when it is due: at its own time it may end its session. If that goes on, the
    row is put back until the session, as far as it is known, ends; so each row is looked at
    about once a gap.
    """

    def __init__(self, clock: EventClock, window: SessionWindow) -> None:
        super().__init__(clock)
        self._gap = microseconds("gap", window.gap)

    def units(self, times: Ints) -> Ints:
        return times

    def follow_clock(self) -> None:
        """Sessions know no more than the clock."""

    def _over(self, watermark: int) -> int:
        """The last event time whose session, if nothing followed, is over."""
        return NEVER if watermark == MIN_TIMESTAMP else max(NEVER, watermark - self._gap + 1)

    def late(self, times: Ints, slots: Ints, space: KeySpace) -> Mask | None:
        over = self._over(self.clock.watermark)
        if self.clock.ahead is None:
            if int(times.min()) > over:
                return None
            old = times <= over
        else:
            by_group = np.array([self._over(mark) for mark in self.clock.ahead.tolist()], np.int64)
            old = times <= np.maximum(by_group[space.groups()[slots]], over)
        kept = []
        for store in self.stores:  # what is over is not kept: whatever is kept may be joined
            for run in store.runs:
                own = column_of(run, TIME)
                kept.append((run.slots, own, own))
        return late_rows(slots, times, old, kept, self._gap, len(space))

    def take_ended(self, space: KeySpace) -> Iterator[Ended]:
        over = self._over(self.clock.watermark)
        earliest = [store.earliest for store in self.stores if store.earliest is not None]
        if not earliest or min(earliest) > over:
            return
        due: list[Run | None] = []
        for store in self.stores:
            parts = store.between(NEVER, over)
            due.append(concat(parts) if parts else None)
            store.drop_through(over)
        slots = [_NONE if run is None else run.slots for run in due]
        times = [_NONE if run is None else column_of(run, TIME) for run in due]
        count = len(slots[0]) + len(slots[1])
        marked = np.zeros(len(space), np.bool_)
        marked[np.concatenate(slots)] = True
        for store in self.stores:  # the rest of their sessions, as far as it has come
            for run in store.runs:
                more = np.flatnonzero(marked[run.slots])
                slots.append(run.slots[more])
                times.append(column_of(run, TIME)[more])
        every = np.concatenate(times)
        chains = chain(np.concatenate(slots), every, every, self._gap, len(space))
        ended = chains.lasts <= over
        mine = [chains.codes[: len(slots[0])], chains.codes[len(slots[0]) : count]]
        for store, mine_due, codes in zip(self.stores, due, mine, strict=True):
            if mine_due is not None:
                open_still = Run(chains.lasts[codes], mine_due.slots, mine_due.columns)
                store.add(_by_unit(open_still.filter(~ended[codes])))
        if not ended.any():
            return
        chosen = np.flatnonzero(ended)
        chosen = chosen[stable_order(chains.lasts[chosen])]
        cell = np.full(chains.size, -1)
        cell[chosen] = np.arange(len(chosen))
        rows = [np.flatnonzero(ended[codes]) for codes in mine]
        cells = [cell[codes[index]] for codes, index in zip(mine, rows, strict=True)]
        yield Ended(
            (due[0], due[1]),
            (rows[0], rows[1]),
            (cells[0], cells[1]),
            chains.starts[chosen],
            chains.lasts[chosen] + self._gap,
        )


_NONE = np.zeros(0, np.int64)


def _by_unit(run: Run) -> Run:
    """Sorted by unit, rows of one unit in their order."""
    if (run.units[1:] >= run.units[:-1]).all():
        return run
    return run.take(stable_order(run.units))


def _slots(run: Run | None, rows: Ints) -> Ints:
    return _NONE if run is None else run.slots[rows]


def _parts(lengths: Ints) -> Iterator[slice]:
    """Cut windows into parts of a bounded number of rows, at least one window each."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _SPREAD_ROWS, side="right")))
        yield slice(start, stop)
        start = stop


def order_in_cells(cells: Ints, times: Ints, size: int) -> Ints:
    """Rows by cell, and within each by time, equal ones in their own order."""
    return Groups(cells, size).order_by(times)
