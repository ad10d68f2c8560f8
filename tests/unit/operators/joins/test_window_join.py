"""A window join is two nested loops over the rows of each window of each key."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP, Batch
from helios_ray.errors import ConfigError, PlanError, SchemaChangedError
from helios_ray.operators.joins.window_join import WindowJoinOperator
from helios_ray.watermarks import EventTime
from helios_ray.windowing import (
    CountWindow,
    SessionWindow,
    SlidingWindow,
    TumblingWindow,
    WindowSpec,
)
from tests.unit.operators.joins.event_time import (
    HOWS,
    KEYS,
    LEFT,
    RIGHT,
    SCHEMAS,
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
from tests.unit.operators.joins.windowed import US, Cell, cells_of, windows
from tests.unit.operators.support import batch, main_rows, opened, tagged_rows

TEN = TumblingWindow(10 * US)


def window_join(window: WindowSpec = TEN, how: Any = "inner", **more: Any) -> WindowJoinOperator:
    more = {"input_schemas": SCHEMAS, **more}
    return WindowJoinOperator(*KEYS, "ts", "at", window, how=how, **more)  # type: ignore[arg-type]


def pairs_in(cells: list[Cell], how: str) -> Counter[Any]:
    return Counter(
        (*pair, cell.start, cell.end)
        for cell in cells
        for pair in joined(cell.rows, lambda *_: True, how)
    )


@given(script=scripts(), how=st.sampled_from(HOWS), window=windows, tight=st.booleans())
@settings(max_examples=100, deadline=None)
def test_results_are_those_of_nested_loops_over_each_window(
    script: list[Step], how: str, window: Any, tight: bool
) -> None:
    subtasks = Subtasks(lambda: window_join(window, how))
    with tight_limits(tight):
        out = [made for step in script for made in subtasks.play(step)] + subtasks.end()
    ended, still, late = cells_of(script, window)
    assert pairs_of(out, rows_of(script)) == pairs_in(ended + still, how)
    assert (sorted(subtasks.late[0]), sorted(subtasks.late[1])) == late
    assert subtasks.late_rows == len(late[0]) + len(late[1])


@given(script=scripts(restores=False), window=windows, tight=st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_window_speaks_with_the_first_watermark_that_ends_it_and_is_then_forgotten(
    script: list[Step], window: Any, tight: bool
) -> None:
    subtasks = Subtasks(lambda: window_join(window, "full"))
    rows = rows_of(script)
    found: Counter[Any] = Counter()
    with tight_limits(tight):
        for i, step in enumerate(script):
            announced = subtasks.announced
            fresh = pairs_of(subtasks.play(step), rows)
            assert all(end - 1 > announced for *_, end in fresh)
            found += fresh
            ended, still, _ = cells_of(script[: i + 1], window)
            assert found == pairs_in(ended, "full")
            kept = subtasks.operators[0].snapshot()
            ids = [
                i
                for name, column in (("left", "value.id"), ("right", "value.rid"))
                for i in (kept[name].table[column].to_pylist() if name in kept else [])
            ]
            assert sorted(ids) == sorted({row.id for cell in still for row in cell.rows})


def test_a_row_at_a_boundary_belongs_to_the_later_window() -> None:
    join = opened(window_join())
    join.process_batch(Batch(table(lefts(("a", 9, 0), ("a", 10, 1)))), 0)
    join.process_batch(Batch(table(rights(("a", 10, 2), ("a", 0, 3)))), 1)
    assert join.on_watermark(8) == []
    assert [(r["id"], r["rid"]) for r in main_rows(join.on_watermark(9))] == [(0, 3)]
    assert [(r["id"], r["rid"]) for r in main_rows(join.end_input())] == [(1, 2)]


def test_sessions_are_held_together_by_the_rows_of_both_sides() -> None:
    join = opened(window_join(SessionWindow(5 * US)))
    join.process_batch(Batch(table(lefts(("a", 0, 0), ("a", 8, 1)))), 0)
    join.process_batch(Batch(table(rights(("a", 4, 2)))), 1)
    assert join.on_watermark(11) == []
    rows = main_rows(join.on_watermark(12))
    assert sorted((r["id"], r["rid"]) for r in rows) == [(0, 2), (1, 2)]
    assert {(r["window_start"].microsecond, r["window_end"].microsecond) for r in rows} == {(0, 13)}


def test_an_old_row_that_touches_an_open_session_of_either_side_is_not_late() -> None:
    join = opened(window_join(SessionWindow(5 * US)))
    join.process_batch(Batch(table(lefts(("a", 10, 0), ("a", 12, 1), ("b", 3, 2)))), 0)
    join.on_watermark(14)
    out = join.process_batch(Batch(table(rights(("a", 8, 3), ("b", 5, 4), ("a", 3, 5)))), 1)
    assert [r["rid"] for r in tagged_rows(out, "late_right")] == [4, 5]
    out = join.process_batch(Batch(table(lefts(("a", 4, 6), ("b", 9, 7)))), 0)
    assert [r["id"] for r in tagged_rows(out, "late")] == [7]
    rows = main_rows(join.on_watermark(16))
    assert sorted((r["id"], r["rid"]) for r in rows) == [(0, 3), (1, 3), (6, 3)]
    assert {(r["window_start"].microsecond, r["window_end"].microsecond) for r in rows} == {(4, 17)}
    assert join.counters()["operator.late_rows"] == 3


def test_results_come_by_window_and_carry_the_zone_of_the_left() -> None:
    window = SlidingWindow(timedelta(hours=2), timedelta(hours=1))
    join = opened(WindowJoinOperator(["k"], ["k"], "t", EventTime("t", -1), window, how="left"))
    at = [datetime(2024, 1, 1, hour, tzinfo=timezone.utc) for hour in (3, 1)]
    left = {"k": [1, 1], "t": pa.array(at, pa.timestamp("s", "UTC"))}
    right = {"k": [1], "t": pa.array(at[1:], pa.timestamp("ns"))}
    join.process_batch(batch(left), 0)
    join.process_batch(batch(right), 1)
    [made] = join.on_watermark(MAX_TIMESTAMP)
    assert made.data.schema.names == ["k", "t", "t_right", "window_start", "window_end"]
    assert made.data.schema.field("window_end").type == pa.timestamp("us", "UTC")
    starts = [moment.hour for moment in made.data["window_start"].to_pylist()]
    assert starts == [0, 1, 2, 3]
    assert made.data["t_right"].is_valid().to_pylist() == [True, False, False, False]


def test_local_days_follow_the_clock_of_their_zone() -> None:
    window = TumblingWindow(timedelta(days=1), tz="America/New_York")
    join = opened(WindowJoinOperator(["k"], ["k"], "t", "t", window))
    midnight = datetime(2024, 3, 10, 5, tzinfo=timezone.utc)
    times = [midnight, midnight + timedelta(hours=22, minutes=59), midnight + timedelta(hours=23)]
    rows = batch({"k": [1, 1, 1], "t": pa.array(times, pa.timestamp("us", "UTC"))})
    join.process_batch(rows, 0)
    join.process_batch(rows, 1)
    assert len(main_rows(join.on_watermark(MAX_TIMESTAMP))) == 2 * 2 + 1  # a day of 23 hours


@pytest.mark.parametrize("window", [TEN, SessionWindow(5 * US)])
def test_nothing_equals_a_null_yet_such_rows_are_windowed_like_others(window: WindowSpec) -> None:
    join = opened(window_join(window, "full"))
    join.process_batch(Batch(table(lefts((None, 1, 0), ("a", 1, 1)))), 0)
    join.process_batch(Batch(table(rights((None, 1, 2), ("a", 1, 3)))), 1)
    rows = main_rows(join.on_watermark(9))
    assert Counter((r["k"], r["id"], r["rid"]) for r in rows) == Counter(
        [("a", 1, 3), (None, 0, None), (None, None, 2)]
    )
    assert len({r["window_start"] for r in rows}) == 1


def test_late_rows_go_to_the_side_output_of_their_side() -> None:
    join = opened(window_join(SlidingWindow(10 * US, 5 * US)))
    join.on_watermark(12)
    out = join.process_batch(Batch(table(lefts(("a", 4, 0), ("a", 5, 1)))), 0)
    assert tagged_rows(out, "late") == [{"k": "a", "ts": 4, "id": 0}]
    out = join.process_batch(Batch(table(rights(("a", 14, 2), ("a", 3, 3)))), 1)
    assert tagged_rows(out, "late_right") == [{"key": "a", "at": 3, "rid": 3}]
    assert [(r["id"], r["rid"]) for r in main_rows(join.on_watermark(14))] == [(1, 2)]
    assert join.counters()["operator.late_rows"] == 2


def test_what_a_former_owner_has_said_is_not_said_again() -> None:
    """One subtask was ahead; whoever takes over its keys starts at the watermark of the other."""
    ahead = key_of(0, 2)
    subtasks = Subtasks(lambda: window_join(SlidingWindow(10 * US, 5 * US)), parallelism=2)
    parts = lefts((ahead, 6, 0)), rights((ahead, 7, 1))
    for rows in parts:
        subtasks.send(rows)
    known = {row.id: row for rows in parts for row in rows}
    assert pairs_of(subtasks.advance(9, lags=[0, 8]), known) == Counter([(0, 1, 0, 10)])
    subtasks.rescale(1)
    assert subtasks.advance(9) == []
    assert pairs_of(subtasks.advance(14), known) == Counter([(0, 1, 5, 15)])


@pytest.mark.parametrize("window", [TEN, SessionWindow(5 * US)])
def test_what_was_late_for_a_former_owner_stays_late(window: WindowSpec) -> None:
    ahead, behind = key_of(0, 2), key_of(1, 2)
    subtasks = Subtasks(lambda: window_join(window), parallelism=2)
    subtasks.advance(19, lags=[0, 10])
    subtasks.rescale(1)
    subtasks.send(lefts((ahead, 14, 0), (behind, 14, 1), (ahead, 20, 2)))
    assert subtasks.late == ([0], [])


def test_an_empty_side_leaves_every_row_alone_once_its_columns_are_known() -> None:
    declared = opened(window_join(how="full"))
    declared.process_batch(Batch(table(rights(("a", 1, 0)))), 1)
    [made] = declared.on_watermark(MAX_TIMESTAMP)
    assert [(r["k"], r["id"], r["rid"]) for r in made.data.to_pylist()] == [("a", None, 0)]
    assert made.data.schema.equals(declared.output_schema(LEFT, RIGHT))
    unknown = opened(window_join(how="full", input_schemas=(None, None)))
    unknown.process_batch(Batch(table(rights(("a", 1, 0)))), 1)
    with pytest.raises(
        PlanError, match=r"window_join 'op'.*the left side, of which no row has come"
    ):
        unknown.on_watermark(MAX_TIMESTAMP)
    inner = opened(window_join(input_schemas=(None, None)))
    inner.process_batch(Batch(table(rights(("a", 1, 0)))), 1)
    assert inner.on_watermark(MAX_TIMESTAMP) == []
    nothing = opened(window_join(how="full"))
    assert nothing.on_watermark(50) == nothing.end_input() == []
    late = nothing.process_batch(Batch(table(lefts(("a", 49, 0)))), 0)
    assert tagged_rows(late, "late") == [{"k": "a", "ts": 49, "id": 0}]


def test_a_side_holds_to_its_columns() -> None:
    join = opened(window_join())
    join.process_batch(Batch(table(lefts(("a", 1, 0)))), 0)
    with pytest.raises(SchemaChangedError, match="'id' of the left side was int64 and is now"):
        join.process_batch(batch({"k": ["a"], "ts": [1], "id": [0.5]}, at="8"), 0)


def test_settings_are_checked_where_they_are_written() -> None:
    with pytest.raises(ConfigError, match="window must be a TumblingWindow, Sliding"):
        window_join(CountWindow(5))
    with pytest.raises(ConfigError, match="how must be one of"):
        window_join(TEN, "semi")
    taken = pa.schema([("key", pa.string()), ("at", pa.int64()), ("window_end", pa.int64())])
    with pytest.raises(PlanError, match=r"'window_end' of their own.*Rename"):
        window_join(input_schemas=(LEFT, taken))
    schema = window_join().output_schema(LEFT, RIGHT)
    assert schema is not None
    assert schema.names == ["k", "ts", "id", "at", "rid", "window_start", "window_end"]
    assert window_join().output_schema(None, RIGHT) is None


def test_a_snapshot_is_made_of_what_is_kept_and_does_not_change_any_more() -> None:
    join = opened(window_join())
    join.process_batch(Batch(table(lefts(("a", 1, 0), ("a", 11, 1)))), 0)
    join.on_watermark(9)
    state = join.snapshot()
    assert list(state) == ["watermark", "left_schema", "left"]
    assert state["left"].table.drop_columns("key_group").to_pylist() == [
        {"key.k": "a", "value.ts": 11, "value.id": 1}
    ]
    join.process_batch(Batch(table(lefts(("a", 12, 2)))), 0)
    join.on_watermark(MAX_TIMESTAMP)
    assert state["left"].table["value.id"].to_pylist() == [1]


@pytest.mark.parametrize("window", [SlidingWindow(20 * US, 20 * US), SessionWindow(10 * US)])
def test_keys_that_are_gone_are_forgotten_and_those_that_wait_are_not(window: WindowSpec) -> None:
    join = opened(window_join(window))
    out = []
    with tight_limits(True):
        for left, right, watermark in many_keys(100, behind=9):
            join.process_batch(Batch(table(left)), 0)
            for row in right:
                join.process_batch(Batch(table([row])), 1)
            out += join.on_watermark(watermark)
        assert len(join.sides.space) <= 90
        out += join.end_input()
    met = {i for i in range(91) if i // 20 == (i + 9) // 20 or window == SessionWindow(10 * US)}
    assert {r["id"] for r in main_rows(out)} == met
    assert len(main_rows(out)) == len(met)
