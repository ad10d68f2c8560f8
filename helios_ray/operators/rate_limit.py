"""At most so many rows a second.

Why it exists: what stands behind a stream (an API, a database) bears only so much. Rows that
come too fast are held, in order, are part of every snapshot, and hold the watermark back.
Once many are held, the input is blocked; the end of the input waits until none is.

Source: the token bucket (Turner, "New Directions in Communications", 1986).

May import: elements, errors, operators, Arrow.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP, Batch
from helios_ray.errors import ConfigError
from helios_ray.operators.base import (
    NONE_BLOCKED,
    Operator,
    OperatorContext,
    OperatorSnapshot,
    StateKind,
    StateTable,
)
from helios_ray.operators.rows import InputSchema
from helios_ray.operators.user_functions import around

SECOND = 1_000_000
BURST_SECONDS = 0.1
"""How much of a second's rows may pass at once after a pause."""

MAX_HELD_ROWS = 65_536
"""Held rows beyond which the input waits."""

_HELD = "held"
_INPUT = frozenset({0})


@dataclass(slots=True)
class _Held:
    batch: Batch
    watermark: int
    """The watermark before these rows."""


class RateLimitOperator(Operator):
    """Lets rows pass at a rate; each of p subtasks at a p-th of it.

    Args:
        rows_per_second: of the whole stream; positive.
        max_held_rows: from so many held rows on, a subtask takes no more; what had come in by
            then is held too. Barriers wait behind rows that are not taken: more room makes
            checkpoints of a stream that is too fast quicker, and larger.

    Raises:
        ConfigError: a rate that is not positive and finite, or no room for a row.

    Example:
        >>> operator = RateLimitOperator(10)
        >>> operator.open(OperatorContext(uid="slow"))
        >>> operator.set_processing_time(1_000_000)
        >>> batch = Batch(pa.record_batch({"x": [1, 2, 3]}))
        >>> [b.data.to_pydict() for b in operator.process_batch(batch)]
        [{'x': [1]}]
        >>> operator.next_timer()
        1100000
        >>> [b.data.to_pydict() for b in operator.on_processing_time(1_100_000)]
        [{'x': [2]}]
    """

    what = "rate_limit"

    def __init__(self, rows_per_second: float, *, max_held_rows: int = MAX_HELD_ROWS) -> None:
        number = isinstance(rows_per_second, (int, float)) and rows_per_second is not True
        if not number or not (0 < rows_per_second < math.inf):
            raise ConfigError(
                f"rate_limit: rows_per_second must be a positive number, got {rows_per_second!r}."
            )
        if type(max_held_rows) is not int or max_held_rows < 1:
            raise ConfigError(
                f"rate_limit: max_held_rows must be a number of rows, at least 1, "
                f"got {max_held_rows!r}."
            )
        self._rate = rows_per_second
        self._most_held = max_held_rows
        self._queue: deque[_Held] = deque()
        self._held_rows = 0
        self._input = InputSchema(self.what)
        self._watermark = MIN_TIMESTAMP
        self._now = MIN_TIMESTAMP
        self._filled_at = MIN_TIMESTAMP
        self._credit: float = 0

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        # Credit is counted in rows × µs / s, so that whole rates never round.
        self._cost = SECOND * context.parallelism
        self._most = max(self._cost, self._rate * BURST_SECONDS * SECOND)

    @property
    def held_rows(self) -> int:
        """Rows that wait."""
        return self._held_rows

    def blocked_inputs(self) -> frozenset[int]:
        return _INPUT if self._held_rows >= self._most_held else NONE_BLOCKED

    @property
    def outstanding(self) -> bool:
        return self._held_rows > 0

    def set_processing_time(self, now: int) -> None:
        if now > self._now:
            if self._now == MIN_TIMESTAMP:
                self._credit, self._filled_at = self._cost, now
            self._now = now

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        if batch.data.num_rows == 0:
            return []
        self._input.check(batch.data.schema, self.context.uid, batch.origin)
        self._hold(batch)
        return self._release()

    def _hold(self, batch: Batch) -> None:
        self._queue.append(_Held(batch, self._watermark))
        self._held_rows += batch.data.num_rows

    def _release(self) -> list[Batch]:
        """The rows for which there is credit by now."""
        if self._now == MIN_TIMESTAMP:
            return []
        earned = (self._now - self._filled_at) * self._rate
        self._credit = min(self._most, self._credit + earned)
        self._filled_at = self._now
        allowed = int(self._credit // self._cost)
        released = self._take(min(allowed, self._held_rows))
        self._credit -= self._cost * sum(batch.data.num_rows for batch in released)
        return released

    def _take(self, rows: int) -> list[Batch]:
        taken = []
        while rows > 0:
            held = self._queue[0]
            size = held.batch.data.num_rows
            if size <= rows:
                self._queue.popleft()
                taken.append(held.batch)
            else:
                data, origin = held.batch.data, around(held.batch.origin)
                taken.append(Batch(data.slice(0, rows), held.batch.origin))
                held.batch = Batch(data.slice(rows), origin)
            passed = min(size, rows)
            rows -= passed
            self._held_rows -= passed
        return taken

    def on_watermark(self, timestamp: int) -> list[Batch]:
        self._watermark = max(self._watermark, timestamp)
        # A driver that does not wait while rows are outstanding loses none of them.
        return self._take(self._held_rows) if timestamp == MAX_TIMESTAMP else []

    def output_watermark(self, timestamp: int) -> int:
        """What is held must not become late: the watermark waits with it."""
        return min(timestamp, self._queue[0].watermark) if self._queue else timestamp

    def next_timer(self) -> int | None:
        if not self._queue:
            return None
        if self._now == MIN_TIMESTAMP:
            return 0
        return self._filled_at + math.ceil(max(0, self._cost - self._credit) / self._rate)

    def on_processing_time(self, now: int) -> list[Batch]:
        self.set_processing_time(now)
        return self._release()

    def end_input(self) -> list[Batch]:
        return self._take(self._held_rows)

    def snapshot(self) -> OperatorSnapshot:
        if not self._queue:
            return {}
        batches = [held.batch.data for held in self._queue]
        # The schema of the newest: a column seen only as null may have got its type since.
        schema = batches[-1].schema
        parts = [pa.Table.from_batches([b]) for b in batches]
        parts = [p if p.schema.equals(schema) else p.cast(schema) for p in parts]
        return {_HELD: StateTable(StateKind.SPLIT, pa.concat_tables(parts))}

    def restore(self, state: Mapping[str, StateTable]) -> None:
        if _HELD in state:
            for data in state[_HELD].table.to_batches():
                if data.num_rows:
                    self._input.check(data.schema, self.context.uid)
                    self._hold(Batch(data))
