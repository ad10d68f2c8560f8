"""Tumbling, sliding and global windows.

Why it exists: rows are aggregated into slices once, however many windows overlap; a window is
put together from its slices when it is due. All windows that one watermark makes due are
merged in one pass over columns.

    rows ─ slice, slot ─▶ one partial row per slice and key ─▶ runs ─┐
    watermark ─▶ slices of the windows now due ─ merge ─▶ finish ─▶ rows

A result that is discarded once given cannot share slices with its neighbours: where windows
may speak more than once and discard, partial rows (never input rows) are spread over windows
as they come, and leave the state as they go out.

May import: elements, operators, windowing, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.operators.base import OperatorSnapshot, StateTable
from helios_ray.operators.window_aggregates.base import Rows
from helios_ray.operators.window_aggregates.groups import Ints, Mask, ranges
from helios_ray.operators.windows.base import WindowedOperator
from helios_ray.operators.windows.grouping import group, is_in
from helios_ray.operators.windows.pending import ROWS, Pending
from helios_ray.operators.windows.runs import Run, RunStore, concat
from helios_ray.operators.windows.settings import WindowSettings
from helios_ray.operators.windows.slices import slicing_of
from helios_ray.operators.windows.stored import WindowState
from helios_ray.operators.windows.timing import EarlyTimer
from helios_ray.windowing import GlobalWindow, SlidingWindow, TumblingWindow

NEVER = -(2**62)
_SPREAD_ROWS = 1 << 20
"""Partial rows that are put together at a time."""


class SlicedWindowOperator(WindowedOperator):
    """Aggregates over windows of slices; see :func:`~.operator.window_operator`."""

    def __init__(self, settings: WindowSettings) -> None:
        assert isinstance(settings.window, (TumblingWindow, SlidingWindow, GlobalWindow))
        self.slicing = slicing_of(settings.window)
        trigger = settings.trigger
        again = trigger.is_early or settings.lateness > 0
        # Units of the runs are windows, not slices.
        self._apart = again and not settings.accumulating
        self.unit_fields = ("window",) if self._apart else ("slice",)
        self._early_rows = trigger.rows
        self._timer = EarlyTimer(trigger)
        self.pending = Pending()
        self._fired = self._cleaned = NEVER
        self._restored_fired: Ints | None = None  # by key group, where its former owner was ahead
        super().__init__(settings)

    def make_store(self) -> RunStore:
        return RunStore(self._merge)

    def _merge(self, run: Run) -> Run:
        cells = group(run.units, run.slots, len(self.space))
        codes = cells.groups.codes
        if cells.groups.size == len(run) and (codes[1:] > codes[:-1]).all():
            return run  # sorted, and nothing to merge
        return Run(cells.units, cells.slots, self.merge_columns(cells.groups, run.columns))

    # ------------------------------------------------------------------------------- rows

    def late(self, times: Ints, slots: Ints) -> Mask | None:
        if self.clock.ahead is None:
            first = self.slicing.slices(times.min(keepdims=True))
            if int(self.slicing.last_window(first)[0]) > self._cleaned:
                return None
        return self.late_slices(self.slicing.slices(times), slots)

    def late_slices(self, slices: Ints, slots: Ints) -> Mask:
        """Of which slices every window has been over for the allowed lateness."""
        limit: Ints | int = self._cleaned
        if self.clock.ahead is not None:
            limit = self._ended(slots, self.settings.lateness)
        late: Mask = self.slicing.last_window(slices) <= limit
        return late

    def _ended(self, slots: Ints, lateness: int) -> Ints:
        """The last window, for each slot, that ended at least ``lateness`` ago."""
        marks = self.clock.of(self.space.groups()[slots])
        if marks is None:
            return np.full(len(slots), self._cleaned if lateness else self._fired)
        distinct, codes = np.unique(marks, return_inverse=True)
        ended = [self.slicing.last_window_ended(w + 1 - lateness) for w in distinct.tolist()]
        return np.array(ended, np.int64)[codes]

    def fold(self, rows: Rows, slots: Ints) -> list[Batch]:
        cells = group(self.slicing.slices(rows.times), slots, len(self.space))
        run = Run(cells.units, cells.slots, self.lift(cells.groups, rows))
        return self.take_up(run, cells.groups.counts)

    def take_up(self, run: Run, counts: Ints) -> list[Batch]:
        """Take up partial rows of slices; return what they make due.

        Args:
            run: sorted, one row per slice and slot.
            counts: how many rows each partial row stands for.
        """
        lowest = int(self.slicing.first_window(run.units[:1])[0])
        repeated = lowest <= self._fired or self.clock.ahead is not None
        early = self.settings.trigger.is_early
        out: list[Batch] = []
        if not (self._apart or repeated or early):
            self.store.add(run)
            return out
        windows, index = self._windows_of(run.units)
        owners = run.slots[index]
        open_still = windows > self._ended(owners, self.settings.lateness)
        windows, index, owners = windows[open_still], index[open_still], owners[open_still]
        if self._apart:
            spread = run.take(index)
            self.store.add(self._merge(_sorted(Run(windows, spread.slots, spread.columns))))
        else:
            self.store.add(run)
        spoken = windows <= self._ended(owners, 0)
        if spoken.any():
            again = group(windows[spoken], owners[spoken], len(self.space))
            out += self._speak(again.units, again.slots)
        if early:
            fresh = ~spoken
            came = counts[index[fresh]]
            self.pending.add(windows[fresh], owners[fresh], came, len(self.space))
            if self._early_rows is not None:
                out += self._speak(*self.pending.take(self._early_rows))
        return out

    def _windows_of(self, slices: Ints) -> tuple[Ints, Ints]:
        """Every window of every slice, and the place of the slice."""
        first = self.slicing.first_window(slices)
        counts = self.slicing.last_window(slices) - first + 1
        return ranges(first, counts), np.repeat(np.arange(len(slices)), counts)

    # ------------------------------------------------------------------------------- time

    def on_watermark(self, timestamp: int) -> list[Batch]:
        if not self.clock.advance(timestamp):
            return []
        fired, cleaned = self._fired, self._cleaned
        self._find_ended()
        if self.input_schema is None or (fired, cleaned) == (self._fired, self._cleaned):
            return []
        out = [b for run in self._ended_windows(fired) for b in self._emit_windows(run)]
        if self._restored_fired is not None and int(self._restored_fired.max()) <= self._fired:
            self._restored_fired = None
        self.pending.drop_through(self._fired)
        if self._apart:
            self.store.drop_through(self._fired)
        else:
            self.store.drop_through((self._cleaned + 1) * self.slicing.step - 1)
        self._forget_keys()
        return out

    def _find_ended(self) -> None:
        time = self.clock.watermark + 1
        self._fired = max(self._fired, self.slicing.last_window_ended(time))
        ended = self.slicing.last_window_ended(time - self.settings.lateness)
        self._cleaned = max(self._cleaned, ended)

    def _ended_windows(self, spoken: int) -> Iterator[Run]:
        """The windows after ``spoken`` that have ended, put together from their partial rows."""
        low, high = spoken + 1, self._fired
        if self._apart or (self.slicing.span == 1 and self.slicing.step == 1):
            found = self.store.between(low, high)
            if found:
                yield self._unspoken(self._merge(concat(found)), spoken)
            return
        step, span = self.slicing.step, self.slicing.span
        found = self.store.between(low * step, high * step + span - 1)
        if not found:
            return
        merged = self._merge(concat(found))
        slices = np.unique(merged.units)
        windows = np.unique(self._windows_of(slices)[0])
        windows = windows[(windows >= low) & (windows <= high)]
        starts = np.searchsorted(merged.units, windows * step, side="left")
        stops = np.searchsorted(merged.units, windows * step + span, side="left")
        for part in _parts(stops - starts):
            lengths = (stops - starts)[part]
            index = ranges(starts[part], lengths)
            yield self._unspoken(
                self._put_together(merged, np.repeat(windows[part], lengths), index), spoken
            )

    def _put_together(self, merged: Run, windows: Ints, index: Ints) -> Run:
        """One row per window and slot of the partial rows at ``index``."""
        cells = group(windows, merged.slots[index], len(self.space))
        chosen = pa.array(index)
        columns = [column.take(chosen) for column in merged.columns]
        return Run(cells.units, cells.slots, self.merge_columns(cells.groups, columns))

    def _unspoken(self, run: Run, spoken: int) -> Run:
        """Leave out what a former owner of the key group has emitted already."""
        if self._restored_fired is None:
            return run
        before = self._restored_fired[self.space.groups()[run.slots]]
        fresh = run.units > before
        return run if fresh.all() else run.filter(fresh)

    # --------------------------------------------------------------------- early and again

    def _speak(self, windows: Ints, slots: Ints) -> list[Batch]:
        """Emit these windows of these keys now. Pairs are distinct, ordered by window."""
        if len(windows) == 0:
            return []
        step, span = self.slicing.step, self.slicing.span
        if self._apart:
            step, span = 1, 1
        found = self.store.between(int(windows[0]) * step, int(windows[-1]) * step + span - 1)
        marked = np.zeros(len(self.space), np.bool_)
        marked[slots] = True
        parts = [run if (m := marked[run.slots]).all() else run.filter(m) for run in found]
        parts = [run for run in parts if len(run)]
        if not parts:
            return []
        merged = self._merge(concat(parts))
        if span == 1 and step == 1:
            owned, index = merged.units, np.arange(len(merged))
        else:
            owned, index = self._windows_of(merged.units)
        wanted = is_in(owned, merged.slots[index], windows, slots, len(self.space))
        owned, index = owned[wanted], index[wanted]
        out = self._emit_windows(self._put_together(merged, owned, index))
        if self._apart:
            low, high = int(windows[0]), int(windows[-1])

            def given(run: Run) -> Mask:
                inside = marked[run.slots] & (run.units >= low) & (run.units <= high)
                if inside.any():
                    at = np.flatnonzero(inside)
                    hits = is_in(run.units[at], run.slots[at], windows, slots, len(self.space))
                    inside[at] = hits
                return inside

            self.store.drop(given)
        return out

    def _emit_windows(self, run: Run) -> list[Batch]:
        return self.emit(run.slots, self.slicing.bounds(run.units), run.columns)

    def next_timer(self) -> int | None:
        return self._timer.next(waiting=len(self.pending) > 0)

    def on_processing_time(self, now: int) -> list[Batch]:
        return self._speak(*self.pending.take(1)) if self._timer.due(now) else []

    # ------------------------------------------------------------------------------ state

    def live_rows(self) -> int:
        return self.store.rows + len(self.pending)

    def used_slots(self) -> Ints:
        used = np.concatenate([self.store.used_slots(), self.pending.store.used_slots()])
        distinct, first = np.unique(used, return_index=True)
        ordered: Ints = distinct[np.argsort(first)]
        return ordered

    def remap(self, mapping: Ints) -> None:
        super().remap(mapping)
        self.pending.remap(mapping)

    def _pending_format(self) -> WindowState:
        assert self.input_schema is not None
        return WindowState(
            name="pending",
            input_schema=self.input_schema,
            space=self.space,
            unit_fields=("window",),
            value_fields=[ROWS],
            context=self.context,
            where=self.where,
        )

    def snapshot(self) -> OperatorSnapshot:
        tables = super().snapshot()
        if self.settings.trigger.is_early and self.input_schema is not None:
            tables.update(self._pending_format().snapshot(self.pending.store))
        return tables

    def restore(self, state: Mapping[str, StateTable]) -> None:
        super().restore(state)
        self._find_ended()
        if self.clock.ahead is not None:
            ended = [self.slicing.last_window_ended(w + 1) for w in self.clock.ahead.tolist()]
            self._restored_fired = np.array(ended, np.int64)
        if self.input_schema is not None and self.settings.trigger.is_early:
            run = self._pending_format().restore(state)
            if run is not None:
                counts = run.columns[0].to_numpy()
                self.pending.add(run.units, run.slots, counts, len(self.space))


def _sorted(run: Run) -> Run:
    """By unit, rows of one unit in their order."""
    return run.take(np.argsort(run.units, kind="stable"))


def _parts(lengths: Ints) -> Iterator[slice]:
    """Cut windows into parts of a bounded number of partial rows, at least one window each."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _SPREAD_ROWS, side="right")))
        yield slice(start, stop)
        start = stop
