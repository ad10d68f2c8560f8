"""Which rows of two sides belong together, as pairs of row numbers.

Why it exists: all joins end in "these rows of the left with those of the right". Sorting one
side and searching it for the other costs a few kernel calls whatever the number of rows.

May import: numpy.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]


def expand(starts: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Ranges written out: the range each number is of, and the number.

    Args:
        starts: first number of each range.
        counts: how many numbers each range has; may be 0.

    Example:
        >>> owners, numbers = expand(np.array([5, 9, 2]), np.array([2, 0, 1]))
        >>> owners.tolist(), numbers.tolist()
        ([0, 0, 2], [5, 6, 2])
    """
    owners = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    numbers = np.arange(len(owners)) + np.repeat(starts - before, counts)
    return owners, numbers


def equal_pairs(left: Ints, right: Ints) -> tuple[Ints, Ints]:
    """Every pair of rows with the same code: numbers of the left rows, and of the right ones.

    Pairs come in the order of the left rows, and within one in that of the right.

    Args:
        left: a code per left row; a negative one matches nothing.
        right: a code per right row; likewise.

    Example:
        >>> pairs = equal_pairs(np.array([7, -1, 3, 7]), np.array([3, 7, -1, 7]))
        >>> [side.tolist() for side in pairs]
        [[0, 0, 2, 3, 3], [1, 3, 0, 1, 3]]
    """
    order = np.argsort(right, kind="stable")
    ordered = right[order]
    start = np.searchsorted(ordered, left, "left")
    count = np.searchsorted(ordered, left, "right") - start
    count[left < 0] = 0
    owners, places = expand(start, count)
    return owners, order[places]


def unmatched(rows: int, matched: Ints) -> Ints:
    """The rows from 0 to ``rows - 1`` that are not among ``matched``, ascending.

    Example:
        >>> unmatched(4, np.array([2, 0, 2])).tolist()
        [1, 3]
    """
    alone = np.ones(rows, np.bool_)
    alone[matched] = False
    found: Ints = np.flatnonzero(alone)
    return found
