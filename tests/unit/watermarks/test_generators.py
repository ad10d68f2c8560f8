"""Watermark generators: each promises no more than what its rows allow."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.errors import MissingColumnError, PlanError
from helios_ray.watermarks import (
    BoundedOutOfOrderness,
    ProcessingTime,
    WatermarkColumn,
    WatermarkGenerator,
)


def rows(*times: int | None, column: str = "ts") -> pa.RecordBatch:
    return pa.record_batch({column: pa.array(times, pa.int64())})


batches = st.lists(
    st.lists(st.none() | st.integers(-(10**12), 10**12), max_size=5), min_size=1, max_size=8
)


@given(batches, st.integers(0, 10**6))
def test_within_the_bound_no_row_is_late(many: list[list[int | None]], bound: int) -> None:
    generator = BoundedOutOfOrderness("ts", bound)
    greatest = None
    for times in many:
        generator.observe(rows(*times))
        known = [t for t in times if t is not None]
        greatest = max([*known, *([] if greatest is None else [greatest])], default=None)
        expected = MIN_TIMESTAMP if greatest is None else greatest - bound - 1
        assert generator.watermark == expected


@given(batches)
def test_a_watermark_column_says_itself_what_is_complete(many: list[list[int | None]]) -> None:
    generator = WatermarkColumn("mark")
    seen = [MIN_TIMESTAMP]
    for marks in many:
        generator.observe(rows(*marks, column="mark"))
        seen += [m for m in marks if m is not None]
        assert generator.watermark == max(seen)


@given(st.integers(-(10**15), 10**15), st.integers(-(10**15), 10**15))
def test_a_mark_in_nanoseconds_makes_no_row_late_that_may_still_come(mark: int, row: int) -> None:
    """A row after the mark, both cut to microseconds, is after the watermark."""
    generator = WatermarkColumn("mark")
    data = pa.record_batch({"mark": pa.array([mark], pa.timestamp("ns"))})
    generator.observe(data)
    if row > mark:
        assert row // 1000 > generator.watermark
    assert generator.watermark in ((mark + 1) // 1000 - 1, mark // 1000)


@pytest.mark.parametrize(
    "fresh",
    [lambda: BoundedOutOfOrderness("ts", 3), lambda: WatermarkColumn("ts")],
)
@given(many=batches, cut=st.integers(0, 8))
def test_a_restored_generator_goes_on_as_if_nothing_had_happened(
    fresh: type[WatermarkGenerator], many: list[list[int | None]], cut: int
) -> None:
    through, before, after = fresh(), fresh(), fresh()
    for times in many[:cut]:
        through.observe(rows(*times))
        before.observe(rows(*times))
    after.restore(json.loads(json.dumps(before.state())))
    assert after.watermark == through.watermark
    for times in many[cut:]:
        through.observe(rows(*times))
        after.observe(rows(*times))
        assert after.watermark == through.watermark


def test_rows_without_the_column_are_refused_with_the_nearest() -> None:
    for generator in (BoundedOutOfOrderness("stamp"), WatermarkColumn("stamp")):
        with pytest.raises(MissingColumnError, match=r"'stamp'.*Did you mean 'stamps'\?"):
            generator.observe(rows(1, column="stamps"))


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=20), st.integers(0, 20))
def test_processing_time_never_makes_its_own_rows_late(clock: list[int], cut: int) -> None:
    """Not even where a restore finds a clock that is behind."""
    generator = ProcessingTime("at")
    watermark = MIN_TIMESTAMP
    for step, now in enumerate(clock):
        if step == cut:
            state = json.loads(json.dumps(generator.state()))
            generator = ProcessingTime("at")
            generator.restore(state)
        generator.on_processing_time(now)
        stamped = generator.stamp(rows(1, 2))
        stamps = stamped.column("at").cast(pa.int64()).to_pylist()
        assert len(set(stamps)) == 1
        assert stamps[0] > watermark
        assert stamps[0] >= now
        assert generator.watermark == stamps[0] - 1
        assert generator.watermark >= watermark
        watermark = generator.watermark


def test_processing_time_has_a_type_and_a_name_of_its_own() -> None:
    generator = ProcessingTime("at")
    assert generator.watermark == MIN_TIMESTAMP
    generator.on_processing_time(5)
    assert generator.stamp(rows(1)).schema.field("at").type == pa.timestamp("us", "UTC")
    with pytest.raises(PlanError, match=r"'at'.*Choose another"):
        generator.stamp(rows(1, column="at"))
