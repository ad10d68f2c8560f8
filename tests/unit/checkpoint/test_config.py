"""The settings: the guide's defaults, what is refused, what is advised."""

from __future__ import annotations

import pickle
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from helios_ray.checkpoint import (
    CheckpointConfig,
    CheckpointConfigWarning,
    CheckpointStorage,
    EncryptionAlgorithm,
    EncryptionConfig,
    FileKeyProvider,
    InMemoryKeyProvider,
)
from helios_ray.checkpoint.storage import LocalStorage
from helios_ray.errors import ConfigError

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def quiet(**settings: Any) -> CheckpointConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointConfigWarning)
        return CheckpointConfig(**settings)


def test_without_any_setting_a_job_has_the_guides_defaults() -> None:
    config = CheckpointConfig()
    assert config.interval == timedelta(seconds=60)
    assert config.effective_min_pause == timedelta(seconds=10)
    assert config.max_concurrent == 1
    assert config.retain_count == 3
    assert config.timeout == timedelta(minutes=5)
    assert config.tolerable_failures == 0
    assert config.encryption.algorithm is EncryptionAlgorithm.AES256GCM
    assert config.encryption.key_rotation_days == 30
    assert config.encryption.compress_before_encrypt
    assert config.advice() == ()


def test_the_default_storage_is_a_directory_named_once_and_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = CheckpointConfig().storage
    monkeypatch.chdir("/")
    assert isinstance(storage, LocalStorage)
    assert storage.path == str(tmp_path / ".helios/checkpoints")


def test_the_default_key_file_is_made_on_first_use_and_only_by_who_starts_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIOS_KEY_FILE", str(tmp_path / "mine" / "keys.json"))
    config = EncryptionConfig()
    assert not (tmp_path / "mine").exists()
    sent = config.prepared(NOW)
    assert (tmp_path / "mine" / "keys.json").stat().st_mode & 0o777 == 0o600
    assert isinstance(sent.keys, FileKeyProvider)
    assert sent.keys.create is False


def test_without_encryption_no_key_is_looked_for() -> None:
    config = EncryptionConfig(algorithm=EncryptionAlgorithm.NONE)
    assert config.keys is None
    assert config.prepared(NOW) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interval", timedelta(0)),
        ("interval", timedelta(seconds=-1)),
        ("interval", 60),
        ("min_pause", timedelta(seconds=-1)),
        ("timeout", timedelta(0)),
        ("max_concurrent", 0),
        ("max_concurrent", True),
        ("retain_count", 0),
        ("retain_count", 2.5),
        ("tolerable_failures", -1),
        ("storage", "s3://bucket"),
        ("encryption", "AES256GCM"),
    ],
)
def test_a_bad_checkpoint_setting_is_refused_by_name_and_value(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        CheckpointConfig(**{field: value})
    assert f"CheckpointConfig.{field}" in str(caught.value)
    assert repr(value) in str(caught.value)
    assert "Use" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("algorithm", "AES256GCM"),
        ("key_rotation_days", 0),
        ("compress_before_encrypt", 1),
        ("accept_unencrypted", "no"),
        ("chunk_size", 100),
        ("key_provider", b"raw key"),
    ],
)
def test_a_bad_encryption_setting_is_refused_by_name_and_value(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"EncryptionConfig\.{field} must be"):
        EncryptionConfig(**{field: value})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"interval": timedelta(seconds=9)}, "Under 10 s that costs throughput"),
        ({"interval": timedelta(milliseconds=100)}, "0.1 s"),
        ({"interval": timedelta(minutes=11)}, "processed again"),
        ({"min_pause": timedelta(seconds=60)}, "min_pause"),
    ],
)
def test_a_legal_setting_that_costs_more_than_it_seems_says_what(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.warns(CheckpointConfigWarning, match=says) as caught:
        CheckpointConfig(**settings)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("interval", [timedelta(seconds=10), timedelta(minutes=10)])
def test_the_bounds_of_the_guides_advice_are_not_warned_about(interval: timedelta) -> None:
    assert CheckpointConfig(interval=interval).advice() == ()


@pytest.mark.parametrize(
    ("interval", "pause"),
    [
        (timedelta(milliseconds=60), timedelta(milliseconds=10)),
        (timedelta(seconds=30), timedelta(seconds=5)),
        (timedelta(minutes=5), timedelta(seconds=10)),
    ],
)
def test_the_default_pause_never_defeats_a_short_interval(
    interval: timedelta, pause: timedelta
) -> None:
    assert quiet(interval=interval).effective_min_pause == pause


def test_a_given_pause_is_taken_as_given() -> None:
    config = quiet(interval=timedelta(seconds=30), min_pause=timedelta(0))
    assert config.effective_min_pause == timedelta(0)


def test_settings_travel_to_other_processes_unchanged() -> None:
    config = CheckpointConfig(
        encryption=EncryptionConfig(key_provider=FileKeyProvider("/keys.json")),
        storage=CheckpointStorage.S3(bucket="checkpoints", prefix="prod/"),
    )
    assert pickle.loads(pickle.dumps(config)) == config


def test_no_repr_of_the_settings_shows_a_secret() -> None:
    config = CheckpointConfig(
        encryption=EncryptionConfig(key_provider=InMemoryKeyProvider({"k": b"K" * 32})),
        storage=CheckpointStorage.S3(bucket="checkpoints", key="AKID", secret="hush", token="tok"),
    )
    for secret in ("AKID", "hush", "tok'", "K" * 32):
        assert secret not in repr(config)
