"""From the logical graph to the physical plan: chains, edges and what to warn about.

Why it exists: all decisions about where rows cross a process are made here, in one pass over
plain data, so that ``explain`` can show them and a test can pin them down.

What it decides:

- *Chaining.* An operator joins the chain of the one it reads when that is all it reads, it is
  the only reader of that main output, the rows need not move (forward), parallelism and
  resources are equal, and neither end called ``disable_chaining()``.
- *Edges.* ``key_by`` is a hash edge; a change of parallelism is a rebalance; a union is several
  edges into one input; a side output is an edge with a tag from inside a chain.
- *Local pre-aggregation.* An aggregate that offers a local half has it run at the tail of the
  chain before the shuffle, so that the shuffle carries partial results; unless somebody reads
  its side outputs, for which the rows themselves must arrive.
- *Uids.* Missing ones are generated from kind and position, the same way every time.

Source: chaining after Flink's ``StreamingJobGraphGenerator``; the local half is the combiner of
Dean and Ghemawat, "MapReduce", 2004.

May import: plan.graph, plan.physical and what they may.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from helios_ray.connectors.base import Guarantee, Sink
from helios_ray.errors import ConfigError, PlanError
from helios_ray.identifiers import check_name
from helios_ray.plan.graph import (
    CallSite,
    Collects,
    Graph,
    Link,
    Node,
    Reads,
    Transforms,
    Writes,
)
from helios_ray.plan.order import reaching_sinks, topological
from helios_ray.plan.physical import (
    DEFAULT_MAX_PARALLELISM,
    Chain,
    Edge,
    OperatorSpec,
    Partitioning,
    PhysicalPlan,
    Resources,
    SinkSpec,
    SourceSpec,
)

CollectFactory: TypeAlias = Callable[[str], Callable[[], Sink]]
"""Given a collecting sink's uid, what makes the sink; known once there is storage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What the environment decides for all operators.

    Args:
        parallelism: of operators that do not say.
        max_parallelism: number of key groups.
        resources: of operators that do not say.
        chaining: False gives every operator its own actor.
        local_aggregation: False never aggregates before a shuffle.
    """

    parallelism: int = 1
    max_parallelism: int = DEFAULT_MAX_PARALLELISM
    resources: Resources = field(default_factory=Resources)
    chaining: bool = True
    local_aggregation: bool = True


@dataclass(frozen=True, slots=True)
class Hint:
    """Something the author of the dataflow should hear once, and the line it is about."""

    message: str
    call_site: CallSite


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledPlan:
    """The physical plan and how it came from the graph.

    Args:
        plan: what runs.
        nodes: node by the uid it got.
        hints: for the author, as ``PlanWarning``.
    """

    plan: PhysicalPlan
    nodes: Mapping[str, Node]
    hints: tuple[Hint, ...]


class SinkCopies:
    """Makes a fresh copy of a sink per subtask and epoch, from a prototype never opened."""

    def __init__(self, prototype: Sink) -> None:
        self._prototype = prototype

    def __call__(self) -> Sink:
        return copy.deepcopy(self._prototype)


class _NoStorageYet:
    """Stands for a collecting sink in a plan that is only looked at."""

    def __init__(self, uid: str) -> None:
        self._uid = uid

    def __call__(self) -> Sink:
        raise PlanError(
            f"collecting sink {self._uid!r} has no storage: this plan was compiled to be looked "
            f"at. Run the job with env.execute(name)."
        )


def compile_graph(
    graph: Graph,
    job: str,
    settings: PlanSettings | None = None,
    collect: CollectFactory = _NoStorageYet,
) -> CompiledPlan:
    """Decide what runs where.

    Args:
        graph: the dataflow.
        job: name of the job.
        settings: defaults for all operators.
        collect: resolves collecting sinks.

    Raises:
        PlanError: no stream ends in a sink.
        CycleError: the dataflow loops back on itself.
        ConfigError: the job's name is no name, or an operator's parallelism exceeds
            ``max_parallelism``.
    """
    return _Compiler(graph, check_name("job name", job), settings or PlanSettings(), collect).run()


class _Compiler:
    def __init__(
        self, graph: Graph, job: str, settings: PlanSettings, collect: CollectFactory
    ) -> None:
        self._graph = graph
        self._job = job
        self._settings = settings
        self._collect = collect
        self._hints: list[Hint] = []
        live = reaching_sinks(graph)
        self._order = [node for node in topological(graph) if node.id in live]
        self._uids = self._name_everything()
        self._readers = Counter(
            (link.upstream, link.tag) for node in self._order for link in node.inputs
        )
        read = {link.upstream for node in graph for link in node.inputs}
        for node in graph:
            if node.id not in live and node.id not in read:
                self._hint_unread(node)
        self._hint_timeless()

    def run(self) -> CompiledPlan:
        members: dict[int, list[Node]] = {}
        head_of: dict[int, int] = {}
        for node in self._order:
            self._check_parallelism(node)
            head = head_of[node.inputs[0].upstream] if self._chains(node) else node.id
            head_of[node.id] = head
            members.setdefault(head, []).append(node)

        edges: list[Edge] = []
        local: dict[int, OperatorSpec] = {}
        merging: set[int] = set()
        for head in members:
            node = self._graph[head]
            for link in node.inputs:
                sender = self._uids[link.upstream]
                if spec := self._local_half(node, link):
                    local[head_of[link.upstream]] = spec
                    merging.add(head)
                    sender = spec.uid
                edges.append(
                    Edge(
                        index=len(edges),
                        upstream=self._uids[head_of[link.upstream]],
                        operator=sender,
                        tag=link.tag,
                        downstream=self._uids[head],
                        partitioning=self._partitioning(link, node),
                        keys=link.keys,
                        input_index=link.input_index,
                    )
                )
        plan = PhysicalPlan(
            job=self._job,
            chains=tuple(
                self._chain(nodes, local.get(head), head in merging)
                for head, nodes in members.items()
            ),
            edges=tuple(edges),
            max_parallelism=self._settings.max_parallelism,
            warnings=tuple(self._guarantee_warnings()),
        )
        return CompiledPlan(
            plan=plan,
            nodes={self._uids[n.id]: n for n in self._order},
            hints=tuple(self._hints),
        )

    # ------------------------------------------------------------------------------- names

    def _name_everything(self) -> dict[int, str]:
        taken = {node.uid for node in self._graph if node.uid is not None}
        seen: Counter[str] = Counter()
        uids: dict[int, str] = {}
        live = {node.id for node in self._order}
        # Every node of the graph is counted, so that giving one a uid moves no other.
        for node in self._graph:
            seen[node.kind] += 1
            uid = node.uid
            if uid is None:
                uid = _free(f"{node.kind}-{seen[node.kind]}", taken)
                if node.stateful and node.id in live:
                    self._hint_uid(node, uid)
            taken.add(uid)
            uids[node.id] = uid
        return uids

    def _hint_uid(self, node: Node, uid: str) -> None:
        self._hints.append(
            Hint(
                f"{node.kind} at {node.call_site} has no uid, so its state is stored under the "
                f"generated name {uid!r}, which another {node.kind} put before it would change: "
                f"the job could then not resume. Add uid={uid!r} (or a name you like better).",
                node.call_site,
            )
        )

    def _hint_unread(self, node: Node) -> None:
        self._hints.append(
            Hint(
                f"{node} leads to no sink and will not run. End it with .sink_to(...), .print() "
                f"or .collect(), or take it out.",
                node.call_site,
            )
        )

    def _hint_timeless(self) -> None:
        """Operators that wait for event time which no source tells."""
        timed: set[int] = set()
        for node in self._order:
            told = isinstance(node.role, Reads) and node.role.watermarks is not None
            if told or any(link.upstream in timed for link in node.inputs):
                timed.add(node.id)
            elif node.uses_event_time:
                self._hints.append(
                    Hint(
                        f"{node} goes by event time, and no source before it has a watermark "
                        f"strategy: nothing comes out before the input has ended. Give the source "
                        f"WatermarkStrategy.bounded_out_of_orderness(column, delay).",
                        node.call_site,
                    )
                )

    def _guarantee_warnings(self) -> list[str]:
        return [
            f"sink {self._uids[node.id]!r} ({node.detail}) is at-least-once: after a failure, rows "
            f"written since the last checkpoint can appear again"
            for node in self._order
            if isinstance(node.role, Writes)
            and node.role.prototype.guarantee is Guarantee.AT_LEAST_ONCE
        ]

    # ------------------------------------------------------------------------ what goes where

    def _parallelism(self, node: Node) -> int:
        return self._settings.parallelism if node.parallelism is None else node.parallelism

    def _resources(self, node: Node) -> Resources:
        return self._settings.resources if node.resources is None else node.resources

    def _check_parallelism(self, node: Node) -> None:
        parallelism, most = self._parallelism(node), self._settings.max_parallelism
        if parallelism > most:
            raise ConfigError(
                f"{node} has parallelism {parallelism}, but max_parallelism is {most}: there are "
                f"only that many key groups to share out. Lower the parallelism, or start the job "
                f"with .with_max_parallelism({parallelism}) or more (it is fixed for the life of "
                f"the job's state)."
            )

    def _partitioning(self, link: Link, node: Node) -> Partitioning:
        if link.partitioning is not None:
            return link.partitioning
        if self._parallelism(self._graph[link.upstream]) == self._parallelism(node):
            return Partitioning.FORWARD
        return Partitioning.REBALANCE

    def _chains(self, node: Node) -> bool:
        """Whether ``node`` joins the chain of the one node it reads."""
        if not self._settings.chaining or not node.chainable or len(node.inputs) != 1:
            return False
        if node.starts_chain:
            return False
        link = node.inputs[0]
        upstream = self._graph[link.upstream]
        return (
            upstream.chainable
            and link.tag is None
            and self._readers[link.upstream, None] == 1
            and self._partitioning(link, node) is Partitioning.FORWARD
            and self._resources(upstream) == self._resources(node)
        )

    def _local_half(self, node: Node, link: Link) -> OperatorSpec | None:
        """The operator to run before this shuffle, where that changes nothing but its size."""
        role = node.role
        upstream = self._graph[link.upstream]
        if (
            not isinstance(role, Transforms)
            or role.two_stage is None
            or not (self._settings.chaining and self._settings.local_aggregation)
            or not (node.chainable and upstream.chainable)
            or len(node.inputs) != 1
            or self._partitioning(link, node) not in (Partitioning.HASH, Partitioning.REBALANCE)
            or any(self._readers[node.id, tag] for tag in node.side_outputs)
            or link.tag is not None
            or self._readers[link.upstream, None] != 1
        ):
            return None
        uid = _free(f"{self._uids[node.id]}.local", set(self._uids.values()))
        name = f"local {node.name or node.kind}"
        return OperatorSpec(uid=uid, name=name, factory=role.two_stage.local)

    def _chain(self, members: list[Node], local: OperatorSpec | None, merges: bool) -> Chain:
        """Fuse ``members`` and then ``local``; ``merges``: the first gets partial results."""
        source: SourceSpec | None = None
        sink: SinkSpec | None = None
        operators: list[OperatorSpec] = []
        for node in members:
            uid, name = self._uids[node.id], node.name or node.kind
            match node.role:
                case Reads(source=reader, watermarks=watermarks):
                    source = SourceSpec(uid=uid, name=name, source=reader, watermarks=watermarks)
                case Transforms(factory=factory, two_stage=stages):
                    if merges and node is members[0] and stages is not None:
                        factory = stages.merge
                    operators.append(OperatorSpec(uid=uid, name=name, factory=factory))
                case Writes(prototype=prototype):
                    sink = SinkSpec(uid=uid, name=name, factory=SinkCopies(prototype))
                case Collects():
                    sink = SinkSpec(uid=uid, name=name, factory=self._collect(uid))
        if local is not None:
            operators.append(local)
        return Chain(
            uid=self._uids[members[0].id],
            name=" -> ".join(node.name or node.kind for node in members),
            parallelism=self._parallelism(members[0]),
            source=source,
            operators=tuple(operators),
            sink=sink,
            resources=self._resources(members[0]),
        )


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "-auto"
    return name
