"""The catalog and the offline reader, on a directory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from helios_ray.checkpoint import (
    CheckpointStorage,
    EncryptionConfig,
    InMemoryKeyProvider,
    list_checkpoints,
    read_state,
)
from helios_ray.checkpoint.catalog import CheckpointCatalog, Inventory, Written
from helios_ray.checkpoint.layout import manifest_path, object_name, state_path
from helios_ray.checkpoint.sealed import Binding
from helios_ray.checkpoint.snapshots import Sealer
from helios_ray.errors import (
    CheckpointNotFoundError,
    KeyNotFoundError,
    StorageNotFoundError,
    TamperedObjectError,
    TruncatedObjectError,
    WrongKeyError,
)
from helios_ray.identifiers import TaskId
from helios_ray.records import (
    CommittedMarker,
    EpochRecord,
    Manifest,
    RestoreRecord,
    StateObject,
    TaskSnapshot,
)
from tests.unit.checkpoint.examples import KEYS, NOW, sealer

JOB = "hot-auctions"


class Job:
    """Writes checkpoints of a two-subtask operator as a running job would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.catalog = CheckpointCatalog(CheckpointStorage.local(root / JOB).open(), sealer())

    def state(
        self,
        checkpoint: int,
        subtask: int,
        values: Iterable[int],
        *,
        name: str = "runs",
        kind: str = "keyed",
        epoch: int = 1,
        stored: bool = True,
    ) -> StateObject:
        place = Binding(
            job=JOB,
            epoch=epoch,
            checkpoint_id=checkpoint,
            operator="hot",
            subtask=subtask,
            name=name,
        )
        table = pa.table({"value": pa.array(values, pa.int64())})
        sealed = self.catalog.sealer.seal_table(table, place)
        path = state_path(epoch, "hot", subtask, object_name(checkpoint, name)) if stored else None
        if path is not None:
            self.catalog.store.put(path, sealed.data)
        return StateObject(
            operator="hot",
            subtask=subtask,
            name=name,
            kind=kind,
            path=path,
            inline=None if stored else sealed.data,
            size=sealed.size,
            raw_size=sealed.raw_size,
            rows=sealed.rows,
            key_id=sealed.key_id,
            digest=sealed.digest,
        )

    def complete(
        self, checkpoint: int, *objects: StateObject, epoch: int = 1, commit: bool = True
    ) -> Manifest:
        manifest = Manifest(
            job=JOB,
            epoch=epoch,
            owner=f"owner-{epoch}",
            checkpoint_id=checkpoint,
            created_at=NOW.timestamp(),
            duration=0.5,
            max_parallelism=128,
            parallelism={"hot": 2},
            tasks=tuple(
                TaskSnapshot(
                    task=TaskId("hot", subtask),
                    objects=tuple(o for o in objects if o.subtask == subtask),
                )
                for subtask in (0, 1)
            ),
        )
        assert self.catalog.write(manifest) == Written(True)
        if commit:
            marker = CommittedMarker(checkpoint_id=checkpoint, epoch=epoch)
            assert self.catalog.write(marker).created
        return manifest


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_the_first_to_write_a_record_wins_and_the_second_sees_it(job: Job) -> None:
    mine = EpochRecord(epoch=1, owner="mine", headroom=10)
    assert job.catalog.write(mine) == Written(True)
    assert job.catalog.write(replace(mine, owner="theirs")) == Written(False, mine)
    assert job.catalog.epoch(1) == mine
    assert job.catalog.epoch(2) is None


def test_a_manifest_is_never_overwritten(job: Job) -> None:
    first = job.complete(1, job.state(1, 0, [1], stored=False))
    assert job.catalog.write(replace(first, owner="zombie")) == Written(False, first)
    assert job.catalog.manifest(1) == first


def test_an_inventory_tells_what_there_is(job: Job) -> None:
    assert job.catalog.inventory() == Inventory()
    for epoch in (2, 1):
        job.catalog.write(EpochRecord(epoch=epoch, owner="o", headroom=10))
    restore = RestoreRecord(epoch=2, owner="o", checkpoint_id=1, first_checkpoint_id=12)
    job.catalog.write(restore)
    job.complete(1)
    job.complete(12, epoch=2, commit=False)
    job.catalog.store.put("checkpoints/notes.txt", b"not ours")
    assert job.catalog.inventory() == Inventory(
        epochs=(1, 2), restores=(2,), checkpoints=(1, 12), committed=(1,)
    )
    assert job.catalog.restore(2) == restore
    assert job.catalog.committed(1) == CommittedMarker(checkpoint_id=1, epoch=1)
    assert job.catalog.committed(12) is None


def test_a_missing_checkpoint_names_those_that_are_there(job: Job) -> None:
    job.complete(3)
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint 4 .*newest there: 3"):
        job.catalog.manifest(4)


# --------------------------------------------------------------------------------- retention


def test_retention_keeps_as_many_as_configured_and_what_they_share(job: Job) -> None:
    shared = job.state(1, 0, [1, 2, 3])
    for checkpoint in range(1, 7):
        old = [shared] if checkpoint < 6 else []
        job.complete(checkpoint, *old, job.state(checkpoint, 1, [checkpoint]))
    plan = job.catalog.plan_retention(retain_count=2, current_epoch=1)
    assert plan.checkpoints == (1, 2, 3, 4)
    job.catalog.drop(plan)
    job.catalog.drop(plan)
    assert job.catalog.inventory().checkpoints == job.catalog.inventory().committed == (5, 6)
    left = job.catalog.state_objects()
    assert sorted(left) == sorted(
        {shared.path or ""}
        | set(job.catalog.manifest(6).paths)
        | set(job.catalog.manifest(5).paths)
    )
    assert job.catalog.read_table(shared, job.catalog.manifest(5)).num_rows == 3


def test_leftovers_go_once_their_epoch_is_fenced(job: Job) -> None:
    job.complete(1, job.state(1, 0, [1]))
    aborted = job.state(2, 0, [2])
    job.catalog.write(EpochRecord(epoch=1, owner="o", headroom=10))
    assert job.catalog.plan_retention(retain_count=1, current_epoch=1).objects == ()
    job.catalog.write(EpochRecord(epoch=2, owner="o", headroom=10))
    assert job.catalog.plan_retention(retain_count=1, current_epoch=2).objects == (aborted.path,)
    assert job.catalog.plan_retention(retain_count=1, current_epoch=1).objects == ()


def test_the_checkpoint_resumed_from_stays_until_the_epoch_has_committed_its_own(job: Job) -> None:
    for checkpoint in (1, 2, 3):
        job.complete(checkpoint, job.state(checkpoint, 0, [checkpoint]))
    job.catalog.write(RestoreRecord(epoch=2, owner="o", checkpoint_id=1, first_checkpoint_id=100))
    before = job.catalog.plan_retention(retain_count=1, current_epoch=2)
    assert 1 not in before.checkpoints
    job.complete(100, job.state(100, 0, [100], epoch=2), epoch=2)
    after = job.catalog.plan_retention(retain_count=1, current_epoch=2)
    assert after.checkpoints == (1, 2, 3)
    assert len(after.objects) == 3


def test_an_unreadable_manifest_stops_the_sweep(job: Job) -> None:
    for checkpoint in (1, 2):
        job.complete(checkpoint, job.state(checkpoint, 0, [checkpoint]))
    data = bytearray(job.catalog.store.get(manifest_path(1)))
    data[-1] ^= 1
    job.catalog.store.put(manifest_path(1), bytes(data))
    plan = job.catalog.plan_retention(retain_count=1, current_epoch=5)
    assert (plan.checkpoints, plan.objects, plan.unreadable) == ((), (), (1,))


# ------------------------------------------------------------------------------------ reader


def test_state_reads_offline_as_tables_over_all_subtasks(job: Job) -> None:
    old = job.state(1, 0, [1, 2])
    job.complete(1, old, job.state(1, 1, [3]))
    job.complete(
        2,
        old,
        job.state(2, 1, [30], stored=False),
        job.state(2, 0, [7], name="rules", kind="broadcast", stored=False),
        job.state(2, 1, [7], name="rules", kind="broadcast", stored=False),
    )
    runs = read_state(job.root, operator="hot", name="runs", keys=KEYS)
    assert runs.to_pydict() == {"value": [1, 2, 30]}
    first = read_state(job.root, 1, operator="hot", name="runs", keys=KEYS, job=JOB)
    assert first.to_pydict() == {"value": [1, 2, 3]}
    every = read_state(str(job.root / JOB), operator="hot", keys=KEYS)
    assert {name: table.to_pydict() for name, table in every.items()} == {
        "runs": {"value": [1, 2, 30]},
        "rules": {"value": [7]},
    }


def test_latest_passes_over_what_a_later_epoch_left_behind(job: Job) -> None:
    job.complete(1, job.state(1, 0, [1]))
    job.complete(2, job.state(2, 0, [2]), commit=False)
    job.catalog.write(RestoreRecord(epoch=2, owner="o", checkpoint_id=1, first_checkpoint_id=9))
    assert read_state(job.root, operator="hot", name="runs", keys=KEYS)["value"].to_pylist() == [1]
    listed = list_checkpoints(job.root)
    assert [(s.checkpoint_id, s.committed, s.superseded) for s in listed] == [
        (1, True, False),
        (2, False, True),
    ]


def test_a_listing_needs_no_keys(job: Job) -> None:
    manifest = job.complete(5, job.state(5, 0, range(100)))
    (summary,) = list_checkpoints(job.root, job=JOB)
    assert (summary.job, summary.checkpoint_id, summary.epoch) == (JOB, 5, 1)
    assert summary.state_size == manifest.state_size
    assert (summary.key_id, summary.encrypted, summary.committed) == ("golden", True, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"operator": "cold"}, r"no operator 'cold'.*it has: hot"),
        ({"operator": "hot", "name": "timers"}, r"no state 'timers'.*it has: runs"),
        ({"operator": "hot", "checkpoint": 9}, "no checkpoint 9"),
        ({"operator": "hot", "checkpoint": "newest"}, "must be an id or 'latest'"),
        ({"operator": "hot", "job": "other"}, "no complete checkpoint"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(
    arguments: dict[str, str], says: str, job: Job
) -> None:
    job.complete(1, job.state(1, 0, [1]))
    with pytest.raises(CheckpointNotFoundError, match=says):
        read_state(job.root, keys=KEYS, **arguments)  # type: ignore[call-overload]


def test_several_jobs_in_one_place_must_be_told_apart(job: Job) -> None:
    job.complete(1)
    CheckpointStorage.local(job.root).open().put(f"second/{manifest_path(1)}", b"x")
    with pytest.raises(CheckpointNotFoundError, match=f"the jobs {JOB}, second.*job="):
        list_checkpoints(job.root)
    assert len(list_checkpoints(job.root, job=JOB)) == 1


def test_an_empty_place_is_called_empty(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no job's checkpoints"):
        list_checkpoints(tmp_path)


def test_the_keys_must_be_there_and_fit(job: Job) -> None:
    job.complete(1, job.state(1, 0, [1]))
    with pytest.raises(KeyNotFoundError, match="golden"):
        read_state(job.root, operator="hot", keys=InMemoryKeyProvider())
    with pytest.raises(WrongKeyError, match="golden"):
        read_state(job.root, operator="hot", keys=InMemoryKeyProvider({"golden": b"x" * 32}))


def test_a_state_object_that_was_touched_or_swapped_is_refused(job: Job) -> None:
    first, second = job.state(1, 0, range(500)), job.state(1, 1, range(500, 1000))
    job.complete(1, first, second)
    store, path = job.catalog.store, first.path or ""
    good = store.get(path)
    store.put(path, store.get(second.path or ""))
    with pytest.raises(TamperedObjectError, match="SHA-256"):
        read_state(job.root, operator="hot", keys=KEYS)
    store.put(path, good[:-10])
    with pytest.raises(TruncatedObjectError, match=path):
        read_state(job.root, operator="hot", keys=KEYS)
    store.delete(path)
    with pytest.raises(StorageNotFoundError, match="0000000001-runs"):
        read_state(job.root, operator="hot", keys=KEYS)


def test_inline_objects_are_bound_to_their_place_too(job: Job) -> None:
    ours = job.state(1, 0, [1], stored=False)
    swapped = replace(ours, inline=job.state(1, 1, [2], stored=False).inline)
    manifest = job.complete(1, swapped)
    with pytest.raises(TamperedObjectError):
        job.catalog.read_table(manifest.tasks[0].objects[0], manifest)


def test_the_coordinators_manifest_rotates_an_old_key(tmp_path: Path) -> None:
    keys = InMemoryKeyProvider()
    first = keys.rotate_if_due(NOW.replace(year=2025), EncryptionConfig().key_rotation)
    catalog = CheckpointCatalog(
        CheckpointStorage.local(tmp_path).open(),
        Sealer(EncryptionConfig(key_provider=keys), clock=lambda: NOW),
    )
    manifest = Job(tmp_path / "other").complete(1)
    catalog.write(manifest)
    assert catalog.summaries()[0].key_id != first
    assert catalog.manifest(1) == manifest
