"""The plan, for people: what runs where, what crosses a process, what is guaranteed.

Why it exists: chaining and partitioning decide what a job costs, and guarantees decide what
it is good for; both are the compiler's decisions, so both must be visible before running.

May import: plan.compile and what it may.
"""

from __future__ import annotations

from collections.abc import Iterator

from helios_ray.connectors.base import Guarantee
from helios_ray.plan.compile import CompiledPlan
from helios_ray.plan.graph import Collects, Node, Writes
from helios_ray.plan.physical import Chain, Edge, Partitioning, Resources
from helios_ray.plan.schema import describe_schema


def explain_plan(compiled: CompiledPlan) -> str:
    """A compiled plan as text, one block per chain, in the order rows take.

    Example:
        >>> from helios_ray import StreamExecutionEnvironment
        >>> env = StreamExecutionEnvironment()
        >>> _ = env.from_range(10, uid="numbers").collect(uid="out")
        >>> print(explain_plan(env.compile("demo")))
        job demo: 1 actor in 1 chain, 0 edges, 128 key groups
        <BLANKLINE>
        chain numbers  (1 actor)
          range    numbers  RangeSource(0, 10, 1)
                   rows: item: int64
          collect  out      exactly-once
    """
    return "\n".join(_lines(compiled))


def _lines(compiled: CompiledPlan) -> Iterator[str]:
    plan = compiled.plan
    actors = sum(chain.parallelism for chain in plan.chains)
    yield (
        f"job {plan.job}: {_count(actors, 'actor')} in {_count(len(plan.chains), 'chain')}, "
        f"{_count(len(plan.edges), 'edge')}, {plan.max_parallelism} key groups"
    )
    width_kind = max(len(n.kind) for n in compiled.nodes.values())
    width_uid = max(len(uid) for chain in plan.chains for uid in chain.uids)
    for chain in plan.chains:
        yield ""
        yield f"chain {chain.uid}  ({_count(chain.parallelism, 'actor')}{_resources(chain)})"
        for edge in plan.edges:
            if edge.downstream == chain.uid:
                yield f"  <= {_edge(edge)}"
        shown: object = chain  # which is no schema: the first operator always says its own
        for uid in chain.uids:
            node = compiled.nodes.get(uid)
            kind = node.kind if node else "local"
            detail = _detail(node) if node else "aggregates before the shuffle"
            head = f"  {kind:<{width_kind}}  {uid:<{width_uid}}"
            yield f"{head}  {detail}".rstrip()
            if node is not None and node.schema != shown:
                yield f"  {'':<{width_kind}}  rows: {describe_schema(node.schema)}"
                shown = node.schema
    if plan.warnings or compiled.hints:
        yield ""
        yield "warnings"
        for text in (*plan.warnings, *(hint.message for hint in compiled.hints)):
            yield f"  - {text}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _resources(chain: Chain) -> str:
    asked, usual = chain.resources, Resources()
    parts = []
    if asked.num_cpus != usual.num_cpus:
        parts.append(f"num_cpus={asked.num_cpus:g}")
    if asked.num_gpus:
        parts.append(f"num_gpus={asked.num_gpus:g}")
    if asked.memory is not None:
        parts.append(f"memory={asked.memory}")
    parts += [f"{name}={amount:g}" for name, amount in asked.resources.items()]
    return f", each {' '.join(parts)}" if parts else ""


def _edge(edge: Edge) -> str:
    how = edge.partitioning.value
    if edge.partitioning is Partitioning.HASH:
        how += f"({', '.join(edge.keys)})"
    sender = edge.operator if edge.tag is None else f"{edge.operator}, side output {edge.tag!r}"
    return f"{how} from {sender}"


def _detail(node: Node) -> str:
    parts = []
    if node.name and node.name != node.kind:
        parts.append(f"[{node.name}]")
    if node.detail:
        parts.append(node.detail)
    if node.on_error != "raise":
        parts.append(f"on_error={node.on_error}")
    match node.role:
        case Writes(prototype=sink):
            parts.append(sink.guarantee.value)
        case Collects():
            parts.append(Guarantee.EXACTLY_ONCE.value)
        case _:
            pass
    return "  ".join(parts)
