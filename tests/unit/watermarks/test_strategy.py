"""Watermark strategies: plain data, checked when made and when the plan is."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from datetime import timedelta

import pyarrow as pa
import pytest

from helios_ray.errors import ConfigError, MissingColumnError, PlanError, SchemaChangedError
from helios_ray.watermarks import (
    BoundedOutOfOrderness,
    ProcessingTime,
    WatermarkAlignment,
    WatermarkColumn,
    WatermarkStrategy,
)

SECOND = timedelta(seconds=1)
SCHEMA = pa.schema([("ts", pa.timestamp("ms")), ("mark", pa.int64()), ("name", pa.string())])


def marks() -> WatermarkColumn:
    return WatermarkColumn("mark")


EVERY = [
    (WatermarkStrategy.monotonic("ts"), BoundedOutOfOrderness),
    (WatermarkStrategy.bounded_out_of_orderness("ts", SECOND), BoundedOutOfOrderness),
    (WatermarkStrategy.from_column("ts", "mark"), WatermarkColumn),
    (WatermarkStrategy.custom("ts", marks, update_interval=SECOND), WatermarkColumn),
    (WatermarkStrategy.processing_time(), ProcessingTime),
]


@pytest.mark.parametrize(("strategy", "kind"), EVERY)
def test_each_makes_its_generator_anew_and_travels(strategy: WatermarkStrategy, kind: type) -> None:
    again = pickle.loads(pickle.dumps(strategy))
    assert again == strategy
    assert type(again.generator()) is kind
    assert again.generator() is not again.generator()
    with pytest.raises(FrozenInstanceError):
        strategy.column = "other"  # type: ignore[misc]


def test_additions_keep_what_was_there_in_any_order() -> None:
    base = WatermarkStrategy.bounded_out_of_orderness("ts", SECOND)
    one = base.with_idleness(SECOND).with_alignment("g", SECOND).with_ordered_splits()
    other = base.with_ordered_splits().with_alignment("g", SECOND).with_idleness(SECOND)
    assert one == other
    assert one.out_of_orderness == one.idleness == 1_000_000
    assert one.alignment == WatermarkAlignment(
        group="g", max_drift=1_000_000, update_interval=1_000_000
    )
    assert base == WatermarkStrategy.bounded_out_of_orderness("ts", SECOND)


ORDERED = WatermarkStrategy.monotonic("ts")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: WatermarkStrategy.monotonic(""), "column must name"),
        (lambda: WatermarkStrategy.from_column("ts", ""), "watermark_column must name"),
        (lambda: WatermarkStrategy.bounded_out_of_orderness("ts", -SECOND), "zero or more"),
        (lambda: ORDERED.with_idleness(timedelta()), "idleness must be positive"),
        (lambda: ORDERED.with_alignment("", SECOND), "name the group"),
        (lambda: ORDERED.with_alignment("g", timedelta()), "max_drift=…. must be positive"),
        (lambda: ORDERED.with_alignment("g", SECOND, -SECOND), "update_interval=…. must be"),
        (lambda: WatermarkStrategy.custom("ts", None), "a function that makes"),  # type: ignore
        (
            lambda: WatermarkStrategy.custom("ts", marks, update_interval=timedelta()),
            "update_interval must be positive",
        ),
        (lambda: WatermarkStrategy.processing_time().with_idleness(SECOND), "never idle"),
        (lambda: WatermarkStrategy.processing_time().with_alignment("g", SECOND), "never ahead"),
        (lambda: replace(ORDERED, factory=marks, watermark_column="mark"), "got several"),
    ],
)
def test_a_wrong_setting_is_an_error_when_it_is_made(
    make: Callable[[], WatermarkStrategy], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize(
    ("strategy", "nearest"),
    [
        (WatermarkStrategy.monotonic("tss"), "ts"),
        (WatermarkStrategy.from_column("ts", "marks"), "mark"),
        (WatermarkStrategy.custom("nam", marks), "name"),
    ],
)
def test_a_column_that_is_not_there_is_an_error_with_the_nearest(
    strategy: WatermarkStrategy, nearest: str
) -> None:
    with pytest.raises(MissingColumnError, match=rf"Did you mean '{nearest}'\?"):
        strategy.check(SCHEMA)


def test_a_column_that_is_no_time_is_an_error() -> None:
    with pytest.raises(SchemaChangedError, match="'name'"):
        WatermarkStrategy.monotonic("name").check(SCHEMA)
    with pytest.raises(SchemaChangedError, match="'name'"):
        WatermarkStrategy.from_column("ts", "name").check(SCHEMA)


@pytest.mark.parametrize("strategy", [s for s, _ in EVERY if not s.from_clock])
def test_event_time_leaves_the_schema_as_it_is(strategy: WatermarkStrategy) -> None:
    assert strategy.output_schema(SCHEMA) == SCHEMA


def test_processing_time_adds_its_column_to_the_schema_and_takes_no_name_away() -> None:
    added = WatermarkStrategy.processing_time("read_at").output_schema(SCHEMA)
    assert added == SCHEMA.append(pa.field("read_at", pa.timestamp("us", "UTC")))
    assert WatermarkStrategy.processing_time().column == "processing_time"
    with pytest.raises(PlanError, match="'name'"):
        WatermarkStrategy.processing_time("name").output_schema(SCHEMA)
