"""What a driver sees of a job and can ask of it, from whichever program."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from helios_ray import DataStream, JobHandle, StreamExecutionEnvironment
from helios_ray.connectors.base import Sink
from helios_ray.errors import ConfigError, JobFailedError
from helios_ray.protocol.instructions import JobStatus
from helios_ray.testing import await_report, await_running, create_test_config
from tests.integration.runtime.support import (
    WAIT,
    Flow,
    actor_names,
    count_per_event,
    once,
    run_program,
    said,
)


def test_metrics_actors_and_checkpoints_are_named_as_documented_and_nothing_is_left(
    name: str, tmp_path: Path
) -> None:
    flow = Flow.of(name, tmp_path, parallelism=2, transform=count_per_event)
    job = flow.start()
    await_running(job)
    assert actor_names(name) == sorted(
        [
            f"helios:{name}:coordinator",
            *(f"helios:{name}:{uid}:{n}" for uid in ("source", "count") for n in (0, 1)),
        ]
    )
    flow.emit(*range(100))
    assert flow.settled(job) == once(range(100))
    checkpoint = job.trigger_checkpoint()
    assert checkpoint.outcome == "committed"
    assert Path(checkpoint.path).is_file()
    later = job.trigger_checkpoint()
    assert later.checkpoint_id > checkpoint.checkpoint_id

    # Each task says in a heartbeat of its own how far it is.
    await_report(
        job, lambda r: r.rows_written == r.rows_read == 100, "the last heartbeats of all tasks"
    )
    metrics = job.metrics()
    assert metrics["checkpoint.duration_ms"] > 0
    assert metrics["checkpoint.state_size_bytes"] > 0
    assert metrics["checkpoint.failures"] == 0
    assert metrics["checkpoint.completed"] >= 2
    assert metrics["commit.latency_ms"] > 0
    assert metrics["restarts"] == 0
    assert metrics["rows_read"] == 100
    assert metrics["rows_written"] == 100
    assert set(metrics["tasks"]) == {"source[0]", "source[1]", "count[0]", "count[1]"}
    one = metrics["tasks"]["source[0]"]
    assert one["rows_in"] == one["rows_out"] == 50
    assert one["bytes_out"] > 0
    for field in ("bytes_in", "backpressure", "queued_bytes", "watermark_lag_ms", "pid", "node"):
        assert field in one

    result = job.stop(WAIT)
    assert result.status is JobStatus.STOPPED
    assert job.status() is JobStatus.STOPPED, "the handle remembers"
    with pytest.raises(JobFailedError, match="takes no more checkpoints"):
        job.trigger_checkpoint()
    gone(job, metrics)


def gone(job: JobHandle, metrics: dict[str, dict[str, dict[str, int]]]) -> None:
    """Neither actors nor processes of a job are left, or this runs into the test's timeout."""
    while actor_names(job.job):
        time.sleep(0.01)
    for task in metrics["tasks"].values():
        while Path(f"/proc/{task['pid']}").exists():
            time.sleep(0.01)
    with pytest.raises(ConfigError, match="no job"):
        JobHandle.attach(job.job)


DETACHED = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import ray
from tests.integration.runtime.support import Flow
ray.init(address=sys.argv[3], log_to_driver=False)
flow = Flow.of(sys.argv[1], Path(sys.argv[2]))
job = flow.start(detached=True)
flow.settled(job)
print("LEFT", flush=True)
"""


def test_a_detached_job_outlives_its_program_and_is_found_by_name(
    name: str, tmp_path: Path
) -> None:
    flow = Flow.of(name, tmp_path)
    flow.emit(*range(50))
    address = ray.get_runtime_context().gcs_address
    program = run_program(DETACHED, name, tmp_path, address)
    assert said(program, "LEFT") == ""
    assert program.wait() == 0

    job = JobHandle.attach(name)
    flow.emit(*range(50, 100))
    assert flow.settled(job) == once(range(100))
    assert job.report().restarts == 0, "it has been running all the time"
    assert job.stop(WAIT).status is JobStatus.STOPPED

    # Its name is free at once for the next run, though the result can still be asked for.
    again = flow.start()
    assert flow.settled(again) == once(range(100))
    again.cancel()


class Slow(Sink):
    """Takes rows at a pace that a file sets: a row a look, until the file is there."""

    def __init__(self, gate: Path) -> None:
        self._gate = gate

    def write(self, batch: pa.RecordBatch) -> None:
        deadline = time.monotonic() + 0.2
        while not self._gate.exists() and time.monotonic() < deadline:
            time.sleep(0.01)


def test_a_slow_sink_slows_the_source_and_checkpoints_still_complete(
    name: str, tmp_path: Path
) -> None:
    """What waits is bounded by the channel's window, whatever the source could read."""
    gate = tmp_path / "gate"
    env = StreamExecutionEnvironment().with_checkpoint_config(create_test_config(tmp_path))

    def pad(batch: pa.Table) -> pa.Table:
        return batch.append_column("padding", pa.array(["x" * 1_000] * batch.num_rows))

    rows = env.from_range(10_000_000, uid="numbers").map_batches(
        pad, batch_size=1_000, batch_format="pyarrow", uid="pad"
    )
    rows.sink_to(Slow(gate), uid="slow").disable_chaining()
    job = env.execute_async(name)

    window, frame, processed = 8 << 20, 1 << 20, 17 << 20
    report = await_report(
        job,
        lambda r: any(t.backpressure > 0.5 for t in r.tasks if t.is_source),
        "backpressure at the source",
    )
    before = report.rows_read
    checkpoint = job.trigger_checkpoint()
    assert checkpoint.outcome == "committed"
    after = await_report(job, lambda r: r.rows_read > before, "the source to go on")
    [sink] = [t for t in after.tasks if t.is_sink]
    assert 0 < sink.queued_bytes <= window + frame + processed
    # Read and not yet handed to the sink: a few frames of a thousand bytes a row.
    assert after.rows_read - sink.rows_in < (window + frame + processed) * 2 / 1_000
    job.cancel()


def test_progress_is_written_as_lines_where_nobody_watches(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = StreamExecutionEnvironment().with_checkpoint_config(create_test_config(tmp_path))
    env.from_range(10, uid="numbers").collect(uid="out")
    result = env.execute(name, progress=True)
    assert result.collect().num_rows == 10
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"{name}: finished")
    assert "read 10" in lines[-1]
    assert "checkpoint 1 committed" in lines[-1]
    assert any(line.startswith(f"{name}: deploying") for line in lines)


def test_a_failed_job_reports_its_end_to_every_handle(name: str, tmp_path: Path) -> None:
    def broken(events: DataStream) -> DataStream:
        return events.map(lambda row: {"event_id": row["nothing"]}, uid="broken")

    flow = Flow.of(name, tmp_path, transform=broken)
    flow.emit(1)
    job = flow.start()
    report = await_report(job, lambda r: r.status is JobStatus.FAILED, "its failure")
    assert "KeyError: 'nothing'" in report.reason
    with pytest.raises(JobFailedError, match="broken"):
        job.wait(WAIT)
    with pytest.raises(JobFailedError, match="broken"):
        job.trigger_checkpoint()
