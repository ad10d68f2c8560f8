"""Whatever dies, hangs or is lost: the output is that of a run in which nothing happened."""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from helios_ray import DataStream, FixedDelay, JobHandle, col
from helios_ray.errors import JobFailedError
from helios_ray.protocol.instructions import JobStatus
from helios_ray.testing import (
    await_report,
    await_running,
    hung_operator,
    kill_coordinator,
    kill_operator,
    lose_job,
)
from tests.integration.runtime.support import (
    SOON,
    WAIT,
    Flow,
    column,
    count_per_event,
    env_of,
    no_restart,
    once,
)


def test_killing_any_operator_or_the_coordinator_changes_no_result(
    name: str, tmp_path: Path
) -> None:
    """source -> key_by -> count -> files at parallelism 2, a checkpoint every 100 ms."""
    flow = Flow.of(
        name, tmp_path, parallelism=2, transform=count_per_event, checkpoints={"interval": SOON}
    )
    job = flow.start()
    await_running(job)
    victims = [
        lambda: kill_operator(job, "count", 1),
        lambda: kill_operator(job, "source", 0),
        lambda: kill_operator(job, "sink", 1),
        lambda: kill_coordinator(job),
    ]
    for turn, kill in enumerate(victims):
        flow.emit(*range(turn * 1_000, turn * 1_000 + 1_000))
        kill()
    flow.emit(*range(500))  # these for the second time

    assert flow.settled(job) == once(range(4_000)) + Counter(range(500))
    times = Counter(column(flow.output, "times"))
    assert times == {1: 4_000, 2: 500}, "an operator's state counted an event twice or forgot one"
    assert job.report().epoch >= len(victims) + 1
    job.cancel()
    assert flow.staged() == []


def test_a_coordinator_whose_job_is_large_to_describe_comes_back_as_well(
    name: str, tmp_path: Path
) -> None:
    """Ray frees a large argument once an actor has started, and cannot start it again then."""
    ballast = {i: f"value {i}" for i in range(20_000)}

    def with_ballast(stream: DataStream) -> DataStream:
        return count_per_event(stream.filter(lambda row: row["event_id"] in ballast, uid="known"))

    flow = Flow.of(name, tmp_path, transform=with_ballast, checkpoints={"interval": SOON})
    job = flow.start()
    await_running(job)
    flow.emit(*range(1_000))
    kill_coordinator(job)
    flow.emit(*range(1_000, 2_000))
    assert flow.settled(job) == once(range(2_000))
    job.cancel()


def test_a_process_that_hangs_is_found_by_its_silence_and_replaced(
    name: str, tmp_path: Path
) -> None:
    flow = Flow.of(
        name,
        tmp_path,
        options={"with_failure_detection": {"heartbeat_timeout": timedelta(seconds=3)}},
    )
    job = flow.start()
    flow.emit(*range(100))
    assert flow.settled(job) == once(range(100))
    before = await_running(job)

    with hung_operator(job):
        flow.emit(*range(100, 200))
        after = await_report(job, lambda r: r.epoch > before.epoch, "a new attempt")
        assert "no sign of life for 3 s" in after.reason
        # It is still stopped, neither alive nor dead, while its successor does the work.
        assert flow.settled(job) == once(range(200))

    flow.emit(*range(200, 300))
    assert flow.settled(job) == once(range(300)), "the zombie wrote"
    job.cancel()


def test_a_function_that_never_returns_is_found_by_the_stall_timeout(
    name: str, tmp_path: Path
) -> None:
    marker = tmp_path / "was-here"

    def hang_once(row: dict[str, int]) -> dict[str, int]:
        if row["event_id"] == 7 and not marker.exists():
            marker.touch()
            while True:
                time.sleep(1)
        return row

    flow = Flow.of(
        name,
        tmp_path,
        transform=lambda events: events.map(hang_once, schema=events.schema, uid="hang"),
        options={"with_failure_detection": {"stall_timeout": timedelta(seconds=2)}},
    )
    job = flow.start()
    flow.emit(*range(10))
    report = await_report(job, lambda r: r.restarts, "a restart")
    assert "has not returned from one call for" in report.reason
    assert flow.settled(job) == once(range(10))
    job.cancel()


def test_when_restarts_are_exhausted_the_job_fails_with_the_cause_and_can_be_resumed(
    name: str, tmp_path: Path
) -> None:
    flow = Flow.of(name, tmp_path, restart=FixedDelay(attempts=1, delay=timedelta(milliseconds=1)))
    job = flow.start()
    flow.emit(*range(100))
    assert flow.settled(job) == once(range(100))
    flow.emit(*range(100, 200))
    kill_operator(job)
    await_running(job)
    task = kill_operator(job)

    with pytest.raises(JobFailedError, match="its process is gone") as failure:
        job.wait(WAIT)
    assert str(task) in str(failure.value)
    assert name in str(failure.value)

    again = flow.start()
    assert flow.settled(again) == once(range(200))
    assert again.report().restored is not None
    again.cancel()


def test_the_loss_of_everything_but_storage_loses_nothing(name: str, tmp_path: Path) -> None:
    flow = Flow.of(name, tmp_path, transform=count_per_event, checkpoints={"interval": SOON})
    job = flow.start()
    flow.emit(*range(1_000))
    await_report(job, lambda r: r.committed, "a commit")
    flow.emit(*range(1_000, 2_000))
    lose_job(job)

    again = flow.start()
    assert flow.settled(again) == once(range(2_000))
    again.cancel()


def test_a_finished_source_stays_finished_through_checkpoints_and_failures(
    name: str, tmp_path: Path
) -> None:
    """A short input beside one without end: its rows come once, though it ended long ago."""

    def beside(events: DataStream) -> DataStream:
        numbers = env_of(events).from_range(50, uid="short")
        ids = numbers.select(event_id=col("item"), batch=col("item"))
        return events.union(ids)

    flow = Flow.of(name, tmp_path, transform=beside, checkpoints={"interval": SOON})
    job = flow.start()
    flow.emit(*range(50, 100))
    assert flow.settled(job) == once(range(100))
    ended = [t.task for t in job.report().tasks if "short" in t.uids]
    kill_operator(job, "short")
    flow.emit(*range(100, 150))

    assert flow.settled(job) == once(range(150))
    assert len(ended) == 1
    job.cancel()


def test_the_job_goes_on_where_its_failed_first_attempt_left_nothing(
    name: str, tmp_path: Path
) -> None:
    """Killed before any checkpoint: it starts from nothing, and nothing is there twice."""
    flow = no_restart(Flow.of(name, tmp_path))
    job: JobHandle = flow.start()
    flow.emit(*range(100))
    await_report(job, lambda r: r.rows_read == 100, "the rows to be read")
    kill_operator(job)
    with pytest.raises(JobFailedError, match="its process is gone"):
        job.wait(WAIT)
    assert flow.ids() == Counter()

    again = flow.start()
    assert again.status() in set(JobStatus)
    assert flow.settled(again) == once(range(100))
    again.cancel()


def test_state_of_a_row_function_survives_too(name: str, tmp_path: Path) -> None:
    """``reduce`` keeps Python rows: the same promise as for columns."""

    def total(events: DataStream) -> DataStream:
        return events.key_by("batch").reduce(
            lambda a, b: {"batch": b["batch"], "event_id": a["event_id"] + b["event_id"]},
            uid="total",
        )

    flow = Flow.of(name, tmp_path, transform=total)
    job = flow.start()
    flow.emit(*range(100))
    flow.settled(job)
    kill_operator(job, "total")
    flow.emit(1_000)
    flow.settled(job)

    results = pa.table({name: column(flow.output, name) for name in ("batch", "event_id")})
    assert results.num_rows == 101, "one result for each row"
    last = results.group_by("batch").aggregate([("event_id", "max")]).sort_by("batch")
    assert last.to_pydict() == {"batch": [0, 1], "event_id_max": [sum(range(100)), 1_000]}
    job.cancel()
