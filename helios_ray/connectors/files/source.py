"""The file source: Parquet, CSV and JSON Lines, local or remote, bounded or watched.

Why it exists: files are where most streams are replayed from and where a first job starts.
What it promises: every row of every file is read once, in order within its split; positions
are exact; one schema holds for all files, known before the job starts.

May import: elements, errors, connectors.base, and the rest of this package.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

import pyarrow as pa

from helios_ray.connectors.base import Source, Split, SplitReader
from helios_ray.connectors.files import lines, parquet
from helios_ray.connectors.files.delimited import CsvLines, CsvOptions, read_header
from helios_ray.connectors.files.inference import (
    check_supported,
    csv_schema,
    json_schema,
    json_start,
)
from helios_ray.connectors.files.json_lines import JsonLines
from helios_ray.connectors.files.locations import (
    SUFFIXES,
    FileInfo,
    absolute,
    filesystem,
    format_of,
    list_files,
    masked,
    protocol,
    stat,
    unavailable,
)
from helios_ray.connectors.files.schemas import check_file, select
from helios_ray.errors import ConfigError, CorruptInputError, SourceUnavailableError

Place: TypeAlias = str | os.PathLike[str]


class FileSource(Source):
    """Rows of Parquet, CSV or JSON Lines files.

    A directory stands for all files of the format in it, at any depth; a glob for what it
    matches. **Files must appear whole and never change**: write a file under a name that
    starts with ``.`` or ``_`` (such names are never listed), then rename it, or upload it,
    which is atomic on S3. A file whose size is not what it was when the job found it fails
    the job instead of being half-read. (:class:`FileSink` publishes files just so.)

    Parquet is split by row group, text by byte range; files compressed as a whole
    (``.gz``, ``.zst``) and files of a watched directory are one split each.

    Args:
        path: a path, directory, glob or fsspec URL (``s3://bucket/dir/*.parquet``), or a list
            of them, read in that order.
        format: ``"parquet"``, ``"csv"`` or ``"jsonl"``; from the suffix if None.
        schema: columns to read and their Arrow types; other columns are passed over. If None,
            that of the first file: the footer for Parquet, the first 4 MiB for text.
        columns: names of the columns to read, in this order; all if None.
        watch: look for new files this often, for ever. None: read what is there and end.
        batch_rows: most Parquet rows to decode at once.
        block_size: bytes of one split of a text file.
        storage_options: for fsspec (``key``, ``secret``, ``endpoint_url``, …); never printed.
        csv: how CSV files are written.
        accept_changed_files: read on in files that were changed since the job found them, as
            after mending a line in place. Rows before the position count as read.

    Raises:
        ConfigError: an argument is wrong; or, from ``schema()``, the types cannot be read.
        SourceUnavailableError: from ``schema()``: there is nothing to read at that place.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "bids.csv").write_text("auction,price\\n1,250\\n2,300\\n")
        >>> source = FileSource(folder)
        >>> source.schema().names
        ['auction', 'price']
        >>> [split] = source.discover_splits(parallelism=1)
        >>> source.open_split(split).poll(10, now=0.0).data.to_pydict()
        {'auction': [1, 2], 'price': [250, 300]}
    """

    def __init__(
        self,
        path: Place | Sequence[Place],
        *,
        format: str | None = None,
        schema: pa.Schema | None = None,
        columns: Sequence[str] | None = None,
        watch: timedelta | None = None,
        batch_rows: int = 32_768,
        block_size: int = 16 << 20,
        storage_options: Mapping[str, Any] | None = None,
        csv: CsvOptions | None = None,
        accept_changed_files: bool = False,
    ) -> None:
        places = [path] if isinstance(path, str | os.PathLike) else list(path)
        if not places:
            raise ConfigError("FileSource needs a path, got an empty list. Name what to read.")
        if format is not None and format not in SUFFIXES:
            raise ConfigError(
                f"FileSource.format must be one of {sorted(SUFFIXES)}, got {format!r}. Leave it "
                f"out to go by the suffix."
            )
        if watch is not None and watch <= timedelta(0):
            raise ConfigError(
                f"FileSource.watch must be longer than zero, got {watch}. Use None to read what "
                f"is there and end, or timedelta(seconds=10)."
            )
        for name, value in (("batch_rows", batch_rows), ("block_size", block_size)):
            if value < 1:
                raise ConfigError(
                    f"FileSource.{name} must be at least 1, got {value}. Leave it out."
                )
        for name, given in (("columns", columns), ("schema", schema)):
            if given is not None and len(given) == 0:
                raise ConfigError(f"FileSource.{name} must name a column, got none. Leave it out.")
        self._places = [absolute(place) for place in places]
        self._format = format or _agreed(self._places)
        self._declared = None if schema is None else schema.remove_metadata()
        self._columns = None if columns is None else list(columns)
        self._watch = watch
        self._batch_rows = batch_rows
        self._block_size = block_size
        self._options = dict(storage_options or {})
        self._csv = csv or CsvOptions()
        self._accept_changed = accept_changed_files
        self._schema: pa.Schema | None = None
        self._seen: dict[str, FileInfo] = {}
        self.discovery_interval = None if watch is None else watch.total_seconds()

    @property
    def bounded(self) -> bool:
        return self._watch is None

    def schema(self) -> pa.Schema:
        if self._schema is None:
            files = self._list()
            if not files:
                self._check_watchable()
            found, where = self._declared, "schema="
            if found is None:
                # A footer tells the columns even of a file without rows; empty text is mute.
                told = [f.name for f in files if f.size or self._format == "parquet"]
                if not told:
                    raise self._nothing()
                where = told[0]
                found = self._schema_of(where, self._known_format())
            fmt = self._known_format()
            chosen = select(found, self._columns, where)
            if fmt != "parquet":
                check_supported(chosen, fmt, self._csv)
            self._schema = chosen
        return self._schema

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        schema, fmt = self.schema(), self._known_format()
        splits: list[Split] = []
        for info in self._list():
            if self._watch is not None:
                whole = parquet if fmt == "parquet" else lines
                splits.append(whole.whole_file_split(info))
            elif fmt == "parquet":
                splits.extend(
                    parquet.parquet_splits(
                        info, schema, self._options, extras_allowed=self._extras_allowed
                    )
                )
            elif format_of(info.name)[1] is not None or (
                fmt == "csv" and self._csv.newlines_in_values
            ):
                splits.append(lines.whole_file_split(info))
            else:
                splits.extend(lines.line_splits(info, self._block_size))
        return splits

    def open_split(self, split: Split) -> SplitReader:
        schema, fmt = self.schema(), self._known_format()
        name = str(split.spec["file"])
        if not self._accept_changed:
            found = FileInfo(name, int(split.spec["size"]), str(split.spec["version"]))
            _check_unchanged(found, stat(name, self._options))
        if fmt == "parquet":
            return parquet.ParquetReader(
                split,
                schema,
                self._options,
                batch_rows=self._batch_rows,
                extras_allowed=self._extras_allowed,
            )
        stream = lines.ByteStream(name, self._options)
        try:
            return self._open_lines(split, stream, name, schema, fmt)
        except BaseException:
            stream.close()
            raise

    def _open_lines(
        self, split: Split, stream: lines.ByteStream, name: str, schema: pa.Schema, fmt: str
    ) -> SplitReader:
        decoder: lines.LineFormat
        if fmt == "csv":
            declared = None if self._declared is None else self._declared.names
            columns, start = read_header(stream, name, self._csv, declared)
            if columns:
                kinds = {field.name: field.type for field in schema}
                held = pa.schema([pa.field(c, kinds.get(c, pa.string())) for c in columns])
                check_file(held, schema, name, extras_allowed=self._extras_allowed)
            decoder = CsvLines(columns, schema, self._csv)
        else:
            start = json_start(stream)
            decoder = JsonLines(schema, extras_allowed=self._extras_allowed)
        return lines.LineReader(split, stream, decoder, data_start=start, schema=schema)

    @property
    def _extras_allowed(self) -> bool:
        return self._declared is not None or self._columns is not None

    def _schema_of(self, name: str, fmt: str) -> pa.Schema:
        if fmt == "parquet":
            return parquet.parquet_schema(name, self._options)
        if fmt == "csv":
            return csv_schema(name, self._options, self._csv)
        return json_schema(name, self._options)

    def _list(self) -> list[FileInfo]:
        """What is there now; fixes the format where no suffix gave it away before."""
        files = list_files(self._places, self._options, self._format)
        if self._format is None and files:
            self._format = _agreed([info.name for info in files])
        if not files and self._watch is None:
            raise self._nothing()
        listed = {info.name: info for info in files}
        if not self._accept_changed:
            for name in listed.keys() & self._seen.keys():
                _check_unchanged(self._seen[name], listed[name])
        self._seen = listed
        return files

    def _known_format(self) -> str:
        if self._format is None:
            raise ConfigError(
                f"cannot tell the format of {', '.join(self._places)} by suffix. Pass format= "
                f"(one of {sorted(SUFFIXES)})."
            )
        return self._format

    def _check_watchable(self) -> None:
        """A watched place may be empty, but there must be one."""
        for place in self._places:
            with unavailable(place):
                fs, path = filesystem(place, self._options)
                fixed = path.split("*")[0].rpartition("/")[0] if "*" in path else path
                root = fixed if protocol(place) == "file" else fixed.split("/")[0]
                if not fs.exists(root):
                    raise SourceUnavailableError(
                        f"expected a directory or bucket to watch at {root}, there is none. Make "
                        f"it, or correct the path {place}."
                    )

    def _nothing(self) -> Exception:
        places = ", ".join(self._places)
        if self._watch is not None:
            return ConfigError(
                f"{places} holds no file with rows yet, so its columns cannot be known. Pass "
                f"schema= to watch a place that starts empty."
            )
        return SourceUnavailableError(
            f"expected files with rows at {places}, found none"
            f"{'' if self._format is None else f' of format {self._format}'} (names that start "
            f"with '.' or '_' do not count, nor do empty ones). Check the path, put files there, "
            f"pass schema= if there may be no rows, or watch= and schema= to wait for them."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": {}}

    def __repr__(self) -> str:
        return (
            f"FileSource({self._places!r}, format={self._format!r}, watch={self._watch!r}, "
            f"storage_options={masked(self._options)})"
        )


def _agreed(names: Sequence[str]) -> str | None:
    """The one format that the suffixes tell, or None if none of them tells any."""
    formats = {fmt for fmt in (format_of(name)[0] for name in names) if fmt is not None}
    if len(formats) > 1:
        raise ConfigError(
            f"expected files of one format, found {sorted(formats)} in {', '.join(names[:3])}. "
            f"Pass format= to read one of them from a directory, or use a source for each."
        )
    return next(iter(formats), None)


def _check_unchanged(known: FileInfo, now: FileInfo) -> None:
    if (known.size, known.version) != (now.size, now.version):
        raise CorruptInputError(
            f"{now.name} has changed since the job found it: expected {known.size} bytes"
            f"{f' (ETag {known.version})' if known.version else ''}, got {now.size}"
            f"{f' (ETag {now.version})' if now.version else ''}. Files must appear whole and never "
            f"change: write under a name that starts with '.', then rename. To read on in a file "
            f"that was mended in place, pass accept_changed_files=True."
        )
