"""The key index: equal keys share a slot, slots count up in order of first appearance."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.errors import PlanError
from helios_ray.state.index import IntTable, KeyIndex
from helios_ray.state.key_groups import key_groups_of_batch

COLUMNS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int64(), st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([2**63 - 1, -(2**63)]))),
    (pa.int8(), st.one_of(st.none(), st.integers(-3, 3))),
    (pa.uint64(), st.one_of(st.none(), st.sampled_from([0, 1, 2**64 - 1]))),
    (pa.string(), st.one_of(st.none(), st.sampled_from(["", "a", "ü", "ab", "日本"]))),
    (pa.dictionary(pa.int8(), pa.string()), st.one_of(st.none(), st.sampled_from(["x", "y", ""]))),
    (pa.string_view(), st.one_of(st.none(), st.sampled_from(["x", "y"]))),
    (pa.float64(), st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.5, math.nan]))),
    (pa.bool_(), st.one_of(st.none(), st.booleans())),
    (pa.date32(), st.one_of(st.none(), st.dates(dt.date(2020, 1, 1), dt.date(2020, 1, 3)))),
    (
        pa.timestamp("us"),
        st.one_of(st.none(), st.sampled_from([dt.datetime(2020, 1, d) for d in (1, 2)])),
    ),
    (pa.decimal128(5, 2), st.one_of(st.none(), st.sampled_from([Decimal("1.50"), Decimal(2)]))),
    (pa.decimal64(5, 2), st.one_of(st.none(), st.sampled_from([Decimal("1.50"), Decimal(2)]))),
    (pa.binary(2), st.one_of(st.none(), st.sampled_from([b"ab", b"\0\0"]))),
    (pa.null(), st.none()),
]


def same(value: Any) -> Any:
    """Python's notion of the index's equality: one NaN, one zero."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value + 0.0
    return value


@st.composite
def streams(draw: st.DrawFn) -> tuple[pa.Schema, list[list[tuple[Any, ...]]]]:
    chosen = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=3))
    row = st.tuples(*(values for _, values in chosen))
    schema = pa.schema([(f"k{i}", kind) for i, (kind, _) in enumerate(chosen)])
    return schema, draw(st.lists(st.lists(row, max_size=12), max_size=4))


def to_batch(schema: pa.Schema, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    # One row too many in front, sliced off: offsets must be respected.
    padded = [rows[0] if rows else (None,) * len(schema), *rows]
    arrays = []
    for i, field in enumerate(schema):
        values = [row[i] for row in padded]
        plain = pa.string() if field.type == pa.string_view() else field.type
        arrays.append(pa.array(values, plain).cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema).slice(1)


@given(streams())
def test_slots_are_those_of_a_python_dict(
    stream: tuple[pa.Schema, list[list[tuple[Any, ...]]]],
) -> None:
    schema, chunks = stream
    index = KeyIndex(schema.names, schema)
    model: dict[tuple[Any, ...], int] = {}
    for rows in chunks:
        expected = [model.setdefault(tuple(map(same, row)), len(model)) for row in rows]
        assert index.slots(to_batch(schema, rows)).tolist() == expected
    assert len(index) == len(model)
    stored = [tuple(map(same, row.values())) for row in index.key_table().to_pylist()]
    assert stored == list(model)


@given(streams())
def test_a_restored_index_gives_the_same_slots_and_key_groups(
    stream: tuple[pa.Schema, list[list[tuple[Any, ...]]]],
) -> None:
    schema, chunks = stream
    index, again = KeyIndex(schema.names, schema, 16), KeyIndex(schema.names, schema, 16)
    for rows in chunks:
        index.slots(to_batch(schema, rows))
    assert again.restore(index.key_table()).tolist() == list(range(len(index)))
    assert again.key_groups().equals(index.key_groups())
    for rows in chunks:
        batch = to_batch(schema, rows)
        slots = index.slots(batch)
        assert again.slots(batch).tolist() == slots.tolist()
        # A key's group is that of its rows, whatever type the rows had.
        groups = index.key_groups().to_numpy()[slots]
        assert groups.tolist() == key_groups_of_batch(batch, schema.names, 16).tolist()


def test_what_was_handed_out_is_not_changed_by_new_keys() -> None:
    schema = pa.schema([("k", pa.int64())])
    index = KeyIndex(["k"], schema)
    index.slots(pa.record_batch({"k": [1, 2]}))
    keys, groups = index.key_table(), index.key_groups()
    before = keys.to_pylist(), groups.to_pylist()
    for i in range(50):
        index.slots(pa.record_batch({"k": [i * 1000 + j for j in range(100)]}))
    assert (keys.to_pylist(), groups.to_pylist()) == before


def test_many_keys_keep_few_chunks() -> None:
    index = KeyIndex(["k"], pa.schema([("k", pa.int64())]))
    for i in range(300):
        index.slots(pa.record_batch({"k": [i]}))
    assert index.key_table().column(0).num_chunks <= 10
    assert index.key_table()["k"].to_pylist() == list(range(300))


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=400), max_size=6))
def test_the_integer_table_numbers_values_in_order_of_appearance(chunks: list[list[int]]) -> None:
    table = IntTable()
    model: dict[int, int] = {}
    for chunk in chunks:
        expected = [model.setdefault(v, len(model)) for v in chunk]
        assert table.codes(np.array(chunk, np.int64)).tolist() == expected


def test_the_integer_table_grows_past_its_first_size_under_colliding_values() -> None:
    table = IntTable()
    values = np.arange(20_000, dtype=np.int64) << np.int64(40)
    for start in range(0, 20_000, 700):
        table.codes(values[start : start + 700])
    assert table.codes(values).tolist() == list(range(20_000))


def test_a_key_type_that_cannot_be_indexed_is_refused() -> None:
    with pytest.raises(PlanError, match="cannot be a key"):
        KeyIndex(["k"], pa.schema([("k", pa.list_(pa.int8()))]))
