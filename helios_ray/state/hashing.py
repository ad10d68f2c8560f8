"""The stable hash of a key. It is part of the storage format: it never changes.

Why it exists: a key decides which subtask owns its state, in every process, on every
machine, for as long as a checkpoint is kept. Python's ``hash`` is salted per process and
Arrow's own is not specified, so the hash is defined here and pinned by golden tests.

What it promises: equal values hash equally whatever their physical Arrow type is within
one *family*; values of different families (``1`` and ``1.0``) need not agree.

    integer   int8..int64, uint8..uint64, bool   the value as 64 bits, two's complement
    float     float16, float32, float64          bits of the float64; -0.0 is 0.0, one NaN
    bytes     string, binary, fixed_size_binary,  UTF-8 or raw bytes
              their large_ and _view kinds
    date      date32, date64                      days since the epoch
    time      time32, time64                      nanoseconds since midnight
    instant   timestamp, duration, any unit       microseconds, floored; time zone ignored
    decimal   any precision and scale             its shortest decimal text, as bytes
    null      every type                          one fixed value

Dictionary, run-end-encoded and extension columns hash as the values they stand for.

Definition, all arithmetic modulo 2**64. ``mix`` is the finalizer of SplitMix64 (Steele, Lea,
Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014). A 64-bit value hashes
to ``mix(value)``. Bytes are cut into 8-byte little-endian words, the last one padded with
zeros; ``h = 0``, then ``h = h * P + mix(word)`` for each, then ``mix(h ^ (length * G))``.
Several columns combine left to right as ``mix(h * P + column_hash)``, starting from the first
column's hash; a single column is its own hash.

May import: errors, Arrow, numpy.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from helios_ray.errors import MissingColumnError, PlanError

UInt64Array: TypeAlias = npt.NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_P = np.uint64(0xD6E8FEB86659FD93)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)

NULL_HASH = np.uint64(0x6E756C6C6E756C6C)
"""The hash of null, of every type."""

_LONG = 32
"""Byte strings of more words than this are summed one by one instead of word by word."""

_WORD_MASK = np.array([0] + [(1 << (8 * n)) - 1 for n in range(1, 8)] + [2**64 - 1], np.uint64)


def mix(values: UInt64Array) -> UInt64Array:
    """The finalizer of SplitMix64, on a fresh copy of ``values``."""
    z: UInt64Array = values + GOLDEN
    z ^= z >> _S30
    z *= _M1
    z ^= z >> _S27
    z *= _M2
    z ^= z >> _S31
    return z


def missing_column(name: str, schema: pa.Schema, where: str) -> MissingColumnError:
    """The error for a column that is not there, with the nearest match.

    Example:
        >>> print(missing_column("prise", pa.schema([("price", pa.int64())]), "filter 'f'"))
        filter 'f' needs column 'prise', and the stream has: price. Did you mean 'price'?
    """
    near = difflib.get_close_matches(name, schema.names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else " Name one of these columns."
    have = ", ".join(schema.names) or "no columns"
    return MissingColumnError(f"{where} needs column {name!r}, and the stream has: {have}.{hint}")


def check_keys(schema: pa.Schema, keys: Sequence[str], where: str = "key_by") -> None:
    """Raise at plan time what ``key_hash`` would raise at the first batch.

    Args:
        schema: of the stream.
        keys: key columns, in order.
        where: who asks, for the message.

    Raises:
        MissingColumnError: a key is not a column.
        PlanError: there is no key, a key is named twice, or its type cannot be a key.
    """
    if not keys:
        raise PlanError(f"{where} needs at least one key column, got none.")
    if len(set(keys)) != len(keys):
        raise PlanError(f"{where} names a key column twice: {list(keys)}.")
    for key in keys:
        found = schema.get_all_field_indices(key)
        if not found:
            raise missing_column(key, schema, where)
        if len(found) > 1:
            raise PlanError(f"{where}: the stream has {len(found)} columns named {key!r}.")
        _hasher(logical_type(schema.field(found[0]).type), key)


def logical_type(data_type: pa.DataType) -> pa.DataType:
    """The type that dictionary, run-end and extension encodings stand for.

    Views and narrow decimals, for which Arrow lacks most kernels, become their plain kinds.
    """
    while True:
        if pt.is_dictionary(data_type) or pt.is_run_end_encoded(data_type):
            data_type = data_type.value_type
        elif isinstance(data_type, pa.BaseExtensionType):
            data_type = data_type.storage_type
        else:
            return _plain_kind(data_type)


def _plain_kind(data_type: pa.DataType) -> pa.DataType:
    if pt.is_string_view(data_type):
        return pa.string()
    if pt.is_binary_view(data_type):
        return pa.binary()
    if pt.is_decimal(data_type) and data_type.bit_width < 128:
        return pa.decimal128(data_type.precision, data_type.scale)
    return data_type


def decoded(array: pa.Array) -> pa.Array:
    """``array`` in its :func:`logical_type`."""
    while True:
        if pt.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pt.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        elif isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        else:
            plain = _plain_kind(array.type)
            return array if plain == array.type else array.cast(plain)


def key_hash(batch: pa.RecordBatch, keys: Sequence[str]) -> UInt64Array:
    """Hash the key of every row.

    Args:
        batch: rows.
        keys: key columns, in order; the order matters.

    Returns:
        One uint64 a row; the array may be read-only.

    Raises:
        MissingColumnError: a key is not a column of ``batch``.
        PlanError: no keys, or a key column is of a type that cannot be a key (struct,
            list, map, union, month interval).

    Example:
        >>> batch = pa.record_batch({"k": pa.array([1, 2, None], pa.int16())})
        >>> [hex(h) for h in key_hash(batch, ["k"]).tolist()]
        ['0x910a2dec89025cc1', '0x975835de1c9756ce', '0x6e756c6c6e756c6c']
    """
    check_keys(batch.schema, keys)
    first, *rest = keys
    combined = hash_array(batch.column(first), first)
    for key in rest:
        combined = combined * _P
        combined += hash_array(batch.column(key), key)
        combined = mix(combined)
    return combined


def hash_array(array: pa.Array, name: str = "key") -> UInt64Array:
    """Hash every value of one column; see the module's definition.

    Raises:
        PlanError: a type that cannot be a key.
    """
    if pt.is_dictionary(array.type):
        hashes = hash_array(array.dictionary, name)
        indices = array.indices
        if indices.null_count:
            hashes = np.append(hashes, NULL_HASH)
            indices = pc.fill_null(indices.cast(pa.int64()), len(hashes) - 1)
        found: UInt64Array = hashes[indices.to_numpy(zero_copy_only=False)]
        return found
    array = decoded(array)
    hasher = _hasher(array.type, name)
    if len(array) == 0:
        return np.empty(0, np.uint64)
    hashes = hasher(array)
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = NULL_HASH
    return hashes


def values_buffer(array: pa.Array, dtype: Any) -> npt.NDArray[Any]:
    """A zero-copy view of a primitive array's values; what stands under nulls is arbitrary."""
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(len(array), dtype)
    width = np.dtype(dtype).itemsize
    return np.frombuffer(buffer, dtype, len(array), array.offset * width)


def _hasher(data_type: pa.DataType, name: str) -> Callable[[pa.Array], UInt64Array]:
    """The function for a type. Raises PlanError for types that cannot be keys."""
    if pt.is_integer(data_type):
        return _hash_integers
    if pt.is_boolean(data_type):
        return lambda array: _hash_integers(array.cast(pa.uint8()))
    if pt.is_floating(data_type):
        return _hash_floats
    if _is_bytes(data_type):
        return _hash_bytes
    if pt.is_temporal(data_type) and not pt.is_interval(data_type):
        return _hash_temporal
    if pt.is_decimal(data_type):
        return _hash_decimals
    if pt.is_null(data_type):
        return lambda array: np.full(len(array), NULL_HASH, np.uint64)
    raise PlanError(
        f"column {name!r} of type {data_type} cannot be a key: expected integer, float, bool, "
        f"string, binary, date, time, timestamp, duration or decimal. Make a column of one of "
        f"these from it first (with_columns or map) and key by that."
    )


def _is_bytes(data_type: pa.DataType) -> bool:
    return bool(
        pt.is_string(data_type)
        or pt.is_large_string(data_type)
        or pt.is_string_view(data_type)
        or pt.is_binary(data_type)
        or pt.is_large_binary(data_type)
        or pt.is_binary_view(data_type)
        or pt.is_fixed_size_binary(data_type)
    )


def _hash_integers(array: pa.Array) -> UInt64Array:
    values = values_buffer(array, array.type.to_pandas_dtype())
    if values.itemsize < 8:
        values = values.astype(np.int64)  # sign-extended, so that widths agree
    return mix(values.view(np.uint64))


def _hash_floats(array: pa.Array) -> UInt64Array:
    return mix(float_bits(array).view(np.uint64))


def float_bits(array: pa.Array) -> npt.NDArray[np.int64]:
    """float64 bits with one zero and one NaN, so that equal keys have equal bits."""
    values = values_buffer(array, array.type.to_pandas_dtype()).astype(np.float64)
    values += 0.0  # -0.0 + 0.0 is 0.0
    values[np.isnan(values)] = np.nan
    return values.view(np.int64)


def _hash_temporal(array: pa.Array) -> UInt64Array:
    kind = array.type
    if pt.is_date(kind):
        days = values_buffer(array, np.int32 if pt.is_date32(kind) else np.int64)
        scaled = days.astype(np.int64) if pt.is_date32(kind) else days // 86_400_000
        return mix(scaled.view(np.uint64))
    narrow = pt.is_time32(kind)
    raw = values_buffer(array, np.int32 if narrow else np.int64).astype(np.int64)
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
    target = 10**9 if pt.is_time(kind) else 10**6
    # Floor for finer units: the part below the target unit may not tell equal instants apart.
    # Coarser units wrap around far from the epoch, the same way every time.
    scaled = raw * (target // per_second) if target >= per_second else raw // (per_second // target)
    return mix(scaled.view(np.uint64))


def _hash_decimals(array: pa.Array) -> UInt64Array:
    encoded = array.dictionary_encode()
    texts = pa.array([_decimal_text(v) for v in encoded.dictionary.to_pylist()], pa.large_binary())
    codes = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
    if len(texts) == 0:
        return np.full(len(array), NULL_HASH, np.uint64)
    hashes: UInt64Array = _hash_bytes(texts)[codes]
    return hashes


def _decimal_text(value: Decimal | None) -> bytes | None:
    """``1.50`` and ``1.5`` are one value: digits without trailing zeros, then the exponent."""
    if value is None:
        return None
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    if not text:
        return b"0"
    short = text.rstrip("0")
    return f"{'-' * sign}{short}E{int(exponent) + len(text) - len(short)}".encode()


def _hash_bytes(array: pa.Array) -> UInt64Array:
    starts, lengths, data = _spans(array)
    # Eight spare bytes let every word be read whole; the part past the end is masked off.
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[: len(data)] = data
    words = np.ndarray((len(data) + 1,), "<u8", buffer=padded, strides=(1,))
    hashes = np.zeros(len(starts), np.uint64)
    counts = (lengths + 7) >> 3
    most = int(counts.max(initial=0))
    rows: Any = slice(None)
    for word in range(min(most, _LONG)):
        if word:
            rows = np.flatnonzero(counts > word)
        else:
            rows = np.flatnonzero(counts) if int(counts.min()) == 0 else slice(None)
        done = 8 * word
        values = words[starts[rows] + done].astype(np.uint64, copy=False)
        values = mix(values & _WORD_MASK[np.minimum(lengths[rows] - done, 8)])
        hashes[rows] = hashes[rows] * _P + values
    if most > _LONG:
        for row in np.flatnonzero(counts > _LONG).tolist():
            hashes[row] = _hash_long(int(hashes[row]), words, int(starts[row]), int(lengths[row]))
    return mix(hashes ^ (lengths.astype(np.uint64) * GOLDEN))


def _hash_long(so_far: int, words: UInt64Array, start: int, length: int) -> int:
    """Horner's rule over the words from ``_LONG`` on, as one dot product with powers of P."""
    offsets = np.arange(start + 8 * _LONG, start + length, 8)
    values = words[offsets].astype(np.uint64)
    values[-1] &= _WORD_MASK[min(8, start + length - int(offsets[-1]))]
    powers = np.full(len(values), _P, np.uint64)
    powers[0] = 1
    powers = np.multiply.accumulate(powers)[::-1]
    total = int((mix(values) * powers).sum(dtype=np.uint64))
    return (so_far * pow(int(_P), len(values), 2**64) + total) % 2**64


def _spans(
    array: pa.Array,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Start and length of every value, and the bytes they point into; nulls have length 0."""
    kind = array.type
    if pt.is_fixed_size_binary(kind):
        width = kind.byte_width
        buffer = array.buffers()[1]
        raw = np.frombuffer(buffer, np.uint8)[array.offset * width :] if buffer else _NO_BYTES
        starts = np.arange(len(array), dtype=np.int64) * width
        lengths = np.full(len(array), width, np.int64)
        raw = raw[: len(array) * width]
    else:
        large = pt.is_large_string(kind) or pt.is_large_binary(kind)
        offset_type = np.int64 if large else np.int32
        _, offset_buffer, data_buffer = array.buffers()
        skip = array.offset * np.dtype(offset_type).itemsize
        offsets = np.frombuffer(offset_buffer, offset_type, len(array) + 1, skip).astype(np.int64)
        raw = np.frombuffer(data_buffer, np.uint8) if data_buffer else _NO_BYTES
        raw = raw[offsets[0] : offsets[-1]]
        starts = offsets[:-1] - offsets[0]
        lengths = np.diff(offsets)
    if array.null_count:
        empty = array.is_null().to_numpy(zero_copy_only=False)
        lengths[empty] = 0
    return starts, lengths, raw


_NO_BYTES = np.empty(0, np.uint8)
