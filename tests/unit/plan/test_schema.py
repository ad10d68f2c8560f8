"""A misspelt column or a type that does not fit is refused where it is written."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from helios_ray.errors import MissingColumnError, PlanError
from helios_ray.plan.schema import (
    check_predicate,
    describe_schema,
    nearest,
    project,
    union_schema,
    with_columns,
)

FLIGHTS = pa.schema([("carrier", pa.string()), ("delay", pa.int32())])


def test_the_nearest_name_is_offered_only_where_it_is_near():
    assert nearest("Carier", ["carrier", "delay"]) == "carrier"
    assert nearest("zebra", ["carrier", "delay"]) is None
    assert nearest("x", []) is None


def test_a_predicate_on_a_missing_column_names_the_line_and_the_nearest_match():
    with pytest.raises(MissingColumnError, match=r"filter at f\.py:3.*'dela'.*'delay'"):
        check_predicate(pc.field("dela") > 3, FLIGHTS, "filter at f.py:3")


def test_a_predicate_that_is_no_condition_is_refused():
    with pytest.raises(PlanError, match=r"condition.*int32"):
        check_predicate(pc.field("delay"), FLIGHTS, "filter")


def test_nothing_is_checked_where_the_schema_is_unknown():
    check_predicate(pc.field("dela") > 3, None, "filter")
    assert project(None, {"x": pc.field("dela")}, "select") is None
    assert with_columns(None, {"x": pc.field("dela")}, "with_columns") is None


def test_projected_types_are_those_that_the_kernels_will_give():
    got = project(
        FLIGHTS,
        {"late": pc.field("delay") > 15, "twice": pc.field("delay") * 2, "who": "carrier"},
        "select",
    )
    assert got == pa.schema([("late", pa.bool_()), ("twice", pa.int32()), ("who", pa.string())])


def test_added_columns_come_last_and_replaced_ones_stay_in_place():
    expressions = {"late": pc.field("delay") > 15, "carrier": pc.field("delay")}
    got = with_columns(FLIGHTS, expressions, "with_columns")
    assert got == pa.schema([("carrier", pa.int32()), ("delay", pa.int32()), ("late", pa.bool_())])


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ([("carrier", pa.string())], "column 'delay' is only in the first"),
        ([*FLIGHTS, pa.field("x", pa.int8())], "column 'x' is not in the first"),
        (
            [("carrier", pa.string()), ("delay", pa.int64())],
            "column 'delay' is int32 in one and int64 in another",
        ),
        ([("delay", pa.int32()), ("carrier", pa.string())], "different order"),
    ],
)
def test_a_union_of_different_schemas_names_the_columns_that_differ(other, difference):
    with pytest.raises(PlanError, match=difference):
        union_schema([FLIGHTS, pa.schema(other)], "union")


def test_a_union_with_an_unknown_schema_is_unknown_yet_the_known_ones_are_compared():
    assert union_schema([FLIGHTS, None], "union") is None
    assert union_schema([FLIGHTS, FLIGHTS], "union") == FLIGHTS
    with pytest.raises(PlanError):
        union_schema([FLIGHTS, None, pa.schema([("carrier", pa.string())])], "union")


def test_a_schema_is_described_in_one_line():
    assert describe_schema(FLIGHTS) == "carrier: string, delay: int32"
    assert describe_schema(None) == "known when it runs"
