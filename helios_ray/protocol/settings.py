"""What the coordinator core is told before it begins: the job's shape and its rules.

Why it exists: both are plain, frozen data that a plan and a configuration are turned into;
tests and the simulator write them down by hand.

May import: identifiers, and the settings of this room (checkpoints, restart).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from helios_ray.identifiers import TaskId
from helios_ray.protocol.checkpoints import CheckpointRules
from helios_ray.protocol.restart import ExponentialBackoff, RestartStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAlignment:
    """A source that waits for others of its group.

    Args:
        group: its name.
        max_drift: microseconds of event time that the source may be ahead of the least of it.
        update_interval: seconds after which the source says again how far it is.
    """

    group: str
    max_drift: int
    update_interval: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobShape:
    """What the coordinator must know of the plan.

    Args:
        job: its name.
        tasks: every task.
        sources: tasks without inputs.
        sinks: for each sink that takes part in two-phase commit, its tasks, by sink uid.
        parallelism: subtasks by operator uid.
        max_parallelism: number of key groups.
        alignment: for each source that waits for others, how; by the uid of its tasks.
    """

    job: str
    tasks: tuple[TaskId, ...]
    sources: tuple[TaskId, ...]
    sinks: Mapping[str, tuple[TaskId, ...]] = field(default_factory=dict)
    parallelism: Mapping[str, int] = field(default_factory=dict)
    max_parallelism: int = 128
    alignment: Mapping[str, SourceAlignment] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorRules:
    """Settings of the core; durations in seconds.

    Args:
        heartbeat_timeout: silence after which a task counts as dead.
        deploy_timeout: the same for a task that has just been started or reset.
        stall_timeout: time inside one call after which a task counts as hung.
        resend_interval: unanswered messages are repeated this often.
        storage_retry: wait before a failed or unanswered storage call is repeated.
        storage_attempts: such calls in a row before the attempt is given up.
    """

    checkpoints: CheckpointRules = field(default_factory=CheckpointRules)
    restart: RestartStrategy = field(default_factory=ExponentialBackoff)
    heartbeat_timeout: float = 10.0
    deploy_timeout: float = 120.0
    stall_timeout: float = 300.0
    resend_interval: float = 2.0
    storage_retry: float = 0.5
    storage_attempts: int = 20
