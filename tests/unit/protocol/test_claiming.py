"""Taking a job over: who owns it, where it resumes, what must be settled first."""

from __future__ import annotations

from dataclasses import replace

from helios_ray.protocol import instructions as i
from helios_ray.protocol.instructions import JobStatus
from helios_ray.protocol.messages import (
    Heartbeat,
    ResetTask,
    ResolveTransactions,
    StartTask,
    TaskPhase,
)
from helios_ray.protocol.recovery import Catalog
from helios_ray.records import EpochRecord, Manifest, RestoreRecord
from tests.unit.protocol.desk import SINK, TASKS, Desk, Storage, rules


def manifest(checkpoint_id: int, epoch: int, **changes: object) -> Manifest:
    plain = Manifest(
        job="job",
        epoch=epoch,
        owner="them",
        checkpoint_id=checkpoint_id,
        created_at=0.0,
        duration=0.0,
        max_parallelism=8,
        parallelism={"source": 1, "map": 1, "sink": 2},
        tasks=(),
    )
    return replace(plain, **changes)


def storage_of(*records: EpochRecord | RestoreRecord | Manifest) -> Storage:
    storage = Storage()
    for record in records:
        assert storage.create(record) is None
    return storage


def test_the_steps_of_a_takeover_come_one_after_another() -> None:
    desk = Desk()
    assert desk.tell(i.Begin()) == [i.ReportStatus(JobStatus.CLAIMING), i.ReadCatalog(1)]
    claim = desk.answer(i.ReadCatalog(1))
    assert claim == [i.WriteRecord(2, EpochRecord(epoch=1, owner="me", headroom=2))]
    assert desk.answer(claim[0]) == [i.ReportStatus(JobStatus.RESTORING), i.ReadCatalog(3)]
    choice = desk.answer(i.ReadCatalog(3))
    assert choice == [
        i.WriteRecord(
            4, RestoreRecord(epoch=1, owner="me", checkpoint_id=None, first_checkpoint_id=1)
        )
    ]
    assert desk.answer(choice[0]) == [i.ReadEpochs(5)]
    deployed = desk.answer(i.ReadEpochs(5))
    assert deployed[0] == i.ReportStatus(JobStatus.DEPLOYING)
    assert [t.task for t in deployed if isinstance(t, i.ReplaceTask)] == list(TASKS)
    assert len(desk.sent(ResetTask)) == len(TASKS)


def test_processing_starts_only_when_every_sink_has_settled_its_past() -> None:
    desk = Desk().claim()
    desk.beat(TaskPhase.READY, *TASKS[:-1])
    assert desk.sent(ResolveTransactions) == []
    desk.beat(TaskPhase.READY, TASKS[-1])
    assert [task for task, _ in desk.sent(ResolveTransactions)] == [SINK]
    assert desk.sent(StartTask) == []
    desk.resolve()
    assert [task for task, _ in desk.sent(StartTask)] == list(TASKS)
    assert desk.core.status is JobStatus.RUNNING


def test_a_taken_epoch_makes_the_claimant_look_again_and_take_a_later_one() -> None:
    desk = Desk()
    desk.tell(i.Begin())
    desk.answer(desk.take(i.ReadCatalog))
    claim = desk.take(i.WriteRecord)
    desk.store.create(EpochRecord(epoch=1, owner="them", headroom=2))
    desk.answer(claim)
    assert desk.core.epoch == 0
    desk.answer(desk.take(i.ReadCatalog))
    assert desk.take(i.WriteRecord).record == EpochRecord(epoch=2, owner="me", headroom=2)


def test_an_unanswered_claim_is_never_repeated_but_followed_by_a_later_one() -> None:
    desk = Desk()
    desk.tell(i.Begin())
    desk.answer(desk.take(i.ReadCatalog))
    desk.tell(i.StorageFailed(desk.take(i.WriteRecord).request, "no answer", unknown=True))
    assert desk.tray == [i.ReportStatus(JobStatus.CLAIMING)]
    desk.wait(0.5)
    desk.answer(desk.take(i.ReadCatalog))
    assert desk.take(i.WriteRecord).record.epoch == 2


def test_an_answer_that_nobody_waits_for_any_more_changes_nothing() -> None:
    desk = Desk()
    desk.tell(i.Begin())
    desk.answer(desk.take(i.ReadCatalog))
    claim = desk.take(i.WriteRecord)
    desk.tell(i.StorageFailed(claim.request, "no answer", unknown=True))
    assert desk.tell(i.RecordWritten(claim.request, None)) == []
    assert desk.core.epoch == 0


def test_the_choice_is_made_from_what_is_seen_after_the_claim() -> None:
    desk = Desk(storage=storage_of(EpochRecord(epoch=1, owner="them", headroom=2)))
    desk.tell(i.Begin())
    desk.answer(desk.take(i.ReadCatalog))
    desk.store.create(manifest(7, epoch=1))  # on its way while the claim was made
    desk.answer(desk.take(i.WriteRecord))
    desk.answer(desk.take(i.ReadCatalog))
    assert desk.take(i.WriteRecord).record.checkpoint_id == 7


def test_who_is_superseded_between_claim_and_choice_touches_nothing() -> None:
    desk = Desk()
    desk.tell(i.Begin())
    desk.answer(desk.take(i.ReadCatalog))
    desk.answer(desk.take(i.WriteRecord))
    desk.store.create(EpochRecord(epoch=2, owner="them", headroom=2))
    desk.answer(desk.take(i.ReadCatalog))
    assert desk.core.status is JobStatus.FENCED
    assert not [t for t in desk.tray if not isinstance(t, i.ReportStatus)]


def test_who_is_superseded_while_recording_its_choice_touches_nothing() -> None:
    """Simulator seeds 89, 347, 410: two successors chose alike and used the same ids."""
    desk = Desk()
    desk.tell(i.Begin())
    desk.answer(desk.take(i.ReadCatalog))
    desk.answer(desk.take(i.WriteRecord))
    desk.answer(desk.take(i.ReadCatalog))
    choice = desk.take(i.WriteRecord)
    desk.store.create(EpochRecord(epoch=2, owner="them", headroom=2))
    desk.answer(choice)
    desk.clear()
    desk.answer(i.ReadEpochs(5))
    assert desk.core.status is JobStatus.FENCED
    assert [type(t) for t in desk.tray] == [i.ReportStatus]


def test_a_coordinator_that_fails_does_not_take_back_what_another_has_taken() -> None:
    desk = Desk().run()
    desk.store.create(EpochRecord(epoch=2, owner="them", headroom=2))
    desk.tell(i.TaskLost(SINK, 1, "killed"))
    desk.wait(1.0)
    desk.settle()
    assert desk.core.status is JobStatus.FENCED
    assert [e.epoch for e in desk.store.of(EpochRecord)] == [1, 2]


def test_a_claim_of_its_own_that_landed_late_does_not_fence_its_owner() -> None:
    desk = Desk().run()
    desk.store.create(EpochRecord(epoch=2, owner="me", headroom=2))
    desk.tell(i.TaskLost(SINK, 1, "killed"))
    desk.wait(1.0)
    desk.settle()
    assert desk.core.epoch == 3
    assert desk.core.status is JobStatus.DEPLOYING


def test_messages_of_another_epoch_are_refused() -> None:
    desk = Desk().claim()
    for task in TASKS:
        desk.tell(Heartbeat(task=task, epoch=7, phase=TaskPhase.READY))
        desk.tell(Heartbeat(task=task, epoch=0, phase=TaskPhase.FAILED))
    assert desk.core.status is JobStatus.DEPLOYING
    assert desk.core.phase_of(SINK) is TaskPhase.BLANK


def test_a_missing_checkpoint_ends_the_job_with_its_name() -> None:
    desk = Desk(restore=9).claim()
    assert desk.core.status is JobStatus.FAILED
    assert "no checkpoint 9" in desk.core.reason


def test_an_unreadable_manifest_ends_the_job_and_nothing_older_is_taken() -> None:
    storage = storage_of(
        EpochRecord(epoch=1, owner="them", headroom=2),
        RestoreRecord(epoch=1, owner="them", checkpoint_id=None, first_checkpoint_id=1),
        manifest(3, epoch=1),
        manifest(4, epoch=1),
    )
    desk = Desk(storage=storage)
    desk.tell(i.Begin())
    for kind in (i.ReadCatalog, i.WriteRecord, i.ReadCatalog, i.WriteRecord, i.ReadEpochs):
        desk.answer(desk.take(kind))
    asked = desk.take(i.ReadManifest)
    assert asked.checkpoint_id == 4
    desk.tell(i.StorageFailed(asked.request, "tampered", unknown=False, permanent=True))
    assert desk.core.status is JobStatus.FAILED
    assert desk.core.reason == "tampered"


def test_an_explicit_checkpoint_governs_the_first_attempt_only() -> None:
    storage = storage_of(
        EpochRecord(epoch=1, owner="them", headroom=2),
        RestoreRecord(epoch=1, owner="them", checkpoint_id=None, first_checkpoint_id=1),
        manifest(3, epoch=1),
        manifest(4, epoch=1),
    )
    desk = Desk(storage=storage, restore=3).run()
    assert desk.core.restored == 3
    desk.checkpoint(7)
    desk.tell(i.TaskLost(SINK, 1, "killed"))
    desk.wait(1.0)
    desk.settle()
    assert desk.core.restored == 7


def test_a_storage_that_fails_too_often_in_a_row_ends_the_attempt() -> None:
    desk = Desk()
    desk.tell(i.Begin())
    for _ in range(2):
        desk.tell(i.StorageFailed(desk.take(i.ReadCatalog).request, "down", unknown=False))
        assert desk.core.status is JobStatus.CLAIMING
        desk.wait(0.5)
    desk.tell(i.StorageFailed(desk.take(i.ReadCatalog).request, "down", unknown=False))
    assert desk.core.status is JobStatus.RESTARTING
    assert desk.core.restarts == 1


def test_reset_and_start_are_repeated_until_they_are_answered() -> None:
    desk = Desk().claim()
    desk.beat(TaskPhase.READY, *TASKS[1:])
    desk.clear()
    desk.wait(2.0)
    assert [task for task, _ in desk.sent(ResetTask)] == [TASKS[0]]
    desk.beat(TaskPhase.READY, TASKS[0])
    desk.clear()
    desk.wait(2.0)
    assert len(desk.sent(ResolveTransactions)) == 1
    desk.resolve()
    desk.beat(TaskPhase.RUNNING, *TASKS[1:])
    desk.clear()
    desk.wait(2.0)
    assert [task for task, _ in desk.sent(StartTask)] == [TASKS[0]]


def test_the_catalog_may_be_empty() -> None:
    assert Catalog().newest_epoch == 0
    assert Desk(rules(tolerable_failures=2)).claim().core.restored is None
