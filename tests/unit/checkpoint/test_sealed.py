"""Sealed objects: what goes in comes out, and whatever was touched does not open."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from datetime import datetime, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.checkpoint import (
    EncryptionAlgorithm,
    EncryptionConfig,
    InMemoryKeyProvider,
    WrappedKey,
)
from helios_ray.checkpoint.sealed import Binding, open_sealed, read_header, seal
from helios_ray.checkpoint.snapshots import Sealer, open_table, seal_table
from helios_ray.errors import (
    CheckpointError,
    ConfigError,
    KeyNotFoundError,
    TamperedObjectError,
    TruncatedObjectError,
    UnknownFormatError,
    WrongKeyError,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
KEYS = InMemoryKeyProvider({"k": bytes(range(32))})
HERE = Binding(job="j", epoch=3, checkpoint_id=42, operator="hot", subtask=1, name="runs")
CHUNK = 64
TAG = 16

algorithms = st.sampled_from(EncryptionAlgorithm)
payloads = st.one_of(
    st.binary(max_size=5 * CHUNK), st.integers(0, 5 * CHUNK).map(lambda n: b"\x00" * n)
)


def sealed(
    payload: bytes,
    algorithm: EncryptionAlgorithm = EncryptionAlgorithm.AES256GCM,
    compress: bool = True,
    public: bytes = b"",
) -> bytes:
    return seal(
        payload,
        HERE,
        keys=KEYS,
        now=NOW,
        algorithm=algorithm,
        compress=compress,
        chunk_size=CHUNK,
        public=public,
    )


def opened(data: bytes, binding: Binding = HERE) -> bytes:
    return bytes(open_sealed(data, binding, KEYS, allow_unencrypted=True).to_pybytes())


def incompressible(chunks: int) -> bytes:
    return bytes((i * 131 + (i >> 8) * 17) % 256 for i in range(chunks * CHUNK))


@given(payloads, algorithms, st.booleans(), st.binary(max_size=100))
def test_what_is_sealed_opens_again(
    payload: bytes, algorithm: EncryptionAlgorithm, compress: bool, public: bytes
) -> None:
    data = sealed(payload, algorithm, compress, public)
    header = read_header(data)
    assert opened(data) == payload
    assert header.total_size == len(data)
    assert header.raw_size == len(payload)
    assert header.public == public
    assert header.encrypted == (algorithm is EncryptionAlgorithm.AES256GCM)


@given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_pieces_are_sealed_as_their_whole(pieces: list[bytes], compress: bool) -> None:
    data = seal(iter(pieces), HERE, keys=KEYS, now=NOW, compress=compress, chunk_size=CHUNK)
    assert opened(data) == b"".join(pieces)


@given(st.data(), payloads, algorithms, st.booleans())
def test_any_flipped_bit_is_found(
    data: st.DataObject, payload: bytes, algorithm: EncryptionAlgorithm, compress: bool
) -> None:
    damaged = bytearray(sealed(payload, algorithm, compress))
    position = data.draw(st.integers(0, len(damaged) - 1))
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((TamperedObjectError, UnknownFormatError)):
        opened(bytes(damaged))


@given(st.data(), payloads, algorithms)
def test_any_cut_is_called_a_truncation(
    data: st.DataObject, payload: bytes, algorithm: EncryptionAlgorithm
) -> None:
    whole = sealed(payload, algorithm)
    with pytest.raises(TruncatedObjectError):
        opened(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(payloads, algorithms, st.binary(min_size=1, max_size=64))
def test_anything_appended_is_found(
    payload: bytes, algorithm: EncryptionAlgorithm, more: bytes
) -> None:
    with pytest.raises(TamperedObjectError, match="follow its end"):
        opened(sealed(payload, algorithm) + more)


@given(st.permutations(range(4)).filter(lambda order: order != list(range(4))))
def test_reordered_chunks_do_not_open(order: list[int]) -> None:
    data = sealed(incompressible(4), compress=False)
    start, size = read_header(data).length, CHUNK + TAG
    chunks = [data[start + i * size : start + (i + 1) * size] for i in range(4)]
    with pytest.raises(TamperedObjectError, match="does not authenticate"):
        opened(data[:start] + b"".join(chunks[i] for i in order))


def test_chunks_of_two_objects_of_one_place_do_not_mix() -> None:
    first, second = (sealed(incompressible(2), compress=False) for _ in range(2))
    start, size = read_header(first).length, CHUNK + TAG
    with pytest.raises(TamperedObjectError, match="chunk 2 of 2"):
        opened(first[: start + size] + second[start + size :])


def test_a_header_rewritten_to_end_a_chunk_early_does_not_open() -> None:
    # A cut at a chunk's border with sizes and CRC made to fit: only the last-flag tells.
    data = sealed(incompressible(3), compress=False)
    header = read_header(data)
    fixed = struct.Struct(">BBIQQ7s")
    values = list(fixed.unpack_from(data, 14))
    values[3] = values[4] = 2 * CHUNK
    forged = bytearray(data[: header.length - 4])
    fixed.pack_into(forged, 14, *values)
    forged += struct.pack(">I", zlib.crc32(forged))
    end = header.length + 2 * (CHUNK + TAG)
    with pytest.raises(TamperedObjectError, match="does not authenticate"):
        opened(bytes(forged) + data[header.length : end])


@pytest.mark.parametrize("algorithm", EncryptionAlgorithm)
@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(HERE, job="other"),
        replace(HERE, epoch=4),
        replace(HERE, checkpoint_id=43),
        replace(HERE, operator="cold"),
        replace(HERE, subtask=0),
        replace(HERE, name="timers"),
    ],
    ids=str,
)
def test_an_object_replayed_in_another_place_does_not_open(
    elsewhere: Binding, algorithm: EncryptionAlgorithm
) -> None:
    with pytest.raises(TamperedObjectError):
        opened(sealed(b"state", algorithm), elsewhere)


texts = st.text(max_size=8)
bindings = st.builds(
    Binding,
    job=texts,
    operator=texts,
    name=texts,
    epoch=st.integers(0, 3),
    checkpoint_id=st.integers(0, 3),
    subtask=st.integers(-1, 2),
)


@given(bindings, bindings)
def test_different_places_have_different_bindings(one: Binding, other: Binding) -> None:
    assert (one.encode() == other.encode()) == (one == other)


def test_the_plaintext_is_nowhere_in_an_encrypted_object() -> None:
    secret = b"account 4711 holds 12 EUR" * 3
    assert secret[:25] not in sealed(secret, compress=False)
    assert secret[:25] in sealed(secret, EncryptionAlgorithm.NONE, compress=False)


def test_no_two_objects_share_key_or_nonce() -> None:
    seen: list[bytes] = []

    class Recording(InMemoryKeyProvider):
        def wrap(self, data_key: bytes, *, context: bytes, now: datetime) -> WrappedKey:
            seen.append(data_key)
            return super().wrap(data_key, context=context, now=now)

    keys = Recording()
    first, second = (read_header(seal(b"same", HERE, keys=keys, now=NOW)) for _ in range(2))
    assert len(set(seen)) == 2
    assert first.wrapped != second.wrapped
    assert first.nonce_prefix != second.nonce_prefix


def test_a_plain_object_cannot_stand_in_for_an_encrypted_one() -> None:
    forged = sealed(b"forged", EncryptionAlgorithm.NONE)
    with pytest.raises(TamperedObjectError, match="accept_unencrypted"):
        open_sealed(forged, HERE, KEYS)


def test_missing_and_wrong_keys_are_told_apart() -> None:
    data = sealed(b"state")
    with pytest.raises(KeyNotFoundError, match="'k'"):
        open_sealed(data, HERE, InMemoryKeyProvider({"other": b"o" * 32}))
    with pytest.raises(KeyNotFoundError, match="no key provider"):
        open_sealed(data, HERE, None)
    with pytest.raises(WrongKeyError, match="'k'"):
        open_sealed(data, HERE, InMemoryKeyProvider({"k": b"o" * 32}))


@pytest.mark.parametrize("data", [b"PAR1 something else", b"{}", b"\x89PNG\r\n\x1a\n" + b"x" * 99])
def test_something_else_is_called_an_unknown_format(data: bytes) -> None:
    with pytest.raises(UnknownFormatError):
        opened(data)


def test_a_newer_version_is_called_by_its_number() -> None:
    data = bytearray(sealed(b"state"))
    data[9] = 2
    with pytest.raises(UnknownFormatError, match=r"version 2.*reads version 1"):
        opened(bytes(data))


@given(st.binary(max_size=300))
def test_no_bytes_at_all_make_the_reader_fail_in_another_way(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        opened(data)


@given(st.binary(max_size=200))
def test_no_header_at_all_makes_the_reader_fail_in_another_way(fields: bytes) -> None:
    front = b"\x89HELIOS\n" + struct.pack(">HI", 1, 14 + len(fields) + 4) + fields
    with pytest.raises(CheckpointError):
        opened(front + struct.pack(">I", zlib.crc32(front)))


def test_sealing_without_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="KeyProvider"):
        seal(b"state", HERE, keys=None, now=NOW)


# ----------------------------------------------------------------------------------- tables

SEALER = Sealer(EncryptionConfig(key_provider=KEYS, chunk_size=4096), clock=lambda: NOW)

tables = st.integers(0, 300).map(
    lambda n: pa.table(
        {
            "key_group": pa.array(range(n), pa.int32()),
            "key": pa.array([None if i % 7 == 3 else f"k{i}" for i in range(n)], pa.string()),
            "when": pa.array(range(n), pa.timestamp("us", "UTC")),
            "values": pa.array([[i] * (i % 3) for i in range(n)], pa.list_(pa.int64())),
        }
    )
)


@given(tables, st.sampled_from(EncryptionAlgorithm), st.booleans())
def test_a_table_comes_back_with_its_schema(
    table: pa.Table, algorithm: EncryptionAlgorithm, compress: bool
) -> None:
    config = EncryptionConfig(
        algorithm=algorithm, compress_before_encrypt=compress, key_provider=KEYS
    )
    sealer = Sealer(config, clock=lambda: NOW)
    result = seal_table(table, HERE, sealer)
    back = open_table(result.data, HERE, sealer)
    assert back.equals(table)
    assert back.schema.equals(table.schema, check_metadata=True)
    assert (result.rows, result.size) == (table.num_rows, len(result.data))
    assert result.key_id == ("k" if config.encrypted else "")


def test_a_slice_is_sealed_without_its_parent() -> None:
    table = pa.table({"a": range(100_000)})
    assert SEALER.seal_table(table.slice(500, 10), HERE).raw_size < 2_000


def test_bytes_that_are_no_table_are_refused_after_they_authenticate() -> None:
    data = SEALER.seal_bytes(b"not arrow", HERE).data
    with pytest.raises(TamperedObjectError, match="not an Arrow table"):
        SEALER.open_table(data, HERE)


def test_old_objects_open_after_a_rotation_and_new_ones_use_the_new_key() -> None:
    keys = InMemoryKeyProvider()
    sealer = Sealer(EncryptionConfig(key_provider=keys), clock=lambda: NOW)
    old = sealer.seal_bytes(b"old", HERE)
    keys.rotate()
    new = sealer.seal_bytes(b"new", HERE)
    assert old.key_id != new.key_id
    assert sealer.open_bytes(old.data, HERE).to_pybytes() == b"old"
    assert sealer.open_bytes(new.data, HERE).to_pybytes() == b"new"


def test_unencrypted_checkpoints_open_under_encryption_only_if_that_is_asked_for() -> None:
    plain = Sealer(EncryptionConfig(algorithm=EncryptionAlgorithm.NONE)).seal_bytes(b"old", HERE)
    with pytest.raises(TamperedObjectError):
        SEALER.open_bytes(plain.data, HERE)
    lenient = Sealer(EncryptionConfig(key_provider=KEYS, accept_unencrypted=True))
    assert lenient.open_bytes(plain.data, HERE).to_pybytes() == b"old"


def test_encrypted_checkpoints_open_after_encryption_was_turned_off() -> None:
    data = SEALER.seal_bytes(b"old", HERE).data
    plain = Sealer(EncryptionConfig(algorithm=EncryptionAlgorithm.NONE, key_provider=KEYS))
    assert plain.open_bytes(data, HERE).to_pybytes() == b"old"
    assert plain.rotate_if_due() == ""
