"""Both ends of a channel: sequence numbers, duplicates, gaps, credit, repeats.

Why it exists: an actor call may run twice, run although it reported a failure, or not run
at all. Numbering frames per channel and per epoch turns all of that into three cases: new,
seen before, or a gap. A gap is a failure of the job's attempt, never something to skip.

Flow control is by bytes and per channel: the sender may have ``window`` bytes out that the
receiver has not consumed. A full channel stops nothing but itself.

May import: elements, errors, identifiers.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass

from helios_ray.elements import StreamElement
from helios_ray.errors import ChannelGapError
from helios_ray.identifiers import ChannelId


@dataclass(frozen=True, slots=True)
class Frame:
    """Elements on their way over one channel.

    Args:
        epoch: the attempt that sent it.
        channel: which channel.
        sequence: 0, 1, 2, ... per channel and epoch.
        elements: in stream order.
        size: bytes, for flow control.
    """

    epoch: int
    channel: ChannelId
    sequence: int
    elements: tuple[StreamElement, ...]
    size: int


class Verdict(enum.Enum):
    """What to do with a frame that arrived."""

    ACCEPT = "accept"
    DUPLICATE = "duplicate"


class InboundChannel:
    """The receiving end.

    Example:
        >>> from helios_ray.identifiers import TaskId
        >>> channel = InboundChannel(ChannelId(0, TaskId("a", 0), TaskId("b", 0)))
        >>> channel.accept(0), channel.accept(0)
        (<Verdict.ACCEPT: 'accept'>, <Verdict.DUPLICATE: 'duplicate'>)
    """

    def __init__(self, channel: ChannelId) -> None:
        self.channel = channel
        self.expected = 0
        self.consumed = 0
        self._announced = 0

    def accept(self, sequence: int) -> Verdict:
        """Judge the sequence number of a frame of the current epoch.

        Raises:
            ChannelGapError: an earlier frame never came.
        """
        if sequence < self.expected:
            return Verdict.DUPLICATE
        if sequence > self.expected:
            raise ChannelGapError(
                f"channel {self.channel}: expected frame {self.expected}, got {sequence}: frames "
                f"in between are lost. The job goes back to its last checkpoint."
            )
        self.expected += 1
        return Verdict.ACCEPT

    def consume(self, size: int) -> None:
        """Bytes of a frame have been processed."""
        self.consumed += size

    def credit_due(self, threshold: int) -> int | None:
        """Total bytes consumed, if the sender should hear of it now."""
        if self.consumed - self._announced < threshold:
            return None
        self._announced = self.consumed
        return self.consumed


class OutboundChannel:
    """The sending end: numbers frames, counts credit, keeps what may have to be repeated."""

    def __init__(self, channel: ChannelId, epoch: int, window: int) -> None:
        self.channel = channel
        self.epoch = epoch
        self.window = window
        self.next_sequence = 0
        self.sent = 0
        self.granted = 0
        self._unconfirmed: OrderedDict[int, tuple[Frame, float]] = OrderedDict()

    @property
    def has_credit(self) -> bool:
        """Whether another frame may go out. One may always go when none is out."""
        return self.sent - self.granted < self.window

    def send(self, elements: tuple[StreamElement, ...], size: int, now: float) -> Frame:
        """Number the next frame and keep it until the receiver confirms that it arrived."""
        frame = Frame(self.epoch, self.channel, self.next_sequence, elements, size)
        self.next_sequence += 1
        self.sent += size
        self._unconfirmed[frame.sequence] = (frame, now)
        return frame

    def confirm(self, sequence: int) -> None:
        """The receiver has the frame; it need not be repeated."""
        self._unconfirmed.pop(sequence, None)

    def grant(self, consumed: int) -> None:
        """The receiver has consumed ``consumed`` bytes in all. Late news is harmless."""
        self.granted = max(self.granted, consumed)

    def repeats(self, now: float, timeout: float) -> list[Frame]:
        """Frames unconfirmed for ``timeout`` seconds, oldest first, to be sent again.

        All from the first overdue one on: the receiver takes them in order or not at all.
        """
        if not self._unconfirmed:
            return []
        first = next(iter(self._unconfirmed.values()))
        if now - first[1] < timeout:
            return []
        frames = [frame for frame, _ in self._unconfirmed.values()]
        for frame in frames:
            self._unconfirmed[frame.sequence] = (frame, now)
        return frames

    def next_repeat(self, timeout: float) -> float | None:
        """When ``repeats`` will next have something, or None."""
        if not self._unconfirmed:
            return None
        return next(iter(self._unconfirmed.values()))[1] + timeout
