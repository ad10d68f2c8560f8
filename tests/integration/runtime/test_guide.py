"""The guide's validation tests, as the guide writes them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from helios_ray.checkpoint import CheckpointConfig, EncryptionAlgorithm, EncryptionConfig
from helios_ray.testing import (
    create_test_config,
    create_test_pipeline,
    recover_from_checkpoint,
    recover_pipeline,
)

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_exactly_once_no_failures(tmp_path: Path) -> None:
    config = create_test_config(tmp_path)
    source, sink = create_test_pipeline(config)

    sent_ids = set(range(10_000))
    source.emit_events(sent_ids)
    source.wait_for_completion()

    received_ids = sink.get_all_event_ids()
    assert len(received_ids) == 10_000
    assert received_ids == sent_ids
    assert sink.count_rows() == 10_000
    source.close()


def test_exactly_once_with_failure(tmp_path: Path) -> None:
    config = create_test_config(tmp_path)
    source, _ = create_test_pipeline(config)

    source.emit_events(range(5_000))
    source.trigger_checkpoint()
    source.emit_events(range(5_000, 10_000))
    # Before the second checkpoint.
    source.simulate_operator_failure()

    recovered_source, recovered_sink = recover_pipeline(config)
    received_ids = recovered_sink.get_all_event_ids()
    assert len(received_ids) == 10_000
    for i in range(10_000):
        assert i in received_ids, f"Missing event ID: {i}"
    # No duplicates from the replay either, neither in the sink nor in the operator's state.
    rows = recovered_sink.rows()
    assert rows.num_rows == 10_000
    assert set(rows["times"].to_pylist()) == {1}
    recovered_source.close()


def test_exactly_once_when_the_whole_job_is_lost(tmp_path: Path) -> None:
    config = create_test_config(tmp_path)
    source, _ = create_test_pipeline(config)

    source.emit_events(range(5_000))
    source.trigger_checkpoint()
    source.emit_events(range(5_000, 10_000))
    source.simulate_failure()

    recovered_source, recovered_sink = recover_pipeline(config)
    assert recovered_sink.get_all_event_ids() == set(range(10_000))
    assert recovered_sink.count_rows() == 10_000
    recovered_source.close()


def test_checkpoint_encryption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_KEY_FILE", str(tmp_path / "keys" / "keys.json"))
    config = CheckpointConfig(encryption=EncryptionConfig(algorithm=EncryptionAlgorithm.AES256GCM))
    source, _ = create_test_pipeline(config)

    source.emit_events(range(1_000))
    checkpoint_path = source.trigger_checkpoint()

    encrypted_data = checkpoint_path.read_bytes()
    assert b"event_id" not in encrypted_data, "Checkpoint contains unencrypted data!"
    # The state objects that it names hold no word of it either.
    objects = [p for p in Path(".helios/checkpoints").rglob("*") if p.is_file()]
    assert checkpoint_path.resolve() in [p.resolve() for p in objects]
    for path in objects:
        for word in (b"event_id", b"ARROW", b"events-0", b"part-sink"):
            assert word not in path.read_bytes(), f"{path} holds {word!r}"

    recovered_source, recovered_sink = recover_from_checkpoint(checkpoint_path)
    assert recovered_source.is_healthy()
    assert recovered_sink.get_all_event_ids() == set(range(1_000))
    assert recovered_sink.count_rows() == 1_000
    recovered_source.close()


def test_without_encryption_the_same_search_finds_plaintext(tmp_path: Path) -> None:
    """Else the search above would prove nothing."""
    config = create_test_config(
        tmp_path,
        encryption=EncryptionConfig(
            algorithm=EncryptionAlgorithm.NONE, compress_before_encrypt=False
        ),
    )
    source, _ = create_test_pipeline(config)
    source.emit_events(range(1_000))
    source.wait_for_completion()
    source.trigger_checkpoint()
    files = [p for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()]
    assert any(b"event_id" in p.read_bytes() for p in files)
    assert any(b"events-0" in p.read_bytes() for p in files)
    source.close()


def test_random_failures(tmp_path: Path) -> None:
    dice = random.Random(1)
    config = create_test_config(tmp_path)
    source, sink = create_test_pipeline(config)

    failures = 0
    for _ in range(10):
        source.emit_events(range(1_000))
        # 20% chance of failure
        if dice.random() < 0.2:
            failures += 1
            source.simulate_failure()
            source, sink = recover_pipeline(config)

    assert failures == 3, "this seed tests nothing"
    assert sink.count_unique_events() == 10_000
    rows = sink.rows()
    assert rows.num_rows == 10_000
    # The operator's count of an id grew by one with each emission, through every failure.
    seen = {(r["event_id"], r["batch"]): r["times"] for r in rows.to_pylist()}
    assert seen == {(i, batch): batch + 1 for i in range(1_000) for batch in range(10)}
    source.close()
