"""Generated rows depend on their number alone, and come at the pace that was asked for."""

from __future__ import annotations

import json
import pickle
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.connectors.base import Exhausted, NotYet, Rows, SplitReader
from helios_ray.connectors.generator import DataGenSource, RangeSource
from helios_ray.errors import ConfigError, SchemaChangedError, UserFunctionError
from tests.unit.connectors.files.reading import read_all, read_interrupted

NUMBERS = pa.schema([("n", pa.int64())])


def itself(numbers: Any) -> dict[str, Any]:
    return {"n": numbers}


# ---------------------------------------------------------------------------------- the range


@given(
    start=st.integers(-50, 50),
    stop=st.integers(-50, 50),
    step=st.integers(-7, 7).filter(bool),
    parallelism=st.integers(1, 6),
    data=st.data(),
)
def test_a_range_is_the_range_of_python(
    start: int, stop: int, step: int, parallelism: int, data: st.DataObject
) -> None:
    source = RangeSource(start, stop, step)
    splits = source.discover_splits(parallelism)
    read = [row["item"] for split in splits for row in read_interrupted(source, split, data)]
    assert read == list(range(start, stop, step))
    assert source.schema() == pa.schema([("item", pa.int64())])


def test_a_range_may_span_all_of_64_bits() -> None:
    low, high, step = -(2**63), 2**63 - 1, 2**62
    assert [row["item"] for row in read_all(RangeSource(low, high, step))] == list(
        range(low, high, step)
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((1, 2, 0), "step must not be 0"), ((2**64,), "64 bits"), ((1.5,), "integer, got 1.5")],
)
def test_wrong_ranges_are_refused(arguments: tuple[Any, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        RangeSource(*arguments)


# -------------------------------------------------------------------------------- what is made


@given(count=st.integers(0, 60), parallelism=st.integers(1, 7), data=st.data())
def test_any_parallelism_and_any_interruption_give_the_same_rows(
    count: int, parallelism: int, data: st.DataObject
) -> None:
    schema = pa.schema([("k", pa.string()), ("v", pa.int32())])
    source = DataGenSource(schema, count=count, seed=3)
    alone = read_all(source)
    splits = source.discover_splits(parallelism)
    shared = [row for split in splits for row in read_interrupted(source, split, data)]
    assert len(alone) == count
    assert sorted(map(repr, shared)) == sorted(map(repr, alone))


def test_random_rows_are_the_same_in_every_release() -> None:
    """Part of the contract: a job resumed after an upgrade replays the rows it had."""
    kinds = {
        "i": pa.int64(),
        "u": pa.uint8(),
        "f": pa.float32(),
        "b": pa.bool_(),
        "s": pa.string(),
        "t": pa.timestamp("us", "UTC"),
        "d": pa.date32(),
    }
    rows = read_all(DataGenSource(pa.schema(list(kinds.items())), count=2, seed=1))
    assert [repr(list(row.values())[:5]) for row in rows] == GOLDEN
    assert rows[1]["t"] - rows[0]["t"] == timedelta(seconds=1)


def test_seeds_and_columns_differ() -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.int64())])
    first = read_all(DataGenSource(schema, count=50, seed=1))
    second = read_all(DataGenSource(schema, count=50, seed=2))
    assert all(row["a"] != row["b"] for row in first)
    assert all(x["a"] != y["a"] for x, y in zip(first, second, strict=True))


def test_a_function_may_return_a_dict_or_a_record_batch() -> None:
    def batch(numbers: Any) -> pa.RecordBatch:
        return pa.record_batch({"n": numbers * 2})

    assert read_all(DataGenSource(batch, count=3)) == [{"n": 0}, {"n": 2}, {"n": 4}]
    assert DataGenSource(itself).schema() == NUMBERS
    assert not DataGenSource(itself).bounded
    assert DataGenSource(itself, count=1).bounded


@pytest.mark.parametrize(
    ("function", "error", "expected"),
    [
        (lambda n: {"n": n[:1]}, UserFunctionError, r"rows 0 to 9 returned 1 rows, expected 10"),
        (lambda n: {"n": [1 // x for x in n.tolist()]}, UserFunctionError, r"rows 0 to 9 failed"),
        (lambda n: {"n": n * 0.5}, SchemaChangedError, r"'n' to be int64, got double"),
        (lambda n: {"m": n}, SchemaChangedError, r"'n' to be int64, got no such column"),
        (lambda n: {"n": n, "m": n}, SchemaChangedError, r"columns \['n'\], got \['n', 'm'\]"),
    ],
)
def test_a_function_that_breaks_its_word_is_named_with_its_rows(
    function: Any, error: type[Exception], expected: str
) -> None:
    source = DataGenSource(function, count=10, schema=NUMBERS)
    with pytest.raises(error, match=expected):
        read_all(source)


# -------------------------------------------------------------------------------------- the pace


def reader_of(rate: float, parallelism: int = 1, residue: int = 0, **options: Any) -> SplitReader:
    source = DataGenSource(itself, rows_per_second=rate, **options)
    return source.open_split(source.discover_splits(parallelism)[residue])


@given(
    rate=st.floats(0.1, 1e6),
    start=st.floats(0, 1e9),
    parallelism=st.integers(1, 5),
    gaps=st.lists(st.floats(0, 0.5), min_size=1, max_size=40),
)
@settings(max_examples=200)
def test_at_any_time_there_are_as_many_rows_as_the_rate_says(
    rate: float, start: float, parallelism: int, gaps: list[float]
) -> None:
    options = {"batch_interval": timedelta(0), "catch_up": timedelta(days=1)}
    readers = [reader_of(rate, parallelism, r, **options) for r in range(parallelism)]
    given_rows, now = 0, start
    for gap in [0.0, *gaps]:
        now += gap
        for reader in readers:
            while isinstance(polled := reader.poll(1 << 20, now), Rows):
                given_rows += polled.data.num_rows
            assert isinstance(polled, NotYet)
            assert polled.retry_at > now
    # One row at the start and then `rate` a second: clocks as large as 1e9 round to 1e-7 s.
    assert abs(given_rows - ((now - start) * rate + 1)) <= 1 + parallelism + rate * 1e-6


@given(rate=st.floats(0.01, 1e7), start=st.floats(0, 1e9))
def test_whoever_comes_back_when_told_finds_a_row(rate: float, start: float) -> None:
    reader, now = reader_of(rate, batch_interval=timedelta(0)), start
    for _ in range(20):
        polled = reader.poll(3, now)
        if isinstance(polled, NotYet):
            assert polled.retry_at > now
            now = polled.retry_at
            polled = reader.poll(3, now)
        assert isinstance(polled, Rows)


def test_rows_that_fall_due_together_are_given_together() -> None:
    reader, now, polls = reader_of(1_000_000.0, batch_interval=timedelta(milliseconds=2)), 0.0, 0
    rows = 0
    while now < 1.0:
        polled = reader.poll(1 << 20, now)
        polls += 1
        if isinstance(polled, NotYet):
            now = polled.retry_at
        elif isinstance(polled, Rows):
            rows += polled.data.num_rows
    assert polls <= 1010
    assert abs(rows - 1_000_000) <= 2_001


def test_after_a_stall_only_so_much_is_made_up_for() -> None:
    reader = reader_of(100.0, catch_up=timedelta(seconds=2), batch_interval=timedelta(0))
    assert isinstance(reader.poll(1000, 0.0), Rows)
    polled = reader.poll(100_000, 3600.0)
    assert isinstance(polled, Rows)
    assert 200 <= polled.data.num_rows <= 201
    assert polled.data.column("n")[0].as_py() == 1  # late, and none is left out


def test_after_a_restore_the_pace_starts_afresh() -> None:
    before = reader_of(10.0, batch_interval=timedelta(0))
    before.poll(100, 0.0)
    before.poll(100, 1.0)
    position = json.loads(json.dumps(before.position()))
    after = reader_of(10.0, batch_interval=timedelta(0))
    after.seek(position)
    polled = after.poll(100, 500.0)
    assert isinstance(polled, Rows)
    assert polled.data.column("n").to_pylist() == [11]
    assert isinstance(after.poll(100, 500.05), NotYet)


def test_without_a_rate_rows_come_as_fast_as_they_are_taken() -> None:
    source = DataGenSource(itself, count=10)
    reader = source.open_split(source.discover_splits(1)[0])
    sizes = []
    while not isinstance(polled := reader.poll(4, 0.0), Exhausted):
        assert isinstance(polled, Rows)
        sizes.append(polled.data.num_rows)
    assert sizes == [4, 4, 2]


def test_a_source_of_random_rows_travels() -> None:
    source = pickle.loads(pickle.dumps(DataGenSource(NUMBERS, count=5)))
    assert read_all(source) == read_all(DataGenSource(NUMBERS, count=5))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"rows": itself, "rows_per_second": 0}, r"rows_per_second must be above 0, got 0"),
        ({"rows": itself, "count": -1}, r"count must not be negative, got -1"),
        ({"rows": itself, "catch_up": timedelta(-1)}, r"catch_up must not be negative"),
        ({"rows": 7}, r"function of row numbers or a pa.Schema, got 7"),
        ({"rows": pa.schema([])}, r"empty schema"),
        ({"rows": pa.schema([("x", pa.list_(pa.int8()))])}, r"column 'x' \(list"),
    ],
)
def test_wrong_settings_are_refused_on_construction(
    arguments: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        DataGenSource(**arguments)


def test_values_stay_within_what_is_promised() -> None:
    kinds = [("i", pa.int8()), ("f", pa.float32()), ("s", pa.large_string())]
    rows = read_all(DataGenSource(pa.schema(kinds), count=5000))
    assert all(0 <= row["i"] < 128 and 0 <= row["f"] < 1 for row in rows)
    assert all(row["s"][0].isalpha() and row["s"][1:].isdigit() for row in rows)
    assert np.std([row["f"] for row in rows]) == pytest.approx(12**-0.5, rel=0.05)


GOLDEN = [
    "[396081, 7, 0.07087939977645874, True, 'v466616']",
    "[168446, 127, 0.21682506799697876, False, 'b587700']",
]
