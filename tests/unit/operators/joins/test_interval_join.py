"""An interval join is two nested loops over the rows that came in time, however they came."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP, Batch
from helios_ray.errors import (
    ConfigError,
    DataError,
    MissingColumnError,
    PlanError,
    SchemaChangedError,
    StateMismatchError,
)
from helios_ray.operators.joins.interval_join import IntervalJoinOperator
from helios_ray.operators.windows import keys
from helios_ray.watermarks import EventTime
from tests.unit.operators.joins.event_time import (
    HOWS,
    KEYS,
    LEFT,
    RIGHT,
    SCHEMAS,
    Marks,
    Row,
    Step,
    Subtasks,
    joined,
    key_of,
    lefts,
    many_keys,
    pairs_of,
    rights,
    rows_of,
    scripts,
    table,
    tight_limits,
)
from tests.unit.operators.support import batch, main_rows, opened, share_out, tagged_rows

US = timedelta(microseconds=1)

intervals = st.tuples(st.integers(-7, 7), st.integers(0, 9), st.booleans(), st.booleans()).map(
    lambda i: (i[0], i[0] + max(i[1], 0 if i[2] and i[3] else 2), i[2], i[3])
)


def interval_join(lower: int, upper: int, how: Any = "inner", **more: Any) -> IntervalJoinOperator:
    more = {"input_schemas": SCHEMAS, **more}
    return IntervalJoinOperator(*KEYS, "ts", "at", lower * US, upper * US, how=how, **more)


def near(interval: tuple[int, int, bool, bool]) -> Any:
    lower, upper, with_lower, with_upper = interval

    def meets(left: Row, right: Row) -> bool:
        apart = right.time - left.time
        return (lower < apart or (with_lower and apart == lower)) and (
            apart < upper or (with_upper and apart == upper)
        )

    return meets


def in_time(script: list[Step]) -> tuple[list[Row], tuple[list[int], list[int]]]:
    """The rows that are not late, and the ids of those that are, by side."""
    marks = Marks()
    kept: list[Row] = []
    late: tuple[list[int], list[int]] = ([], [])
    for kind, *rest in script:
        if kind == "rows":
            for row in rest[0]:
                if row.time <= marks.of[row.key]:
                    late[row.side].append(row.id)
                else:
                    kept.append(row)
        elif kind == "watermark":
            marks.advance(*rest)
        else:
            marks.parallelism = rest[0]
    return kept, late


@given(script=scripts(), how=st.sampled_from(HOWS), interval=intervals, tight=st.booleans())
@settings(max_examples=100, deadline=None)
def test_results_are_those_of_nested_loops_over_the_rows_in_time(
    script: list[Step], how: str, interval: tuple[int, int, bool, bool], tight: bool
) -> None:
    bounds = {"lower_inclusive": interval[2], "upper_inclusive": interval[3]}
    subtasks = Subtasks(lambda: interval_join(interval[0], interval[1], how, **bounds))
    with tight_limits(tight):
        out = [made for step in script for made in subtasks.play(step)] + subtasks.end()
    kept, late = in_time(script)
    assert pairs_of(out, rows_of(script)) == Counter(joined(kept, near(interval), how))
    assert (sorted(subtasks.late[0]), sorted(subtasks.late[1])) == late
    assert subtasks.late_rows == len(late[0]) + len(late[1])


@given(
    script=scripts(restores=False),
    interval=intervals,
    tight=st.booleans(),
    result_time=st.sampled_from(["left", "right", "either"]),
)
@settings(max_examples=80, deadline=None)
def test_results_come_at_once_and_are_never_late_by_their_result_time(
    script: list[Step], interval: tuple[int, int, bool, bool], tight: bool, result_time: str
) -> None:
    """A pair comes with its second row; a lone row with the first watermark that rules a
    partner out, and then nothing of it is kept."""
    bounds = {"lower_inclusive": interval[2], "upper_inclusive": interval[3]}
    low = interval[0] + (not interval[2])
    high = interval[1] - (not interval[3])
    subtasks = Subtasks(
        lambda: interval_join(interval[0], interval[1], "full", result_time=result_time, **bounds)
    )
    rows = rows_of(script)
    found: Counter[Any] = Counter()
    watermark = MIN_TIMESTAMP
    with tight_limits(tight):
        for i, step in enumerate(script):
            announced = subtasks.announced
            fresh = pairs_of(subtasks.play(step), rows)
            for left, right in fresh:
                if result_time in ("left", "either") and left is not None:
                    assert rows[left].time > announced
                if result_time in ("right", "either") and right is not None:
                    assert rows[right].time > announced
            found += fresh
            watermark = max(watermark, step[1]) if step[0] == "watermark" else watermark
            kept = in_time(script[: i + 1])[0]
            expected = joined(kept, near(interval), "full")
            due = [
                (left, right)
                for left, right in expected
                if (left is not None and right is not None)
                or (left is not None and (rows[left].time + high <= watermark))
                or (right is not None and (rows[right].time - low <= watermark))
                or rows[right if left is None else left].key is None  # type: ignore[index]
            ]
            assert found == Counter(due)
            still = [r for r in kept if r.key is not None]
            waiting = sum(r.time + (-low if r.side else high) > watermark for r in still)
            assert sum(len(o) for o in subtasks.operators[0]._buffers) == waiting


@pytest.mark.parametrize("how", HOWS)
def test_a_row_exactly_on_a_bound_is_a_partner_where_the_bound_is_included(how: str) -> None:
    rows = lefts(("a", 100, 0)), rights(("a", 95, 1), ("a", 110, 2), ("a", 94, 3), ("a", 111, 4))
    for with_lower in (True, False):
        for with_upper in (True, False):
            bounds = {"lower_inclusive": with_lower, "upper_inclusive": with_upper}
            subtasks = Subtasks(lambda b=bounds: interval_join(-5, 10, how, **b))  # type: ignore[misc]
            out = [made for part in rows for made in subtasks.send(part)] + subtasks.end()
            found = pairs_of(out, {row.id: row for part in rows for row in part})
            assert ((0, 1) in found, (0, 2) in found) == (with_lower, with_upper)
            assert (0, 3) not in found
            assert (0, 4) not in found


def test_a_row_whose_partners_all_lie_before_it_waits_only_for_those_still_to_come() -> None:
    join = opened(interval_join(-10, -5, "left"))
    join.process_batch(Batch(table(rights(("a", 20, 1)))), 1)
    assert join.on_watermark(22) == []
    out = join.process_batch(Batch(table(lefts(("a", 26, 0), ("b", 27, 2), ("b", 28, 3)))), 0)
    assert [(r["id"], r["rid"]) for r in main_rows(out)] == [(0, 1), (2, None)]
    assert [row["value.id"] for row in join.snapshot()["left"].table.to_pylist()] == [3]
    assert [(r["id"], r["rid"]) for r in main_rows(join.on_watermark(23))] == [(3, None)]
    # The right row waits for left rows up to 30.
    assert join.on_watermark(29) == []
    assert join.snapshot()["right"].table.num_rows == 1
    assert join.on_watermark(30) == []
    assert "right" not in join.snapshot()


def test_nothing_equals_a_null_and_rows_with_one_do_not_wait() -> None:
    join = opened(interval_join(-5, 5, "full"))
    out = join.process_batch(Batch(table(lefts((None, 1, 0), ("a", 1, 1)))), 0)
    assert main_rows(out) == [{"k": None, "ts": 1, "id": 0, "at": None, "rid": None}]
    out = join.process_batch(Batch(table(rights((None, 1, 2), ("a", 1, 3)))), 1)
    assert [(r["id"], r["rid"]) for r in main_rows(out)] == [(None, 2), (1, 3)]
    inner = opened(interval_join(-5, 5))
    assert inner.process_batch(Batch(table(lefts((None, 1, 0)))), 0) == []
    assert len(inner._buffers[0]) == 0


def test_a_null_in_one_of_several_keys_is_enough() -> None:
    join = opened(IntervalJoinOperator(["a", "b"], ["a", "b"], "t", "t", 0 * US, 0 * US))
    rows = batch({"a": [1, 1], "b": [None, 2], "t": [5, 5]})
    join.process_batch(rows, 0)
    assert main_rows(join.process_batch(rows, 1)) == [{"a": 1, "b": 2, "t": 5, "t_right": 5}]


def test_late_rows_go_to_the_side_output_of_their_side_and_meet_nothing() -> None:
    join = opened(interval_join(-5, 5))
    join.process_batch(Batch(table(rights(("a", 12, 0)))), 1)
    join.on_watermark(10)
    out = join.process_batch(Batch(table(lefts(("a", 10, 1), ("a", 11, 2)))), 0)
    assert tagged_rows(out, "late") == [{"k": "a", "ts": 10, "id": 1}]
    assert [(r["id"], r["rid"]) for r in main_rows(out)] == [(2, 0)]
    out = join.process_batch(Batch(table(rights(("a", 9, 3)))), 1)
    assert tagged_rows(out, "late_right") == [{"key": "a", "at": 9, "rid": 3}]
    assert join.counters() == {"operator.skipped_rows": 0, "operator.late_rows": 2}


def test_a_key_whose_former_owner_was_ahead_stays_as_far_as_it_was() -> None:
    ahead, behind = key_of(0, 2), key_of(1, 2)
    subtasks = Subtasks(lambda: interval_join(-5, 5, "left"), parallelism=2)
    subtasks.advance(20, lags=[0, 15])
    subtasks.rescale(1)
    assert (
        subtasks.send(lefts((ahead, 20, 0), (ahead, 21, 1), (behind, 6, 2), (behind, 5, 3))) == []
    )
    assert subtasks.late == ([0, 3], [])
    rows = {1: Row(0, ahead, 21, 1), 2: Row(0, behind, 6, 2)}
    assert pairs_of(subtasks.advance(11), rows) == Counter([(2, None)])
    assert pairs_of(subtasks.end(), rows) == Counter([(1, None)])


def test_an_empty_side_leaves_every_row_alone_once_its_columns_are_known() -> None:
    declared = opened(interval_join(-5, 5, "left"))
    declared.process_batch(Batch(table(lefts(("a", 1, 0)))), 0)
    [made] = declared.on_watermark(MAX_TIMESTAMP)
    assert made.data.to_pylist() == [{"k": "a", "ts": 1, "id": 0, "at": None, "rid": None}]
    assert made.data.schema.equals(interval_join(-5, 5).output_schema(LEFT, RIGHT))

    told = opened(interval_join(-5, 5, "left", input_schemas=(None, None)))
    told.process_batch(Batch(table(lefts(("a", 1, 0)))), 0)
    told.process_batch(Batch(table(rights(("a", 1, 0))).slice(0, 0)), 1)
    assert told.on_watermark(MAX_TIMESTAMP)[0].data.equals(made.data)

    unknown = opened(interval_join(-5, 5, "left", input_schemas=(None, None)))
    unknown.process_batch(Batch(table(lefts(("a", 1, 0)))), 0)
    with pytest.raises(
        PlanError, match=r"columns of the right side, of which no row.*Declare schema="
    ):
        unknown.on_watermark(MAX_TIMESTAMP)
    inner = opened(interval_join(-5, 5, input_schemas=(None, None)))
    inner.process_batch(Batch(table(lefts(("a", 1, 0)))), 0)
    assert inner.on_watermark(MAX_TIMESTAMP) == []


def test_times_may_be_timestamps_of_different_units_and_shifted() -> None:
    join = opened(
        IntervalJoinOperator(
            ["k"], ["k"], EventTime("ts", -1), "at", timedelta(0), timedelta(0), how="left"
        )
    )
    zone = timezone.utc
    left = {
        "k": [1],
        "ts": pa.array([datetime(2024, 1, 1, tzinfo=zone)], pa.timestamp("ms", "UTC")),
    }
    at = datetime(2023, 12, 31, 23, 59, 59, 999_999)
    right = {"k": [1, 1], "at": pa.array([at, at + US], pa.timestamp("ns"))}
    join.process_batch(batch(left), 0)
    [made] = join.process_batch(batch(right), 1)
    assert made.data["ts"].to_pylist() == [datetime(2024, 1, 1, tzinfo=zone)]
    assert made.data["at"].cast(pa.timestamp("us")).to_pylist() == [at]
    assert made.data.schema.field("ts").type == pa.timestamp("ms", "UTC")


@pytest.mark.parametrize("far", [2**61, -(2**61)])
def test_the_greatest_event_times_and_intervals_do_not_overflow(far: int) -> None:
    wide = timedelta(days=26_000_000)
    join = opened(IntervalJoinOperator(["k"], ["k"], "t", "t", -wide, wide, how="full"))
    rows = batch({"k": [1, 1], "t": [far, -far]})
    join.process_batch(rows, 0)
    out = join.process_batch(rows, 1) + join.on_watermark(MAX_TIMESTAMP)
    assert [r["t"] - r["t_right"] for r in main_rows(out)] == [0, 0]
    beyond = batch({"k": [1], "t": [far + (1 if far > 0 else -1)]})
    with pytest.raises(DataError, match="out of range"):
        opened(IntervalJoinOperator(["k"], ["k"], "t", "t", -wide, wide)).process_batch(beyond, 0)


def test_rows_without_event_time_follow_on_error() -> None:
    data = {"k": ["a", "a"], "ts": pa.array([None, 1], pa.int64()), "id": [0, 1]}
    with pytest.raises(
        DataError, match=r"interval_join 'op'.*'ts' of the left side is null.*row 0"
    ):
        opened(interval_join(-5, 5)).process_batch(batch(data, LEFT, at="7"), 0)
    skipping = opened(interval_join(-5, 5, "left", on_error="skip"))
    out = skipping.process_batch(batch(data, LEFT), 0) + skipping.on_watermark(MAX_TIMESTAMP)
    assert [r["id"] for r in main_rows(out)] == [1]
    assert skipping.counters()["operator.skipped_rows"] == 1
    lettered = opened(interval_join(-5, 5, on_error="dead_letter"))
    [letter] = tagged_rows(lettered.process_batch(batch(data, LEFT), 0), "dead_letter")
    assert letter["row"] == '{"k": "a", "ts": null, "id": 0}'


def test_a_side_holds_to_its_columns() -> None:
    join = opened(interval_join(-5, 5, input_schemas=(None, None)))
    join.process_batch(Batch(table(lefts(("a", 1, 0)))), 0)
    with pytest.raises(
        SchemaChangedError, match="'id' of the left side was int64 and is now string"
    ):
        join.process_batch(batch({"k": ["a"], "ts": [1], "id": ["x"]}), 0)
    with pytest.raises(MissingColumnError, match="left side needs column 'id'"):
        join.process_batch(batch({"k": ["a"], "ts": [1]}), 0)
    with pytest.raises(PlanError, match="is string and 'key' of the right is int64"):
        join.process_batch(batch({"key": [1], "at": [1], "rid": [1]}), 1)
    plain = {"k": pa.array(["a"]).dictionary_encode(), "ts": [2], "id": [1]}
    assert join.process_batch(batch(plain), 0) == []  # another encoding is the same column


def test_settings_are_checked_where_they_are_written() -> None:
    with pytest.raises(ConfigError, match=r"no time is from lower=.*\(included\) to upper="):
        interval_join(5, 4)
    with pytest.raises(ConfigError, match="excluded"):
        interval_join(5, 5, upper_inclusive=False)
    with pytest.raises(ConfigError, match="how must be one of"):
        interval_join(0, 5, "outer")
    with pytest.raises(ConfigError, match="result_time must be one of"):
        interval_join(0, 5, result_time="later")
    with pytest.raises(ConfigError, match="lower must be a timedelta"):
        IntervalJoinOperator(["k"], ["k"], "t", "t", 1, US)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="event time column on the right side, got None"):
        IntervalJoinOperator(["k"], ["k"], "t", None, US, US)  # type: ignore[arg-type]
    with pytest.raises(MissingColumnError, match="no event time column 'when'"):
        IntervalJoinOperator(["k"], ["key"], "when", "at", US, US, input_schemas=SCHEMAS)
    with pytest.raises(MissingColumnError, match="'kk'"):
        IntervalJoinOperator(["kk"], ["key"], "ts", "at", US, US, input_schemas=(LEFT, None))
    with pytest.raises(ConfigError, match="same number"):
        IntervalJoinOperator(["k"], [], "ts", "at", US, US)
    assert interval_join(0, 5).output_schema(LEFT, None) is None
    names = interval_join(0, 5).output_schema(LEFT, RIGHT, "x").names  # type: ignore[union-attr]
    assert names == ["k", "ts", "id", "at", "rid"]


def test_the_watermark_is_held_back_by_how_far_a_result_may_lie_behind() -> None:
    assert interval_join(-3, 7).output_watermark(100) == 93
    assert interval_join(-3, 7, result_time="right").output_watermark(100) == 97
    assert interval_join(-9, 7, result_time="either").output_watermark(100) == 91
    assert interval_join(-9, -7).output_watermark(100) == 100
    assert interval_join(-3, 7, upper_inclusive=False).output_watermark(100) == 94
    assert interval_join(-3, 7).output_watermark(MAX_TIMESTAMP) == MAX_TIMESTAMP
    assert interval_join(-3, 7).output_watermark(MIN_TIMESTAMP) == MIN_TIMESTAMP


def test_a_snapshot_holds_kept_rows_only_and_costs_nothing_where_nothing_changed() -> None:
    join = opened(interval_join(-5, 5, "left"))
    join.process_batch(Batch(table(lefts(("a", 1, 0), ("b", 9, 1)))), 0)
    join.process_batch(Batch(table(rights(("b", 9, 2)))), 1)
    join.on_watermark(7)
    first, second = join.snapshot(), join.snapshot()
    assert first["left"].table is second["left"].table
    kept = first["left"].table.to_pylist()
    assert [(row["key.k"], row["value.ts"], row["value.id"], row["matched"]) for row in kept] == [
        ("b", 9, 1, True)
    ]
    assert first["right"].table.column_names == ["key_group", "key.key", "value.at", "value.rid"]
    before = first["left"].table.to_pydict()
    join.process_batch(Batch(table(lefts(("b", 10, 3)))), 0)
    join.on_watermark(14)
    assert first["left"].table.to_pydict() == before
    assert [row["value.id"] for row in join.snapshot()["left"].table.to_pylist()] == [3]


def test_state_of_other_settings_is_refused() -> None:
    join = opened(interval_join(-5, 5, "left"))
    join.process_batch(Batch(table(lefts(("a", 1, 0)))), 0)
    state = share_out([join.snapshot()], 1)[0]
    with pytest.raises(SchemaChangedError, match="how= or the kind of join changed"):
        opened(interval_join(-5, 5)).restore(state)
    renamed = IntervalJoinOperator(["id"], ["rid"], "ts", "at", -US, US, how="left")
    with pytest.raises(SchemaChangedError, match="new uid"):
        opened(renamed).restore(state)
    gone = IntervalJoinOperator(["k"], ["key"], "when", "at", -US, US, how="left")
    with pytest.raises(SchemaChangedError, match="now reads 'when'"):
        opened(gone).restore(state)
    elsewhere = [
        s for s in range(2) if not share_out([join.snapshot()], 2)[s]["left"].table.num_rows
    ]
    with pytest.raises(StateMismatchError, match="came to a subtask that owns"):
        opened(interval_join(-5, 5, "left"), subtask=elsewhere[0], parallelism=2).restore(state)


@pytest.mark.parametrize("tight", [True, False])
def test_keys_that_are_gone_are_forgotten_and_those_that_wait_are_not(tight: bool) -> None:
    join = opened(interval_join(0, 9))
    with tight_limits(tight), mock.patch.object(keys, "FORGET_ABOVE", 0):
        for left, right, watermark in many_keys(100, behind=9):
            join.process_batch(Batch(table(left)), 0)
            for row in right:
                [found] = main_rows(join.process_batch(Batch(table([row])), 1))
                assert (found["id"], found["rid"]) == (left[0].id - 9, row.id)
            join.on_watermark(watermark)
    assert len(join.sides.space) <= 40


def test_many_small_batches_are_kept_in_few_runs() -> None:
    join = opened(interval_join(-(10**6), 10**6))
    with tight_limits(False):
        for i in range(400):
            join.process_batch(Batch(table(lefts(("a", i * 7 % 400, i)))), 0)
    assert len(join._buffers[0]) == 400
    assert len(join._buffers[0].runs) <= 9
