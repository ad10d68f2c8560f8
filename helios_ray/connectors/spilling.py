"""Rows kept for later in a bounded amount of memory.

Why it exists: a two-phase sink hands over all rows of a checkpoint at once, and how many
rows come between two checkpoints is not ours to say.

May import: errors.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from helios_ray.errors import SchemaChangedError


class SpillingRows:
    """The rows of one transaction: in memory, and beyond a bound in an unlinked file.

    Args:
        max_bytes: what may stay in memory; None: everything.
        directory: for the file; None: the system's temporary directory.
    """

    def __init__(self, max_bytes: int | None, directory: str | None) -> None:
        self._max_bytes = max_bytes
        self._directory = directory
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._schema: pa.Schema | None = None
        self._file: Any = None
        self._writer: Any = None

    def add(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        if self._schema is None:
            self._schema = batch.schema
        elif not self._schema.equals(batch.schema):
            raise SchemaChangedError(
                f"a two-phase sink expected all rows of one checkpoint to have the columns "
                f"{self._schema.names} with the types {[str(t) for t in self._schema.types]}, "
                f"got {batch.schema.names} with {[str(t) for t in batch.schema.types]}: make "
                "them equal before the sink, by .select(...) say"
            )
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._max_bytes is not None and self._bytes > self._max_bytes:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            # Has no name: gone with the last process that holds it, however that dies.
            self._file = tempfile.TemporaryFile(prefix="helios-", dir=self._directory)  # noqa: SIM115
            # Uncompressed IPC: read back by mapping it, without a copy.
            self._writer = pa.ipc.new_stream(self._file, self._schema)
        for batch in self._batches:
            self._writer.write_batch(batch)
        self._batches, self._bytes = [], 0

    @contextmanager
    def table(self) -> Iterator[pa.Table | None]:
        """All rows in order, for the time of the ``with``; None if there are none."""
        if self._schema is None:
            yield None
            return
        if self._file is None:
            yield pa.Table.from_batches(self._batches, self._schema)
            return
        self._spill()
        self._writer.close()
        self._writer = None
        self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        yield pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()

    def close(self) -> None:
        self._batches = []
        if self._writer is not None:
            with suppress(Exception):  # a full disk
                self._writer.close()
            self._writer = None
        if self._file is not None:
            self._file.close()
            self._file = None
