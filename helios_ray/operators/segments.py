"""The rows of a batch grouped by key, and folds over each group in the order of its rows.

Why it exists: a running aggregate needs the value after every row, and floats need the very
order of the rows. Both come from folding group by group, vectorized across groups where
they are short and along the group where it is long.

May import: state, numpy.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from helios_ray.state.index import Slots

Values: TypeAlias = npt.NDArray[Any]

_LONG_SEGMENT = 128
"""Keys with more rows than this in one batch are folded one key at a time."""


class Segments:
    """The rows of a batch grouped by slot, in their order within each group.

    Args:
        slots: the slot of every row, at least one row.
    """

    __slots__ = ("ends", "first_rows", "order", "slots", "starts")

    def __init__(self, slots: Slots) -> None:
        self.first_rows = first_rows(slots)
        touched = slots[self.first_rows]
        # Batch-local codes are small, and the stable sort of uint16 is a radix sort.
        local = np.empty(int(slots.max()) + 1, np.int64)
        local[touched] = np.arange(len(touched))
        codes = local[slots]
        small = codes.astype(np.uint16) if len(touched) <= 65_536 else codes
        self.order = np.argsort(small, kind="stable")
        lengths = np.bincount(codes, minlength=len(touched))
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.slots = touched

    def running(self, ufunc: np.ufunc, initial: Values, values: Values) -> tuple[Values, Values]:
        """Fold ``values`` into ``initial`` group by group.

        Args:
            initial: one value per group, in the order of ``slots``.
            values: one value per row.

        Returns:
            The value after every row, and the last value of every group.
        """
        ordered = values[self.order]
        out = np.empty_like(ordered)
        lengths = self.ends - self.starts
        for group in np.flatnonzero(lengths > _LONG_SEGMENT).tolist():
            start, end = int(self.starts[group]), int(self.ends[group])
            chain = np.concatenate((initial[group : group + 1], ordered[start:end]))
            out[start:end] = ufunc.accumulate(chain)[1:]
        short = np.flatnonzero(lengths <= _LONG_SEGMENT)
        if len(short):
            # Longest first: the groups that have an r-th row are then a prefix.
            short = short[np.argsort(-lengths[short], kind="stable")]
            starts, current = self.starts[short], initial[short]
            have = np.bincount(lengths[short])
            alive = len(short) - np.cumsum(have)  # groups with more than r rows
            for r, count in enumerate(alive[:-1].tolist()):
                at = starts[:count] + r
                current[:count] = ufunc(current[:count], ordered[at])
                out[at] = current[:count]
        result = np.empty_like(out)
        result[self.order] = out
        return result, out[self.ends - 1]


def first_rows(slots: Slots) -> npt.NDArray[np.int64]:
    """The row at which each slot first appears, in order of appearance."""
    if len(slots) == 0:
        return np.empty(0, np.int64)
    rows = np.arange(len(slots))
    first = np.empty(int(slots.max()) + 1, np.int64)
    first[slots[::-1]] = rows[::-1]  # of equal slots, the last write stays: the first row
    return np.flatnonzero(first[slots] == rows)
