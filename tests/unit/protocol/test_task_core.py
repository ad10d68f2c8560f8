"""The task core: frames in, instructions out."""

from __future__ import annotations

import pyarrow as pa
import pytest

from helios_ray.elements import (
    MAX_TIMESTAMP,
    Batch,
    CheckpointBarrier,
    EndOfInput,
    Idle,
    StreamElement,
    Watermark,
    size_in_bytes,
)
from helios_ray.errors import ChannelGapError
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.protocol.channels import Frame
from helios_ray.protocol.messages import TaskPhase
from helios_ray.protocol.task import (
    AdvanceWatermark,
    BecomeIdle,
    FinishInput,
    GrantCredit,
    Instruction,
    ProcessBatches,
    TakeCheckpoint,
    TaskCore,
)

ME = TaskId("me", 0)
A = ChannelId(0, TaskId("a", 0), ME)
B = ChannelId(1, TaskId("b", 0), ME)


def rows(*values: int) -> Batch:
    return Batch(pa.record_batch({"x": list(values)}))


class Lines:
    """A task core with its senders."""

    def __init__(self, *channels: ChannelId, index: dict[ChannelId, int] | None = None) -> None:
        inputs = [(c, (index or {}).get(c, 0)) for c in channels]
        self.core = TaskCore(inputs, credit_threshold=10**9)
        self.sequence = dict.fromkeys(channels, 0)
        assert self.core.reset(1, watermark=-1000, finished=False)
        assert self.core.start(1) == []

    def send(self, channel: ChannelId, *elements: StreamElement, epoch: int = 1) -> None:
        size = sum(map(size_in_bytes, elements))
        self.core.receive(Frame(epoch, channel, self.sequence[channel], elements, size))
        self.sequence[channel] += 1

    def drain(self, max_bytes: int = 10**9) -> list[Instruction]:
        done: list[Instruction] = []
        while self.core.has_work:
            done += self.core.advance(max_bytes)
        assert self.core.advance(max_bytes) == []
        return done


def test_rows_behind_a_barrier_wait_until_the_other_input_has_brought_it() -> None:
    lines = Lines(A, B)
    before, behind, other = rows(1), rows(2), rows(3)
    lines.send(A, before, CheckpointBarrier(1), behind)
    assert lines.drain() == [ProcessBatches(0, (before,))]
    assert lines.core.aligning == 1
    lines.send(B, other, CheckpointBarrier(1))
    assert lines.drain() == [
        ProcessBatches(0, (other,)),
        TakeCheckpoint(1),
        ProcessBatches(0, (behind,)),
    ]


def test_rows_that_wait_on_several_channels_come_out_together() -> None:
    lines = Lines(A, B)
    first, second, third = rows(1), rows(2), rows(3)
    lines.send(A, first, second)
    lines.send(B, third)
    assert lines.drain() == [ProcessBatches(0, (first, second, third))]


def test_rows_of_different_inputs_are_never_mixed() -> None:
    lines = Lines(A, B, index={B: 1})
    left, right = rows(1), rows(2)
    lines.send(A, left)
    lines.send(B, right)
    assert lines.drain() == [ProcessBatches(0, (left,)), ProcessBatches(1, (right,))]


def test_rows_come_out_up_to_the_size_asked_for_and_at_least_one_batch() -> None:
    lines = Lines(A)
    big = rows(*range(100))
    lines.send(A, big, big)
    assert lines.core.advance(1) == [ProcessBatches(0, (big,))]
    assert lines.core.advance(1) == [ProcessBatches(0, (big,))]


def test_a_mark_is_never_overtaken_by_rows_of_its_channel() -> None:
    lines = Lines(A)
    early, late = rows(1), rows(2)
    lines.send(A, early, Watermark(5), late, Watermark(7))
    assert lines.drain() == [
        ProcessBatches(0, (early,)),
        AdvanceWatermark(5),
        ProcessBatches(0, (late,)),
        AdvanceWatermark(7),
    ]


def test_idle_is_passed_on_when_all_are_and_taken_back_with_the_first_sign_of_life() -> None:
    lines = Lines(A, B)
    lines.send(A, Watermark(9), Idle())
    assert lines.drain() == []
    lines.send(B, Idle())
    assert lines.drain() == [AdvanceWatermark(9), BecomeIdle()]
    lines.send(B, Idle())
    assert lines.drain() == []
    lines.send(A, Watermark(9))
    assert lines.drain() == [AdvanceWatermark(9)]


def test_the_end_of_the_last_input_ends_the_task_after_the_end_of_time() -> None:
    lines = Lines(A, B)
    lines.send(A, EndOfInput())
    assert lines.drain() == []
    lines.send(B, EndOfInput())
    assert lines.drain() == [AdvanceWatermark(MAX_TIMESTAMP), FinishInput()]
    assert lines.core.phase is TaskPhase.FINISHED


def test_an_input_that_ends_completes_the_alignment_before_the_operators_flush() -> None:
    lines = Lines(A, B)
    lines.send(A, CheckpointBarrier(1), EndOfInput())
    lines.send(B, EndOfInput())
    assert lines.drain() == [
        TakeCheckpoint(1),
        AdvanceWatermark(MAX_TIMESTAMP),
        FinishInput(),
    ]


def test_a_task_that_runs_takes_no_direct_trigger_and_one_that_has_finished_does() -> None:
    lines = Lines(A)
    assert lines.core.trigger(1, 4) == []
    lines.send(A, EndOfInput())
    lines.drain()
    assert lines.core.trigger(1, 4) == [TakeCheckpoint(4)]
    assert lines.core.trigger(1, 4) == []
    assert lines.core.trigger(2, 5) == []


def test_a_source_is_triggered_directly_and_ends_once() -> None:
    lines = Lines()
    assert lines.core.trigger(1, 1) == [TakeCheckpoint(1)]
    assert lines.core.source_exhausted() == [FinishInput()]
    assert lines.core.source_exhausted() == []
    assert lines.core.trigger(1, 2) == [TakeCheckpoint(2)]


def test_a_task_that_had_finished_before_the_checkpoint_does_not_flush_again() -> None:
    core = TaskCore([(A, 0)], credit_threshold=1)
    core.reset(2, watermark=0, finished=True)
    assert core.start(2) == [FinishInput(flush=False)]
    assert core.phase is TaskPhase.FINISHED
    assert core.trigger(2, 9) == [TakeCheckpoint(9)]


def test_frames_of_other_epochs_duplicates_and_gaps() -> None:
    lines = Lines(A)
    lines.send(A, rows(1), epoch=7)
    assert lines.core.statistics.stale_frames == 1
    lines.sequence[A] = 0
    lines.send(A, rows(1))
    lines.sequence[A] = 0
    lines.send(A, rows(1))
    assert lines.core.statistics.duplicate_frames == 1
    lines.sequence[A] = 3
    with pytest.raises(ChannelGapError):
        lines.send(A, rows(1))


def test_a_reset_forgets_everything_and_only_a_newer_epoch_resets() -> None:
    lines = Lines(A)
    lines.send(A, rows(1), CheckpointBarrier(1))
    assert not lines.core.reset(1, watermark=0, finished=False)
    assert lines.core.reset(2, watermark=0, finished=False)
    assert lines.core.queued_bytes == 0
    lines.sequence[A] = 0
    lines.send(A, Watermark(3), epoch=2)
    assert not lines.core.has_work  # not before it is started
    assert lines.core.start(1) == []
    assert lines.core.start(2) == []
    assert lines.drain() == [AdvanceWatermark(3)]


def test_an_abort_lets_the_blocked_channel_go_on() -> None:
    lines = Lines(A, B)
    behind = rows(2)
    lines.send(A, CheckpointBarrier(1), behind)
    assert lines.drain() == []
    lines.core.abort(2, 1)
    assert lines.drain() == []
    lines.core.abort(1, 1)
    assert lines.drain() == [ProcessBatches(0, (behind,))]


def test_all_bytes_of_a_frame_are_credited_once_its_elements_are_consumed() -> None:
    core = TaskCore([(A, 0)], credit_threshold=1)
    core.reset(1, watermark=0, finished=False)
    core.start(1)
    batch = rows(1, 2, 3)
    core.receive(Frame(1, A, 0, (batch, Watermark(5), batch), 10_000))
    assert core.queued_bytes == 10_000
    credit = 0
    while core.has_work:
        for instruction in core.advance(10**9):
            if isinstance(instruction, GrantCredit):
                assert instruction.consumed > credit
                credit = instruction.consumed
    assert credit == 10_000
    assert core.queued_bytes == 0
