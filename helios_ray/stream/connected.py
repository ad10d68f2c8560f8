"""Two streams side by side, for a function that sees rows of both.

Why it exists: what is neither a join nor a union (a control stream, a rule table, two feeds
that share state) is a function with two inputs.

May import: plan, operators, base and keyed_stream of this room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from helios_ray.errors import PlanError
from helios_ray.operators.base import Operator
from helios_ray.operators.process.connected import BroadcastProcessOperator, CoProcessOperator
from helios_ray.operators.process.function import BroadcastProcessFunction, CoProcessFunction
from helios_ray.plan.graph import describe_function
from helios_ray.plan.options import OperatorOptions
from helios_ray.plan.physical import Partitioning
from helios_ray.plan.schema import describe_schema
from helios_ray.stream.base import BaseStream, OnError, made, where

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from helios_ray.stream.data_stream import DataStream


@dataclass(frozen=True, slots=True)
class ConnectedStreams:
    """Two streams for one function; made by ``connect``.

    - Both keyed: ``process(CoProcessFunction)``; state and timers are shared by key.
    - The second one broadcast: ``process(BroadcastProcessFunction)``; every subtask gets every
      row of it, and the first stream may be keyed or not.

    Example:
        >>> import pyarrow as pa
        >>> from helios_ray import StreamExecutionEnvironment
        >>> from helios_ray.functions import BroadcastProcessFunction, BroadcastState
        >>> class Limits(BroadcastProcessFunction):
        ...     limits = BroadcastState(pa.string(), pa.int64())
        ...
        ...     def process_element(self, row, ctx):
        ...         if row["n"] > self.limits.get(row["kind"], 10):
        ...             yield row
        ...
        ...     def process_broadcast_element(self, row, ctx):
        ...         self.limits.put(row["kind"], row["limit"])
        >>> env = StreamExecutionEnvironment()
        >>> rows = env.from_items([{"kind": "a", "n": 5}], uid="rows")
        >>> rules = env.from_items([{"kind": "a", "limit": 3}], uid="rules")
        >>> rows.connect(rules.broadcast()).process(Limits, schema=rows.schema, uid="limits")
        DataStream[kind: string, n: int64]
    """

    first: BaseStream
    second: BaseStream

    def __repr__(self) -> str:
        one, two = describe_schema(self.first.schema), describe_schema(self.second.schema)
        return f"ConnectedStreams[{one} | {two}]"

    def process(
        self,
        function: Any,
        *,
        schema: pa.Schema | None = None,
        side_outputs: Mapping[str, pa.Schema | None] | None = None,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Run a function of the rows of both streams.

        Args:
            function: a ``CoProcessFunction`` or ``BroadcastProcessFunction``, an instance or a
                class without arguments.
            schema, side_outputs, on_error: as for ``KeyedStream.process``.

        Raises:
            PlanError: the streams are not keyed or broadcast as the function needs them.
            ConfigError: it is no such function, or the keys do not fit each other.
        """
        told: dict[str, Any] = {
            "schema": schema, "side_outputs": side_outputs, "on_error": on_error,
        }  # fmt: skip
        first, second = self.first, self.second
        factory: Callable[..., Operator]
        if _is_broadcast(second):
            self._require(function, BroadcastProcessFunction, "the second stream is broadcast")
            factory = partial(BroadcastProcessOperator, _keys(first), function, **told)
            made("process", partial(factory, input_schema=first.schema))
        else:
            self._require(function, CoProcessFunction, "the second stream is not broadcast")
            if not _keys(first) or not _keys(second):
                raise PlanError(
                    f"{where('process')}: both streams must be keyed, by as many columns. Write "
                    f"a.key_by('x').connect(b.key_by('y')), or a.connect(b.broadcast())."
                )
            factory = partial(CoProcessOperator, _keys(first), _keys(second), function, **told)
            made("process", partial(factory, input_schemas=(first.schema, second.schema)))
        return first._operator(
            "process",
            factory,
            options,
            inputs=first._with(second, "connect"),
            schema=schema,
            detail=describe_function(function),
            on_error=on_error,
            side_outputs=side_outputs,
            stateful=True,
        )

    def _require(self, function: Any, kind: type, because: str) -> None:
        if isinstance(function, kind) or (
            isinstance(function, type) and issubclass(function, kind)
        ):
            return
        raise PlanError(
            f"{where('process')}: {because}, so it takes a {kind.__name__}, got {function!r}. "
            f"Derive from helios_ray.functions.{kind.__name__}, or connect the streams another "
            f"way."
        )


def connected(first: BaseStream, second: BaseStream) -> ConnectedStreams:
    """Two streams of one environment, side by side.

    Raises:
        PlanError: they are not of one environment, or the first one is broadcast.
    """
    first._check_same_graph(second, "connect")
    if _is_broadcast(first):
        raise PlanError(
            f"{where('connect')}: the broadcast stream comes second. Write "
            f"stream.connect(rules.broadcast())."
        )
    return ConnectedStreams(first, second)


def _is_broadcast(stream: BaseStream) -> bool:
    return all(link.partitioning is Partitioning.BROADCAST for link in stream._links)


def _keys(stream: BaseStream) -> tuple[str, ...]:
    found: tuple[str, ...] = getattr(stream, "keys", ())
    return found
