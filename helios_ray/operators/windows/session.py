"""Session windows: rows of a key that follow each other in less than a gap.

Why it exists: sessions have no fixed bounds; they grow and merge. The state is made of
fragments, partial rows that know their first and last event time; fragments of a key that are
less than the gap apart are one session, and are merged whenever they meet.

A fragment comes up when it is due: at its last event time it may end its session. If the
session goes on elsewhere it is put back until that ends; so each fragment is looked at about
once a gap, however often the watermark moves. Runs are sorted by due time.

A row is late when the session it belongs to has been over for the allowed lateness: its own,
``[time, time + gap)``, unless that touches one of its key that has not. See :mod:`~.fragments`.

May import: elements, operators, windowing, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP, Batch
from helios_ray.operators.base import StateTable
from helios_ray.operators.window_aggregates.base import Rows
from helios_ray.operators.window_aggregates.groups import Groups, Ints, Mask
from helios_ray.operators.windows.base import WindowedOperator
from helios_ray.operators.windows.fragments import Chains, chain, column_of, late_rows
from helios_ray.operators.windows.runs import Run, RunStore, concat
from helios_ray.operators.windows.settings import WindowSettings
from helios_ray.operators.windows.timing import EarlyTimer
from helios_ray.windowing import SessionWindow, microseconds

NEVER = -(2**62)
START, LAST, FRESH = 0, 1, 2
_OWN = 3
"""Columns of a fragment before the partial ones: first and last event time, and its rows
since the session last spoke."""


class SessionWindowOperator(WindowedOperator):
    """Aggregates over sessions; see :func:`~.operator.window_operator`."""

    unit_fields = ("due", "start", "last", "fresh")

    def __init__(self, settings: WindowSettings) -> None:
        assert isinstance(settings.window, SessionWindow)
        self._gap = microseconds("gap", settings.window.gap)
        self._early_rows = settings.trigger.rows
        self._timer = EarlyTimer(settings.trigger)
        self._has_fresh = False
        super().__init__(settings)

    def make_store(self) -> RunStore:
        return RunStore(self._merge)

    # -------------------------------------------------------------------------- fragments

    def _merge(self, run: Run) -> Run:
        """Merge the fragments that touch each other; sorted by due time."""
        chains = self._chains(run)
        if chains.size == len(run):
            return run.take(np.argsort(run.units, kind="stable"))
        due = np.full(chains.size, NEVER)
        np.maximum.at(due, chains.codes, run.units)
        fresh = np.zeros(chains.size, np.int64)
        np.add.at(fresh, chains.codes, column_of(run, FRESH))
        groups = Groups(chains.codes, chains.size)
        # What was put back for later may have met a fragment that is due before.
        due = np.where(groups.counts > 1, chains.lasts, due)
        columns = [pa.array(chains.starts), pa.array(chains.lasts), pa.array(fresh)]
        columns += self.merge_columns(groups, run.columns[_OWN:])
        merged = Run(due, chains.slots, columns)
        return merged.take(np.argsort(due, kind="stable"))

    def _chains(self, run: Run) -> Chains:
        starts, lasts = column_of(run, START), column_of(run, LAST)
        return chain(run.slots, starts, lasts, self._gap, len(self.space))

    def _over(self, slots: Ints | None = None) -> Ints | int:
        """The last event time whose session, if nothing followed, is over; by slot where key
        groups differ."""
        marks = None if slots is None else self.clock.of(self.space.groups()[slots])
        if marks is None:
            return self._over_at(self.clock.watermark)
        return np.array([self._over_at(mark) for mark in marks.tolist()], np.int64)

    def _over_at(self, watermark: int) -> int:
        return NEVER if watermark == MIN_TIMESTAMP else max(NEVER, watermark - self._gap + 1)

    # ------------------------------------------------------------------------------- rows

    def late(self, times: Ints, slots: Ints) -> Mask | None:
        if self.clock.ahead is None and int(times.min()) > int(self._over()) - self._lateness:
            return None
        old = times <= self._over(slots) - self._lateness
        # What has been over for so long is not kept: whatever is kept may be joined.
        kept = ((run.slots, column_of(run, START), column_of(run, LAST)) for run in self.store.runs)
        return late_rows(slots, times, old, [*kept], self._gap, len(self.space))

    @property
    def _lateness(self) -> int:
        return self.settings.lateness

    def fold(self, rows: Rows, slots: Ints) -> list[Batch]:
        chains = chain(slots, rows.times, rows.times, self._gap, len(self.space))
        groups = Groups(chains.codes, chains.size)
        columns = [pa.array(chains.starts), pa.array(chains.lasts), pa.array(groups.counts)]
        run = Run(chains.lasts, chains.slots, [*columns, *self.lift(groups, rows)])
        self.store.add(run.take(np.argsort(run.units, kind="stable")))
        self._has_fresh = True
        out: list[Batch] = []
        again = chains.lasts <= self._over(chains.slots)
        if again.any():
            out += self._speak(chains.slots[again], least=1, over=True)
        if self._early_rows is not None:
            out += self._speak(chains.slots, least=self._early_rows)
        return out

    def _speak(self, slots: Ints, *, least: int, over: bool = False) -> list[Batch]:
        """Emit the sessions of these keys that have so many rows not spoken of.

        Args:
            over: look at sessions whose end has passed (again), rather than at open ones.
        """
        marked = self._marked(slots)
        found = self._of(marked)
        if not found:
            return []
        merged = self._merge(concat(found))
        ended = column_of(merged, LAST) <= self._over(merged.slots)
        ready = (column_of(merged, FRESH) >= least) & (ended if over else ~ended)
        if not ready.any():
            return []
        spoken = merged.filter(ready)
        owners = self._marked(spoken.slots)
        self.store.drop(lambda run: owners[run.slots])
        rest = owners[merged.slots] & ~ready
        if rest.any():
            self.store.add(merged.filter(rest))
        self.store.add(self._spoken(spoken))
        return self._emit_sessions(spoken)

    def _marked(self, slots: Ints) -> Mask:
        marked = np.zeros(len(self.space), np.bool_)
        marked[slots] = True
        return marked

    def _of(self, marked: Mask) -> list[Run]:
        """The fragments of the marked slots."""
        found = []
        for run in self.store.runs:
            mask = marked[run.slots]
            if mask.any():
                found.append(run if mask.all() else run.filter(mask))
        return found

    def _spoken(self, run: Run) -> Run:
        """Sessions that have just been emitted, as the state keeps them."""
        columns = run.columns
        if not self.settings.accumulating:
            nothing = Groups(np.zeros(0, np.int64), len(run))
            empty = [column.slice(0, 0) for column in columns[_OWN:]]
            columns = [*columns[:_OWN], *self.merge_columns(nothing, empty)]
        zero = pa.array(np.zeros(len(run), np.int64))
        return Run(run.units, run.slots, [*columns[:FRESH], zero, *columns[_OWN:]])

    def _emit_sessions(self, run: Run) -> list[Batch]:
        run = run.take(np.argsort(column_of(run, LAST), kind="stable"))
        bounds = column_of(run, START), column_of(run, LAST) + self._gap
        return self.emit(run.slots, bounds, run.columns[_OWN:])

    # ------------------------------------------------------------------------------- time

    def on_watermark(self, timestamp: int) -> list[Batch]:
        before = int(self._over())
        ahead = self.clock.ahead
        if not self.clock.advance(timestamp) or self.input_schema is None:
            return []
        over = int(self._over())
        if self.store.earliest is None or self.store.earliest > over:
            return []
        due = self._merge(concat(self.store.between(NEVER, over)))
        self.store.drop_through(over)
        spoken = np.full(len(self.space), before)
        if ahead is not None:
            by_group = np.array([self._over_at(mark) for mark in ahead.tolist()], np.int64)
            spoken = np.maximum(spoken, by_group[self.space.groups()])
        due, lasts = self._with_rest(due, over, spoken)
        ended = lasts <= over
        due = Run(np.where(ended, lasts + self._lateness, lasts), due.slots, due.columns)
        speaking = ended & (lasts > spoken[due.slots])
        if not self.settings.accumulating:
            speaking &= column_of(due, FRESH) > 0
        out: list[Batch] = []
        kept = due
        if speaking.any():
            out = self._emit_sessions(due.filter(speaking))
            parts = [due.filter(~speaking), self._spoken(due.filter(speaking))]
            kept = concat([part for part in parts if len(part)])
        kept = kept.filter(kept.units > over)
        self.store.add(kept.take(np.argsort(kept.units, kind="stable")))
        self._forget_keys()
        return out

    def _with_rest(self, due: Run, over: int, spoken: Ints) -> tuple[Run, Ints]:
        """Due fragments with the last event time of their sessions, wherever the rest of those
        is. Sessions that are to speak are made whole."""
        while True:
            marked = self._marked(due.slots)
            slots, starts, lasts = [due.slots], [column_of(due, START)], [column_of(due, LAST)]
            for run in self.store.runs:
                rows = np.flatnonzero(marked[run.slots])
                if len(rows):
                    slots.append(run.slots[rows])
                    starts.append(column_of(run, START)[rows])
                    lasts.append(column_of(run, LAST)[rows])
            if len(slots) == 1:
                return due, lasts[0]
            chains = chain(
                np.concatenate(slots),
                np.concatenate(starts),
                np.concatenate(lasts),
                self._gap,
                len(self.space),
            )
            mine, others = chains.codes[: len(due)], chains.codes[len(due) :]
            ends = chains.lasts[mine]
            elsewhere = np.zeros(chains.size, np.bool_)
            elsewhere[others] = True
            split = (ends <= over) & (ends > spoken[due.slots]) & elsewhere[mine]
            if not split.any():
                return due, ends
            # A late row has reached a session that had spoken and was kept: take that in.
            owners = self._marked(due.slots[split])
            rest = self._of(owners)
            self.store.drop(lambda run, owners=owners: owners[run.slots])  # type: ignore[misc]
            due = self._merge(concat([*rest, due]))

    def next_timer(self) -> int | None:
        return self._timer.next(waiting=self._has_fresh)

    def on_processing_time(self, now: int) -> list[Batch]:
        if not self._timer.due(now) or not self._has_fresh:
            return []
        self._has_fresh = False
        slots = [run.slots[column_of(run, FRESH) > 0] for run in self.store.runs]
        return self._speak(np.concatenate(slots), least=1) if slots else []

    def restore(self, state: Mapping[str, StateTable]) -> None:
        super().restore(state)
        if self.input_schema is not None:
            self._has_fresh = any(column_of(run, FRESH).any() for run in self.store.runs)
