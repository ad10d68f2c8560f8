"""The physical plan: what runs where, as plain data.

Why it exists: the compiler writes it; the coordinator deploys it; the simulator runs it.
Nothing in it knows Ray. It is picklable as long as the user's functions are.

Words: a *chain* is a run of operators fused into one task; a chain has ``parallelism``
subtasks, each of which is one actor; an *edge* connects two chains and is made of channels.

May import: the rooms of the middle floor (operators, connectors, state) and below.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from helios_ray.connectors.base import Sink, Source
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.operators.base import Operator
from helios_ray.watermarks import WatermarkStrategy

DEFAULT_MAX_PARALLELISM = 128


class Partitioning(enum.Enum):
    """How rows choose among the subtasks of the downstream chain."""

    FORWARD = "forward"
    """Subtask i to subtask i; both chains have the same parallelism."""
    HASH = "hash"
    """By the key group of the key columns."""
    REBALANCE = "rebalance"
    """Batches in turn."""
    BROADCAST = "broadcast"
    """Every row to every subtask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one subtask asks of Ray. Defaults let a laptop run a job of many operators.

    Args:
        num_cpus: logical CPUs, fractions allowed.
        num_gpus: logical GPUs, fractions allowed.
        memory: bytes, or None.
        resources: custom resources by name.
    """

    num_cpus: float = 0.01
    num_gpus: float = 0.0
    memory: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """The source at the head of a chain."""

    uid: str
    name: str
    source: Source
    watermarks: WatermarkStrategy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSpec:
    """One operator of a chain; ``factory`` makes a fresh instance per subtask and epoch."""

    uid: str
    name: str
    factory: Callable[[], Operator]


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkSpec:
    """The sink at the tail of a chain; ``factory`` makes a fresh instance per subtask and epoch."""

    uid: str
    name: str
    factory: Callable[[], Sink]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Operators fused into one task.

    Args:
        uid: uid of the first operator; names the tasks.
        source: at the head, or None when rows come over edges.
        operators: in order.
        sink: at the tail, or None when rows leave over edges.
    """

    uid: str
    name: str
    parallelism: int
    source: SourceSpec | None = None
    operators: tuple[OperatorSpec, ...] = ()
    sink: SinkSpec | None = None
    resources: Resources = field(default_factory=Resources)

    @property
    def tasks(self) -> tuple[TaskId, ...]:
        """One per subtask."""
        return tuple(TaskId(self.uid, i) for i in range(self.parallelism))

    @property
    def uids(self) -> tuple[str, ...]:
        """Uids of everything inside, head to tail."""
        head = (self.source.uid,) if self.source else ()
        tail = (self.sink.uid,) if self.sink else ()
        return (*head, *(o.uid for o in self.operators), *tail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Rows going from one chain to another.

    Args:
        index: position in ``PhysicalPlan.edges``; part of the channel's name.
        upstream: uid of the chain that sends.
        operator: uid of the operator inside it whose output this is.
        tag: None for that operator's main output, or a side output's name.
        downstream: uid of the chain that receives.
        input_index: which input of the first operator downstream the rows are.
        keys: key columns, for ``HASH``.
    """

    index: int
    upstream: str
    operator: str
    downstream: str
    partitioning: Partitioning
    tag: str | None = None
    input_index: int = 0
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PhysicalPlan:
    """A job, ready to deploy.

    Args:
        job: its name.
        chains: in topological order.
        edges: ``edges[i].index == i``.
        max_parallelism: number of key groups.
        warnings: for the user, when the job starts.
    """

    job: str
    chains: tuple[Chain, ...]
    edges: tuple[Edge, ...]
    max_parallelism: int = DEFAULT_MAX_PARALLELISM
    warnings: tuple[str, ...] = ()

    def chain(self, uid: str) -> Chain:
        """The chain of that uid; KeyError if there is none."""
        for chain in self.chains:
            if chain.uid == uid:
                return chain
        raise KeyError(uid)

    @property
    def tasks(self) -> tuple[TaskId, ...]:
        """Every task of the job."""
        return tuple(t for c in self.chains for t in c.tasks)

    @property
    def parallelism(self) -> dict[str, int]:
        """Subtasks by operator uid, chained operators included."""
        return {uid: c.parallelism for c in self.chains for uid in c.uids}

    def channels(self) -> Iterator[ChannelId]:
        """Every channel of every edge."""
        for edge in self.edges:
            up, down = self.chain(edge.upstream), self.chain(edge.downstream)
            for source in up.tasks:
                for target in down.tasks:
                    if (
                        edge.partitioning is Partitioning.FORWARD
                        and source.subtask != target.subtask
                    ):
                        continue
                    yield ChannelId(edge.index, source, target)

    def inputs(self, task: TaskId) -> tuple[ChannelId, ...]:
        """Channels that end at a task, in a stable order."""
        return tuple(c for c in self.channels() if c.downstream == task)

    def outputs(self, task: TaskId) -> tuple[ChannelId, ...]:
        """Channels that start at a task, in a stable order."""
        return tuple(c for c in self.channels() if c.upstream == task)

    @property
    def source_tasks(self) -> tuple[TaskId, ...]:
        """Tasks without inputs: where barriers are injected."""
        return tuple(t for c in self.chains if c.source is not None for t in c.tasks)

    def sink_uids(self) -> dict[str, str]:
        """Chain uid by sink uid."""
        return {c.sink.uid: c.uid for c in self.chains if c.sink is not None}
