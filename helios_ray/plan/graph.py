"""The logical graph: what the user described, as plain data, before anything is decided.

Why it exists: the fluent face only writes here and the compiler only reads here, so neither
knows the other. A node is one operator as the user named it; a link is one stream that it
reads. Union, key_by, rebalance and side outputs are not nodes: they are what a link says.

Promises: a uid is used once, and the second use is refused at the line that makes it; every
node knows the line of user code it came from.

May import: the rooms of the middle floor, plan.physical, and below.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import pyarrow as pa

from helios_ray.connectors.base import Sink, Source
from helios_ray.errors import DuplicateUidError, PlanError
from helios_ray.identifiers import check_name
from helios_ray.operators.base import Operator
from helios_ray.operators.expressions import is_expression
from helios_ray.plan.physical import Partitioning, Resources
from helios_ray.watermarks import EventTime, WatermarkStrategy

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class PlanWarning(UserWarning):
    """The dataflow runs, and something about it will surprise its owner one day."""


@dataclass(frozen=True, slots=True)
class CallSite:
    """A line of the user's code.

    Example:
        >>> str(CallSite("flights.py", 12))
        'flights.py:12'
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @classmethod
    def here(cls) -> CallSite:
        """The innermost line on the stack that is not this package's own."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
            frame = frame.f_back
        return cls(frame.f_code.co_filename, frame.f_lineno)


def describe_function(fn: object) -> str:
    """Name a user's function the way its author would find it.

    Example:
        >>> describe_function(len)
        'len'
        >>> import pyarrow.compute as pc
        >>> describe_function(pc.field("price") > 100)
        '(price > 100)'
    """
    if is_expression(fn):
        return str(fn)
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(fn, "__code__", None)
    name = getattr(fn, "__qualname__", None)
    if name is None:
        return type(fn).__qualname__
    name = name.rpartition("<locals>.")[2]
    if name == "<lambda>" and code is not None:
        return f"lambda at {os.path.basename(code.co_filename)}:{code.co_firstlineno}"
    return str(name)


def describe_connector(connector: Source | Sink) -> str:
    """A connector's own ``repr`` where it has one, else the name of its class."""
    plain = type(connector).__repr__ is object.__repr__
    return type(connector).__name__ if plain else repr(connector)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One stream that a node reads.

    Args:
        upstream: id of the node that it comes from.
        tag: None for that node's main output, or the name of a side output.
        partitioning: as the user asked, or None to let the compiler choose between forward
            and rebalance by the parallelism of both ends.
        keys: key columns, for ``HASH``.
        input_index: which input of the node these rows are; 1 is the second stream of a join
            or a connection.
    """

    upstream: int
    tag: str | None = None
    partitioning: Partitioning | None = None
    keys: tuple[str, ...] = ()
    input_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """The node is a source."""

    source: Source
    watermarks: WatermarkStrategy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStage:
    """An operator in two halves, with a shuffle between them.

    Args:
        local: makes the half before the shuffle; it keeps no state.
        merge: makes the half after it.
    """

    local: Callable[[], Operator]
    merge: Callable[[], Operator]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """The node is an operator.

    Args:
        factory: makes a fresh instance per subtask and epoch.
        two_stage: its halves, where the first may run before the shuffle without changing
            the result, or None. ``factory`` then makes both halves in one.
    """

    factory: Callable[[], Operator]
    two_stage: TwoStage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """The node is a sink; each subtask and epoch gets a copy of the prototype."""

    prototype: Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class Collects:
    """The node keeps its rows for ``results()``; where they go is known when the job starts."""


Role: TypeAlias = Reads | Transforms | Writes | Collects


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator as the user described it.

    Args:
        id: position in the graph.
        kind: the method that made it (``map``, ``aggregate``, …); generated uids start so.
        role: what it does.
        call_site: the line that made it.
        inputs: what it reads; one per stream of a union.
        uid: as given, or None until the compiler generates one.
        name: for people, or None to show the kind.
        detail: function, expression or connector, for ``explain``.
        parallelism: as given, or None for the environment's.
        resources: as given, or None for the defaults.
        chainable: False after ``disable_chaining()``.
        stateful: it keeps state under its uid, so a missing uid deserves a warning.
        starts_chain: it joins no chain before it: what others flush at their end must not
            enter it.
        uses_event_time: it waits for watermarks, so that some source should make them.
        on_error: what a failing row does, as the operator was told.
        input_schema: of the rows that arrive, where it is known.
        input_time: the event time of the rows that arrive, where they have one.
        schema: of its main output, where it is known.
        side_outputs: schema by tag.
    """

    id: int
    kind: str
    role: Role
    call_site: CallSite
    inputs: tuple[Link, ...] = ()
    uid: str | None = None
    name: str | None = None
    detail: str = ""
    parallelism: int | None = None
    resources: Resources | None = None
    chainable: bool = True
    stateful: bool = False
    starts_chain: bool = False
    uses_event_time: bool = False
    on_error: str = "raise"
    input_schema: pa.Schema | None = None
    input_time: EventTime | None = None
    schema: pa.Schema | None = None
    side_outputs: Mapping[str, pa.Schema | None] = field(default_factory=dict)

    @property
    def is_sink(self) -> bool:
        """Whether rows leave the job here."""
        return isinstance(self.role, Writes | Collects)

    def __str__(self) -> str:
        who = f"{self.kind} {self.uid!r}" if self.uid else self.kind
        return f"{who} at {self.call_site}"


class Graph:
    """The nodes of one environment, in the order they were described.

    Example:
        >>> graph = Graph()
        >>> list(graph)
        []
    """

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._uids: dict[str, int] = {}

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, node_id: int) -> Node:
        return self._nodes[node_id]

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._nodes

    def add(
        self,
        *,
        kind: str,
        role: Role,
        call_site: CallSite | None = None,
        uid: str | None = None,
        **fields: Any,
    ) -> Node:
        """Add a node and return it; ``fields`` are those of :class:`Node`.

        Raises:
            DuplicateUidError: another node carries ``uid``; both lines are named.
            ConfigError: ``uid`` cannot be part of a path.
        """
        site = call_site or CallSite.here()
        node = Node(id=len(self._nodes), kind=kind, role=role, call_site=site, **fields)
        for link in node.inputs:
            self._check_link(link, node)
        if uid is not None:
            node = self._claim(node, uid, site)
        self._nodes[node.id] = node
        return node

    def change(self, node_id: int, **fields: Any) -> Node:
        """Replace fields of a node; what the fluent setters do.

        Raises:
            DuplicateUidError: another node carries the new uid.
        """
        node = self._nodes[node_id]
        if "uid" in fields:
            old = node.uid
            node = self._claim(node, fields.pop("uid"), CallSite.here())
            if old is not None and old != node.uid:
                del self._uids[old]
        self._nodes[node_id] = node = replace(node, **fields)
        return node

    def _claim(self, node: Node, uid: str, site: CallSite) -> Node:
        check_name("uid", uid)
        holder = self._uids.get(uid, node.id)
        if holder != node.id:
            first = self._nodes[holder]
            again = (
                " It is the same line run twice: in a notebook, make a new "
                "StreamExecutionEnvironment() before describing the job again."
                if first.call_site == site
                else ""
            )
            raise DuplicateUidError(
                f"uid {uid!r} must name one operator, but {node.kind} at {site} reuses the uid of "
                f"{first.kind} at {first.call_site}. State is stored under the uid; "
                f"give one of them another.{again}"
            )
        self._uids[uid] = node.id
        return replace(node, uid=uid)

    def _check_link(self, link: Link, node: Node) -> None:
        if link.upstream not in self._nodes:
            raise PlanError(
                f"{node} reads operator number {link.upstream}, which this environment does not "
                f"have. Build every stream of a job from one StreamExecutionEnvironment."
            )
        upstream = self._nodes[link.upstream]
        if link.tag is not None and link.tag not in upstream.side_outputs:
            have = sorted(upstream.side_outputs) or "none"
            raise PlanError(
                f"{node} reads side output {link.tag!r} of {upstream}, whose side outputs are "
                f"{have}. Use one of those."
            )
