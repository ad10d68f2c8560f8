"""What all streams are made of: links into a graph, a schema, and the way to add a node.

Why it exists: the methods of a stream are told apart by what they do to rows and live in one
module each; this is the part they share.

May import: plan, operators, watermarks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import pyarrow as pa

from helios_ray.errors import ConfigError, DataError, PlanError
from helios_ray.operators.base import Operator
from helios_ray.operators.user_functions import DEAD_LETTER, DEAD_LETTER_SCHEMA
from helios_ray.plan.graph import CallSite, Graph, Link, Node, Role, Transforms, TwoStage
from helios_ray.plan.options import OperatorOptions, node_fields
from helios_ray.plan.physical import Partitioning
from helios_ray.plan.schema import describe_schema
from helios_ray.stream.configurable import Configurable
from helios_ray.watermarks import EventTime

if TYPE_CHECKING:
    from helios_ray.stream.data_stream import DataStream

Row: TypeAlias = Any
"""A row as functions see it: a dict of Python values by column."""

AnyExpression: TypeAlias = Any
"""``col("price") > 100`` or ``pc.field("price") > 100``."""

OnError: TypeAlias = Literal["raise", "skip", "dead_letter"]
"""What becomes of a row whose function raises: it fails the job, is dropped and counted, or
goes to ``dead_letters()`` and is counted."""


class BaseStream(Configurable):
    """Rows on their way, before it is said what can be done with them."""

    def __init__(
        self,
        graph: Graph,
        links: Sequence[Link],
        schema: pa.Schema | None,
        node: int | None = None,
        *,
        time: EventTime | None = None,
    ) -> None:
        self._graph = graph
        self._links = tuple(links)
        self._schema = schema
        self._node = node
        self._time = time

    @property
    def schema(self) -> pa.Schema | None:
        """Columns and types, or None where a row function decides them when the job runs."""
        return self._schema

    @property
    def event_time(self) -> str | None:
        """The column that windows and joins go by unless told otherwise, if there is one.

        It comes from the source's watermark strategy, and of a window's results it is
        ``window_end``.
        """
        return None if self._time is None else self._time.column

    def __repr__(self) -> str:
        return f"{type(self).__name__}[{describe_schema(self._schema)}]"

    def _stream(
        self,
        links: Sequence[Link],
        schema: pa.Schema | None,
        node: int | None = None,
        *,
        time: EventTime | None = None,
    ) -> DataStream:
        """Rows of ``links``; by default their event time is this stream's, if they have it."""
        return self._of(links, schema, node, time=time or self._time)

    def _of(
        self,
        links: Sequence[Link],
        schema: pa.Schema | None,
        node: int | None = None,
        *,
        time: EventTime | None,
    ) -> DataStream:
        from helios_ray.stream.data_stream import DataStream

        if time is not None and schema is not None and time.column not in schema.names:
            time = None
        return DataStream(self._graph, links, schema, node, time=time)

    def _time_of(self, time: str | EventTime | None, kind: str) -> EventTime:
        """The event time to go by: as given, else the stream's own.

        Raises:
            PlanError: there is none.
            MissingColumnError: there is no such column; offers the nearest.
        """
        found = EventTime.of(time) or self._time
        here = where(kind)
        if found is None:
            raise PlanError(
                f"{here} goes by event time, and this stream has none. Give its source a "
                f"watermark strategy, such as WatermarkStrategy.bounded_out_of_orderness('ts', "
                f"timedelta(seconds=2)), or name the column with time='...'."
            )
        if (schema := self._schema) is not None:
            made(kind, lambda: found.check(schema, here))
        return found

    def _operator(
        self,
        kind: str,
        factory: Callable[[], Operator],
        options: OperatorOptions,
        *,
        two_stage: TwoStage | None = None,
        on_error: OnError = "raise",
        side_outputs: Mapping[str, pa.Schema | None] | None = None,
        time: EventTime | None = None,
        keeps_time: bool = True,
        **fields: Any,
    ) -> DataStream:
        outputs = dict(side_outputs or {})
        if on_error == "dead_letter":
            outputs[DEAD_LETTER] = DEAD_LETTER_SCHEMA
        made(kind, factory)
        role = Transforms(factory=factory, two_stage=two_stage)
        node = self._add(kind, role, options, on_error=on_error, side_outputs=outputs, **fields)
        if time is None and keeps_time:
            time = self._time
        return self._of((Link(upstream=node.id),), node.schema, node.id, time=time)

    def _add(self, kind: str, role: Role, options: OperatorOptions, **fields: Any) -> Node:
        told = {
            "inputs": self._links,
            "input_schema": self._schema,
            "input_time": self._time,
            **fields,
        }
        return self._graph.add(kind=kind, role=role, **told, **node_fields(options, kind))

    def _with(self, other: BaseStream, kind: str) -> tuple[Link, ...]:
        """The links of an operator that reads this stream as input 0 and ``other`` as 1."""
        self._check_same_graph(other, kind)
        return (*self._links, *(replace(link, input_index=1) for link in other._links))

    def _check_same_graph(self, other: object, kind: str) -> None:
        if not isinstance(other, BaseStream):
            raise PlanError(f"{where(kind)}: expected a stream, got {other!r}.")
        if other._graph is not self._graph:
            raise PlanError(
                f"{where(kind)}: these streams belong to different environments. Build all "
                f"streams of a job from one StreamExecutionEnvironment."
            )

    def _partitioned(
        self, partitioning: Partitioning, keys: Sequence[str] = ()
    ) -> tuple[Link, ...]:
        return tuple(replace(li, partitioning=partitioning, keys=tuple(keys)) for li in self._links)


def where(kind: str) -> str:
    """The method and the line of user code that called it, for messages."""
    return f"{kind} at {CallSite.here()}"


Made = TypeVar("Made")


def made(kind: str, factory: Callable[[], Made]) -> Made:
    """What ``factory`` makes; bad arguments are refused on the line that gives them.

    Raises:
        ConfigError, PlanError, DataError: as the operator does, with the line of user code.
    """
    try:
        return factory()
    except (ConfigError, PlanError, DataError) as error:
        here = where(kind)
        if here in str(error):
            raise
        raise type(error)(f"{here}: {error}") from None


def by_name(aggregations: Mapping[str, Any] | None, named: Mapping[str, Any], kind: str) -> Any:
    """Results by name, from both ways of giving them.

    Raises:
        ConfigError: one was given without a name.
    """
    if aggregations is not None and not isinstance(aggregations, Mapping):
        raise ConfigError(
            f"{where(kind)}: each result needs a name, as in aggregate(n=count()), got "
            f"{aggregations!r} without one."
        )
    return {**(aggregations or {}), **named}


def check_callable(kind: str, fn: object) -> None:
    """Raise PlanError unless ``fn`` can be called."""
    if not callable(fn):
        raise PlanError(
            f"{where(kind)}: expected a function, got {fn!r}. Pass the function itself, not what "
            f"it returns."
        )
