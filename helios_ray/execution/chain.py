"""The run of operators inside a task.

Why it exists: rows and time go from operator to operator without leaving the task; side
outputs leave from the middle; each operator's state is kept under its own uid.

May import: operators, elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from helios_ray.elements import MIN_TIMESTAMP, Batch
from helios_ray.execution.input_types import InputTypes
from helios_ray.execution.signatures import SIGNATURE, check_signature, signed
from helios_ray.operators.base import (
    NONE_BLOCKED,
    Operator,
    OperatorContext,
    OperatorSnapshot,
    Request,
    Response,
)

Emit: TypeAlias = Callable[[str, Batch], None]
"""Takes the rows that leave the chain, with the uid of the operator that made them."""


class OperatorChain:
    """Operators in order, the last of which hands its rows to ``emit``.

    Args:
        operators: fresh instances, each with its context.
        head: uid of what feeds the first operator (the source or the operator itself); rows
            of a chain without operators leave under this name.
        emit: takes main and side outputs.
    """

    def __init__(
        self, operators: Sequence[tuple[Operator, OperatorContext]], head: str, emit: Emit
    ) -> None:
        self._operators = [operator for operator, _ in operators]
        self._uids = [context.uid for _, context in operators]
        self._head = head
        self._emit = emit
        # Event time as each operator was told it last, and as it left the last one.
        self._times = [MIN_TIMESTAMP] * (len(self._operators) + 1)
        self._resumed_at = MIN_TIMESTAMP
        self._types = InputTypes()
        for operator, context in operators:
            operator.open(context)
        self._signatures = {
            uid: signed(operator) for uid, operator in zip(self._uids, self._operators, strict=True)
        }

    @property
    def tail(self) -> str:
        """Uid under which the main output leaves."""
        return self._uids[-1] if self._uids else self._head

    @property
    def operators(self) -> Mapping[str, Operator]:
        """Instances by uid; for metrics."""
        return dict(zip(self._uids, self._operators, strict=True))

    # ----------------------------------------------------------------------------- rows

    def process(self, batch: Batch, input_index: int = 0) -> None:
        """Rows arrive at the first operator."""
        self._feed(0, [self._types.fit(batch, input_index)], input_index)

    def _feed(self, first: int, batches: list[Batch], input_index: int = 0) -> None:
        for index in range(first, len(self._operators)):
            operator = self._operators[index]
            produced: list[Batch] = []
            for batch in batches:
                produced += operator.process_batch(batch, input_index if index == 0 else 0)
            batches = self._keep_main(index, produced)
            if not batches:
                return
        for batch in batches:
            self._emit(self.tail, batch)

    def _keep_main(self, index: int, produced: list[Batch]) -> list[Batch]:
        main: list[Batch] = []
        for batch in produced:
            if batch.tag is not None:
                self._emit(self._uids[index], batch)
            elif batch.data.num_rows:
                main.append(batch)
        return main

    def _produced(self, index: int, batches: list[Batch]) -> None:
        """An operator has made rows of itself."""
        self._feed(index + 1, self._keep_main(index, batches))

    # ------------------------------------------------------------------------ event time

    def resume(self, timestamp: int) -> None:
        """Event time had left the chain at ``timestamp`` before the checkpoint.

        So every operator had been told at least that, whatever those before it hold now.
        """
        self._resumed_at = timestamp
        self._times = [timestamp] * len(self._times)
        for index, operator in enumerate(self._operators):
            self._produced(index, operator.on_watermark(timestamp))

    def advance_time(self, timestamp: int) -> int:
        """Event time moves on through the chain; return the watermark that leaves it."""
        times = self._times
        assert timestamp >= times[0], f"event time goes back from {times[0]} to {timestamp}"
        times[0] = timestamp
        for index, operator in enumerate(self._operators):
            if times[index] == MIN_TIMESTAMP:
                break  # the one before holds all of it back
            self._produced(index, operator.on_watermark(times[index]))
            leaving = operator.output_watermark(times[index])
            times[index + 1] = max(self._resumed_at, leaving)
        return times[-1]

    def catch_up(self) -> int:
        """Let on what operators no longer hold back; return the watermark that leaves."""
        times = self._times
        for index, operator in enumerate(self._operators):
            leaving = operator.output_watermark(times[index])
            if leaving > times[index + 1]:
                times[index + 1] = leaving
                if index + 1 < len(self._operators):
                    following = self._operators[index + 1]
                    self._produced(index + 1, following.on_watermark(leaving))
        return times[-1]

    # -------------------------------------------------------------------- processing time

    def set_processing_time(self, now: int) -> None:
        """Processing time is ``now`` (µs) for every call that follows."""
        for operator in self._operators:
            operator.set_processing_time(now)

    def fire_timers(self, now: int) -> None:
        """Processing time has reached ``now`` (µs)."""
        for index, operator in enumerate(self._operators):
            due = operator.next_timer()
            if due is not None and due <= now:
                self._produced(index, operator.on_processing_time(now))

    def next_timer(self) -> int | None:
        """Processing time (µs) of the next timer of any operator."""
        due = [t for t in (o.next_timer() for o in self._operators) if t is not None]
        return min(due, default=None)

    # ------------------------------------------------------------------ what is waited for

    def blocked_inputs(self, every: frozenset[int]) -> frozenset[int]:
        """Inputs of the chain whose rows should wait.

        Args:
            every: all of them; that is the answer where an operator behind the first holds
                as much as it may, since any row may lead to it.
        """
        if not self._operators:
            return NONE_BLOCKED
        if any(operator.blocked_inputs() for operator in self._operators[1:]):
            return every
        return self._operators[0].blocked_inputs()

    @property
    def outstanding(self) -> bool:
        """Whether an operator holds rows that only processing time or an answer lets go."""
        return any(operator.outstanding for operator in self._operators)

    @property
    def withholds(self) -> bool:
        """Whether an operator holds rows that another of its inputs is sure to let go."""
        return any(operator.withholds for operator in self._operators)

    def take_requests(self) -> list[tuple[str, Request]]:
        """What the operators want awaited now, each with the operator's uid."""
        return [
            (uid, request)
            for uid, operator in zip(self._uids, self._operators, strict=True)
            for request in operator.take_requests()
        ]

    def respond(self, operator: str, response: Response) -> None:
        """A request of an operator has ended."""
        index = self._uids.index(operator)
        self._produced(index, self._operators[index].on_response(response))

    # -------------------------------------------------------------------------- the ends

    def end_one_input(self, input_index: int) -> None:
        """One input of the first operator has ended, and others go on."""
        if self._operators:
            self._produced(0, self._operators[0].on_input_end(input_index))

    def end_input(self) -> None:
        """All input has ended; operators flush in order."""
        for index, operator in enumerate(self._operators):
            self._produced(index, operator.end_input())

    # ----------------------------------------------------------------------------- state

    def snapshot(self) -> dict[str, OperatorSnapshot]:
        """State of every operator that has some, by uid."""
        snapshots = {
            uid: operator.snapshot()
            for uid, operator in zip(self._uids, self._operators, strict=True)
        }
        return {
            uid: {**snapshot, **self._signatures[uid]}
            for uid, snapshot in snapshots.items()
            if snapshot
        }

    def restore(self, state: Mapping[str, OperatorSnapshot]) -> None:
        """Hand each operator its state."""
        for uid, operator in zip(self._uids, self._operators, strict=True):
            if uid in state:
                kept = {n: table for n, table in state[uid].items() if n != SIGNATURE}
                check_signature(operator, uid, state[uid].get(SIGNATURE))
                operator.restore(kept)
        for index, schema in enumerate(self._operators[0].input_types() if self._operators else ()):
            if schema is not None:
                self._types.learn(index, schema)

    def close(self) -> None:
        """Close every operator, whatever the others do."""
        errors: list[Exception] = []
        for operator in self._operators:
            try:
                operator.close()
            except Exception as error:  # each one must get its chance
                errors.append(error)
        if errors:
            raise errors[0]
