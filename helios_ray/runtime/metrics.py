"""Prometheus metrics through ``ray.util.metrics``.

Why it exists: the guide's three (``checkpoint.duration_ms``, ``checkpoint.state_size_bytes``,
``checkpoint.failures``) and what else tells a healthy job from a sick one, under names that
Prometheus accepts; dots become underscores and Ray puts ``ray_`` in front.

Set once a second by the coordinator from the tasks' heartbeats; never per row, never with a
tag per key.

May import: this room's reports, protocol (job status), and ``ray``.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Counter, Gauge, Histogram

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.identifiers import TaskId
from helios_ray.protocol.instructions import JobStatus
from helios_ray.runtime.reports import CheckpointReport, TaskMetrics

_MILLISECONDS: list[float] = [
    1,
    5,
    10,
    25,
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    60_000,
    300_000,
]


class MetricsExporter:
    """Publishes the metrics of one job.

    Args:
        job: becomes the tag ``job`` of each.
    """

    def __init__(self, job: str) -> None:
        self._job = {"job": job}
        tags = ("job",)
        per_task = ("job", "operator", "subtask")
        self._duration = Histogram(
            "helios_checkpoint_duration_ms", "Trigger to last acknowledgement", _MILLISECONDS, tags
        )
        self._size = Gauge("helios_checkpoint_state_size_bytes", "Sealed state", tags)
        self._failures = Counter("helios_checkpoint_failures", "Failed checkpoints", tags)
        self._commit = Histogram(
            "helios_commit_latency_ms", "Durable manifest to last commit", _MILLISECONDS, tags
        )
        self._restarts = Gauge("helios_job_restarts", "Recoveries", tags)
        self._running = Gauge("helios_job_running", "1 while the job processes", tags)
        self._counters = {
            name: Counter(f"helios_task_{name}", description, per_task)
            for name, description in (
                ("rows_in", "Rows processed"),
                ("rows_out", "Rows produced"),
                ("bytes_in", "Bytes processed"),
                ("bytes_out", "Bytes sent downstream"),
                ("skipped_rows", "Rows a user function failed on"),
            )
        }
        self._gauges = {
            name: Gauge(f"helios_task_{name}", description, per_task)
            for name, description in (
                ("backpressure", "Share of time without room downstream"),
                ("queued_bytes", "Received and not yet processed"),
                ("watermark_lag_ms", "Wall clock minus event time"),
            )
        }
        self._last: dict[TaskId, TaskMetrics] = {}

    def checkpoint(self, report: CheckpointReport) -> None:
        """A checkpoint completed, was committed, or failed."""
        if report.outcome == "failed":
            self._failures.inc(1, self._job)
        elif report.outcome == "completed":
            self._duration.observe(max(1e-3, report.duration * 1000), self._job)
            self._size.set(report.size, self._job)
        elif report.commit_latency > 0:
            self._commit.observe(report.commit_latency * 1000, self._job)

    def status(self, status: JobStatus, restarts: int) -> None:
        """The job's status changed."""
        self._running.set(float(status is JobStatus.RUNNING), self._job)
        self._restarts.set(restarts, self._job)

    def tasks(self, metrics: Iterable[TaskMetrics], now: float) -> None:
        """How the tasks are doing.

        Args:
            now: seconds since the Unix epoch.
        """
        for m in metrics:
            tags = {**self._job, "operator": m.task.operator, "subtask": str(m.task.subtask)}
            before = self._last.get(m.task)
            for name, counter in self._counters.items():
                value = getattr(m, name)
                # A replaced process counts from zero again.
                seen = getattr(before, name) if before is not None and before.pid == m.pid else 0
                if value > seen:
                    counter.inc(value - seen, tags)
            self._gauges["backpressure"].set(m.backpressure, tags)
            self._gauges["queued_bytes"].set(m.queued_bytes, tags)
            if m.watermark > MIN_TIMESTAMP:
                self._gauges["watermark_lag_ms"].set(now * 1000 - m.watermark / 1000, tags)
            self._last[m.task] = m
