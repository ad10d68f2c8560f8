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

from helios_ray.operators.window_aggregates.groups import Groups, Ints, Mask

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
        found, inverse = _by_table(codes, space)
    else:
        found, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        order = np.argsort(first)
        found, inverse = found[order], _inverse(order)[inverse]
    if span == 1:
        return Cells(np.full(len(found), low), found, Groups(inverse, len(found)))
    found_units, found_slots = np.divmod(found, width)
    # The stable sort of small unsigned integers is a radix sort.
    small = found_units.astype(np.uint16) if span <= 65_536 else found_units
    order = np.argsort(small, kind="stable")
    groups = Groups(_inverse(order)[inverse], len(found))
    return Cells(found_units[order] + low, found_slots[order], groups)


def is_in(units: Ints, slots: Ints, of: Ints, of_slots: Ints, width: int) -> Mask:
    """Which pairs are among the distinct pairs ``(of, of_slots)``."""
    every = group(np.concatenate([of, units]), np.concatenate([of_slots, slots]), width)
    wanted = np.zeros(every.groups.size, np.bool_)
    wanted[every.groups.codes[: len(of)]] = True
    found: Mask = wanted[every.groups.codes[len(of) :]]
    return found


def _by_table(codes: Ints, space: int) -> tuple[Ints, Ints]:
    """The distinct codes in order of appearance, and the place of each row's."""
    rows = np.arange(len(codes))
    first = np.empty(space, np.int64)
    first[codes[::-1]] = rows[::-1]  # of equal codes, the first row stays
    found = codes[first[codes] == rows]
    place = first
    place[found] = np.arange(len(found))
    return found, place[codes]


def _inverse(order: Ints) -> Ints:
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place
