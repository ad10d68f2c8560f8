"""The classes that users derive their process functions from.

Why it exists: these are the contracts of user code: which method is called when, with what.
Each subtask works on a copy of its own, made before ``open``.

Results: a method may return a row (a dict), any iterable of rows, or yield rows; a value that
is no dict becomes ``{"item": value}``; None is nothing. ``ctx.emit(row)`` does the same
anywhere in a method, ``ctx.output(tag, row)`` sends to a side output.

May import: errors, operators, Arrow.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import pyarrow as pa

from helios_ray.errors import DataError
from helios_ray.operators.process.context import BatchContext, FunctionContext, ProcessContext
from helios_ray.operators.rows import Row

Result: TypeAlias = Any
"""None, a row, or an iterable of rows."""


class ProcessFunction:
    """What all process functions share."""

    def open(self, ctx: FunctionContext) -> None:
        """Called once per subtask, before state is restored: declare state, load a model."""

    def on_timer(self, timestamp: int, ctx: ProcessContext) -> Result:
        """A timer of the current key is due.

        Args:
            timestamp: that it was registered for (µs).
            ctx: as for rows; ``ctx.time_domain`` is ``"event"`` or ``"processing"``.
        """
        raise DataError(
            f"{type(self).__name__} registered a timer and has no on_timer. Define "
            f"on_timer(self, timestamp, ctx)."
        )

    def close(self) -> None:
        """Release what ``open`` acquired. Called on failure as well."""


class KeyedProcessFunction(ProcessFunction):
    """Rows of a keyed stream, with state and timers of their key.

    Define ``process_element``, or ``process_batches`` for speed.

    Example:
        >>> from helios_ray.state.keyed.declarations import ValueState
        >>> class Repeats(KeyedProcessFunction):
        ...     seen = ValueState(pa.int64(), default=0)
        ...
        ...     def process_element(self, row, ctx):
        ...         self.seen.update(self.seen.value() + 1)
        ...         if self.seen.value() > 1:
        ...             yield {"user": row["user"], "times": self.seen.value()}
        >>> from helios_ray.elements import Batch
        >>> from helios_ray.operators.base import OperatorContext
        >>> from helios_ray.operators.process.keyed import KeyedProcessOperator
        >>> operator = KeyedProcessOperator(["user"], Repeats())
        >>> operator.open(OperatorContext(uid="repeats"))
        >>> batch = Batch(pa.record_batch({"user": ["ann", "bob", "ann"]}))
        >>> operator.process_batch(batch)[0].data.to_pylist()
        [{'user': 'ann', 'times': 2}]
    """

    def process_element(self, row: Row, ctx: ProcessContext) -> Result:
        """A row of the current key."""
        raise NotImplementedError

    def process_batches(self, table: pa.Table, ctx: BatchContext) -> Any:
        """Rows of several keys, those of a key next to each other and in order of arrival.

        Args:
            table: the rows.
            ctx: ``ctx.keys``, ``ctx.starts``, ``ctx.counts`` and ``ctx.key_of_row`` tell which
                rows are whose; states have ``get_column`` and ``put_column``.

        Returns:
            None, a table, a record batch, a dict of arrays, or an iterable of these.

        Example:
            >>> import numpy as np
            >>> from helios_ray.state.keyed.declarations import ValueState
            >>> class Total(KeyedProcessFunction):
            ...     total = ValueState(pa.int64(), default=0)
            ...
            ...     def process_batches(self, table, ctx):
            ...         sums = np.add.reduceat(table["n"].to_numpy(), ctx.starts)
            ...         totals = self.total.get_column().to_numpy() + sums
            ...         self.total.put_column(totals)
            ...         return {"k": ctx.keys["k"], "total": totals}
            >>> from helios_ray.elements import Batch
            >>> from helios_ray.operators.base import OperatorContext
            >>> from helios_ray.operators.process.keyed import KeyedProcessOperator
            >>> operator = KeyedProcessOperator(["k"], Total())
            >>> operator.open(OperatorContext(uid="total"))
            >>> batch = Batch(pa.record_batch({"k": ["a", "b", "a"], "n": [1, 2, 3]}))
            >>> operator.process_batch(batch)[0].data.to_pylist()
            [{'k': 'a', 'total': 4}, {'k': 'b', 'total': 2}]
        """
        raise NotImplementedError


class CoProcessFunction(ProcessFunction):
    """Rows of two keyed streams that share state and timers by key."""

    def process_element1(self, row: Row, ctx: ProcessContext) -> Result:
        """A row of the first stream."""
        raise NotImplementedError

    def process_element2(self, row: Row, ctx: ProcessContext) -> Result:
        """A row of the second stream."""
        raise NotImplementedError


class BroadcastProcessFunction(ProcessFunction):
    """Rows of a stream, keyed or not, beside a stream of which every subtask gets every row.

    What the broadcast rows change is :class:`BroadcastState`: written in
    ``process_broadcast_element``, read everywhere. It must depend on nothing but the
    broadcast rows, so that all subtasks hold the same.
    """

    def process_element(self, row: Row, ctx: ProcessContext) -> Result:
        """A row of the stream; with state and timers of its key if the stream is keyed."""
        raise NotImplementedError

    def process_broadcast_element(self, row: Row, ctx: ProcessContext) -> Result:
        """A row that every subtask gets. There is no current key."""
        raise NotImplementedError
