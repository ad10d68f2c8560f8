"""Which windows got rows since they last spoke: what early triggers go by.

Why it exists: ``Trigger.early`` asks how many rows a window of a key has got since its last
result. The answer is part of the snapshot, so a restored job speaks when it would have.

    pending   KEYED   key_group, key.<name>, window int64, value.rows int64

May import: operators.windows, operators.window_aggregates, Arrow, numpy.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from helios_ray.operators.window_aggregates.groups import Ints, Mask
from helios_ray.operators.windows.grouping import group
from helios_ray.operators.windows.runs import Run, RunStore, concat
from helios_ray.state.hashing import values_buffer

ROWS = pa.field("rows", pa.int64())


class Pending:
    """Counts of rows by window and slot, merged when they are looked at."""

    def __init__(self) -> None:
        self.store = RunStore(self._merge)
        self._width = 1

    def __len__(self) -> int:
        return self.store.rows

    def _merge(self, run: Run) -> Run:
        cells = group(run.units, run.slots, self._width)
        counts = np.zeros(cells.groups.size, np.int64)
        np.add.at(counts, cells.groups.codes, values_buffer(run.columns[0], np.int64))
        return Run(cells.units, cells.slots, [pa.array(counts)])

    def add(self, windows: Ints, slots: Ints, rows: Ints, width: int) -> None:
        """Windows of keys got rows.

        Args:
            width: number of slots.
        """
        self._width = max(width, self._width)
        self.store.add(self._merge(Run(windows, slots, [pa.array(rows)])))

    def take(self, least: int) -> tuple[Ints, Ints]:
        """The windows and slots that got at least so many rows; they are pending no more."""
        if not self.store.runs:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        merged = self._merge(concat(self.store.runs))
        ready: Mask = values_buffer(merged.columns[0], np.int64) >= least
        self.store = RunStore(self._merge)
        self.store.add(merged if not ready.any() else merged.filter(~ready))
        return merged.units[ready], merged.slots[ready]

    def drop_through(self, window: int) -> None:
        """Windows up to this one have spoken."""
        self.store.drop_through(window)

    def remap(self, mapping: Ints) -> None:
        """Slots have new numbers."""
        self.store.remap(mapping)
        self._width = 1 + int(mapping.max(initial=0))
