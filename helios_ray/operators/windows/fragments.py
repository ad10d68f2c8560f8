"""Chains of intervals: which fragments of a key are one session, and which rows have none left.

Why it exists: rows, fragments of a batch and fragments of the state are all intervals
``[start, last]`` of a slot; those less than a gap apart belong together. Windows and joins over
sessions ask the same of them.

A row is late when the session that it belongs to is over by its key's watermark, less the
lateness. Windows are merged first: a row that would be too old alone belongs to a session that is
not over if it is less than the gap away from it. It may so bridge two of them. "It" is what has
come before the row, in the state or in its own batch, so the answer is that of one row after the
other and does not depend on where batches are cut. (Semantics: Flink's merging windows.)

May import: operators.windows.runs, operators.window_aggregates, state, numpy.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from helios_ray.operators.window_aggregates.groups import Groups, Ints, Mask
from helios_ray.operators.windows.runs import Run
from helios_ray.state.hashing import values_buffer

Intervals: TypeAlias = tuple[Ints, Ints, Ints]
"""Slots, starts and lasts."""


class Chains(NamedTuple):
    """Intervals that belong together, in the order of their first row.

    Args:
        codes: the chain of every interval.
        slots: of each chain.
        starts: the least start of each chain.
        lasts: its greatest last.
    """

    codes: Ints
    slots: Ints
    starts: Ints
    lasts: Ints

    @property
    def size(self) -> int:
        """Number of chains."""
        return len(self.slots)


def chain(slots: Ints, starts: Ints, lasts: Ints, gap: int, width: int) -> Chains:
    """Chain the intervals of each slot that are less than ``gap`` apart.

    Example:
        >>> found = chain(*(np.array(a) for a in ([0, 0, 1, 0], [1, 9, 2, 4], [1, 9, 2, 4])), 5, 2)
        >>> found.codes.tolist(), found.starts.tolist(), found.lasts.tolist()
        ([0, 1, 2, 0], [1, 9, 2], [4, 9, 2])
    """
    if len(slots) == 0:
        return Chains(slots, slots, slots, slots)
    order = Groups(slots, width).order_by(starts)
    owners, begin, end = slots[order], starts[order], lasts[order]
    reach = end if starts is lasts else _running_max(owners, end)
    fresh = np.ones(len(order), np.bool_)
    fresh[1:] = (owners[1:] != owners[:-1]) | (begin[1:] - reach[:-1] >= gap)
    heads = np.flatnonzero(fresh)
    tails = np.append(heads[1:], len(order)) - 1
    codes = np.empty(len(order), np.int64)
    codes[order] = np.cumsum(fresh) - 1
    # Number the chains by their first interval, in the order in which they came.
    first = np.minimum.reduceat(order, heads)
    by_first = np.argsort(first)
    place = np.empty(len(heads), np.int64)
    place[by_first] = np.arange(len(heads))
    return Chains(
        place[codes], owners[heads][by_first], begin[heads][by_first], reach[tails][by_first]
    )


def _running_max(owners: Ints, values: Ints) -> Ints:
    """The greatest value so far of each run of equal owners."""
    if (values[1:] >= values[:-1])[owners[1:] == owners[:-1]].all():
        return values
    distinct, ranks = np.unique(values, return_inverse=True)
    run = np.cumsum(np.append(0, owners[1:] != owners[:-1]))
    greatest = np.maximum.accumulate(run * len(distinct) + ranks) - run * len(distinct)
    found: Ints = distinct[greatest]
    return found


def late_rows(
    slots: Ints, times: Ints, old: Mask, kept: Sequence[Intervals], gap: int, width: int
) -> Mask | None:
    """Which rows belong to no session that is not over; None for none.

    Args:
        slots, times: of the rows, in order of arrival.
        old: which would be late if each were alone.
        kept: what the state holds, all of it of sessions that are not over.
        gap: the silence that ends a session.
        width: number of slots.

    Example:
        >>> slots, times = np.zeros(4, np.int64), np.array([7, 14, 4, 1])
        >>> kept = [tuple(np.array([n]) for n in (0, 9, 12))]
        >>> late_rows(slots, times, np.array([True, False, True, True]), kept, 3, 1).tolist()
        [False, False, True, True]
    """
    if not old.any():
        return None
    marked = np.zeros(width, np.bool_)
    marked[slots[old]] = True
    latest = int(times[old].max()) + gap  # from here on nothing touches an old row
    parts = [_near(part, marked, latest) for part in kept]
    live_slots, starts, lasts = (np.concatenate(c) for c in zip(_NOTHING, *parts, strict=True))
    live = chain(live_slots, starts, lasts, gap, width)
    candidates = np.flatnonzero(old)
    touching = _touches(slots[candidates], times[candidates], live, gap, width)
    late = old.copy()
    late[candidates[touching]] = False
    # The others can only follow one that came before them.
    rows = np.flatnonzero(marked[slots] & (times < latest))
    if not late.any() or late[rows].all():
        return late if late.any() else None
    chains = chain(slots[rows], times[rows], times[rows], gap, width)
    in_time, asking = np.zeros(chains.size, np.bool_), np.zeros(chains.size, np.bool_)
    in_time[chains.codes[~late[rows]]] = True
    asking[chains.codes[late[rows]]] = True
    unsure = (in_time & asking)[chains.codes]
    rows, codes = rows[unsure], chains.codes[unsure]
    late[rows] = _one_by_one(codes.tolist(), times[rows].tolist(), late[rows].tolist(), gap)
    return late if late.any() else None


_NOTHING: Intervals = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))


def _near(kept: Intervals, marked: Mask, latest: int) -> Intervals:
    """Those of marked slots that start before ``latest``."""
    slots, starts, lasts = kept
    rows = np.flatnonzero(starts < latest)
    rows = rows[marked[slots[rows]]]
    return slots[rows], starts[rows], lasts[rows]


def _touches(slots: Ints, times: Ints, live: Chains, gap: int, width: int) -> Mask:
    """Which rows are less than the gap away from one of ``live``."""
    size = live.size
    if size == 0:
        return np.zeros(len(slots), np.bool_)
    owners = np.concatenate([live.slots, slots])
    order = Groups(owners, width).order_by(np.concatenate([live.starts, times + (gap - 1)]))
    # Chains of a slot lie apart: the last that starts in time is the one that lasts longest.
    found = np.empty(len(order), np.int64)
    found[order] = np.maximum.accumulate(np.where(order < size, np.arange(len(order)), -1))
    place = found[size:]
    best = order[np.maximum(place, 0)]
    touching: Mask = (place >= 0) & (owners[best] == slots)
    touching[touching] = times[touching] - live.lasts[best[touching]] < gap
    return touching


def _one_by_one(codes: list[int], times: list[int], late: list[bool], gap: int) -> list[bool]:
    """Each row after what came before it: whether it belongs to a session depends on which of
    those did, back to the first. Only old rows near rows of their own batch come here."""
    taken: defaultdict[int, list[int]] = defaultdict(list)
    found = []
    for code, time, still in zip(codes, times, late, strict=True):
        before = taken[code]
        place = bisect_right(before, time - gap)
        alone = still and not (place < len(before) and before[place] < time + gap)
        if not alone:
            insort(before, time)
        found.append(alone)
    return found


def column_of(run: Run, column: int) -> Ints:
    """One of a run's number columns."""
    found: Ints = values_buffer(run.columns[column], np.int64)
    return found
