"""The run of operators inside a task.

Why it exists: rows and time go from operator to operator without leaving the task; side
outputs leave from the middle; each operator's state is kept under its own uid.

May import: operators, elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from helios_ray.elements import Batch
from helios_ray.operators.base import Operator, OperatorContext, OperatorSnapshot

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
        for operator, context in operators:
            operator.open(context)

    @property
    def tail(self) -> str:
        """Uid under which the main output leaves."""
        return self._uids[-1] if self._uids else self._head

    @property
    def operators(self) -> Mapping[str, Operator]:
        """Instances by uid; for metrics."""
        return dict(zip(self._uids, self._operators, strict=True))

    def process(self, batch: Batch, input_index: int = 0) -> None:
        """Rows arrive at the first operator."""
        self._feed(0, [batch], input_index)

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

    def advance_time(self, timestamp: int) -> int:
        """Event time moves on through the chain; return the watermark that leaves it."""
        for index, operator in enumerate(self._operators):
            self._feed(index + 1, self._keep_main(index, operator.on_watermark(timestamp)))
            timestamp = operator.output_watermark(timestamp)
        return timestamp

    def fire_timers(self, now: int) -> None:
        """Processing time has reached ``now`` (µs)."""
        for index, operator in enumerate(self._operators):
            due = operator.next_timer()
            if due is not None and due <= now:
                self._feed(index + 1, self._keep_main(index, operator.on_processing_time(now)))

    def next_timer(self) -> int | None:
        """Processing time (µs) of the next timer of any operator."""
        due = [t for t in (o.next_timer() for o in self._operators) if t is not None]
        return min(due, default=None)

    def end_input(self) -> None:
        """All input has ended; operators flush in order."""
        for index, operator in enumerate(self._operators):
            self._feed(index + 1, self._keep_main(index, operator.end_input()))

    def snapshot(self) -> dict[str, OperatorSnapshot]:
        """State of every operator that has some, by uid."""
        snapshots = {
            uid: operator.snapshot()
            for uid, operator in zip(self._uids, self._operators, strict=True)
        }
        return {uid: snapshot for uid, snapshot in snapshots.items() if snapshot}

    def restore(self, state: Mapping[str, OperatorSnapshot]) -> None:
        """Hand each operator its state."""
        for uid, operator in zip(self._uids, self._operators, strict=True):
            if uid in state:
                operator.restore(state[uid])

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
