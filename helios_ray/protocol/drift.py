"""Sources that wait for each other: how far each may go, as the coordinator decides it.

Why it exists: a fast source beside a slow one fills operators with rows that nothing can be
done with yet. Sources of one group say how far they are; the least of those that are neither
idle nor ended, plus what a source may be ahead, is its limit.

Knowledge lives for one attempt: after a recovery every source says anew how far it is, and
keeps to a limit of its own until it is told one. While one of the group has not come to its
first row, limits stay as they are. A message that is lost or late delays and no more: what
sources say is repeated by them, limits by the coordinator, and of two the one with the
greater number counts, so that limits may also go back, when a source wakes up behind.

May import: elements, identifiers, and messages, instructions and settings of this room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP
from helios_ray.identifiers import TaskId
from helios_ray.protocol.instructions import Send
from helios_ray.protocol.messages import LimitSource, SourceProgress
from helios_ray.protocol.settings import JobShape, SourceAlignment

AT_MOST = 20
"""How many messages one task gets or sends in an update interval."""


@dataclass(slots=True)
class _Group:
    name: str
    pace: float
    said: dict[TaskId, SourceProgress | None] = field(default_factory=dict)
    least: int | None = None
    sent: int | None = None
    sent_at: float | None = None
    number: int = 0

    def consider(self) -> None:
        """What has been said may have moved the least of the group."""
        active = [p for p in self.said.values() if p is None or not p.idle]
        if any(p is None or p.watermark == MIN_TIMESTAMP for p in active):
            return
        self.least = min((p.watermark for p in active if p is not None), default=self.least)

    @property
    def due_at(self) -> float | None:
        """When the limits should go out, or None if those that are out hold good."""
        if self.least == self.sent:
            return None
        return 0.0 if self.sent_at is None else self.sent_at + self.pace


class DriftControl:
    """What one attempt knows of the sources of each group.

    Args:
        shape: names the sources that are in a group, and their tasks.
    """

    def __init__(self, shape: JobShape) -> None:
        self._alignment: Mapping[str, SourceAlignment] = shape.alignment
        self._groups: dict[str, _Group] = {}
        for task in shape.tasks:
            rule = self._alignment.get(task.operator)
            if rule is not None:
                pace = rule.update_interval / AT_MOST
                group = self._groups.setdefault(rule.group, _Group(rule.group, pace))
                group.pace = min(group.pace, pace)
                group.said[task] = None

    def on_progress(self, message: SourceProgress) -> None:
        """A source says how far it is."""
        group = self._group_of(message.task)
        if group is None:
            return
        before = group.said[message.task]
        if before is None or message.number > before.number:
            group.said[message.task] = message
            group.consider()

    def on_finished(self, task: TaskId) -> None:
        """A source has ended: it holds nobody back."""
        group = self._group_of(task)
        if group is not None:
            del group.said[task]
            group.consider()

    def _group_of(self, task: TaskId) -> _Group | None:
        rule = self._alignment.get(task.operator)
        group = None if rule is None else self._groups[rule.group]
        return group if group is not None and task in group.said else None

    def due(self, epoch: int, now: float, *, again: bool = False) -> list[Send]:
        """The limits to send now.

        Args:
            epoch: of the attempt.
            now: seconds.
            again: also those that are out; they may have been lost.
        """
        sends: list[Send] = []
        for group in self._groups.values():
            due_at = group.due_at
            if group.least is None or not (again or (due_at is not None and due_at <= now)):
                continue
            group.number += 1
            group.sent, group.sent_at = group.least, now
            for task in group.said:
                limit = min(MAX_TIMESTAMP, group.least + self._alignment[task.operator].max_drift)
                message = LimitSource(epoch=epoch, number=group.number, limit=limit)
                sends.append(Send(task, message))
        return sends

    def wakeups(self) -> list[float]:
        """Times at which ``due`` has something to send."""
        return [at for g in self._groups.values() if (at := g.due_at) is not None]
