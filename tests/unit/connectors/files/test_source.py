"""A file source reads every row once, whatever the cuts, the batches and the deaths."""

from __future__ import annotations

import gzip
import json
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.connectors.base import Exhausted, Rows
from helios_ray.connectors.files import CsvOptions, FileSource
from helios_ray.connectors.files import lines as lines_module
from helios_ray.errors import (
    ConfigError,
    CorruptInputError,
    SchemaChangedError,
    SourceUnavailableError,
)
from tests.unit.connectors.files.reading import read_all, read_interrupted, read_split

SCHEMA = pa.schema([("n", pa.int64()), ("s", pa.string()), ("f", pa.float64())])

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"'), max_size=9)
rows_of_a_file = st.lists(
    st.fixed_dictionaries(
        {
            "n": st.none() | st.integers(-(2**63), 2**63 - 1),
            "s": texts,
            "f": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        }
    ),
    max_size=30,
)
files_of_rows = st.lists(rows_of_a_file, min_size=1, max_size=4)


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 7) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, row_group_size=group)


def write_csv(path: Path, rows: list[dict[str, Any]], **_: Any) -> None:
    pa_csv.write_csv(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def write_jsonl(path: Path, rows: list[dict[str, Any]], **_: Any) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="")


WRITERS = {"parquet": write_parquet, "csv": write_csv, "jsonl": write_jsonl}


@contextmanager
def small_chunks(size: int) -> Iterator[None]:
    """Read text in chunks of a few bytes, so that small files have many of them."""
    before, lines_module.CHUNK = lines_module.CHUNK, size
    try:
        yield
    finally:
        lines_module.CHUNK = before


@pytest.mark.parametrize("fmt", sorted(WRITERS))
@given(files=files_of_rows, data=st.data())
@settings(max_examples=60)
def test_the_union_of_all_splits_is_the_data_whatever_interrupts_the_reading(
    fmt: str, files: list[list[dict[str, Any]]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder, small_chunks(data.draw(st.integers(1, 200))):
        for number, rows in enumerate(files):
            group = data.draw(st.integers(1, 9))
            WRITERS[fmt](Path(folder, f"{number}.{fmt}"), rows, group=group)
        source = FileSource(
            folder,
            schema=SCHEMA,
            batch_rows=data.draw(st.integers(1, 10)),
            block_size=data.draw(st.integers(1, 300)),
        )
        splits = source.discover_splits(data.draw(st.integers(1, 5)))
        assert len({split.split_id for split in splits}) == len(splits)
        read = [row for split in splits for row in read_interrupted(source, split, data)]
        assert read == [row for rows in files for row in rows]


@pytest.mark.parametrize("fmt", sorted(WRITERS))
@given(files=files_of_rows, data=st.data())
@settings(max_examples=25)
def test_a_watched_directory_gives_each_file_as_one_split_with_exact_positions(
    fmt: str, files: list[list[dict[str, Any]]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder, small_chunks(100):
        source = FileSource(folder, format=fmt, schema=SCHEMA, watch=timedelta(seconds=1))
        assert list(source.discover_splits(2)) == []
        known: set[str] = set()
        for number, rows in enumerate(files):
            WRITERS[fmt](Path(folder, f"{number}.{fmt}"), rows, group=3)
            new = [s for s in source.discover_splits(2) if s.split_id not in known]
            known.update(split.split_id for split in new)
            assert len(new) == 1
            assert read_interrupted(source, new[0], data) == rows


@given(
    rows=st.lists(
        st.fixed_dictionaries({"n": st.integers(0, 9), "s": st.text('a,"\n\r\té', max_size=6)}),
        max_size=20,
    ),
    chunk=st.integers(1, 60),
    data=st.data(),
)
@settings(max_examples=60)
def test_csv_fields_may_hold_delimiters_quotes_and_line_ends(
    rows: list[dict[str, Any]], chunk: int, data: st.DataObject
) -> None:
    schema = pa.schema([("n", pa.int64()), ("s", pa.string())])
    with tempfile.TemporaryDirectory() as folder, small_chunks(chunk):
        pa_csv.write_csv(pa.Table.from_pylist(rows, schema=schema), f"{folder}/a.csv")
        options = CsvOptions(newlines_in_values=True)
        source = FileSource(folder, schema=schema, csv=options, block_size=10)
        [split] = source.discover_splits(4)
        assert read_interrupted(source, split, data) == rows


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)]
)
@given(rows=rows_of_a_file, data=st.data())
@settings(max_examples=20)
def test_a_compressed_file_is_one_split_whose_positions_are_exact(
    suffix: str, compress: Any, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder, small_chunks(64):
        plain = Path(folder, "plain")
        write_jsonl(plain, rows)
        Path(folder, "a.jsonl" + suffix).write_bytes(compress(plain.read_bytes()))
        source = FileSource(folder, schema=SCHEMA, block_size=10)
        [split] = source.discover_splits(4)
        assert read_interrupted(source, split, data) == rows


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("block_size", [1, 4, 1000])
def test_line_ends_blank_lines_and_byte_order_marks_make_no_difference(
    tmp_path: Path, end: str, last: bool, mark: bytes, block_size: int
) -> None:
    csv = end.join(["", "n,s", "1,a", "", "2,b", "", "", "3,c"]) + (end if last else "")
    jsonl = end.join(['{"n":1,"s":"a"}', "", '{"n":2,"s":"b"}', "   ", '{"n":3,"s":"c"}'])
    (tmp_path / "x.csv").write_bytes(mark + csv.encode())
    (tmp_path / "x.jsonl").write_bytes(mark + (jsonl + (end if last else "")).encode())
    expected = [{"n": 1, "s": "a"}, {"n": 2, "s": "b"}, {"n": 3, "s": "c"}]
    for fmt in ("csv", "jsonl"):
        source = FileSource(tmp_path, format=fmt, block_size=block_size)
        assert read_all(source, max_rows=2) == expected


def test_a_position_is_the_byte_at_which_the_next_line_begins(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"n,s\n1,aa\n\n22,bb\n3,cc\n")
    source = FileSource(tmp_path)
    [split] = source.discover_splits(1)
    reader = source.open_split(split)
    assert reader.position() == {"byte": 4}
    first = reader.poll(1, 0.0)
    assert isinstance(first, Rows)
    assert str(first.origin) == f"{tmp_path}/a.csv @ byte 4"
    assert reader.position() == {"byte": 10}
    second = reader.poll(1, 0.0)
    assert isinstance(second, Rows)
    assert str(second.origin) == f"{tmp_path}/a.csv @ byte 10"
    assert reader.position() == {"byte": 16}


def test_a_parquet_origin_is_the_row_of_the_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"n": i, "s": "", "f": 0.0} for i in range(10)], group=4)
    source = FileSource(tmp_path)
    splits = source.discover_splits(1)
    reader = source.open_split(splits[1])
    reader.poll(1, 0.0)
    polled = reader.poll(2, 0.0)
    assert isinstance(polled, Rows)
    assert str(polled.origin) == f"{tmp_path}/a.parquet @ row 5"
    assert reader.position() == {"group": 1, "row": 3}


def test_parquet_is_decoded_once_from_front_to_back_however_small_the_polls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "a.parquet", [{"n": i, "s": "", "f": 0.0} for i in range(100)], 100)
    source = FileSource(tmp_path, batch_rows=10)
    source.schema()
    decoded: list[int] = []
    original = pq.ParquetFile.iter_batches

    def counting(self: Any, *args: Any, **kwargs: Any) -> Iterator[pa.RecordBatch]:
        for batch in original(self, *args, **kwargs):
            decoded.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    [split] = source.discover_splits(1)
    reader = source.open_split(split)
    reader.poll(1, 0.0)
    assert decoded == [10]  # one batch ahead, not the row group
    while not isinstance(reader.poll(1, 0.0), Exhausted):
        pass
    assert decoded == [10] * 10


def test_text_is_read_a_chunk_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"n\n" + b"1234567\n" * 100_000)
    source = FileSource(tmp_path)
    [split] = source.discover_splits(1)
    reader = source.open_split(split)
    with small_chunks(8_000):
        largest = 0
        while isinstance(polled := reader.poll(1 << 20, 0.0), Rows):
            largest = max(largest, polled.data.num_rows)
        assert largest <= 2_000


# ------------------------------------------------------------------------------------ listing


def test_hidden_and_foreign_files_are_not_read(tmp_path: Path) -> None:
    row = [{"n": 1, "s": "x", "f": 0.5}]
    (tmp_path / "deep").mkdir()
    (tmp_path / ".staging").mkdir()
    for name in ("deep/a.parquet", ".b.parquet", "_c.parquet", ".staging/d.parquet", "e.pq"):
        write_parquet(tmp_path / name, row)
    (tmp_path / "README.md").write_text("no data")
    splits = FileSource(tmp_path).discover_splits(1)
    assert [Path(s.spec["file"]).name for s in splits] == ["a.parquet", "e.pq"]
    globbed = FileSource(str(tmp_path / "*.parquet"), schema=SCHEMA, watch=timedelta(seconds=1))
    assert list(globbed.discover_splits(1)) == []
    named = FileSource(tmp_path / "_c.parquet")
    assert read_all(named) == row


def test_files_are_read_in_the_order_of_the_list_and_each_once(tmp_path: Path) -> None:
    for number, name in enumerate(["b", "a", "c"]):
        write_csv(tmp_path / f"{name}.csv", [{"n": number, "s": name, "f": 0.5}])
    places = [tmp_path / "b.csv", str(tmp_path / "*.csv")]
    assert [row["s"] for row in read_all(FileSource(places))] == ["b", "a", "c"]


def test_a_relative_path_means_the_same_file_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path / "a.csv", [{"n": 1, "s": "x", "f": 0.5}])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    source = pickle.dumps(FileSource("a.csv"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(read_all(pickle.loads(source))) == 1


def test_a_bracket_in_a_path_that_exists_is_no_wildcard(tmp_path: Path) -> None:
    write_csv(tmp_path / "a[1].csv", [{"n": 1, "s": "x", "f": 0.5}])
    assert len(read_all(FileSource(tmp_path / "a[1].csv"))) == 1


@pytest.mark.parametrize("place", ["nowhere", "nowhere/*.csv", "*.csv", "."])
def test_nothing_to_read_is_an_error_at_once(tmp_path: Path, place: str) -> None:
    with pytest.raises(SourceUnavailableError, match=r"found none.*Check the path"):
        FileSource(tmp_path / place).schema()


def test_a_watched_place_must_exist_and_an_empty_one_needs_a_schema(tmp_path: Path) -> None:
    watch = timedelta(seconds=1)
    with pytest.raises(SourceUnavailableError, match=r"no.*there is none"):
        FileSource(tmp_path / "no", format="csv", schema=SCHEMA, watch=watch).schema()
    with pytest.raises(ConfigError, match=r"Pass schema="):
        FileSource(tmp_path, format="csv", watch=watch).schema()
    source = FileSource(tmp_path, format="csv", schema=SCHEMA, watch=watch)
    assert source.schema() == SCHEMA
    assert not source.bounded
    assert source.discovery_interval == 1.0


def test_mixed_formats_need_a_choice(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"n": 1, "s": "x", "f": 0.5}])
    write_jsonl(tmp_path / "b.jsonl", [{"n": 2, "s": "y", "f": 0.5}])
    with pytest.raises(ConfigError, match=r"one format.*csv.*jsonl"):
        FileSource(tmp_path).schema()
    assert [row["n"] for row in read_all(FileSource(tmp_path, format="jsonl"))] == [2]


# ------------------------------------------------------------------------------------- schema


def test_pandas_indexes_are_neither_columns_nor_differences(tmp_path: Path) -> None:
    for name, index in (("a", [0, 1]), ("b", [5, 9])):  # b's index is saved as a column
        described = {
            "index_columns": ["__index_level_0__"] if name == "b" else [{"kind": "range"}],
            "columns": [],
        }
        columns = {"n": index} | ({"__index_level_0__": index} if name == "b" else {})
        schema_metadata = {b"pandas": json.dumps(described).encode()}
        frame = pa.table(columns).replace_schema_metadata(schema_metadata)
        pq.write_table(frame, tmp_path / f"{name}.parquet")
    for names in (["a", "b"], ["b", "a"]):
        source = FileSource([tmp_path / f"{name}.parquet" for name in names])
        assert source.schema() == pa.schema([("n", pa.int64())])
        assert source.schema().metadata is None
        assert sorted(row["n"] for row in read_all(source)) == [0, 1, 5, 9]


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (pa.int64(), pa.int32()),
        (pa.int64(), pa.uint16()),
        (pa.float64(), pa.float32()),
        (pa.float64(), pa.int32()),
        (pa.string(), pa.null()),
        (pa.string(), pa.large_string()),
        (pa.string(), pa.dictionary(pa.int8(), pa.string())),
        (pa.timestamp("us"), pa.timestamp("ms")),
        (pa.list_(pa.int64()), pa.list_(pa.int8())),
        (pa.decimal128(12, 3), pa.decimal128(10, 2)),
    ],
)
def test_a_later_file_is_widened_where_nothing_is_lost(
    tmp_path: Path, first: pa.DataType, later: pa.DataType
) -> None:
    for name, kind in (("a", first), ("b", later)):
        values = pa.array([None, None], kind)
        pq.write_table(pa.table({"x": values}), tmp_path / f"{name}.parquet")
    source = FileSource(tmp_path)
    polled = [source.open_split(s).poll(9, 0.0) for s in source.discover_splits(1)]
    kinds = [p.data.schema.field("x").type for p in polled if isinstance(p, Rows)]
    assert kinds == [first, first]


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ({"n": [1]}, "'s'.*found it 0 times"),
        ({"n": ["x"], "s": ["y"]}, "'n' to be int64, got string"),
        ({"n": [1.5], "s": ["y"]}, "'n' to be int64, got double"),
        ({"n": [1], "s": ["y"], "z": [1]}, "'z'.*besides"),
    ],
)
def test_a_changed_parquet_schema_names_file_column_expected_and_got(
    tmp_path: Path, later: dict[str, Any], expected: str
) -> None:
    pq.write_table(pa.table({"n": [1], "s": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table(later), tmp_path / "b.parquet")
    with pytest.raises(SchemaChangedError, match=rf"b.parquet.*{expected}"):
        FileSource(tmp_path).discover_splits(1)
    watched = FileSource(tmp_path, watch=timedelta(seconds=1))
    split = watched.discover_splits(1)[1]
    with pytest.raises(SchemaChangedError, match=rf"b.parquet.*{expected}"):
        watched.open_split(split)


@pytest.mark.parametrize(
    ("fmt", "later", "expected"),
    [
        ("csv", "n\n1\n", "column 's'.*found it 0 times"),
        ("csv", "n,s,z\n1,x,2\n", "'z'.*besides"),
        ("csv", "n,s,s\n1,x,y\n", "'s' 2 times"),
        ("csv", "n,s\n1,x\noops,y\n", "byte 8.*'n' to be int64, got 'oops'"),
        ("jsonl", '{"n":1}\n{"n":"x"}\n', "byte 8.*'n' to be int64, got \"x\""),
        ("jsonl", '{"n":1,"s":"x","z":0}\n', "byte 0.*'z' besides"),
        ("jsonl", '{"n":1.5}\n', "byte 0.*'n' to be int64, got 1.5"),
    ],
)
def test_a_changed_text_schema_names_file_byte_column_expected_and_got(
    tmp_path: Path, fmt: str, later: str, expected: str
) -> None:
    first = {"csv": "n,s\n7,x\n", "jsonl": '{"n":7,"s":"x"}\n'}[fmt]
    (tmp_path / f"a.{fmt}").write_text(first)
    (tmp_path / f"b.{fmt}").write_text(later)
    with pytest.raises(SchemaChangedError, match=rf"b.{fmt}.*{expected}"):
        read_all(FileSource(tmp_path))


@pytest.mark.parametrize("fmt", sorted(WRITERS))
def test_chosen_columns_come_in_the_chosen_order_and_others_may_differ(
    tmp_path: Path, fmt: str
) -> None:
    write_first = {"a": [1], "b": ["x"], "c": [0.5]}
    write_later = {"c": [1.5], "d": ["new"], "a": [2]}
    for name, columns in (("1", write_first), ("2", write_later)):
        path = tmp_path / f"{name}.{fmt}"
        if fmt == "parquet":
            pq.write_table(pa.table(columns), path)
        elif fmt == "csv":
            pa_csv.write_csv(pa.table(columns), path)
        else:
            path.write_text("".join(json.dumps(r) + "\n" for r in pa.table(columns).to_pylist()))
    source = FileSource(tmp_path, columns=["c", "a"])
    assert source.schema().names == ["c", "a"]
    assert [list(r.items()) for r in read_all(source)] == [
        [("c", 0.5), ("a", 1)],
        [("c", 1.5), ("a", 2)],
    ]
    with pytest.raises(ConfigError, match=r"'zz' once.*0 times"):
        FileSource(tmp_path, columns=["zz"]).schema()


def test_a_field_that_json_leaves_out_is_null(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n":1,"s":"x"}\n{"n":2}\n{}\n')
    rows = read_all(FileSource(tmp_path))
    assert rows == [{"n": 1, "s": "x"}, {"n": 2, "s": None}, {"n": None, "s": None}]


def test_types_of_text_are_settled_once_for_the_whole_stream(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,e\n2013-01-01 05:00:00,\n")
    (tmp_path / "b.csv").write_text("e,t\nword,2013-01-01 05:00:00.25\n")
    source = FileSource(tmp_path)
    assert source.schema() == pa.schema([("t", pa.timestamp("us")), ("e", pa.string())])
    last = read_all(source)[-1]
    assert (last["t"].microsecond, last["e"]) == (250_000, "word")


def test_csv_without_a_header_takes_names_from_the_schema_or_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1|x\n2|y\n")
    options = CsvOptions(header=False, delimiter="|")
    assert read_all(FileSource(tmp_path, csv=options))[0] == {"f0": 1, "f1": "x"}
    schema = pa.schema([("n", pa.int32()), ("s", pa.string())])
    assert read_all(FileSource(tmp_path, csv=options, schema=schema, block_size=2))[1] == {
        "n": 2,
        "s": "y",
    }


def test_types_that_a_format_cannot_give_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    with pytest.raises(ConfigError, match=r"column 'x': csv.*list"):
        FileSource(tmp_path, schema=pa.schema([("x", pa.list_(pa.int64()))])).schema()


def test_nulls_are_refused_where_the_schema_rules_them_out(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1, None]}), tmp_path / "a.parquet")
    schema = pa.schema([pa.field("n", pa.int64(), nullable=False)])
    with pytest.raises(SchemaChangedError, match=r"no nulls in column 'n'"):
        read_all(FileSource(tmp_path, schema=schema))


# ------------------------------------------------------------------------------- corrupt input


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'n,s\n1,x\n2,"open\n', "byte 8.*quoted field"),
        (b'n,s\n1,"a\nb"\n2,y\n', "byte 4.*newlines_in_values"),
        (b"n,s\n1,x\n2,y,z\n", "byte 8.*expected 2 fields.*got 3"),
        (b"n,s\n1,x\n2\n", "byte 8.*expected 2 fields.*got 1"),
        (b"n,s\n1,x\n2,\xff\xfe\n", "byte 8.*UTF-8"),
        (b"n,s\n1,x\r2,y\n", "byte 4.*line feed"),
    ],
)
def test_corrupt_csv_names_file_and_byte(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    schema = pa.schema([("n", pa.int64()), ("s", pa.string())])
    with pytest.raises((CorruptInputError, SchemaChangedError), match=rf"(?s)a.csv.*{expected}"):
        read_all(FileSource(tmp_path, schema=schema))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"n":2', "byte 8.*one JSON object"),
        (b"null", "byte 8.*expected a JSON object"),
        (b"[1]", "byte 8.*expected a JSON object"),
        (b"7", "byte 8.*expected a JSON object"),
        (b'{"n":2}{"n":3}', "byte 8.*one JSON object"),
        (b'{"n":2} null', "byte 8.*one JSON object"),
        (b'{"n":2,"n":3}', "byte 8.*each field once"),
        (b'{"s":"\xff"}', "byte 8.*one JSON object"),
    ],
)
@pytest.mark.parametrize("first", [b'{"n":1}\n', b"       \n"])
def test_corrupt_json_names_file_and_byte(
    tmp_path: Path, first: bytes, line: bytes, expected: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(first + line + b"\n")
    schema = pa.schema([("n", pa.int64()), ("s", pa.string())])
    with pytest.raises(CorruptInputError, match=rf"a.jsonl.*{expected}"):
        read_all(FileSource(tmp_path, schema=schema))


def test_corrupt_text_is_found_while_its_types_are_settled_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n":1}\n{"n":\n')
    with pytest.raises(CorruptInputError, match=r"a.jsonl @ byte 8"):
        FileSource(tmp_path).schema()
    (tmp_path / "b.csv").write_text("n,s\n1,x\n2\n")
    with pytest.raises(CorruptInputError, match=r"b.csv @ byte 8"):
        FileSource(tmp_path / "b.csv").schema()


@pytest.mark.parametrize("kept", [0, 3, 100, -4])
def test_a_parquet_file_that_is_not_whole_is_named(tmp_path: Path, kept: int) -> None:
    write_parquet(tmp_path / "a.parquet", [{"n": i, "s": "x", "f": 0.5} for i in range(50)])
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:kept])
    with pytest.raises(CorruptInputError, match=r"b.parquet @ footer.*rename"):
        FileSource(tmp_path).discover_splits(1)


def test_a_damaged_parquet_page_is_named_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"s": [f"value {i}" for i in range(4000)]})
    pq.write_table(table, path, row_group_size=2000, use_dictionary=False, write_page_checksum=True)
    second = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    middle = second.data_page_offset + second.total_compressed_size // 2
    content[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(content)
    source = FileSource(tmp_path)
    first, damaged = source.discover_splits(1)
    assert len(read_split(source, first)) == 2000
    with pytest.raises(CorruptInputError, match=r"a.parquet @ row 2000"):
        read_split(source, damaged)


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)]
)
def test_a_compressed_file_that_ends_in_the_middle_is_named(
    tmp_path: Path, suffix: str, compress: Any
) -> None:
    whole = compress("".join(f'{{"n":{i * 7919 % 10007}}}\n' for i in range(5000)).encode())
    (tmp_path / f"a.jsonl{suffix}").write_bytes(whole[:-20])
    schema = pa.schema([("n", pa.int64())])
    with pytest.raises(CorruptInputError, match=rf"a.jsonl{suffix} @ byte .*decompress"):
        read_all(FileSource(tmp_path, schema=schema))


@pytest.mark.parametrize("fmt", sorted(WRITERS))
def test_a_file_that_grew_since_it_was_found_is_refused_not_half_read(
    tmp_path: Path, fmt: str
) -> None:
    rows = [{"n": i, "s": "x", "f": 0.5} for i in range(5)]
    path = tmp_path / f"a.{fmt}"
    WRITERS[fmt](path, rows)
    source = FileSource(tmp_path, schema=SCHEMA)
    splits = source.discover_splits(1)
    WRITERS[fmt](path, rows * 20)
    with pytest.raises(CorruptInputError, match=r"has changed since.*accept_changed_files"):
        source.open_split(splits[0])
    with pytest.raises(CorruptInputError, match=r"has changed since"):
        source.discover_splits(1)


def test_a_job_can_be_resumed_in_a_file_that_was_mended(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("n\n1\n2\noops\n4\n")
    schema = pa.schema([("n", pa.int64())])
    source = FileSource(tmp_path, schema=schema)
    with small_chunks(4):
        [split] = source.discover_splits(1)
        reader = source.open_split(split)
        polled = reader.poll(2, 0.0)
        assert isinstance(polled, Rows)
        with pytest.raises(SchemaChangedError, match=r"byte 6"):
            reader.poll(2, 0.0)
        position = reader.position()
        path.write_text("n\n1\n2\n3\n4\n")
        again = FileSource(tmp_path, schema=schema, accept_changed_files=True).open_split(split)
        again.seek(position)
        rest = []
        while isinstance(polled := again.poll(10, 0.0), Rows):
            rest += polled.data.column("n").to_pylist()
    assert rest == [3, 4][-len(rest) :]
    assert position == {"byte": 6}
    assert rest == [3, 4]


def test_a_file_that_is_gone_says_so(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"n": 1, "s": "x", "f": 0.5}])
    source = FileSource(tmp_path)
    [split] = source.discover_splits(1)
    (tmp_path / "a.csv").unlink()
    with pytest.raises(SourceUnavailableError, match=r"a.csv is not there.*put it back"):
        source.open_split(split)


# ------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"path": []}, "empty list"),
        ({"path": ""}, "empty one"),
        ({"path": "x", "format": "xml"}, "format must be one of.*'xml'"),
        ({"path": "x", "watch": timedelta(0)}, "watch must be longer"),
        ({"path": "x", "batch_rows": 0}, "batch_rows must be at least 1, got 0"),
        ({"path": "x", "block_size": -1}, "block_size must be at least 1, got -1"),
        ({"path": "x", "columns": []}, "columns must name a column"),
        ({"path": ["a.csv", "b.parquet"]}, "one format"),
    ],
)
def test_wrong_settings_are_refused_on_construction(
    arguments: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        FileSource(**arguments)


@pytest.mark.parametrize("options", [{"delimiter": ""}, {"quote_char": "''"}, {"delimiter": '"'}])
def test_wrong_csv_options_are_refused_on_construction(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"CsvOptions"):
        CsvOptions(**options)  # type: ignore[arg-type]


def test_a_protocol_nobody_speaks_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"nosuch"):
        FileSource("nosuch://bucket/a.csv").schema()


def test_secrets_are_not_printed() -> None:
    source = FileSource("s3://b/a.csv", storage_options={"secret": "hunter2"})
    assert "hunter2" not in repr(source)
    assert "'secret': ***" in repr(source)
