"""The file sink: exactly-once Parquet or JSON Lines, on local disk and on S3.

Why it exists: files that other tools read are the most common output of a job, and a reader
must never see half of one, or one twice. What it promises: files appear whole, once, only
after their checkpoint completed, under names that a replay repeats exactly.

May import: connectors.base, identifiers, errors, and the rest of this package.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from helios_ray.connectors.base import (
    CommitOutcome,
    Committable,
    Json,
    SinkContext,
    TransactionalSink,
)
from helios_ray.connectors.files import names
from helios_ray.connectors.files.encoders import (
    COMPRESSIONS,
    Encoder,
    check_encodable,
    make_encoder,
    suffix,
)
from helios_ray.connectors.files.local import LocalStore
from helios_ray.connectors.files.locations import absolute, masked, protocol
from helios_ray.connectors.files.s3 import SMALLEST_PART, S3Store
from helios_ray.connectors.files.stores import OpenFile, Store
from helios_ray.errors import ConfigError, FatalCommitError, SchemaChangedError
from helios_ray.identifiers import TransactionId


class FileSink(TransactionalSink):
    """Writes rows to files in a directory, exactly once.

    On a local disk files are staged in ``<path>/.staging`` and renamed at commit; on S3 they
    are multipart uploads that are completed at commit. Names are
    ``part-<sink>@<job>-<subtask>-<epoch>-<checkpoint>-<n>.<suffix>``. Where subtasks run on
    several machines, a local path must be on a disk that all of them share.

    Args:
        path: a directory, or ``s3://bucket/prefix``.
        format: ``"parquet"`` or ``"jsonl"``.
        compression: a codec's name or None; ``"auto"`` is zstd for Parquet and none for JSON
            Lines. JSON Lines files that are compressed end in ``.jsonl.zst`` or ``.jsonl.gz``.
        max_file_rows: rows after which a transaction goes on in another file.
        max_file_bytes: bytes after which it does, as encoded; checked after each batch.
        part_size: bytes of one part of an upload to S3. Up to three are held in memory.
        storage_options: for s3fs (``key``, ``secret``, ``endpoint_url``, …); never printed.

    Raises:
        ConfigError: an argument is wrong.

    Example:
        >>> import tempfile
        >>> from helios_ray.connectors.base import Committable, SinkContext
        >>> sink = FileSink(tempfile.mkdtemp())
        >>> context = SinkContext(job="j", sink_uid="out", subtask=0, parallelism=1, epoch=1)
        >>> sink.open(context)
        >>> transaction = context.transaction_id(1)
        >>> sink.begin(transaction)
        >>> sink.write(pa.RecordBatch.from_pydict({"n": [1, 2]}))
        >>> payload = sink.prepare()
        >>> sink.commit_transaction(Committable(transaction=transaction, payload=payload)).value
        'committed'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "parquet",
        compression: str | None = "auto",
        max_file_rows: int | None = None,
        max_file_bytes: int | None = 256 << 20,
        part_size: int = 8 << 20,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if format not in COMPRESSIONS:
            raise ConfigError(
                f"FileSink.format must be one of {sorted(COMPRESSIONS)}, got {format!r}."
            )
        if compression == "auto":
            compression = "zstd" if format == "parquet" else None
        if compression not in COMPRESSIONS[format]:
            raise ConfigError(
                f"FileSink.compression for {format} must be one of {COMPRESSIONS[format]} or "
                f"'auto', got {compression!r}."
            )
        for name, value in (("max_file_rows", max_file_rows), ("max_file_bytes", max_file_bytes)):
            if value is not None and value < 1:
                raise ConfigError(
                    f"FileSink.{name} must be at least 1, got {value}. Use None for one file a "
                    f"transaction."
                )
        if part_size < SMALLEST_PART:
            raise ConfigError(
                f"FileSink.part_size must be at least {SMALLEST_PART} bytes (S3 refuses smaller "
                f"parts), got {part_size}."
            )
        self._path = absolute(path)
        if protocol(self._path) not in {"file", "s3", "s3a"}:
            raise ConfigError(
                f"FileSink.path must be a local directory or s3://bucket/prefix, got "
                f"{self._path!r}: other stores have no way to hide a file until it is committed."
            )
        self._format = format
        self._compression = compression
        self._suffix = suffix(format, compression)
        self._max_rows = max_file_rows
        self._max_bytes = max_file_bytes
        self._part_size = part_size
        self._options = dict(storage_options or {})
        self._store: Store | None = None
        self._schema: pa.Schema | None = None
        self._transaction: TransactionId | None = None
        self._sealed: list[Json] = []
        self._file: OpenFile | None = None
        self._encoder: Encoder | None = None
        self._rows = 0

    def _make_store(self) -> Store:
        if protocol(self._path) == "file":
            return LocalStore(self._path)
        return S3Store(self._path, self._options, self._part_size)

    @property
    def _stored(self) -> Store:
        if self._store is None:
            self._store = self._make_store()
        return self._store

    def check(self, schema: pa.Schema | None) -> None:
        if schema is not None:
            check_encodable(self._format, schema)
        store = self._make_store()
        try:
            store.check()
        finally:
            store.close()

    def open(self, context: SinkContext) -> None:
        names.stem(context.transaction_id(0))  # names that cannot be files' fail now
        self._schema = None
        self._stored.open()

    def begin(self, transaction: TransactionId) -> None:
        if self._transaction is not None:
            self.abort_transaction(self._transaction)
        self._stored.begin(transaction, names.file(transaction, 0, self._suffix))
        self._transaction, self._sealed = transaction, []

    def write(self, batch: pa.RecordBatch) -> None:
        if self._transaction is None:
            raise RuntimeError("FileSink.write was called before begin")
        batch = self._conform(batch)
        start = 0
        while start < batch.num_rows:
            if self._encoder is None:
                name = names.file(self._transaction, len(self._sealed), self._suffix)
                self._file = self._stored.create(self._transaction, name)
                self._encoder = make_encoder(
                    self._format, self._compression, self._file.out, batch.schema
                )
                self._rows = 0
            room = batch.num_rows if self._max_rows is None else self._max_rows - self._rows
            piece = batch.slice(start, room)
            self._encoder.write(piece)
            start += piece.num_rows
            self._rows += piece.num_rows
            assert self._file is not None
            full = self._max_rows is not None and self._rows >= self._max_rows
            if full or (self._max_bytes is not None and self._file.size() >= self._max_bytes):
                self._seal_file()

    def _conform(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows under the schema that this epoch's first batch had."""
        if self._schema is None:
            check_encodable(self._format, batch.schema)
            fields = [pa.field(field.name, field.type) for field in batch.schema]
            self._schema = pa.schema(fields)
        expected = self._schema
        found = {field.name: field.type for field in batch.schema}
        for field in expected:
            kind = found.pop(field.name, None)
            if kind is None or not kind.equals(field.type):
                raise SchemaChangedError(
                    f"FileSink({self._path!r}): expected column {field.name!r} to be {field.type} "
                    f"as in the rows before, got {'no such column' if kind is None else kind}. "
                    f"Let the operator before the sink always give the same columns and types."
                )
        if found or batch.num_columns != len(expected):
            name = next(iter(found), batch.schema.names[-1])
            raise SchemaChangedError(
                f"FileSink({self._path!r}): expected the columns {expected.names} as in the rows "
                f"before, got {name!r} besides. Let the operator before the sink always give the "
                f"same columns."
            )
        columns = [batch.column(name) for name in expected.names]
        return pa.RecordBatch.from_arrays(columns, schema=expected) if columns else batch

    def _seal_file(self) -> None:
        assert self._encoder is not None
        assert self._file is not None
        self._encoder.close()
        sealed = {"name": self._file.name, "rows": self._rows, **self._file.seal()}
        self._sealed.append(sealed)
        self._encoder = self._file = None

    def prepare(self) -> Json:
        if self._transaction is None:
            raise RuntimeError("FileSink.prepare was called before begin")
        if self._encoder is not None:
            self._seal_file()
        self._stored.seal(self._transaction)
        payload = {"files": self._sealed}
        self._transaction, self._sealed = None, []
        return payload

    def commit_transaction(self, committable: Committable) -> CommitOutcome:
        payload = committable.payload
        if not isinstance(payload, dict) or "files" not in payload:
            raise FatalCommitError(
                f"FileSink: commit of {committable.transaction}: expected the payload that prepare "
                f"returned, got {payload!r}. Is the sink's uid used for another kind of sink now? "
                f"Give the new sink another uid."
            )
        return self._stored.commit(committable.transaction, payload["files"])

    def abort_transaction(self, transaction: TransactionId, payload: Json = None) -> None:
        if transaction == self._transaction:
            self._drop_open()
        files = payload.get("files", []) if isinstance(payload, dict) else []
        self._stored.abort(transaction, files)

    def _drop_open(self) -> None:
        if self._encoder is not None:
            self._encoder.discard()
        if self._file is not None:
            self._file.discard()
        self._file = self._encoder = self._transaction = None
        self._sealed = []

    def list_prepared(self, prefix: str) -> Iterable[TransactionId]:
        return self._stored.list_prepared(prefix)

    def close(self) -> None:
        if self._store is None:
            return
        try:
            if self._transaction is not None:
                self.abort_transaction(self._transaction)
        finally:
            self._store.close()
            self._store = None

    def __repr__(self) -> str:
        return (
            f"FileSink({self._path!r}, format={self._format!r}, "
            f"compression={self._compression!r}, storage_options={masked(self._options)})"
        )
