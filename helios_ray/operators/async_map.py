"""Rows through calls to the outside: services, databases, models behind an API.

Why it exists: a call that takes 50 ms lets twenty rows a second pass, unless many are under
way at once. The operator itself awaits nothing: it hands out requests and is told how they
ended, so the same code runs under an event loop, in the simulator and in a unit test.

Promises, whatever fails:

- every row has its effect downstream once. The *call* may be made again: rows that have not
  gone on are in the snapshot, and a restored job asks for all of them anew, in their order.
  That includes rows whose result was waiting for the results of others (``ordered``).
- no row comes out behind a watermark that it came in before.
- results that are there at the same time go on together, with the next look at the clock
  (``next_timer`` is then now): batches of one row would cost those downstream dearly.
- at most ``capacity`` rows are in flight; beyond that the input is blocked, and at most the
  rest of the rows that had come in waits here.

May import: elements, errors, operators, Arrow.
"""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP, Batch
from helios_ray.errors import ConfigError, PlanError
from helios_ray.operators.async_map_retry import AsyncRetry as AsyncRetry
from helios_ray.operators.async_map_rows import AskedRow, HeldRows
from helios_ray.operators.base import (
    NONE_BLOCKED,
    Operator,
    OperatorContext,
    OperatorSnapshot,
    Request,
    Response,
    StateKind,
    StateTable,
)
from helios_ray.operators.rows import InputSchema, OutputSchema, Row, as_row
from helios_ray.operators.user_functions import (
    FailureHandler,
    OnError,
    around,
    position,
    truncated,
)

RETRIES = "operator.retries"
"""Counter: calls that were made again after a failure."""

_HELD = "held"
_INPUT = frozenset({0})


class AsyncMapOperator(Operator):
    """What an async function makes of each row.

    Args:
        fn: ``async def fn(row)``, given a row (a dict of Python values) and returning a row,
            a list of rows, or None for nothing; what is no dict becomes ``{"item": value}``.
            A class with an async ``__call__`` is made once per subtask, in ``open``.
        ordered: results in the order of the rows; False gives them as they come.
        capacity: rows in flight, those included that wait for a retry or for their turn.
        timeout: of each call; it then fails with ``TimeoutError``. None: as long as it takes.
        retry: when a failed call is made again; None: never.
        schema: of the output; inferred from the first results where it is None.
        on_error: what to do with a row whose last call failed.

    Raises:
        ConfigError: an argument that does not fit.

    Example:
        >>> async def look_up(row):
        ...     return {"id": row["id"], "name": await names.get(row["id"])}
        >>> operator = AsyncMapOperator(look_up, capacity=1)
        >>> operator.open(OperatorContext(uid="names"))
        >>> operator.process_batch(Batch(pa.record_batch({"id": [1, 2]})))
        []
        >>> [request] = operator.take_requests()  # the driver awaits request.call()
        >>> sorted(operator.blocked_inputs())
        [0]
        >>> answer = Response(request_id=request.request_id, value={"id": 1, "name": "a"})
        >>> operator.on_response(answer)
        []
        >>> [b.data.to_pylist() for b in operator.on_processing_time(0)]
        [[{'id': 1, 'name': 'a'}]]
        >>> len(operator.take_requests())
        1
    """

    what = "map_async"

    def __init__(
        self,
        fn: Callable[[Row], Awaitable[Any]] | type,
        *,
        ordered: bool = True,
        capacity: int = 100,
        timeout: timedelta | None = None,
        retry: AsyncRetry | None = None,
        schema: pa.Schema | None = None,
        on_error: OnError = "raise",
    ) -> None:
        _check(fn, capacity, timeout, retry)
        self._fn = fn
        self._ordered = ordered
        self._capacity = capacity
        self._timeout = None if timeout is None else timeout.total_seconds()
        self._retry = retry or AsyncRetry(attempts=1)
        self._failures = FailureHandler(self.what, on_error)
        self._input = InputSchema(self.what)
        self._output = OutputSchema(self.what, schema)
        self._held = HeldRows(capacity)
        self._asked: dict[int, AskedRow] = {}
        self._retries: list[tuple[int, int, AskedRow]] = []
        self._requests: list[Request] = []
        self._done: list[AskedRow] = []
        self._last_request = 0
        self._retried = 0
        self._watermark = MIN_TIMESTAMP
        self._now = MIN_TIMESTAMP

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid
        self._output.open(context)
        self._function: Any = self._fn() if inspect.isclass(self._fn) else self._fn

    # ---------------------------------------------------------------------------- rows in

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        if batch.data.num_rows:
            self._input.check(batch.data.schema, self.context.uid, batch.origin)
            self._held.add(batch, self._watermark)
            self._fill()
        return []

    def _fill(self) -> None:
        while len(self._held) < self._capacity and (following := self._held.ask()) is not None:
            self._ask(*following)

    def _ask(self, row: AskedRow, value: Row) -> None:
        row.attempt += 1
        self._last_request += 1
        self._asked[self._last_request] = row
        self._requests.append(
            Request(
                request_id=self._last_request,
                call=partial(_call, self._function, value),
                timeout=self._timeout,
            )
        )

    def blocked_inputs(self) -> frozenset[int]:
        return _INPUT if len(self._held) >= self._capacity else NONE_BLOCKED

    @property
    def outstanding(self) -> bool:
        return bool(self._held)

    def take_requests(self) -> Sequence[Request]:
        requests, self._requests = self._requests, []
        return requests

    # ------------------------------------------------------------------------------- time

    def on_watermark(self, timestamp: int) -> list[Batch]:
        self._watermark = timestamp
        return []

    def output_watermark(self, timestamp: int) -> int:
        """Rows in flight must not become late: the watermark waits with the oldest."""
        held = self._held.watermark()
        return timestamp if held is None else min(timestamp, held)

    def set_processing_time(self, now: int) -> None:
        self._now = now

    def next_timer(self) -> int | None:
        if self._held.head_is_done if self._ordered else self._done:
            return self._now
        return self._retries[0][0] if self._retries else None

    def on_processing_time(self, now: int) -> list[Batch]:
        self._now = now
        while self._retries and self._retries[0][0] <= now:
            _, _, row = heapq.heappop(self._retries)
            self._retried += 1
            self._ask(row, row.value())
        passed = self._pass_on()
        self._fill()
        return passed

    # --------------------------------------------------------------------------- answers

    def on_response(self, response: Response) -> list[Batch]:
        row = self._asked.pop(response.request_id, None)
        if row is None:
            return []
        error = response.error
        if isinstance(error, _NotAsyncError):
            raise error
        if error is None:
            try:
                row.results = _results(response.value)
            except Exception as refused:  # the same would come again
                error = refused
        elif self._retry.applies(row.attempt, error):
            due = self._now + self._retry.pause(row.attempt)
            heapq.heappush(self._retries, (due, row.number, row))
            return []
        row.error, row.done = error, True
        if error is not None and self._failures.on_error == "raise":
            self._give_up(row, error)
        if not self._ordered:
            self._done.append(row)
        return []

    def _give_up(self, row: AskedRow, error: Exception) -> None:
        index, batch = row.place
        self._failures.failed(error, [row.value()], index, batch)

    def _pass_on(self) -> list[Batch]:
        if self._ordered:
            rows = self._held.take_done()
        else:
            rows, self._done = self._done, []
            self._held.remove(rows)
        results: list[Row] = []
        sources: list[AskedRow] = []
        for done in rows:
            if done.error is not None:
                # Not before its turn: until then a restored job would ask again, and the
                # dead letter would come twice.
                self._give_up(done, done.error)
            results += done.results
            sources += [done] * len(done.results)
        if not results:
            return self._failures.drain()

        def describe(i: int) -> str:
            place = position(sources[i].place[1], sources[i].place[0])
            read = f", read from {place}" if place else ""
            return f"the result for row {truncated(sources[i].value())}{read}"

        data = self._output.from_rows(results, describe)
        return [Batch(data, around(sources[0].piece.origin)), *self._failures.drain()]

    def end_input(self) -> list[Batch]:
        if self._held:
            raise PlanError(
                f"{self.what} {self.context.uid!r}: its input has ended while it waits for "
                f"answers. It must be the first operator of its chain."
            )
        return []

    # ------------------------------------------------------------------------------ state

    def snapshot(self) -> OperatorSnapshot:
        snapshot = self._output.snapshot()
        held = self._held.table()
        if held is not None:
            snapshot[_HELD] = StateTable(StateKind.SPLIT, held)
        return snapshot

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self._output.restore(state)
        if _HELD in state:
            for data in state[_HELD].table.to_batches():
                self.process_batch(Batch(data))

    def counters(self) -> Mapping[str, int]:
        """``operator.skipped_rows``, and ``operator.retries``: calls made again."""
        return {**self._failures.counters(), RETRIES: self._retried}


class _NotAsyncError(ConfigError):
    """No row is to blame, and no other call would do better."""


async def _call(fn: Callable[[Row], Awaitable[Any]], row: Row) -> Any:
    answer = fn(row)
    if not inspect.isawaitable(answer):
        raise _NotAsyncError(
            f"map_async needs an async function, and {fn!r} returned "
            f"{type(answer).__name__} without being awaited. Write async def, or use map."
        )
    return await answer


def _results(value: Any) -> list[Row]:
    if value is None:
        return []
    if isinstance(value, list):
        return [as_row(one) for one in value]
    return [as_row(value)]


def _check(fn: Any, capacity: Any, timeout: Any, retry: Any) -> None:
    called = fn.__call__ if inspect.isclass(fn) and "__call__" in dir(fn) else fn
    if not callable(fn) or (inspect.isclass(fn) and called is fn):
        raise ConfigError(
            f"map_async needs an async function of a row, or a class with an async __call__, "
            f"got {fn!r}."
        )
    if inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called):
        raise ConfigError(f"map_async: {fn!r} yields; return a list of rows instead.")
    if type(capacity) is not int or capacity < 1:
        raise ConfigError(
            f"map_async: capacity must be a number of rows, at least 1, got {capacity!r}."
        )
    if timeout is not None and (not isinstance(timeout, timedelta) or timeout <= timedelta()):
        raise ConfigError(
            f"map_async: timeout must be a positive timedelta, or None, got {timeout!r}."
        )
    if retry is not None and not isinstance(retry, AsyncRetry):
        raise ConfigError(f"map_async: retry must be an AsyncRetry, or None, got {retry!r}.")
