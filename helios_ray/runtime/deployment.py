"""What a task's process is given: its spec when it starts, its order for each epoch.

Why it exists: these few values are all that crosses from the coordinator to a task besides
protocol messages. They are pickled, so they hold no connection and no key material.

May import: plan, execution, checkpoint, connectors, protocol, and ``ray`` handles as values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray import cloudpickle

from helios_ray.checkpoint.config import CheckpointConfig
from helios_ray.connectors.base import Guarantee, Split
from helios_ray.errors import ConfigError
from helios_ray.execution.drift import alignment_of
from helios_ray.execution.restore import objects_for
from helios_ray.execution.task import TaskOptions
from helios_ray.identifiers import TaskId
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.protocol.settings import CoordinatorRules, JobShape
from helios_ray.records import Manifest

NAMESPACE = "helios"
"""The Ray namespace of every actor of every job."""

SPEC_PART = 64 << 10
"""Arguments up to 100 KB stay with an actor; this leaves room for Ray's own part."""

LARGEST_SPEC = 6 << 20
"""Ray keeps up to 10 MiB of arguments with an actor."""

INLINE_BYTES = 16 << 10
"""Sealed state up to this size travels in the acknowledgement and is kept in the manifest."""


def actor_name(job: str, operator: str, subtask: int | str) -> str:
    """``helios:{job}:{operator}:{subtask}``, as ``ray list actors`` shows it."""
    return f"helios:{job}:{operator}:{subtask}"


def coordinator_name(job: str) -> str:
    """Name of a job's coordinator actor."""
    return f"helios:{job}:coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """Everything a coordinator needs to run a job, again and again.

    Args:
        restore: ``"latest"``, a checkpoint id or None; governs the first start only.
        config: with its key provider fixed to what every process can open.
    """

    plan: PhysicalPlan
    config: CheckpointConfig
    rules: CoordinatorRules
    options: TaskOptions
    restore: int | str | None = "latest"
    detached: bool = False
    allow_unmatched_state: bool = False


def pack(spec: JobSpec) -> list[bytes]:
    """A job's spec as arguments that Ray keeps with the actor itself.

    A larger argument would become an object that is freed once the actor has started: a
    coordinator that dies could then never be started again.

    Raises:
        ConfigError: the job's functions and items are too large for that.
    """
    data: bytes = cloudpickle.dumps(spec)  # type: ignore[no-untyped-call]
    if len(data) > LARGEST_SPEC:
        raise ConfigError(
            f"job {spec.plan.job!r} is described in {len(data):,} bytes, at most {LARGEST_SPEC:,} "
            f"are possible. Rows given to from_items and what functions close over travel with "
            f"the job: write them to files and use FileSource, or load them in the constructor "
            f"of a callable class."
        )
    return [data[i : i + SPEC_PART] for i in range(0, len(data), SPEC_PART)]


def unpack(parts: Sequence[bytes]) -> JobSpec:
    """What ``pack`` packed; it comes from the job's own driver, through Ray."""
    spec: JobSpec = cloudpickle.loads(b"".join(parts))
    return spec


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What a task's process is started with."""

    plan: PhysicalPlan
    config: CheckpointConfig
    options: TaskOptions
    task: TaskId
    incarnation: int
    coordinator: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetOrder:
    """What a task needs to join an epoch.

    Args:
        manifest: the checkpoint, cut down to what this task reads.
        splits: all splits of its source, if that starts afresh.
        peers: actor handles of the tasks it is connected to.
    """

    epoch: int
    first_checkpoint_id: int
    manifest: Manifest | None
    splits: tuple[Split, ...] = ()
    peers: Mapping[TaskId, Any] = field(default_factory=dict)


def cut_manifest(manifest: Manifest, plan: PhysicalPlan, task: TaskId) -> Manifest:
    """The part of a manifest that one task needs: its objects, and what its kind had seen."""
    wanted = {id(o) for o in objects_for(manifest, plan, task)}
    uids = set(plan.chain(task.operator).uids)
    return replace(
        manifest,
        tasks=tuple(
            replace(s, objects=tuple(o for o in s.objects if id(o) in wanted), prepared=())
            for s in manifest.tasks
            if s.task.operator == task.operator or any(o.operator in uids for o in s.objects)
        ),
    )


def shape_of(plan: PhysicalPlan) -> JobShape:
    """What the coordinator's core must know of a plan."""
    sinks = {
        chain.sink.uid: chain.tasks
        for chain in plan.chains
        if chain.sink is not None and chain.sink.factory().guarantee is Guarantee.EXACTLY_ONCE
    }
    return JobShape(
        job=plan.job,
        tasks=plan.tasks,
        sources=plan.source_tasks,
        sinks=sinks,
        parallelism=plan.parallelism,
        max_parallelism=plan.max_parallelism,
        alignment=alignment_of(plan),
    )
