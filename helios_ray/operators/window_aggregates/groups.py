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


_SMALL = 512
"""Fewer values than this are sorted by comparison."""


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
            self._order = stable_order(self.codes)
        return self._order

    def order_by(self, values: npt.NDArray[Any]) -> Ints:
        """The rows sorted by group and within each by value, equal ones in their own order."""
        if len(values) == 0 or (values[1:] >= values[:-1]).all():
            return self.order
        by_value = stable_order(values)
        order: Ints = by_value[stable_order(self.codes[by_value])]
        return order

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


def stable_order(values: npt.NDArray[Any]) -> Ints:
    """The rows sorted by value, NaN last, equal ones in their own order.

    A radix sort from the low 16 bits up: several times as fast as sorting 64-bit numbers by
    comparison where those are close together, as codes and event times are.

    Example:
        >>> stable_order(np.array([2.5, np.nan, -1.0, 2.5])).tolist()
        [2, 0, 3, 1]
    """
    if len(values) < _SMALL:
        return np.argsort(values, kind="stable")
    if values.dtype.kind == "f":
        bits = np.where(values != values, np.nan, values + 0.0).view(np.int64)
        # Negative floats count down as their bits count up.
        bits = bits ^ ((bits >> 63) & np.int64(2**63 - 1))
    else:
        bits = values.astype(np.int64, copy=False)
        if values.dtype == np.uint64:
            bits = bits ^ np.int64(-(2**63))
    least = bits.min()
    span = (int(bits.max()) - int(least)).bit_length()
    places = bits.view(np.uint64) - least.astype(np.uint64)  # modulo 2**64: never overflows
    order: Ints | None = None
    for shift in range(0, max(span, 1), 16):
        # numpy's stable sort of 16-bit numbers is a radix sort.
        digit = ((places if order is None else places[order]) >> np.uint64(shift)).astype(np.uint16)
        by_digit = np.argsort(digit, kind="stable")
        order = by_digit if order is None else order[by_digit]
    assert order is not None
    return order


def sums(codes: Ints, values: npt.NDArray[Any], size: int) -> npt.NDArray[np.float64]:
    """The sum of the values of each group, as float64 also where there are no rows at all."""
    found: npt.NDArray[np.float64] = np.bincount(codes, values, size).astype(np.float64, copy=False)
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


__all__ = ["Groups", "Ints", "Mask", "ranges", "stable_order", "sums", "take_or_null"]
