"""What goes through the operators of a task, and what leaves it.

Why it exists: rows, event time, timers, answers and ends each enter the chain in one way.
After any of them the same has to be looked at (``settle``): may event time go on that was
held back, is the task silent now, what is to be awaited outside, and what must wait.

May import: protocol, operators, elements, and the parts of this room.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from helios_ray.elements import (
    MAX_TIMESTAMP,
    MIN_TIMESTAMP,
    Batch,
    EndOfInput,
    Idle,
    StreamElement,
    Watermark,
)
from helios_ray.execution.actions import StartRequest
from helios_ray.execution.assembly import TaskParts
from helios_ray.execution.batching import concatenate
from helios_ray.execution.outbox import Outbox
from helios_ray.execution.settings import TaskCounters
from helios_ray.execution.source import SourceDriver
from helios_ray.operators.base import NONE_BLOCKED, Response
from helios_ray.protocol.task import TaskCore

_SOURCE_INPUT = frozenset({0})
"""What operators behind a source know as their input."""


class Flow:
    """Rows and time through a task; lives as long as the task, and is joined to each epoch.

    Args:
        core: told what the operators hold.
        outbox: takes the requests.
        counters: takes what is counted.
    """

    def __init__(self, core: TaskCore, outbox: Outbox, counters: TaskCounters) -> None:
        self._core = core
        self._outbox = outbox
        self._counters = counters
        self._parts: TaskParts | None = None
        self._idle = False
        self._idle_told = False
        self.now = 0.0
        self.announced = MIN_TIMESTAMP
        self.ended = False

    def join(self, parts: TaskParts) -> None:
        """Begin an epoch with fresh parts."""
        self._parts = parts
        self._idle = self._idle_told = self.ended = False
        if parts.source is not None:
            parts.source.report_to(partial(self._outbox.progress, self._core.epoch))

    @property
    def _joined(self) -> TaskParts:
        assert self._parts is not None
        return self._parts

    # ------------------------------------------------------------------------ processing time

    @property
    def _micros(self) -> int:
        # Rounded: what a timer named in µs must be reached when it is reached in seconds.
        return round(self.now * 1_000_000)

    def set_processing_time(self) -> None:
        """Tell the operators what time it is, before anything else in a step."""
        self._joined.chain.set_processing_time(self._micros)

    def fire_timers(self) -> bool:
        """Fire the timers that are due; whether any was."""
        timer = self._joined.chain.next_timer()
        if timer is None or timer > self._micros:
            return False
        self._joined.chain.fire_timers(self._micros)
        return True

    # -------------------------------------------------------------------------------- rows in

    def read(self, source: SourceDriver, max_rows: int) -> None:
        """Let the source of this task read."""
        for element in source.read(max_rows, self.now):
            match element:
                case Batch():
                    self.process((element,), 0)
                case Watermark(timestamp):
                    self.advance_time(timestamp)
                case Idle():
                    self.become_idle()
                case _:
                    self.broadcast(element)

    def process(self, batches: Sequence[Batch], input_index: int) -> None:
        """Rows have arrived."""
        for batch in concatenate(batches):
            self._counters.rows_in += batch.data.num_rows
            self._counters.bytes_in += batch.data.nbytes
            self._joined.chain.process(batch, input_index)

    def respond(self, operator: str, response: Response) -> None:
        """A request of an operator has ended."""
        self._joined.chain.respond(operator, response)

    # ------------------------------------------------------------------------------ time in

    def resume(self) -> None:
        """Operators and those downstream learn where event time stood at the checkpoint."""
        if self.announced > MIN_TIMESTAMP:
            self._joined.chain.resume(self.announced)
            self.broadcast(Watermark(self.announced))

    def advance_time(self, timestamp: int) -> None:
        """Event time has moved, or an input that was idle gives a sign of life."""
        self._idle = self._idle_told = False
        leaving = self._joined.chain.advance_time(timestamp)
        if timestamp == MAX_TIMESTAMP:
            # Local to the task: downstream, the end of this input is not the end of time.
            return
        self.announced = max(self.announced, leaving)
        if self.announced > MIN_TIMESTAMP:
            self.broadcast(Watermark(self.announced))

    def become_idle(self) -> None:
        """Every input is silent; so is this task, as soon as its operators withhold nothing."""
        self._idle = True
        self._tell_idle()

    def _tell_idle(self) -> None:
        chain = self._joined.chain
        # Rows that are still held would come late where nobody waits for this task.
        if self._idle and not (self._idle_told or chain.outstanding or chain.withholds):
            self._idle_told = True
            self.broadcast(Idle())

    def settle(self) -> None:
        """After calls into operators: what have they let go, ask for, and go on holding?"""
        if self.ended:
            return
        chain = self._joined.chain
        leaving = chain.catch_up()
        if leaving > self.announced:
            self.announced = leaving
            self.broadcast(Watermark(leaving))
            # A watermark counts as a sign of life: say again that there is none.
            self._idle_told = False
        self._tell_idle()
        for operator, request in chain.take_requests():
            self._outbox.put(StartRequest(self._core.epoch, operator, request))
        self._core.hold(self._blocked_inputs(), outstanding=chain.outstanding)

    def _blocked_inputs(self) -> frozenset[int]:
        chain = self._joined.chain
        if chain.withholds and self._core.aligning is not None:
            # What would let the rows go may be behind the barrier of its own input, and that of a
            # blocked one behind rows: they come in all the same, no more than were under way.
            return NONE_BLOCKED
        return chain.blocked_inputs(self._core.input_indexes or _SOURCE_INPUT)

    # ------------------------------------------------------------------------------ the ends

    def end_one_input(self, input_index: int) -> None:
        """One input has ended, and others go on."""
        self._joined.chain.end_one_input(input_index)

    def finish(self, *, flush: bool) -> None:
        """All input has ended: let the operators flush, then pass the end on."""
        if flush:
            self.advance_time(MAX_TIMESTAMP)
            self._joined.chain.end_input()
        self.broadcast(EndOfInput())
        self.ended = True

    # --------------------------------------------------------------------------- what leaves

    def emit(self, operator: str, batch: Batch) -> None:
        """Rows leave the chain: into the sink of this task, or to those downstream."""
        parts = self._joined
        self._counters.rows_out += batch.data.num_rows
        if parts.sink is not None and batch.tag is None:
            parts.sink.write(batch.data)
        else:
            parts.outputs.emit(operator, batch, self.now)

    def broadcast(self, element: StreamElement) -> None:
        """A mark for everybody downstream; none follows the end."""
        if not self.ended:
            self._joined.outputs.broadcast(element, self.now)
