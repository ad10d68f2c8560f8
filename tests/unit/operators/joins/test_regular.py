"""Every pair of equal keys comes out once; a row without partner once, when it leaves."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import Batch
from helios_ray.errors import (
    ConfigError,
    MissingColumnError,
    PlanError,
    SchemaChangedError,
    StateMismatchError,
)
from helios_ray.operators.joins import regular_rows
from helios_ray.operators.joins.regular import RegularJoinOperator
from helios_ray.operators.joins.temporal import TemporalJoinOperator
from tests.unit.operators.joins.side_driving import (
    KEYS,
    LEFT,
    RIGHT,
    SCHEMAS,
    Row,
    Subtasks,
    in_order,
    numbered,
    result,
    row_batch,
    row_lists,
    tight_limits,
)
from tests.unit.operators.support import main_rows, opened


class Model:
    """A regular join, row by row. A kept row: when it came, itself, whether it had a partner."""

    def __init__(self, how: str, ttl: int | None) -> None:
        self.outer = (how in ("left", "full"), how in ("right", "full"))
        self.ttl = ttl
        self.kept: tuple[list[list[Any]], list[list[Any]]] = ([], [])

    def row(self, side: int, row: Row, now: int) -> list[Row]:
        mine, out = [now, row, False], []
        for other in self.kept[1 - side]:
            key = row[KEYS[side]]
            if key is not None and key == other[1][KEYS[1 - side]]:
                mine[2] = other[2] = True
                pair = (row, other[1]) if side == 0 else (other[1], row)
                out.append(result(*pair))
        self.kept[side].append(mine)
        return out

    def leave(self, now: int | None) -> list[Row]:
        out = []
        for side, kept in enumerate(self.kept):
            for each in list(kept):
                came, row, matched = each
                if now is None or (self.ttl is not None and came + self.ttl <= now):
                    kept.remove(each)
                    if self.outer[side] and not matched:
                        out.append(result(row, None) if side == 0 else result(None, row))
        return out


steps = st.lists(
    st.one_of(
        st.tuples(st.just(0), row_lists(0, st.just(0)), st.booleans()),
        st.tuples(st.just(1), row_lists(1, st.just(0)), st.booleans()),
        st.tuples(st.just("clock"), st.integers(0, 6), st.booleans()),
        st.tuples(st.just("restart"), st.integers(1, 3), st.none()),
    ),
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@given(
    how=st.sampled_from(["inner", "left", "right", "full"]),
    ttl=st.none() | st.integers(1, 8),
    story=steps,
    tight=st.booleans(),
)
def test_every_pair_once_and_every_lonely_row_once(
    how: Any, ttl: int | None, story: list[Any], tight: bool
) -> None:
    life = None if ttl is None else timedelta(microseconds=ttl)
    with tight_limits(tight):
        subtasks = Subtasks(
            lambda: RegularJoinOperator(["k"], ["key"], how=how, ttl=life, input_schemas=SCHEMAS)
        )
        model = Model(how, ttl)
        now = first = 0
        came: list[Batch] = []
        expected: list[Row] = []
        for kind, what, more in [*story, ("end", None, None)]:
            subtasks.each("set_processing_time", now)
            if kind in (0, 1):
                rows = numbered(what, kind, first)
                first += len(rows)
                came += subtasks.send(kind, rows, encoded=more)
                expected += model.leave(now)
                for row in rows:
                    expected += model.row(kind, row, now)
            elif kind == "clock":
                now += what
                if more:  # or the timer comes later than the next rows
                    for operator in subtasks.operators:
                        due = operator.next_timer()
                        if due is not None and due <= now:
                            came += operator.on_processing_time(now)
            elif kind == "restart":
                subtasks.rescale(what)
            else:
                came += subtasks.each("end_input")
                expected += model.leave(now) + model.leave(None)
        assert in_order(main_rows(came)) == in_order(expected)
        assert subtasks.each("end_input") == []


def join(**more: Any) -> Any:
    operator = opened(RegularJoinOperator(["k"], ["key"], **more), "j")
    operator.set_processing_time(0)
    return operator


def lefts(*rows: tuple[Any, ...]) -> Batch:
    return Batch(row_batch([dict(zip(LEFT.names, row, strict=True)) for row in rows], LEFT))


def rights(*rows: tuple[Any, ...]) -> Batch:
    return Batch(row_batch([dict(zip(RIGHT.names, row, strict=True)) for row in rows], RIGHT))


def pairs(batches: list[Batch]) -> list[tuple[Any, Any]]:
    return [(row["id"], row["v"]) for row in main_rows(batches)]


def us(n: int) -> timedelta:
    return timedelta(microseconds=n)


def test_equal_rows_make_pairs_of_their_own() -> None:
    operator = join()
    operator.process_batch(lefts(("a", 0, 1), ("a", 0, 1)), 0)
    out = operator.process_batch(rights(("a", 0, 2), ("a", 0, 2)), 1)
    assert pairs(out) == [(1, 2)] * 4


def test_a_row_is_kept_until_its_time_to_live_is_over_and_not_longer() -> None:
    operator = join(how="full", ttl=us(10))
    operator.process_batch(lefts(("a", 0, 1), ("b", 0, 2)), 0)
    assert operator.next_timer() == 10
    operator.set_processing_time(9)
    assert pairs(operator.process_batch(rights(("a", 0, 3)), 1)) == [(1, 3)]
    # At 10 the left rows go before the rows that come then, with or without a timer.
    operator.set_processing_time(10)
    assert pairs(operator.process_batch(rights(("b", 0, 4)), 1)) == [(2, None)]
    assert operator.next_timer() == 19
    assert operator.on_processing_time(19) == []
    assert pairs(operator.on_processing_time(20)) == [(None, 4)]
    assert operator.next_timer() is None
    assert operator.counters()["operator.expired_rows"] == 4


def test_rows_that_left_make_no_pairs_though_rows_beside_them_stay() -> None:
    operator = join(how="left", ttl=us(10), input_schemas=SCHEMAS)
    for now, row in enumerate([("a", 0, 1), ("a", 0, 2), ("b", 0, 3)]):
        operator.set_processing_time(now)
        operator.process_batch(lefts(row), 0)
    assert pairs(operator.on_processing_time(10)) == [(1, None)]
    assert pairs(operator.process_batch(rights(("a", 0, 7)), 1)) == [(2, 7)]
    # Rows that are joined to what is left of theirs change nothing about that.
    operator.process_batch(lefts(("c", 0, 4)), 0)
    out = operator.process_batch(rights(("a", 0, 8), ("b", 0, 9), ("c", 0, 10)), 1)
    assert sorted(pairs(out)) == [(2, 8), (3, 9), (4, 10)]
    assert pairs(operator.on_processing_time(12)) == []


def test_rows_of_several_subtasks_leave_in_order_of_arrival() -> None:
    subtasks = Subtasks(
        lambda: RegularJoinOperator(["k"], ["key"], how="left", ttl=us(10), input_schemas=SCHEMAS)
    )
    subtasks.rescale(2)
    first = next(key for key in "abcde" if subtasks.owner(key) == 0)
    second = next(key for key in "abcde" if subtasks.owner(key) == 1)
    for now, key in ((0, second), (5, first)):
        subtasks.each("set_processing_time", now)
        subtasks.send(0, [{"k": key, "ts": 0, "id": now}])
    subtasks.rescale(1)
    [operator] = subtasks.operators
    assert operator.next_timer() == 10
    assert pairs(operator.on_processing_time(10)) == [(0, None)]
    assert pairs(operator.on_processing_time(15)) == [(5, None)]


def test_without_a_time_to_live_rows_stay_until_the_end() -> None:
    operator = join(how="left", input_schemas=SCHEMAS)
    operator.process_batch(lefts(("a", 0, 1)), 0)
    assert operator.next_timer() is None
    assert operator.on_processing_time(10**15) == []
    assert pairs(operator.end_input()) == [(1, None)]
    assert "left" not in operator.snapshot()


def test_a_row_without_partner_shows_its_key_under_the_lefts_name() -> None:
    operator = join(how="right", input_schemas=SCHEMAS)
    operator.process_batch(rights(("a", 5, 1)), 1)
    assert main_rows(operator.end_input()) == [
        {"k": "a", "ts": None, "id": None, "ts_right": 5, "v": 1}
    ]


def test_nulls_in_keys_are_equal_to_nothing_and_kept_only_where_they_come_out() -> None:
    operator = join(how="left")
    operator.process_batch(lefts((None, 0, 1)), 0)
    assert operator.process_batch(rights((None, 0, 2)), 1) == []
    state = operator.snapshot()
    assert state["left"].table.num_rows == 1
    assert "right" not in state
    assert pairs(operator.end_input()) == [(1, None)]


def test_whether_a_row_had_a_partner_is_part_of_the_state() -> None:
    operator = join(how="left", ttl=us(5))
    operator.process_batch(lefts(("a", 0, 1), ("b", 0, 2)), 0)
    before = operator.snapshot()["left"].table
    operator.process_batch(rights(("a", 0, 3)), 1)
    after = operator.snapshot()
    assert before["matched"].to_pylist() == [False, False]
    assert after["left"].table["matched"].to_pylist() == [True, False]
    again = join(how="left", ttl=us(5))
    again.restore(after)
    assert pairs(again.on_processing_time(5)) == [(2, None)]


def test_a_clock_that_goes_back_does_not_keep_rows_from_leaving_in_order() -> None:
    operator = join(how="left", ttl=us(10), input_schemas=SCHEMAS)
    operator.set_processing_time(100)
    operator.process_batch(lefts(("a", 0, 1)), 0)
    operator.set_processing_time(50)
    operator.process_batch(lefts(("b", 0, 2)), 0)
    assert operator.on_processing_time(109) == []
    assert pairs(operator.on_processing_time(110)) == [(1, None), (2, None)]


def test_many_small_batches_lie_in_few_runs_and_are_copied_few_times() -> None:
    copied = []
    whole = regular_rows._joined

    def counting(runs: Any, schema: Any) -> Any:
        made = whole(runs, schema)
        copied.append(len(made))
        return made

    with (
        mock.patch.object(regular_rows, "_joined", counting),
        mock.patch.object(regular_rows, "SMALL_ROWS", 8),
    ):
        operator = join()
        for i in range(1500):
            operator.process_batch(lefts((f"key-{i}", 0, i), ("all", 0, i)), 0)
    kept = operator._kept[0]
    assert len(kept) == 3000
    assert len(kept.runs) < 3 * 6 + 2
    assert sum(copied) < 3000 * 12
    assert len(pairs(operator.process_batch(rights(("all", 0, 1), ("key-7", 0, 2)), 1))) == 1501


def test_a_snapshot_refers_to_the_rows_and_does_not_change() -> None:
    operator = join(ttl=us(5))
    operator.process_batch(lefts(("a", 0, 1), ("b", 0, 2)), 0)
    first, second = operator.snapshot(), operator.snapshot()
    for name in ("value.id", "key_group", "arrived", "matched"):
        buffers = [s["left"].table[name].chunk(0).buffers()[1] for s in (first, second)]
        assert buffers[0].address == buffers[1].address
    operator.process_batch(rights(("a", 0, 3)), 1)
    operator.on_processing_time(5)
    assert first["left"].table.to_pydict()["value.id"] == [1, 2]
    assert first["left"].table["matched"].to_pylist() == [False, False]
    assert "left" not in operator.snapshot()


def test_keys_that_no_row_has_any_more_are_forgotten() -> None:
    with tight_limits(True):
        operator = join(ttl=us(2))
        for i in range(50):
            operator.set_processing_time(i)
            operator.process_batch(lefts((f"key-{i}", 0, i)), 0)
        assert len(operator._sides.space) < 8
        assert pairs(operator.process_batch(rights(("key-49", 0, 7)), 1)) == [(49, 7)]


def test_columns_that_do_not_fit_or_changed_are_refused() -> None:
    with pytest.raises(MissingColumnError, match="'key'"):
        RegularJoinOperator(["k"], ["key"], input_schemas=(LEFT, LEFT))
    with pytest.raises(ConfigError, match="how must be one of"):
        join(how="outer")
    with pytest.raises(ConfigError, match="ttl"):
        join(ttl=timedelta(0))
    with pytest.raises(ConfigError, match="same number of key columns"):
        RegularJoinOperator(["k"], [])
    operator = join(how="left")
    operator.process_batch(lefts(("a", 0, 1)), 0)
    with pytest.raises(MissingColumnError, match="left side needs column 'ts'"):
        operator.process_batch(Batch(pa.record_batch({"k": ["a"]})), 0)
    with pytest.raises(PlanError, match="columns of the right side, of which no row has come"):
        operator.end_input()
    assert operator.output_schema(LEFT, RIGHT).names == ["k", "ts", "id", "ts_right", "v"]


def test_state_of_other_keys_or_of_another_join_is_refused() -> None:
    operator = join()
    operator.process_batch(lefts(("a", 0, 1), ("b", 0, 2)), 0)
    state = operator.snapshot()
    with pytest.raises(SchemaChangedError, match="the keys, how= or the kind of join changed"):
        opened(RegularJoinOperator(["id"], ["v"]), "j").restore(state)
    with pytest.raises(StateMismatchError, match="owns 0 to 0"):
        opened(RegularJoinOperator(["k"], ["key"]), "j", 0, 16).restore(state)
    as_of = opened(TemporalJoinOperator(["k"], ["key"], "ts", "ts"), "j")
    as_of.process_batch(lefts(("a", 0, 1)), 0)
    with pytest.raises(SchemaChangedError, match="kind of join changed"):
        opened(RegularJoinOperator(["k"], ["key"]), "j").restore(as_of.snapshot())
