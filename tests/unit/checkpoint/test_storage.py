"""Stores without a server: a directory, and fsspec's memory."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.checkpoint import CheckpointStorage, ObjectStore
from helios_ray.checkpoint.fsspec_store import NonAtomicStorageWarning
from helios_ray.checkpoint.local_store import LocalStore
from helios_ray.checkpoint.storage import S3Storage, checked
from helios_ray.errors import (
    ConfigError,
    StorageError,
    StorageNotFoundError,
    StorageUnknownError,
)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "local":
        yield CheckpointStorage.local(tmp_path / "root").open()
        return
    yield CheckpointStorage.fsspec(f"memory://{tmp_path.name}").open()
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{tmp_path.name}"):
        memory.rm(f"/{tmp_path.name}", recursive=True)


def test_an_object_is_created_once_and_never_replaced_by_a_second_creator(
    store: ObjectStore,
) -> None:
    assert store.put_if_absent("epochs/00000001", b"first")
    assert not store.put_if_absent("epochs/00000001", b"second")
    assert store.get("epochs/00000001") == b"first"


def test_put_replaces_as_a_whole(store: ObjectStore) -> None:
    store.put("a/b", b"a long first version")
    store.put("a/b", b"short")
    assert store.get("a/b") == b"short"
    assert store.size("a/b") == 5
    assert store.get_start("a/b", 2) == b"sh"
    assert store.get_start("a/b", 99) == b"short"


def test_a_listing_is_recursive_sorted_and_by_prefix(store: ObjectStore) -> None:
    names = ["checkpoints/1/manifest", "checkpoints/10/manifest", "epochs/1", "epochs/1.restore"]
    for name in reversed(names):
        store.put(name, b"x")
    assert store.list() == names
    assert store.list("epochs/") == names[2:]
    assert store.list("checkpoints/1") == names[:2]
    assert store.list("checkpoints/1/") == names[:1]
    assert store.list("nothing/here") == []


def test_deleting_twice_is_deleting_once(store: ObjectStore) -> None:
    store.put("deep/down/a", b"x")
    store.put("deep/b", b"x")
    store.delete("deep/down/a")
    store.delete("deep/down/a")
    assert not store.exists("deep/down/a")
    assert store.list() == ["deep/b"]


def test_what_is_not_there_is_called_so(store: ObjectStore) -> None:
    assert not store.exists("a")
    for look in (store.get, store.size, lambda name: store.get_start(name, 1)):
        with pytest.raises(StorageNotFoundError, match="a"):
            look("a")


def test_a_scoped_store_sees_its_directory_and_nothing_else(store: ObjectStore) -> None:
    job = store.scoped("job-1/")
    job.put("epochs/1", b"x")
    store.put("job-2/epochs/1", b"y")
    assert job.list() == ["epochs/1"]
    assert store.get("job-1/epochs/1") == b"x"
    assert "job-1" in job.describe()


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/./b", "a\0b"])
def test_no_name_leads_out_of_the_store(name: str, store: ObjectStore) -> None:
    with pytest.raises(StorageError, match="relative"):
        store.put(name, b"x")
    with pytest.raises(StorageError, match="relative"):
        checked(name)


def test_a_store_that_can_hold_a_job_passes_its_check_and_is_left_clean(
    store: ObjectStore,
) -> None:
    store.check()
    assert store.list() == []


def test_a_store_that_ignores_create_if_absent_fails_its_check(tmp_path: Path) -> None:
    class Overwriting(LocalStore):
        def put_if_absent(self, name: str, data: bytes) -> bool:
            self.put(name, data)
            return True

    with pytest.raises(StorageError, match="create-if-absent"):
        Overwriting(tmp_path).check()


def race(store: ObjectStore, racers: int, name: str) -> list[bool]:
    barrier = threading.Barrier(racers)
    won = [False] * racers

    def claim(index: int) -> None:
        barrier.wait(60)
        won[index] = store.put_if_absent(name, b"racer %d" % index)

    threads = [threading.Thread(target=claim, args=(index,)) for index in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return won


def test_of_many_threads_that_create_at_once_one_wins_and_its_bytes_stay(
    store: ObjectStore,
) -> None:
    for attempt in range(20):
        name = f"epochs/{attempt:08d}"
        won = race(store, 8, name)
        assert won.count(True) == 1
        assert store.get(name) == b"racer %d" % won.index(True)


def _claim(path: str, index: int, barrier: Any, answers: Any) -> None:
    store = CheckpointStorage.local(path).open()
    for attempt in range(20):
        barrier.wait(60)
        created = store.put_if_absent(f"epochs/{attempt:08d}", b"racer %d" % index)
        answers.put((attempt, index, created))


def test_of_many_processes_that_create_at_once_one_wins_and_its_bytes_stay(
    tmp_path: Path,
) -> None:
    racers = 3
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(racers), context.Queue()
    processes = [
        context.Process(target=_claim, args=(str(tmp_path), index, barrier, answers))
        for index in range(racers)
    ]
    for process in processes:
        process.start()
    seen = [answers.get(timeout=60) for _ in range(20 * racers)]
    for process in processes:
        process.join(60)
    winners = {attempt: index for attempt, index, created in seen if created}
    assert sum(created for _, _, created in seen) == 20
    for attempt, index in winners.items():
        assert (tmp_path / f"epochs/{attempt:08d}").read_bytes() == b"racer %d" % index


# -------------------------------------------------------------------------------- directory


def test_without_hard_links_one_creator_still_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    store = LocalStore(tmp_path)
    for attempt in range(10):
        assert race(store, 8, f"epochs/{attempt}").count(True) == 1
    assert store.list() == sorted(f"epochs/{attempt}" for attempt in range(10))


def test_a_link_whose_answer_got_lost_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def lossy(source: Path, target: Path) -> None:
        real(source, target)
        raise OSError(errno.EEXIST, "the repeated request found the first one's link")

    monkeypatch.setattr(os, "link", lossy)
    assert LocalStore(tmp_path).put_if_absent("a", b"ours")
    assert (tmp_path / "a").read_bytes() == b"ours"


@pytest.mark.parametrize(
    ("number", "error", "way_out"),
    [
        (errno.ENOSPC, StorageError, "Free some space"),
        (errno.EACCES, StorageError, "Let the user that runs the job write"),
        (errno.EIO, StorageUnknownError, "may have happened or not"),
        (errno.ESTALE, StorageUnknownError, "Check the mount"),
    ],
)
def test_a_failing_disk_is_told_by_kind_and_leaves_no_half_object(
    number: int,
    error: type[Exception],
    way_out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error, match=way_out) as caught:
        LocalStore(tmp_path).put("a", b"x")
    monkeypatch.undo()
    assert type(caught.value) is error
    assert os.listdir(tmp_path) == []


def test_a_file_where_the_directory_should_be_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=str(tmp_path / "file")):
        CheckpointStorage.local(tmp_path / "file").open().check()


def test_leftovers_of_crashed_writers_are_not_listed_and_go_after_a_day(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("state/a", b"x")
    old, fresh = tmp_path / "state/.tmp-1-a", tmp_path / "state/.tmp-2-b"
    for path in (old, fresh):
        path.write_bytes(b"half")
    yesterday = time.time() - 2 * 86_400
    os.utime(old, (yesterday, yesterday))
    store.check()
    assert store.list() == ["state/a"]
    assert not old.exists()
    assert fresh.exists()


folders = st.lists(st.sampled_from(["a", "b", "a.b"]), max_size=2)
names = st.builds(
    lambda above, last: "/".join([*above, last]), folders, st.sampled_from(["x", "y"])
)


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from(["create", "put", "delete"]), names, st.binary(max_size=3)),
        max_size=15,
    )
)
def test_a_directory_behaves_as_a_plain_mapping(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, bytes]]
) -> None:
    store = LocalStore(tmp_path_factory.mktemp("store"))
    model: dict[str, bytes] = {}
    for action, name, data in steps:
        if action == "create":
            assert store.put_if_absent(name, data) == (name not in model)
            model.setdefault(name, data)
        elif action == "put":
            store.put(name, data)
            model[name] = data
        else:
            store.delete(name)
            model.pop(name, None)
        assert store.list() == sorted(model)
    assert {name: store.get(name) for name in store.list()} == model


# ----------------------------------------------------------------------------- descriptions


def test_a_description_travels_and_hides_its_secrets() -> None:
    storage = CheckpointStorage.S3(
        bucket="checkpoints",
        prefix="/streaming/prod/",
        endpoint_url="http://user:hush@localhost:9000",
        key="AKID",
        secret="hush",
        token="tok",
    )
    assert pickle.loads(pickle.dumps(storage)) == storage
    assert isinstance(storage, S3Storage)
    assert storage.prefix == "streaming/prod"
    for shown in (repr(storage), storage.describe()):
        assert "AKID" not in shown
        assert "hush" not in shown
        assert "checkpoints" in shown


def test_options_of_fsspec_that_look_secret_are_masked_however_deep() -> None:
    storage = CheckpointStorage.fsspec(
        "abfs://box", account_key="hush", nested={"password": "hush", "size": 3}
    )
    assert "hush" not in repr(storage)
    assert "'size': 3" in repr(storage)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bucket": "s3://checkpoints"}, "Leave out 's3://'"),
        ({"bucket": ""}, "bucket's name"),
        ({"bucket": "good", "endpoint_url": "localhost:9000"}, "http://"),
        ({"bucket": "good", "key": "AKID"}, "secret"),
        ({"bucket": "good", "read_timeout": 30}, "read_timeout must be a positive timedelta"),
    ],
)
def test_a_malformed_description_is_refused_when_it_is_written(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        CheckpointStorage.S3(**settings)


def test_a_url_must_have_a_protocol_that_is_installed() -> None:
    with pytest.raises(ConfigError, match="protocol"):
        CheckpointStorage.fsspec("just/a/path")
    with pytest.raises(ConfigError, match="cannot be opened"):
        CheckpointStorage.fsspec("nosuch://place").open()


def test_an_s3_url_gets_the_s3_store_and_a_file_url_a_directory(tmp_path: Path) -> None:
    options = {"key": "a", "secret": "b", "client_kwargs": {"region_name": "eu-west-1"}}
    store = CheckpointStorage.fsspec("s3://bucket/some/prefix", **options).open()
    assert store.describe() == "s3://bucket/some/prefix"
    assert type(store).__name__ == "S3Store"
    assert isinstance(CheckpointStorage.fsspec(f"file://{tmp_path}").open(), LocalStore)
    with pytest.raises(ConfigError, match="anon"):
        CheckpointStorage.fsspec("s3://bucket", anon=True).open()


def test_a_file_system_that_creates_in_two_steps_is_announced(tmp_path: Path) -> None:
    with pytest.warns(NonAtomicStorageWarning, match="one step"):
        CheckpointStorage.fsspec(f"dir::file://{tmp_path}").open()
