"""map, flat_map and filter: rows, schemas that hold, and functions that raise."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.elements import Batch
from helios_ray.errors import (
    ConfigError,
    MissingColumnError,
    PlanError,
    SchemaChangedError,
    UserFunctionError,
)
from helios_ray.expressions import col
from helios_ray.operators.base import StateKind
from helios_ray.operators.stateless import FilterOperator, FlatMapOperator, MapOperator
from helios_ray.operators.user_functions import DEAD_LETTER_SCHEMA
from tests.unit.operators.support import batch, main_rows, opened, tagged_rows


def items(operator: Any, values: list[Any], kind: pa.DataType | None = None) -> list[Any]:
    data = pa.record_batch({"item": pa.array(values, kind)})
    return [row["item"] for row in main_rows(operator.process_batch(Batch(data)))]


@given(st.lists(st.one_of(st.none(), st.integers(-5, 5))), st.integers(0, 3))
def test_rows_are_dicts_and_plain_results_are_items(values: list[int | None], skip: int) -> None:
    operator = opened(MapOperator(lambda row: row["item"]))
    data = pa.record_batch({"item": pa.array(values, pa.int64())}).slice(skip)
    assert [r["item"] for r in main_rows(operator.process_batch(Batch(data)))] == values[skip:]


def test_map_takes_the_schema_of_the_first_batch_and_casts_later_ones_to_it() -> None:
    operator = opened(MapOperator(lambda row: row["item"]))
    assert items(operator, [1.5]) == [1.5]
    out = operator.process_batch(batch({"item": [2]}))
    assert out[0].data.schema.field("item").type == pa.float64()
    assert items(operator, [None]) == [None]


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [
        (1, 1.5, "int64"),
        (1, "a", "int64"),
        (1, True, "int64"),
        ("a", 1, "string"),
        (True, 1, "bool"),
        (dt.date(2020, 1, 1), dt.datetime(2020, 1, 1, 5), "date32"),
        ([1], [1.5], "list"),
        ({"a": 1}, {"a": 1.5}, "struct"),
        ({"a": 1}, {"b": 1}, "struct"),
        (1.5, 2**60 + 1, "double"),
        (1, float("nan"), "int64"),
        ("a", b"a", "string"),
    ],
)
def test_a_value_of_another_type_is_an_error_that_names_the_row_and_the_way_out(
    first: Any, later: Any, expected: str
) -> None:
    results = iter([first, first, later])
    operator = opened(MapOperator(lambda _row: {"x": next(results)}), "parse")
    operator.process_batch(batch({"item": [1]}))
    with pytest.raises(SchemaChangedError) as info:
        operator.process_batch(batch({"item": [8, 9]}, at="40"))
    message = str(info.value)
    assert "map 'parse': column 'x' expected " + expected in message
    assert "row 1" in message
    assert "rows.csv @ 40 + row 1" in message
    assert "schema=pa.schema" in message


def test_types_that_disagree_within_the_first_batch_are_an_error_too() -> None:
    operator = opened(MapOperator(lambda row: {"x": "a" if row["item"] == 3 else 1}), "parse")
    with pytest.raises(SchemaChangedError, match=r"'x' expected int64, and row 2.*gives 'a'"):
        operator.process_batch(batch({"item": [1, 2, 3]}))


def test_new_columns_midway_are_an_error_and_missing_ones_are_null() -> None:
    results: Any = iter([{"a": 1}, {"b": 2}, {"a": 3, "c": 4}])
    operator = opened(MapOperator(lambda _row: next(results)), "parse")
    assert main_rows(operator.process_batch(batch({"item": [1, 2]}))) == [
        {"a": 1, "b": None},
        {"a": None, "b": 2},
    ]
    with pytest.raises(SchemaChangedError, match=r"columns \['a', 'b'\].*also has 'c': 4"):
        operator.process_batch(batch({"item": [3]}))


def test_a_column_of_only_nulls_takes_its_type_later() -> None:
    operator = opened(MapOperator(lambda row: row["item"]))
    assert operator.process_batch(batch({"item": [None]}))[0].data.schema.types == [pa.null()]
    assert operator.process_batch(batch({"item": ["a"]}))[0].data.schema.types == [pa.string()]
    assert operator.process_batch(batch({"item": [None]}))[0].data.schema.types == [pa.string()]
    with pytest.raises(SchemaChangedError):
        operator.process_batch(batch({"item": [1]}))


def test_a_declared_schema_decides_the_types() -> None:
    schema = pa.schema(
        [("x", pa.float32()), ("d", pa.date32()), pa.field("m", pa.map_(pa.string(), pa.int64()))]
    )
    operator = opened(MapOperator(lambda _row: {"x": 1, "m": [("k", 2)]}, schema))
    out = operator.process_batch(batch({"item": [0]}))
    assert out[0].data.schema.equals(schema)
    assert main_rows(out) == [{"x": 1.0, "d": None, "m": [("k", 2)]}]
    strict = pa.schema([pa.field("x", pa.int64(), nullable=False)])
    with pytest.raises(SchemaChangedError, match="declared not null"):
        opened(MapOperator(lambda _row: {}, strict)).process_batch(batch({"item": [0]}))


def test_a_restored_map_holds_to_the_schema_it_had() -> None:
    operator = opened(MapOperator(lambda row: row["item"]))
    items(operator, [1.5])
    state = operator.snapshot()
    assert {s.kind for s in state.values()} == {StateKind.UNION}
    again = opened(MapOperator(lambda row: row["item"]))
    again.restore(state)
    out = again.process_batch(batch({"item": [1]}))
    assert out[0].data.schema.types == [pa.float64()]
    with pytest.raises(SchemaChangedError):
        again.process_batch(batch({"item": ["a"]}))


def test_each_subtask_gets_its_own_schema_back_and_a_new_one_the_first() -> None:
    tables = []
    for subtask, value in enumerate([1, 1.5]):
        operator = opened(MapOperator(lambda row: row["item"]), "m", subtask, 2)
        items(operator, [value])
        tables.append(operator.snapshot()["output_schema"])
    from helios_ray.operators.base import StateTable

    union = StateTable(StateKind.UNION, pa.concat_tables([t.table for t in tables]))
    for subtask, kind in enumerate([pa.int64(), pa.float64(), pa.int64()]):
        operator = opened(MapOperator(lambda row: row["item"]), "m", subtask, 3)
        operator.restore({"output_schema": union})
        assert operator.process_batch(batch({"item": [1]}))[0].data.schema.types == [kind]


def test_the_schema_is_not_in_the_snapshot_before_any_row() -> None:
    assert opened(MapOperator(lambda row: row)).snapshot() == {}


def inverse(row: dict[str, Any]) -> dict[str, Any]:
    x = row.pop("x")
    return {"y": 6 // x}


def test_a_function_that_raises_names_operator_row_and_place_and_keeps_the_cause() -> None:
    operator = opened(MapOperator(inverse), "invert")
    with pytest.raises(UserFunctionError) as info:
        operator.process_batch(batch({"x": [1, 0], "s": ["a" * 900] * 2}, at="100"))
    message = str(info.value)
    for part in (
        "map 'invert'",
        "ZeroDivisionError",
        "row 1 of its batch",
        "{'x': 0, 's': 'aaa",
        "rows.csv @ 100 + row 1",
        "on_error='skip'",
    ):
        assert part in message
    assert len(message) < 1200
    assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_skip_leaves_the_row_out_and_counts_it() -> None:
    operator = opened(MapOperator(inverse, on_error="skip"))
    out = operator.process_batch(batch({"x": [1, 0, 3, 0]}))
    assert main_rows(out) == [{"y": 6}, {"y": 2}]
    assert len(out) == 1
    assert operator.counters() == {"operator.skipped_rows": 2}


def test_dead_letters_carry_the_row_the_error_and_the_place() -> None:
    operator = opened(MapOperator(inverse, on_error="dead_letter"), "invert")
    rows = {"x": [1, 0], "b": [b"\x00\xff", b"\x01"], "t": [dt.date(2020, 1, 1)] * 2}
    out = operator.process_batch(batch(rows, at="100"))
    assert main_rows(out) == [{"y": 6}]
    letters = [b for b in out if b.tag == "dead_letter"]
    assert letters[0].data.schema.equals(DEAD_LETTER_SCHEMA)
    [letter] = tagged_rows(out, "dead_letter")
    assert json.loads(letter["row"]) == {"x": 0, "b": "AQ==", "t": "2020-01-01"}
    assert letter["error"].startswith("ZeroDivisionError: ")
    assert "in inverse" in letter["traceback"]
    assert letter["operator"] == "invert"
    assert letter["position"] == "rows.csv @ 100 + row 1"
    assert opened(MapOperator(inverse)).counters() == {"operator.skipped_rows": 0}


def test_an_unknown_policy_and_a_missing_function_are_refused() -> None:
    with pytest.raises(ConfigError, match="on_error must be 'raise', 'skip' or 'dead_letter'"):
        MapOperator(inverse, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a function"):
        MapOperator(None)  # type: ignore[arg-type]


def test_numpy_values_are_values() -> None:
    operator = opened(MapOperator(lambda row: {"n": np.int64(row["item"]), "v": np.ones(2)}))
    assert main_rows(operator.process_batch(batch({"item": [3]}))) == [{"n": 3, "v": [1.0, 1.0]}]


def test_flat_map_takes_lists_and_generators_and_nothing() -> None:
    def words(row: dict[str, Any]) -> Any:
        yield from row["text"].split()

    operator = opened(FlatMapOperator(words))
    out = operator.process_batch(batch({"text": ["to be", "", "or"]}, at="7"))
    assert [row["item"] for row in main_rows(out)] == ["to", "be", "or"]
    assert str(out[0].origin) == "rows.csv @ 7 and after"
    assert operator.process_batch(batch({"text": ["", ""]})) == []


@pytest.mark.parametrize("bad", ["text", {"a": 1}, 5, None])
def test_flat_map_refuses_what_is_no_list_of_rows(bad: Any) -> None:
    with pytest.raises(UserFunctionError, match="expects an iterable of rows"):
        opened(FlatMapOperator(lambda _row: bad)).process_batch(batch({"x": [1]}))


def test_a_row_whose_generator_fails_midway_gives_nothing() -> None:
    def some(row: dict[str, Any]) -> Any:
        yield row["x"]
        if row["x"] == 2:
            raise ValueError("stop")

    operator = opened(FlatMapOperator(some, on_error="skip"))
    assert [r["item"] for r in main_rows(operator.process_batch(batch({"x": [1, 2, 3]})))] == [1, 3]


@pytest.mark.parametrize(
    "predicate", [lambda row: (row["x"] or 0) > 1, col("x") > 1, pc.field("x") > 1]
)
def test_filter_keeps_rows_in_order_and_drops_null(predicate: Any) -> None:
    operator = opened(FilterOperator(predicate))
    out = operator.process_batch(batch({"x": [2, None, 1, 3]}, at="5"))
    assert main_rows(out) == [{"x": 2}, {"x": 3}]
    assert str(out[0].origin) == "rows.csv @ 5 and after"
    assert operator.process_batch(batch({"x": [0, 1]})) == []
    whole = batch({"x": [5, 6]})
    assert operator.process_batch(whole) == [whole]


def test_filter_functions_follow_the_policy() -> None:
    operator = opened(FilterOperator(lambda row: 1 / row["x"] > 0, on_error="dead_letter"))
    out = operator.process_batch(batch({"x": [1, 0, -1]}))
    assert main_rows(out) == [{"x": 1}]
    assert [json.loads(r["row"]) for r in tagged_rows(out, "dead_letter")] == [{"x": 0}]


def test_filter_expressions_are_checked_when_planned_and_when_the_input_changes() -> None:
    schema = pa.schema([("price", pa.int64())])
    with pytest.raises(MissingColumnError, match="Did you mean 'price'"):
        FilterOperator(col("prise") > 1, input_schema=schema)
    with pytest.raises(PlanError, match="needs a condition"):
        FilterOperator(col("price") + 1, input_schema=schema)
    with pytest.raises(ConfigError, match="needs an expression"):
        FilterOperator(5)  # type: ignore[arg-type]
    operator = opened(FilterOperator(col("price") > 1), "big")
    operator.process_batch(batch({"price": [1]}))
    with pytest.raises(SchemaChangedError, match=r"'big'.*'price' was int64 and is now double"):
        operator.process_batch(batch({"price": [1.5]}))
    with pytest.raises(SchemaChangedError, match=r"now has \['cost'\]"):
        operator.process_batch(batch({"cost": [1]}))


def test_empty_batches_pass_through_every_operator() -> None:
    empty = batch({"x": []}, pa.schema([("x", pa.int64())]))
    for operator in (
        MapOperator(lambda r: r),
        FlatMapOperator(lambda r: [r]),
        FilterOperator(lambda r: r),
        FilterOperator(col("x") > 1),
    ):
        assert main_rows(opened(operator).process_batch(empty)) == []
