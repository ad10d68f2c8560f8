"""select, with_columns, branch and union work on whole columns."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.errors import (
    ConfigError,
    MissingColumnError,
    PlanError,
    SchemaChangedError,
    UserFunctionError,
)
from helios_ray.expressions import col, lit
from helios_ray.operators.projection import (
    BranchOperator,
    SelectOperator,
    UnionOperator,
    WithColumnsOperator,
)
from tests.unit.operators.support import batch, main_rows, opened, tagged_rows

SCHEMA = pa.schema([("a", pa.int64()), ("b", pa.string())])
ROWS = batch({"a": [1, None, 3], "b": ["x", "y", None]}, SCHEMA)


def test_select_orders_renames_and_computes() -> None:
    operator = opened(
        SelectOperator(
            {"b": "b", "twice": col("a") * 2, "up": pc.utf8_upper(pc.field("b")), "one": lit(1)}
        )
    )
    out = operator.process_batch(ROWS)
    assert main_rows(out) == [
        {"b": "x", "twice": 2, "up": "X", "one": 1},
        {"b": "y", "twice": None, "up": "Y", "one": 1},
        {"b": None, "twice": 6, "up": None, "one": 1},
    ]
    assert out[0].data.schema.equals(operator.output_schema(SCHEMA))
    assert opened(SelectOperator(["b"])).process_batch(ROWS)[0].data.schema.names == ["b"]


def test_with_columns_adds_and_replaces_in_place_seeing_the_old_columns() -> None:
    operator = opened(WithColumnsOperator({"a": col("a") + 1, "c": col("a") * 10}))
    out = operator.process_batch(ROWS)
    assert out[0].data.to_pydict() == {
        "a": [2, None, 4],
        "b": ["x", "y", None],
        "c": [10, None, 30],
    }
    assert out[0].data.schema.equals(operator.output_schema(SCHEMA))


def test_columns_are_checked_when_planned() -> None:
    for make in (SelectOperator, WithColumnsOperator):
        with pytest.raises(MissingColumnError, match=r"'bb'.*Did you mean 'b'"):
            make({"z": "bb"}, input_schema=SCHEMA)
        with pytest.raises(ConfigError, match="at least one"):
            make({})
    with pytest.raises(ConfigError, match="distinct"):
        SelectOperator(["a", "a"])
    with pytest.raises(PlanError, match="select"):
        SelectOperator({"z": col("b") * 2}, input_schema=SCHEMA)


def test_a_changed_input_is_an_error() -> None:
    operator = opened(SelectOperator(["a"]), "pick")
    operator.process_batch(ROWS)
    with pytest.raises(SchemaChangedError, match=r"select 'pick'.*'a' was int64 and is now string"):
        operator.process_batch(batch({"a": ["1"], "b": ["x"]}))


@given(st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=20))
def test_branch_sends_each_row_to_the_first_tag_that_holds_and_loses_none(
    values: list[int | None],
) -> None:
    def tag_of(x: int | None) -> str | None:
        if x is not None and x > 6:
            return "big"
        return "even" if x is not None and x % 2 == 0 else None

    operator = opened(
        BranchOperator(
            {"big": col("x") > 6, "even": lambda row: row["x"] is not None and row["x"] % 2 == 0}
        )
    )
    out = operator.process_batch(batch({"x": values}, pa.schema([("x", pa.int64())])))
    for tag in ("big", "even", None):
        expected = [x for x in values if tag_of(x) == tag]
        assert [row["x"] for b in out if b.tag == tag for row in b.data.to_pylist()] == expected


def test_a_branch_function_that_raises_follows_the_policy() -> None:
    rows = batch({"x": [9, 1, 0]}, at="10")
    branches: Any = {"big": col("x") > 6, "inverse": lambda row: 1 / row["x"] > 0}
    with pytest.raises(UserFunctionError, match=r"branch 'b'.*rows.csv @ 10 \+ row 2"):
        opened(BranchOperator(branches), "b").process_batch(rows)
    operator = opened(BranchOperator(branches, default="rest", on_error="dead_letter"), "b")
    out = operator.process_batch(rows)
    assert tagged_rows(out, "big") == [{"x": 9}]
    assert tagged_rows(out, "inverse") == [{"x": 1}]
    assert tagged_rows(out, "rest") == []
    assert [json.loads(r["row"]) for r in tagged_rows(out, "dead_letter")] == [{"x": 0}]


def test_branch_predicates_are_checked_when_planned() -> None:
    with pytest.raises(ConfigError, match="at least one predicate"):
        BranchOperator({})
    with pytest.raises(ConfigError, match="'t' needs an expression"):
        BranchOperator({"t": 3})  # type: ignore[dict-item]
    with pytest.raises(MissingColumnError, match="branch 't'"):
        BranchOperator({"t": col("z") > 1}, input_schema=SCHEMA)


def test_union_passes_rows_of_one_schema_and_refuses_two() -> None:
    operator = opened(UnionOperator(), "both")
    assert operator.process_batch(ROWS, 0) == [ROWS]
    assert operator.process_batch(ROWS, 1) == [ROWS]
    with pytest.raises(SchemaChangedError, match=r"union 'both'.*'b' was string and is now int64"):
        operator.process_batch(batch({"a": [1], "b": [1]}), 1)
    other = pa.schema([("a", pa.int32())])
    assert UnionOperator.output_schema([SCHEMA, SCHEMA]).equals(SCHEMA)
    with pytest.raises(PlanError, match=r"input 0 has \(a: int64, b: string\) and input 1 has"):
        UnionOperator.output_schema([SCHEMA, other])
