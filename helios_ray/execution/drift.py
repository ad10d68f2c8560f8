"""The brake of a source that may not run ahead of its group, and the plan's groups.

Why it exists: the coordinator says how far the sources of a group may go
(:mod:`helios_ray.protocol.drift`); this keeps each split to it, and says in turn how far the
subtask is. A brake lives for one epoch, as the coordinator's knowledge does.

Until the coordinator has spoken, splits go no further than ``max_drift`` beyond the first
watermark that any of them had; after a restore, no further than they stood: a source that is
restarted again and again would get away otherwise.

May import: plan, watermarks, elements, and the messages and settings of protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.protocol.drift import AT_MOST
from helios_ray.protocol.settings import SourceAlignment
from helios_ray.watermarks import WatermarkAlignment

Report: TypeAlias = Callable[[int, int, bool], None]
"""Takes the number of a report, the event time that the subtask has come to (µs;
``MIN_TIMESTAMP`` if that cannot be said), and whether it is idle."""


class Brake:
    """Which splits may be read, and when to say how far they are.

    Args:
        alignment: of the source's strategy.
    """

    def __init__(self, alignment: WatermarkAlignment) -> None:
        self._alignment = alignment
        self._limit: int | None = None
        self._number = 0
        self._reports = 0
        self._said: tuple[int, bool] | None = None
        self._said_at = 0.0
        self._wait_told = False
        self._urgent = False
        self._report: Report | None = None

    def report_to(self, report: Report) -> None:
        """Say from now on how far the subtask is."""
        self._report = report

    def resume(self) -> None:
        """Splits had a watermark at the checkpoint: those wait until the coordinator speaks."""
        self._limit = MIN_TIMESTAMP

    def limit(self, number: int, limit: int) -> bool:
        """The coordinator sets a limit (µs); False if it has said something newer since."""
        if number <= self._number:
            return False
        self._number, self._limit = number, limit
        return True

    def holds(self, watermark: int) -> bool:
        """Whether a split with that watermark must wait."""
        if watermark == MIN_TIMESTAMP:
            return False
        if self._limit is None:
            self._limit = min(MAX_TIMESTAMP, watermark + self._alignment.max_drift)
        return watermark > self._limit

    def look(self, now: float, progress: int, *, idle: bool, waits: bool) -> None:
        """Say how far the subtask is, if it is time to.

        Args:
            now: seconds.
            progress: the least watermark of the splits that are read and not idle.
            idle: there is none.
            waits: one of them must wait.
        """
        if self._report is None or not self._due(now, progress, idle=idle, waits=waits):
            return
        self._reports += 1
        self._said, self._said_at = (progress, idle), now
        self._wait_told, self._urgent = waits, False
        self._report(self._reports, progress, idle)

    def _due(self, now: float, progress: int, *, idle: bool, waits: bool) -> bool:
        if self._said is None or self._said[1] is not idle:
            return True
        since = now - self._said_at
        if since >= self._interval:
            return True
        moved = progress - self._said[0]
        self._urgent = moved < 0 or moved >= max(1, self._alignment.max_drift // 2)
        self._urgent |= waits and not self._wait_told
        return self._urgent and since >= self._interval / AT_MOST

    @property
    def _interval(self) -> float:
        return self._alignment.update_interval / 1_000_000

    @property
    def next_report(self) -> float | None:
        """When ``look`` will have something to say, or None if nobody listens."""
        if self._report is None:
            return None
        return self._said_at + self._interval / (AT_MOST if self._urgent else 1)


def alignment_of(plan: PhysicalPlan) -> dict[str, SourceAlignment]:
    """Which sources wait for each other, by the uid of their tasks; for the coordinator."""
    found = {}
    for chain in plan.chains:
        strategy = None if chain.source is None else chain.source.watermarks
        if strategy is not None and strategy.alignment is not None:
            a = strategy.alignment
            found[chain.uid] = SourceAlignment(
                group=a.group, max_drift=a.max_drift, update_interval=a.update_interval / 1_000_000
            )
    return found
