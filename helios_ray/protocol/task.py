"""The task core: what one task does with what arrives, as a pure state machine.

Why it exists: epoch fencing, sequence numbers, barrier alignment, watermark merge, end of
input and the order of all these are one decision procedure, tested as tables of events and
instructions. The core never touches rows, operators, clocks or actors: whoever drives it
(``execution.task``) carries out the instructions in order.

    reset ──> READY ──start──> RUNNING ──all inputs ended──> DRAINING ──nothing held──> FINISHED
                                  │                              └────────┬────────────────┘
                       barriers, watermarks, rows              direct checkpoints only

What the operators hold is said with ``hold``: rows of a blocked input wait in their channel,
while marks that no such rows precede go on; and a task whose operators wait for time or for
answers when its last input ends drains first, so that checkpoints go on meanwhile.

A finished task stays in its epoch and takes part in checkpoints on direct request: its
state and its prepared transactions belong to them until the job ends (rule 8).

May import: elements, errors, identifiers, records.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from helios_ray.elements import (
    MIN_TIMESTAMP,
    Batch,
    CheckpointBarrier,
    EndOfInput,
    Idle,
    StreamElement,
    Watermark,
    size_in_bytes,
)
from helios_ray.identifiers import ChannelId
from helios_ray.protocol.alignment import BarrierAligner
from helios_ray.protocol.channels import Frame, InboundChannel, Verdict
from helios_ray.protocol.messages import TaskPhase
from helios_ray.protocol.watermarks import WatermarkMerger

# ------------------------------------------------------------------------ instructions


@dataclass(frozen=True, slots=True)
class ProcessBatches:
    """Feed rows to the chain; they may be concatenated."""

    input_index: int
    batches: tuple[Batch, ...]


@dataclass(frozen=True, slots=True)
class AdvanceWatermark:
    """Event time has moved to ``timestamp``."""

    timestamp: int


@dataclass(frozen=True, slots=True)
class BecomeIdle:
    """Every input is idle; tell those downstream."""


@dataclass(frozen=True, slots=True)
class TakeCheckpoint:
    """Flush, forward the barrier, snapshot, in one step (rule 10)."""

    checkpoint_id: int


@dataclass(frozen=True, slots=True)
class InputEnded:
    """Every channel of one input has ended, and other inputs go on.

    Comes again after a restore: those upstream say again that they had ended.
    """

    input_index: int


@dataclass(frozen=True, slots=True)
class FinishInput:
    """All input has ended: let the operators flush, then pass the end on.

    Args:
        flush: False after a restore of a task that had finished: its last rows are out already.
    """

    flush: bool = True


@dataclass(frozen=True, slots=True)
class GrantCredit:
    """Tell a sender that ``consumed`` bytes in all have been processed."""

    channel: ChannelId
    consumed: int


Instruction: TypeAlias = (
    ProcessBatches
    | AdvanceWatermark
    | BecomeIdle
    | TakeCheckpoint
    | InputEnded
    | FinishInput
    | GrantCredit
)

_TRIGGERED = (TaskPhase.RUNNING, TaskPhase.DRAINING, TaskPhase.FINISHED)


@dataclass(slots=True)
class TaskStatistics:
    """What the core has refused or dropped; for metrics and tests."""

    stale_frames: int = 0
    duplicate_frames: int = 0
    stale_messages: int = 0


class TaskCore:
    """See the module's docstring.

    Args:
        inputs: input channels with the operator input each one feeds. Empty for a source.
        credit_threshold: consumed bytes after which a sender is told.
    """

    def __init__(self, inputs: Iterable[tuple[ChannelId, int]], credit_threshold: int) -> None:
        self._input_index = dict(inputs)
        self.input_indexes = frozenset(self._input_index.values())
        self._credit_threshold = credit_threshold
        self.statistics = TaskStatistics()
        self.epoch = 0
        self.phase = TaskPhase.BLANK
        self._clear(MIN_TIMESTAMP)

    def _clear(self, watermark: int) -> None:
        channels = tuple(self._input_index)
        self._inbound = {c: InboundChannel(c) for c in channels}
        # Each queued element carries what its consumption is worth to the sender.
        self._queues: dict[ChannelId, deque[tuple[StreamElement, int]]] = {
            c: deque() for c in channels
        }
        self._aligner = BarrierAligner(channels)
        self._merger = WatermarkMerger(channels, watermark)
        self._announced_idle = False
        self._open = Counter(self._input_index.values())
        self._last_closed: ChannelId | None = None
        self._held: frozenset[int] = frozenset()
        self._outstanding = False
        self._queued = 0
        self._turn = 0

    # ------------------------------------------------------------------ the epoch's life

    def reset(self, epoch: int, *, watermark: int, finished: bool) -> bool:
        """Join an epoch. False if the epoch is not newer: the message is stale or repeated."""
        if epoch <= self.epoch:
            self.statistics.stale_messages += epoch < self.epoch
            return False
        self.epoch = epoch
        self.phase = TaskPhase.READY
        self._finished_before = finished
        self._clear(watermark)
        return True

    def start(self, epoch: int) -> list[Instruction]:
        """Begin to process. Repeated and stale calls do nothing."""
        if epoch != self.epoch or self.phase is not TaskPhase.READY:
            self.statistics.stale_messages += epoch != self.epoch
            return []
        self.phase = TaskPhase.RUNNING
        if self._finished_before:
            self.phase = TaskPhase.FINISHED
            # Every input had ended before the checkpoint; none brings a barrier again.
            for channel in self._input_index:
                self._aligner.on_closed(channel)
            return [FinishInput(flush=False)]
        return []

    @property
    def watermark(self) -> int:
        """The merged event time of the inputs (µs)."""
        return self._merger.current

    @property
    def aligning(self) -> int | None:
        """The checkpoint whose barriers are still being collected."""
        return self._aligner.aligning

    # ---------------------------------------------------------------------------- frames

    def receive(self, frame: Frame) -> None:
        """A frame arrived; queue its elements.

        Raises:
            ChannelGapError: a frame before it is lost; the epoch cannot go on.
        """
        if frame.epoch != self.epoch or self.phase is TaskPhase.BLANK:
            self.statistics.stale_frames += 1
            return
        if self._inbound[frame.channel].accept(frame.sequence) is Verdict.DUPLICATE:
            self.statistics.duplicate_frames += 1
            return
        queue = self._queues[frame.channel]
        last = len(frame.elements) - 1
        spent = 0
        for i, element in enumerate(frame.elements):
            size = frame.size - spent if i == last else min(size_in_bytes(element), frame.size)
            spent += size
            queue.append((element, max(0, size)))
        self._queued += frame.size

    @property
    def channels(self) -> tuple[ChannelId, ...]:
        """Every input channel."""
        return tuple(self._input_index)

    @property
    def queued_bytes(self) -> int:
        """Bytes received and not yet processed; a snapshot for metrics, from any thread."""
        return self._queued

    @property
    def has_work(self) -> bool:
        """Whether ``advance`` would find something."""
        if self.phase is TaskPhase.DRAINING:
            return not self._outstanding
        return self.phase is TaskPhase.RUNNING and any(map(self._may_take, self._queues))

    def hold(self, inputs: frozenset[int], *, outstanding: bool) -> None:
        """Say what the operators hold; it holds good until the next call.

        Args:
            inputs: rows of these inputs wait.
            outstanding: the end of the last input waits.
        """
        self._held = inputs
        self._outstanding = outstanding

    @property
    def held_inputs(self) -> frozenset[int]:
        """Inputs whose rows wait."""
        return self._held

    def _may_take(self, channel: ChannelId) -> bool:
        queue = self._queues[channel]
        if not queue or self._aligner.is_blocked(channel):
            return False
        return self._input_index[channel] not in self._held or not isinstance(queue[0][0], Batch)

    def advance(self, max_bytes: int) -> list[Instruction]:
        """Take the next elements in turn from the channels that are not blocked.

        Rows waiting on several channels come out together, up to ``max_bytes``, so that a
        task that has fallen behind works on large batches. Marks come out one at a time, and
        so does the end that waited for the operators.
        """
        if self.phase is TaskPhase.DRAINING:
            return self._drained()
        if self.phase is not TaskPhase.RUNNING:
            return []
        channels = tuple(self._queues)
        for step in range(len(channels)):
            channel = channels[(self._turn + step) % len(channels)]
            if not self._may_take(channel):
                continue
            queue = self._queues[channel]
            self._turn = (self._turn + step + 1) % len(channels)
            if isinstance(queue[0][0], Batch):
                return self._take_rows(channel, max_bytes)
            element, size = queue.popleft()
            instructions = self._on_mark(channel, element)
            return instructions + self._consumed(channel, size)
        return []

    def _take_rows(self, first: ChannelId, max_bytes: int) -> list[Instruction]:
        index = self._input_index[first]
        batches: list[Batch] = []
        credit: list[Instruction] = []
        room = max_bytes
        others = (c for c, i in self._input_index.items() if i == index and c != first)
        for channel in (first, *others):
            if self._aligner.is_blocked(channel):
                continue
            queue = self._queues[channel]
            consumed = 0
            while queue and (room > 0 or not batches):
                element = queue[0][0]
                if not isinstance(element, Batch):
                    break
                batches.append(element)
                consumed += queue.popleft()[1]
                room -= size_in_bytes(element)
            credit += self._consumed(channel, consumed)
        return [ProcessBatches(index, tuple(batches)), *credit]

    def _consumed(self, channel: ChannelId, size: int) -> list[Instruction]:
        inbound = self._inbound[channel]
        inbound.consume(size)
        self._queued -= size
        due = inbound.credit_due(self._credit_threshold)
        return [] if due is None else [GrantCredit(channel, due)]

    def _on_mark(self, channel: ChannelId, element: StreamElement) -> list[Instruction]:
        match element:
            case Watermark(timestamp):
                return self._time_moved(self._merger.on_watermark(channel, timestamp))
            case Idle():
                return self._time_moved(self._merger.on_idle(channel))
            case CheckpointBarrier(checkpoint_id):
                return self._aligned(self._aligner.on_barrier(channel, checkpoint_id))
            case EndOfInput():
                return self._closed(channel)
        raise AssertionError(element)

    def _time_moved(self, timestamp: int | None) -> list[Instruction]:
        instructions: list[Instruction] = []
        if timestamp is not None:
            instructions.append(AdvanceWatermark(timestamp))
        idle = self._merger.all_idle
        if idle and not self._announced_idle:
            instructions.append(BecomeIdle())
        elif self._announced_idle and not idle and timestamp is None:
            # Those downstream take a watermark as the sign of life.
            instructions.append(AdvanceWatermark(self._merger.current))
        self._announced_idle = idle
        return instructions

    def _aligned(self, completed: int | None) -> list[Instruction]:
        return [] if completed is None else [TakeCheckpoint(completed)]

    def _closed(self, channel: ChannelId) -> list[Instruction]:
        # The barrier first: what the operators flush at the end belongs after it.
        instructions = self._aligned(self._aligner.on_closed(channel))
        if self._aligner.all_closed:
            self._last_closed = channel
            return instructions + self._drain()
        index = self._input_index[channel]
        self._open[index] -= 1
        if self._open[index] == 0:
            instructions.append(InputEnded(index))
        return instructions + self._time_moved(self._merger.on_closed(channel))

    def _drain(self) -> list[Instruction]:
        self.phase = TaskPhase.DRAINING
        return self._drained()

    def _drained(self) -> list[Instruction]:
        """The end, once the operators hold nothing that only time or an answer lets go."""
        if self._outstanding:
            return []
        self.phase = TaskPhase.FINISHED
        if self._last_closed is None:
            return [FinishInput()]
        # The end of time waits too: what is held is not late.
        return [*self._time_moved(self._merger.on_closed(self._last_closed)), FinishInput()]

    # ------------------------------------------------------------- from the coordinator

    def trigger(self, epoch: int, checkpoint_id: int) -> list[Instruction]:
        """A direct request: this is a source, or its inputs have all ended."""
        if epoch != self.epoch or self.phase not in _TRIGGERED:
            self.statistics.stale_messages += 1
            return []
        return self._aligned(self._aligner.on_direct_trigger(checkpoint_id))

    def abort(self, epoch: int, checkpoint_id: int) -> None:
        """A checkpoint was given up; unblock what waits for it."""
        if epoch == self.epoch:
            self._aligner.on_aborted(checkpoint_id)

    def source_exhausted(self) -> list[Instruction]:
        """A source has read its last row."""
        return self._drain() if self.phase is TaskPhase.RUNNING else []
