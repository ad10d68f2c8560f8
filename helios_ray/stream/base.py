"""What all streams are made of: links into a graph, a schema, and the way to add a node.

Why it exists: the methods of a stream are told apart by what they do to rows and live in one
module each; this is the part they share.

May import: plan, operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pyarrow as pa

from helios_ray.errors import PlanError
from helios_ray.operators.base import Operator
from helios_ray.operators.user_functions import DEAD_LETTER, DEAD_LETTER_SCHEMA
from helios_ray.plan.graph import CallSite, Graph, Link, Node, Role, Transforms, TwoStage
from helios_ray.plan.options import OperatorOptions, node_fields
from helios_ray.plan.physical import Partitioning
from helios_ray.plan.schema import describe_schema
from helios_ray.stream.configurable import Configurable

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
    ) -> None:
        self._graph = graph
        self._links = tuple(links)
        self._schema = schema
        self._node = node

    @property
    def schema(self) -> pa.Schema | None:
        """Columns and types, or None where a row function decides them when the job runs."""
        return self._schema

    def __repr__(self) -> str:
        return f"{type(self).__name__}[{describe_schema(self._schema)}]"

    def _stream(
        self, links: Sequence[Link], schema: pa.Schema | None, node: int | None = None
    ) -> DataStream:
        from helios_ray.stream.data_stream import DataStream

        return DataStream(self._graph, links, schema, node)

    def _operator(
        self,
        kind: str,
        factory: Callable[[], Operator],
        options: OperatorOptions,
        *,
        two_stage: TwoStage | None = None,
        on_error: OnError = "raise",
        side_outputs: Mapping[str, pa.Schema | None] | None = None,
        **fields: Any,
    ) -> DataStream:
        outputs = dict(side_outputs or {})
        if on_error == "dead_letter":
            outputs[DEAD_LETTER] = DEAD_LETTER_SCHEMA
        factory()  # refuses bad arguments on the line that gives them
        role = Transforms(factory=factory, two_stage=two_stage)
        node = self._add(kind, role, options, on_error=on_error, side_outputs=outputs, **fields)
        return self._stream((Link(upstream=node.id),), node.schema, node.id)

    def _add(self, kind: str, role: Role, options: OperatorOptions, **fields: Any) -> Node:
        return self._graph.add(
            kind=kind,
            role=role,
            inputs=self._links,
            input_schema=self._schema,
            **fields,
            **node_fields(options, kind),
        )

    def _partitioned(
        self, partitioning: Partitioning, keys: Sequence[str] = ()
    ) -> tuple[Link, ...]:
        return tuple(replace(li, partitioning=partitioning, keys=tuple(keys)) for li in self._links)


def where(kind: str) -> str:
    """The method and the line of user code that called it, for messages."""
    return f"{kind} at {CallSite.here()}"


def check_callable(kind: str, fn: object) -> None:
    """Raise PlanError unless ``fn`` can be called."""
    if not callable(fn):
        raise PlanError(
            f"{where(kind)}: expected a function, got {fn!r}. Pass the function itself, not what "
            f"it returns."
        )
