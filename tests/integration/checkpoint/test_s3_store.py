"""The S3 store against a real server, and against a network that loses things."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from helios_ray.checkpoint import (
    CheckpointStorage,
    EncryptionConfig,
    InMemoryKeyProvider,
    ObjectStore,
    list_checkpoints,
    read_state,
    s3_store,
)
from helios_ray.checkpoint.catalog import CheckpointCatalog, Written
from helios_ray.checkpoint.layout import object_name, state_path
from helios_ray.checkpoint.sealed import Binding
from helios_ray.checkpoint.snapshots import Sealer
from helios_ray.errors import (
    StorageError,
    StorageNotFoundError,
    StorageUnknownError,
    StorageUnreachableError,
)
from helios_ray.identifiers import TaskId
from helios_ray.records import (
    CommittedMarker,
    EpochRecord,
    Manifest,
    StateObject,
    TaskSnapshot,
)
from helios_ray.testing.servers import CephServer, S3Server
from tests.integration.checkpoint.faults import Fault, FaultyProxy


def description(server: S3Server, bucket: str, **changes: Any) -> CheckpointStorage:
    settings: dict[str, Any] = {
        "bucket": bucket,
        "prefix": "streaming/prod/",
        "region": server.region,
        "endpoint_url": server.endpoint_url,
        "key": server.access_key,
        "secret": server.secret_key,
    }
    return CheckpointStorage.S3(**{**settings, **changes})


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "_PAUSES", (0.0, 0.0))


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


@pytest.fixture
def store(s3_server: S3Server, bucket: str) -> ObjectStore:
    return description(s3_server, bucket).open()


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3_server.endpoint_url) as running:
        yield running


@pytest.fixture
def shaky(s3_server: S3Server, bucket: str, proxy: FaultyProxy) -> ObjectStore:
    """The same bucket as ``store``, seen through the proxy."""
    return description(
        s3_server,
        bucket,
        endpoint_url=proxy.endpoint_url,
        read_timeout=timedelta(seconds=1),
    ).open()


def test_objects_come_back_and_lie_where_the_description_says(
    store: ObjectStore, s3_server: S3Server, bucket: str
) -> None:
    store.put("state/a", b"0123456789")
    store.put("state/a", b"9876543210")
    assert store.get("state/a") == b"9876543210"
    assert store.get_start("state/a", 3) == b"987"
    assert store.size("state/a") == 10
    assert store.exists("state/a")
    listed = s3_server.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert [item["Key"] for item in listed] == ["streaming/prod/state/a"]


def test_an_object_is_created_once_and_an_echo_of_ourselves_is_ours(store: ObjectStore) -> None:
    assert store.put_if_absent("epochs/1", b"mine")
    assert not store.put_if_absent("epochs/1", b"theirs")
    assert store.put_if_absent("epochs/1", b"mine")
    assert store.get("epochs/1") == b"mine"


def test_of_many_that_create_at_once_one_wins_and_its_bytes_stay(store: ObjectStore) -> None:
    racers = 8
    barrier = threading.Barrier(racers)
    won: dict[tuple[int, int], bool] = {}

    def claim(index: int) -> None:
        for attempt in range(5):
            barrier.wait(60)
            won[attempt, index] = store.put_if_absent(f"epochs/{attempt}", b"racer %d" % index)

    threads = [threading.Thread(target=claim, args=(index,)) for index in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for attempt in range(5):
        winners = [index for index in range(racers) if won[attempt, index]]
        assert len(winners) == 1
        assert store.get(f"epochs/{attempt}") == b"racer %d" % winners[0]


def test_a_listing_goes_on_past_the_first_page(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "_PAGE", 10)
    names = [f"state/{n:03d}" for n in range(25)]
    for name in reversed(names):
        store.put(name, b"")
    assert store.list("state/") == names
    assert store.scoped("state").list("00") == [f"{n:03d}" for n in range(10)]
    assert store.list("nothing/") == []


def test_a_large_object_goes_in_parts(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, s3_server: S3Server, bucket: str
) -> None:
    monkeypatch.setattr(s3_store, "_MULTIPART_CHUNK", 5 << 20)
    data = bytes(range(256)) * (11 * 4096)
    store.put("state/large", data)
    assert store.size("state/large") == len(data)
    assert store.get("state/large") == data
    head = s3_server.client().head_object(Bucket=bucket, Key="streaming/prod/state/large")
    assert head["ETag"].strip('"').endswith("-3")


def test_deleting_twice_is_deleting_once(store: ObjectStore) -> None:
    store.put("a", b"x")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")
    with pytest.raises(StorageNotFoundError, match="no such object"):
        store.get("a")


def test_a_healthy_bucket_passes_its_check_and_is_left_clean(store: ObjectStore) -> None:
    store.check()
    assert store.list() == []


def test_a_missing_bucket_is_told_before_the_job_starts(s3_server: S3Server) -> None:
    missing = description(s3_server, "no-such-bucket-here").open()
    for act in (missing.check, missing.list, lambda: missing.put("a", b"x")):
        with pytest.raises(
            StorageNotFoundError, match=r"no bucket 'no-such-bucket-here'\. Create it"
        ):
            act()


def test_a_server_that_is_not_there_is_unreachable_and_not_unknown(
    s3_server: S3Server, bucket: str
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        store = description(s3_server, bucket, endpoint_url=nobody).open()
        for act in (store.check, lambda: store.put("a", b"x"), lambda: store.get("a")):
            with pytest.raises(StorageUnreachableError, match="Check endpoint_url="):
                act()


def test_a_host_without_an_address_is_unreachable(s3_server: S3Server, bucket: str) -> None:
    store = description(s3_server, bucket, endpoint_url="http://no-such-host.invalid").open()
    with pytest.raises(StorageUnreachableError, match="DNS"):
        store.check()


def test_no_error_shows_the_secret(s3_server: S3Server) -> None:
    store = description(s3_server, "no-such-bucket-here", secret="hush-hush").open()
    with pytest.raises(StorageError) as caught:
        store.put("a", b"x")
    assert "hush-hush" not in str(caught.value)


@pytest.mark.s3_real
def test_a_wrong_secret_is_refused_with_what_is_needed(
    ceph_server: CephServer,
) -> None:
    bucket = ceph_server.new_bucket()
    store = description(ceph_server, bucket, secret="wrong").open()
    with pytest.raises(StorageError, match="refused the credentials") as caught:
        store.put("a", b"x")
    assert type(caught.value) is StorageError


# --------------------------------------------------------------------- a network that loses


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.HANG, Fault.SERVER_ERROR])
def test_a_creation_that_happened_without_an_answer_is_recognised_as_ours(
    fault: Fault, shaky: ObjectStore, proxy: FaultyProxy
) -> None:
    proxy.faults.append(fault)
    assert shaky.put_if_absent("epochs/1", b"mine")
    assert not proxy.faults
    assert proxy.requests.count("PUT") == 2
    assert shaky.get("epochs/1") == b"mine"


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.SERVER_ERROR, Fault.LOSE_REQUEST])
def test_a_lost_race_stays_lost_when_answers_get_lost_too(
    fault: Fault, store: ObjectStore, shaky: ObjectStore, proxy: FaultyProxy
) -> None:
    store.put_if_absent("epochs/1", b"theirs")
    proxy.faults.append(fault)
    assert not shaky.put_if_absent("epochs/1", b"mine")
    assert not proxy.faults


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.SERVER_ERROR])
def test_when_no_answer_ever_comes_the_outcome_is_unknown(
    fault: Fault, shaky: ObjectStore, proxy: FaultyProxy
) -> None:
    for write in (shaky.put, shaky.put_if_absent):
        # aiohttp repeats a request once by itself when a kept connection turns out dead.
        proxy.faults.extend([fault] * 6)
        with pytest.raises(StorageUnknownError, match="may have happened or not"):
            write("epochs/1", b"mine")
        proxy.faults.clear()


def test_a_server_that_vanishes_after_a_lost_answer_leaves_the_outcome_unknown(
    s3_server: S3Server, bucket: str, store: ObjectStore
) -> None:
    # "Unreachable" would be a lie: the first attempt did happen.
    with FaultyProxy(s3_server.endpoint_url) as proxy:
        shaky = description(
            s3_server, bucket, endpoint_url=proxy.endpoint_url, read_timeout=timedelta(seconds=1)
        ).open()
        proxy.faults.append(Fault.HANG)
        failure: list[BaseException] = []

        def write() -> None:
            try:
                shaky.put_if_absent("epochs/1", b"mine")
            except StorageError as error:
                failure.append(error)

        proxy.stop_after(1)
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(60)
    assert [type(error) for error in failure] == [StorageUnknownError]
    assert store.get("epochs/1") == b"mine"


def test_a_busy_server_is_asked_again(shaky: ObjectStore, proxy: FaultyProxy) -> None:
    proxy.faults.extend([Fault.BUSY, Fault.BUSY])
    shaky.put("a", b"x")
    assert shaky.get("a") == b"x"
    proxy.faults.extend([Fault.BUSY] * 3)
    with pytest.raises(StorageError, match="busy") as caught:
        shaky.put("b", b"x")
    assert not isinstance(caught.value, StorageUnknownError)


# ------------------------------------------------------------------------------ a whole job


def test_a_jobs_records_and_state_live_in_a_bucket(
    s3_server: S3Server, bucket: str, store: ObjectStore
) -> None:
    keys = InMemoryKeyProvider()
    sealer = Sealer(EncryptionConfig(key_provider=keys))
    catalog = CheckpointCatalog(store.scoped("job"), sealer)
    epoch = EpochRecord(epoch=1, owner="a", headroom=10)
    assert catalog.write(epoch) == Written(True)
    assert catalog.write(EpochRecord(epoch=1, owner="b", headroom=10)) == Written(False, epoch)
    for checkpoint in (1, 2, 3):
        catalog.write(complete(catalog, checkpoint))
        catalog.write(CommittedMarker(checkpoint_id=checkpoint, epoch=1))
    catalog.drop(catalog.plan_retention(retain_count=2, current_epoch=1))
    place = description(s3_server, bucket)
    assert [s.checkpoint_id for s in list_checkpoints(place)] == [2, 3]
    table = read_state(place, operator="hot", name="runs", keys=keys)
    assert table.to_pydict() == {"value": [3, 3, 3]}
    assert len(catalog.state_objects()) == 2


def complete(catalog: CheckpointCatalog, checkpoint: int) -> Manifest:
    place = Binding(
        job="job", epoch=1, checkpoint_id=checkpoint, operator="hot", subtask=0, name="runs"
    )
    sealed = catalog.sealer.seal_table(pa.table({"value": [checkpoint] * 3}), place)
    path = state_path(1, "hot", 0, object_name(checkpoint, "runs"))
    catalog.store.put(path, sealed.data)
    state = StateObject(
        operator="hot",
        subtask=0,
        name="runs",
        kind="keyed",
        path=path,
        size=sealed.size,
        raw_size=sealed.raw_size,
        rows=sealed.rows,
        key_id=sealed.key_id,
        digest=sealed.digest,
    )
    return Manifest(
        job="job",
        epoch=1,
        owner="a",
        checkpoint_id=checkpoint,
        created_at=0.0,
        duration=0.1,
        max_parallelism=128,
        parallelism={"hot": 1},
        tasks=(TaskSnapshot(task=TaskId("hot", 0), objects=(state,)),),
    )
