"""CSV: how a delimited line becomes a row.

Why it exists: CSV says nothing about types and little about quotes. What it promises: types
are settled once, from the schema or from the start of the first file, and hold for the whole
stream; the columns of every file are matched by name, in whatever order; a field that does
not fit names the file, the byte, the column, what was expected and what came.

May import: errors, and the rest of this package.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from helios_ray.connectors.files.lines import ByteStream, LineFormat, Offsets
from helios_ray.errors import ConfigError, CorruptInputError, DataError, SchemaChangedError

_BOM = b"\xef\xbb\xbf"
_HEADER_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvOptions:
    """How CSV files are written.

    Args:
        delimiter: one character between fields.
        quote_char: one character around fields that hold a delimiter or a quote; a quote
            within is doubled.
        header: the first line names the columns. Without it they are those of ``schema=``,
            in order, or ``f0``, ``f1``, … .
        newlines_in_values: quoted fields may hold line ends. A file is then one split,
            because a line end in the middle of a file no longer tells where a row begins.
        null_values: spellings of null in columns that are not strings.
        strings_can_be_null: apply ``null_values`` to strings too.

    Raises:
        ConfigError: a character is not a single one, or the two are the same.

    Example:
        >>> CsvOptions(delimiter="\\t").delimiter
        '\\t'
    """

    delimiter: str = ","
    quote_char: str = '"'
    header: bool = True
    newlines_in_values: bool = False
    null_values: tuple[str, ...] = ("", "NA", "N/A", "NULL", "null", "NaN", "nan", "n/a")
    strings_can_be_null: bool = False

    def __post_init__(self) -> None:
        for name in ("delimiter", "quote_char"):
            value = getattr(self, name)
            if len(value) != 1 or not value.isascii() or value in "\r\n":
                raise ConfigError(
                    f"CsvOptions.{name} must be one ASCII character, no line end, got {value!r}. "
                    f"Use ',' or '\\t' or ';' for delimiter, '\"' for quote_char."
                )
        if self.delimiter == self.quote_char:
            raise ConfigError(
                f"CsvOptions.delimiter and quote_char must differ, both are {self.delimiter!r}."
            )


class CsvLines(LineFormat):
    """Decodes the records of one CSV file.

    Args:
        names: the file's columns in the file's order.
        schema: the columns to read and their types, or None to infer them.
    """

    def __init__(self, names: list[str], schema: pa.Schema | None, options: CsvOptions) -> None:
        self._names = names
        self._options = options
        self._parse = pa_csv.ParseOptions(
            delimiter=options.delimiter,
            quote_char=options.quote_char,
            newlines_in_values=options.newlines_in_values,
        )
        self._schema = schema
        self._convert = self._conversion(schema)

    def _conversion(self, schema: pa.Schema | None) -> pa_csv.ConvertOptions:
        options = self._options
        return pa_csv.ConvertOptions(
            column_types=schema,
            include_columns=self._names if schema is None else schema.names,
            null_values=list(options.null_values),
            strings_can_be_null=options.strings_can_be_null,
        )

    def record_ends(self, data: bytes) -> Offsets:
        ends = super().record_ends(data)
        if self._options.newlines_in_values:
            quotes = np.flatnonzero(np.frombuffer(data, np.uint8) == ord(self._options.quote_char))
            # A line end after an odd number of quotes stands inside a field.
            ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
        return ends

    def rows(self, data: bytes) -> pa.RecordBatch:
        self._check_quotes(data)
        return self.parse(data)

    def parse(self, data: bytes, convert: pa_csv.ConvertOptions | None = None) -> pa.RecordBatch:
        """Decode records, without a look at their quotes and line ends."""
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(
                use_threads=False, column_names=self._names, block_size=len(data) + 1
            ),
            parse_options=self._parse,
            convert_options=convert or self._convert,
        )
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)

    def _check_quotes(self, data: bytes) -> None:
        """Refuse what would make rows and lines part company without differing in number.

        A field that is still open at the end: Arrow takes the rest for its value. A quote opens
        a field only at its beginning. Looking at the last line is enough: one left open earlier
        swallows line ends, and then rows are fewer than lines. A carriage return alone: it ends
        a row and no line, and could make up for that.
        """
        quote, delimiter = self._options.quote_char.encode(), self._options.delimiter.encode()
        lone = data.count(b"\r") != data.count(b"\r\n")
        if lone and len(data) > 1 and len(self.record_ends(data[:-1])):
            raise ValueError("a carriage return alone")  # to be looked at one by one
        if self._options.newlines_in_values:
            octets = np.frombuffer(data, np.uint8)
            opening = np.flatnonzero(octets == quote[0])[::2]
            before = octets[opening[opening > 0] - 1]
            if data.count(quote) % 2 or not np.isin(before, [*quote, *delimiter, 10, 13]).all():
                raise ValueError("a quote is left open, or stands within a bare field")
            return
        line = data[data.rfind(b"\n", 0, len(data) - 1) + 1 :]
        if quote not in line:
            return
        at = 0
        while at >= 0:
            if line.startswith(quote, at):
                at = line.find(quote, at + 1)
                while at >= 0 and line.startswith(quote * 2, at):
                    at = line.find(quote, at + 2)
                if at < 0:
                    raise ValueError("a quote is left open")
            at = line.find(delimiter, at)
            at = at + 1 if at >= 0 else -1

    def blame(self, record: bytes, where: str) -> DataError:
        shown = record[:120].decode("utf-8", "replace").rstrip("\r\n")
        try:
            self._check_quotes(record)
        except ValueError:
            return CorruptInputError(
                f"{where}: expected every quoted field to end on its line, got {shown!r}. If "
                f"fields hold line ends, pass csv=CsvOptions(newlines_in_values=True); otherwise "
                f"mend the file."
            )
        fields = split_fields(record, self._options)
        if len(fields) != len(self._names):
            return CorruptInputError(
                f"{where}: expected {len(self._names)} fields ({', '.join(self._names)}), got "
                f"{len(fields)}: {shown!r}. Mend the line, or set the delimiter in "
                f"csv=CsvOptions(delimiter=...)."
            )
        for field in self._schema or ():
            try:
                self.parse(record, self._conversion(pa.schema([field])))
            except pa.ArrowInvalid as error:
                value = fields[self._names.index(field.name)]
                if "invalid UTF8" in str(error):
                    break
                return SchemaChangedError(
                    f"{where}: expected column {field.name!r} to be {field.type}, got {value!r}. "
                    f"Mend the line, or pass schema= with a type that holds it"
                    f" (types are taken from the start of the first file otherwise)."
                )
        return CorruptInputError(
            f"{where}: expected one line of UTF-8 text ending in a line feed, got {shown!r}. "
            f"Convert the file."
        )


def split_fields(record: bytes, options: CsvOptions) -> list[str]:
    """The fields of one record, as text."""
    text = record.decode("utf-8", "replace").rstrip("\r\n")
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=options.delimiter, quotechar=options.quote_char
    )
    return next(reader, [])


def read_header(
    stream: ByteStream, name: str, options: CsvOptions, declared: list[str] | None
) -> tuple[list[str], int]:
    """The columns of a file, and the byte at which its rows begin.

    Args:
        declared: names of the columns, for files without a header.

    Raises:
        CorruptInputError: the first line is no header.
        SchemaChangedError: a name stands for two columns.
    """
    data = stream.read(0, _HEADER_LIMIT)
    start = len(_BOM) if data.startswith(_BOM) else 0
    while data[start : start + 1] in (b"\n", b"\r") and start < len(data):
        start += 1
    rest = data[start:]
    ends = CsvLines([], pa.schema([]), options).record_ends(rest) if rest else []
    if len(ends) == 0 and len(data) == _HEADER_LIMIT:
        raise CorruptInputError(
            f"{name} @ byte {start}: expected a first line within {_HEADER_LIMIT >> 20} MiB, found "
            f"no line end. Check that the file is CSV."
        )
    first = rest[: ends[0] + 1] if len(ends) else rest
    fields = split_fields(first, options)
    if not options.header:
        names = declared if declared is not None else [f"f{i}" for i in range(len(fields))]
        return names, start
    for field in fields:
        if fields.count(field) > 1:
            raise SchemaChangedError(
                f"{name} @ byte {start}: expected every column once, got {field!r} "
                f"{fields.count(field)} times. Rename the columns, or pass "
                f"csv=CsvOptions(header=False) if the first line holds data."
            )
    return fields, start + len(first)
