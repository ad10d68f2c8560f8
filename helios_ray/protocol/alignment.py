"""Barrier alignment: when has a checkpoint's barrier arrived on every input?

Why it exists: rule 9 of the protocol, in one place.

- A task snapshots when the barrier has arrived on every unfinished input.
- Channels that are ahead are blocked; the task is not.
- A closed input lowers the count.
- Stale ids are ignored; a newer id supersedes an older one.

May import: identifiers.

Source: Carbone et al., "Lightweight Asynchronous Snapshots for Distributed Dataflows", 2015.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable


class BarrierAligner:
    """Counts barriers over a task's input channels.

    Each method returns the id of the checkpoint that became complete by the call, or None.

    Args:
        channels: every input channel, whether it has ended or not.

    Example:
        >>> aligner = BarrierAligner(["a", "b"])
        >>> aligner.on_barrier("a", 1), sorted(aligner.blocked)
        (None, ['a'])
        >>> aligner.on_barrier("b", 1), sorted(aligner.blocked)
        (1, [])
    """

    def __init__(self, channels: Iterable[Hashable]) -> None:
        self._channels = frozenset(channels)
        self._closed: set[Hashable] = set()
        self._blocked: set[Hashable] = set()
        self._aborted: set[int] = set()
        self._current: int | None = None
        self._last = 0

    @property
    def blocked(self) -> frozenset[Hashable]:
        """Channels that are ahead: nothing may be read from them."""
        return frozenset(self._blocked)

    @property
    def aligning(self) -> int | None:
        """The checkpoint whose barriers are being collected."""
        return self._current

    @property
    def last(self) -> int:
        """The newest checkpoint that completed here or was given up."""
        return self._last

    @property
    def all_closed(self) -> bool:
        """Every input has ended."""
        return self._closed == self._channels

    def is_blocked(self, channel: Hashable) -> bool:
        """Whether a channel is ahead of the others."""
        return channel in self._blocked

    def on_barrier(self, channel: Hashable, checkpoint_id: int) -> int | None:
        """A barrier arrived."""
        if checkpoint_id <= self._last or checkpoint_id in self._aborted:
            return None
        if self._current is not None and checkpoint_id < self._current:
            return None
        if self._current is None or checkpoint_id > self._current:
            self._blocked.clear()
            self._current = checkpoint_id
        self._blocked.add(channel)
        return self._completed()

    def on_closed(self, channel: Hashable) -> int | None:
        """An input has ended; it will bring no more barriers."""
        self._closed.add(channel)
        self._blocked.discard(channel)
        return self._completed()

    def on_aborted(self, checkpoint_id: int) -> None:
        """The coordinator gave a checkpoint up; stop waiting for its barriers."""
        if checkpoint_id <= self._last:
            return
        self._aborted.add(checkpoint_id)
        if self._current == checkpoint_id:
            self._current = None
            self._blocked.clear()

    def on_direct_trigger(self, checkpoint_id: int) -> int | None:
        """The coordinator asked this task itself: a source, or a task whose inputs have ended."""
        if checkpoint_id <= self._last or checkpoint_id in self._aborted or not self.all_closed:
            return None
        self._finish(checkpoint_id)
        return checkpoint_id

    def _completed(self) -> int | None:
        if self._current is None or self._blocked | self._closed != self._channels:
            return None
        completed = self._current
        self._finish(completed)
        return completed

    def _finish(self, checkpoint_id: int) -> None:
        self._last = checkpoint_id
        self._current = None
        self._blocked.clear()
        self._aborted = {a for a in self._aborted if a > checkpoint_id}
