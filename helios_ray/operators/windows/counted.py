"""Count windows: every so many rows of a key, in the order of arrival.

Why it exists: row numbers of a key take the place of event time. Rows are aggregated into
panes, the longest stretches that no window's boundary cuts; a window is put together from its
panes in the batch that fills it.

    pane u    rows u * size … of a key, size = gcd(n, slide)
    window j  ends before row (j + 1) * slide of its key and holds the n rows before that

Rows that are left out because a user's function failed on them (``on_error``) have no number.

What the state holds of a key beside its open panes is how many rows it has had.

    counts   KEYED   key_group, key.<name>, rows int64

May import: elements, operators, state, windowing, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.operators.base import OperatorSnapshot, StateTable
from helios_ray.operators.window_aggregates.base import Rows
from helios_ray.operators.window_aggregates.groups import Groups, Ints, Mask, ranges
from helios_ray.operators.windows.base import WindowedOperator
from helios_ray.operators.windows.grouping import group
from helios_ray.operators.windows.runs import Run, RunStore, concat
from helios_ray.operators.windows.settings import WindowSettings
from helios_ray.operators.windows.stored import WindowState
from helios_ray.state.columns import GrowableColumn
from helios_ray.windowing import CountWindow


class CountWindowOperator(WindowedOperator):
    """Aggregates over windows of rows; see :func:`~.operator.window_operator`."""

    unit_fields = ("pane",)

    def __init__(self, settings: WindowSettings) -> None:
        assert isinstance(settings.window, CountWindow)
        self._n, self._slide = settings.window.n, settings.window.slide
        self._pane = gcd(self._n, self._slide)
        self._span, self._step = self._n // self._pane, self._slide // self._pane
        self._counts = GrowableColumn(pa.int64(), np.int64, 0)
        super().__init__(settings)

    def window_type(self, time_type: pa.DataType | None) -> pa.DataType:
        return pa.int64()

    def make_store(self) -> RunStore:
        return RunStore(self._merge)

    def _merge(self, run: Run) -> Run:
        needed = self._needed(run)
        if not needed.all():
            run = run.filter(needed)
        cells = group(run.units, run.slots, len(self.space))
        return Run(cells.units, cells.slots, self.merge_columns(cells.groups, run.columns))

    def _needed(self, run: Run) -> Mask:
        """Which partial rows belong to a window that is not full yet."""
        following = self._counts.view()[run.slots] // self._slide
        needed: Mask = run.units >= (following + 1) * self._step - self._span
        return needed

    def fold(self, rows: Rows, slots: Ints) -> list[Batch]:
        width = len(self.space)
        self._counts.resize(width)
        before = self._counts.view()
        batch = Groups(slots, width)
        number = np.empty(len(slots), np.int64)
        number[batch.order] = np.arange(len(slots)) - batch.starts[slots[batch.order]]
        number += before[slots]
        cells = group(number // self._pane, slots, width)
        run = Run(cells.units, cells.slots, self.lift(cells.groups, rows))
        first = before // self._slide
        stop = (before + batch.counts) // self._slide
        full = stop > first
        out: list[Batch] = []
        if full.any():
            out = self._fill(run, full, first, stop)
        counts = self._counts.writable()
        counts += batch.counts
        self.store.add(run)
        return out

    def _fill(self, run: Run, full: Mask, first: Ints, stop: Ints) -> list[Batch]:
        """Emit, for the slots in ``full``, the windows from ``first`` up to ``stop``."""
        parts = []
        for older in [*self.store.runs, run]:
            chosen = full[older.slots]
            if older is not run:
                chosen &= self._needed(older)
            if chosen.any():
                parts.append(older if chosen.all() else older.filter(chosen))
        found = concat(parts)
        low = found.units // self._step
        high = (found.units + self._span) // self._step
        low = np.maximum(low, first[found.slots])
        high = np.minimum(high, stop[found.slots])
        counts = np.maximum(high - low, 0)
        windows = ranges(low, counts)
        index = np.repeat(np.arange(len(found)), counts)
        cells = group(windows, found.slots[index], len(self.space))
        rows = pa.array(index)
        columns = [column.take(rows) for column in found.columns]
        merged = self.merge_columns(cells.groups, columns)
        ends = (cells.units + 1) * self._slide
        return self.emit(cells.slots, (np.maximum(ends - self._n, 0), ends), merged)

    # ------------------------------------------------------------------------------ state

    def live_rows(self) -> int:
        return len(self.space)  # the number of its rows is kept of every key

    def _counts_format(self) -> WindowState:
        assert self.input_schema is not None
        return WindowState(
            name="counts",
            input_schema=self.input_schema,
            space=self.space,
            unit_fields=("rows",),
            value_fields=[],
            context=self.context,
            where=self.where,
        )

    def snapshot(self) -> OperatorSnapshot:
        tables = super().snapshot()
        if self.input_schema is not None and len(self._counts):
            counts = RunStore(self._merge)
            frozen = self._counts.freeze().to_numpy()
            counts.add(Run(frozen, np.arange(len(frozen)), []))
            tables.update(self._counts_format().snapshot(counts))
        return tables

    def restore(self, state: Mapping[str, StateTable]) -> None:
        super().restore(state)
        if self.input_schema is None:
            return
        run = self._counts_format().restore(state)
        if run is not None:
            self._counts.resize(len(self.space))
            self._counts.writable()[run.slots] = run.units
