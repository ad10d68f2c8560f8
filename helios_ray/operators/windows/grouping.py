"""Which rows of partial results belong together.

Why it exists: rows of a batch and partial rows of runs are grouped by a number (a slice, a
window) and a slot. Groups come out by number, and within it in the order in which they first
appear: that order is kept by every merge, so results come out by window and first-seen key
whatever the batches were.

May import: operators.window_aggregates, numpy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from helios_ray.operators.window_aggregates.groups import Groups, Ints

_DENSE_ROWS = 4
_DENSE_LEAST = 16_384


class Cells(NamedTuple):
    """Groups of rows by number and slot.

    Args:
        units: the number of each group, ascending.
        slots: its slot.
        groups: the group of every row.
    """

    units: Ints
    slots: Ints
    groups: Groups


def group(units: Ints, slots: Ints, width: int) -> Cells:
    """Group rows by ``(units, slots)``.

    Args:
        units: any numbers.
        slots: from 0 to ``width - 1``.
        width: number of slots.

    Example:
        >>> cells = group(np.array([7, 7, 5, 7]), np.array([1, 0, 1, 1]), 2)
        >>> cells.units.tolist(), cells.slots.tolist(), cells.groups.codes.tolist()
        ([5, 7, 7], [1, 1, 0], [1, 2, 0, 1])
    """
    rows = len(units)
    if rows == 0:
        return Cells(units, slots, Groups(np.zeros(0, np.int64), 0))
    low, high = int(units.min()), int(units.max())
    span = high - low + 1
    if span == 1:
        codes, space = slots, width
    elif span * width < 2**62:
        codes, space = (units - low) * width + slots, span * width
    else:
        distinct, places = np.unique(units, return_inverse=True)
        cells = group(places, slots, width)
        return Cells(distinct[cells.units], cells.slots, cells.groups)
    if space <= max(_DENSE_ROWS * rows, _DENSE_LEAST):
        found, first, inverse = _dense(codes, space)
    else:
        found, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    if span == 1:
        order = np.argsort(first)
        found = found[order]
        found_units, found_slots = np.full(len(found), low), found
    else:
        order = np.lexsort((first, found // width))
        found = found[order]
        found_units, found_slots = np.divmod(found, width)
        found_units += low
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return Cells(found_units, found_slots, Groups(place[inverse], len(order)))


def _dense(codes: Ints, space: int) -> tuple[Ints, Ints, Ints]:
    """As np.unique with index and inverse, by a table of all possible codes."""
    rows = len(codes)
    first = np.full(space, rows)
    first[codes[::-1]] = np.arange(rows - 1, -1, -1)  # of equal codes, the first row stays
    found = np.flatnonzero(first < rows)
    place = np.empty(space, np.int64)
    place[found] = np.arange(len(found))
    return found, first[found], place[codes]
