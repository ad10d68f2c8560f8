"""What a driver holds of a job: start it, watch it, ask it, wait for it.

Why it exists: the handle is a thin client of the coordinator actor. It survives the
coordinator's death (Ray restarts the actor under the same name) and can be found again by
job name from another program.

May import: everything below, and ``ray``.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.exceptions import RayActorError

from helios_ray import errors
from helios_ray.checkpoint.config import CheckpointConfig
from helios_ray.errors import (
    CheckpointError,
    ConfigError,
    FencedError,
    JobCancelledError,
    JobFailedError,
)
from helios_ray.protocol import instructions as i
from helios_ray.protocol.instructions import JobStatus
from helios_ray.runtime.collect import read_collected
from helios_ray.runtime.dataset_blocks import Held
from helios_ray.runtime.deployment import NAMESPACE, coordinator_name
from helios_ray.runtime.progress import Progress
from helios_ray.runtime.reports import CheckpointReport, JobReport

logger = logging.getLogger("helios_ray")

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds for which a coordinator may be away (being restarted by Ray) before it counts as lost."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended.

    Args:
        report: the coordinator's last words.
    """

    report: JobReport
    config: CheckpointConfig

    @property
    def job(self) -> str:
        """Its name."""
        return self.report.job

    @property
    def status(self) -> JobStatus:
        """``FINISHED`` or ``STOPPED``."""
        return self.report.status

    def collect(self, uid: str | None = None) -> pa.Table:
        """Rows of a ``collect()`` sink; see :meth:`JobHandle.results`."""
        return read_collected(self.config, self.job, uid)

    def as_ray_dataset(self, uid: str | None = None) -> Any:
        """Rows of a ``collect()`` sink as a ``ray.data.Dataset``, in the order of commits.

        Ray tasks read what was committed and open it; no row passes through this process, so
        the result may be larger than its memory.

        Args:
            uid: of the sink; may be left out if the job has one.

        Raises:
            CheckpointNotFoundError: there are several such sinks; names them.
        """
        from helios_ray.runtime.dataset_result import collected_dataset

        return collected_dataset(self.config, self.job, uid)


class JobHandle:
    """A running job. Get one from ``execute_async`` or :meth:`attach`."""

    def __init__(
        self,
        job: str,
        actor: Any,
        config: CheckpointConfig,
        *,
        detached: bool,
        kept: Sequence[Held] = (),
    ) -> None:
        self.job = job
        # Blocks that the job reads, freed when nobody has them any more.
        self._kept = tuple(kept)
        self._actor = actor
        self._config = config
        self._detached = detached
        self._final: JobReport | None = None

    @classmethod
    def attach(cls, job: str) -> JobHandle:
        """Find a running job by name.

        Raises:
            ConfigError: no job of that name is running on this Ray cluster.
        """
        try:
            actor = ray.get_actor(coordinator_name(job), namespace=NAMESPACE)
        except ValueError as error:
            raise ConfigError(
                f"no job {job!r} is running on this Ray cluster. List them with `ray list actors "
                f"--filter class_name=CoordinatorActor`."
            ) from error
        config: CheckpointConfig = ray.get(actor.config.remote(), timeout=PATIENCE)
        return cls(job, actor, config, detached=True)

    def __repr__(self) -> str:
        return f"JobHandle({self.job!r})"

    @property
    def coordinator(self) -> Any:
        """The coordinator's actor handle; ``helios_ray.testing.faults`` reaches tasks by it."""
        return self._actor

    @property
    def config(self) -> CheckpointConfig:
        """Where and how the job checkpoints."""
        return self._config

    # --------------------------------------------------------------------------- looking

    def report(self) -> JobReport:
        """Everything about where the job stands."""
        if self._final is not None:
            return self._final
        report: JobReport = self._ask(lambda: self._actor.report.remote())
        if report.status.terminal:
            self._final = report
        return report

    def status(self) -> JobStatus:
        """Where the job stands, in a word."""
        return self.report().status

    def metrics(self) -> dict[str, Any]:
        """The job's metrics as plain values, named as in the guide.

        Returns:
            ``checkpoint.duration_ms``, ``checkpoint.state_size_bytes``,
            ``checkpoint.failures``, ``commit.latency_ms``, ``restarts``, and under
            ``tasks`` one dict per subtask (rows and bytes in and out, backpressure,
            watermark lag).
        """
        report = self.report()
        last = report.last_checkpoint
        return {
            "checkpoint.duration_ms": None if last is None else last.duration * 1000,
            "checkpoint.state_size_bytes": None if last is None else last.size,
            "checkpoint.completed": report.completed_checkpoints,
            "checkpoint.failures": report.failed_checkpoints,
            "commit.latency_ms": None if last is None else last.commit_latency * 1000,
            "restarts": report.restarts,
            "rows_read": report.rows_read,
            "rows_written": report.rows_written,
            "tasks": {
                str(t.task): {
                    "rows_in": t.rows_in,
                    "rows_out": t.rows_out,
                    "bytes_in": t.bytes_in,
                    "bytes_out": t.bytes_out,
                    "backpressure": t.backpressure,
                    "queued_bytes": t.queued_bytes,
                    "skipped_rows": t.skipped_rows,
                    "watermark_lag_ms": _lag(t.watermark, report.now),
                    "pid": t.pid,
                    "node": t.node,
                }
                for t in report.tasks
            },
        }

    def results(self, uid: str | None = None) -> pa.Table:
        """What a ``collect()`` sink has committed so far.

        Args:
            uid: of the sink; may be left out if the job has one.
        """
        return read_collected(self._config, self.job, uid)

    # ---------------------------------------------------------------------------- asking

    def trigger_checkpoint(self, timeout: timedelta = timedelta(minutes=5)) -> CheckpointReport:
        """Take a checkpoint now and wait until every sink has committed it.

        Raises:
            CheckpointError: the checkpoint failed.
            CheckpointTimeoutError: it took longer than ``timeout``.
            JobError: the job ended meanwhile.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        wanted: int | None = None
        while time.monotonic() < deadline:
            report = self.report()
            if wanted is not None:
                for c in report.checkpoints:
                    if c.checkpoint_id >= wanted and c.outcome == "committed":
                        return c
                    if c.checkpoint_id == wanted and c.outcome == "failed":
                        raise CheckpointError(f"checkpoint {wanted} failed: {c.reason}")
            if report.status.terminal:
                self._raise_unless_good(report)
                raise JobFailedError(
                    f"job {self.job!r} is {report.status.value}; it takes no more checkpoints."
                )
            if report.status is JobStatus.RUNNING and (
                wanted is None or (report.next_checkpoint or 0) < wanted
            ):
                # Not asked yet, or asked of an attempt that is over.
                before = self._ask(lambda: self._actor.request.remote(i.CheckpointRequested()))
                wanted = before.next_checkpoint
            time.sleep(0.01)
        raise errors.CheckpointTimeoutError(
            f"no checkpoint of job {self.job!r} was committed within {timeout}. Look at "
            f"report().checkpoints for the reasons, or raise the timeout."
        )

    def stop(self, timeout: timedelta = timedelta(minutes=5)) -> JobResult:
        """Take a last checkpoint, commit it, end. The job can be resumed from it.

        A job that is not running at that moment (still starting, or recovering) ends at once,
        with what its last complete checkpoint decided committed.
        """
        self._ask(lambda: self._actor.request.remote(i.StopRequested()))
        return self.wait(timeout)

    def cancel(self, timeout: timedelta = timedelta(minutes=1)) -> None:
        """End now. What was prepared and not decided is aborted; resumable from the last
        committed checkpoint."""
        self._ask(lambda: self._actor.request.remote(i.CancelRequested()))
        self._until_end(timeout, Progress(False))

    def wait(self, timeout: timedelta | None = None, *, progress: bool | None = False) -> JobResult:
        """Wait for the job's end.

        Raises:
            JobFailedError: it failed; or the cause itself where that is a CheckpointError.
            JobCancelledError: it was cancelled.
            FencedError: another run of the job has taken over.
            TimeoutError: it has not ended within ``timeout``; it goes on.
        """
        report = self._until_end(timeout, Progress(progress))
        self._raise_unless_good(report)
        return JobResult(report, self._config)

    def _until_end(self, timeout: timedelta | None, progress: Progress) -> JobReport:
        deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
        pause = 0.02
        try:
            while True:
                report = self.report()
                progress.update(report)
                if report.status.terminal:
                    break
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(
                        f"job {self.job!r} is still {report.status.value} after {timeout}"
                    )
                time.sleep(pause)
                pause = min(0.2, pause * 1.2)
        finally:
            progress.close()
        if not self._detached:
            ray.kill(self._actor, no_restart=True)
            for held in self._kept:
                held.release()
            self._kept = ()
        return report

    def _raise_unless_good(self, report: JobReport) -> None:
        match report.status:
            case JobStatus.FAILED:
                raise _cause(report)
            case JobStatus.CANCELLED:
                raise JobCancelledError(f"job {self.job!r} was cancelled: {report.reason}")
            case JobStatus.FENCED:
                raise FencedError(f"job {self.job!r}: {report.reason}")

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Call the coordinator; wait for it to come back if it is being restarted."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return ray.get(call(), timeout=PATIENCE)
            except RayActorError as error:
                if self._final is not None:
                    return self._final
                if time.monotonic() > deadline:
                    raise JobFailedError(
                        f"the coordinator of job {self.job!r} is gone: {error}. Run the program "
                        f"again to resume from storage."
                    ) from error
                time.sleep(0.05)


def _lag(watermark: int, now: float) -> float | None:
    return now * 1000 - watermark / 1000 if watermark > -(2**62) else None


def _cause(report: JobReport) -> Exception:
    """The exception that says best why a job failed."""
    message = f"job {report.job!r} failed: {report.reason}"
    match = re.search(r"\b([A-Z]\w+Error): ", report.reason)
    kind = getattr(errors, match.group(1), None) if match else None
    if isinstance(kind, type) and issubclass(kind, CheckpointError):
        return kind(message)
    if isinstance(kind, type) and issubclass(kind, Exception):
        error = JobFailedError(message)
        error.__cause__ = kind(report.reason)
        return error
    return JobFailedError(message)
