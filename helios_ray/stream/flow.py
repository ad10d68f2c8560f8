"""What a stream passes through on its way: outside calls, brakes, a look.

Why it exists: these change nothing about where rows go, and little or nothing about the rows.

May import: plan, operators, windowing, watermarks, base, connected and windowed of this room.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from helios_ray.operators.async_map import AsyncMapOperator, AsyncRetry
from helios_ray.operators.inspect import InspectOperator
from helios_ray.operators.rate_limit import RateLimitOperator
from helios_ray.plan.graph import describe_function
from helios_ray.plan.options import OperatorOptions
from helios_ray.stream.base import BaseStream, OnError, Row, check_callable
from helios_ray.stream.connected import ConnectedStreams, connected
from helios_ray.stream.windowed import WindowedStream, windowed
from helios_ray.watermarks import EventTime
from helios_ray.windowing import WindowSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from helios_ray.stream.data_stream import DataStream


class Flow(BaseStream):
    """The methods of a stream that neither compute columns nor route rows."""

    def map_async(
        self,
        fn: Callable[[Row], Awaitable[Any]] | type,
        *,
        ordered: bool = True,
        capacity: int = 100,
        timeout: timedelta | None = None,
        retry: AsyncRetry | None = None,
        schema: pa.Schema | None = None,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Replace each row by what ``await fn(row)`` gives: calls to services and databases.

        Rows in flight are part of every checkpoint: after a failure their calls are made
        again, so a call may happen twice and its result appears once.

        Args:
            fn: ``async def fn(row)``, or a class with an async ``__call__``, made once per
                subtask; returns a row, a list of rows, or None for nothing.
            ordered: results in the order of the rows; False gives them as they come, and
                still none is overtaken by the watermark it came before.
            capacity: rows in flight per subtask; beyond it the input waits.
            timeout: of one call; a call that takes longer fails with ``TimeoutError``.
            retry: how often and when a failed call is made again; None: never.
            schema: of the results; if not given, the first results decide it.
            on_error: what becomes of a row whose last call failed: ``"raise"``, ``"skip"`` or
                ``"dead_letter"``.

        Example:
            >>> from helios_ray import StreamExecutionEnvironment
            >>> async def double(row):
            ...     return {"twice": row["item"] * 2}
            >>> numbers = StreamExecutionEnvironment().from_range(10, uid="numbers")
            >>> numbers.map_async(double, capacity=20, uid="double")
            DataStream[known when it runs]
        """

        check_callable("map_async", fn)
        factory = partial(
            AsyncMapOperator, fn, ordered=ordered, capacity=capacity, timeout=timeout,
            retry=retry, schema=schema, on_error=on_error,
        )  # fmt: skip
        return self._operator(
            "map_async",
            factory,
            options,
            schema=schema,
            detail=describe_function(fn),
            on_error=on_error,
            stateful=True,
            starts_chain=True,
        )

    def rate_limit(self, rows_per_second: float, **options: Unpack[OperatorOptions]) -> DataStream:
        """Let rows pass at a rate, over all subtasks together; more of them wait upstream.

        Raises:
            ConfigError: the rate is not positive and finite.
        """
        return self._operator(
            "rate_limit",
            partial(RateLimitOperator, rows_per_second),
            options,
            schema=self._schema,
            detail=f"{rows_per_second} rows/s",
            stateful=True,
            starts_chain=True,
        )

    def inspect(
        self,
        fn: Callable[[Row], Any],
        *,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Call ``fn`` with each row and pass the row on as it is: for logs and counters.

        After a failure ``fn`` sees rows again.
        """
        check_callable("inspect", fn)
        return self._operator(
            "inspect",
            partial(InspectOperator, fn, on_error=on_error),
            options,
            schema=self._schema,
            detail=describe_function(fn),
            on_error=on_error,
        )

    def window_all(
        self, spec: WindowSpec, *, time: str | EventTime | None = None
    ) -> WindowedStream:
        """Cut all rows into windows, whatever their key; one task sees them all.

        Args:
            spec, time: as for ``KeyedStream.window``.

        Raises:
            PlanError: there is no event time, or ``spec`` is no window.
            MissingColumnError: there is no such column; offers the nearest.
        """
        return windowed(self, (), spec, time, "window_all")

    def connect(self, other: BaseStream) -> ConnectedStreams:
        """Put another stream beside this one, for a function that sees rows of both.

        Args:
            other: keyed like this one, or ``broadcast()``.

        Raises:
            PlanError: it is no stream, or of another environment.
        """
        return connected(self, other)
