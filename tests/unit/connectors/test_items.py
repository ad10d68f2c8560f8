"""Items become rows in their order, whatever the cuts, the batches and the deaths."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.connectors.base import Rows
from helios_ray.connectors.items import ItemsSource
from helios_ray.errors import ConfigError
from tests.unit.connectors.files.reading import read_all, read_interrupted


@given(items=st.lists(st.integers(-9, 9)), parallelism=st.integers(1, 7), data=st.data())
def test_the_union_of_all_splits_is_the_items_in_order(
    items: list[int], parallelism: int, data: st.DataObject
) -> None:
    source = ItemsSource(items)
    splits = source.discover_splits(parallelism)
    assert len(splits) == min(parallelism, len(items))
    read = [row["item"] for split in splits for row in read_interrupted(source, split, data)]
    assert read == items


def test_dicts_are_rows_and_a_missing_key_is_null() -> None:
    source = ItemsSource([{"a": 1}, {"b": "x", "a": 2.5}, {}])
    assert source.schema() == pa.schema([("a", pa.float64()), ("b", pa.string())])
    assert read_all(source) == [{"a": 1, "b": None}, {"a": 2.5, "b": "x"}, {"a": None, "b": None}]
    assert source.bounded


def test_a_schema_decides_types_and_order() -> None:
    schema = pa.schema([("b", pa.string()), ("a", pa.int8())])
    source = ItemsSource([{"a": 1, "b": "x"}], schema)
    assert source.schema() == schema
    assert read_all(source, parallelism=3) == [{"b": "x", "a": 1}]


@pytest.mark.parametrize("pieces", [1, 3])
def test_an_arrow_table_is_read_as_it_is(pieces: int) -> None:
    one = pa.table({"a": pa.array([1, None], pa.int16()), "b": ["x", "y"]})
    table = pa.concat_tables([one] * pieces)
    source = ItemsSource(table)
    assert source.schema() == table.schema
    assert read_all(source, parallelism=2) == table.to_pylist()
    assert read_all(ItemsSource(one.to_batches()[0])) == one.to_pylist()
    assert read_all(ItemsSource(table.slice(0, 0))) == []


def test_a_table_is_cast_to_a_schema_or_refused() -> None:
    table = pa.table({"a": [1], "b": ["x"]})
    wide = pa.schema([("b", pa.large_string())])
    assert ItemsSource(table, wide).schema() == wide
    with pytest.raises(ConfigError, match="does not become"):
        ItemsSource(table, pa.schema([("b", pa.int64())]))
    with pytest.raises(ConfigError, match="does not become"):
        ItemsSource(table, pa.schema([("c", pa.int64())]))
    with pytest.raises(ConfigError, match="a column"):
        ItemsSource(pa.table({}))


def test_no_items_are_no_rows() -> None:
    assert read_all(ItemsSource([])) == []
    schema = pa.schema([("a", pa.int64())])
    assert ItemsSource([], schema).schema() == schema


def test_the_origin_is_the_index() -> None:
    source = ItemsSource("abcdef")
    reader = source.open_split(source.discover_splits(2)[1])
    reader.poll(1, 0.0)
    polled = reader.poll(9, 0.0)
    assert isinstance(polled, Rows)
    assert str(polled.origin) == "items @ index 4"


@pytest.mark.parametrize(
    ("items", "schema", "expected"),
    [
        ([{"a": 1}, 2], None, r"item 0 is a dict, item 1 is a int"),
        ([1, "x"], None, r"'item'.*int64.*item 1 is 'x'"),
        ([{"a": 1}, {"a": [1]}], None, r"'a'.*item 1 is \[1\]"),
        ([{"a": 1}, {"a": 300}], pa.schema([("a", pa.int8())]), r"'a'.*int8.*item 1 is 300"),
        ([{"a": 1}, {"z": 1}], pa.schema([("a", pa.int8())]), r"item 1 has column 'z'"),
        ([{1: 1}], None, r"keys of rows must be strings, got 1"),
        ([1], pa.schema([("a", pa.int8())]), r"one column named 'item'"),
        ([{}], None, r"must have a column"),
    ],
)
def test_items_that_fit_no_table_are_refused_on_construction(
    items: list[Any], schema: pa.Schema | None, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        ItemsSource(items, schema)
