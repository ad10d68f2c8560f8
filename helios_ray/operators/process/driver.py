"""How a process function is driven: calls, failures, timers, snapshot.

Why it exists: all process operators treat user code the same way. A call that raises follows
the operator's ``on_error`` policy; where the job goes on, the call leaves nothing behind: its
state changes, timers and outputs are taken back.

Timers fire by timestamp, then in the order in which they were registered. Event time jumps to
``MAX_TIMESTAMP`` at the end of bounded input: all event-time timers fire. Processing-time
timers that are not due by then do not.

May import: elements, errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray.elements import MAX_TIMESTAMP, Batch
from helios_ray.errors import ConfigError, DataError, UserFunctionError
from helios_ray.operators.base import (
    Operator,
    OperatorContext,
    OperatorSnapshot,
    StateKind,
    StateTable,
)
from helios_ray.operators.process.context import FunctionContext, ProcessContext, TimeDomain
from helios_ray.operators.process.function import ProcessFunction
from helios_ray.operators.process.outputs import Outputs
from helios_ray.operators.rows import Row, to_rows
from helios_ray.operators.user_functions import FailureHandler, OnError, around
from helios_ray.state.index import Slots
from helios_ray.state.keyed.backend import KeyedBackend
from helios_ray.state.keyed.declarations import State
from helios_ray.state.keyed.handle import Handle
from helios_ray.state.keyed.scope import NO_KEY

FLUSH_TIMERS = 65_536
"""Timers of one round between two write-backs of state."""

CHAIN_LIMIT = 100_000
"""Timers that one key may set from its timers after the end of input."""


def rows_of(data: pa.RecordBatch) -> list[Row]:
    """The rows as dicts, as ``to_rows`` makes them, in loops that never leave C."""
    columns = [column.to_pylist() for column in data.columns]
    return list(map(dict, map(zip, repeat(data.schema.names), zip(*columns, strict=True))))


_NO_ROWS = Batch(pa.RecordBatch.from_arrays([], names=[]))


class ProcessOperator(Operator):
    """Base of the operators that drive a process function.

    Args:
        function: an instance, which each subtask copies, or a class without arguments.
        base: the class it must derive from.
        keys: names of the key columns in the state; may be empty.
        schema: of the main output; that of its first rows where it is None.
        side_outputs: schema, or None, by tag.
        on_error: what to do when the function raises.
    """

    what = "process"

    def __init__(
        self,
        function: Any,
        base: type[ProcessFunction],
        keys: Sequence[str],
        *,
        schema: pa.Schema | None = None,
        side_outputs: Mapping[str, pa.Schema | None] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        if inspect.isclass(function) and issubclass(function, base):
            function = function()
        if not isinstance(function, base):
            raise ConfigError(
                f"{self.what} needs a {base.__name__}, got {function!r}. Derive a class from it "
                f"and pass an instance."
            )
        self._template = function
        self.keys = tuple(keys)
        self._failures = FailureHandler(self.what, on_error)
        self._careful = on_error != "raise"
        self._out = Outputs(self.what, schema, side_outputs)

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid
        self._out.open(context)
        self._where = f"{self.what} {context.uid!r}"
        self.backend = KeyedBackend(
            self._where, self.keys, context.max_parallelism, context.key_groups
        )
        self._scope = self.backend.scope
        try:
            self.function: Any = copy.deepcopy(self._template)
        except Exception as error:
            raise ConfigError(
                f"{self._where}: every subtask works on a copy of {self._template!r}, which "
                f"cannot be copied: {error}. Acquire such things in open()."
            ) from error
        self._bind_declarations()
        self._ctx = ProcessContext(context, self.backend, self._out)
        self._timers = self._ctx.timer_service
        opening = FunctionContext(context, self.backend, self._out)
        self.function.open(opening)
        for each in (opening, self._ctx):
            each.opened()

    def _bind_declarations(self) -> None:
        """Put states in the place of the declarations on class and instance."""
        attributes = {name: getattr(self.function, name) for name in self._declared()}
        for name, declaration in attributes.items():
            if declaration.name is None:
                declaration.name = name
            setattr(self.function, name, self.backend.declare(declaration))

    def _declared(self) -> list[str]:
        names = dict.fromkeys(
            name
            for cls in reversed(type(self.function).__mro__)
            for name, value in vars(cls).items()
            if isinstance(value, State)
        )
        for name, value in vars(self.function).items():
            if isinstance(value, State) and not isinstance(value, Handle):
                names[name] = None
        return list(names)

    # --------------------------------------------------------------------------------- rows

    def _call_rows(self, method: Callable[..., Any], rows: list[Row], slots: Slots | None,
                   batch: Batch) -> None:  # fmt: skip
        """Call ``method`` with every row; ``slots`` None is without a key."""
        scope, ctx, timers, add = self._scope, self._ctx, self._timers, self._out.add
        append, careful = self._out.main.rows.append, self._careful
        each = [NO_KEY] * len(rows) if slots is None else slots.tolist()
        for index, (row, slot) in enumerate(zip(rows, each, strict=True)):
            scope.slot = slot
            if careful:
                scope.undo = [self._out.mark()]
            try:
                result = method(row, ctx)
                if result is not None:
                    if type(result) is dict and result:
                        append(result.copy())
                    else:
                        add(result)
            except Exception as error:
                self._take_back()
                # The function may have changed the dict it was given: show the row as it came.
                came = to_rows(batch.data.slice(index, 1))
                self._failures.failed(error, came, index, batch)
            if timers.overdue:
                scope.undo = None
                self._fire_event_timers(scope.watermark)

    def _take_back(self) -> None:
        scope = self._scope
        for take_back in reversed(scope.undo or []):
            take_back()
        scope.undo = None

    def _finish(self, batch: Batch | None = None) -> list[Batch]:
        """Write state back and hand out what was emitted."""
        self._scope.undo = None
        self.backend.end()
        origin = None if batch is None else around(batch.origin)
        return self._out.take(origin) + self._failures.drain()

    # ------------------------------------------------------------------------------- timers

    def set_processing_time(self, now: int) -> None:
        self.backend.set_now(now)

    def on_watermark(self, timestamp: int) -> list[Batch]:
        self.backend.set_watermark(timestamp)
        pending = self.backend.event_timers.pending(timestamp)
        if pending:
            self._fire_event_timers(timestamp, pending)
        return self._finish()

    def next_timer(self) -> int | None:
        times = (self.backend.processing_timers.next(), self.backend.next_clean_up())
        return min((t for t in times if t is not None), default=None)

    def on_processing_time(self, now: int) -> list[Batch]:
        """Fire the timers that are due. Those they set wait for the next call, so that one
        which sets itself again for the present does not hold up the task."""
        self.backend.set_now(now)
        timers = self.backend.processing_timers
        pending = timers.pending(now)
        for done, (timestamp, slot) in enumerate(pending):
            if done % FLUSH_TIMERS == 0:
                self._enter_timers(pending[done : done + FLUSH_TIMERS])
            if timers.delete(slot, timestamp):
                self._call_timer("processing", timestamp, slot)
            if self._timers.overdue:
                self._fire_event_timers(self._scope.watermark)
        return self._finish()

    def _fire_event_timers(self, limit: int, pending: Sequence[tuple[int, int]] = ()) -> None:
        """Fire timers up to ``limit``, those they set included; ``pending`` are known."""
        timers = self.backend.event_timers
        chained: dict[int, int] = {}
        for done, (timestamp, slot) in enumerate(timers.due(limit)):
            if pending and done % FLUSH_TIMERS == 0:
                self._enter_timers(pending[done : done + FLUSH_TIMERS])
            before = len(timers)
            self._call_timer("event", timestamp, slot)
            if limit == MAX_TIMESTAMP and len(timers) > before:
                chained[slot] = chained.get(slot, 0) + 1
                if chained[slot] > CHAIN_LIMIT:
                    raise DataError(
                        f"{self._where}: after the end of its input, key "
                        f"{self._scope.key(slot)!r} has set timer after timer, {CHAIN_LIMIT} of "
                        f"them. Stop when ctx.timer_service.current_watermark is MAX_TIMESTAMP."
                    )
        self._timers.overdue = False

    def _enter_timers(self, pending: Sequence[tuple[int, int]]) -> None:
        self.backend.flush()
        self._scope.enter(np.array([slot for _, slot in pending], np.int64))

    def _call_timer(self, domain: TimeDomain, timestamp: int, slot: int) -> None:
        scope, ctx = self._scope, self._ctx
        scope.slot, ctx.time_domain = slot, domain
        if self._careful:
            scope.undo = [self._out.mark()]
        try:
            result = self.function.on_timer(timestamp, ctx)
            if result is not None:
                self._out.add(result)
        except Exception as error:
            self._take_back()
            self._timer_failed(error, domain, timestamp, slot)
        ctx.time_domain = None
        scope.undo = None

    def _timer_failed(
        self, error: Exception, domain: TimeDomain, timestamp: int, slot: int
    ) -> None:
        key = self._scope.key(slot)
        if not self._careful:
            raise UserFunctionError(
                f"{self._where}: on_timer raised {type(error).__name__}: {error} for the "
                f"{domain}-time timer at {timestamp} µs of key {key!r:.200}. Fix the function and "
                f"resume the job, or pass on_error='skip' or on_error='dead_letter' to go on "
                f"without such timers."
            ) from error
        timer = {"key": key, "timer": timestamp, "time_domain": domain}
        self._failures.failed(error, [timer], 0, _NO_ROWS)

    # -------------------------------------------------------------------------------- state

    def snapshot(self) -> OperatorSnapshot:
        state = self._out.snapshot()
        for name, table in self.backend.snapshot().items():
            state[name] = StateTable(StateKind.KEYED, table)
        for name, table in self.backend.broadcast_snapshot().items():
            state[name] = StateTable(StateKind.BROADCAST, table)
        return state

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self._out.restore(state)
        self.backend.restore({name: stored.table for name, stored in state.items()})

    def counters(self) -> Mapping[str, int]:
        return self._failures.counters()

    def close(self) -> None:
        if hasattr(self, "function"):
            self.function.close()
