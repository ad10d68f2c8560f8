"""What a program computes depends on its input alone: not on crashes, cuts, orders, widths."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray import StreamExecutionEnvironment
from helios_ray.aggregates import count, max_, min_, sum_
from helios_ray.connectors.generator import RangeSource
from helios_ray.errors import ConfigError
from helios_ray.simulation.faults import FaultPlan
from helios_ray.testing import SimulationFailed, simulate
from tests.simulation.programs import Case, Row, Stage, cases, few, multiset, rows_of

SCHEMA = pa.schema([("key", pa.string()), ("v", pa.int64())])
ROWS = rows_of(key=st.sampled_from(["a", "b", "c", "d"]), v=st.integers(-1000, 1000))


def by_key(rows: list[Row]) -> Iterable[tuple[str, list[int]]]:
    ordered = sorted(rows, key=itemgetter("key"))
    for key, group in groupby(ordered, key=itemgetter("key")):
        yield key, [row["v"] for row in group]


@given(case=cases(), rows=ROWS)
@few
def test_rows_that_are_mapped_and_filtered_are_there_once_each(case: Case, rows: list[Row]) -> None:
    stage = Stage(case)
    stream = stage.stream(rows, schema=SCHEMA).filter(pc.field("v") >= 0)
    doubled = stream.map(lambda row: {**row, "v": row["v"] * 2}, schema=SCHEMA, uid="double")
    assert stage.run(doubled) == multiset(
        {"key": row["key"], "v": row["v"] * 2} for row in rows if row["v"] >= 0
    )


@given(case=cases(), rows=ROWS)
@few
def test_final_aggregates_are_those_of_all_rows_of_a_key(case: Case, rows: list[Row]) -> None:
    stage = Stage(case)
    totals = (
        stage.stream(rows, schema=SCHEMA)
        .key_by("key")
        .aggregate(
            n=count(), total=sum_("v"), low=min_("v"), high=max_("v"), emit="final", uid="totals"
        )
    )
    assert stage.run(totals) == multiset(
        {"key": key, "n": len(vs), "total": sum(vs), "low": min(vs), "high": max(vs)}
        for key, vs in by_key(rows)
    )


@given(case=cases(), rows=ROWS)
@few
def test_running_counts_have_no_gap_and_no_repetition(case: Case, rows: list[Row]) -> None:
    stage = Stage(case)
    counts = stage.stream(rows, schema=SCHEMA).key_by("key").aggregate(
        n=count(), emit="every", uid="counts"
    )  # fmt: skip
    assert stage.run(counts) == multiset(
        {"key": key, "n": n} for key, vs in by_key(rows) for n in range(1, len(vs) + 1)
    )


@given(case=cases(), left=ROWS, right=ROWS)
@few
def test_a_union_reduced_by_key_has_the_running_sums_of_both_streams(
    case: Case, left: list[Row], right: list[Row]
) -> None:
    stage = Stage(case)
    streams = [
        stage.stream(rows, schema=SCHEMA, uid=uid)
        for uid, rows in (("left", left), ("right", right))
    ]
    sums = streams[0].union(streams[1]).key_by("key").reduce(
        lambda so_far, row: {"key": row["key"], "v": max(so_far["v"], row["v"])}, uid="sums"
    )  # fmt: skip
    stage.run(sums)
    assert stage.result is not None
    everything = left + right
    last = {row["key"]: row["v"] for row in stage.result.rows("out")}
    assert last == {key: max(vs) for key, vs in by_key(everything)}
    assert Counter(row["key"] for row in stage.result.rows("out")) == Counter(
        row["key"] for row in everything
    )


@given(case=cases(), rows=ROWS)
@few
def test_two_sinks_of_one_stream_hold_the_same(case: Case, rows: list[Row]) -> None:
    stage = Stage(case)
    stream = stage.stream(rows, schema=SCHEMA)
    stream.collect(uid="one")
    stream.key_by("key").collect(uid="other")
    assert stage.run_all() == {"one": multiset(rows), "other": multiset(rows)}


# ----------------------------------------------------------------------------- the simulation


def counted(n: int, parallelism: int = 2) -> StreamExecutionEnvironment:
    env = StreamExecutionEnvironment().with_parallelism(parallelism).build()
    rows = [{"key": i % 5, "v": i} for i in range(n)]
    env.from_items(rows, uid="rows").key_by("key").aggregate(n=count(), uid="n").collect(uid="out")
    return env


def test_programs_are_interrupted_while_they_run_and_resume_from_checkpoints() -> None:
    results = [simulate(counted(200), seed=seed) for seed in range(12)]
    assert sum(r.crashes > 0 for r in results) >= 6
    assert sum(r.restores > 0 for r in results) >= 4
    assert sum(r.checkpoints for r in results) > 24
    assert all(max(row["n"] for row in r.rows("out")) == 40 for r in results)


def test_without_faults_a_program_ends_at_its_first_attempt() -> None:
    result = simulate(counted(50), seed=3, faults=FaultPlan())
    assert (result.attempts, result.restores, result.faults.total()) == (1, 0, 0)
    assert result.statuses == Counter({"finished": 1})


def test_faults_that_are_given_strike_and_are_not_changed() -> None:
    faults = FaultPlan(until=5.0, crash_task=2, commit_fatal=0.5)
    result = simulate(counted(2000), seed=1, faults=faults)
    assert result.virtual_seconds > faults.until  # a job that has ended cannot be struck
    assert result.faults["crash_task"] == 2
    assert set(result.faults) <= {"crash_task", "commit_fatal"}
    assert faults == FaultPlan(until=5.0, crash_task=2, commit_fatal=0.5)


def test_rows_keep_the_order_of_their_commits() -> None:
    result = simulate(counted(100, parallelism=1), seed=5)
    of_key = [row["n"] for row in result.rows("out") if row["key"] == 3]
    assert of_key == sorted(of_key)
    assert of_key[-1] == 20


def test_a_sink_without_rows_has_its_columns() -> None:
    env = StreamExecutionEnvironment().build()
    env.from_items([{"v": 1}], uid="rows").filter(pc.field("v") > 1).collect(uid="out")
    table = simulate(env).tables["out"]
    assert (table.num_rows, table.schema) == (0, pa.schema([("v", pa.int64())]))


PROGRAM = """
from tests.simulation.test_programs import counted
from helios_ray.testing import simulate
for seed in (2, 9):
    told = []
    print(simulate(counted(120), seed=seed, trace=told.append).digest, len(told))
"""


def test_a_seed_gives_the_same_run_and_the_same_trace_in_another_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "4711")
    ]
    assert runs[0] == runs[1]
    here = [simulate(counted(120), seed=seed).digest for seed in (2, 9)]
    assert [line.split()[0] for line in runs[0].splitlines()] == here


def test_a_program_that_fails_again_and_again_says_why_and_with_which_seed() -> None:
    env = StreamExecutionEnvironment().build()
    env.from_items([1, 0], uid="rows").map(lambda row: {"x": 1 // row["item"]}).collect(uid="out")
    with pytest.raises(SimulationFailed, match=r"(?s)seed=4 .*ZeroDivisionError") as caught:
        simulate(env, seed=4)
    assert not caught.value.result.ok


def test_a_source_without_end_is_refused() -> None:
    class Endless(RangeSource):
        @property
        def bounded(self) -> bool:
            return False

    env = StreamExecutionEnvironment().build()
    env.from_source(Endless(5), uid="endless").collect(uid="out")
    with pytest.raises(ConfigError, match="must end"):
        simulate(env)


@pytest.mark.parametrize("nulls_first", [False, True])
@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_a_nullable_column_is_one_column_whichever_subtask_of_a_map_sees_only_nulls(
    parallelism: int, nulls_first: bool
) -> None:
    rows = [{"k": i % 5, "v": None if (i < 20) == nulls_first else i} for i in range(40)]
    env = StreamExecutionEnvironment().with_parallelism(parallelism).build()
    mapped = env.from_items(rows, uid="rows").map(dict, uid="map")
    mapped.key_by("k").aggregate(v=sum_("v"), emit="final", uid="sum").collect(uid="out")
    result = simulate(env, seed=3)
    expected = {k: sum(r["v"] or 0 for r in rows if r["k"] == k) for k in range(5)}
    assert {row["k"]: row["v"] for row in result.rows("out")} == expected


def test_times_beyond_pythons_calendar_are_results_like_others() -> None:
    env = StreamExecutionEnvironment().build()
    far = pa.table({"at": pa.array([2**60], pa.timestamp("us"))})
    env.from_items(far, uid="far").collect(uid="out")
    assert simulate(env, seed=1).tables["out"]["at"].cast(pa.int64()).to_pylist() == [2**60]
