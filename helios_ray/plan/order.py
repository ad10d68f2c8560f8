"""Which nodes of a graph run, and in which order.

Why it exists: only what leads to a sink runs, and nothing runs before what it reads. The
fluent face cannot draw a loop; a graph that was put together by hand can.

Source: Kahn, "Topological sorting of large networks", 1962.

May import: plan.graph and what it may.
"""

from __future__ import annotations

from helios_ray.errors import CycleError, PlanError
from helios_ray.plan.graph import Graph, Node


def reaching_sinks(graph: Graph) -> set[int]:
    """Ids of the nodes that lead to a sink, the sinks included.

    Raises:
        PlanError: there is no sink.
    """
    reached = {node.id for node in graph if node.is_sink}
    if not reached:
        described = f"{len(graph)} operators" if len(graph) else "nothing"
        raise PlanError(
            f"a job needs at least one sink, but this environment describes {described} and no "
            f"sink. End a stream with .sink_to(...), .print() or .collect()."
        )
    waiting = list(reached)
    while waiting:
        for link in graph[waiting.pop()].inputs:
            if link.upstream not in reached:
                reached.add(link.upstream)
                waiting.append(link.upstream)
    return reached


def topological(graph: Graph) -> list[Node]:
    """Every node after all that it reads; in the order described otherwise.

    Raises:
        CycleError: there is no such order; names the nodes that wait for each other.
    """
    done: set[int] = set()
    order: list[Node] = []
    waiting = list(graph)
    while waiting:
        ready = next((n for n in waiting if all(li.upstream in done for li in n.inputs)), None)
        if ready is None:
            loop = ", ".join(str(node) for node in waiting)
            raise CycleError(
                f"the dataflow must not loop back on itself, but each of these waits for another "
                f"of them: {loop}. Barriers could never align; break the loop with a sink and a "
                f"source of their own."
            )
        waiting.remove(ready)
        done.add(ready.id)
        order.append(ready)
    return order
