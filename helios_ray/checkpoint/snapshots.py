"""The sealer: what a process uses to seal and open tables, its settings filled in once.

Why it exists: tasks seal Arrow tables and the coordinator seals manifests under the same
settings and keys; only here does a table become bytes (an Arrow IPC stream) and bytes a table.

Promises: safe to use from several threads at once; most of the time (compression, AES,
SHA-256) is spent without the interpreter lock, so sealing runs beside processing.

May import: config, keys, sealed, errors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone

import pyarrow as pa

from helios_ray.checkpoint.config import EncryptionConfig
from helios_ray.checkpoint.keys import KeyProvider
from helios_ray.checkpoint.sealed import Binding, open_sealed, read_header, seal
from helios_ray.errors import TamperedObjectError

_WRITE_OPTIONS = pa.ipc.IpcWriteOptions(use_threads=False)
_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedBytes:
    """A sealed object and what the manifest says about it.

    Args:
        data: the object.
        raw_size: bytes before compression and encryption.
        key_id: the key that wrapped its data key, or ``""`` if not encrypted.
        digest: SHA-256 of ``data``, hex.
        rows: rows of the table, or 0 for plain bytes.
    """

    data: bytes = field(repr=False)
    raw_size: int
    key_id: str
    digest: str
    rows: int = 0

    @property
    def size(self) -> int:
        """Bytes as sealed."""
        return len(self.data)


SealedTable = SealedBytes


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Sealer:
    """Seals and opens, under one :class:`EncryptionConfig`.

    Args:
        config: algorithm, compression, keys. Its ``prepared(now)`` form is what to send to
            other processes.
        clock: current time, timezone-aware; decides which key is current and when to rotate.

    Example:
        >>> from helios_ray.checkpoint.keys import InMemoryKeyProvider
        >>> sealer = Sealer(EncryptionConfig(key_provider=InMemoryKeyProvider()))
        >>> here = Binding(job="j", epoch=1, checkpoint_id=7, operator="o", subtask=0, name="n")
        >>> sealed = sealer.seal_table(pa.table({"a": [1, 2]}), here)
        >>> sealer.open_table(sealed.data, here).to_pydict(), sealed.rows
        ({'a': [1, 2]}, 2)
    """

    def __init__(
        self,
        config: EncryptionConfig | None = None,
        *,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.config = config if config is not None else EncryptionConfig()
        self._keys = self.config.keys
        self._clock = clock

    @property
    def keys(self) -> KeyProvider | None:
        """The key provider in effect, or None if nothing is encrypted."""
        return self._keys

    def rotate_if_due(self) -> str:
        """Have the provider add a key if the current one is old; return the current id.

        The coordinator's manifests do this once a checkpoint; it is a look at a file.
        """
        if self._keys is None or not self.config.encrypted:
            return ""
        return self._keys.rotate_if_due(self._clock(), self.config.key_rotation)

    def seal_bytes(
        self,
        payload: bytes | bytearray | memoryview | pa.Buffer | Iterable[bytes],
        binding: Binding,
        *,
        public: bytes = b"",
    ) -> SealedBytes:
        """Seal bytes; see :func:`helios_ray.checkpoint.sealed.seal`."""
        data = seal(
            payload,
            binding,
            keys=self._keys,
            now=self._clock(),
            algorithm=self.config.algorithm,
            compress=self.config.compress_before_encrypt,
            chunk_size=self.config.chunk_size,
            public=public,
        )
        header = read_header(data)
        return SealedBytes(
            data=data,
            raw_size=header.raw_size,
            key_id=header.key_id,
            digest=hashlib.sha256(data).hexdigest(),
        )

    def open_bytes(self, data: bytes | memoryview | pa.Buffer, binding: Binding) -> pa.Buffer:
        """Open what ``seal_bytes`` made; see :func:`helios_ray.checkpoint.sealed.open_sealed`."""
        return open_sealed(
            data,
            binding,
            self._keys,
            allow_unencrypted=not self.config.encrypted or self.config.accept_unencrypted,
        )

    def seal_table(self, table: pa.Table, binding: Binding) -> SealedTable:
        """Seal a table as an Arrow IPC stream. Slices are written without their parents."""
        # The first pass only counts, so that the second never moves what it has written.
        count = pa.MockOutputStream()
        _write_stream(table, count)
        buffer = pa.allocate_buffer(count.size())
        _write_stream(table, pa.FixedSizeBufferWriter(buffer))
        sealed = self.seal_bytes(buffer, binding)
        return SealedTable(
            data=sealed.data,
            raw_size=sealed.raw_size,
            key_id=sealed.key_id,
            digest=sealed.digest,
            rows=table.num_rows,
        )

    def open_table(self, data: bytes | memoryview | pa.Buffer, binding: Binding) -> pa.Table:
        """Open what ``seal_table`` made.

        Raises:
            TamperedObjectError: also if what authenticates is not an Arrow stream.
        """
        payload = self.open_bytes(data, binding)
        try:
            with pa.ipc.open_stream(payload, options=_READ_OPTIONS) as reader:
                return reader.read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise TamperedObjectError(
                f"Sealed object {binding} opens, and is not an Arrow table ({error}). It was not "
                "written as one; restore from another checkpoint."
            ) from error


def _write_stream(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, table.schema, options=_WRITE_OPTIONS) as writer:
        writer.write_table(table)


def seal_table(table: pa.Table, binding: Binding, sealer: Sealer) -> SealedTable:
    """``sealer.seal_table(table, binding)``."""
    return sealer.seal_table(table, binding)


def open_table(data: bytes | memoryview | pa.Buffer, binding: Binding, sealer: Sealer) -> pa.Table:
    """``sealer.open_table(data, binding)``."""
    return sealer.open_table(data, binding)
