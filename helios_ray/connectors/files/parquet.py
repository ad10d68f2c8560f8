"""Reading Parquet: one split per row group, rows streamed within it.

Why it exists: a row group is the unit that Parquet can be read by without reading what comes
before. What it promises: memory is bounded by one batch of decoded rows and, on remote
stores, one row group of compressed bytes; a position is (row group, rows consumed in it), so
it is exact whatever the batch sizes were; a file that is not whole says so, and so does a
damaged page where its writer left checksums (:class:`FileSink` does).

May import: elements, errors, connectors.base, and the rest of this package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from helios_ray.connectors.base import Exhausted, Json, Poll, Rows, Split, SplitReader
from helios_ray.connectors.files.locations import FileInfo, open_binary, protocol
from helios_ray.connectors.files.schemas import check_file, conform, plain
from helios_ray.elements import Origin
from helios_ray.errors import CorruptInputError, SourceUnavailableError

_READ_AHEAD = 4 << 20
_COLUMN_BUFFER = 1 << 20


@contextmanager
def decoding(name: str, where: str) -> Iterator[None]:
    """Tell a file that cannot be decoded from one that cannot be reached."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, EOFError) as error:
        raise _corrupt(name, where, error) from error
    except OSError as error:
        # Arrow reports bad bytes as an OSError too, but without an errno.
        if error.errno is None:
            raise _corrupt(name, where, error) from error
        raise SourceUnavailableError(
            f"{name} @ {where} cannot be read: {error}. The job can be resumed when it can."
        ) from error


def _corrupt(name: str, where: str, error: Exception) -> CorruptInputError:
    return CorruptInputError(
        f"{name} @ {where}: expected Parquet, could not decode it: {error}. Replace the file, or "
        f"take it away. If it is still being written: write under a name that starts with '.' or "
        f"'_' and rename when it is whole."
    )


def open_parquet(name: str, storage_options: Mapping[str, Any] | None) -> pq.ParquetFile:
    """Open a file and read its footer.

    Raises:
        SourceUnavailableError: it is not there.
        CorruptInputError: it is not Parquet, or not whole.
    """
    handle = open_binary(name, storage_options, _READ_AHEAD)
    try:
        with decoding(name, "footer"):
            if protocol(name) == "file":
                # Bounded memory: column chunks are read piece by piece.
                return pq.ParquetFile(
                    handle,
                    pre_buffer=False,
                    buffer_size=_COLUMN_BUFFER,
                    page_checksum_verification=True,
                )
            # One round trip per row group instead of one per column and page.
            return pq.ParquetFile(handle, pre_buffer=True, page_checksum_verification=True)
    except BaseException:
        handle.close()
        raise


def parquet_schema(name: str, storage_options: Mapping[str, Any] | None) -> pa.Schema:
    """Columns and types of one file, as a stream has them."""
    with open_parquet(name, storage_options) as file:
        return plain(file.schema_arrow)


def parquet_splits(
    info: FileInfo,
    schema: pa.Schema,
    storage_options: Mapping[str, Any] | None,
    *,
    extras_allowed: bool,
) -> list[Split]:
    """One split for each row group that has rows.

    Raises:
        SchemaChangedError: the file does not fit ``schema``.
    """
    with open_parquet(info.name, storage_options) as file:
        check_file(plain(file.schema_arrow), schema, info.name, extras_allowed=extras_allowed)
        metadata = file.metadata
        return [
            _split(info, f"{info.name}#group={group}", group, group + 1)
            for group in range(metadata.num_row_groups)
            if metadata.row_group(group).num_rows
        ]


def whole_file_split(info: FileInfo) -> Split:
    """One split for all row groups of a file."""
    return _split(info, info.name, 0, None)


def _split(info: FileInfo, split_id: str, first: int, end: int | None) -> Split:
    spec = {"size": info.size, "version": info.version, "first": first, "end": end}
    return Split(split_id=split_id, spec={"file": info.name, **spec})


class ParquetReader(SplitReader):
    """Reads consecutive row groups of one file.

    Args:
        split: made by :func:`parquet_splits` or :func:`whole_file_split`.
        schema: what the rows are to look like.
        batch_rows: most rows to decode at once.
    """

    def __init__(
        self,
        split: Split,
        schema: pa.Schema,
        storage_options: Mapping[str, Any] | None,
        *,
        batch_rows: int,
        extras_allowed: bool,
    ) -> None:
        self._name: str = split.spec["file"]
        self._schema = schema
        self._batch_rows = batch_rows
        self._file = open_parquet(self._name, storage_options)
        check_file(
            plain(self._file.schema_arrow), schema, self._name, extras_allowed=extras_allowed
        )
        groups = self._file.metadata.num_row_groups
        self._rows_in = [self._file.metadata.row_group(g).num_rows for g in range(groups)]
        end = split.spec["end"]
        self._end: int = groups if end is None else end
        self._group: int = split.spec["first"]
        self._row = 0
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._pending: pa.RecordBatch | None = None

    def poll(self, max_rows: int, now: float) -> Poll:
        while self._pending is None:
            if self._group >= self._end:
                return Exhausted()
            if self._row >= self._rows_in[self._group]:
                self._group, self._row, self._batches = self._group + 1, 0, None
                continue
            self._pending = self._decode()
        batch = self._pending
        taken = batch.slice(0, max_rows)
        self._pending = batch.slice(max_rows) if batch.num_rows > max_rows else None
        origin = Origin(self._name, self._where())
        self._row += taken.num_rows
        return Rows(taken, origin)

    def _decode(self) -> pa.RecordBatch:
        """The next batch of the current row group, at the current row."""
        with decoding(self._name, self._where()):
            skip = 0
            if self._batches is None:
                self._batches = self._file.iter_batches(
                    batch_size=self._batch_rows,
                    row_groups=[self._group],
                    columns=self._schema.names,
                    use_threads=False,
                )
                skip = self._row
            for batch in self._batches:
                if batch.num_rows > skip:
                    return conform(batch.slice(skip), self._schema, self._name, self._where())
                skip -= batch.num_rows
        raise CorruptInputError(
            f"{self._name} @ {self._where()}: expected {self._rows_in[self._group]} rows in row "
            f"group {self._group}, it ends after {self._row}. Replace the file."
        )

    def _where(self) -> str:
        return f"row {sum(self._rows_in[: self._group]) + self._row}"

    def position(self) -> Json:
        return {"group": self._group, "row": self._row}

    def seek(self, position: Json) -> None:
        self._group, self._row = int(position["group"]), int(position["row"])
        self._batches = self._pending = None

    def close(self) -> None:
        self._batches = self._pending = None
        self._file.close(force=True)
