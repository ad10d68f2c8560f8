"""The life of checkpoints in a running job: when to trigger, what is pending, ids.

Why it exists: rule 7 of the protocol (ids only grow; interval, min_pause, max_concurrent,
timeout and tolerable failures act as configured), kept apart from the coordinator so that
each decision can be read and tested alone.

May import: identifiers, records.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from helios_ray.identifiers import TaskId
from helios_ray.records import TaskSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRules:
    """The protocol's part of the checkpoint configuration; durations in seconds.

    Args:
        interval: from one periodic trigger to the next; None: only on request.
        min_pause: from one completion to the next trigger.
        max_concurrent: checkpoints under way at once.
        timeout: from trigger until the manifest must be durable.
        tolerable_failures: failed checkpoints in a row that do not fail the job's attempt.
        retain_count: complete checkpoints kept.
    """

    interval: float | None = 60.0
    min_pause: float = 0.0
    max_concurrent: int = 1
    timeout: float = 300.0
    tolerable_failures: int = 0
    retain_count: int = 3

    @property
    def headroom(self) -> int:
        """How many ids past the last durable checkpoint one epoch may use.

        The next epoch starts beyond, so an id is never used twice though no record of it may
        exist. Enough for all that can be under way or fail before the attempt is given up:
        while the last complete one was under way, up to ``max_concurrent - 1`` older ones may
        have completed, and each time the count of failures in a row began anew.
        """
        return (self.tolerable_failures + 1) * (self.max_concurrent + 1)


class PendingCheckpoint:
    """A checkpoint that waits for acknowledgements, then for its manifest to be durable."""

    def __init__(
        self,
        checkpoint_id: int,
        tasks: Iterable[TaskId],
        started: float,
        *,
        final: bool = False,
        stop: bool = False,
    ) -> None:
        self.checkpoint_id = checkpoint_id
        self.started = started
        self.final = final
        self.stop = stop
        self.waiting = set(tasks)
        self.snapshots: dict[TaskId, TaskSnapshot] = {}
        self.duration = 0.0

    def acknowledge(self, snapshot: TaskSnapshot, now: float) -> bool:
        """A task's part arrived; True if it was the last. A repeated one changes nothing."""
        if snapshot.task not in self.waiting:
            return False
        self.waiting.discard(snapshot.task)
        self.snapshots[snapshot.task] = snapshot
        self.duration = now - self.started
        return not self.waiting


class CheckpointScheduler:
    """Decides when the next checkpoint may start, and hands out ids.

    Args:
        rules: the configuration.
        first_id: the first id of this epoch.
        now: when the epoch began to process; the first interval counts from here.
    """

    def __init__(self, rules: CheckpointRules, first_id: int, now: float) -> None:
        self._rules = rules
        self._next_id = first_id
        self._last_confirmed = first_id - 1
        self._unconfirmed: set[int] = set()
        self._last_trigger = now
        self._last_end = now - rules.min_pause
        self._requested = False
        self.pending: dict[int, PendingCheckpoint] = {}
        self.failures_in_a_row = 0

    @property
    def next_id(self) -> int:
        """The id that the next checkpoint will have."""
        return self._next_id

    @property
    def _spent(self) -> bool:
        """No id is left that the epoch's record allows.

        Counted from the last checkpoint that a successor is sure to see: one after whose
        manifest was durable this epoch was still the newest.
        """
        return self._next_id > self._last_confirmed + self._rules.headroom

    def request(self) -> int:
        """Somebody asked for a checkpoint now; return the id it will have."""
        self._requested = True
        return self._next_id

    def due(self, now: float, *, ignore_pause: bool = False) -> bool:
        """Whether a checkpoint should start now."""
        if len(self.pending) >= self._rules.max_concurrent or self._spent:
            return False
        if ignore_pause:
            return True
        if self._requested:
            return True
        if self._rules.interval is None or now - self._last_end < self._rules.min_pause:
            return False
        return now - self._last_trigger >= self._rules.interval

    def next_due(self) -> float | None:
        """When ``due`` can next be true of itself, or None."""
        if self._rules.interval is None or len(self.pending) >= self._rules.max_concurrent:
            return None
        if self._spent:
            return None
        return max(
            self._last_trigger + self._rules.interval, self._last_end + self._rules.min_pause
        )

    def begin(
        self, tasks: Iterable[TaskId], now: float, *, final: bool = False, stop: bool = False
    ) -> PendingCheckpoint:
        """Start a checkpoint."""
        pending = PendingCheckpoint(self._next_id, tasks, now, final=final, stop=stop)
        self._next_id += 1
        self._last_trigger = now
        self._requested = False
        self.pending[pending.checkpoint_id] = pending
        return pending

    def completed(self, checkpoint_id: int, now: float) -> list[int]:
        """A manifest is durable. Return older pending ids that it makes pointless."""
        self.pending.pop(checkpoint_id, None)
        self._unconfirmed.add(checkpoint_id)
        self._last_end = now
        self.failures_in_a_row = 0
        subsumed = sorted(n for n in self.pending if n < checkpoint_id)
        for n in subsumed:
            del self.pending[n]
        return subsumed

    def confirmed(self, checkpoint_id: int) -> None:
        """This epoch was still the newest when the manifest was durable."""
        self._last_confirmed = max(checkpoint_id, self._last_confirmed)
        self._unconfirmed.discard(checkpoint_id)

    def failed(self, checkpoint_id: int, now: float) -> bool:
        """A checkpoint failed; True if that was one too many: the attempt is over."""
        if self.pending.pop(checkpoint_id, None) is None:
            return False
        self._last_end = now
        self.failures_in_a_row += 1
        if self._spent and not self.pending and not self._unconfirmed:
            return True
        return self.failures_in_a_row > self._rules.tolerable_failures

    def overdue(self, now: float) -> list[int]:
        """Pending checkpoints past their timeout."""
        timeout = self._rules.timeout
        return [n for n, p in self.pending.items() if now - p.started >= timeout]
