"""The task core while operators hold rows: what waits in a channel, and when the end comes."""

from __future__ import annotations

import pytest

from helios_ray.elements import MAX_TIMESTAMP, CheckpointBarrier, EndOfInput, Watermark
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.protocol.messages import TaskPhase
from helios_ray.protocol.task import (
    AdvanceWatermark,
    FinishInput,
    InputEnded,
    ProcessBatches,
    TakeCheckpoint,
)
from tests.unit.protocol.test_task_core import ME, A, B, Lines, rows

C = ChannelId(1, TaskId("b", 1), ME)
NONE: frozenset[int] = frozenset()
LEFT, RIGHT = frozenset({0}), frozenset({1})


def two_inputs() -> Lines:
    """Input 0 is fed by A, input 1 by B and C."""
    return Lines(A, B, C, index={B: 1, C: 1})


def test_rows_of_a_blocked_input_wait_and_those_of_others_do_not() -> None:
    lines = two_inputs()
    left, right = rows(1), rows(2)
    lines.send(A, left)
    lines.send(B, right)
    lines.core.hold(LEFT, outstanding=False)
    assert lines.drain() == [ProcessBatches(1, (right,))]
    assert lines.core.queued_bytes > 0
    lines.core.hold(NONE, outstanding=False)
    assert lines.drain() == [ProcessBatches(0, (left,))]
    assert lines.core.queued_bytes == 0


def test_marks_before_the_rows_of_a_blocked_input_go_on_and_those_behind_wait() -> None:
    lines = Lines(A)
    lines.core.hold(LEFT, outstanding=True)
    held = rows(1)
    lines.send(A, Watermark(3), CheckpointBarrier(1), held, Watermark(5), CheckpointBarrier(2))
    assert lines.drain() == [AdvanceWatermark(3), TakeCheckpoint(1)]
    lines.send(A, EndOfInput())
    assert not lines.core.has_work
    assert lines.core.phase is TaskPhase.RUNNING
    lines.core.hold(NONE, outstanding=False)
    assert lines.drain() == [
        ProcessBatches(0, (held,)),
        AdvanceWatermark(5),
        TakeCheckpoint(2),
        AdvanceWatermark(MAX_TIMESTAMP),
        FinishInput(),
    ]


def test_a_barrier_of_the_open_inputs_waits_for_the_one_behind_the_rows_of_the_blocked() -> None:
    lines = two_inputs()
    lines.core.hold(LEFT, outstanding=False)
    held = rows(1)
    lines.send(A, held, CheckpointBarrier(1))
    lines.send(B, CheckpointBarrier(1))
    lines.send(C, CheckpointBarrier(1))
    assert lines.drain() == []
    assert lines.core.aligning == 1
    lines.core.hold(NONE, outstanding=False)
    assert lines.drain() == [ProcessBatches(0, (held,)), TakeCheckpoint(1)]


def test_an_input_has_ended_when_all_its_channels_have_while_others_go_on() -> None:
    lines = two_inputs()
    lines.send(B, Watermark(7), EndOfInput())
    assert lines.drain() == []
    lines.send(C, EndOfInput())
    assert lines.drain() == [InputEnded(1)]
    lines.send(A, Watermark(9), EndOfInput())
    assert lines.drain() == [AdvanceWatermark(9), AdvanceWatermark(MAX_TIMESTAMP), FinishInput()]


def test_an_input_ends_after_the_checkpoint_that_its_end_completes_and_before_time_moves() -> None:
    lines = two_inputs()
    lines.send(A, Watermark(5), CheckpointBarrier(1))
    lines.send(C, Watermark(3), CheckpointBarrier(1))
    lines.send(B, EndOfInput())
    assert lines.drain() == [AdvanceWatermark(3), TakeCheckpoint(1)]
    lines.send(C, EndOfInput())
    assert lines.drain() == [InputEnded(1), AdvanceWatermark(5)]


def test_the_end_of_an_input_is_told_again_in_the_next_epoch() -> None:
    lines = two_inputs()
    for epoch in (1, 2):
        for channel in (B, C):
            lines.send(channel, EndOfInput(), epoch=epoch)
        assert lines.drain() == [InputEnded(1)]
        lines.core.reset(2, watermark=0, finished=False)
        lines.core.start(2)
        lines.sequence = dict.fromkeys(lines.sequence, 0)


@pytest.mark.parametrize("source", [False, True])
def test_the_end_waits_for_what_is_outstanding_and_checkpoints_do_not(source: bool) -> None:
    lines = Lines() if source else Lines(A)
    lines.core.hold(NONE, outstanding=True)
    if source:
        assert lines.core.source_exhausted() == []
    else:
        lines.send(A, EndOfInput())
        assert lines.core.advance(1) == []
    assert lines.core.phase is TaskPhase.DRAINING
    assert not lines.core.has_work
    assert lines.core.advance(1) == []
    assert lines.core.trigger(1, 4) == [TakeCheckpoint(4)]
    lines.core.hold(NONE, outstanding=False)
    assert lines.core.has_work
    end = [] if source else [AdvanceWatermark(MAX_TIMESTAMP)]
    assert lines.core.advance(1) == [*end, FinishInput()]
    assert lines.core.phase is TaskPhase.FINISHED
    assert lines.core.trigger(1, 5) == [TakeCheckpoint(5)]
    assert not lines.core.has_work


def test_what_was_held_is_forgotten_with_the_epoch() -> None:
    lines = Lines(A)
    lines.core.hold(LEFT, outstanding=True)
    lines.core.reset(2, watermark=0, finished=False)
    lines.core.start(2)
    lines.sequence[A] = 0
    row = rows(1)
    lines.send(A, row, EndOfInput(), epoch=2)
    assert lines.drain()[0] == ProcessBatches(0, (row,))
    assert lines.core.phase is TaskPhase.FINISHED
