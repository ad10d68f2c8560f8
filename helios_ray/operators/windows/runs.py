"""Partial rows in immutable runs, merged log-structured.

Why it exists: a batch adds one small run and never touches an older one, so a snapshot is a
list of references. Runs are sorted by slice: what a watermark makes due is a prefix of each,
and dropping it is a slice, not a copy. Runs of similar size are merged when there are
eight of them, so each partial row is merged a logarithmic number of times and few runs are
looked at. (Source: O'Neil et al., "The Log-Structured Merge-Tree", 1996; size tiers.)

May import: operators.windows, operators.window_aggregates, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from helios_ray.operators.window_aggregates.groups import Ints, Mask

FANOUT = 8
"""Runs of one size class that are merged into one."""

LARGEST = 1 << 30
"""Bytes above which runs are not merged any more: string columns end at 2 GiB."""


@dataclass(slots=True)
class Run:
    """Partial rows, never changed.

    Args:
        units: what the run is sorted by: slices, windows, due times.
        slots: the key of each row.
        columns: further columns: numbers that the operator works with, then partial columns.
        cache: tables of the same rows that were made for snapshots.
    """

    units: Ints
    slots: Ints
    columns: list[pa.Array]
    cache: dict[str, pa.Table] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.units)

    def slice(self, start: int, stop: int) -> Run:
        """Rows ``start`` to ``stop``, by reference."""
        if start == 0 and stop == len(self):
            return self
        return Run(
            self.units[start:stop],
            self.slots[start:stop],
            [column.slice(start, stop - start) for column in self.columns],
            {name: made.slice(start, stop - start) for name, made in self.cache.items()},
        )

    def filter(self, mask: Mask) -> Run:
        """The rows of ``mask``, copied."""
        return self.take(np.flatnonzero(mask))

    def take(self, rows: Ints) -> Run:
        """The given rows, copied."""
        index = pa.array(rows)
        columns = [column.take(index) for column in self.columns]
        return Run(self.units[rows], self.slots[rows], columns)

    def remap(self, mapping: Ints) -> Run:
        """The same rows under other slots."""
        return Run(self.units, mapping[self.slots], self.columns, self.cache)

    @property
    def nbytes(self) -> int:
        """Bytes of its columns."""
        return sum(column.nbytes for column in self.columns)

    @property
    def weight(self) -> int:
        """Rows and elements of their lists: what merging it costs."""
        weight = len(self)
        for column in self.columns:
            if pt.is_large_list(column.type) and len(column):
                offsets = column.offsets
                weight += offsets[-1].as_py() - offsets[0].as_py()
        return weight


def concat(runs: Sequence[Run]) -> Run:
    """All rows of at least one run, in order."""
    if len(runs) == 1:
        return runs[0]
    width = len(runs[0].columns)
    columns = [pa.concat_arrays([run.columns[i] for run in runs]) for i in range(width)]
    units = np.concatenate([run.units for run in runs])
    slots = np.concatenate([run.slots for run in runs])
    return Run(units, slots, columns)


class RunStore:
    """The runs of one operator, oldest first.

    Args:
        merge: makes one sorted run of the rows of several, given in order.
    """

    def __init__(self, merge: Callable[[Run], Run]) -> None:
        self._merge = merge
        self._weights: list[int] = []
        self.runs: list[Run] = []
        self.earliest: int | None = None
        """No row has a unit below this; None when there are no rows."""

    @property
    def rows(self) -> int:
        """Partial rows held."""
        return sum(map(len, self.runs))

    def add(self, run: Run) -> None:
        """Append a sorted run."""
        if len(run) == 0:
            return
        self.runs.append(run)
        self._weights.append(run.weight)
        first = int(run.units[0])
        self.earliest = first if self.earliest is None else min(first, self.earliest)
        self._compact()

    def _compact(self) -> None:
        while len(self.runs) >= FANOUT:
            tier = _tier(self._weights[-1])
            start = len(self.runs)
            while start > 0 and _tier(self._weights[start - 1]) <= tier:
                start -= 1
            if len(self.runs) - start < FANOUT:
                return
            while sum(run.nbytes for run in self.runs[start:]) > LARGEST:
                start += 1
            if len(self.runs) - start < FANOUT:
                return
            merged = self._merge(concat(self.runs[start:]))
            kept = [merged] if len(merged) else []  # it may leave out what nobody needs
            self.runs[start:] = kept
            self._weights[start:] = [run.weight for run in kept]
            self._find_earliest()  # and move rows to later units

    def _replace(self, runs: Iterable[Run]) -> None:
        self.runs = [run for run in runs if len(run)]
        self._weights = [run.weight for run in self.runs]
        self._find_earliest()

    def _find_earliest(self) -> None:
        self.earliest = min((int(run.units[0]) for run in self.runs), default=None)

    def between(self, low: int, high: int) -> list[Run]:
        """The rows with units from ``low`` to ``high``, both included, by reference."""
        found = []
        for run in self.runs:
            start = int(np.searchsorted(run.units, low, side="left"))
            stop = int(np.searchsorted(run.units, high, side="right"))
            if stop > start:
                found.append(run.slice(start, stop))
        return found

    def drop_through(self, unit: int) -> None:
        """Forget the rows with units up to ``unit``."""
        if self.earliest is None or self.earliest > unit:
            return
        self._replace(
            run.slice(int(np.searchsorted(run.units, unit, side="right")), len(run))
            for run in self.runs
        )

    def drop(self, doomed: Callable[[Run], Mask]) -> None:
        """Forget the rows that ``doomed`` marks; runs without any stay as they are."""
        kept = []
        for run in self.runs:
            mask = doomed(run)
            kept.append(run.filter(~mask) if mask.any() else run)
        self._replace(kept)

    def remap(self, mapping: Ints) -> None:
        """Renumber the slots."""
        self.runs = [run.remap(mapping) for run in self.runs]

    def used_slots(self) -> Ints:
        """The slots that rows refer to, in the order of their first row."""
        if not self.runs:
            return np.zeros(0, np.int64)
        slots = np.concatenate([run.slots for run in self.runs])
        distinct, first = np.unique(slots, return_index=True)
        used: Ints = distinct[np.argsort(first)]
        return used


def _tier(weight: int) -> int:
    """The size class: powers of eight."""
    return (max(1, weight).bit_length() - 1) // 3
