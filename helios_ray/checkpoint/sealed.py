"""Sealed objects: compressed, encrypted, and bound to the one place they belong.

Why it exists: a byte of state leaves the process through this module and nowhere else.

Promises: whatever was changed, cut, reordered, swapped or replayed fails to open, and nothing
is decompressed or parsed before it is authenticated.

Layout, integers big-endian::

    magic (8) | version u16 | header length u32
    algorithm u8 | compression u8 | chunk size u32 | raw size u64 | body size u64 | nonce (7)
    key id (u16 length) | wrapped data key (u16 length) | public (u32 length) | CRC-32 u32
    body

The body is the payload, compressed as a whole and cut into chunks of ``chunk size``. Chunk *i*
is sealed with AES-256-GCM under the nonce ``prefix (7) | i (u32) | last (u8)``, and its additional
data is SHA-256 over the header and the :class:`Binding`. So the header, ``public`` included, is
readable without keys and cannot be changed. The CRC tells damage from a wrong key; it is not
what protects the header. Without encryption the body is plain and a SHA-256 over header,
binding and body follows it: that finds damage, not a forger.

Source: the nonces are those of STREAM: Hoang, Reyhanitabar, Rogaway, Vizár, "Online
Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015.

May import: header, keys, errors.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime

import pyarrow as pa
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from helios_ray.checkpoint.header import (
    DEFAULT_CHUNK_SIZE,
    TAG,
    Binding,
    EncryptionAlgorithm,
    SealedHeader,
    encode_header,
    read_header,
    tampered,
)
from helios_ray.checkpoint.keys import KEY_BYTES, KeyProvider, WrappedKey
from helios_ray.errors import (
    ConfigError,
    KeyNotFoundError,
    TamperedObjectError,
    TruncatedObjectError,
)

__all__ = ["Binding", "EncryptionAlgorithm", "SealedHeader", "open_sealed", "read_header", "seal"]

_COMPRESSION_LEVEL = 1
_MAX_CHUNKS = 2**32


def seal(
    payload: bytes | bytearray | memoryview | pa.Buffer | Iterable[bytes],
    binding: Binding,
    *,
    keys: KeyProvider | None,
    now: datetime,
    algorithm: EncryptionAlgorithm = EncryptionAlgorithm.AES256GCM,
    compress: bool = True,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    public: bytes = b"",
) -> bytes:
    """Compress and encrypt ``payload`` under a fresh data key.

    Args:
        payload: bytes, an Arrow buffer, or an iterable of bytes.
        binding: where it belongs; ``open_sealed`` must be given the same.
        keys: wraps the data key; may be None for ``EncryptionAlgorithm.NONE``.
        now: decides which key is current.
        compress: zstd level 1 over the whole payload before encryption.
        chunk_size: bytes of compressed payload per chunk.
        public: plain text to keep beside it: authenticated, readable without keys.

    Raises:
        ConfigError: ``algorithm`` needs keys and there are none.
        KeyNotFoundError: the provider has no key.

    Example:
        >>> from datetime import datetime, timezone
        >>> from helios_ray.checkpoint.keys import InMemoryKeyProvider
        >>> keys, now = InMemoryKeyProvider(), datetime(2026, 1, 1, tzinfo=timezone.utc)
        >>> here = Binding(job="j", epoch=1, checkpoint_id=7, operator="o", subtask=0, name="n")
        >>> sealed = seal(b"secret", here, keys=keys, now=now)
        >>> open_sealed(sealed, here, keys).to_pybytes()
        b'secret'
    """
    chunks, raw_size, body_size = _cut(payload, compress, chunk_size)
    if len(chunks) > _MAX_CHUNKS:
        raise ConfigError(
            f"EncryptionConfig.chunk_size must be large enough to cut an object into fewer than "
            f"2^32 chunks, got {chunk_size} for {body_size} bytes. Use the default, 1 MiB."
        )
    nonce_prefix = os.urandom(7)
    bound = binding.encode()
    data_key = b""
    wrapped = WrappedKey("", b"")
    if algorithm is not EncryptionAlgorithm.NONE:
        if keys is None:
            raise ConfigError(
                f"seal(algorithm={algorithm.name}) needs a KeyProvider and got None. Pass one, or "
                "use EncryptionAlgorithm.NONE."
            )
        data_key = os.urandom(KEY_BYTES)
        wrapped = keys.wrap(data_key, context=_wrap_context(binding), now=now)
    header = encode_header(
        algorithm, compress, chunk_size, raw_size, body_size, nonce_prefix, wrapped, public
    )
    associated = hashlib.sha256(header + bound).digest()
    if algorithm is EncryptionAlgorithm.NONE:
        digest = hashlib.sha256(associated)
        for chunk in chunks:
            digest.update(chunk)
        return b"".join((header, *chunks, digest.digest()))
    out = bytearray(len(header) + body_size + TAG * len(chunks))
    out[: len(header)] = header
    view = memoryview(out)
    position = len(header)
    cipher = AESGCM(data_key)
    for index, chunk in enumerate(chunks):
        end = position + len(chunk) + TAG
        nonce = _nonce(nonce_prefix, index, index == len(chunks) - 1)
        cipher.encrypt_into(nonce, chunk, associated, view[position:end])
        position = end
    view.release()
    return bytes(out)


def open_sealed(
    data: bytes | bytearray | memoryview | pa.Buffer,
    binding: Binding,
    keys: KeyProvider | None,
    *,
    allow_unencrypted: bool = False,
) -> pa.Buffer:
    """Authenticate, decrypt and decompress what ``seal`` made.

    Args:
        data: the object.
        binding: where it was found.
        keys: unwraps the data key; may be None if the object is not encrypted.
        allow_unencrypted: accept an object that says it is not encrypted. Off by default:
            else whoever can write to storage could replace a sealed object with a plain one.

    Raises:
        UnknownFormatError: not a sealed object, or of a version this release cannot read.
        TruncatedObjectError: it ends early.
        TamperedObjectError: it was changed, or belongs elsewhere.
        KeyNotFoundError: the key it names is missing.
        WrongKeyError: a key of that id is there and is another one.
    """
    view = memoryview(data).cast("B")
    header = read_header(view, binding)
    if len(view) < header.total_size:
        raise TruncatedObjectError(
            f"Sealed object {binding} ends after {len(view)} of {header.total_size} bytes. An "
            "upload or copy was cut short; restore it from a copy, or use another checkpoint."
        )
    if len(view) > header.total_size:
        raise tampered(binding, f"{len(view) - header.total_size} bytes follow its end")
    associated = hashlib.sha256(bytes(view[: header.length]) + binding.encode()).digest()
    if header.encrypted:
        body: bytearray | memoryview = _decrypt(view, header, binding, associated, keys)
    else:
        if not allow_unencrypted:
            raise TamperedObjectError(
                f"Sealed object {binding} is not encrypted, while encryption is configured: it "
                "may have been replaced by someone who has no key. If the job was run without "
                "encryption before, set EncryptionConfig(accept_unencrypted=True) until its old "
                "checkpoints are gone."
            )
        body = view[header.length : header.length + header.body_size]
        digest = hashlib.sha256(associated)
        digest.update(body)
        if digest.digest() != bytes(view[header.length + header.body_size :]):
            raise tampered(binding, "its digest does not match")
    return pa.py_buffer(_decompress(body, header, binding))


# ------------------------------------------------------------------------------- inside


def _decrypt(
    view: memoryview,
    header: SealedHeader,
    binding: Binding,
    associated: bytes,
    keys: KeyProvider | None,
) -> bytearray:
    if keys is None:
        raise KeyNotFoundError(
            f"Sealed object {binding} is encrypted under key {header.key_id!r} and no key provider "
            "was given. Pass the provider that has it (EncryptionConfig(key_provider=...), or "
            "keys=... when reading offline)."
        )
    data_key = keys.unwrap(
        WrappedKey(header.key_id, header.wrapped), context=_wrap_context(binding)
    )
    if len(data_key) != KEY_BYTES:
        raise tampered(binding, "its data key has the wrong size")
    cipher = AESGCM(data_key)
    out = bytearray(header.body_size)
    target = memoryview(out)
    read, written = header.length, 0
    for index in range(header.chunks):
        size = min(header.chunk_size, header.body_size - written)
        nonce = _nonce(header.nonce_prefix, index, index == header.chunks - 1)
        try:
            cipher.decrypt_into(
                nonce, view[read : read + size + TAG], associated, target[written : written + size]
            )
        except InvalidTag as error:
            raise tampered(
                binding, f"chunk {index + 1} of {header.chunks} does not authenticate"
            ) from error
        read += size + TAG
        written += size
    target.release()
    return out


def _decompress(
    body: bytearray | memoryview, header: SealedHeader, binding: Binding
) -> bytes | bytearray | memoryview:
    if header.compression == "none":
        if len(body) != header.raw_size:
            raise tampered(binding, "its size does not match its header")
        return body
    # Only unencrypted objects could be forged this far; none may claim a surprise size.
    try:
        claimed = zstandard.frame_content_size(body)
        if claimed not in (-1, header.raw_size):
            raise tampered(binding, "its size does not match its header")
        raw = _codecs.decompressor.decompress(body, max_output_size=header.raw_size)
    except zstandard.ZstdError as error:
        raise tampered(binding, f"it does not decompress ({error})") from error
    if len(raw) != header.raw_size:
        raise tampered(binding, "its size does not match its header")
    return raw


class _Codecs(threading.local):
    """One (de)compressor per thread: they are costly to make and must not be shared."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_codecs = _Codecs()


def _cut(
    payload: bytes | bytearray | memoryview | pa.Buffer | Iterable[bytes],
    compress: bool,
    chunk_size: int,
) -> tuple[list[memoryview], int, int]:
    """The chunks of the body, the size before compression, and after."""
    raw_size = 0
    if isinstance(payload, (bytes, bytearray, memoryview, pa.Buffer)):
        whole = memoryview(payload).cast("B")
        raw_size = len(whole)
        body = memoryview(_codecs.compressor.compress(whole)) if compress else whole
    else:
        counted = _Counted(payload)
        if compress:
            stream = _codecs.compressor.compressobj()
            pieces = [stream.compress(piece) for piece in counted]
            pieces.append(stream.flush())
        else:
            pieces = list(counted)
        raw_size = counted.size
        if raw_size == 0:
            return _cut(b"", compress, chunk_size)
        body = memoryview(b"".join(pieces))
    size = len(body)
    chunks = [body[start : start + chunk_size] for start in range(0, size, chunk_size)]
    return chunks or [body], raw_size, size


class _Counted:
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = pieces
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            self.size += len(piece)
            yield piece


def _nonce(prefix: bytes, index: int, last: bool) -> bytes:
    return prefix + index.to_bytes(4, "big") + bytes((last,))


def _wrap_context(binding: Binding) -> bytes:
    # Only the job: what belongs elsewhere within the job is told apart by its chunks, and
    # a key service may log the context, which should stay short and dull.
    return b"helios_ray sealed 1\x00" + binding.job.encode()
