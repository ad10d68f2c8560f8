"""What leaves a task: routing to channels, coalescing into frames, flow control.

Why it exists: rows choose channels by the edge's partitioning, marks go to all; small
pieces are gathered until a frame is worth sending or has waited long enough; each channel
has its own buffer and credit, so that a full one stops no sibling.

May import: plan, protocol, state and below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helios_ray.elements import (
    Batch,
    CheckpointBarrier,
    EndOfInput,
    StreamElement,
    Watermark,
    size_in_bytes,
)
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.plan.physical import Edge, Partitioning, PhysicalPlan
from helios_ray.protocol.channels import Frame, OutboundChannel
from helios_ray.state.key_groups import key_groups_of_batch, partition, subtask_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """How channels behave.

    Args:
        frame_bytes: a buffer of this size is sent at once.
        buffer_timeout: seconds that a smaller one may wait; 0: sent with every step.
        window_bytes: bytes per channel that may be out and not yet consumed.
        repeat_timeout: seconds without confirmation after which a frame is sent again.
    """

    frame_bytes: int = 1 << 20
    buffer_timeout: float = 0.005
    window_bytes: int = 8 << 20
    repeat_timeout: float = 5.0


class OutputChannel:
    """One channel's buffer and sending end."""

    def __init__(self, channel: ChannelId, epoch: int, options: ChannelOptions) -> None:
        self.outbound = OutboundChannel(channel, epoch, options.window_bytes)
        self._options = options
        self._buffer: list[StreamElement] = []
        self._size = 0
        self._since = 0.0
        self._urgent = False

    def put(self, element: StreamElement, now: float) -> None:
        """Queue an element."""
        if not self._buffer:
            self._since = now
        elif isinstance(element, Watermark) and isinstance(self._buffer[-1], Watermark):
            self._buffer[-1] = element
            return
        self._buffer.append(element)
        self._size += size_in_bytes(element)
        # A barrier that waits in a buffer delays the whole checkpoint.
        self._urgent |= isinstance(element, CheckpointBarrier | EndOfInput)

    @property
    def full(self) -> bool:
        """A frame waits that has no credit: nothing more should be produced."""
        return self._size >= self._options.frame_bytes and not self.outbound.has_credit

    def flush(self, now: float) -> Frame | None:
        """The next frame, if it is due and there is credit."""
        if not self._buffer or not self.outbound.has_credit:
            return None
        due = self._urgent or self._size >= self._options.frame_bytes
        if not due and now < self._since + self._options.buffer_timeout:
            return None
        frame = self.outbound.send(tuple(self._buffer), self._size, now)
        self._buffer = []
        self._size = 0
        self._urgent = False
        return frame

    def next_flush(self) -> float | None:
        """When a waiting buffer is due, or None."""
        if not self._buffer or not self.outbound.has_credit:
            return None
        return self._since + self._options.buffer_timeout


class Router:
    """Spreads the rows of one edge over its channels."""

    def __init__(self, edge: Edge, max_parallelism: int, subtask: int) -> None:
        self._edge = edge
        self._max_parallelism = max_parallelism
        self._next = subtask

    def route(self, batch: Batch, n: int) -> list[tuple[int, Batch]]:
        """Return ``(channel index, rows)`` pairs.

        Args:
            batch: rows.
            n: number of channels.
        """
        match self._edge.partitioning:
            case Partitioning.HASH if n > 1:
                groups = key_groups_of_batch(batch.data, self._edge.keys, self._max_parallelism)
                parts = partition(batch.data, subtask_of(groups, n, self._max_parallelism), n)
                return [
                    (i, Batch(part, batch.origin))
                    for i, part in enumerate(parts)
                    if part is not None and part.num_rows
                ]
            case Partitioning.BROADCAST:
                return [(i, batch) for i in range(n)]
            case Partitioning.REBALANCE if n > 1:
                target = self._next % n
                self._next += 1
                return [(target, batch)]
        return [(0, batch)]


class OutputGate:
    """Every output of a task.

    Args:
        plan: the job.
        task: whose outputs.
        epoch: frames carry it.
    """

    def __init__(
        self, plan: PhysicalPlan, task: TaskId, epoch: int, options: ChannelOptions
    ) -> None:
        self._options = options
        self._channels: dict[ChannelId, OutputChannel] = {
            c: OutputChannel(c, epoch, options) for c in plan.outputs(task)
        }
        self._routes: dict[
            tuple[str, str | None], list[tuple[Router, Sequence[OutputChannel]]]
        ] = {}
        for edge in plan.edges:
            if edge.upstream == task.operator:
                channels = [o for c, o in self._channels.items() if c.edge == edge.index]
                router = Router(edge, plan.max_parallelism, task.subtask)
                key = (edge.operator, edge.tag)
                self._routes.setdefault(key, []).append((router, channels))

    def emit(self, operator: str, batch: Batch, now: float) -> None:
        """Send rows along every edge that takes this output of this operator."""
        if batch.data.num_rows == 0:
            return
        untagged = Batch(batch.data, batch.origin)
        for router, channels in self._routes.get((operator, batch.tag), ()):
            for index, part in router.route(untagged, len(channels)):
                channels[index].put(part, now)

    def broadcast(self, element: StreamElement, now: float) -> None:
        """Send a mark along every channel."""
        for channel in self._channels.values():
            channel.put(element, now)

    @property
    def full(self) -> bool:
        """Whether some channel cannot take more; the task should pause, not drop."""
        return any(channel.full for channel in self._channels.values())

    def flush(self, now: float) -> list[Frame]:
        """Frames to send now, repeats included."""
        frames: list[Frame] = []
        for channel in self._channels.values():
            frames += channel.outbound.repeats(now, self._options.repeat_timeout)
            frame = channel.flush(now)
            if frame is not None:
                frames.append(frame)
        return frames

    def confirm(self, channel: ChannelId, sequence: int) -> None:
        """A frame has arrived."""
        if channel in self._channels:
            self._channels[channel].outbound.confirm(sequence)

    def grant(self, channel: ChannelId, consumed: int) -> None:
        """A receiver has consumed that many bytes in all."""
        if channel in self._channels:
            self._channels[channel].outbound.grant(consumed)

    def next_wakeup(self) -> float | None:
        """When ``flush`` next has something of itself."""
        times = [
            t
            for c in self._channels.values()
            for t in (c.next_flush(), c.outbound.next_repeat(self._options.repeat_timeout))
            if t is not None
        ]
        return min(times, default=None)
