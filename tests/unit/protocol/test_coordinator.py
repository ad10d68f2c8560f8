"""A running job: checkpoints, their commits, failures, and how it ends."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from helios_ray.protocol import instructions as i
from helios_ray.protocol.attempt import MOST_UNCOMMITTED
from helios_ray.protocol.instructions import JobStatus
from helios_ray.protocol.messages import (
    AbortCheckpoint,
    CommitCheckpoint,
    FailureKind,
    ResolveTransactions,
    SnapshotDeclined,
    TaskFailed,
    TaskPhase,
    TransactionsResolved,
    TriggerCheckpoint,
)
from helios_ray.protocol.restart import FixedDelay, NoRestart
from helios_ray.records import CommittedMarker, EpochRecord, Manifest
from tests.unit.protocol.desk import MAP, SHAPE, SINK, SINK_2, SOURCE, TASKS, Desk, rules


def triggered(desk: Desk) -> list[int]:
    return [m.checkpoint_id for _, m in desk.sent(TriggerCheckpoint)]


# ---------------------------------------------------------------------- one checkpoint


def test_only_sources_are_triggered_while_all_run() -> None:
    desk = Desk().run()
    desk.tell(i.CheckpointRequested())
    assert [task for task, _ in desk.sent(TriggerCheckpoint)] == [SOURCE]


def test_each_step_of_a_checkpoint_waits_for_the_one_before() -> None:
    desk = Desk().run()
    desk.tell(i.CheckpointRequested())
    desk.clear()
    desk.acknowledge(1, SOURCE, MAP, SINK)
    assert desk.tray == []
    desk.acknowledge(1, SINK_2)
    assert isinstance(desk.tray[0], i.WriteRecord)
    written = desk.take(i.WriteRecord)
    assert isinstance(written.record, Manifest)
    assert desk.tray == []
    desk.answer(written)
    assert [type(t) for t in desk.tray] == [i.ReadEpochs]
    assert desk.sent(CommitCheckpoint) == []
    desk.answer(desk.take(i.ReadEpochs))
    assert [task for task, _ in desk.sent(CommitCheckpoint)] == [SINK, SINK_2]
    desk.clear()
    desk.commit(1, SINK)
    assert desk.tray == []
    desk.commit(1, SINK_2)
    marker = desk.take(i.WriteRecord)
    assert marker.record == CommittedMarker(checkpoint_id=1, epoch=1)
    assert desk.core.committed is None
    desk.answer(marker)
    assert desk.core.committed == 1
    assert i.RetainCheckpoints(1, 1) in desk.tray


def test_a_fenced_coordinator_commits_nothing_of_its_last_manifest() -> None:
    desk = Desk().run()
    desk.tell(i.CheckpointRequested())
    desk.acknowledge(1)
    desk.answer(desk.take(i.WriteRecord))
    desk.store.create(EpochRecord(epoch=2, owner="them", headroom=2))
    desk.answer(desk.take(i.ReadEpochs))
    assert desk.core.status is JobStatus.FENCED
    assert desk.sent(CommitCheckpoint) == []
    assert desk.tell(i.Tick()) == []


def test_epochs_read_before_a_manifest_was_durable_do_not_decide_about_it() -> None:
    desk = Desk(rules(max_concurrent=2)).run()
    for checkpoint_id in (1, 2):
        desk.tell(i.CheckpointRequested())
        desk.acknowledge(checkpoint_id)
    first, second = desk.take(i.WriteRecord), desk.take(i.WriteRecord)
    desk.answer(first)
    look = desk.take(i.ReadEpochs)
    epochs = tuple(e.epoch for e in desk.store.of(EpochRecord))  # read now, answered later
    desk.store.create(EpochRecord(epoch=2, owner="them", headroom=2))
    desk.answer(second)
    desk.tell(i.EpochsRead(look.request, epochs))
    assert {m.checkpoint_id for _, m in desk.sent(CommitCheckpoint)} == {1}
    desk.answer(desk.take(i.ReadEpochs))
    assert desk.core.status is JobStatus.FENCED
    assert {m.checkpoint_id for _, m in desk.sent(CommitCheckpoint)} == {1}


def test_a_manifest_whose_write_was_not_answered_is_created_again_and_is_ours() -> None:
    desk = Desk().run()
    desk.tell(i.CheckpointRequested())
    desk.acknowledge(1)
    written = desk.take(i.WriteRecord)
    desk.store.create(written.record)
    desk.tell(i.StorageFailed(written.request, "no answer", unknown=True))
    desk.wait(0.5)
    assert desk.take(i.WriteRecord) == written
    desk.tell(i.RecordWritten(written.request, written.record))
    desk.settle()
    assert len(desk.sent(CommitCheckpoint)) == 2


def test_a_manifest_of_somebody_else_in_its_place_fails_the_checkpoint() -> None:
    desk = Desk(rules(tolerable_failures=1)).run()
    desk.tell(i.CheckpointRequested())
    desk.acknowledge(1)
    written = desk.take(i.WriteRecord)
    assert isinstance(written.record, Manifest)
    desk.clear()
    desk.tell(i.RecordWritten(written.request, replace(written.record, owner="them")))
    assert desk.take(i.ReportCheckpoint).outcome == "failed"
    assert desk.sent(CommitCheckpoint) == []


def test_commits_are_repeated_to_those_who_have_not_answered() -> None:
    desk = Desk().run()
    desk.tell(i.CheckpointRequested())
    desk.acknowledge(1)
    desk.settle()
    desk.commit(1, SINK)
    desk.clear()
    desk.wait(2.0)
    assert [task for task, _ in desk.sent(CommitCheckpoint)] == [SINK_2]


def test_the_answer_for_a_later_checkpoint_covers_the_earlier_ones() -> None:
    desk = Desk(rules(max_concurrent=2)).run()
    for checkpoint_id in (1, 2):
        desk.tell(i.CheckpointRequested())
        desk.acknowledge(checkpoint_id)
        desk.settle()
    desk.commit(2)
    desk.settle()
    assert [m.checkpoint_id for m in desk.store.of(CommittedMarker)] == [1, 2]


def test_a_completed_checkpoint_makes_older_pending_ones_pointless() -> None:
    desk = Desk(rules(max_concurrent=2)).run()
    desk.tell(i.CheckpointRequested())
    desk.tell(i.CheckpointRequested())
    desk.acknowledge(2)
    desk.settle()
    assert {m.checkpoint_id for _, m in desk.sent(AbortCheckpoint)} == {1}
    desk.acknowledge(1)
    desk.settle()
    assert [m.checkpoint_id for m in desk.store.of(Manifest)] == [2]


def test_the_restored_checkpoint_is_marked_committed_before_anything_else() -> None:
    desk = Desk().run()
    desk.tell(i.CheckpointRequested())
    desk.acknowledge(1, prepared=True)
    desk.settle()
    again = Desk(storage=desk.store, owner="again").claim()
    again.beat(TaskPhase.READY)
    ((_, order),) = again.sent(ResolveTransactions)
    assert [t.checkpoint_id for t in order.commit] == [1, 1]
    assert again.store.of(CommittedMarker) == []
    again.resolve()
    again.beat(TaskPhase.RUNNING)
    again.settle()
    assert [(m.checkpoint_id, m.epoch) for m in again.store.of(CommittedMarker)] == [(1, 2)]


def test_without_a_look_at_the_epochs_ids_end_where_a_successor_would_begin() -> None:
    """Simulator seed 3157: the look took long, and the fenced epoch went on without bounds."""
    desk = Desk().run()
    looks = []
    for checkpoint_id in (1, 2):
        desk.tell(i.CheckpointRequested())
        desk.acknowledge(checkpoint_id)
        desk.answer(desk.take(i.WriteRecord))
        looks += [t for t in desk.tray if isinstance(t, i.ReadEpochs)]
    desk.clear()
    desk.tell(i.CheckpointRequested())
    assert triggered(desk) == []
    successor = Desk(storage=desk.store, owner="them").claim()
    assert successor.core.restored == 2
    desk.answer(looks[0])
    assert desk.core.status is JobStatus.FENCED


def test_ids_go_on_as_soon_as_the_epoch_is_known_to_be_the_newest() -> None:
    desk = Desk().run()
    for checkpoint_id in (1, 2):
        desk.tell(i.CheckpointRequested())
        desk.acknowledge(checkpoint_id)
        desk.answer(desk.take(i.WriteRecord))
    desk.tell(i.CheckpointRequested())
    desk.settle()
    assert triggered(desk) == [1, 2, 3]


def test_a_manifest_that_a_later_one_has_made_pointless_is_not_written_again() -> None:
    """Simulator seed 455: retention had dropped it, and it came back without its objects."""
    desk = Desk(rules(max_concurrent=2)).run()
    for checkpoint_id in (1, 2):
        desk.tell(i.CheckpointRequested())
        desk.acknowledge(checkpoint_id)
    first, second = desk.take(i.WriteRecord), desk.take(i.WriteRecord)
    desk.tell(i.StorageFailed(first.request, "no answer", unknown=True))
    desk.answer(second)
    desk.settle()
    desk.clear()
    desk.wait(1.0)
    assert [t for t in desk.tray if isinstance(t, i.WriteRecord)] == []
    assert desk.tell(i.RecordWritten(first.request, None)) == []


# ---------------------------------------------------------------------- when to trigger


def test_the_interval_counts_from_trigger_to_trigger() -> None:
    desk = Desk(rules(interval=10.0)).run()
    desk.wait(9.0)
    assert triggered(desk) == []
    assert desk.core.next_wakeup() is not None
    desk.wait(1.0)
    assert triggered(desk) == [1]


def test_min_pause_counts_from_completion_and_does_not_hold_a_request_back() -> None:
    desk = Desk(rules(interval=10.0, min_pause=8.0)).run()
    desk.wait(10.0)
    desk.wait(5.0)
    desk.acknowledge(1)
    desk.settle()
    desk.commit(1)
    desk.settle()
    desk.clear()
    desk.wait(7.0)
    assert triggered(desk) == []
    desk.wait(1.0)
    assert triggered(desk) == [2]
    desk.acknowledge(2)
    desk.settle()
    desk.clear()
    desk.tell(i.CheckpointRequested())
    assert triggered(desk) == [3]


def test_no_more_than_max_concurrent_are_under_way() -> None:
    desk = Desk(rules(max_concurrent=2)).run()
    for _ in range(4):
        desk.tell(i.CheckpointRequested())
    assert triggered(desk) == [1, 2]
    desk.acknowledge(1)
    desk.settle()
    desk.commit(1)
    desk.settle()
    assert triggered(desk) == [1, 2, 3]


def test_triggering_pauses_while_commits_lag_far_behind_and_goes_on_when_they_do() -> None:
    desk = Desk(rules(max_concurrent=1)).run()
    for checkpoint_id in range(1, MOST_UNCOMMITTED + 1):
        desk.tell(i.CheckpointRequested())
        desk.acknowledge(checkpoint_id)
        desk.settle()
    desk.tell(i.CheckpointRequested())
    newest = max(m.checkpoint_id for _, m in desk.sent(TriggerCheckpoint))
    assert newest == MOST_UNCOMMITTED
    desk.commit(1)
    desk.settle()
    newest = max(m.checkpoint_id for _, m in desk.sent(TriggerCheckpoint))
    assert newest == MOST_UNCOMMITTED + 1


def test_no_checkpoint_before_every_task_runs() -> None:
    desk = Desk(rules(interval=1.0)).claim()
    desk.beat(TaskPhase.READY)
    desk.resolve()
    desk.beat(TaskPhase.RUNNING, *TASKS[:-1])
    desk.wait(5.0)
    assert triggered(desk) == []
    desk.beat(TaskPhase.RUNNING, TASKS[-1])
    assert triggered(desk) == [1]


# ------------------------------------------------------------------- checkpoints that fail


def test_a_timeout_names_who_was_missing_and_aborts_everywhere() -> None:
    desk = Desk(rules(tolerable_failures=1)).run()
    desk.tell(i.CheckpointRequested())
    desk.acknowledge(1, SOURCE, MAP)
    desk.clear()
    desk.wait(100.0)
    report = desk.take(i.ReportCheckpoint)
    assert (report.checkpoint_id, report.outcome) == (1, "failed")
    assert "sink[0], sink[1]" in report.reason
    assert [task for task, _ in desk.sent(AbortCheckpoint)] == list(TASKS)
    assert desk.core.status is JobStatus.RUNNING


@pytest.mark.parametrize("tolerable", [0, 1, 3])
def test_one_failed_checkpoint_too_many_ends_the_attempt(tolerable: int) -> None:
    desk = Desk(rules(tolerable_failures=tolerable)).run()
    for checkpoint_id in range(1, tolerable + 2):
        assert desk.core.status is JobStatus.RUNNING
        desk.tell(i.CheckpointRequested())
        declined = SnapshotDeclined(
            task=MAP, epoch=1, checkpoint_id=checkpoint_id, reason="disk full"
        )
        desk.tell(declined)
    assert desk.core.status is JobStatus.RESTARTING
    assert "disk full" in desk.core.reason


def test_a_completed_checkpoint_starts_the_count_of_failures_anew() -> None:
    desk = Desk(rules(tolerable_failures=1)).run()
    for checkpoint_id in (1, 3):
        desk.tell(i.CheckpointRequested())
        desk.tell(SnapshotDeclined(task=MAP, epoch=1, checkpoint_id=checkpoint_id, reason="x"))
        desk.checkpoint(checkpoint_id + 1)
    assert desk.core.status is JobStatus.RUNNING


def test_a_manifest_that_turns_out_durable_after_its_timeout_is_committed_all_the_same() -> None:
    desk = Desk(rules(tolerable_failures=1)).run()
    desk.tell(i.CheckpointRequested())
    desk.acknowledge(1)
    written = desk.take(i.WriteRecord)
    desk.wait(100.0)
    assert desk.sent(AbortCheckpoint)
    desk.answer(written)
    desk.settle()
    assert {m.checkpoint_id for _, m in desk.sent(CommitCheckpoint)} == {1}


# ------------------------------------------------------------------------------- failures


def failures() -> list[tuple[str, i.Event]]:
    raised = TaskFailed(task=MAP, epoch=1, kind=FailureKind.RAISED, reason="boom")
    return [("raised", raised), ("lost", i.TaskLost(MAP, 1, "killed"))]


@pytest.mark.parametrize(("name", "event"), failures())
def test_a_failure_resets_all_and_replaces_only_what_is_dead(name: str, event: i.Event) -> None:
    desk = Desk().run()
    desk.tell(event)
    assert desk.core.status is JobStatus.RESTARTING
    desk.clear()
    desk.wait(1.0)
    desk.settle()
    assert desk.core.epoch == 2
    replaced = [t for t in desk.tray if isinstance(t, i.ReplaceTask)]
    assert replaced == ([i.ReplaceTask(MAP, 2)] if name == "lost" else [])


def test_a_permanent_failure_ends_the_job() -> None:
    desk = Desk().run()
    desk.tell(TaskFailed(task=MAP, epoch=1, kind=FailureKind.PERMANENT, reason="bad row"))
    assert desk.core.status is JobStatus.FAILED
    assert desk.core.reason == "map[0]: bad row"


def test_the_death_of_a_process_that_was_replaced_already_is_old_news() -> None:
    desk = Desk().run()
    desk.tell(i.TaskLost(MAP, 1, "killed"))
    desk.wait(1.0)
    desk.run()
    desk.tell(i.TaskLost(MAP, 1, "killed"))
    assert desk.core.status is JobStatus.RUNNING


def test_silence_counts_as_death_sooner_once_a_task_has_joined() -> None:
    settings = replace(rules(), heartbeat_timeout=5.0, deploy_timeout=20.0)
    desk = Desk(settings).claim()
    desk.wait(19.0)
    assert desk.core.status is JobStatus.DEPLOYING
    desk.beat(TaskPhase.READY, *TASKS[:-1])
    desk.wait(1.0)
    assert desk.core.reason == "sink[1]: no sign of life for 20 s"
    running = Desk(settings).run()
    running.wait(4.0)
    running.beat(TaskPhase.RUNNING, *TASKS[1:])
    running.wait(1.0)
    assert running.core.reason == "source[0]: no sign of life for 5 s"


def test_a_task_inside_one_call_for_too_long_is_replaced() -> None:
    desk = Desk().run()
    desk.beat(TaskPhase.RUNNING, MAP, stalled_for=50.0)
    assert desk.core.status is JobStatus.RUNNING
    desk.beat(TaskPhase.RUNNING, MAP, stalled_for=51.0)
    assert "has not returned from one call for 51 s" in desk.core.reason
    desk.wait(1.0)
    desk.settle()
    assert i.ReplaceTask(MAP, 2) in desk.tray


def test_a_lost_report_of_failure_is_made_up_for_by_the_next_heartbeat() -> None:
    desk = Desk().run()
    desk.beat(TaskPhase.FAILED, MAP)
    assert desk.core.status is JobStatus.RESTARTING


def test_no_restart_and_exhausted_restarts_end_the_job_with_the_cause() -> None:
    for strategy, attempts in ((NoRestart(), 0), (FixedDelay(attempts=2, delay=timedelta(0)), 2)):
        desk = Desk(replace(rules(), restart=strategy)).run()
        for n in range(attempts + 1):
            assert desk.core.status is JobStatus.RUNNING
            failed = TaskFailed(
                task=MAP, epoch=desk.core.epoch, kind=FailureKind.RAISED, reason=f"boom {n}"
            )
            desk.tell(failed)
            if n < attempts:
                desk.run()
        assert desk.core.status is JobStatus.FAILED
        assert desk.core.reason == f"map[0]: boom {attempts}"
        assert desk.core.restarts == attempts


def test_answers_of_a_past_attempt_mean_nothing_to_the_next() -> None:
    desk = Desk().run()
    desk.tell(i.CheckpointRequested())
    desk.acknowledge(1)
    late = desk.take(i.WriteRecord)
    desk.tell(i.TaskLost(MAP, 1, "killed"))
    desk.wait(1.0)
    desk.run()
    assert desk.tell(i.RecordWritten(late.request, None)) == []


def test_settlements_reported_while_waiting_to_restart_do_not_start_the_job() -> None:
    desk = Desk().claim()
    desk.beat(TaskPhase.READY)
    desk.tell(i.TaskLost(MAP, 1, "killed"))
    desk.tell(TransactionsResolved(task=SINK, epoch=1, sink="sink"))
    assert desk.core.status is JobStatus.RESTARTING
    assert desk.core.attempt is None


# -------------------------------------------------------------------------------- the end


def finish(desk: Desk, checkpoint_id: int) -> None:
    desk.acknowledge(checkpoint_id, finished=True)
    desk.settle()
    desk.commit(checkpoint_id)
    desk.settle()
    desk.resolve(sweep=True)


def test_bounded_input_ends_with_one_more_checkpoint_and_its_commit() -> None:
    desk = Desk().run()
    desk.beat(TaskPhase.FINISHED, *TASKS[:-1])
    assert triggered(desk) == []
    desk.beat(TaskPhase.FINISHED, TASKS[-1])
    assert desk.core.status is JobStatus.FINISHING
    assert [task for task, _ in desk.sent(TriggerCheckpoint)] == list(TASKS)
    finish(desk, 1)
    assert desk.core.status is JobStatus.FINISHED
    assert desk.store.manifest(1).final
    assert desk.core.next_wakeup() is None


def test_the_final_checkpoint_waits_for_those_under_way() -> None:
    desk = Desk(rules(max_concurrent=2)).run()
    desk.tell(i.CheckpointRequested())
    desk.clear()
    desk.beat(TaskPhase.FINISHED)
    assert {m.checkpoint_id for _, m in desk.sent(TriggerCheckpoint)} == {1}
    desk.acknowledge(1)
    desk.settle()
    assert {m.checkpoint_id for _, m in desk.sent(TriggerCheckpoint)} == {1}
    desk.commit(1)
    desk.settle()
    assert {m.checkpoint_id for _, m in desk.sent(TriggerCheckpoint)} == {1, 2}


def test_a_final_checkpoint_that_fails_is_taken_again() -> None:
    desk = Desk(rules(tolerable_failures=1)).run()
    desk.beat(TaskPhase.FINISHED)
    desk.tell(SnapshotDeclined(task=MAP, epoch=1, checkpoint_id=1, reason="x"))
    assert {m.checkpoint_id for _, m in desk.sent(TriggerCheckpoint)} == {1, 2}
    finish(desk, 2)
    assert desk.core.status is JobStatus.FINISHED


def test_a_task_that_finishes_while_a_checkpoint_waits_for_it_is_asked_itself() -> None:
    desk = Desk().run()
    desk.tell(i.CheckpointRequested())
    desk.clear()
    desk.beat(TaskPhase.FINISHED, MAP)
    assert [task for task, _ in desk.sent(TriggerCheckpoint)] == [MAP]
    desk.clear()
    desk.tell(i.CheckpointRequested())
    desk.acknowledge(1)
    desk.settle()
    assert [task for task, _ in desk.sent(TriggerCheckpoint)] == [SOURCE, MAP]


def test_a_task_that_drains_is_asked_itself_and_the_job_does_not_end_before_it() -> None:
    desk = Desk().run()
    desk.tell(i.CheckpointRequested())
    desk.beat(TaskPhase.FINISHED, SOURCE)
    desk.clear()
    desk.beat(TaskPhase.DRAINING, MAP)
    assert [task for task, _ in desk.sent(TriggerCheckpoint)] == [MAP]
    desk.acknowledge(1)
    desk.settle()
    desk.commit(1)
    desk.settle()
    desk.clear()
    desk.beat(TaskPhase.RUNNING, MAP)  # said before, and late
    desk.tell(i.CheckpointRequested())
    assert [task for task, _ in desk.sent(TriggerCheckpoint)] == [SOURCE, MAP]
    desk.acknowledge(2)
    desk.settle()
    desk.commit(2)
    desk.settle()
    desk.beat(TaskPhase.FINISHED, *(task for task in TASKS if task != MAP))
    assert desk.core.status is JobStatus.RUNNING
    desk.beat(TaskPhase.FINISHED)
    assert desk.core.status is JobStatus.FINISHING


def test_a_finished_job_run_again_settles_and_ends_without_a_row() -> None:
    first = Desk().run()
    first.beat(TaskPhase.FINISHED)
    finish(first, 1)
    again = Desk(storage=first.store, owner="again").claim()
    again.beat(TaskPhase.READY)
    again.resolve()
    again.beat(TaskPhase.FINISHED)
    again.settle()
    finish(again, 4)
    assert again.core.status is JobStatus.FINISHED


def test_stop_takes_a_last_checkpoint_after_which_sources_read_no_more() -> None:
    desk = Desk(rules(interval=10.0, min_pause=5.0)).run()
    desk.tell(i.StopRequested())
    assert desk.sent(TriggerCheckpoint) == [
        (SOURCE, TriggerCheckpoint(epoch=1, checkpoint_id=1, suspend=True))
    ]
    desk.wait(30.0)
    assert triggered(desk) == [1]
    finish(desk, 1)
    assert desk.core.status is JobStatus.STOPPED
    assert not desk.store.manifest(1).final


def test_a_stop_is_not_forgotten_when_the_attempt_fails() -> None:
    desk = Desk().run()
    desk.tell(i.StopRequested())
    desk.tell(i.TaskLost(MAP, 1, "killed"))
    desk.wait(1.0)
    desk.claim()
    desk.beat(TaskPhase.READY)
    desk.resolve()
    desk.clear()
    desk.beat(TaskPhase.RUNNING)
    ((task, message),) = desk.sent(TriggerCheckpoint)
    assert (task, message.suspend) == (SOURCE, True)
    desk.settle()
    finish(desk, message.checkpoint_id)
    assert desk.core.status is JobStatus.STOPPED


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (i.CancelRequested(), JobStatus.CANCELLED),
        (i.StopRequested(), JobStatus.STOPPED),
    ],
)
def test_a_job_that_is_not_running_settles_its_transactions_and_ends(
    event: i.Event, status: JobStatus
) -> None:
    desk = Desk().run()
    desk.tell(i.TaskLost(MAP, 1, "killed"))
    desk.tell(event)
    desk.settle()
    assert desk.core.epoch == 2
    desk.beat(TaskPhase.READY)
    assert desk.core.status is JobStatus.RESOLVING
    desk.resolve()
    assert desk.core.status is status


def test_cancel_settles_under_a_new_epoch_and_takes_no_checkpoint() -> None:
    desk = Desk().run()
    desk.tell(i.CheckpointRequested())
    desk.acknowledge(1)
    desk.settle()
    desk.tell(i.CancelRequested())
    desk.tell(i.CancelRequested())
    desk.settle()
    desk.beat(TaskPhase.READY)
    assert [m.epoch for _, m in desk.sent(ResolveTransactions)] == [2]
    desk.resolve()
    assert desk.core.status is JobStatus.CANCELLED
    assert [m.checkpoint_id for m in desk.store.of(Manifest)] == [1]


def test_a_job_cancelled_before_it_began_ends_at_once() -> None:
    desk = Desk()
    desk.tell(i.CancelRequested())
    assert desk.core.status is JobStatus.CANCELLED
    assert desk.tell(i.Begin()) == []


def test_a_job_without_transactional_sinks_needs_no_commit_and_no_sweep() -> None:
    desk = Desk(shape=replace(SHAPE, sinks={})).claim()
    desk.beat(TaskPhase.READY)
    assert desk.core.status is JobStatus.RUNNING
    desk.beat(TaskPhase.FINISHED)
    desk.acknowledge(1, finished=True)
    desk.settle()
    assert desk.core.status is JobStatus.FINISHED
    assert [m.checkpoint_id for m in desk.store.of(CommittedMarker)] == [1]
