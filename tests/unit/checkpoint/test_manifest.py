"""Records as bytes: format version 1 is frozen, and what is damaged is not believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.checkpoint import EncryptionAlgorithm, EncryptionConfig
from helios_ray.checkpoint import layout as paths
from helios_ray.checkpoint.manifest import (
    binding_of,
    decode_manifest,
    decode_payload,
    decode_record,
    encode_manifest,
    encode_payload,
    encode_record,
    read_summary,
    record_path,
)
from helios_ray.checkpoint.snapshots import Sealer
from helios_ray.errors import (
    TamperedObjectError,
    TruncatedObjectError,
    UnknownFormatError,
)
from helios_ray.identifiers import TaskId
from helios_ray.records import (
    CommittedMarker,
    EpochRecord,
    Manifest,
    PreparedTransaction,
    RestoreRecord,
    StateObject,
    TaskSnapshot,
)
from tests.unit.checkpoint.examples import COMMITTED, EPOCH, FRESH, MANIFEST, RESTORE, sealer

GOLDEN = Path(__file__).parent / "golden"
PLAIN: dict[str, EpochRecord | RestoreRecord | CommittedMarker] = {
    "epoch.v1.json": EPOCH,
    "restore.v1.json": RESTORE,
    "restore-fresh.v1.json": FRESH,
    "committed.v1.json": COMMITTED,
}


@pytest.mark.parametrize("file", PLAIN)
def test_version_1_of_the_plain_records_is_written_and_read_to_the_byte(file: str) -> None:
    golden = (GOLDEN / file).read_bytes()
    assert encode_record(PLAIN[file]) == golden
    assert decode_record(golden) == PLAIN[file]


def test_version_1_of_a_manifests_payload_is_written_and_read_to_the_byte() -> None:
    golden = (GOLDEN / "manifest-payload.v1.bin").read_bytes()
    assert encode_payload(MANIFEST) == golden
    assert decode_payload(golden) == MANIFEST


@pytest.mark.parametrize("file", ["manifest.v1.sealed", "manifest-plain.v1.sealed"])
def test_version_1_of_a_sealed_manifest_opens(file: str) -> None:
    golden = (GOLDEN / file).read_bytes()
    plain = file.startswith("manifest-plain")
    config = EncryptionConfig(algorithm=EncryptionAlgorithm.NONE)
    opener = Sealer(config) if plain else sealer()
    assert decode_manifest(golden, opener) == MANIFEST
    assert read_summary(golden).encrypted is not plain


ids = st.integers(0, 10**12)
names = st.text(max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
state_objects = st.builds(
    StateObject,
    operator=names,
    subtask=st.integers(0, 9),
    name=names,
    kind=names,
    path=st.none() | names,
    inline=st.none() | st.binary(max_size=40),
    size=ids,
    raw_size=ids,
    rows=ids,
    key_id=names,
    digest=names,
)
prepared = st.builds(
    PreparedTransaction, transaction=names, sink=names, checkpoint_id=ids, payload=json_values
)
manifests = st.builds(
    Manifest,
    job=names,
    epoch=ids,
    owner=names,
    checkpoint_id=ids,
    created_at=st.floats(0, 4e9),
    duration=st.floats(0, 1e6),
    max_parallelism=st.integers(1, 2**15),
    parallelism=st.dictionaries(names, st.integers(1, 99), max_size=3),
    tasks=st.lists(
        st.builds(
            TaskSnapshot,
            task=st.builds(TaskId, names, st.integers(0, 9)),
            objects=st.lists(state_objects, max_size=3).map(tuple),
            prepared=st.lists(prepared, max_size=3).map(tuple),
            finished=st.booleans(),
        ),
        max_size=4,
    ).map(tuple),
    final=st.booleans(),
)


@given(manifests)
def test_every_manifest_comes_back(manifest: Manifest) -> None:
    data = encode_manifest(manifest, sealer())
    path = record_path(manifest)
    assert decode_manifest(data, sealer(), path=path) == manifest


plain_records = st.one_of(
    st.builds(EpochRecord, epoch=ids, owner=names, headroom=ids),
    st.builds(
        RestoreRecord,
        epoch=ids,
        owner=names,
        checkpoint_id=st.none() | ids,
        first_checkpoint_id=ids,
    ),
    st.builds(CommittedMarker, checkpoint_id=ids, epoch=ids),
)


@given(plain_records)
def test_every_plain_record_comes_back(record: Any) -> None:
    assert decode_record(encode_record(record)) == record


def test_a_listing_needs_no_key_and_shows_no_secret() -> None:
    data = encode_manifest(MANIFEST, sealer())
    summary = read_summary(data[:2000])
    assert (summary.checkpoint_id, summary.epoch, summary.owner) == (42, 7, "a1b2c3")
    assert (summary.state_size, summary.raw_size, summary.tasks) == (5014, 20100, 2)
    assert summary.created.isoformat() == "2026-01-01T00:00:00.250000+00:00"
    assert summary.encrypted
    for secret in (b"parquet", b"helios:hot-auctions:out", b"sealed bytes", b"runs"):
        assert secret not in data


def test_the_public_part_cannot_be_changed_either() -> None:
    data = encode_manifest(MANIFEST, sealer())
    with pytest.raises(TamperedObjectError):
        decode_manifest(data.replace(b'"epoch":7', b'"epoch":9'), sealer())


def test_a_manifest_in_another_checkpoints_place_is_refused() -> None:
    data = encode_manifest(MANIFEST, sealer())
    with pytest.raises(TamperedObjectError, match="manifest of checkpoint 42"):
        decode_manifest(data, sealer(), path=paths.manifest_path(43))


def test_a_cut_manifest_is_called_truncated() -> None:
    data = encode_manifest(MANIFEST, sealer())
    for length in (5, 100, len(data) - 1):
        with pytest.raises(TruncatedObjectError):
            decode_manifest(data[:length], sealer())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", TamperedObjectError),
        (b"[1]", TamperedObjectError),
        (b'{"format": 1}', TamperedObjectError),
        (b'{"format": 1, "record": "epoch", "epoch": 1}', TamperedObjectError),
        (b'{"format": 1, "record": "savepoint"}', TamperedObjectError),
        (b'{"format": 2, "record": "epoch"}', UnknownFormatError),
    ],
)
def test_what_is_not_such_a_record_is_refused_with_its_path(
    data: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error, match="epochs/00000007"):
        decode_record(data, "epochs/00000007")


def test_an_object_in_storage_is_bound_to_the_checkpoint_it_was_written_for() -> None:
    inline, stored, _ = MANIFEST.tasks[0].objects
    assert binding_of(stored, MANIFEST).epoch == 6
    assert binding_of(stored, MANIFEST).checkpoint_id == 40
    assert binding_of(inline, MANIFEST).epoch == 7
    assert binding_of(inline, MANIFEST).checkpoint_id == 42
    with pytest.raises(TamperedObjectError):
        binding_of(replace(stored, path="elsewhere/runs"), MANIFEST)


# ----------------------------------------------------------------------------------- layout


@given(ids, ids, st.integers(0, 999), st.text(min_size=1, max_size=20))
def test_every_path_is_read_back(epoch: int, checkpoint: int, subtask: int, name: str) -> None:
    named = paths.object_name(checkpoint, name)
    path = paths.state_path(epoch, "per-key", subtask, named)
    assert paths.parse_state_path(path) == (epoch, "per-key", subtask, named)
    assert paths.parse_object_name(named) == (checkpoint, name)
    assert paths.epoch_of(paths.epoch_path(epoch)) == epoch
    assert paths.restore_of(paths.restore_path(epoch)) == epoch
    assert paths.manifest_of(paths.manifest_path(checkpoint)) == checkpoint
    assert paths.committed_of(paths.committed_path(checkpoint)) == checkpoint


@pytest.mark.parametrize("path", ["", "epochs/7", "epochs/00000007.x", "state/00000007/a/b/c"])
def test_foreign_paths_are_nobodys(path: str) -> None:
    assert paths.epoch_of(path) is None
    assert paths.restore_of(path) is None
    assert paths.manifest_of(path) is None
    assert paths.parse_state_path(path) is None
