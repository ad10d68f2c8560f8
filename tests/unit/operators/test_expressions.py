"""Expressions compute what Arrow computes, by either spelling, and fail early."""

from __future__ import annotations

import datetime as dt
import math
import operator as op
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.errors import ConfigError, DataError, MissingColumnError, PlanError
from helios_ray.expressions import col, lit
from helios_ray.operators.arrow_expressions import compile_arrow_expression, translate
from helios_ray.operators.expressions import CompiledExpression

SCHEMA = pa.schema(
    [
        ("i", pa.int64()),
        ("j", pa.int32()),
        ("f", pa.float64()),
        ("s", pa.string()),
        ("b", pa.bool_()),
        ("c", pa.bool_()),
        ("d", pa.date32()),
        ("t", pa.timestamp("ns")),
        ("u", pa.uint8()),
        ("dec", pa.decimal128(5, 2)),
    ]
)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "i": maybe(st.integers(-3, 3)),
            "j": maybe(st.integers(-3, 3)),
            "f": maybe(st.sampled_from([0.0, -0.0, 1.5, -2.0, math.nan, math.inf])),
            "s": maybe(st.sampled_from(["", "a", "ü"])),
            "b": maybe(st.booleans()),
            "c": maybe(st.booleans()),
            "d": maybe(st.dates(dt.date(2019, 12, 31), dt.date(2020, 1, 2))),
            "t": maybe(st.datetimes(dt.datetime(2019, 1, 1), dt.datetime(2021, 1, 1))),
            "u": maybe(st.integers(0, 9)),
            "dec": maybe(st.sampled_from([Decimal("1.50"), Decimal(2)])),
        }
    ),
    max_size=20,
)

COMPARE = [op.eq, op.ne, op.lt, op.le, op.gt, op.ge]
FIELDS = st.sampled_from(
    [
        ("i", 1),
        ("j", -2),
        ("f", 1.5),
        ("s", "a"),
        ("d", dt.date(2020, 1, 1)),
        ("i", 2**40),
        ("i", -1),
        ("t", dt.datetime(2020, 1, 1)),
        ("u", 5),
    ]
)


@st.composite
def predicates(draw: st.DrawFn, depth: int = 3) -> tuple[Any, Any]:
    """One predicate in both spellings."""
    kind = draw(
        st.sampled_from(
            ["compare", "column", "null", "arith", "isin"] + ["and", "or", "not"] * (depth > 0)
        )
    )
    if kind == "compare":
        compare = draw(st.sampled_from(COMPARE))
        name, value = draw(FIELDS)
        return compare(col(name), value), compare(pc.field(name), value)
    if kind == "column":
        name = draw(st.sampled_from(["b", "c"]))
        return col(name), pc.field(name)
    if kind == "null":
        name = draw(st.sampled_from(SCHEMA.names))
        valid = draw(st.booleans())
        own, arrow = col(name), pc.field(name)
        return (own.is_valid(), arrow.is_valid()) if valid else (own.is_null(), arrow.is_null())
    if kind == "isin":
        values = draw(st.lists(maybe(st.integers(-3, 3)), min_size=1, max_size=3))
        array = pa.array(values, pa.int64())
        return col("i").isin(values), pc.field("i").isin(array)
    if kind == "arith":
        compute = draw(st.sampled_from([op.add, op.sub, op.mul]))
        left, right = draw(st.sampled_from([("i", "i"), ("f", "f")]))
        return compute(col(left), col(right)) > 1, compute(pc.field(left), pc.field(right)) > 1
    own, arrow = draw(predicates(depth - 1))
    if kind == "not":
        return ~own, ~arrow
    other, arrow_other = draw(predicates(depth - 1))
    both = op.and_ if kind == "and" else op.or_
    return both(own, other), both(arrow, arrow_other)


@settings(max_examples=250, deadline=None)
@given(ROWS, predicates(), st.integers(0, 3))
def test_both_spellings_keep_the_rows_that_arrows_own_filter_keeps(
    rows: list[dict[str, Any]], predicate: tuple[Any, Any], skip: int
) -> None:
    own, arrow = predicate
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA).slice(skip)
    expected = batch.filter(arrow) if batch.num_rows else batch
    for expression in (own, arrow):
        compiled = CompiledExpression(expression, SCHEMA).require_boolean()
        assert repr(batch.filter(compiled.evaluate(batch)).to_pylist()) == repr(
            expected.to_pylist()
        )


@pytest.mark.parametrize(
    "expression",
    [
        pc.field("i") > 100,
        (pc.field("i") > 1) & (pc.field("s") == "x") | ~pc.field("b"),
        pc.field("i") + 1,
        pc.add(pc.field("i"), pc.field("i")),
        pc.field("d") == dt.date(2020, 1, 1),
        pc.field("s").is_null(),
        pc.field("f") * 2.5 >= 1.0,
        pc.field("i") == -(2**50),
    ],
)
def test_common_arrow_expressions_become_kernel_calls(expression: pc.Expression) -> None:
    assert translate(expression, SCHEMA) is not None


@pytest.mark.parametrize(
    "expression",
    [
        pc.field("i").isin([1, None]),
        pc.field("u") > 5,
        pc.field("i").cast("int32"),
        pc.utf8_upper(pc.field("s")),
        pc.is_null(pc.field("f"), nan_is_null=True),
        pc.field("s") == pc.scalar(None),
    ],
)
def test_what_substrait_cannot_say_exactly_is_left_to_arrow(expression: pc.Expression) -> None:
    assert translate(expression, SCHEMA) is None
    batch = pa.RecordBatch.from_pylist([{"i": 1, "u": 9, "s": "a"}, {}], schema=SCHEMA)
    compile_arrow_expression(expression, SCHEMA)(batch)
    assert len(CompiledExpression(expression, SCHEMA).evaluate(batch)) == 2


def test_unchecked_and_checked_addition_stay_what_they_were() -> None:
    schema = pa.schema([("i", pa.int64())])
    batch = pa.record_batch({"i": [2**63 - 1]})
    wraps = CompiledExpression(pc.add(pc.field("i"), pc.field("i")), schema)
    assert wraps.evaluate(batch).to_pylist() == [-2]
    for expression in (pc.field("i") + pc.field("i"), col("i") + col("i")):
        with pytest.raises(DataError, match=r"overflow.*Cast to a wider type"):
            CompiledExpression(expression, schema).evaluate(batch)


@pytest.mark.parametrize(
    "expression",
    [col("prise") > 1, pc.field("prise") > 1, "prise", pc.utf8_upper(pc.field("prise"))],
)
def test_a_missing_column_is_named_with_the_nearest_one(expression: Any) -> None:
    schema = pa.schema([("price", pa.int64()), ("name", pa.string())])
    with pytest.raises(MissingColumnError, match=r"filter 'f' needs column 'prise'.*mean 'price'"):
        CompiledExpression(expression, schema, "filter 'f'")


@pytest.mark.parametrize(
    "expression", [col("s") + 1, pc.field("s") + 1, col("i").isin(["a"]), 3, pc.field("s") > 1]
)
def test_types_that_do_not_fit_are_refused_when_planned(expression: Any) -> None:
    with pytest.raises(PlanError, match="filter 'f'"):
        CompiledExpression(expression, SCHEMA, "filter 'f'")


def test_a_condition_must_be_boolean() -> None:
    with pytest.raises(PlanError, match=r"needs a condition.*gives int64"):
        CompiledExpression(col("i"), SCHEMA, "filter 'f'").require_boolean()


def test_python_operators_that_cannot_work_say_what_does() -> None:
    with pytest.raises(ConfigError, match=r"neither true nor false.*&"):
        bool(col("i") > 1 and col("i") < 3)
    with pytest.raises(ConfigError, match="isin"):
        _ = 1 in col("i")
    with pytest.raises(ConfigError, match="no compute function 'nope'"):
        col("i").call("nope")
    with pytest.raises(ConfigError, match=r"row by row|other rows"):
        col("i").call("cumulative_sum")


def test_arithmetic_from_both_sides_and_constants() -> None:
    batch = pa.record_batch({"x": [4, None]})

    def values(expression: Any) -> list[Any]:
        return CompiledExpression(expression, batch.schema).evaluate(batch).to_pylist()

    assert values(10 - col("x")) == [6, None]
    assert values(10 / col("x")) == [2, None]
    assert values(2 * col("x") + 1) == [9, None]
    assert values(-col("x")) == [-4, None]
    assert values(col("x").fill_null(0)) == [4, 0]
    assert values(col("x").cast("float64") / 8) == [0.5, None]
    assert values(lit("same")) == ["same", "same"]
    assert values(lit(None, pa.int64()) == col("x")) == [None, None]
    assert values(True | (col("x") > 1)) == [True, True]
