"""The header of a sealed object, and the binding that says where the object belongs.

Why it exists: a listing reads headers without keys, and opening starts with one. The layout
is told in :mod:`helios_ray.checkpoint.sealed`.

Promises: whatever bytes it is given, it answers with a header or one of three errors.

May import: keys, errors.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass, field

import pyarrow as pa

from helios_ray.checkpoint.keys import WrappedKey
from helios_ray.errors import TamperedObjectError, TruncatedObjectError, UnknownFormatError

MAGIC = b"\x89HELIOS\n"
VERSION = 1
DEFAULT_CHUNK_SIZE = 1 << 20
MAX_CHUNK_SIZE = 1 << 30
HEADER_PROBE = 16 * 1024
"""How many bytes from the front usually hold the whole header."""

_PREAMBLE = struct.Struct(">8sHI")
_FIXED = struct.Struct(">BBIQQ7s")
_BINDING = struct.Struct(">qqq")
TAG = 16
DIGEST = 32


class EncryptionAlgorithm(enum.Enum):
    """How sealed objects are protected."""

    AES256GCM = "AES-256-GCM"
    NONE = "none"
    """Not encrypted: compressed, and protected against accidents by a digest."""


_ALGORITHM_CODES = {EncryptionAlgorithm.NONE: 0, EncryptionAlgorithm.AES256GCM: 1}
_ALGORITHMS = {code: algorithm for algorithm, code in _ALGORITHM_CODES.items()}
_COMPRESSIONS = ("none", "zstd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The one place an object belongs; it opens nowhere else.

    Args:
        job: job name.
        epoch: the attempt that wrote it.
        checkpoint_id: the checkpoint it was written for.
        operator: uid of the operator, or ``""`` for what belongs to the job.
        subtask: index of the subtask, or -1 for what belongs to the job.
        name: the object's name.
    """

    job: str
    epoch: int
    checkpoint_id: int
    operator: str = ""
    subtask: int = -1
    name: str

    def encode(self) -> bytes:
        """Bytes that no two different bindings share: each text carries its length."""
        texts = b"".join(_sized(text.encode()) for text in (self.job, self.operator, self.name))
        return _BINDING.pack(self.epoch, self.checkpoint_id, self.subtask) + texts

    def __str__(self) -> str:
        owner = f"{self.operator}[{self.subtask}]" if self.operator else "the job"
        return (
            f"{self.name!r} of {owner}, job {self.job!r}, checkpoint {self.checkpoint_id}, "
            f"epoch {self.epoch}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedHeader:
    """What can be read without keys. Not authenticated until the object is opened.

    Args:
        raw_size: bytes before compression.
        body_size: bytes after compression, before encryption.
        key_id: the key that wrapped the data key, or ``""`` if not encrypted.
        public: plain text the writer put beside the sealed payload.
        length: bytes of the header itself.
    """

    version: int
    algorithm: EncryptionAlgorithm
    compression: str
    chunk_size: int
    raw_size: int
    body_size: int
    nonce_prefix: bytes
    key_id: str
    wrapped: bytes = field(repr=False)
    public: bytes = field(repr=False)
    length: int

    @property
    def encrypted(self) -> bool:
        """Whether the payload is secret."""
        return self.algorithm is not EncryptionAlgorithm.NONE

    @property
    def chunks(self) -> int:
        """Chunks of the body; an empty payload still has one, which carries its tag."""
        return max(1, -(-self.body_size // self.chunk_size))

    @property
    def total_size(self) -> int:
        """Bytes of the whole object."""
        extra = self.chunks * TAG if self.encrypted else DIGEST
        return self.length + self.body_size + extra


def read_header(
    data: bytes | memoryview | pa.Buffer, binding: Binding | None = None
) -> SealedHeader:
    """Read what is readable without keys; the body may be missing.

    Args:
        data: the object, or enough bytes from its front.
        binding: only for error messages.

    Raises:
        UnknownFormatError: not a sealed object, or of a version this release cannot read.
        TruncatedObjectError: the header itself is not complete.
        TamperedObjectError: the header is damaged.
    """
    view = memoryview(data).cast("B")
    what = f"Sealed object {binding}" if binding is not None else "Sealed object"
    if bytes(view[: len(MAGIC)]) != MAGIC[: len(view)]:
        raise UnknownFormatError(
            f"{what} does not start with the mark of a helios_ray sealed object (got "
            f"{bytes(view[: len(MAGIC)])!r}). Something else was put in its place, or the path "
            "is not that of a checkpoint."
        )
    short = TruncatedObjectError(
        f"{what} ends within its header, after {len(view)} bytes. An upload or copy was cut short; "
        "restore it from a copy, or use another checkpoint."
    )
    if len(view) < _PREAMBLE.size:
        raise short
    _, version, length = _PREAMBLE.unpack_from(view)
    if version != VERSION:
        raise UnknownFormatError(
            f"{what} has format version {version}; this release reads version {VERSION}. Use "
            "the helios_ray release that wrote it, or a newer one."
        )
    if len(view) < length:
        raise short
    if length < _PREAMBLE.size + _FIXED.size + 12:
        raise tampered(binding, "its header is damaged")
    (crc,) = struct.unpack_from(">I", view, length - 4)
    if zlib.crc32(view[: length - 4]) != crc:
        raise tampered(binding, "its header is damaged")
    return _decode_header(view[:length], binding)


def encode_header(
    algorithm: EncryptionAlgorithm,
    compress: bool,
    chunk_size: int,
    raw_size: int,
    body_size: int,
    nonce_prefix: bytes,
    wrapped: WrappedKey,
    public: bytes,
) -> bytes:
    """The header as bytes, its CRC included."""
    fields = b"".join(
        (
            _FIXED.pack(
                _ALGORITHM_CODES[algorithm],
                int(compress),
                chunk_size,
                raw_size,
                body_size,
                nonce_prefix,
            ),
            _sized(wrapped.key_id.encode()),
            _sized(wrapped.wrapped),
            struct.pack(">I", len(public)),
            public,
        )
    )
    header = _PREAMBLE.pack(MAGIC, VERSION, _PREAMBLE.size + len(fields) + 4) + fields
    return header + struct.pack(">I", zlib.crc32(header))


def _decode_header(view: memoryview, binding: Binding | None) -> SealedHeader:
    try:
        algorithm, compression, chunk_size, raw_size, body_size, nonce = _FIXED.unpack_from(
            view, _PREAMBLE.size
        )
        position = _PREAMBLE.size + _FIXED.size
        key_id, position = _take(view, position, ">H")
        wrapped, position = _take(view, position, ">H")
        public, position = _take(view, position, ">I")
        text = key_id.decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise tampered(binding, "its header is damaged") from error
    if position != len(view) - 4 or not 0 < chunk_size <= MAX_CHUNK_SIZE:
        raise tampered(binding, "its header is damaged")
    if algorithm not in _ALGORITHMS or compression >= len(_COMPRESSIONS):
        raise UnknownFormatError(
            f"Sealed object uses algorithm {algorithm} and compression {compression}, which this "
            "release does not know. Use the helios_ray release that wrote it, or a newer one."
        )
    return SealedHeader(
        version=VERSION,
        algorithm=_ALGORITHMS[algorithm],
        compression=_COMPRESSIONS[compression],
        chunk_size=chunk_size,
        raw_size=raw_size,
        body_size=body_size,
        nonce_prefix=nonce,
        key_id=text,
        wrapped=wrapped,
        public=public,
        length=len(view),
    )


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _take(view: memoryview, position: int, length_format: str) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(length_format, view, position)
    start = position + struct.calcsize(length_format)
    if start + length > len(view):
        raise struct.error("a field runs past the header")
    return bytes(view[start : start + length]), start + length


def tampered(binding: Binding | None, why: str) -> TamperedObjectError:
    """The error to raise for an object that does not open."""
    what = f"Sealed object {binding}" if binding is not None else "Sealed object"
    return TamperedObjectError(
        f"{what} does not open: {why}. It was changed after it was written, or it belongs to "
        "another checkpoint, operator or job. Restore it from a copy, or restore from another "
        "checkpoint; if nobody should have touched it, look into who can write to storage."
    )
