"""Starting a job: from a compiled plan to a coordinator actor.

Why it exists: what can be found wrong before anything runs is found here, on the driver:
storage that is not there, keys that are missing, a name that is taken.

May import: everything below, and ``ray``.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from helios_ray.checkpoint.config import CheckpointConfig
from helios_ray.checkpoint.layout import manifest_of
from helios_ray.errors import ConfigError
from helios_ray.execution.task import TaskOptions
from helios_ray.identifiers import check_name
from helios_ray.plan.options import JobOptions
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.protocol.checkpoints import CheckpointRules
from helios_ray.protocol.restart import ExponentialBackoff, RestartStrategy
from helios_ray.protocol.settings import CoordinatorRules
from helios_ray.runtime.coordinator_actor import coordinator_actor_class
from helios_ray.runtime.deployment import NAMESPACE, JobSpec, coordinator_name, pack
from helios_ray.runtime.job import JobHandle
from helios_ray.runtime.placement import check_cluster
from helios_ray.runtime.ray_dataset import hold_datasets
from helios_ray.runtime.reports import JobReport

logger = logging.getLogger("helios_ray")


def submit(
    plan: PhysicalPlan,
    config: CheckpointConfig,
    *,
    restore: int | str | None,
    restart_strategy: RestartStrategy | None,
    options: JobOptions,
) -> JobHandle:
    """Start a job and return its handle.

    Args:
        plan: what to run.
        config: where and how to checkpoint.
        restore: ``"latest"``, a checkpoint id, the path of a checkpoint of this job, or None.
        restart_strategy: None for exponential backoff.
        options: see there.

    Raises:
        StorageError: storage is not reachable or not writable.
        ConfigError: a job of this name is running already.
    """
    check_name("job", plan.job)
    for warning in plan.warnings:
        logger.warning(warning)
    config.storage.open().scoped(plan.job).check()
    config = config.prepared()
    if not ray.is_initialized():
        ray.init(**{"log_to_driver": True, **options.ray_options})
    check_cluster(plan)
    plan, kept = hold_datasets(plan, detached=options.detached)
    spec = JobSpec(
        plan=plan,
        config=config,
        rules=_rules(config, restart_strategy, options),
        options=_task_options(options),
        restore=_checkpoint_id(restore),
        detached=options.detached,
        allow_unmatched_state=options.allow_unmatched_state,
    )
    try:
        actor = _start_coordinator(plan.job, spec)
    except BaseException:
        for held in kept:
            held.release()
        raise
    return JobHandle(plan.job, actor, config, detached=options.detached, kept=kept)


def _start_coordinator(job: str, spec: JobSpec) -> Any:
    actor_class = coordinator_actor_class()
    options: dict[str, Any] = {"name": coordinator_name(job), "namespace": NAMESPACE}
    if spec.detached:
        options["lifetime"] = "detached"
    parts = pack(spec)
    deadline = time.monotonic() + 5.0
    while True:
        try:
            return actor_class.options(**options).remote(*parts)
        except ValueError as error:
            # The name of a coordinator that was just killed is freed a little later.
            if _is_running(job) or time.monotonic() > deadline:
                raise ConfigError(
                    f"a job {job!r} is running already on this Ray cluster. Attach to it with "
                    f"JobHandle.attach({job!r}), stop it, or run this one under another name."
                ) from error
            time.sleep(0.1)


def _is_running(job: str) -> bool:
    try:
        actor = ray.get_actor(coordinator_name(job), namespace=NAMESPACE)
        report: JobReport = ray.get(actor.report.remote(), timeout=5)
    except (ValueError, RayActorError, GetTimeoutError):
        return False
    if report.status.terminal:
        ray.kill(actor, no_restart=True)
        return False
    return True


def _checkpoint_id(restore: int | str | None) -> int | str | None:
    if restore is None or restore == "latest" or isinstance(restore, int):
        return restore
    tail = re.search(r"checkpoints/\d+(/manifest)?/?$", restore)
    path = tail.group(0).rstrip("/") if tail else ""
    number = manifest_of(path if path.endswith("manifest") else path + "/manifest")
    if number is None:
        raise ConfigError(
            f"restore must be 'latest', a checkpoint id, None, or the path of a checkpoint of "
            f"this job (…/checkpoints/0000000042), got {restore!r}. To resume from another "
            f"place, point CheckpointConfig.storage at it."
        )
    return number


def _rules(
    config: CheckpointConfig, strategy: RestartStrategy | None, options: JobOptions
) -> CoordinatorRules:
    rules = CoordinatorRules(
        checkpoints=CheckpointRules(
            interval=config.interval.total_seconds(),
            min_pause=config.effective_min_pause.total_seconds(),
            max_concurrent=config.max_concurrent,
            timeout=config.timeout.total_seconds(),
            tolerable_failures=config.tolerable_failures,
            retain_count=config.retain_count,
        ),
        restart=strategy or ExponentialBackoff(),
    )
    if options.heartbeat_timeout is not None:
        rules = replace(rules, heartbeat_timeout=options.heartbeat_timeout.total_seconds())
    if options.stall_timeout is not None:
        rules = replace(rules, stall_timeout=options.stall_timeout.total_seconds())
    return rules


def _task_options(options: JobOptions) -> TaskOptions:
    usual = TaskOptions()
    channels, heartbeat = usual.channels, usual.heartbeat_interval
    if options.buffer_timeout is not None:
        channels = replace(channels, buffer_timeout=options.buffer_timeout.total_seconds())
    if options.heartbeat_timeout is not None:
        # Several may be late before the last of them is missed.
        heartbeat = min(heartbeat, options.heartbeat_timeout.total_seconds() / 4)
    return replace(usual, channels=channels, heartbeat_interval=heartbeat)
