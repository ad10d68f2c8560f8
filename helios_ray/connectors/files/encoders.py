"""Rows into the bytes of a file that is still open.

Why it exists: a checkpoint may hold any number of rows, so rows go into the file as they
come. What it promises: at most one row group is held in memory, and it is copied out of the
batches it came in, so that no large buffer is kept alive by a few of its rows.

May import: errors, and the rest of this package.
"""

from __future__ import annotations

import gzip
import io
from abc import ABC, abstractmethod
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from helios_ray.connectors.files.json_encode import encode
from helios_ray.errors import ConfigError

ROW_GROUP_ROWS = 131_072
ROW_GROUP_BYTES = 32 << 20
_SMALL_BATCHES = 64

COMPRESSIONS = {
    "parquet": (None, "zstd", "snappy", "gzip", "lz4", "brotli"),
    "jsonl": (None, "zstd", "gzip"),
}
"""What each format can be compressed with."""

_SUFFIXES = {None: "", "zstd": ".zst", "gzip": ".gz"}


def suffix(fmt: str, compression: str | None) -> str:
    """How the names of such files end.

    Example:
        >>> suffix("parquet", "zstd"), suffix("jsonl", "zstd")
        ('.parquet', '.jsonl.zst')
    """
    return ".parquet" if fmt == "parquet" else ".jsonl" + _SUFFIXES[compression]


class Outlet(io.RawIOBase):
    """Passes bytes on to a file, until it is shut: from then on they go nowhere.

    Arrow's writer ends its file when it is thrown away, and that must not reach a file which
    has been discarded.
    """

    def __init__(self, out: Any) -> None:
        super().__init__()
        self._out: Any = out
        self._count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self._out is not None:
            self._out.write(data)
        self._count += size
        return size

    def tell(self) -> int:
        return self._count

    def shut(self) -> None:
        """Let nothing through any more."""
        self._out = None


class Encoder(ABC):
    """Writes rows to a file and never closes it."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Take rows, all of one schema."""

    @abstractmethod
    def close(self) -> None:
        """Write what is held back, and the end of the file."""

    @abstractmethod
    def discard(self) -> None:
        """Write nothing any more."""


def make_encoder(fmt: str, compression: str | None, out: Any, schema: pa.Schema) -> Encoder:
    """The encoder of a format for one file."""
    if fmt == "parquet":
        return ParquetEncoder(Outlet(out), schema, compression)
    return JsonLinesEncoder(Outlet(out), compression)


class ParquetEncoder(Encoder):
    """Collects rows into row groups of useful size, whatever the size of the batches."""

    def __init__(self, out: Outlet, schema: pa.Schema, compression: str | None) -> None:
        self._out = out
        self._schema = schema
        self._writer = pq.ParquetWriter(
            out, schema, compression=compression or "none", write_page_checksum=True
        )
        self._held: list[pa.RecordBatch] = []
        self._small: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        start = 0
        while start < batch.num_rows:
            piece = batch.slice(start, ROW_GROUP_ROWS - self._rows)
            start += piece.num_rows
            self._small.append(piece)
            self._rows += piece.num_rows
            self._bytes += piece.nbytes
            if len(self._small) >= _SMALL_BATCHES:
                self._compact()
            if self._rows >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
                self._write_group()

    def _compact(self) -> None:
        self._held.append(pa.concat_batches(self._small))
        self._small = []

    def _write_group(self) -> None:
        table = pa.Table.from_batches([*self._held, *self._small], schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._held, self._small, self._rows, self._bytes = [], [], 0, 0

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._writer.close()

    def discard(self) -> None:
        self._out.shut()
        self._held, self._small = [], []
        self._writer.close()


class JsonLinesEncoder(Encoder):
    """Writes lines as they come, through a compressor if there is one."""

    def __init__(self, out: Outlet, compression: str | None) -> None:
        self._out = out
        self._compressor: Any = None
        if compression == "zstd":
            compressor = zstandard.ZstdCompressor(level=3)
            self._compressor = compressor.stream_writer(cast(IO[bytes], out), closefd=False)
        elif compression == "gzip":
            # Without a time stamp, so that the same rows are the same bytes.
            self._compressor = gzip.GzipFile(fileobj=out, mode="wb", mtime=0)

    def write(self, batch: pa.RecordBatch) -> None:
        (self._compressor or self._out).write(encode(batch))

    def close(self) -> None:
        if self._compressor is not None:
            self._compressor.close()

    def discard(self) -> None:
        self._out.shut()
        self.close()


def check_encodable(fmt: str, schema: pa.Schema) -> None:
    """Refuse columns that files of a format cannot hold.

    Raises:
        ConfigError: a name stands for two columns, or a type has no place in Parquet.
    """
    for field in schema:
        if len(schema.get_all_field_indices(field.name)) > 1:
            raise ConfigError(
                f"FileSink: expected every column once, got {field.name!r} several times in "
                f"{schema.names}. Rename one before the sink."
            )
        if fmt == "parquet":
            out = pa.BufferOutputStream()
            try:
                pq.ParquetWriter(out, pa.schema([field])).close()
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
                raise ConfigError(
                    f"FileSink: Parquet cannot hold column {field.name!r} of type {field.type}: "
                    f"{error}. Convert it before the sink, or use format='jsonl'."
                ) from error
