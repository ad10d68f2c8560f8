"""Chains of intervals: which fragments of a key are one session.

Why it exists: rows, fragments of a batch and fragments of the state are all intervals
``[start, last]`` of a slot; those less than a gap apart belong together.

May import: operators.windows.runs, operators.window_aggregates, state, numpy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from helios_ray.operators.window_aggregates.groups import Groups, Ints
from helios_ray.operators.windows.runs import Run
from helios_ray.state.hashing import values_buffer


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


def column_of(run: Run, column: int) -> Ints:
    """One of a run's number columns."""
    found: Ints = values_buffer(run.columns[column], np.int64)
    return found
