"""Waiting for what a running job is about to do: a report, a status, a commit.

Why it exists: a test that waits for a condition is right on any machine; one that sleeps is
right on the machine it was written on.

May import: everything below.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from datetime import timedelta

from helios_ray.checkpoint.reader import read_state
from helios_ray.errors import CheckpointNotFoundError, JobFailedError
from helios_ray.protocol.instructions import JobStatus
from helios_ray.runtime.job import JobHandle
from helios_ray.runtime.reports import JobReport
from helios_ray.testing.event_log import EventLog

_PATIENCE = timedelta(minutes=2)


def await_report(
    job: JobHandle,
    condition: Callable[[JobReport], object],
    what: str = "the condition",
    timeout: timedelta = _PATIENCE,
) -> JobReport:
    """Look at a job until ``condition`` holds; return that report.

    Args:
        what: says in the error what was waited for.

    Raises:
        TimeoutError: it did not hold within ``timeout``.
        JobFailedError: the job ended first.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        report = job.report()
        if condition(report):
            return report
        if report.status.terminal:
            raise JobFailedError(
                f"job {job.job!r} is {report.status.value} ({report.reason}); waited for {what}"
            )
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {job.job!r}: waited {timeout} for {what}; {report}")
        time.sleep(0.01)


def await_running(job: JobHandle, timeout: timedelta = _PATIENCE) -> JobReport:
    """Wait until the job processes rows.

    Raises:
        TimeoutError, JobFailedError: as :func:`await_report`.
    """
    return await_report(job, lambda r: r.status is JobStatus.RUNNING, "RUNNING", timeout)


def await_committed(
    job: JobHandle, log: EventLog, source: str = "source", timeout: timedelta = _PATIENCE
) -> None:
    """Wait until all that a log holds now is processed and committed.

    Takes checkpoints and looks where the source stands in them; what is committed is decided
    by the offsets, never by counting results.

    Args:
        source: uid of the :class:`EventLogSource`.

    Raises:
        TimeoutError: it takes longer than ``timeout``.
        JobError: the job has ended.
    """
    emitted = log.lengths()
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        job.trigger_checkpoint()
        newest = job.report().committed
        # One that retention has dropped meanwhile has a newer one after it.
        with contextlib.suppress(CheckpointNotFoundError):
            read = {} if newest is None else source_positions(job, newest, source)
            if all(read.get(split, 0) >= length for split, length in emitted.items()):
                return
    raise TimeoutError(f"job {job.job!r}: {emitted} not processed within {timeout}")


def source_positions(job: JobHandle, checkpoint: int, source: str = "source") -> dict[str, int]:
    """How many records of each partition a checkpoint covers."""
    splits = read_state(
        job.config.storage,
        checkpoint,
        job=job.job,
        operator=source,
        name="splits",
        keys=job.config.encryption.keys,
    )
    return {
        row["split_id"]: (json.loads(row["position"]) or {"record": 0})["record"]
        for row in splits.to_pylist()
    }
