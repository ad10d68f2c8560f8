"""Whether a cluster can ever hold a job.

Why it exists: Ray lets an actor that asks for more than the cluster has wait for ever, without a
word. A job that cannot start yet says so when it is submitted: as a warning, since the cluster
may grow once somebody waits.

May import: plan, errors, and ``ray``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray

from helios_ray.errors import ConfigError
from helios_ray.plan.graph import PlanWarning
from helios_ray.plan.physical import PhysicalPlan, Resources

_ROUNDING = 1e-6

_ARGUMENTS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


def check_cluster(plan: PhysicalPlan) -> None:
    """Compare what a job asks for with the Ray cluster that the program is connected to, and
    warn (``PlanWarning``) where it is more than there is.
    """
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    try:
        check_placement(plan, [node["Resources"] for node in nodes if node["Alive"]])
    except ConfigError as error:
        warnings.warn(str(error), PlanWarning, stacklevel=2)


def check_placement(plan: PhysicalPlan, nodes: Sequence[Mapping[str, float]]) -> None:
    """Compare what a job asks for with what nodes have, whoever uses it now.

    Args:
        plan: as compiled.
        nodes: resources of each living node, by Ray's names (``CPU``, ``GPU``, ``memory``).

    Raises:
        ConfigError: a subtask fits no node, or all of them together ask for more of
            something than there is.
    """
    total: dict[str, float] = {}
    askers: dict[str, list[str]] = {}
    for chain in plan.chains:
        asked = dict(_asked(chain.resources))
        if not any(all(_fits(a, node.get(r, 0)) for r, a in asked.items()) for node in nodes):
            raise ConfigError(
                f"operator {chain.uid!r}: each of its subtasks asks for {_say(asked)}, and no "
                f"node of the Ray cluster has that; the largest have {_say(_most(asked, nodes))}. "
                f"It waits until there is one. {_WAY_OUT}"
            )
        for resource, amount in asked.items():
            total[resource] = total.get(resource, 0) + amount * chain.parallelism
            askers.setdefault(resource, []).append(
                f"{chain.uid!r} {chain.parallelism} x {amount:g}"
            )
    for resource, amount in total.items():
        there = sum(node.get(resource, 0) for node in nodes)
        if not _fits(amount, there):
            raise ConfigError(
                f"job {plan.job!r} asks for {_say({resource: amount})} "
                f"({', '.join(askers[resource])}), and the Ray cluster has {there:g} in all. It "
                f"waits until there is more. {_WAY_OUT}"
            )


_WAY_OUT = (
    "Ask for less (a fraction lets operators share), lower the parallelism or concurrency, or "
    "add nodes; a cluster that scales by itself adds them, or is asked to by "
    "ray.autoscaler.sdk.request_resources(bundles=[...])."
)


def _asked(resources: Resources) -> Iterator[tuple[str, float]]:
    wanted = {
        "CPU": resources.num_cpus,
        "GPU": resources.num_gpus,
        "memory": resources.memory or 0,
        **resources.resources,
    }
    return ((name, amount) for name, amount in wanted.items() if amount)


def _fits(asked: float, there: float) -> bool:
    return asked <= there + _ROUNDING


def _most(asked: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: max((node.get(name, 0) for node in nodes), default=0) for name in asked}


def _say(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{_ARGUMENTS.get(name, name)}={a:g}" for name, a in amounts.items())
