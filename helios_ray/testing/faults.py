"""Real faults for running jobs: kill, hang and lose the processes behind a job.

Why it exists: "what happens when a worker dies?" is answered by letting one die. These work
on any job, by its handle; processes on other machines are killed through Ray.

    kill_operator(job, "hot")        SIGKILL one subtask of an operator
    kill_coordinator(job)            SIGKILL the coordinator; Ray starts it anew
    lose_job(job)                    coordinator and all: as if the cluster had gone
    hung_operator(job, "hot")        SIGSTOP for the length of a ``with`` block

May import: everything below, and ``ray``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError

from helios_ray.errors import ConfigError
from helios_ray.identifiers import TaskId
from helios_ray.runtime.job import JobHandle
from helios_ray.testing.waiting import await_report, await_running


def task_pids(job: JobHandle) -> dict[TaskId, int]:
    """The process of each task of a running job."""
    while True:
        handles: dict[TaskId, Any] = ray.get(job.coordinator.task_handles.remote())
        try:
            pids = ray.get([handle.pid.remote() for handle in handles.values()])
        except RayActorError:  # one of them is being replaced
            time.sleep(0.01)
            continue
        return dict(zip(handles, pids, strict=True))


def find_task(job: JobHandle, operator: str | None = None, subtask: int = 0) -> TaskId:
    """The task that runs a subtask of an operator.

    Args:
        operator: uid of any operator chained into it; None: the first task that is no source,
            or the source if there is no other.

    Raises:
        ConfigError: there is no such operator or subtask; names those there are.
    """
    report = await_report(job, lambda r: r.tasks, "the first heartbeats")
    chosen = [
        t.task
        for t in sorted(report.tasks, key=lambda t: (t.is_source, t.task))
        if t.task.subtask == subtask and (operator is None or operator in t.uids)
    ]
    if not chosen:
        known = {str(t.task): t.uids for t in report.tasks}
        raise ConfigError(
            f"job {job.job!r} has no subtask {subtask} of operator {operator!r}; it has {known}."
        )
    return chosen[0]


def kill_operator(job: JobHandle, operator: str | None = None, subtask: int = 0) -> TaskId:
    """SIGKILL the process of one subtask and wait until the job has noticed.

    Args:
        operator: see :func:`find_task`.

    Returns:
        The task that was killed.
    """
    before = await_running(job)
    task = find_task(job, operator, subtask)
    handle = ray.get(job.coordinator.task_handles.remote())[task]
    _kill(handle)
    await_report(job, lambda r: r.epoch > before.epoch or r.status.terminal, "a new attempt")
    return task


def kill_coordinator(job: JobHandle) -> None:
    """SIGKILL the coordinator's process and wait until its successor has taken over."""
    before = job.report()
    _kill(job.coordinator)
    await_report(job, lambda r: r.epoch > before.epoch, "a new coordinator")


def lose_job(job: JobHandle) -> None:
    """Kill the coordinator for good, and with it every task: only storage is left.

    Returns when all processes of the job are gone.
    """
    doomed = [job.coordinator, *ray.get(job.coordinator.task_handles.remote()).values()]
    ray.kill(job.coordinator, no_restart=True)
    for actor in doomed:
        with contextlib.suppress(RayActorError):
            while True:
                ray.get(actor.pid.remote())
                time.sleep(0.01)


@contextlib.contextmanager
def hung_operator(
    job: JobHandle, operator: str | None = None, subtask: int = 0
) -> Iterator[TaskId]:
    """SIGSTOP the process of one subtask of a job on this machine; let it go on afterwards.

    A stopped process neither answers nor dies: the worst kind of failure. If the job has
    replaced it meanwhile, it is gone when the block ends.
    """
    task = find_task(job, operator, subtask)
    pid = task_pids(job)[task]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield task
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _kill(actor: Any) -> None:
    pid, node = ray.get([actor.pid.remote(), actor.node.remote()])
    if node == ray.get_runtime_context().get_node_id():
        os.kill(pid, signal.SIGKILL)
    else:
        ray.kill(actor, no_restart=False)
