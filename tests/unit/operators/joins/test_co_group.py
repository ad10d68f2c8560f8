"""A co_group's function sees, once, exactly the rows of each key and window of both sides."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP, Batch
from helios_ray.errors import ConfigError, DataError, PlanError, UserFunctionError
from helios_ray.operators.joins.co_group import CoGroupOperator
from helios_ray.operators.windows.results import Window
from helios_ray.windowing import GlobalWindow, TumblingWindow
from tests.unit.operators.joins.event_time import (
    KEYS,
    LEFT,
    RIGHT,
    SCHEMAS,
    Row,
    Step,
    Subtasks,
    lefts,
    rights,
    scripts,
    table,
    tight_limits,
)
from tests.unit.operators.joins.windowed import US, cells_of, windows
from tests.unit.operators.support import batch, main_rows, opened, share_out, tagged_rows

TEN = TumblingWindow(10 * US)
IDS = pa.schema([("lefts", pa.list_(pa.int64())), ("rights", pa.list_(pa.int64()))])


def ids(key: Any, window: Window, left: pa.Table, right: pa.Table) -> list[dict[str, Any]]:
    assert window.start < window.end  # type: ignore[operator]
    assert left.column_names == ["k", "ts", "id"]
    assert right.column_names == ["key", "at", "rid"]
    assert set(left["k"].to_pylist()) | set(right["key"].to_pylist()) == {key["k"]}
    return [{"lefts": left["id"].to_pylist(), "rights": right["rid"].to_pylist()}]


def co_group(function: Any = ids, window: Any = TEN, **more: Any) -> CoGroupOperator:
    more = {"input_schemas": SCHEMAS, **more}
    return CoGroupOperator(*KEYS, "ts", "at", window, function, **more)


@given(script=scripts(), window=windows, tight=st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_function_sees_each_window_of_each_key_once_its_rows_in_order(
    script: list[Step], window: Any, tight: bool
) -> None:
    subtasks = Subtasks(lambda: co_group(window=window, schema=IDS))
    with tight_limits(tight):
        out = [made for step in script for made in subtasks.play(step)] + subtasks.end()
    ended, still, late = cells_of(script, window)

    def in_order(rows: tuple[Row, ...], side: int) -> tuple[int, ...]:
        own = [row for row in rows if row.side == side]
        return tuple(row.id for row in sorted(own, key=lambda row: row.time))

    found = Counter(
        (
            r["k"],
            _us(r["window_start"]),
            _us(r["window_end"]),
            tuple(r["lefts"]),
            tuple(r["rights"]),
        )
        for r in main_rows(out)
    )
    assert found == Counter(
        (c.key, c.start, c.end, in_order(c.rows, 0), in_order(c.rows, 1)) for c in ended + still
    )
    assert (sorted(subtasks.late[0]), sorted(subtasks.late[1])) == late


def _us(moment: Any) -> int:
    return int(pa.scalar(moment, pa.timestamp("us")).cast(pa.int64()).as_py())


def fed(operator: CoGroupOperator, *parts: list[Row]) -> list[Batch]:
    out = [
        made for rows in parts for made in operator.process_batch(Batch(table(rows)), rows[0].side)
    ]
    return out + operator.on_watermark(MAX_TIMESTAMP)


def test_a_table_may_be_returned_and_types_are_those_of_the_first_results() -> None:
    def counts(*group: Any) -> pa.Table:
        return pa.table({"n": [group[2].num_rows], "m": [group[3].num_rows]})

    rows = fed(opened(co_group(counts)), lefts(("a", 1, 0), ("a", 2, 1)), rights((None, 11, 2)))
    assert [(r["k"], r["n"], r["m"]) for r in main_rows(rows)] == [("a", 2, 0), (None, 0, 1)]
    [made] = rows
    kinds = {field.name: field.type for field in made.data.schema}
    assert kinds["k"] == pa.string()
    assert kinds["window_start"] == pa.timestamp("us")
    assert kinds["n"] == pa.int64()


def test_no_rows_from_the_function_are_no_results() -> None:
    assert fed(opened(co_group(lambda *_: [])), lefts(("a", 1, 0))) == []


def broken(key: Any, _: Any, left: pa.Table, right: pa.Table) -> list[dict[str, Any]]:
    if key["k"] == "b":
        raise ValueError("no b")
    return [{"n": left.num_rows + right.num_rows}]


def test_a_function_that_raises_names_key_and_window() -> None:
    parts = lefts(("a", 1, 0), ("b", 2, 1)), rights(("b", 3, 2))
    with pytest.raises(
        UserFunctionError, match=r"co_group 'op'.*ValueError: no b on key \{'k': 'b'"
    ):
        fed(opened(co_group(broken)), *parts)

    skipping = opened(co_group(broken, on_error="skip"))
    assert [(r["k"], r["n"]) for r in main_rows(fed(skipping, *parts))] == [("a", 1)]
    assert skipping.counters()["operator.skipped_rows"] == 2

    lettered = opened(co_group(broken, on_error="dead_letter"))
    letters = tagged_rows(fed(lettered, *parts), "dead_letter")
    assert [letter["row"] for letter in letters] == [
        '{"k": "b", "ts": 2, "id": 1}',
        '{"key": "b", "at": 3, "rid": 2}',
    ]
    assert {letter["error"] for letter in letters} == {"ValueError: no b"}


@pytest.mark.parametrize(
    ("result", "message"),
    [([{"k": 1}], "'k' is added to each result by itself"), ([7], "rows as dicts"), (7, "iter")],
)
def test_a_function_must_return_rows_without_the_columns_of_its_own(
    result: Any, message: str
) -> None:
    with pytest.raises(UserFunctionError, match=message):
        fed(opened(co_group(lambda *_: result)), lefts(("a", 1, 0)))


def test_a_side_of_which_nothing_is_known_is_an_error_that_says_so() -> None:
    operator = opened(co_group(input_schemas=(None, None)))
    with pytest.raises(PlanError, match="of which no row has come"):
        fed(operator, lefts(("a", 1, 0)))


def test_rows_without_event_time_follow_on_error() -> None:
    data = {"key": ["a", "a"], "at": pa.array([None, 1], pa.int64()), "rid": [0, 1]}
    operator = opened(co_group(on_error="skip", schema=IDS))
    operator.process_batch(batch(data), 1)
    assert [r["rights"] for r in main_rows(operator.on_watermark(9))] == [[1]]
    assert operator.counters()["operator.skipped_rows"] == 1


def test_settings_are_checked_where_they_are_written() -> None:
    with pytest.raises(ConfigError, match="function must be callable"):
        co_group(7)
    with pytest.raises(ConfigError, match="window must be"):
        co_group(window=GlobalWindow())
    with pytest.raises(PlanError, match="schema= names 'k'"):
        co_group(schema=pa.schema([("k", pa.string())]))
    with pytest.raises(ConfigError, match="cannot be key columns"):
        CoGroupOperator(["window_end"], ["x"], "t", "t", TEN, ids)
    schema = co_group(schema=IDS).output_schema(LEFT, RIGHT)
    assert schema is not None
    assert schema.names == ["k", "window_start", "window_end", "lefts", "rights"]
    assert co_group().output_schema(LEFT, RIGHT) is None


def test_the_columns_of_the_results_hold_across_a_restore() -> None:
    kind: list[Any] = [1]
    operator = opened(co_group(lambda *_: [{"n": kind[0]}]))
    operator.process_batch(Batch(table(lefts(("a", 1, 0), ("a", 11, 1)))), 0)
    assert len(main_rows(operator.on_watermark(9))) == 1
    again = opened(co_group(lambda *_: [{"n": kind[0]}]))
    again.restore(share_out([operator.snapshot()], 1)[0])
    kind[0] = "text"
    with pytest.raises(DataError, match="column 'n' expected int64"):
        again.on_watermark(19)
