"""The first row of each key, within a time to live.

Why it exists: at-least-once sources, retries and clicks come twice. Vectorized: no row is
touched in Python.

May import: elements, errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError
from helios_ray.operators.base import (
    Operator,
    OperatorContext,
    OperatorSnapshot,
    StateKind,
    StateTable,
)
from helios_ray.operators.segments import first_rows
from helios_ray.operators.user_functions import around
from helios_ray.state.hashing import check_keys
from helios_ray.state.keyed.backend import KeyedBackend
from helios_ray.state.keyed.declarations import ValueState
from helios_ray.state.keyed.ttl import StateTtl


class DeduplicateOperator(Operator):
    """Passes on the first row of each key and drops the others.

    Args:
        keys: key columns; rows are duplicates where all of them are equal.
        ttl: how long a key is remembered, counted from the row that was passed on (or, with
            ``StateTtl(refresh="read")``, from its last duplicate); None is forever.
        input_schema: where it is known, the keys are checked at once.

    Raises:
        ConfigError: no keys, or a ttl that is none.
        MissingColumnError, PlanError: a key is not a column of ``input_schema``, or cannot
            be a key.

    Example:
        >>> operator = DeduplicateOperator(["id"])
        >>> operator.open(OperatorContext(uid="once"))
        >>> batch = Batch(pa.record_batch({"id": [1, 2, 1], "at": [10, 11, 12]}))
        >>> operator.process_batch(batch)[0].data.to_pydict()
        {'id': [1, 2], 'at': [10, 11]}
        >>> operator.process_batch(batch)
        []
    """

    what = "deduplicate"

    def __init__(
        self,
        keys: Sequence[str],
        *,
        ttl: StateTtl | timedelta | None = None,
        input_schema: pa.Schema | None = None,
    ) -> None:
        if isinstance(keys, str):
            keys = [keys]
        if not keys:
            raise ConfigError("deduplicate needs at least one key column, got none.")
        self.keys = tuple(keys)
        self._declaration = ValueState(pa.bool_(), name="seen", ttl=ttl)
        self._dropped = 0
        if input_schema is not None:
            check_keys(input_schema, self.keys, self.what)

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self.backend = KeyedBackend(
            f"{self.what} {context.uid!r}", self.keys, context.max_parallelism, context.key_groups
        )
        self._seen: Any = self.backend.declare(self._declaration)

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        data, scope = batch.data, self.backend.scope
        if data.num_rows == 0:
            return []
        slots = self.backend.begin(data, self.keys, batch.origin)
        first = first_rows(slots)
        scope.enter_distinct(slots[first])
        fresh = np.flatnonzero(self._seen.get_column().is_null())
        scope.enter_distinct(slots[first[fresh]])
        self._seen.put_column(pa.array(np.ones(len(fresh), np.bool_)))
        self.backend.end()
        self._dropped += data.num_rows - len(fresh)
        if len(fresh) == data.num_rows:
            return [batch]
        if len(fresh) == 0:
            return []
        kept = data.take(pa.array(first[fresh]))
        return [Batch(kept, around(batch.origin), batch.tag)]

    def on_watermark(self, timestamp: int) -> list[Batch]:
        self.backend.set_watermark(timestamp)
        self.backend.end()
        return []

    def set_processing_time(self, now: int) -> None:
        self.backend.set_now(now)

    def next_timer(self) -> int | None:
        return self.backend.next_clean_up()

    def on_processing_time(self, now: int) -> list[Batch]:
        self.backend.set_now(now)
        self.backend.end()
        return []

    def snapshot(self) -> OperatorSnapshot:
        tables = self.backend.snapshot()
        return {name: StateTable(StateKind.KEYED, table) for name, table in tables.items()}

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self.backend.restore({name: stored.table for name, stored in state.items()})

    def counters(self) -> Mapping[str, int]:
        """``operator.duplicate_rows``: rows dropped since ``open``."""
        return {"operator.duplicate_rows": self._dropped}
