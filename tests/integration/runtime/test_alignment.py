"""Sources of one group wait for each other across actors, and across a death."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

from helios_ray import JobHandle, StreamExecutionEnvironment, WatermarkStrategy
from helios_ray.connectors.files import FileSink
from helios_ray.testing import (
    EventLog,
    EventLogSource,
    await_committed,
    await_running,
    create_test_config,
    kill_operator,
    source_positions,
)
from tests.integration.runtime.support import column, once

FAR = 200_000
DRIFT = 1000
READ_AT_ONCE = 2 * 2 * 16_384
"""What a source may take of its two partitions: in each, a first batch to begin with, and one
more, which brings it beyond the drift."""


def furthest(job: JobHandle, source: str) -> int:
    """Event time that a checkpoint taken now covers: ids are event times, dealt to two files."""
    job.trigger_checkpoint()
    newest = job.report().committed
    assert newest is not None
    return sum(source_positions(job, newest, source).values())


def test_a_fast_source_waits_for_a_slow_one_and_goes_on_with_it(name: str, tmp_path: Path) -> None:
    fast, slow = EventLog(tmp_path / "fast"), EventLog(tmp_path / "slow")
    fast.append(range(FAR))
    slow.append([0, 1])
    strategy = WatermarkStrategy.monotonic("event_id").with_alignment(
        "logs", timedelta(microseconds=DRIFT), timedelta(milliseconds=200)
    )
    config = create_test_config(tmp_path, retain_count=20)
    env = StreamExecutionEnvironment().with_checkpoint_config(config).with_parallelism(2)
    sources = [
        env.from_source(EventLogSource(tmp_path / log), strategy, uid=log)
        for log in ("fast", "slow")
    ]
    output = tmp_path / "output"
    output.mkdir()
    sources[0].union(sources[1]).sink_to(FileSink(output), uid="sink")

    job = env.execute_async(name)
    await_committed(job, slow, "slow")
    seen = [furthest(job, "fast") for _ in range(5)]
    assert max(seen) <= READ_AT_ONCE
    kill_operator(job, "fast")
    await_running(job)
    assert max(furthest(job, "fast") for _ in range(5)) <= READ_AT_ONCE

    slow.append([FAR, FAR + 1])
    await_committed(job, slow, "slow")
    await_committed(job, fast, "fast")
    job.stop()
    assert Counter(column(output, "event_id")) == once(range(FAR)) + Counter([0, 1, FAR, FAR + 1])
