"""Timers of keys, in the order in which they fire: by timestamp, then by registration.

Why it exists: "do something for this key at that time" is half of what process functions are
for. A key has at most one timer per timestamp; registering it again changes nothing.

May import: state, numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

import numpy as np

from helios_ray.state.index import Slots

_SPARE = 64


class TimerQueue:
    """The timers of one time domain.

    Timers of one timestamp are together: a bare slot while there is one, else a dict used as
    an ordered set. The heap holds timestamps; those that lost their timers stay behind until
    they come up or outnumber the others.

    Example:
        >>> timers = TimerQueue()
        >>> [timers.register(slot, at) for slot, at in [(1, 30), (2, 10), (1, 10), (2, 10)]]
        [True, True, True, False]
        >>> timers.delete(1, 30)
        True
        >>> list(timers.due(20))
        [(10, 2), (10, 1)]
    """

    __slots__ = ("_at", "_heap", "_size")

    def __init__(self) -> None:
        self._at: dict[int, int | dict[int, None]] = {}
        self._heap: list[int] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def register(self, slot: int, timestamp: int) -> bool:
        """Set a timer; returns whether there was none yet."""
        there = self._at.get(timestamp)
        if there is None:
            self._at[timestamp] = slot
            heappush(self._heap, timestamp)
        elif isinstance(there, dict):
            if slot in there:
                return False
            there[slot] = None
        elif there == slot:
            return False
        else:
            self._at[timestamp] = {there: None, slot: None}
        self._size += 1
        return True

    def delete(self, slot: int, timestamp: int) -> bool:
        """Remove a timer; returns whether there was one."""
        there = self._at.get(timestamp)
        if isinstance(there, dict):
            if slot not in there:
                return False
            del there[slot]
            if not there:
                del self._at[timestamp]
        elif there == slot:
            del self._at[timestamp]
        else:
            return False
        self._size -= 1
        if len(self._heap) > 2 * len(self._at) + _SPARE:
            self._heap = list(self._at)
            heapify(self._heap)
        return True

    def next(self) -> int | None:
        """The earliest timestamp that has a timer."""
        heap = self._heap
        while heap:
            if heap[0] in self._at:
                return heap[0]
            heappop(heap)
        return None

    def due(self, limit: int) -> Iterator[tuple[int, int]]:
        """Take out timers up to ``limit`` one by one, as (timestamp, slot).

        What is registered or deleted meanwhile counts: the earliest is always next.
        """
        while (timestamp := self.next()) is not None and timestamp <= limit:
            for slot in self.slots_at(timestamp):
                if self.delete(slot, timestamp):
                    yield timestamp, slot
                    if (first := self.next()) is not None and first < timestamp:
                        break

    def pending(self, limit: int) -> list[tuple[int, int]]:
        """The timers up to ``limit`` in the order of firing, left where they are."""
        times = []
        while (timestamp := self.next()) is not None and timestamp <= limit:
            times.append(heappop(self._heap))
            while self._heap and self._heap[0] == timestamp:
                heappop(self._heap)
        for timestamp in times:
            heappush(self._heap, timestamp)
        return [(t, slot) for t in times for slot in self.slots_at(t)]

    def slots_at(self, timestamp: int) -> list[int]:
        """The slots that have a timer at ``timestamp``, in order of registration."""
        there = self._at.get(timestamp)
        if there is None:
            return []
        return list(there) if isinstance(there, dict) else [there]

    def columns(self) -> tuple[Slots, Slots]:
        """All timers as timestamps and slots, in the order of firing."""
        times: list[int] = []
        slots: list[int] = []
        for timestamp in sorted(self._at):
            there = self._at[timestamp]
            if isinstance(there, dict):
                slots.extend(there)
                times.extend([timestamp] * len(there))
            else:
                slots.append(there)
                times.append(timestamp)
        return np.array(times, np.int64), np.array(slots, np.int64)

    def remap(self, places: Slots) -> None:
        """Slots were renumbered: ``places[old]`` is the new one."""
        times, slots = self.columns()
        self._at, self._heap, self._size = {}, [], 0
        for timestamp, slot in zip(times.tolist(), places[slots].tolist(), strict=True):
            self.register(slot, timestamp)
