"""How far event time has come, for each key group; when early results are due.

Why it exists: whether a window has spoken, and whether a row is late, is a question to the
watermark. A subtask has one; but after rescaling it may own key groups whose former owner had
come further. What was emitted for those stays emitted, and what was late stays late: each
group keeps its watermark until the subtask's own has caught up.

The task announces the watermark of its checkpoint before any row comes, so that of the state may
look redundant. It is, where the number of subtasks is the same and no lateness is allowed: the
windows that had spoken are gone from the state. It is not
- after rescaling: the task announces the least of all former owners' watermarks;
- with an allowed lateness: accumulating windows that have spoken are still there, and would say
  the same again when the announced watermark passes them. Who only looks at the last result of
  each window does not see that.

    watermark   KEYED   key_group int32, watermark int64 (µs)

May import: elements, operators.base, operators.window_aggregates, windowing, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.operators.base import OperatorContext, StateKind, StateTable
from helios_ray.operators.window_aggregates.groups import Ints
from helios_ray.windowing import Trigger, microseconds

WATERMARK = "watermark"
_SCHEMA = pa.schema([("key_group", pa.int32()), ("watermark", pa.int64())])


class EventClock:
    """The watermark of a subtask and of the key groups that are ahead of it."""

    def __init__(self) -> None:
        self.watermark = MIN_TIMESTAMP
        self.ahead: Ints | None = None
        """Watermark by key group, where some group is ahead; else None."""
        self._stored: StateTable | None = None

    def advance(self, timestamp: int) -> bool:
        """Take note of a watermark; returns whether time has moved."""
        if timestamp <= self.watermark:
            return False
        self.watermark = timestamp
        self._stored = None
        if self.ahead is not None and int(self.ahead.max()) <= timestamp:
            self.ahead = None
        return True

    def of(self, groups: Ints) -> Ints | None:
        """The watermark of each key group where those differ, else None."""
        if self.ahead is None:
            return None
        found: Ints = np.maximum(self.ahead[groups], self.watermark)
        return found

    def snapshot(self, context: OperatorContext) -> Mapping[str, StateTable]:
        """One row a key group; made once per watermark."""
        if self.watermark == MIN_TIMESTAMP and self.ahead is None:
            return {}
        if self._stored is None:
            own = np.arange(context.key_groups.start, context.key_groups.stop)
            marks = self.of(own)
            if marks is None:
                marks = np.full(len(own), self.watermark)
            table = pa.table([own.astype(np.int32), marks], schema=_SCHEMA)
            self._stored = StateTable(StateKind.KEYED, table)
        return {WATERMARK: self._stored}

    def restore(self, state: Mapping[str, StateTable], context: OperatorContext) -> None:
        """Take up the watermarks of the groups of this subtask."""
        stored = state.get(WATERMARK)
        if stored is None or stored.table.num_rows == 0:
            return
        groups = stored.table.column("key_group").to_numpy()
        marks = np.full(context.max_parallelism, MIN_TIMESTAMP)
        marks[groups] = stored.table.column("watermark").to_numpy()
        own = marks[context.key_groups.start : context.key_groups.stop]
        self.watermark = int(own.min())
        if int(own.max()) > self.watermark:
            self.ahead = marks


class EarlyTimer:
    """When the windows that wait for ``Trigger.early(every=...)`` are to speak.

    It is counted from the first look at the clock since ``open``: not part of the snapshot.

    Args:
        trigger: of the windows; one without ``every`` is never due.

    Example:
        >>> from datetime import timedelta
        >>> timer = EarlyTimer(Trigger.early(every=timedelta(microseconds=10)))
        >>> timer.next(waiting=True), timer.due(100), timer.next(waiting=True), timer.due(110)
        (0, False, 110, True)
    """

    def __init__(self, trigger: Trigger) -> None:
        every = trigger.every
        self._every = None if every is None else microseconds("every", every)
        self._due: int | None = None

    def next(self, *, waiting: bool) -> int | None:
        """Processing time (µs) to be asked at next, or None.

        Args:
            waiting: whether any window has rows that it has not spoken of.
        """
        if self._every is None or not waiting:
            return None
        return 0 if self._due is None else self._due

    def due(self, now: int) -> bool:
        """Whether it is time to speak; if so, the next time is set."""
        if self._every is None or (self._due is not None and now < self._due):
            return False
        first = self._due is None
        self._due = now + self._every
        return not first
