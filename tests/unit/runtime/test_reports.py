"""What people are told about a running job: totals, the line about it, and when it is said."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from helios_ray.elements import MAX_TIMESTAMP
from helios_ray.identifiers import TaskId
from helios_ray.protocol.instructions import JobStatus
from helios_ray.runtime.clock import Clock
from helios_ray.runtime.progress import Progress, describe
from helios_ray.runtime.reports import CheckpointReport, JobReport, TaskMetrics

NEW_YEAR = 1_767_225_600_000_000  # 2026-01-01 in µs


def task(uid: str, subtask: int = 0, **values: object) -> TaskMetrics:
    return TaskMetrics(task=TaskId(uid, subtask), **values)  # type: ignore[arg-type]


REPORT = JobReport(
    job="flights",
    status=JobStatus.RUNNING,
    tasks=(
        task("in", 0, is_source=True, rows_in=1_000, watermark=NEW_YEAR),
        task("in", 1, is_source=True, rows_in=500, watermark=NEW_YEAR + 5_000_000),
        task("agg", rows_in=1_500, rows_out=70),
        task("out", is_sink=True, rows_in=70, rows_out=70, watermark=MAX_TIMESTAMP),
    ),
    now=100.0,
)


def test_rows_read_are_those_of_sources_and_rows_written_those_of_sinks() -> None:
    assert REPORT.rows_read == 1_500
    assert REPORT.rows_written == 70


def test_the_watermark_is_the_least_of_those_that_have_one() -> None:
    assert REPORT.watermark == NEW_YEAR
    assert replace(REPORT, tasks=(task("in"),)).watermark is None


def test_the_last_checkpoint_is_the_newest_that_did_not_fail() -> None:
    done = CheckpointReport(checkpoint_id=4, outcome="committed", duration=0.0375)
    failed = CheckpointReport(checkpoint_id=5, outcome="failed", reason="timeout")
    assert replace(REPORT, checkpoints=(done, failed)).last_checkpoint == done
    assert replace(REPORT, checkpoints=(failed,)).last_checkpoint is None


def test_the_line_says_status_rate_event_time_checkpoint_and_restarts() -> None:
    done = CheckpointReport(checkpoint_id=4, outcome="committed", duration=0.0375)
    line = describe(replace(REPORT, checkpoints=(done,), restarts=2), 12_345.6)
    assert line == (
        "flights: running · 12,346 rows/s · read 1,500 · watermark 2026-01-01 00:00:00 · "
        "checkpoint 4 committed (38 ms) · restarts 2"
    )
    assert describe(JobReport(job="j", status=JobStatus.CREATED), 0.0) == (
        "j: created · 0 rows/s · read 0"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def after(report: JobReport, seconds: float, rows: int) -> JobReport:
    first, *others = report.tasks
    return replace(
        report,
        now=report.now + seconds,
        tasks=(replace(first, rows_in=first.rows_in + rows), *others),
    )


def test_where_nobody_watches_a_line_is_written_at_each_change_and_every_five_seconds() -> None:
    out = io.StringIO()
    progress = Progress(True, out)
    report = REPORT
    progress.update(report)
    for _ in range(49):
        report = after(report, 0.1, 10)
        progress.update(report)
    assert out.getvalue().count("\n") == 1
    report = after(report, 0.2, 10)
    progress.update(report)
    assert out.getvalue().count("\n") == 2
    progress.update(replace(report, status=JobStatus.RESTARTING))
    progress.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("flights: restarting")


def test_the_rate_is_that_of_the_rows_since_the_report_before() -> None:
    out = io.StringIO()
    progress = Progress(True, out)
    progress.update(REPORT)
    progress.update(after(REPORT, 5.0, 1_000))
    assert "200 rows/s" in out.getvalue().splitlines()[-1]


def test_on_a_terminal_one_line_is_overwritten_and_ended_at_the_end() -> None:
    out = Terminal()
    progress = Progress(None, out)
    progress.update(REPORT)
    progress.update(after(REPORT, 0.1, 10))
    assert out.getvalue().count("\r") == 2
    assert "\n" not in out.getvalue()
    progress.close()
    assert out.getvalue().endswith("\n")


def test_a_shorter_line_leaves_nothing_of_a_longer_one() -> None:
    out = Terminal()
    progress = Progress(None, out)
    long = replace(REPORT, restarts=1_000_000)
    progress.update(long)
    progress.update(REPORT)
    first, second = out.getvalue().split("\r")[1:]
    assert len(second) >= len(first)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_switched_off_it_says_nothing(stream: type[io.StringIO]) -> None:
    out = stream()
    progress = Progress(False, out)
    progress.update(REPORT)
    progress.close()
    assert out.getvalue() == ""


def test_the_clock_never_goes_back_and_looks_like_a_date() -> None:
    clock = Clock()
    times = [clock.now() for _ in range(1_000)]
    assert times == sorted(times)
    assert times[0] > 1_700_000_000
