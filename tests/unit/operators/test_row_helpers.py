"""deduplicate, top_n, rate_limit and inspect give the same whatever the cut or restart."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP, Batch
from helios_ray.errors import (
    ConfigError,
    MissingColumnError,
    PlanError,
    SchemaChangedError,
    UserFunctionError,
)
from helios_ray.operators.deduplicate import DeduplicateOperator
from helios_ray.operators.inspect import InspectOperator
from helios_ray.operators.rate_limit import RateLimitOperator
from helios_ray.operators.rows import OutputSchema
from helios_ray.operators.top_n import TopNOperator
from helios_ray.state.key_groups import key_groups_of_batch, partition, subtask_of
from helios_ray.state.keyed.ttl import StateTtl
from tests.unit.operators.process.driving import MAX_PARALLELISM, Tasks
from tests.unit.operators.support import batch, main_rows, opened, tagged_rows

SCHEMA = pa.schema([("k", pa.string()), ("x", pa.float64()), ("i", pa.int64())])
ROWS = st.lists(
    st.tuples(
        st.none() | st.sampled_from(["a", "b", "ü"]), st.none() | st.integers(0, 3).map(float)
    ),
    max_size=30,
).map(lambda rows: [{"k": k, "x": x, "i": i} for i, (k, x) in enumerate(rows)])
PIECES = st.lists(st.tuples(st.integers(1, 8), st.sampled_from([0, 0, 0, 0, 1, 2, 3])), min_size=30,
                  max_size=30)  # fmt: skip
"""Sizes of batches, and on how many subtasks to restart after each (0 is not at all)."""


def in_pieces(tasks: Tasks, rows: list[dict[str, Any]], pieces: list[tuple[int, int]]) -> None:
    start = 0
    for size, restart in pieces:
        if start >= len(rows):
            break
        tasks.rows(rows[start : start + size], SCHEMA)
        start += size
        if restart:
            tasks.restart(restart)


# ---------------------------------------------------------------------------------- deduplicate


@settings(max_examples=30, deadline=None)
@given(ROWS, PIECES)
def test_the_first_row_of_a_key_passes(
    rows: list[dict[str, Any]], pieces: list[tuple[int, int]]
) -> None:
    tasks = Tasks(lambda: DeduplicateOperator(["k", "x"]))
    tasks.batch = lambda data: _by_both(tasks, data)  # type: ignore[method-assign]
    in_pieces(tasks, rows, pieces)
    expected = {(row["k"], row["x"]): row for row in reversed(rows)}
    assert sorted(r["i"] for r in tasks.taken()) == sorted(r["i"] for r in expected.values())


def _by_both(tasks: Tasks, data: pa.RecordBatch) -> None:
    """Rows go where their two key columns send them."""
    n = len(tasks.operators)
    groups = key_groups_of_batch(data, ["k", "x"], MAX_PARALLELISM)
    owners = subtask_of(groups, n, MAX_PARALLELISM)
    for operator, part in zip(tasks.operators, partition(data, owners, n), strict=True):
        if part is not None:
            tasks.out += operator.process_batch(Batch(part))


@pytest.mark.parametrize(("refresh", "seen_at"), [("write", [0, 10, 21]), ("read", [0])])
def test_a_key_is_forgotten_after_its_time(refresh: Any, seen_at: list[int]) -> None:
    ttl = StateTtl(duration=timedelta(microseconds=10), refresh=refresh)
    operator = opened(DeduplicateOperator(["k"], ttl=ttl))
    passed = []
    for now in (0, 5, 9, 10, 19, 21, 28):
        operator.set_processing_time(now)
        passed += [row["at"] for row in main_rows(operator.process_batch(
            batch({"k": ["a"], "at": [now]})))]  # fmt: skip
    assert passed == seen_at
    assert operator.counters() == {"operator.duplicate_rows": 7 - len(seen_at)}
    operator.set_processing_time(100)
    assert operator.snapshot()["state.seen"].table.num_rows == 0


# ---------------------------------------------------------------------------------------- top_n


def best(rows: list[dict[str, Any]], n: int, ascending: bool) -> list[dict[str, Any]]:
    sign = 1 if ascending else -1
    ordered = sorted(rows, key=lambda r: (r["x"] is None, sign * (r["x"] or 0.0)))
    return [{**row, "rank": rank} for rank, row in enumerate(ordered[:n], 1)]


@settings(max_examples=30, deadline=None)
@given(ROWS, PIECES, st.integers(1, 3), st.booleans())
def test_the_best_rows_of_each_key_are_kept_and_the_first_of_equal_ones(
    rows: list[dict[str, Any]], pieces: list[tuple[int, int]], n: int, ascending: bool
) -> None:
    def make(emit: Any) -> Tasks:
        return Tasks(lambda: TopNOperator(["k"], n, "x", ascending=ascending, emit=emit))

    keys = {row["k"] for row in rows}
    expected = {k: best([r for r in rows if r["k"] == k], n, ascending) for k in keys}
    final = make("final")
    in_pieces(final, rows, pieces)
    assert final.taken() == []
    final.end()
    for key in keys:
        assert [r for r in final.taken() if r["k"] == key] == expected[key]
    updates = make("updates")
    in_pieces(updates, rows, pieces)
    for key in keys:
        mine = [r for r in updates.taken() if r["k"] == key]
        last = max(i for i, r in enumerate(mine) if r["rank"] == 1)
        assert mine[last:] == expected[key]


def test_top_n_checks_its_columns() -> None:
    schema = pa.schema([("k", pa.string()), ("price", pa.int64()), ("rank", pa.int64())])
    with pytest.raises(MissingColumnError, match="Did you mean 'price'"):
        TopNOperator(["k"], 1, "prise", input_schema=schema)
    with pytest.raises(PlanError, match="rank_column"):
        TopNOperator(["k"], 1, "price", input_schema=schema)
    with pytest.raises(ConfigError, match="n must be a positive number"):
        TopNOperator(["k"], 0, "price")
    operator = TopNOperator(["k"], 1, "price", rank_column="place", input_schema=schema)
    assert operator.output_schema(schema).names == ["k", "price", "rank", "place"]


# ----------------------------------------------------------------------------------- rate_limit


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400_000), st.integers(0, 6), st.booleans()), max_size=20),
    st.integers(1, 20),
)
def test_rows_pass_in_order_and_never_faster_than_the_rate(
    steps: list[tuple[int, int, bool]], rate: int
) -> None:
    tasks = Tasks(lambda: RateLimitOperator(rate))
    sent, passed_at, now = 0, [], 0
    for wait, size, restart in steps:
        now += wait
        tasks.set_clock(now)
        tasks.rows([{"k": "a", "x": 1.0, "i": sent + i} for i in range(size)], SCHEMA)
        sent += size
        passed_at += [now] * (len(tasks.taken()) - len(passed_at))
        if restart:
            tasks.restart(1)
            tasks.operators[0].set_processing_time(now)
    in_order = [row["i"] for row in tasks.taken()]
    assert in_order == list(range(len(in_order)))
    burst = max(1, rate * 0.1)
    restarts = sum(restart for _, _, restart in steps)
    for i, first in enumerate(passed_at):
        for j in range(i, len(passed_at)):
            allowed = burst + restarts + (passed_at[j] - first) * rate / 1_000_000
            assert j - i + 1 <= allowed + 1e-6
    tasks.end()
    assert [row["i"] for row in tasks.taken()] == list(range(sent))


def test_held_rows_come_out_when_their_time_comes_and_hold_the_watermark_back() -> None:
    operator = opened(RateLimitOperator(2))
    operator.set_processing_time(0)
    operator.on_watermark(5)
    assert main_rows(operator.process_batch(batch({"i": [1, 2, 3]}))) == [{"i": 1}]
    operator.on_watermark(9)
    assert operator.output_watermark(9) == 5
    assert operator.held_rows == 2
    assert operator.next_timer() == 500_000
    assert main_rows(operator.on_processing_time(500_000)) == [{"i": 2}]
    restored = opened(RateLimitOperator(2))
    restored.restore(operator.snapshot())
    assert restored.next_timer() == 0  # it has not been told the time yet
    assert main_rows(restored.on_processing_time(600_000)) == [{"i": 3}]
    assert restored.output_watermark(9) == 9
    assert restored.snapshot() == {}
    restored.process_batch(batch({"i": [4, 5]}))
    assert main_rows(restored.on_watermark(MAX_TIMESTAMP)) == [{"i": 4}, {"i": 5}]
    with pytest.raises(ConfigError, match="rows_per_second"):
        RateLimitOperator(0)


def test_a_rate_limit_takes_no_more_while_it_holds_as_much_as_it_may() -> None:
    operator = opened(RateLimitOperator(10, max_held_rows=3))
    operator.set_processing_time(0)
    assert not operator.outstanding
    operator.process_batch(batch({"i": [1, 2, 3]}))
    assert operator.outstanding
    assert operator.blocked_inputs() == frozenset()
    operator.process_batch(batch({"i": [4, 5]}))
    assert operator.held_rows == 4
    assert operator.blocked_inputs() == {0}
    restored = opened(RateLimitOperator(10, max_held_rows=3))
    restored.restore(operator.snapshot())
    assert restored.blocked_inputs() == {0}
    assert restored.outstanding
    for tenths in range(1, 5):
        operator.on_processing_time(tenths * 100_000)
        assert operator.held_rows == 4 - tenths
        assert bool(operator.blocked_inputs()) is (operator.held_rows >= 3)
    assert not operator.outstanding
    with pytest.raises(ConfigError, match="max_held_rows"):
        RateLimitOperator(1, max_held_rows=0)


# -------------------------------------------------------------------------------------- inspect


def test_inspect_passes_rows_on_and_leaves_out_those_it_fails_on() -> None:
    seen: list[Any] = []

    def look(row: dict[str, Any]) -> None:
        seen.append(dict(row))
        row["x"] = "changed"
        if seen[-1]["x"] == 2:
            raise ValueError("two")

    rows = batch({"x": [1, 2, 3]}, at="40")
    operator = opened(InspectOperator(look, on_error="dead_letter"), "look")
    out = operator.process_batch(rows)
    assert main_rows(out) == [{"x": 1}, {"x": 3}]
    assert seen == [{"x": 1}, {"x": 2}, {"x": 3}]
    assert [r["row"] for r in tagged_rows(out, "dead_letter")] == ['{"x": 2}']
    with pytest.raises(UserFunctionError, match=r"inspect 'look'.*rows.csv @ 40 \+ row 1"):
        opened(InspectOperator(look), "look").process_batch(rows)
    with pytest.raises(ConfigError, match="needs a function"):
        InspectOperator(None)  # type: ignore[arg-type]


def test_a_column_of_nulls_takes_the_type_of_the_input_column_of_its_name() -> None:
    out = OutputSchema("map")
    out.model = pa.schema([("v", pa.dictionary(pa.int32(), pa.string())), ("n", pa.int64())])
    first = out.from_rows([{"v": None, "n": None, "new": None}])
    assert first.schema.types == [pa.string(), pa.int64(), pa.null()]
    second = out.from_rows([{"v": "x", "n": 7, "new": 1.5}])
    assert second.schema.types == [pa.string(), pa.int64(), pa.float64()]


def test_a_guessed_type_gives_way_to_the_first_value_that_says_otherwise() -> None:
    out = OutputSchema("map")
    out.model = pa.schema([("v", pa.int64())])
    assert out.from_rows([{"v": None}]).schema.field("v").type == pa.int64()
    assert out.from_rows([{"v": "text"}])["v"].to_pylist() == ["text"]
    with pytest.raises(SchemaChangedError, match="expected string"):
        out.from_rows([{"v": 5}])
    tables = OutputSchema("map_batches")
    tables.model = pa.schema([("v", pa.int64())])
    assert tables.from_table(pa.table({"v": pa.nulls(2)})).schema.field("v").type == pa.int64()
    assert tables.from_table(pa.table({"v": ["x"]}))["v"].to_pylist() == ["x"]
