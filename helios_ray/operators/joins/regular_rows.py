"""The rows of one side that a regular join keeps.

Why it exists: every arriving row asks for all kept rows of its key, and is kept itself. Rows lie
in immutable runs in order of arrival, each with an index sorted by slot. Of runs of similar
size four are joined into one, and small ones at once, so there are O(log n) of them to search,
each row is copied O(log n) times, and the ten thousandth small batch costs little more than
the first. (Source: O'Neil et al., "The Log-Structured Merge-Tree", 1996; size tiers.) Time to
live counts from arrival, so what has expired is a prefix.

May import: operators, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from helios_ray.operators.joins.matching import Ints, expand
from helios_ray.operators.joins.side_rows import LARGEST_CHUNK, joined
from helios_ray.operators.window_aggregates.groups import Mask

FANOUT = 4
"""Runs of one size class that are joined into one."""

SMALL_ROWS = 4096
"""Runs of less than this are joined whenever there are two: copying costs less than searching."""

PAIRS_AT_ONCE = 262_144
"""About so many pairs are found at a time, however many there are."""


@dataclass(slots=True)
class Run:
    """Rows in order of arrival.

    Args:
        rows: the rows; never changed, as is all else but ``matched`` and ``head``.
        arrived: processing time (µs) of each, ascending.
        slots: the slot of each.
        matched: whether each has had a partner.
        sorted_slots: the index: slots in ascending order, of rows that can be equal to any.
        order: the row of each entry of the index.
        head: how many rows at the front have left.
        stored: their columns in a checkpoint but for ``matched``, once one was taken.
        marks: ``matched`` as Arrow data, until it changes.
    """

    rows: pa.RecordBatch
    arrived: Ints
    slots: Ints
    matched: Mask
    sorted_slots: Ints
    order: Ints
    head: int = 0
    stored: pa.Table | None = None
    marks: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.slots) - self.head

    def mark(self, rows: Ints) -> None:
        """These rows have had a partner."""
        if len(rows):
            self.matched[rows] = True
            self.marks = None

    def pairs(self, slots: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Numbers of asking rows, and of rows of this run with the same slot, in pieces.

        Args:
            slots: of the rows that ask, ascending, which makes the search quick; a negative one
                equals nothing.
        """
        start = np.searchsorted(self.sorted_slots, slots, "left")
        count = np.searchsorted(self.sorted_slots, slots, "right") - start
        asking = np.flatnonzero(count)
        if len(asking) == 0:
            return
        start, count = start[asking], count[asking]
        ends = np.cumsum(count)
        cuts = np.flatnonzero(np.diff(ends // PAIRS_AT_ONCE)) + 1
        for low, high in zip([0, *cuts.tolist()], [*cuts.tolist(), len(ends)], strict=True):
            owners, places = expand(start[low:high], count[low:high])
            rows = self.order[places]
            owners = asking[low + owners]
            if self.head:
                alive = rows >= self.head
                owners, rows = owners[alive], rows[alive]
            if len(rows):
                yield owners, rows


def make_run(
    rows: pa.RecordBatch, arrived: Ints, slots: Ints, matched: Mask, null: Mask | None
) -> Run:
    """A run of rows.

    Args:
        rows, arrived, slots, matched: as of a :class:`Run`.
        null: which rows have a null in their key and equal nothing; None for none.
    """
    chosen = np.arange(len(slots)) if null is None else np.flatnonzero(~null)
    order = chosen[np.argsort(slots[chosen], kind="stable")]
    return Run(rows, arrived, slots, matched, slots[order], order)


class KeptRows:
    """The kept rows of one side.

    Args:
        schema: of a row.

    Example:
        >>> kept = KeptRows(pa.schema([("v", pa.string())]))
        >>> rows = pa.record_batch({"v": ["a", "b", "c"]})
        >>> slots = np.array([5, 3, 5])
        >>> kept.add(make_run(rows, np.array([1, 1, 2]), slots, np.zeros(3, bool), None))
        >>> [list(map(np.ndarray.tolist, found)) for found in kept.runs[0].pairs(np.array([5]))]
        [[[0, 0], [0, 2]]]
        >>> [left["v"].to_pylist() for left in kept.expire(1)]
        [['a', 'b']]
        >>> len(kept), kept.oldest
        (1, 2)
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.runs: list[Run] = []

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    @property
    def oldest(self) -> int | None:
        """When the oldest row came (µs)."""
        return int(self.runs[0].arrived[self.runs[0].head]) if self.runs else None

    @property
    def newest(self) -> int | None:
        """When the newest row came (µs)."""
        return int(self.runs[-1].arrived[-1]) if self.runs else None

    def add(self, run: Run) -> None:
        """Append a run whose rows came no earlier than those before."""
        if len(run) == 0:
            return
        self.runs.append(run)
        self._join()

    def _join(self) -> None:
        runs = self.runs
        if len(runs) > 1 and len(runs[-2]) + len(runs[-1]) <= SMALL_ROWS:
            runs[-2:] = [_joined(runs[-2:], self.schema)]
        while len(runs) >= FANOUT:
            tier = _tier(len(runs[-1]))
            start = len(runs)
            while start > 0 and _tier(len(runs[start - 1])) <= tier:
                start -= 1
            if len(runs) - start < FANOUT:
                return
            if sum(run.rows.nbytes for run in runs[start:]) > LARGEST_CHUNK:
                return
            runs[start:] = [_joined(runs[start:], self.schema)]

    def expire(self, through: int) -> list[pa.RecordBatch]:
        """Let go of the rows that came up to ``through``; those that never had a partner."""
        gone, empty = [], 0
        for run in self.runs:
            stop = int(np.searchsorted(run.arrived, through, "right"))
            if stop <= run.head:
                break
            alone = run.head + np.flatnonzero(~run.matched[run.head : stop])
            if len(alone):
                gone.append(run.rows.take(pa.array(alone)))
            run.head = stop
            if len(run):
                break
            empty += 1
        del self.runs[:empty]
        return gone

    def used_slots(self) -> list[Ints]:
        """The slots that rows refer to."""
        return [run.slots[run.head :] for run in self.runs]

    def remap(self, mapping: Ints) -> None:
        """Slots have new numbers."""
        for run in self.runs:
            run.slots = mapping[run.slots]
            slots = mapping[run.sorted_slots]
            again = np.argsort(slots, kind="stable")
            run.sorted_slots, run.order = slots[again], run.order[again]


def _joined(runs: list[Run], schema: pa.Schema) -> Run:
    rows, slots, order, start = [], [], [], 0
    for run in runs:
        rows.append(run.rows.slice(run.head))
        if run.head:
            alive = run.order >= run.head
            slots.append(run.sorted_slots[alive])
            order.append(run.order[alive] + (start - run.head))
        else:
            slots.append(run.sorted_slots)
            order.append(run.order + start)
        start += len(run)
    # Of sorted pieces, which is what the stable sort (a merge sort) is quick at.
    together = np.concatenate(slots)
    again = np.argsort(together, kind="stable")
    return Run(
        joined(rows, schema),
        np.concatenate([run.arrived[run.head :] for run in runs]),
        np.concatenate([run.slots[run.head :] for run in runs]),
        np.concatenate([run.matched[run.head :] for run in runs]),
        together[again],
        np.concatenate(order)[again],
    )


def _tier(rows: int) -> int:
    """The size class: powers of four."""
    return (max(1, rows).bit_length() - 1) // 2
