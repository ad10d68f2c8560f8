"""Reading files of lines: split by byte range, cut at line boundaries, positions in bytes.

Why it exists: CSV and JSON Lines differ in how a line becomes a row, and in nothing else.
What it promises: a split of bytes ``[start, end)`` owns the lines that *begin* in it, so that
every line has exactly one owner whatever the cuts; a position is the byte at which the next
line begins; a line that cannot be read is named by its byte.

A file compressed as a whole is one split, and its positions count decompressed bytes.

May import: elements, errors, connectors.base, and the rest of this package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from helios_ray.connectors.base import Exhausted, Json, Poll, Rows, Split, SplitReader
from helios_ray.connectors.files.locations import (
    FileInfo,
    format_of,
    open_binary,
    unavailable,
)
from helios_ray.connectors.files.schemas import conform
from helios_ray.elements import Origin
from helios_ray.errors import CorruptInputError, DataError

CHUNK = 1 << 20
"""Bytes read and decoded at once."""

LONGEST_LINE = 256 << 20
"""A line longer than this is taken for a file that has no lines."""

_NEWLINE = 0x0A

Offsets: TypeAlias = Any
"""Byte offsets: an int64 numpy array."""


class LineFormat(ABC):
    """How the records of one file become rows. One instance reads one file."""

    def record_ends(self, data: bytes) -> Offsets:
        """Where records end in ``data``, which starts with one: after each of these bytes."""
        return np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE)

    def is_blank(self, record: bytes) -> bool:
        """Whether a record stands for no row."""
        return not record.strip(b"\r\n")

    @abstractmethod
    def rows(self, data: bytes) -> pa.RecordBatch:
        """Decode whole records.

        Raises:
            pa.ArrowInvalid, ValueError: some record is wrong; :meth:`blame` says how.
        """

    @abstractmethod
    def blame(self, record: bytes, where: str) -> DataError:
        """Explain why :meth:`rows` refuses this record."""


class ByteStream:
    """The bytes of a file from a given offset on, decompressed if need be.

    Raises:
        SourceUnavailableError: the file is not there.
        CorruptInputError: it cannot be decompressed, or ends in the middle.
    """

    def __init__(self, name: str, storage_options: Mapping[str, Any] | None) -> None:
        self._name = name
        self._options = storage_options
        self._codec = format_of(name)[1]
        self._handle: Any = None
        self._raw: Any = None
        self._at = 0

    def read(self, at: int, count: int) -> bytes:
        """Up to ``count`` bytes at offset ``at``; fewer only at the end of the file."""
        with unavailable(self._name):
            if self._handle is None or (self._codec is not None and at < self._at):
                self.close()
                self._raw = open_binary(self._name, self._options, 4 * CHUNK)
                self._handle, self._at = self._raw, 0
                if self._codec is not None:
                    self._handle = pa.CompressedInputStream(self._raw, self._codec)
            try:
                while self._codec is not None and self._at < at:
                    skipped = len(self._handle.read(min(CHUNK, at - self._at)))
                    if not skipped:
                        return b""
                    self._at += skipped
                if self._at != at:
                    self._handle.seek(at)
                data: bytes = self._handle.read(count)
            except OSError as error:
                if self._codec is None or error.errno is not None:
                    raise
                raise CorruptInputError(
                    f"{self._name} @ byte {self._at}: expected {self._codec} data, could not "
                    f"decompress it: {error}. Replace the file; if it is still being written, "
                    f"write under a name that starts with '.' or '_' and rename when it is whole."
                ) from error
            self._at = at + len(data)
            return data

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        for handle in (self._handle, self._raw):
            if handle is not None:
                handle.close()
        self._handle = self._raw = None


def whole_file_split(info: FileInfo) -> Split:
    """One split for all lines of a file."""
    return _split(info, info.name, 0, None)


def line_splits(info: FileInfo, block_size: int) -> list[Split]:
    """Cut a file into blocks of ``block_size`` bytes; an empty file into none."""
    starts = range(0, info.size, block_size)
    ends = [*starts[1:], None]
    return [
        _split(info, f"{info.name}#byte={start}", start, end)
        for start, end in zip(starts, ends, strict=False)
    ]


def _split(info: FileInfo, split_id: str, start: int, end: int | None) -> Split:
    spec = {"size": info.size, "version": info.version, "start": start, "end": end}
    return Split(split_id=split_id, spec={"file": info.name, **spec})


class LineReader(SplitReader):
    """Reads the lines that begin in a range of bytes.

    Args:
        split: made by :func:`line_splits` or :func:`whole_file_split`.
        stream: the file's bytes.
        lines: how lines become rows.
        data_start: the byte after the header, where the file has one.
        schema: what the rows are to look like.
    """

    def __init__(
        self,
        split: Split,
        stream: ByteStream,
        lines: LineFormat,
        *,
        data_start: int,
        schema: pa.Schema,
    ) -> None:
        self._name: str = split.spec["file"]
        self._stream = stream
        self._lines = lines
        self._schema = schema
        self._end: int | None = split.spec["end"]
        start: int = split.spec["start"]
        # No line end stands before the first line, so it is not found by looking for one.
        self._at = data_start if start <= data_start else self._first_line_from(start)
        self._buffer = b""  # bytes read and not decoded yet; the first is at self._tail
        self._tail = self._at
        self._pending: pa.RecordBatch | None = None  # decoded; its first row is at self._at
        self._starts: Offsets = np.empty(0, np.int64)  # where its rows begin, and where it ends

    def _first_line_from(self, start: int) -> int:
        """The first byte at or after ``start`` at which a line begins."""
        at = start - 1
        while data := self._stream.read(at, CHUNK):
            newline = data.find(b"\n")
            if newline >= 0:
                return at + newline + 1
            at += len(data)
        return at

    def poll(self, max_rows: int, now: float) -> Poll:
        while self._pending is None:
            if (self._end is not None and self._tail >= self._end) or not self._decode():
                self._at = self._tail
                return Exhausted()
        batch, starts = self._pending, self._starts
        taken = batch.slice(0, max_rows)
        origin = Origin(self._name, f"byte {starts[0]}")
        self._at = int(starts[taken.num_rows])
        self._starts = starts[taken.num_rows :]
        self._pending = batch.slice(max_rows) if batch.num_rows > max_rows else None
        return Rows(taken, origin)

    def _decode(self) -> bool:
        """Decode the next whole records into ``_pending``; False at the end of the file."""
        data, ends = self._whole_records()
        if not data:
            return False
        begin, self._tail = self._tail, self._tail + len(data)
        self._buffer = self._buffer[len(data) :]
        if not data.endswith(b"\n"):
            data += b"\n"  # the last line of a file need not end
        starts = np.concatenate([[0], ends + 1]).astype(np.int64)
        starts = starts[starts < len(data)]
        # Only a line of one or two bytes can be an empty one.
        for short in np.flatnonzero(np.diff(starts, append=len(data)) <= 2)[::-1]:
            if self._lines.is_blank(data[starts[short] : starts[short] + 2].split(b"\n")[0]):
                starts = np.delete(starts, short)
        if len(starts):
            self._pending, starts = self._rows(data, starts, begin)
            self._starts = np.append(starts + begin, self._tail)
        return True

    def _whole_records(self) -> tuple[bytes, Offsets]:
        """Bytes from the tail up to the end of a record, and where records end in them."""
        while True:
            ends = self._lines.record_ends(self._buffer) if self._buffer else np.empty(0, np.int64)
            if self._end is not None:
                # The record that holds the byte before `end` is the last one of this split.
                last = int(np.searchsorted(ends, self._end - 1 - self._tail))
                if last < len(ends):
                    return self._buffer[: ends[last] + 1], ends[: last + 1]
            if len(ends) and len(self._buffer) >= CHUNK:
                return self._buffer[: ends[-1] + 1], ends
            if not len(ends) and len(self._buffer) > LONGEST_LINE:
                raise CorruptInputError(
                    f"{self._name} @ byte {self._tail}: expected lines, found none in "
                    f"{LONGEST_LINE >> 20} MiB. Check that the file is of the format it is read "
                    f"as, and that no quote is left open."
                )
            # Twice as much each time, so that a long line costs its length and not its square.
            more = self._stream.read(self._tail + len(self._buffer), max(CHUNK, len(self._buffer)))
            if not more:
                return self._buffer, ends
            self._buffer += more

    def _rows(
        self, data: bytes, starts: Offsets, begin: int
    ) -> tuple[pa.RecordBatch | None, Offsets]:
        """The rows in ``data`` and where each begins."""
        try:
            batch = self._lines.rows(data)
        except (pa.ArrowInvalid, ValueError):
            batch = None
        if batch is not None and batch.num_rows == len(starts):
            return conform(batch, self._schema, self._name, f"byte {begin}"), starts
        # Some record is wrong, or blank in a way that only its format knows: find it.
        batches, kept = [], []
        for start, stop in zip(starts, np.append(starts[1:], len(data)), strict=True):
            record, at = data[start:stop], f"byte {begin + start}"
            if self._lines.is_blank(record):
                continue
            try:
                batch = self._lines.rows(record)
            except (pa.ArrowInvalid, ValueError) as error:
                raise self._lines.blame(record, f"{self._name} @ {at}") from error
            if batch.num_rows != 1:
                raise self._lines.blame(record, f"{self._name} @ {at}")
            batches.append(conform(batch, self._schema, self._name, at))
            kept.append(start)
        return pa.concat_batches(batches) if batches else None, np.array(kept, np.int64)

    def position(self) -> Json:
        return {"byte": self._at}

    def seek(self, position: Json) -> None:
        self._at = self._tail = int(position["byte"])
        self._buffer, self._pending = b"", None

    def close(self) -> None:
        self._stream.close()
        self._buffer, self._pending = b"", None
