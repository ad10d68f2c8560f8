"""Bad input: a clear error at the earliest moment, nothing lost, resumable after the fix."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helios_ray import DataStream, StreamExecutionEnvironment
from helios_ray.aggregates import count
from helios_ray.checkpoint import CheckpointConfig
from helios_ray.connectors.files import FileSink, FileSource
from helios_ray.connectors.postgres import PostgresSink
from helios_ray.errors import (
    ConfigError,
    CorruptInputError,
    DuplicateUidError,
    JobFailedError,
    MissingColumnError,
    SinkUnavailableError,
    UserFunctionError,
)
from helios_ray.testing import create_test_config
from helios_ray.testing.servers import MotoServer
from tests.integration.runtime.support import SOON, WAIT, Flow, column, once


def test_a_row_function_that_raises_names_operator_row_and_place_and_loses_nothing(
    name: str, tmp_path: Path
) -> None:
    def job_with(fixed: bool) -> Flow:
        def invert(row: dict[str, int]) -> dict[str, int]:
            if row["event_id"] == 107 and not fixed:
                raise ValueError("cannot stand 107")
            return row

        return Flow.of(
            name,
            tmp_path,
            transform=lambda events: events.map(invert, schema=events.schema, uid="invert"),
        )

    flow = job_with(fixed=False)
    job = flow.start()
    flow.emit(*range(100))
    assert flow.settled(job) == once(range(100))
    flow.emit(*range(100, 200))
    with pytest.raises(JobFailedError) as failure:
        job.wait(WAIT)
    assert isinstance(failure.value.__cause__, UserFunctionError)
    message = str(failure.value)
    # 107 is the 54th odd number of the log: record 50 began the batch, and it is 3 after that.
    for word in ("'invert'", "'event_id': 107", "cannot stand 107", "events-1 @ record 50 + row 3"):
        assert word in message
    assert flow.ids() == once(range(100))

    job = job_with(fixed=True).start()
    assert flow.settled(job) == once(range(200))
    job.cancel()


def files_job(tmp_path: Path, *, fixed: bool = False) -> tuple[StreamExecutionEnvironment, Path]:
    config = create_test_config(tmp_path, interval=SOON)
    env = StreamExecutionEnvironment().with_checkpoint_config(config)
    source = FileSource(tmp_path / "in", accept_changed_files=fixed, batch_rows=50)
    output = tmp_path / "out"
    output.mkdir(exist_ok=True)
    env.from_source(source, uid="files").sink_to(FileSink(output), uid="sink")
    return env, output


def expect_failure_then_resume(
    name: str, tmp_path: Path, bad: Path, good: bytes, match: str
) -> None:
    """The job fails on ``bad``; with ``good`` in its place it ends with every row once."""
    env, output = files_job(tmp_path)
    with pytest.raises(JobFailedError, match=match) as failure:
        env.execute_async(name).wait(WAIT)
    assert bad.name in str(failure.value), "the file is named"

    bad.write_bytes(good)
    env, output = files_job(tmp_path, fixed=True)
    env.execute_async(name).wait(WAIT)
    assert sorted(column(output, "n")) == list(range(300))


def test_a_schema_that_changes_mid_stream_fails_the_job_with_the_file_and_the_column(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    lines = ["".join(f'{{"n": {n}}}\n' for n in range(i, i + 100)) for i in (0, 100, 200)]
    for index, text in enumerate(lines):
        (tmp_path / "in" / f"{index}.jsonl").write_text(text)
    bad = tmp_path / "in" / "1.jsonl"
    bad.write_text(lines[1].replace('"n": 150', '"n": "many"'))
    expect_failure_then_resume(name, tmp_path, bad, lines[1].encode(), "expected.*n|'n'|int64")


def test_a_corrupt_parquet_file_fails_the_job_and_names_the_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(3):
        table = pa.table({"n": list(range(index * 100, index * 100 + 100))})
        pq.write_table(table, tmp_path / "in" / f"{index}.parquet", compression="zstd")
    bad = tmp_path / "in" / "1.parquet"
    good = bad.read_bytes()
    # The footer is sound, so only reading the rows can find it.
    bad.write_bytes(good[:20] + bytes(60) + good[80:])
    expect_failure_then_resume(name, tmp_path, bad, good, "CorruptInputError")


def test_a_file_without_a_column_fails_the_job_and_names_both(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(3):
        table = pa.table({"n": list(range(index * 100, index * 100 + 100))})
        pq.write_table(table, tmp_path / "in" / f"{index}.parquet")
    bad = tmp_path / "in" / "1.parquet"
    good = bad.read_bytes()
    pq.write_table(pa.table({"m": list(range(100))}), bad)
    expect_failure_then_resume(name, tmp_path, bad, good, r"column.*'?n'?")


def test_a_column_that_a_row_function_leaves_out_is_named_when_the_rows_come(
    name: str, tmp_path: Path
) -> None:
    def job_with(fixed: bool) -> Flow:
        def shape(row: dict[str, int]) -> dict[str, int]:
            return {**row, "key": row["event_id"] % 2} if fixed else dict(row)

        def keyed(events: DataStream) -> DataStream:
            mapped = events.map(shape, uid="shape")
            return mapped.key_by("key").aggregate(event_id=count(), emit="every", uid="n")

        return Flow.of(name, tmp_path, transform=keyed)

    job = job_with(fixed=False).start()
    job_with(fixed=False).emit(*range(10))
    with pytest.raises(JobFailedError, match="'key'") as failure:
        job.wait(WAIT)
    assert "event_id" in str(failure.value), "the columns there are"

    flow = job_with(fixed=True)
    job = flow.start()
    flow.settled(job)
    assert sorted(column(flow.output, "event_id")) == sorted([1, 2, 3, 4, 5] * 2)
    job.cancel()


def test_what_can_be_known_before_the_job_starts_is_said_on_the_line_that_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"CheckpointConfig\.interval must be a positive"):
        CheckpointConfig(interval=timedelta(seconds=-1))
    env = StreamExecutionEnvironment()
    numbers = env.from_range(10, uid="numbers")
    with pytest.raises(DuplicateUidError, match="numbers"):
        env.from_range(10, uid="numbers")
    with pytest.raises(MissingColumnError, match=r"itme.*item"):
        numbers.key_by("itme")


@pytest.mark.parametrize("kind", ["postgres", "bucket", "directory"])
def test_a_sink_without_its_server_is_refused_before_the_job_starts(
    name: str, tmp_path: Path, moto_server: MotoServer, kind: str
) -> None:
    sinks: dict[str, Any] = {
        "postgres": lambda: PostgresSink("postgresql://user:geheim@127.0.0.1:9/db", table="t"),
        "bucket": lambda: FileSink(
            "s3://no-such-bucket/out", storage_options=moto_server.storage_options
        ),
        "directory": lambda: FileSink(tmp_path / "a-file" / "out"),
    }
    where = {"postgres": r"127\.0\.0\.1", "bucket": "no-such-bucket", "directory": "a-file"}
    (tmp_path / "a-file").touch()
    env = StreamExecutionEnvironment().with_checkpoint_config(create_test_config(tmp_path))
    env.from_range(10, uid="numbers").sink_to(sinks[kind](), uid="out")
    with pytest.raises(SinkUnavailableError, match=where[kind]) as failure:
        env.execute_async(name)
    assert "geheim" not in str(failure.value)
    assert not list((tmp_path / "checkpoints").rglob("manifest")), "nothing has begun"


def test_a_source_with_nothing_to_read_is_refused_when_it_is_described(tmp_path: Path) -> None:
    from helios_ray.errors import SourceUnavailableError

    env = StreamExecutionEnvironment()
    with pytest.raises(SourceUnavailableError, match="nowhere"):
        env.from_source(FileSource(tmp_path / "nowhere" / "*.parquet"), uid="files")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(CorruptInputError, match=r"a\.parquet"):
        env.from_source(FileSource(tmp_path / "a.parquet"), uid="files")
