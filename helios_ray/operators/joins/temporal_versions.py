"""The versions of each key, and which of them was in force when.

Why it exists: of the versions that event time has passed only the newest of each key can still
be asked for; those to come wait in time order. A watermark moves versions from the second kind
to the first, and each is looked at once, whatever the number of keys.

May import: operators, Arrow, numpy.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.joins.side_rows import LatestRows, last_rows
from helios_ray.operators.segments import Segments
from helios_ray.operators.window_aggregates.groups import Mask
from helios_ray.operators.windows.runs import Run, RunStore, concat


def by_time(run: Run) -> Run:
    """The rows of a run in time order, those of equal times in order of arrival."""
    times = run.units
    if len(times) < 2 or bool((times[1:] >= times[:-1]).all()):
        return run
    return run.take(np.argsort(times, kind="stable"))


class Versions:
    """Versions in force and to come.

    Args:
        schema: of a version's row.
        tolerance: microseconds that a version may be older than what asks for it, or None.

    Example:
        >>> versions = Versions(pa.schema([("v", pa.string())]))
        >>> rows = pa.record_batch({"v": ["old", "new"]})
        >>> versions.add(np.array([0, 0]), np.array([10, 20]), rows)
        >>> found = versions.advance(25, np.array([0, 0]), np.array([15, 20]))
        >>> batch, places = versions.kept.fetch(found)
        >>> versions.settle()
        >>> batch.take(pa.array(places))["v"].to_pylist(), len(versions.kept)
        (['old', 'new'], 1)
    """

    def __init__(self, schema: pa.Schema, tolerance: int | None = None) -> None:
        self.schema = schema
        self.tolerance = tolerance
        self.future = RunStore(by_time)
        self.kept = LatestRows(schema)
        self._since = np.full(1024, MIN_TIMESTAMP)
        self._due: tuple[Ints, Ints, Ints] | None = None

    def add(self, slots: Ints, times: Ints, rows: pa.RecordBatch) -> None:
        """Versions that the watermark has not reached."""
        self.future.add(by_time(Run(times, slots, rows.columns)))

    def answering(self, slots: Ints, times: Ints, marks: Ints) -> Mask:
        """Which versions that the watermark has passed, at least one, can still be asked for:
        those that are not older than the one in force, be it in the state or of their batch.

        Args:
            marks: the watermark that each was late for.
        """
        segments = Segments(slots)
        newest, _ = segments.running(np.maximum, self._time_of(segments.slots), times)
        good: Mask = newest == times
        if self.tolerance is not None:
            good &= times > marks - self.tolerance
        return good

    def keep(self, slots: Ints, times: Ints, rows: pa.RecordBatch) -> None:
        """Versions that take the place of those in force; of a slot the last one does."""
        last = last_rows(slots)
        if len(last) < len(slots):
            slots, times, rows = slots[last], times[last], rows.take(pa.array(last))
        self._set_times(slots, times)
        self.kept.put(slots, rows)

    def advance(self, watermark: int, slots: Ints, times: Ints) -> Ints:
        """Event time moves on; which version each asking row is answered with.

        Args:
            slots, times: of the rows that ask, in time order, none after ``watermark``.

        Returns:
            Numbers of rows of ``kept``, -1 for none. They hold until :meth:`settle`, which must
            be called.
        """
        runs = self.future.between(MIN_TIMESTAMP, watermark)
        if not runs:
            return self._in_force(slots, times)
        due = by_time(concat(runs))
        self.future.drop_through(watermark)
        if len(slots) == 0:
            due = due.take(last_rows(due.slots))
        rows = pa.RecordBatch.from_arrays(due.columns, schema=self.schema)
        first = self.kept.append(rows)
        self._due = (due.slots, due.units, np.arange(first, first + len(due)))
        found = self._in_force(slots, times)
        if len(slots):
            newer = _as_of(due.slots, due.units, slots, times)
            asks = np.flatnonzero(newer >= 0)
            newer = newer[asks]
            if self.tolerance is not None:
                young = times[asks] - due.units[newer] <= self.tolerance
                found[asks] = np.where(young, first + newer, -1)
            else:
                found[asks] = first + newer
        return found

    def settle(self) -> None:
        """The versions that became due are in force now."""
        if self._due is None:
            return
        slots, times, numbers = self._due
        self._due = None
        last = last_rows(slots)
        self._set_times(slots[last], times[last])
        self.kept.point(slots[last], numbers[last])

    def _in_force(self, slots: Ints, times: Ints) -> Ints:
        found = self.kept.of(slots)
        if self.tolerance is not None:
            old = times - np.maximum(self._time_of(slots), -(2**62)) > self.tolerance
            found = np.where(old, -1, found)
        return found

    def _time_of(self, slots: Ints) -> Ints:
        self._room(slots)
        found: Ints = self._since[slots]
        return found

    def _set_times(self, slots: Ints, times: Ints) -> None:
        self._room(slots)
        self._since[slots] = times

    def _room(self, slots: Ints) -> None:
        size = int(slots.max(initial=-1)) + 1
        if size > len(self._since):
            grown = np.full(max(size, 2 * len(self._since)), MIN_TIMESTAMP)
            grown[: len(self._since)] = self._since
            self._since = grown

    # -------------------------------------------------------------------- keys and state

    def live(self, watermark: int) -> Ints:
        """The slots with a version in force that can still be asked for."""
        slots = self.kept.slots()
        if self.tolerance is None:
            return slots
        alive: Ints = slots[self._since[slots] > max(watermark - self.tolerance, MIN_TIMESTAMP)]
        return alive

    def in_force(self) -> tuple[Ints, pa.RecordBatch]:
        """Slots and rows of the versions in force."""
        return self.kept.slots(), self.kept.rows()

    def remap(self, mapping: Ints) -> None:
        """Slots have new numbers."""
        slots = self.kept.slots()
        times = self._since[slots]
        self.future.remap(mapping)
        self.kept.remap(mapping)
        used = mapping[slots] >= 0
        self._since = np.full(1024, MIN_TIMESTAMP)
        self._set_times(mapping[slots][used], times[used])


def _as_of(versions: Ints, since: Ints, slots: Ints, times: Ints) -> Ints:
    """For each asking row the last version of its slot that is not younger, -1 for none.

    Args:
        versions, since: slots and times of the versions, in time order.
        slots, times: of the rows that ask, in time order.

    Example:
        >>> _as_of(np.array([0, 1]), np.array([5, 6]), np.array([0, 0, 1]), np.array([4, 5, 9]))
        array([-1,  0,  1])
    """
    count = len(versions)
    # Both are in order, which the stable sort (a merge sort) makes use of; versions come
    # first, so that one of the very instant counts.
    order = np.argsort(np.concatenate((since, times)), kind="stable")
    every = np.concatenate((versions, slots))[order]
    if int(every.max()) < 65_536:
        every = every.astype(np.uint16)  # whose stable sort is a radix sort
    grouped = np.argsort(every, kind="stable")
    order, every = order[grouped], every[grouped]
    places = np.arange(len(order))
    latest = np.maximum.accumulate(np.where(order < count, places, -1))
    # The latest version may be another slot's; then there is none.
    own = (latest >= 0) & (every[latest] == every)
    asking = order >= count
    found = np.full(len(slots), -1, np.int64)
    answers = np.where(own, order[latest], -1)
    found[order[asking] - count] = answers[asking]
    return found
