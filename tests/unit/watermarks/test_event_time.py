"""Event time in a column: whole microseconds, rounded down, whatever the unit."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.errors import MissingColumnError, SchemaChangedError
from helios_ray.watermarks import EventTime, event_time_us


@pytest.mark.parametrize(
    ("kind", "value", "micros"),
    [
        (pa.int64(), 7, 7),
        (pa.int32(), -7, -7),
        (pa.timestamp("s"), 2, 2_000_000),
        (pa.timestamp("ms", "Europe/Berlin"), -3, -3000),
        (pa.timestamp("us", "UTC"), 5, 5),
        (pa.timestamp("ns"), 1999, 1),
        (pa.timestamp("ns"), -1, -1),
    ],
)
def test_every_kind_of_time_is_read_as_microseconds(
    kind: pa.DataType, value: int, micros: int
) -> None:
    column = pa.array([value, None], pa.int64()).cast(kind)
    assert event_time_us(column, "ts").to_pylist() == [micros, None]


@given(st.lists(st.integers(-(10**15), 10**15), min_size=1, max_size=20))
def test_nanoseconds_round_down_on_both_sides_of_1970(values: list[int]) -> None:
    column = pa.array(values, pa.timestamp("ns"))
    assert event_time_us(column, "ts").to_pylist() == [v // 1000 for v in values]


def test_what_is_no_time_is_refused_by_name() -> None:
    with pytest.raises(SchemaChangedError, match="'when' must be a timestamp"):
        event_time_us(pa.array(["now"]), "when")


def test_a_missing_column_comes_with_the_nearest() -> None:
    schema = pa.schema([("event_time", pa.int64()), ("x", pa.string())])
    with pytest.raises(MissingColumnError, match=r"op: .*Did you mean 'event_time'\?"):
        EventTime("event_tme").check(schema, "op")
    assert EventTime("event_time").check(schema, "op") == pa.int64()
    assert EventTime.of("x") == EventTime("x")
