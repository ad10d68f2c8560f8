"""Watermark merge: the event time of a task with many inputs (rule 12).

Why it exists: the minimum over the active inputs, never going back, not held back by an
idle or ended input, and not pulled back by an idle input that wakes up behind.

May import: elements.

Source: Akidau et al., "Watermarks in Stream Processing Systems", VLDB 2021.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP


class WatermarkMerger:
    """Merges the watermarks of input channels.

    Each method returns the new merged watermark if it moved, else None.

    Args:
        channels: every input channel.
        initial: the merged watermark before anything arrives; that of the snapshot on restore.

    Example:
        >>> merger = WatermarkMerger(["a", "b"])
        >>> merger.on_watermark("a", 10), merger.on_watermark("b", 7), merger.on_idle("b")
        (None, 7, 10)
    """

    def __init__(self, channels: Iterable[Hashable], initial: int = MIN_TIMESTAMP) -> None:
        self._by_channel = dict.fromkeys(channels, MIN_TIMESTAMP)
        self._inactive: set[Hashable] = set()
        self._closed: set[Hashable] = set()
        self.current = initial

    @property
    def all_idle(self) -> bool:
        """Every open input is idle, and at least one is open."""
        open_channels = self._by_channel.keys() - self._closed
        return bool(open_channels) and open_channels <= self._inactive

    def on_watermark(self, channel: Hashable, timestamp: int) -> int | None:
        """An input's event time moved on. An idle input rejoins once it has caught up."""
        if timestamp > self._by_channel[channel]:
            self._by_channel[channel] = timestamp
        if channel in self._inactive and self._by_channel[channel] >= self.current:
            self._inactive.discard(channel)
        return self._merge()

    def on_idle(self, channel: Hashable) -> int | None:
        """An input went silent."""
        self._inactive.add(channel)
        return self._merge()

    def on_closed(self, channel: Hashable) -> int | None:
        """An input ended. When the last one does, time reaches its end."""
        self._closed.add(channel)
        if len(self._closed) == len(self._by_channel):
            return self._advance(MAX_TIMESTAMP)
        return self._merge()

    def _merge(self) -> int | None:
        active = [
            timestamp
            for channel, timestamp in self._by_channel.items()
            if channel not in self._inactive and channel not in self._closed
        ]
        if active:
            return self._advance(min(active))
        # None is active: go as far as any had come, an ended one included, and no further.
        # The end of one input says nothing about the time of an idle one.
        return self._advance(max(self._by_channel.values(), default=MIN_TIMESTAMP))

    def _advance(self, timestamp: int) -> int | None:
        if timestamp <= self.current:
            return None
        self.current = timestamp
        return timestamp
