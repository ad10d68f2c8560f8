"""Key providers: wrapping, rotation, the key file, and what never leaks."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import pickle
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from helios_ray.checkpoint import (
    EnvironmentKeyProvider,
    FileKeyProvider,
    InMemoryKeyProvider,
    KeyProvider,
    WrappedKey,
)
from helios_ray.errors import (
    ConfigError,
    KeyNotFoundError,
    TamperedObjectError,
    UnknownFormatError,
    WrongKeyError,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)
DATA_KEY = bytes(range(32))
VARIABLE = "HELIOS_TEST_KEYS"


def encoded(key: bytes) -> str:
    return base64.b64encode(key).decode()


@pytest.fixture(params=["memory", "file", "environment"])
def provider(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> KeyProvider:
    if request.param == "memory":
        return InMemoryKeyProvider()
    if request.param == "file":
        return FileKeyProvider(tmp_path / "keys.json")
    monkeypatch.setenv(VARIABLE, f"new:{encoded(b'n' * 32)}, old:{encoded(b'o' * 32)}")
    return EnvironmentKeyProvider(VARIABLE)


def test_what_is_wrapped_is_unwrapped_also_in_another_process(provider: KeyProvider) -> None:
    wrapped = provider.wrap(DATA_KEY, context=b"job", now=NOW)
    assert wrapped.key_id == provider.current_key_id(NOW)
    assert wrapped.key_id in provider.key_ids()
    assert DATA_KEY not in wrapped.wrapped
    elsewhere: KeyProvider = pickle.loads(pickle.dumps(provider))
    assert elsewhere.unwrap(wrapped, context=b"job") == DATA_KEY


def test_another_context_or_changed_bytes_do_not_unwrap(provider: KeyProvider) -> None:
    wrapped = provider.wrap(DATA_KEY, context=b"job", now=NOW)
    with pytest.raises(TamperedObjectError):
        provider.unwrap(wrapped, context=b"other job")
    changed = wrapped.wrapped[:-1] + bytes((wrapped.wrapped[-1] ^ 1,))
    with pytest.raises(TamperedObjectError):
        provider.unwrap(WrappedKey(wrapped.key_id, changed), context=b"job")


def test_a_missing_key_names_itself_and_those_that_are_there(provider: KeyProvider) -> None:
    provider.wrap(DATA_KEY, context=b"", now=NOW)
    with pytest.raises(KeyNotFoundError) as caught:
        provider.unwrap(WrappedKey("lost-key", b"x" * 68), context=b"job")
    assert "lost-key" in str(caught.value)
    assert provider.current_key_id(NOW) in str(caught.value)


def test_another_key_of_the_same_id_is_called_wrong_and_not_tampering() -> None:
    wrapped = InMemoryKeyProvider({"k": b"a" * 32}).wrap(DATA_KEY, context=b"", now=NOW)
    with pytest.raises(WrongKeyError, match="'k'"):
        InMemoryKeyProvider({"k": b"b" * 32}).unwrap(wrapped, context=b"")


def test_no_repr_and_no_pickle_of_a_specification_carries_keys(provider: KeyProvider) -> None:
    provider.wrap(DATA_KEY, context=b"", now=NOW)
    if isinstance(provider, InMemoryKeyProvider):
        assert "***" in repr(provider)
        return
    if isinstance(provider, FileKeyProvider):
        ring = json.loads(provider.path.read_text())
        keys = [base64.b64decode(k["key"]) for k in ring["keys"]]
    else:
        keys = [b"n" * 32, b"o" * 32]
    assert keys
    for key in keys:
        for shown in (repr(provider).encode(), pickle.dumps(provider)):
            assert key not in shown
            assert encoded(key).encode() not in shown


# ------------------------------------------------------------------------------ environment


def test_the_first_key_of_the_variable_is_current_and_the_others_still_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = EnvironmentKeyProvider(VARIABLE)
    monkeypatch.setenv(VARIABLE, f"a:{encoded(b'a' * 32)}")
    wrapped = provider.wrap(DATA_KEY, context=b"", now=NOW)
    monkeypatch.setenv(VARIABLE, f"b:{encoded(b'b' * 32)}\na:{encoded(b'a' * 32)}")
    assert provider.current_key_id(NOW) == "b"
    assert provider.key_ids() == ("a", "b")
    assert provider.unwrap(wrapped, context=b"") == DATA_KEY


def test_a_bare_key_gets_a_stable_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, encoded(b"a" * 32))
    first = EnvironmentKeyProvider(VARIABLE).current_key_id(NOW)
    assert first == EnvironmentKeyProvider(VARIABLE).current_key_id(NOW + DAY)
    monkeypatch.setenv(VARIABLE, encoded(b"b" * 32))
    assert EnvironmentKeyProvider(VARIABLE).current_key_id(NOW) != first


def test_an_unset_variable_says_how_to_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(KeyNotFoundError, match=f"{VARIABLE} is not set.*openssl rand"):
        EnvironmentKeyProvider(VARIABLE).current_key_id(NOW)


@pytest.mark.parametrize("value", ["not base64!", "k:c2hvcnQ=", "bad id!:" + "A" * 43 + "="])
def test_a_malformed_variable_is_refused_without_quoting_it(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigError) as caught:
        EnvironmentKeyProvider(VARIABLE).current_key_id(NOW)
    assert value.rpartition(":")[2] not in str(caught.value)


# --------------------------------------------------------------------------------- key file


def test_the_key_file_is_for_its_owner_only(tmp_path: Path) -> None:
    provider = FileKeyProvider(tmp_path / "deep" / "keys.json")
    provider.current_key_id(NOW)
    assert provider.path.stat().st_mode & 0o777 == 0o600
    assert provider.path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_file_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    provider = FileKeyProvider(tmp_path / "keys.json")
    provider.current_key_id(NOW)
    provider.path.chmod(mode)
    with pytest.raises(ConfigError, match=r"mode 0\d{3}.*chmod 600"):
        provider.current_key_id(NOW)


def test_reading_alone_never_makes_a_key_file(tmp_path: Path) -> None:
    provider = FileKeyProvider(tmp_path / "keys.json")
    with pytest.raises(KeyNotFoundError, match="Copy the file"):
        provider.unwrap(WrappedKey("k", b"x" * 68), context=b"")
    assert not provider.path.exists()


def test_a_prepared_provider_on_a_node_without_the_file_does_not_make_its_own(
    tmp_path: Path,
) -> None:
    sent = FileKeyProvider(tmp_path / "keys.json").prepare(NOW)
    (tmp_path / "keys.json").unlink()
    with pytest.raises(KeyNotFoundError, match="to every node"):
        pickle.loads(pickle.dumps(sent)).wrap(DATA_KEY, context=b"", now=NOW)
    assert not (tmp_path / "keys.json").exists()


def test_a_key_is_replaced_when_it_is_old_and_old_ones_still_read(tmp_path: Path) -> None:
    writer = FileKeyProvider(tmp_path / "keys.json")
    reader = FileKeyProvider(tmp_path / "keys.json", create=False)
    first = writer.current_key_id(NOW)
    wrapped = writer.wrap(DATA_KEY, context=b"", now=NOW)
    assert writer.rotate_if_due(NOW + 29 * DAY, 30 * DAY) == first
    second = writer.rotate_if_due(NOW + 30 * DAY, 30 * DAY)
    assert second != first
    assert writer.rotate_if_due(NOW + 31 * DAY, 30 * DAY) == second
    assert reader.key_ids() == (first, second)
    assert reader.current_key_id(NOW + 31 * DAY) == second
    assert reader.unwrap(wrapped, context=b"") == DATA_KEY
    assert writer.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", ConfigError),
        ("[]", ConfigError),
        ('{"format": 1, "keys": [{"id": "k"}]}', ConfigError),
        ('{"format": 2, "keys": []}', UnknownFormatError),
        ('{"format": 1, "keys": []}', KeyNotFoundError),
    ],
)
def test_a_broken_key_file_is_never_replaced(
    content: str, error: type[Exception], tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(error):
        FileKeyProvider(path).wrap(DATA_KEY, context=b"", now=NOW)
    assert path.read_text() == content


def _first_key(path: str, barrier: threading.Barrier, answers: multiprocessing.Queue[str]) -> None:
    provider = FileKeyProvider(path)
    barrier.wait(60)
    key_id = provider.current_key_id(NOW)
    answers.put(key_id)


def test_processes_that_are_first_at_once_agree_on_one_key(tmp_path: Path) -> None:
    path, racers = str(tmp_path / "keys.json"), 4
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(racers), context.Queue()
    processes = [
        context.Process(target=_first_key, args=(path, barrier, answers)) for _ in range(racers)
    ]
    for process in processes:
        process.start()
    seen = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert len(seen) == 1
    assert FileKeyProvider(path).key_ids() == tuple(seen)


def test_threads_that_rotate_at_once_add_one_key(tmp_path: Path) -> None:
    path, racers = tmp_path / "keys.json", 8
    FileKeyProvider(path).current_key_id(NOW)
    barrier = threading.Barrier(racers)

    def rotate() -> None:
        provider = FileKeyProvider(path)
        barrier.wait(60)
        provider.rotate_if_due(NOW + 40 * DAY, 30 * DAY)

    threads = [threading.Thread(target=rotate) for _ in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(FileKeyProvider(path).key_ids()) == 2
    assert sorted(os.listdir(tmp_path)) == ["keys.json", "keys.json.lock"]


def test_memory_keys_rotate_by_age_and_on_request() -> None:
    provider = InMemoryKeyProvider()
    wrapped = provider.wrap(DATA_KEY, context=b"", now=NOW)
    first = provider.rotate_if_due(NOW, 30 * DAY)
    assert provider.rotate_if_due(NOW + 30 * DAY, 30 * DAY) != first
    assert provider.rotate() == provider.current_key_id(NOW)
    assert len(provider.key_ids()) == 3
    assert provider.unwrap(wrapped, context=b"") == DATA_KEY
