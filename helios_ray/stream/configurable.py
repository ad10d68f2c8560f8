"""The fluent setters: ``.uid("x").name("y").set_parallelism(4)``, as Flink spells them.

Why it exists: streams and sinks share them. They change the operator that was described
last; the keyword arguments of the operators say the same in one place and are the main form.

May import: plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from helios_ray.errors import PlanError
from helios_ray.plan.graph import Graph
from helios_ray.plan.options import check_count, check_resources

Self = TypeVar("Self", bound="Configurable")


class Configurable:
    """Something whose last operator can be told more about itself."""

    _graph: Graph
    _node: int | None

    def uid(self: Self, uid: str) -> Self:
        """Give the last operator a stable uid: its state is stored under it.

        Raises:
            DuplicateUidError: another operator has it; both lines of code are named.
            ConfigError: it cannot be part of a path.
        """
        self._graph.change(self._last("uid"), uid=uid)
        return self

    def name(self: Self, name: str) -> Self:
        """Give the last operator a name for people."""
        self._graph.change(self._last("name"), name=name)
        return self

    def set_parallelism(self: Self, parallelism: int) -> Self:
        """Run the last operator as ``parallelism`` subtasks.

        Raises:
            ConfigError: it is not a whole number from 1.
        """
        count = check_count("parallelism", parallelism, "set_parallelism")
        self._graph.change(self._last("set_parallelism"), parallelism=count)
        return self

    def set_resources(
        self: Self,
        *,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> Self:
        """Ask Ray for resources for each subtask of the last operator.

        Raises:
            ConfigError: an amount is negative.
        """
        asked = check_resources("set_resources", num_cpus, num_gpus, memory, resources)
        self._graph.change(self._last("set_resources"), resources=asked)
        return self

    def disable_chaining(self: Self) -> Self:
        """Run the last operator in actors of its own, fused with no neighbour."""
        self._graph.change(self._last("disable_chaining"), chainable=False)
        return self

    def _last(self, setter: str) -> int:
        if self._node is None:
            raise PlanError(
                f".{setter}(...) sets something on the operator described last, but union, "
                f"key_by, rebalance, broadcast and side outputs are no operators. Call it right "
                f"after map, aggregate, … or pass the operator {setter.removeprefix('set_')}=…"
            )
        return self._node


class DataStreamSink(Configurable):
    """The end of a stream. Nothing follows it; the setters still apply."""

    def __init__(self, graph: Graph, node: int) -> None:
        self._graph = graph
        self._node = node

    def __repr__(self) -> str:
        return f"DataStreamSink({self._graph[self._last('uid')]})"
