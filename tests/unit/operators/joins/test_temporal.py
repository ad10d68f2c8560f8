"""Each row meets the version that was in force at its time, whichever of them came first."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP, Batch, Origin
from helios_ray.errors import (
    ConfigError,
    DataError,
    MissingColumnError,
    PlanError,
    SchemaChangedError,
    StateMismatchError,
)
from helios_ray.operators.joins.temporal import TemporalJoinOperator
from helios_ray.operators.user_functions import DEAD_LETTER
from tests.unit.operators.joins.side_driving import (
    LEFT,
    RIGHT,
    Row,
    Subtasks,
    in_order,
    numbered,
    result,
    row_batch,
    row_lists,
    share_out,
    tight_limits,
)
from tests.unit.operators.support import main_rows, opened, tagged_rows


class Model:
    """A temporal join, row by row. Every key has a watermark."""

    def __init__(self, how: str, tolerance: int | None) -> None:
        self.how = how
        self.tolerance = tolerance
        self.marks: dict[str | None, int] = dict.fromkeys([*"abcde", None], MIN_TIMESTAMP)
        self.waiting: list[Row] = []
        self.versions: dict[str, list[Row]] = {}
        self.late: list[int] = []
        self.late_right: list[int] = []

    def left(self, row: Row) -> None:
        if row["ts"] <= self.marks[row["k"]]:
            self.late.append(row["id"])
        else:
            self.waiting.append(row)

    def right(self, row: Row) -> None:
        key, mark = row["key"], self.marks[row["key"]]
        if key is None:
            return
        versions = self.versions.setdefault(key, [])
        if row["ts"] <= mark and (
            any(row["ts"] < v["ts"] <= mark for v in versions)
            or (self.tolerance is not None and mark - row["ts"] >= self.tolerance)
        ):
            self.late_right.append(row["v"])
        else:
            versions.append(row)

    def advance(self, key: str | None, mark: int) -> list[Row]:
        self.marks[key] = mark = max(mark, self.marks[key])
        due = [row for row in self.waiting if row["k"] == key and row["ts"] <= mark]
        self.waiting = [row for row in self.waiting if row not in due]
        answers = [(row, self.answer(row)) for row in due]
        return [result(row, found) for row, found in answers if found or self.how == "left"]

    def answer(self, row: Row) -> Row | None:
        best = None
        for version in self.versions.get(row["k"], []):
            if version["ts"] <= row["ts"] and (best is None or version["ts"] >= best["ts"]):
                best = version
        if best is not None and self.tolerance is not None:
            return best if row["ts"] - best["ts"] <= self.tolerance else None
        return best


times = st.integers(-6, 14)
steps = st.lists(
    st.one_of(
        st.tuples(st.just(0), row_lists(0, times), st.booleans()),
        st.tuples(st.just(1), row_lists(1, times), st.booleans()),
        st.tuples(st.just("watermark"), st.integers(0, 9), st.lists(st.integers(0, 4), max_size=3)),
        st.tuples(st.just("restart"), st.integers(1, 3), st.none()),
    ),
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@given(
    how=st.sampled_from(["inner", "left"]),
    tolerance=st.none() | st.integers(0, 8),
    story=steps,
    tight=st.booleans(),
)
def test_every_row_gets_the_version_of_its_time(
    how: Any, tolerance: int | None, story: list[Any], tight: bool
) -> None:
    age = None if tolerance is None else timedelta(microseconds=tolerance)
    with tight_limits(tight):
        subtasks = Subtasks(
            lambda: TemporalJoinOperator(
                ["k"], ["key"], "ts", "ts", how=how, tolerance=age, input_schemas=(LEFT, RIGHT)
            )
        )
        model = Model(how, tolerance)
        late: dict[str, list[int]] = {"late": [], "late_right": []}
        clock = first = 0
        for kind, what, more in [*story, ("watermark", MAX_TIMESTAMP - 1000, [])]:
            came: list[Batch] = []
            expected: list[Row] = []
            if kind in (0, 1):
                rows = [{**row, "ts": row["ts"] + clock} for row in what]
                rows = numbered(rows, kind, first)
                first += len(rows)
                came = subtasks.send(kind, rows, encoded=more)
                for row in rows:
                    (model.right if kind else model.left)(row)
            elif kind == "watermark":
                clock += what
                lags = [*more, 0, 0, 0]
                for operator, lag in zip(subtasks.operators, lags, strict=False):
                    out = operator.on_watermark(clock - lag)
                    moments = [row["ts"] for row in main_rows(out)]
                    assert moments == sorted(moments)
                    came += out
                for key in list(model.marks):
                    expected += model.advance(key, clock - lags[subtasks.owner(key)])
            else:
                subtasks.rescale(what)
            assert in_order(main_rows(came)) == in_order(expected)
            late["late"] += [row["id"] for row in tagged_rows(came, "late")]
            late["late_right"] += [row["v"] for row in tagged_rows(came, "late_right")]
        assert sorted(late["late"]) == sorted(model.late)
        assert sorted(late["late_right"]) == sorted(model.late_right)
        count = subtasks.counters()["operator.late_rows"]
        assert count == len(model.late) + len(model.late_right)


def join(**more: Any) -> Any:
    return opened(TemporalJoinOperator(["k"], ["key"], "ts", "ts", **more), "j")


def lefts(*rows: tuple[Any, ...]) -> Batch:
    found = [dict(zip(LEFT.names, row, strict=True)) for row in rows]
    return Batch(row_batch(found, LEFT), Origin("left.csv", "0"))


def rights(*rows: tuple[Any, ...]) -> Batch:
    found = [dict(zip(RIGHT.names, row, strict=True)) for row in rows]
    return Batch(row_batch(found, RIGHT))


def values(batches: list[Batch]) -> list[Any]:
    return [row["v"] for row in main_rows(batches)]


def test_of_two_versions_of_one_instant_the_last_that_came_counts() -> None:
    operator = join()
    operator.process_batch(rights(("a", 5, 1), ("a", 5, 2)), 1)
    operator.process_batch(lefts(("a", 5, 0)), 0)
    operator.process_batch(rights(("a", 5, 3)), 1)
    assert values(operator.on_watermark(5)) == [3]


def test_only_the_version_in_force_is_kept_once_time_has_passed() -> None:
    operator = join()
    for at in range(100):
        operator.process_batch(rights(("a", at, at), ("b", at, at)), 1)
    operator.on_watermark(98)
    stored = operator.snapshot()["right"].table
    found = zip(stored["key.key"].to_pylist(), stored["value.ts"].to_pylist(), strict=True)
    assert sorted(found) == [("a", 98), ("a", 99), ("b", 98), ("b", 99)]


def test_a_late_version_is_taken_unless_a_newer_one_is_in_force() -> None:
    operator = join()
    operator.process_batch(rights(("a", 4, 1)), 1)
    operator.on_watermark(10)
    out = operator.process_batch(rights(("a", 3, 2), ("a", 6, 3), ("a", 5, 4), ("b", 1, 5)), 1)
    assert [row["v"] for row in tagged_rows(out, "late_right")] == [2, 4]
    assert tagged_rows(out, "late_right")[0] == {"key": "a", "ts": 3, "v": 2}
    operator.process_batch(lefts(("a", 11, 0), ("b", 12, 1)), 0)
    assert values(operator.on_watermark(20)) == [3, 5]
    assert operator.counters()["operator.late_rows"] == 2


def test_a_late_row_of_the_left_goes_to_the_side_as_it_came() -> None:
    operator = join(how="left")
    operator.on_watermark(10)
    [late] = operator.process_batch(lefts(("a", 10, 7), ("a", 11, 8)), 0)
    assert late.tag == "late"
    assert late.data.to_pylist() == [{"k": "a", "ts": 10, "id": 7}]
    assert str(late.origin) == "left.csv @ 0 and after"


def test_the_tolerance_includes_its_bound() -> None:
    operator = join(how="left", tolerance=timedelta(microseconds=3))
    operator.process_batch(rights(("a", 5, 1)), 1)
    operator.process_batch(lefts(("a", 8, 0), ("a", 9, 1)), 0)
    assert values(operator.on_watermark(9)) == [1, None]
    # From one that came under an earlier watermark as well.
    operator.process_batch(rights(("a", 20, 2)), 1)
    operator.on_watermark(21)
    operator.process_batch(lefts(("a", 23, 2), ("a", 24, 3)), 0)
    assert values(operator.on_watermark(30)) == [2, None]


def test_a_late_version_that_is_too_old_for_any_row_to_come_is_not_taken() -> None:
    operator = join(tolerance=timedelta(microseconds=3))
    operator.on_watermark(10)
    out = operator.process_batch(rights(("a", 7, 1), ("b", 8, 2)), 1)
    assert [row["v"] for row in tagged_rows(out, "late_right")] == [1]
    operator.process_batch(lefts(("a", 11, 0), ("b", 11, 1)), 0)
    assert values(operator.on_watermark(11)) == [2]


def test_nulls_in_keys_are_equal_to_nothing() -> None:
    for how, expected in (("inner", []), ("left", [None])):
        operator = join(how=how)
        operator.process_batch(rights((None, 1, 1)), 1)
        operator.process_batch(lefts((None, 2, 0)), 0)
        assert values(operator.on_watermark(5)) == expected


def test_a_row_without_a_time_is_an_error_or_left_out() -> None:
    with pytest.raises(
        DataError, match=r"'ts' of the left side is null in row 1 .*left.csv @ 0 \+ row 1"
    ):
        join().process_batch(lefts(("a", 1, 1), ("a", None, 2)), 0)
    with pytest.raises(DataError, match="'ts' of the right side is out of range in row 0 "):
        join().process_batch(rights(("a", 2**62, 1)), 1)
    operator = join(how="left", on_error="dead_letter")
    out = operator.process_batch(lefts(("a", 1, 1), ("a", None, 2)), 0)
    [letter] = tagged_rows(out, DEAD_LETTER)
    assert letter["row"] == '{"k": "a", "ts": null, "id": 2}'
    operator.process_batch(rights(("a", None, 1), ("a", 1, 2)), 1)
    assert values(operator.on_watermark(5)) == [2]
    assert operator.counters()["operator.skipped_rows"] == 2


def test_a_row_without_partner_needs_the_columns_of_the_other_side() -> None:
    operator = join(how="left")
    operator.process_batch(lefts(("a", 1, 1)), 0)
    with pytest.raises(PlanError, match="columns of the right side, of which no row has come"):
        operator.on_watermark(5)
    operator = join(how="left", input_schemas=(LEFT, RIGHT))
    operator.process_batch(lefts(("a", 1, 1)), 0)
    assert values(operator.on_watermark(5)) == [None]
    operator = join(how="inner")
    operator.process_batch(lefts(("a", 1, 1)), 0)
    assert operator.on_watermark(5) == []


def test_columns_that_changed_are_refused() -> None:
    operator = join()
    operator.process_batch(lefts(("a", 1, 1)), 0)
    other = pa.record_batch({"k": ["a"], "ts": [1], "id": ["x"]})
    with pytest.raises(
        SchemaChangedError, match="'id' of the left side was int64 and is now string"
    ):
        operator.process_batch(Batch(other), 0)
    with pytest.raises(PlanError, match="'k' of the left is string and 'key' of the right is int"):
        operator.process_batch(Batch(pa.record_batch({"key": [1], "ts": [1], "v": [1]})), 1)


def test_what_does_not_fit_is_refused_when_the_plan_is_made() -> None:
    with pytest.raises(MissingColumnError, match="Did you mean 'ts'"):
        TemporalJoinOperator(["k"], ["key"], "ts", "t", input_schemas=(None, RIGHT))
    with pytest.raises(ConfigError, match="how must be one of"):
        join(how="full")
    with pytest.raises(ConfigError, match="tolerance"):
        join(tolerance=timedelta(seconds=-1))
    with pytest.raises(ConfigError, match="right_time"):
        TemporalJoinOperator(["k"], ["key"], "ts", None)  # type: ignore[arg-type]
    made = TemporalJoinOperator(["k"], ["key"], "ts", "ts", suffix="_v")
    assert made.output_schema(LEFT, RIGHT, "j").names == ["k", "ts", "id", "ts_v", "v"]


def test_state_of_other_keys_or_other_key_groups_is_refused() -> None:
    operator = join()
    operator.process_batch(lefts(("a", 1, 1), ("b", 1, 2)), 0)
    operator.process_batch(rights(("a", 1, 1)), 1)
    state = operator.snapshot()
    with pytest.raises(SchemaChangedError, match="the keys, how= or the kind of join changed"):
        opened(TemporalJoinOperator(["id"], ["v"], "ts", "ts"), "j").restore(state)
    with pytest.raises(SchemaChangedError, match="new uid"):
        opened(TemporalJoinOperator(["nr"], ["v"], "ts", "ts"), "j").restore(state)
    with pytest.raises(StateMismatchError, match="owns 0 to 0"):
        opened(TemporalJoinOperator(["k"], ["key"], "ts", "ts"), "j", 0, 16).restore(state)


def test_a_snapshot_is_made_of_what_is_there_and_only_once() -> None:
    operator = join()
    operator.process_batch(lefts(("a", 9, 1)), 0)
    operator.process_batch(rights(("a", 1, 1)), 1)
    operator.on_watermark(5)
    tables = [operator.snapshot(), operator.snapshot()]
    for name in ("left", "right"):
        first, second = (t[name].table["value.ts"].chunk(0).buffers()[1] for t in tables)
        assert first.address == second.address
    assert operator.on_watermark(10)[0].data["v"].to_pylist() == [1]
    assert tables[0]["left"].table["value.id"].to_pylist() == [1]


def test_keys_that_nothing_needs_any_more_are_forgotten() -> None:
    with tight_limits(True):
        operator = join(how="left", input_schemas=(LEFT, RIGHT))
        for i in range(50):
            operator.process_batch(lefts((f"key-{i}", i, i)), 0)
            operator.on_watermark(i)
        assert len(operator.sides.space) < 5


def test_a_version_to_come_outlives_the_keys_around_it() -> None:
    with tight_limits(True):
        operator = join(how="left", input_schemas=(LEFT, RIGHT))
        for i in range(20):
            operator.process_batch(lefts((f"key-{i}", i, i)), 0)
        operator.process_batch(rights(("z", 50, 1), ("y", 3, 2)), 1)
        operator.on_watermark(30)
        assert len(operator.sides.space) < 5
        operator.process_batch(lefts(("y", 60, 0), ("z", 60, 1), ("x", 60, 2)), 0)
        assert values(operator.on_watermark(70)) == [2, 1, None]


def test_keys_whose_former_owner_was_ahead_stay_ahead() -> None:
    subtasks = Subtasks(lambda: TemporalJoinOperator(["k"], ["key"], "ts", "ts"))
    subtasks.rescale(2)
    key = next(key for key in "abcde" if subtasks.owner(key) == 0)
    subtasks.send(1, [{"key": key, "ts": 5, "v": 1}])
    for operator, mark in zip(subtasks.operators, (10, 0), strict=True):
        operator.on_watermark(mark)
    subtasks.rescale(1)
    out = subtasks.send(1, [{"key": key, "ts": 3, "v": 2}])
    assert [row["v"] for row in tagged_rows(out, "late_right")] == [2]
    out = subtasks.send(0, [{"k": key, "ts": 9, "id": 1}, {"k": key, "ts": 11, "id": 2}])
    assert [row["id"] for row in tagged_rows(out, "late")] == [1]
    assert values(subtasks.each("on_watermark", 12)) == [1]


def test_state_of_several_subtasks_keeps_the_order_of_arrival_within_a_key() -> None:
    subtasks = Subtasks(lambda: TemporalJoinOperator(["k"], ["key"], "ts", "ts"))
    subtasks.rescale(2)
    for v, key in enumerate("abcdeabcde"):
        subtasks.send(1, [{"key": key, "ts": 5, "v": v}])
    snapshots = [operator.snapshot() for operator in subtasks.operators]
    [state] = share_out(snapshots, 1)
    operator = join()
    operator.restore(state)
    operator.process_batch(lefts(*[(key, 6, 0) for key in "abcde"]), 0)
    assert values(operator.on_watermark(9)) == [5, 6, 7, 8, 9]
