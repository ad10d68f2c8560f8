"""Every shape of dataflow gives the rows that the same program would give without a cluster."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray

from helios_ray import DataStream, StreamExecutionEnvironment, col
from helios_ray.aggregates import count, sum_
from helios_ray.connectors.base import Sink
from helios_ray.errors import JobFailedError, UserFunctionError
from helios_ray.protocol.instructions import JobStatus
from helios_ray.testing import create_test_config
from tests.integration.runtime.support import SOON, WAIT, Flow, column


@pytest.fixture
def env(tmp_path: Path) -> StreamExecutionEnvironment:
    config = create_test_config(tmp_path)
    return StreamExecutionEnvironment().with_checkpoint_config(config)


def items(table: pa.Table, column: str = "item") -> list[Any]:
    return sorted(table.column(column).to_pylist()) if table.num_rows else []


def test_one_job_of_many_shapes(name: str, env: StreamExecutionEnvironment) -> None:
    """Union, branch, a branch nobody reads, side outputs, expressions, flat_map, rebalance."""
    numbers = env.from_range(100, uid="numbers").union(env.from_range(100, 150, uid="more"))
    parts = numbers.branch(small=col("item") < 30, large=col("item") >= 120, uid="parts")
    parts.small.collect(uid="small")
    parts.rest.with_columns(item=col("item") * 2).collect(uid="rest")

    def halve(row: dict[str, int]) -> dict[str, float]:
        if row["item"] % 2:
            raise ValueError(f"{row['item']} is odd")
        return {"item": row["item"] / 2}

    halves = numbers.rebalance().map(halve, on_error="dead_letter", uid="halve", parallelism=2)
    halves.collect(uid="halves")
    halves.dead_letters().collect(uid="letters")
    numbers.filter(col("item") < 3).flat_map(
        lambda row: [{"word": "x" * row["item"]}] * row["item"], uid="words"
    ).collect(uid="words-out")

    result = env.execute_async(name).wait(WAIT)

    assert result.status is JobStatus.FINISHED
    assert items(result.collect("small")) == list(range(30))
    assert items(result.collect("rest")) == [2 * n for n in range(30, 120)]
    assert items(result.collect("halves")) == [n / 2 for n in range(0, 150, 2)]
    assert items(result.collect("words-out"), "word") == ["x", "xx", "xx"]
    letters = result.collect("letters").to_pylist()
    assert sorted(letter["row"] for letter in letters) == sorted(
        f'{{"item": {n}}}' for n in range(1, 150, 2)
    )
    assert {letter["operator"] for letter in letters} == {"halve"}
    assert all("is odd" in letter["error"] for letter in letters)
    assert all("range" in letter["position"] for letter in letters)
    skipped = sum(t.skipped_rows for t in result.report.tasks)
    assert skipped == 75


class Scale:
    """A stateful function of batches, with what a model would have: something to load."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.batches = 0

    def __call__(self, batch: pa.Table) -> pa.Table:
        self.batches += 1
        scaled = pc.multiply(batch.column("item"), self.factor)
        return pa.table({"item": scaled, "first": pa.repeat(self.batches == 1, batch.num_rows)})


def test_map_batches_with_a_callable_class_keeps_one_instance_per_subtask(
    name: str, env: StreamExecutionEnvironment
) -> None:
    numbers = env.from_range(1_000, uid="numbers")
    numbers.map_batches(
        Scale, batch_size=100, batch_format="pyarrow", fn_constructor_args=(3,), uid="scale"
    ).collect(uid="out")
    table = env.execute_async(name).wait(WAIT).collect()
    assert items(table) == [3 * n for n in range(1_000)]
    assert sum(table.column("first").to_pylist()) == 100


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_a_row_that_fails_is_skipped_and_counted_or_ends_the_job(
    name: str, env: StreamExecutionEnvironment, on_error: Any
) -> None:
    numbers = env.from_range(20, uid="numbers")
    numbers.map(lambda row: {"item": 60 // (row["item"] - 7)}, on_error=on_error, uid="by").collect(
        uid="out"
    )
    job = env.execute_async(name)
    if on_error == "skip":
        result = job.wait(WAIT)
        assert items(result.collect()) == sorted(60 // (n - 7) for n in range(20) if n != 7)
        assert sum(t["skipped_rows"] for t in job.metrics()["tasks"].values()) == 1
        return
    with pytest.raises(JobFailedError) as failure:
        job.wait(WAIT)
    assert isinstance(failure.value.__cause__, UserFunctionError)
    for word in ("'by'", "{'item': 7}", "ZeroDivisionError", "range @ index 0 + row 7"):
        assert word in str(failure.value)


@pytest.mark.parametrize(("parallelism", "chained"), [(1, True), (1, False), (2, False), (3, True)])
def test_chaining_and_parallelism_change_no_result(
    name: str, env: StreamExecutionEnvironment, parallelism: int, chained: bool
) -> None:
    if not chained:
        env.disable_operator_chaining()
    env.with_parallelism(parallelism)
    numbers = env.from_range(600, uid="numbers").filter(col("item") >= 30)
    keyed = numbers.map(lambda row: {"key": row["item"] % 7, "n": row["item"]}, uid="key")
    keyed.key_by("key").aggregate(total=sum_("n"), rows=count(), emit="final", uid="sum").collect(
        uid="out"
    )
    result = env.execute_async(name).wait(WAIT)
    of_key = {key: [n for n in range(30, 600) if n % 7 == key] for key in range(7)}
    expected = {key: (sum(ns), len(ns)) for key, ns in of_key.items()}
    rows = result.collect().to_pylist()
    assert {r["key"]: (r["total"], r["rows"]) for r in rows} == expected
    assert len(rows) == 7
    assert len(result.report.tasks) == parallelism * (2 if chained else 5)


def test_an_empty_source_ends_and_is_committed(name: str, env: StreamExecutionEnvironment) -> None:
    empty = env.from_range(0, uid="nothing")
    empty.key_by("item").aggregate(n=count(), uid="n").collect(uid="out")
    result = env.execute_async(name).wait(WAIT)
    assert result.status is JobStatus.FINISHED
    assert result.report.committed is not None
    assert result.collect().num_rows == 0


def test_many_small_batches_arrive_in_order_and_once(name: str, tmp_path: Path) -> None:
    """Three hundred emissions of one event each, through a shuffle that must keep their order."""

    def number(events: DataStream) -> DataStream:
        return events.key_by("event_id").aggregate(
            batch=sum_("batch"), times=count(), emit="every", uid="count"
        )

    flow = Flow.of(name, tmp_path, transform=number, checkpoints={"interval": SOON})
    job = flow.start()
    for _ in range(300):
        flow.emit(7)
    assert flow.settled(job) == Counter({7: 300})
    assert sorted(column(flow.output, "times")) == list(range(1, 301))
    # The running sum after the n-th event is that of 0..n-1 only if none overtook another.
    pairs = zip(column(flow.output, "times"), column(flow.output, "batch"), strict=True)
    assert all(total == n * (n - 1) // 2 for n, total in pairs)
    job.cancel()


def test_print_writes_each_row_where_ray_shows_it(
    name: str, env: StreamExecutionEnvironment
) -> None:
    env.from_items(["to", "be"], uid="words").print(f"{name}: ", uid="show")
    assert env.execute_async(name).wait(WAIT).status is JobStatus.FINISHED
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    written = Counter(
        line
        for log in logs.glob("worker-*.out")
        for line in log.read_text().splitlines()
        if line.startswith(f"{name}: ")
    )
    assert written == {f"{name}: {{'item': 'to'}}": 1, f"{name}: {{'item': 'be'}}": 1}


class Appending(Sink):
    """Neither transactional nor idempotent: lines in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, batch: pa.RecordBatch) -> None:
        with self._path.open("a") as file:
            file.writelines(f"{n}\n" for n in batch.column("item").to_pylist())


def test_a_sink_that_is_only_at_least_once_says_so_when_the_job_starts(
    name: str,
    env: StreamExecutionEnvironment,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    env.from_range(5, uid="numbers").sink_to(Appending(tmp_path / "lines"), uid="lines")
    assert env.execute_async(name).wait(WAIT).status is JobStatus.FINISHED
    assert (tmp_path / "lines").read_text() == "0\n1\n2\n3\n4\n"
    said = [*caplog.messages, *(str(w.message) for w in recwarn)]
    assert [m for m in said if "at-least-once" in m and "lines" in m]
