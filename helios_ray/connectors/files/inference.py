"""What the columns of text files are, before any row of them is read for good.

Why it exists: CSV and JSON Lines carry no types, and a stream needs them before it starts.
What it promises: types come from the first :data:`SAMPLE` bytes of the first file that has
rows, once; or from ``schema=``, which always wins. A column with nothing but nulls in the
sample is text; timestamps are read to the microsecond, the clock of event time.

May import: errors, and the rest of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from helios_ray.connectors.files.delimited import CsvLines, CsvOptions, read_header
from helios_ray.connectors.files.json_lines import JsonLines
from helios_ray.connectors.files.lines import ByteStream, LineFormat
from helios_ray.errors import ConfigError, CorruptInputError

SAMPLE = 4 << 20
"""Bytes looked at to settle the types of a text file."""


def settled(kind: Any) -> Any:
    """The type a column gets whose sample looked like ``kind``."""
    types = pa.types
    if types.is_null(kind):
        return pa.string()
    if types.is_timestamp(kind) and kind.unit in ("s", "ms"):
        return pa.timestamp("us", kind.tz)
    if types.is_list(kind):
        return pa.list_(settled(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, settled(field.type)) for field in kind])
    return kind


def csv_schema(
    name: str,
    storage_options: Mapping[str, Any] | None,
    options: CsvOptions,
) -> pa.Schema:
    """Columns and types of a CSV file.

    Raises:
        CorruptInputError: the start of the file is not CSV.
    """
    stream = ByteStream(name, storage_options)
    try:
        names, start = read_header(stream, name, options, None)
        lines = CsvLines(names, None, options)
        data = _sample(stream, start, lines)
        if not data.strip():
            return pa.schema([pa.field(column, pa.string()) for column in names])
        try:
            found = lines.parse(data).schema
        except (pa.ArrowInvalid, ValueError) as error:
            raise _blamed(lines, data, name, start) from error
    finally:
        stream.close()
    return pa.schema([pa.field(field.name, settled(field.type)) for field in found])


def json_schema(name: str, storage_options: Mapping[str, Any] | None) -> pa.Schema:
    """Fields and types of a JSON Lines file.

    Raises:
        CorruptInputError: the start of the file is not JSON Lines.
    """
    stream = ByteStream(name, storage_options)
    try:
        start = json_start(stream)
        lines = JsonLines(None, extras_allowed=True)
        data = _sample(stream, start, lines)
        written = [line for line in data.split(b"\n") if not lines.is_blank(line)]
        try:
            found = lines.rows(b"\n".join([*written, b""])).schema
        except (pa.ArrowInvalid, ValueError) as error:
            raise _blamed(lines, data, name, start) from error
    finally:
        stream.close()
    return pa.schema([pa.field(field.name, settled(field.type)) for field in found])


def json_start(stream: ByteStream) -> int:
    """The first byte after a byte order mark."""
    return 3 if stream.read(0, 3) == b"\xef\xbb\xbf" else 0


def _sample(stream: ByteStream, start: int, lines: LineFormat) -> bytes:
    data = stream.read(start, SAMPLE)
    if len(data) < SAMPLE:
        return data
    ends = lines.record_ends(data)
    return data[: int(ends[-1]) + 1] if len(ends) else data


def _blamed(lines: LineFormat, data: bytes, name: str, start: int) -> Exception:
    """The error of the first record that does not decode by itself."""
    at = 0
    for end in [*(int(end) + 1 for end in lines.record_ends(data)), len(data)]:
        record = data[at:end]
        if record and not lines.is_blank(record):
            try:
                lines.rows(record)
            except (pa.ArrowInvalid, ValueError):
                return lines.blame(record, f"{name} @ byte {start + at}")
        at = end
    return CorruptInputError(
        f"{name}: cannot settle on a type for each column from the first {len(data)} bytes: the "
        f"same field is of different types in different lines. Pass schema=."
    )


def check_supported(schema: pa.Schema, fmt: str, options: CsvOptions) -> None:
    """Refuse types that the format's reader cannot give.

    Raises:
        ConfigError: names the column and its type.
    """
    for field in schema:
        lines: LineFormat
        one = pa.schema([pa.field(field.name, field.type)])
        if fmt == "csv":
            lines, empty = CsvLines([field.name], one, options), b'""\n'
        else:
            lines, empty = JsonLines(one, extras_allowed=False), b"{}\n"
        try:
            lines.rows(empty)
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError, NotImplementedError) as error:
            raise ConfigError(
                f"column {field.name!r}: {fmt} files cannot be read as {field.type}: {error}. "
                f"Declare it as a string in schema= and convert it in the job, or use Parquet."
            ) from error
        except pa.ArrowInvalid:
            continue  # the type is known; only this empty value is not one of it
