"""The task body: messages, frames and time in, actions out."""

from __future__ import annotations

import pyarrow as pa
import pytest

from helios_ray.elements import (
    MIN_TIMESTAMP,
    Batch,
    CheckpointBarrier,
    EndOfInput,
    StreamElement,
    Watermark,
    size_in_bytes,
)
from helios_ray.errors import SourceUnavailableError, UserFunctionError
from helios_ray.execution.actions import Action, SealSnapshot, SendCredit, SendFrame, Tell
from helios_ray.execution.outputs import ChannelOptions
from helios_ray.execution.restore import RestoredTask
from helios_ray.execution.task import TaskBody, TaskOptions
from helios_ray.identifiers import TaskId
from helios_ray.operators.base import Operator
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.protocol.channels import Frame
from helios_ray.protocol.messages import (
    AbortCheckpoint,
    CommitAcknowledged,
    CommitCheckpoint,
    FailureKind,
    Heartbeat,
    ResolveTransactions,
    StartTask,
    TaskFailed,
    TaskPhase,
    TransactionsResolved,
    TriggerCheckpoint,
)
from helios_ray.watermarks import WatermarkStrategy
from tests.unit.execution.small_jobs import Bank, ListSource, plan_of

OPTIONS = TaskOptions(
    channels=ChannelOptions(buffer_timeout=0.0, window_bytes=1000, frame_bytes=200),
    source_rows=2,
    heartbeat_interval=1.0,
)
IN, OUT = TaskId("in", 0), TaskId("out", 0)


def rows(*values: int) -> Batch:
    return Batch(pa.record_batch({"x": pa.array(values, pa.int64())}))


class Driven:
    """A body and everything it has asked for."""

    def __init__(self, plan: PhysicalPlan, task: TaskId, options: TaskOptions = OPTIONS) -> None:
        self.plan = plan
        self.body = TaskBody(plan, task, options)
        self.now = 0.0
        self.actions: list[Action] = []
        self.sequence = 0

    def start(self, epoch: int = 1, restored: RestoredTask | None = None) -> Driven:
        source = self.plan.chain(self.body.task.operator).source
        splits = () if source is None else source.source.discover_splits(1)
        self.actions += self.body.reset(epoch, restored, splits, 5, self.now)
        self.actions += self.body.handle(StartTask(epoch=epoch), self.now)
        return self

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.actions += self.body.step(self.now)

    def receive(self, *elements: StreamElement, epoch: int = 1) -> None:
        channel = self.body.core.channels[0]
        size = sum(map(size_in_bytes, elements))
        frame = Frame(epoch, channel, self.sequence, elements, size)
        self.sequence += 1
        self.actions += self.body.receive(frame, self.now)

    def told(self, kind: type) -> list:
        return [
            a.message for a in self.actions if isinstance(a, Tell) and isinstance(a.message, kind)
        ]

    def sent(self) -> list[StreamElement]:
        return [e for a in self.actions if isinstance(a, SendFrame) for e in a.frame.elements]

    def sealed(self) -> list[SealSnapshot]:
        return [a for a in self.actions if isinstance(a, SealSnapshot)]

    def phases(self) -> list[TaskPhase]:
        return [beat.phase for beat in self.told(Heartbeat)]


def values(elements: list[StreamElement]) -> list[int]:
    return [x for e in elements if isinstance(e, Batch) for x in e.data.column("x").to_pylist()]


def test_a_source_reads_and_sends_and_ends() -> None:
    driven = Driven(plan_of(source=ListSource({"a": [1, 2, 3]})), IN).start()
    driven.step(5)
    assert values(driven.sent()) == [1, 2, 3]
    assert driven.sent()[-1] == EndOfInput()
    assert driven.phases() == [TaskPhase.READY, TaskPhase.RUNNING, TaskPhase.FINISHED]
    assert driven.body.counters.rows_out == 3


def test_the_snapshot_of_a_source_is_what_stands_before_its_barrier() -> None:
    source = ListSource({"a": [1, 2, 3, 4]})
    driven = Driven(plan_of(source=source), IN).start()
    driven.step()
    driven.actions += driven.body.handle(TriggerCheckpoint(epoch=1, checkpoint_id=5), 0.0)
    driven.step(5)
    before, after = driven.sent(), []
    cut = before.index(CheckpointBarrier(5))
    before, after = before[:cut], before[cut + 1 :]
    (seal,) = driven.sealed()
    again = Driven(plan_of(source=source), IN).start(2, RestoredTask(state=seal.state))
    again.step(5)
    assert values(before) == [1, 2]
    assert values(again.sent()) == values(after) == [3, 4]


def test_a_sink_prepares_before_its_snapshot_and_commits_when_told() -> None:
    bank = Bank()
    driven = Driven(plan_of(bank=bank), OUT).start()
    driven.receive(rows(1, 2), CheckpointBarrier(5), rows(3))
    driven.step(3)
    (seal,) = driven.sealed()
    assert [t.transaction for t in seal.prepared] == ["helios:job:out:0:1:5"]
    assert bank.prepared == {"helios:job:out:0:1:5": [1, 2]}
    driven.actions += driven.body.handle(CommitCheckpoint(epoch=1, checkpoint_id=5), 0.0)
    assert driven.told(CommitAcknowledged) == [
        CommitAcknowledged(task=OUT, epoch=1, checkpoint_id=5)
    ]
    assert bank.committed == {"helios:job:out:0:1:5": [1, 2]}
    assert driven.body.is_transactional


def test_an_aborted_checkpoint_aborts_no_transaction() -> None:
    bank = Bank()
    driven = Driven(plan_of(bank=bank), OUT).start()
    for checkpoint_id in (5, 6):
        driven.receive(rows(checkpoint_id), CheckpointBarrier(checkpoint_id))
        driven.step(2)
        abort = AbortCheckpoint(epoch=1, checkpoint_id=5)
        driven.actions += driven.body.handle(abort, 0.0)
    assert [t.checkpoint_id for t in driven.sealed()[-1].prepared] == [5, 6]
    driven.actions += driven.body.handle(CommitCheckpoint(epoch=1, checkpoint_id=6), 0.0)
    assert list(bank.committed.values()) == [[5], [6]]


def test_settling_is_acknowledged_when_it_is_done_before_the_task_starts() -> None:
    bank = Bank()
    bank.prepared = {"helios:job:out:0:1:4": [1]}
    driven = Driven(plan_of(bank=bank), OUT)
    driven.actions += driven.body.reset(2, None, (), 9, 0.0)
    bank.busy = 1
    request = ResolveTransactions(epoch=2, sink="out", commit=())
    driven.actions += driven.body.handle(request, 0.0)
    assert driven.told(TransactionsResolved) == []
    driven.now = driven.body.next_wakeup()
    driven.step()
    assert driven.told(TransactionsResolved) == [
        TransactionsResolved(task=OUT, epoch=2, sink="out")
    ]
    assert bank.prepared == {}


def test_messages_and_frames_of_other_epochs_do_nothing() -> None:
    driven = Driven(plan_of(), OUT).start(2)
    driven.actions.clear()
    driven.actions += driven.body.handle(TriggerCheckpoint(epoch=1, checkpoint_id=5), 0.0)
    driven.actions += driven.body.handle(CommitCheckpoint(epoch=1, checkpoint_id=5), 0.0)
    driven.receive(rows(1), epoch=1)
    assert driven.actions == []
    assert not driven.body.ready
    assert driven.body.core.statistics.stale_frames == 1


def test_a_repeated_reset_is_answered_and_changes_nothing() -> None:
    source = ListSource({"a": [1, 2, 3, 4]})
    driven = Driven(plan_of(source=source), IN).start()
    driven.step()
    driven.actions.clear()
    driven.actions += driven.body.reset(1, None, source.discover_splits(1), 5, 0.0)
    assert driven.phases() == [TaskPhase.RUNNING]
    assert driven.body.reset(0, None, (), 5, 0.0) == []
    driven.step()
    assert values(driven.sent()) == [3, 4]


class Broken(Operator):
    error: Exception = ValueError("odd")

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("odd"), FailureKind.RAISED),
        (SourceUnavailableError("gone"), FailureKind.RAISED),
        (UserFunctionError("row 3"), FailureKind.PERMANENT),
    ],
)
def test_an_error_fails_the_task_and_never_escapes(error: Exception, kind: FailureKind) -> None:
    class Raising(Broken):
        pass

    Raising.error = error
    driven = Driven(plan_of(operators=[Raising]), TaskId("op-0", 0)).start()
    driven.receive(rows(1))
    driven.step()
    (failed,) = driven.told(TaskFailed)
    assert (failed.kind, failed.reason) == (kind, f"{type(error).__name__}: {error}")
    assert driven.body.phase is TaskPhase.FAILED
    driven.receive(rows(2))
    driven.step()
    assert len(driven.told(TaskFailed)) == 1
    # A reset makes it whole again.
    driven.sequence = 0
    driven.start(2)
    assert driven.body.phase is TaskPhase.RUNNING


def test_a_part_that_cannot_be_opened_fails_the_reset_and_closes_the_others() -> None:
    closed = []

    class Closing(Operator):
        def close(self) -> None:
            closed.append(True)

        def restore(self, state: object) -> None:
            raise OSError("no disk")

    driven = Driven(plan_of(operators=[Closing]), TaskId("op-0", 0))
    driven.actions += driven.body.reset(1, None, (), 1, 0.0)
    assert driven.body.phase is TaskPhase.READY  # nothing to restore
    state = {"op-0": {}}
    driven.actions += driven.body.reset(2, RestoredTask(state=state), (), 1, 0.0)
    assert [f.reason for f in driven.told(TaskFailed)] == ["OSError: no disk"]
    assert closed == [True, True]


def test_a_blocked_output_stops_the_reading_and_not_the_barrier() -> None:
    source = ListSource({"a": list(range(400))})
    driven = Driven(plan_of(source=source), IN, OPTIONS).start()
    driven.step(200)
    assert driven.body.blocked
    assert not driven.body.ready
    read = len(values(driven.sent()))
    assert 0 < read < 400
    driven.actions += driven.body.handle(TriggerCheckpoint(epoch=1, checkpoint_id=5), 0.0)
    assert len(driven.sealed()) == 1
    frames = [a.frame for a in driven.actions if isinstance(a, SendFrame)]
    driven.body.credit(1, frames[0].channel, sum(f.size for f in frames))
    driven.step()
    assert CheckpointBarrier(5) in driven.sent()


def test_a_receiver_tells_how_much_it_has_consumed() -> None:
    driven = Driven(plan_of(), OUT).start()
    for _ in range(5):
        driven.receive(rows(*range(10)))
        driven.step()
    credits = [a.consumed for a in driven.actions if isinstance(a, SendCredit)]
    assert credits
    assert credits == sorted(credits)
    assert credits[-1] <= 400


def test_a_suspended_source_takes_its_last_checkpoint_and_reads_no_more() -> None:
    driven = Driven(plan_of(source=ListSource({"a": [1, 2, 3, 4]})), IN).start()
    driven.step()
    last = TriggerCheckpoint(epoch=1, checkpoint_id=5, suspend=True)
    driven.actions += driven.body.handle(last, 0.0)
    driven.step(5)
    assert values(driven.sent()) == [1, 2]
    assert not driven.body.ready
    assert len(driven.sealed()) == 1


def test_a_restored_task_announces_event_time_before_its_first_row() -> None:
    source = ListSource({"a": [10, 20]})
    plan = plan_of(source=source, watermarks=WatermarkStrategy.monotonic("x"))
    driven = Driven(plan, IN).start()
    driven.step(3)
    driven.actions += driven.body.handle(TriggerCheckpoint(epoch=1, checkpoint_id=5), 0.0)
    (seal,) = driven.sealed()
    assert seal.watermark == 19
    again = Driven(plan, IN)
    again.start(2, RestoredTask(state=seal.state, watermark=19))
    again.step(3)
    assert again.sent()[0] == Watermark(19)
    assert again.body.watermark == 19


def test_a_task_that_had_finished_says_so_again_and_sends_no_row() -> None:
    class Flushing(Operator):
        def end_input(self) -> list[Batch]:
            return [rows(99)]

    bank = Bank()
    plan = plan_of(operators=[Flushing], bank=bank)
    task = TaskId("op-0", 0)
    driven = Driven(plan, task).start()
    driven.receive(EndOfInput())
    driven.step()
    driven.actions += driven.body.handle(TriggerCheckpoint(epoch=1, checkpoint_id=5), 0.0)
    (seal,) = driven.sealed()
    assert seal.finished
    assert list(bank.prepared.values()) == [[99]]
    again = Driven(plan, task).start(2, RestoredTask(state=seal.state, finished=True))
    assert again.phases()[-1] is TaskPhase.FINISHED
    again.actions += again.body.handle(TriggerCheckpoint(epoch=2, checkpoint_id=9), 0.0)
    assert again.sealed()[0].prepared == ()
    assert again.sealed()[0].finished


def test_heartbeats_come_by_themselves_and_wakeups_name_the_next() -> None:
    driven = Driven(plan_of(), OUT).start()
    driven.actions.clear()
    assert driven.body.next_wakeup() == 1.0
    driven.now = 0.9
    driven.step()
    assert driven.phases() == []
    driven.now = 1.0
    driven.step()
    assert driven.phases() == [TaskPhase.RUNNING]
    assert driven.body.next_wakeup() == 2.0


def test_a_blank_task_says_nothing_and_a_closed_one_is_blank() -> None:
    body = TaskBody(plan_of(), OUT, OPTIONS)
    assert body.step(100.0) == []
    assert body.watermark == MIN_TIMESTAMP
    body.reset(1, None, (), 1, 0.0)
    body.close()
    assert body.phase is TaskPhase.BLANK
