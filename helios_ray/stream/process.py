"""What a keyed stream can do with state of its own: process, deduplicate, top_n, window.

Why it exists: these need the rows of a key together, and keep something per key.

May import: plan, operators, windowing, watermarks, base and windowed of this room.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from helios_ray.operators.deduplicate import DeduplicateOperator
from helios_ray.operators.process.function import KeyedProcessFunction
from helios_ray.operators.process.keyed import KeyedProcessOperator
from helios_ray.operators.top_n import Emit, TopNOperator
from helios_ray.plan.graph import describe_function
from helios_ray.plan.options import OperatorOptions
from helios_ray.state.keyed.ttl import StateTtl
from helios_ray.stream.base import BaseStream, OnError, made
from helios_ray.stream.windowed import WindowedStream, windowed
from helios_ray.watermarks import EventTime
from helios_ray.windowing import WindowSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from helios_ray.stream.data_stream import DataStream


class KeyedState(BaseStream):
    """The methods of a keyed stream that keep state per key."""

    _keys: tuple[str, ...]

    def window(self, spec: WindowSpec, *, time: str | EventTime | None = None) -> WindowedStream:
        """Cut the rows of each key into windows; see :class:`WindowedStream`.

        Args:
            spec: ``TumblingWindow``, ``SlidingWindow``, ``SessionWindow``, ``CountWindow`` or
                ``GlobalWindow``, of ``helios_ray.windows``.
            time: event time column, where it is not the stream's own.

        Raises:
            PlanError: there is no event time, or ``spec`` is no window.
            MissingColumnError: there is no such column; offers the nearest.
        """
        return windowed(self, self._keys, spec, time, "window")

    def process(
        self,
        function: KeyedProcessFunction | type[KeyedProcessFunction],
        *,
        schema: pa.Schema | None = None,
        side_outputs: Mapping[str, pa.Schema | None] | None = None,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Run a function with state and timers of each key.

        Args:
            function: an instance, or a class without arguments; each subtask has a copy.
            schema: of the results; if not given, the first results decide it.
            side_outputs: schema (or None) by tag, for ``ctx.output(tag, row)`` and
                ``results.side_output(tag)``.
            on_error: ``"raise"``, ``"skip"`` or ``"dead_letter"``; a call that failed leaves
                no trace in state, timers or outputs.

        Raises:
            ConfigError: it defines neither or both of ``process_element`` and
                ``process_batches``.

        Example:
            >>> import pyarrow as pa
            >>> from helios_ray import StreamExecutionEnvironment
            >>> from helios_ray.functions import KeyedProcessFunction, ValueState
            >>> class Seen(KeyedProcessFunction):
            ...     times = ValueState(pa.int64(), default=0)
            ...
            ...     def process_element(self, row, ctx):
            ...         self.times.update(self.times.value() + 1)
            ...         yield {"user": row["user"], "times": self.times.value()}
            >>> users = StreamExecutionEnvironment().from_items([{"user": "ann"}], uid="users")
            >>> users.key_by("user").process(Seen, uid="seen")
            DataStream[known when it runs]
        """
        factory = partial(
            KeyedProcessOperator, self._keys, function, schema=schema, side_outputs=side_outputs,
            on_error=on_error,
        )  # fmt: skip
        made("process", partial(factory, input_schema=self._schema))
        return self._operator(
            "process",
            factory,
            options,
            schema=schema,
            detail=describe_function(function),
            on_error=on_error,
            side_outputs=side_outputs,
            stateful=True,
        )

    def deduplicate(
        self, *, ttl: StateTtl | timedelta | None = None, **options: Unpack[OperatorOptions]
    ) -> DataStream:
        """Pass on the first row of each key and drop the others, counted as
        ``operator.duplicate_rows``.

        Args:
            ttl: how long a key is remembered after the row that was passed on (processing
                time); None is for ever, so that the state grows with the number of keys.
        """
        factory = partial(DeduplicateOperator, self._keys, ttl=ttl)
        made("deduplicate", partial(factory, input_schema=self._schema))
        detail = "" if ttl is None else f"ttl={ttl}"
        return self._operator(
            "deduplicate", factory, options, schema=self._schema, detail=detail, stateful=True
        )

    def top_n(
        self,
        n: int,
        by: str,
        *,
        ascending: bool = False,
        emit: Emit = "updates",
        rank_column: str = "rank",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """The ``n`` best rows of each key so far, with their rank.

        Args:
            n: how many.
            by: the column that decides; greatest first.
            ascending: least first.
            emit: ``"updates"`` gives, per batch, all best rows of every key whose best rows
                changed; ``"final"`` gives them once, when a bounded input ends.
            rank_column: name of the added column, 1 for the best.

        Raises:
            MissingColumnError: a column is not there; offers the nearest.
            PlanError: a column that cannot be ordered, or ``rank_column`` is taken.
        """
        factory = partial(
            TopNOperator, self._keys, n, by, ascending=ascending, emit=emit,
            rank_column=rank_column,
        )  # fmt: skip
        made("top_n", partial(factory, input_schema=self._schema))
        schema = self._schema
        if schema is not None:
            schema = schema.append(pa.field(rank_column, pa.int64()))
        return self._operator(
            "top_n",
            factory,
            options,
            schema=schema,
            detail=f"{n} by {by}{' ascending' if ascending else ''}  emit={emit}",
            stateful=True,
            # Best rows may be old: they come again when another one changes.
            keeps_time=False,
        )
