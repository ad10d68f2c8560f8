"""Promises of a task body about joining an epoch, as seen from another thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pyarrow as pa

from helios_ray import StreamExecutionEnvironment
from helios_ray.connectors.base import Sink, SinkContext
from helios_ray.execution.task import TaskBody, TaskOptions
from helios_ray.identifiers import TaskId
from helios_ray.protocol.messages import StartTask, TaskPhase


class SlowToOpen(Sink):
    """A sink that lets others look while it opens."""

    meanwhile: ClassVar[Callable[[], None]]

    def open(self, context: SinkContext) -> None:
        type(self).meanwhile()

    def write(self, batch: pa.RecordBatch) -> None:
        raise AssertionError("there are no rows")


def a_sink_task() -> TaskBody:
    env = StreamExecutionEnvironment().build()
    stream = env.from_items([{"n": 1}], uid="items")
    stream.sink_to(SlowToOpen(), uid="out").disable_chaining()
    return TaskBody(env.compile("job").plan, TaskId("out", 0), TaskOptions())


def test_a_task_that_is_still_opening_for_an_epoch_does_not_seem_to_run_in_it() -> None:
    body = a_sink_task()
    seen: list[tuple[int, TaskPhase]] = []
    SlowToOpen.meanwhile = lambda: seen.append((body.core.epoch, body.phase))
    for epoch in (1, 2):
        body.reset(epoch, None, (), 1, 0.0)
        assert body.phase is TaskPhase.READY
        body.handle(StartTask(epoch=epoch), 0.0)
        assert body.phase is TaskPhase.RUNNING
    assert seen == [(1, TaskPhase.BLANK), (2, TaskPhase.BLANK)]


def test_a_task_that_failed_does_not_seem_to_have_failed_in_the_next_epoch() -> None:
    body = a_sink_task()
    seen: list[tuple[int, TaskPhase]] = []
    SlowToOpen.meanwhile = lambda: seen.append((body.core.epoch, body.phase))
    body.reset(1, None, (), 1, 0.0)
    body.fail(RuntimeError("broken"), 0.0)
    assert body.phase is TaskPhase.FAILED
    body.reset(2, None, (), 1, 0.0)
    assert seen[-1] == (2, TaskPhase.BLANK)
    assert body.phase is TaskPhase.READY


def test_a_stale_reset_leaves_a_running_task_running() -> None:
    body = a_sink_task()
    SlowToOpen.meanwhile = lambda: None
    body.reset(2, None, (), 1, 0.0)
    body.handle(StartTask(epoch=2), 0.0)
    body.reset(1, None, (), 1, 0.0)
    body.reset(2, None, (), 1, 0.0)
    assert body.phase is TaskPhase.RUNNING
