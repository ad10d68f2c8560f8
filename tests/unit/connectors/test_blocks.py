"""A table in blocks: rows once and in order, whatever the blocks, wherever one resumes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.connectors.base import Exhausted, NotYet, Rows, SplitReader
from helios_ray.connectors.block_columns import check_fits, common_schema, conform, stream_schema
from helios_ray.connectors.blocks import BlocksSource, cut, digest, row_digest, sampled_rows
from helios_ray.errors import ConfigError, CorruptInputError, StateMismatchError


class Slow:
    """A block that is not there when it is first asked for."""

    def __init__(self, block: Any, looks: int) -> None:
        self._block, self._looks = block, looks

    def done(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    def result(self) -> Any:
        return self._block


class Store:
    """Blocks in memory; notes which were fetched."""

    def __init__(self, blocks: Sequence[Any], looks: int = 0) -> None:
        self.blocks, self.looks = blocks, looks
        self.fetched: list[int] = []
        self.connected: list[tuple[int, int]] = []

    def __call__(self, first: int, last: int) -> Any:
        self.connected.append((first, last))

        def fetch(index: int) -> Slow:
            assert first <= index <= last, "a block that was not asked for when connecting"
            self.fetched.append(index)
            return Slow(self.blocks[index], self.looks)

        return fetch


def source_over(store: Store, sample: str = "sample") -> BlocksSource:
    schema = common_schema([stream_schema(b.schema, "b") for b in store.blocks], "dataset")
    rows = [b.num_rows for b in store.blocks]
    return BlocksSource(rows=rows, schema=schema, sample=sample, connect=store)


def numbers(lengths: Sequence[int]) -> list[pa.Table]:
    starts = [0, *itertools.accumulate(lengths)]
    return [pa.table({"n": range(a, b)}) for a, b in itertools.pairwise(starts)]


def read(reader: SplitReader, most: int, limit: int | None = None) -> list[int]:
    found: list[int] = []
    for _ in range(10_000):
        if limit is not None and len(found) >= limit:
            return found
        match reader.poll(most, 0.0):
            case Rows(data, origin):
                assert 1 <= data.num_rows <= most
                assert str(origin) == f"dataset @ row {data['n'][0]}"
                found += data["n"].to_pylist()
            case NotYet(retry_at):
                assert retry_at > 0
            case Exhausted():
                return found
    raise AssertionError("the split does not end")


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@settings(max_examples=60)
@given(
    before=LENGTHS,
    most=st.integers(1, 10),
    parallelism=st.integers(1, 3),
    looks=st.integers(0, 2),
    data=st.data(),
)
def test_every_row_comes_once_and_in_order_also_over_other_blocks_of_the_same_rows(
    before: list[int], most: int, parallelism: int, looks: int, data: st.DataObject
) -> None:
    total = sum(before)
    cuts = sorted(data.draw(st.sets(st.integers(1, total), max_size=5)) | {0, total})
    after = [b - a for a, b in itertools.pairwise(cuts)]
    first = source_over(Store(numbers(before), looks))
    second = source_over(Store(numbers(after), looks))
    splits = first.discover_splits(parallelism)
    assert [s.split_id for s in splits] == sorted(s.split_id for s in splits)
    found: list[int] = []
    for split in splits:
        reader = first.open_split(split)
        found += read(reader, most, limit=data.draw(st.integers(0, total)))
        again = second.open_split(split)
        again.seek(reader.position())
        found += read(again, most)
        assert again.position() == {"row": split.spec["stop"]}
    assert found == list(range(total))


def test_the_next_block_is_on_its_way_while_one_is_read_and_no_more_than_that() -> None:
    store = Store(numbers([10] * 8))
    source = source_over(store)
    first, *_ = splits = source.discover_splits(1)
    assert [(s.spec["start"], s.spec["stop"]) for s in splits] == [
        (0, 20),
        (20, 40),
        (40, 60),
        (60, 80),
    ]
    reader = source.open_split(first)
    assert store.connected == [(0, 1)]
    assert store.fetched == []
    reader.poll(1, 0.0)
    assert store.fetched == [0, 1]
    read(reader, 5)
    assert store.fetched == [0, 1]


def test_rows_of_a_block_are_views_of_it() -> None:
    block = pa.table({"n": pa.array(range(5_000), pa.int64())})
    reader = source_over(Store([block])).open_split(
        source_over(Store([block])).discover_splits(1)[1]
    )
    answer = reader.poll(10, 0.0)
    assert isinstance(answer, Rows)
    assert answer.data["n"].buffers()[1].address == block["n"].chunk(0).buffers()[1].address


def test_a_checkpoint_over_other_rows_is_refused() -> None:
    before = source_over(Store(numbers([3, 4]))).discover_splits(1)[0]
    with pytest.raises(StateMismatchError, match="7 rows, and this one has 8") as refusal:
        source_over(Store(numbers([4, 4]))).open_split(before)
    assert "restore=None" in str(refusal.value)
    with pytest.raises(StateMismatchError, match="other values, or the same rows in another"):
        source_over(Store(numbers([3, 4])), "another sample").open_split(before)


def test_a_checkpoint_over_other_columns_is_refused_with_their_names() -> None:
    before = source_over(Store([pa.table({"n": [1]})]))
    after = source_over(Store([pa.table({"m": ["x"]})]))
    with pytest.raises(StateMismatchError, match=r"\['n: int64'\], and this one has \['m: string'"):
        after.open_split(before.discover_splits(1)[0])


def test_a_table_without_rows_has_nothing_to_read() -> None:
    source = BlocksSource(rows=[], schema=pa.schema([("n", "int64")]), sample="", connect=Store([]))
    assert source.discover_splits(3) == []
    assert source.bounded


@given(lengths=LENGTHS, pieces=st.integers(1, 12))
def test_cuts_cover_all_rows_in_about_even_pieces(lengths: list[int], pieces: int) -> None:
    starts = [0, *itertools.accumulate(lengths)]
    cuts = cut(starts, pieces)
    assert cuts == sorted(set(cuts))
    assert (cuts[0], cuts[-1]) == (0, starts[-1])
    assert max(b - a for a, b in itertools.pairwise(cuts)) <= 2 * (starts[-1] // pieces + 1)


@given(rows=st.integers(0, 500), most=st.integers(2, 70))
def test_sampled_rows_are_spread_from_the_first_to_the_last(rows: int, most: int) -> None:
    sampled = sampled_rows(rows, most)
    assert sampled == sorted(set(sampled))
    assert len(sampled) == min(rows, most)
    assert not rows or (sampled[0], sampled[-1]) == (0, rows - 1)


def test_the_digest_of_a_row_depends_on_its_values_not_on_its_place() -> None:
    image = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12).reshape(3, 2, 2))
    table = pa.table({"s": ["a", "b", "a"], "t": image})
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert row_digest(table, 2) == row_digest(chunked.slice(2), 0)
    assert len({row_digest(table, row) for row in range(3)}) == 3
    assert digest(["a", "b"]) != digest(["ab"])


# ------------------------------------------------------------------------- columns of blocks


def test_blocks_take_the_schema_of_the_stream() -> None:
    schema = pa.schema([("a", pa.float64()), ("b", pa.string()), ("c", pa.int64())])
    table = conform(pa.table({"b": pa.nulls(2), "a": [1, 2]}), schema, "block 0")
    assert table.schema == schema
    assert table.to_pydict() == {"a": [1.0, 2.0], "b": [None, None], "c": [None, None]}
    frame = conform(pd.DataFrame({"a": [0.5]}), pa.schema([("a", pa.float64())]), "block 0")
    assert frame.to_pydict() == {"a": [0.5]}
    with pytest.raises(CorruptInputError, match=r"block 7: column 'a' is int64 there.*does not"):
        conform(pa.table({"a": [2**53 + 1]}), schema, "block 7")


def test_types_that_only_others_know_are_refused_by_the_name_of_their_column() -> None:
    class Theirs(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.int64(), "their.type")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: pa.DataType, data: bytes) -> Theirs:
            return cls()

    theirs = Theirs()  # Arrow itself keeps no type alive that is not registered
    for kind in (theirs, pa.list_(theirs), pa.struct([("x", theirs)])):
        with pytest.raises(ConfigError, match=r"column 'odd'.*drop_columns\(\['odd'\]\)"):
            stream_schema(pa.schema([("fine", "int64"), ("odd", kind)]), "dataset")
    with pytest.raises(ConfigError, match="more than once"):
        stream_schema(pa.schema([("a", "int64"), ("a", "int64")]), "dataset")
    with pytest.raises(ConfigError, match="without any"):
        stream_schema(pa.schema([]), "dataset")


def test_a_block_that_does_not_fit_what_was_planned_is_named() -> None:
    planned = pa.schema([("a", pa.int64())])
    check_fits(pa.schema([("a", pa.int32())]), planned, "block 1")
    check_fits(pa.schema([("a", pa.null())]), planned, "block 1")
    with pytest.raises(ConfigError, match=r"block 2: column 'a' expected int64.*got double"):
        check_fits(pa.schema([("a", pa.float64())]), planned, "block 2")
    with pytest.raises(ConfigError, match=r"block 3 has a column 'b': string"):
        check_fits(pa.schema([("b", pa.string())]), planned, "block 3")
    with pytest.raises(ConfigError, match="no common schema"):
        common_schema([planned, pa.schema([("a", pa.list_(pa.string()))])], "dataset")
