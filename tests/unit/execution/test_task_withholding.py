"""A task whose operator holds rows of one input until another input lets them go."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from helios_ray.elements import (
    Batch,
    CheckpointBarrier,
    EndOfInput,
    Idle,
    Watermark,
)
from helios_ray.operators.base import Operator
from helios_ray.operators.joins.enrich import EnrichOperator
from helios_ray.protocol.messages import AbortCheckpoint, TaskPhase
from tests.unit.execution.test_task_body import rows, values
from tests.unit.execution.test_task_waiting import Make, Waiting, job

STREAM, TABLE = 0, 1


def enrich(held_bytes: int = 1 << 20) -> Make:
    return lambda: EnrichOperator(["x"], ["x"], table_is_bounded=True, held_bytes=held_bytes)


def task(*operators: Make) -> Waiting:
    waiting = Waiting(job(operators, inputs=2)).start()
    # A source without event time says so at once.
    waiting.send(Idle(), to=TABLE)
    return waiting


@pytest.mark.parametrize("operators", [(enrich(),), (enrich(), Operator)])
def test_a_task_is_not_idle_while_rows_wait_for_the_end_of_another_input(
    operators: Sequence[Make],
) -> None:
    waiting = task(*operators)
    waiting.send(rows(3), to=TABLE)
    waiting.send(Watermark(2), rows(3), Watermark(9), EndOfInput(), to=STREAM)
    assert set(waiting.times()) == {Watermark(2)}
    waiting.send(EndOfInput(), to=TABLE)
    assert values(waiting.sent()) == [3]
    assert not any(isinstance(element, Idle) for element in waiting.sent())
    assert waiting.body.phase is TaskPhase.FINISHED


def test_a_task_that_withholds_nothing_is_idle_with_its_inputs() -> None:
    waiting = task(enrich())
    waiting.send(Watermark(2), EndOfInput(), to=STREAM)
    assert waiting.times() == [Watermark(2), Idle()]


def test_idleness_is_told_once_the_rows_are_gone() -> None:
    class Gate(Operator):
        """Holds rows of the stream until one of the table has come."""

        held: Batch | None = None

        @property
        def withholds(self) -> bool:
            return self.held is not None

        def output_watermark(self, timestamp: int) -> int:
            return min(timestamp, 2) if self.held is not None else timestamp

        def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
            if input_index == STREAM:
                self.held = batch
                return []
            held, self.held = self.held, None
            return [] if held is None else [held]

    waiting = task(Gate)
    waiting.send(Watermark(2), rows(3), Watermark(9), Idle(), to=STREAM)
    before = waiting.times()
    assert set(before) == {Watermark(2)}
    waiting.send(rows(0), to=TABLE)
    assert values(waiting.sent()) == [3]
    assert waiting.times()[len(before) :] == [Watermark(9), Idle()]


def blocked() -> Waiting:
    """A task that holds as much of the stream as it may, with more of it before a barrier."""
    waiting = task(enrich(held_bytes=1))
    waiting.send(rows(1), to=STREAM)
    waiting.send(rows(2), CheckpointBarrier(5), rows(3), to=STREAM)
    assert waiting.sealed() == []
    return waiting


def test_a_barrier_on_the_table_lets_in_the_rows_before_that_of_the_stream_and_no_more() -> None:
    waiting = blocked()
    waiting.send(CheckpointBarrier(5), rows(1), to=TABLE)
    (seal,) = waiting.sealed()
    assert seal.state["op-0"]["held"].table.num_rows == 2
    assert waiting.body.core.held_inputs == {STREAM}
    assert waiting.body.core.queued_bytes > 0  # row 3 waits in its channel
    waiting.send(EndOfInput(), to=TABLE)
    assert values(waiting.sent()) == [1, 2, 3]


def test_rows_of_the_stream_wait_again_when_the_checkpoint_was_given_up() -> None:
    waiting = task(enrich(held_bytes=1))
    waiting.send(rows(1), to=STREAM)
    waiting.send(CheckpointBarrier(5), to=TABLE)
    abort = AbortCheckpoint(epoch=waiting.body.core.epoch, checkpoint_id=5)
    waiting.actions += waiting.body.handle(abort, waiting.now)
    waiting.work()
    waiting.send(rows(2), CheckpointBarrier(6), to=STREAM)
    assert waiting.body.core.queued_bytes > 0
    waiting.send(CheckpointBarrier(6), to=TABLE)
    (seal,) = waiting.sealed()
    assert seal.checkpoint_id == 6
