"""Which group each row belongs to.

Why it exists: lifting and merging are folds over groups of rows. The codes are computed once
and every aggregate folds by them; those that need the rows of a group together share one sort.

May import: state, Arrow, numpy.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]


class Groups:
    """The group of every row.

    Args:
        codes: one group number a row, int64.
        size: number of groups; groups may have no rows.

    Example:
        >>> groups = Groups(np.array([1, 0, 1]), 3)
        >>> groups.counts.tolist(), groups.order.tolist(), groups.starts.tolist()
        ([1, 2, 0], [1, 0, 2], [0, 1, 3])
    """

    __slots__ = ("_counts", "_order", "codes", "size")

    def __init__(self, codes: Ints, size: int) -> None:
        self.codes = codes
        self.size = size
        self._counts: Ints | None = None
        self._order: Ints | None = None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def counts(self) -> Ints:
        """Rows of each group."""
        if self._counts is None:
            self._counts = np.bincount(self.codes, minlength=self.size)
        return self._counts

    @property
    def starts(self) -> Ints:
        """Where each group begins in ``order``."""
        starts: Ints = np.cumsum(self.counts) - self.counts
        return starts

    @property
    def order(self) -> Ints:
        """The rows sorted by group, in their own order within each."""
        if self._order is None:
            # The stable sort of uint16 is a radix sort.
            small = self.codes.astype(np.uint16) if self.size <= 65_536 else self.codes
            self._order = np.argsort(small, kind="stable")
        return self._order

    def where(self, mask: Mask) -> Groups:
        """The same groups over only the rows of ``mask``."""
        return Groups(self.codes[mask], self.size)

    def pick(self, values: npt.NDArray[Any], *, largest: bool, last: bool = False) -> Ints:
        """The row of each group with the least (largest) value, or -1.

        Args:
            values: one a row. NaN loses against every number.
            largest: look for the largest instead.
            last: of equal ones take the last row instead of the first.
        """
        return self.first(self.best(values, largest=largest), last=last)

    def best(self, values: npt.NDArray[Any], *, largest: bool) -> Mask:
        """Which rows hold the least (largest) value of their group."""
        if len(values) == 0:
            return np.zeros(0, np.bool_)
        if values.dtype.kind == "f":
            ufunc, start = (np.fmax if largest else np.fmin), np.nan
        else:
            limits = np.iinfo(values.dtype)
            ufunc = np.maximum if largest else np.minimum
            start = limits.min if largest else limits.max
        found = np.full(self.size, start, values.dtype)
        ufunc.at(found, self.codes, values)
        mine = found[self.codes]
        best: Mask = (values == mine) | ((values != values) & (mine != mine))
        return best

    def first(self, mask: Mask, *, last: bool = False) -> Ints:
        """The first (last) row of ``mask`` in each group, or -1."""
        rows = np.flatnonzero(mask)
        if not last:
            rows = rows[::-1]  # of equal places, the last write stays
        found = np.full(self.size, -1, np.int64)
        found[self.codes[rows]] = rows
        return found


def take_or_null(array: pa.Array, rows: Ints) -> pa.Array:
    """The values at ``rows``, null where that is -1."""
    missing = rows < 0
    if not missing.any():
        return array.take(pa.array(rows))
    return array.take(pa.array(rows, mask=missing))


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """The numbers ``starts[i] … starts[i] + lengths[i] - 1`` one after another.

    Example:
        >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
        [5, 6, 0, 1, 2]
    """
    total = int(lengths.sum())
    ends = np.cumsum(lengths)
    steps: Ints = np.arange(total) - np.repeat(ends - lengths, lengths)
    steps += np.repeat(starts, lengths)
    return steps


__all__ = ["Groups", "Ints", "Mask", "ranges", "take_or_null"]
