"""A task whose operators wait: for answers, for time, for another input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from helios_ray.elements import (
    MIN_TIMESTAMP,
    Batch,
    CheckpointBarrier,
    EndOfInput,
    Idle,
    StreamElement,
    Watermark,
    size_in_bytes,
)
from helios_ray.execution.actions import SealSnapshot, StartRequest
from helios_ray.execution.restore import RestoredTask
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.operators.async_map import AsyncMapOperator, AsyncRetry
from helios_ray.operators.base import Operator, Response
from helios_ray.operators.rate_limit import RateLimitOperator
from helios_ray.plan.physical import (
    Chain,
    Edge,
    OperatorSpec,
    Partitioning,
    PhysicalPlan,
    SourceSpec,
)
from helios_ray.protocol.channels import Frame
from helios_ray.protocol.messages import TaskFailed, TaskPhase, TriggerCheckpoint
from helios_ray.watermarks import WatermarkStrategy
from tests.unit.execution.small_jobs import ListSource
from tests.unit.execution.test_task_body import Driven, rows, values

OP = TaskId("op-0", 0)
Make = Callable[[], Operator]


def job(operators: Sequence[Make], *, inputs: int = 1, source: ListSource | None = None) -> Any:
    """Sources, an operator chain that reads them (or is one of them), and a reader."""
    specs = tuple(
        OperatorSpec(uid=f"op-{n}", name=f"op-{n}", factory=f) for n, f in enumerate(operators)
    )
    strategy = WatermarkStrategy.monotonic("x")

    def head(uid: str, read: ListSource, chained: tuple[OperatorSpec, ...] = ()) -> Chain:
        spec = SourceSpec(uid=uid, name=uid, source=read, watermarks=strategy)
        return Chain(uid=uid, name=uid, parallelism=1, source=spec, operators=chained)

    def edge(index: int, up: str, last: str, down: str, input_index: int = 0) -> Edge:
        return Edge(
            index=index, upstream=up, operator=last, downstream=down, input_index=input_index,
            partitioning=Partitioning.FORWARD,
        )  # fmt: skip

    reader = Chain(uid="reader", name="reader", parallelism=1, operators=(
        OperatorSpec(uid="reader", name="reader", factory=Operator),
    ))  # fmt: skip
    last = specs[-1].uid
    if source is not None:
        chains = (head("in-0", source, specs), reader)
        return PhysicalPlan(
            job="job", chains=chains, edges=(edge(0, "in-0", last, "reader"),), max_parallelism=8
        )
    heads = [head(f"in-{n}", ListSource({})) for n in range(inputs)]
    middle = Chain(uid="op-0", name="op-0", parallelism=1, operators=specs)
    edges = [edge(n, f"in-{n}", f"in-{n}", "op-0", n) for n in range(inputs)]
    edges.append(edge(inputs, "op-0", last, "reader"))
    return PhysicalPlan(
        job="job", chains=(*heads, middle, reader), edges=tuple(edges), max_parallelism=8
    )


class Waiting(Driven):
    """A driven body whose requests the test answers."""

    def __init__(self, plan: PhysicalPlan, task: TaskId = OP) -> None:
        super().__init__(plan, task)
        self.sequences: dict[ChannelId, int] = {}

    def start(self, epoch: int = 1, restored: RestoredTask | None = None) -> Waiting:
        self.sequences.clear()
        super().start(epoch, restored)
        return self

    def send(self, *elements: StreamElement, to: int = 0) -> None:
        channel = self.body.core.channels[to]
        sequence = self.sequences.get(channel, 0)
        self.sequences[channel] = sequence + 1
        size = sum(map(size_in_bytes, elements))
        frame = Frame(self.body.core.epoch, channel, sequence, elements, size)
        self.actions += self.body.receive(frame, self.now)
        self.work()

    def work(self) -> None:
        """Step for as long as the body says that there is something to do."""
        self.step()
        for _ in range(50):
            if not self.body.ready:
                return
            self.step()
        raise AssertionError("the body is always ready")

    def run(self, most: int) -> list[float]:
        """Let time pass until the task has finished; the moments at which it was woken."""
        moments = []
        while self.body.phase is not TaskPhase.FINISHED:
            assert len(moments) < most, f"woken at {moments}"
            self.now = self.body.next_wakeup()
            moments.append(self.now)
            self.work()
        return moments

    def asked(self) -> list[StartRequest]:
        return [a for a in self.actions if isinstance(a, StartRequest)]

    def answer(self, order: StartRequest, value: Any = None, **how: Any) -> None:
        response = Response(request_id=order.request.request_id, value=value, **how)
        self.actions += self.body.respond(order.epoch, order.operator, response, self.now)
        self.work()

    def checkpoint(self, checkpoint_id: int) -> SealSnapshot:
        trigger = TriggerCheckpoint(epoch=self.body.core.epoch, checkpoint_id=checkpoint_id)
        self.actions += self.body.handle(trigger, self.now)
        self.step()
        return self.sealed()[-1]

    def times(self) -> list[StreamElement]:
        return [e for e in self.sent() if isinstance(e, Watermark | Idle)]


async def never_called(row: dict[str, Any]) -> None:
    raise AssertionError(f"the test answers for {row}")


def asking(**settings: Any) -> Make:
    return lambda: AsyncMapOperator(never_called, **settings)


def test_requests_are_started_and_what_their_answers_give_is_sent_on() -> None:
    waiting = Waiting(job([asking()])).start()
    waiting.send(rows(1, 2))
    assert [(a.epoch, a.operator) for a in waiting.asked()] == [(1, "op-0"), (1, "op-0")]
    assert values(waiting.sent()) == []
    for order, x in zip(waiting.asked(), (10, 20), strict=True):
        waiting.answer(order, {"x": x})
    assert values(waiting.sent()) == [10, 20]
    assert waiting.body.counters.rows_out == 2


def test_an_answer_of_an_older_epoch_and_one_after_the_end_do_nothing() -> None:
    waiting = Waiting(job([asking()])).start()
    waiting.send(rows(1))
    (old,) = waiting.asked()
    waiting.start(2)
    waiting.send(rows(2))
    new = waiting.asked()[-1]
    assert new.request.request_id == old.request.request_id
    waiting.answer(old, {"x": 10})
    assert values(waiting.sent()) == []
    waiting.answer(new, {"x": 20})
    waiting.send(EndOfInput())
    assert waiting.body.phase is TaskPhase.FINISHED
    waiting.answer(new, {"x": 30})
    assert values(waiting.sent()) == [20]


def test_an_answer_that_fails_the_row_fails_the_task() -> None:
    waiting = Waiting(job([asking()])).start()
    waiting.send(rows(7))
    waiting.answer(waiting.asked()[0], error=OSError("refused"))
    (failed,) = waiting.told(TaskFailed)
    assert "refused" in failed.reason
    assert "{'x': 7}" in failed.reason
    assert waiting.body.phase is TaskPhase.FAILED


def test_the_watermark_waits_for_rows_in_flight_and_follows_when_they_are_through() -> None:
    waiting = Waiting(job([asking(ordered=False)])).start()
    waiting.send(Watermark(3), rows(1), Watermark(5), rows(2), Watermark(9))
    first, second = waiting.asked()
    assert waiting.body.watermark == 3
    waiting.answer(second, {"x": 2})
    assert waiting.body.watermark == 3
    waiting.answer(first, {"x": 1})
    assert waiting.body.watermark == 9
    assert waiting.sent()[-1] == Watermark(9)
    stamps = [e.timestamp for e in waiting.times() if isinstance(e, Watermark)]
    assert stamps == sorted(stamps)
    assert set(stamps) == {3, 9}


def test_operators_behind_learn_of_the_watermark_that_an_answer_lets_go() -> None:
    told: list[int] = []

    class Listening(Operator):
        def on_watermark(self, timestamp: int) -> list[Batch]:
            told.append(timestamp)
            return [rows(timestamp)]

    waiting = Waiting(job([asking(), Listening])).start()
    waiting.send(rows(1), Watermark(5))
    assert told == []
    assert waiting.times() == []
    waiting.answer(waiting.asked()[0], {"x": 1})
    assert told == [5]
    assert values(waiting.sent()) == [1, 5]
    assert waiting.times() == [Watermark(5)]


def test_a_task_is_not_idle_while_rows_are_in_flight() -> None:
    waiting = Waiting(job([asking()])).start()
    waiting.send(rows(1), Watermark(5), Idle())
    assert waiting.times() == []
    waiting.answer(waiting.asked()[0], {"x": 1})
    assert waiting.times() == [Watermark(5), Idle()]
    waiting.work()
    assert waiting.times() == [Watermark(5), Idle()]
    waiting.send(Watermark(5), rows(2), Idle())
    waiting.send(Watermark(6))
    waiting.answer(waiting.asked()[1], {"x": 2})
    assert waiting.times()[2:] == [Watermark(5), Watermark(5), Watermark(6)]


def test_the_end_waits_for_answers_while_checkpoints_go_on() -> None:
    waiting = Waiting(job([asking()])).start()
    waiting.send(rows(1, 2), EndOfInput())
    assert waiting.body.phase is TaskPhase.DRAINING
    assert waiting.phases()[-1] is TaskPhase.DRAINING
    waiting.answer(waiting.asked()[0], {"x": 10})
    seal = waiting.checkpoint(5)
    assert not seal.finished
    assert seal.state["op-0"]["held"].table.to_pylist() == [{"x": 2}]
    assert EndOfInput() not in waiting.sent()
    waiting.answer(waiting.asked()[1], {"x": 20})
    assert waiting.body.phase is TaskPhase.FINISHED
    assert values(waiting.sent()) == [10, 20]
    assert waiting.sent()[-1] == EndOfInput()
    last = waiting.checkpoint(6)
    assert last.finished
    assert "held" not in last.state["op-0"]


def test_a_checkpoint_of_the_wait_is_taken_up_where_it_stood() -> None:
    plan = job([asking()])
    waiting = Waiting(plan).start()
    waiting.send(rows(1, 2), Watermark(4), EndOfInput())
    waiting.answer(waiting.asked()[0], {"x": 10})
    seal = waiting.checkpoint(5)
    again = Waiting(plan).start(
        2, RestoredTask(state=seal.state, watermark=seal.watermark, finished=seal.finished)
    )
    (order,) = again.asked()  # at once, before anything comes in
    assert order.epoch == 2
    again.send(EndOfInput())
    assert again.body.phase is TaskPhase.DRAINING
    again.answer(order, {"x": 20})
    assert values(again.sent()) == [20]
    assert again.body.phase is TaskPhase.FINISHED


def test_what_is_restored_does_not_pull_event_time_back_behind_what_was_announced() -> None:
    told: list[int] = []

    class Listening(Operator):
        def on_watermark(self, timestamp: int) -> list[Batch]:
            told.append(timestamp)
            return []

    plan = job([asking(), Listening])
    waiting = Waiting(plan).start()
    waiting.send(Watermark(7), rows(1), Watermark(9), CheckpointBarrier(5))
    (seal,) = waiting.sealed()
    assert seal.watermark == 7
    told.clear()
    again = Waiting(plan).start(2, RestoredTask(state=seal.state, watermark=7))
    again.work()
    assert told == [7]
    assert again.times() == [Watermark(7)]
    again.send(Watermark(9))
    assert set(told) == {7}
    again.answer(again.asked()[0])
    assert told[-1] == 9
    assert again.times()[-1] == Watermark(9)


def test_rows_wait_in_the_channel_while_the_operator_holds_as_much_as_it_may() -> None:
    waiting = Waiting(job([asking(capacity=1)])).start()
    waiting.send(rows(1))
    waiting.send(rows(2), CheckpointBarrier(5), Watermark(3))
    assert len(waiting.asked()) == 1
    assert waiting.sealed() == []
    assert waiting.body.core.queued_bytes > 0
    assert waiting.body.next_wakeup() == 1.0  # the next heartbeat: nothing else to do
    waiting.answer(waiting.asked()[0], {"x": 10})
    assert len(waiting.asked()) == 2
    (seal,) = waiting.sealed()
    assert seal.state["op-0"]["held"].table.to_pylist() == [{"x": 2}]
    waiting.answer(waiting.asked()[1], {"x": 20})
    assert values(waiting.sent()) == [10, 20]


def test_a_source_does_not_read_while_its_operators_hold_as_much_as_they_may() -> None:
    source = ListSource({"a": list(range(6))})
    waiting = Waiting(job([asking(capacity=2)], source=source), TaskId("in-0", 0)).start()
    waiting.work()
    assert len(waiting.asked()) == 2
    assert not waiting.body.ready
    assert waiting.body.next_wakeup() == 1.0
    seal = waiting.checkpoint(5)
    assert seal.state["op-0"]["held"].table.to_pylist() == [{"x": 0}, {"x": 1}]
    for n in range(6):
        waiting.answer(waiting.asked()[n], {"x": n})
    assert values(waiting.sent()) == list(range(6))
    assert waiting.body.phase is TaskPhase.FINISHED
    assert waiting.sent()[-1] == EndOfInput()


def test_the_end_of_a_source_waits_for_what_is_in_flight() -> None:
    source = ListSource({"a": [1]})
    waiting = Waiting(job([asking()], source=source), TaskId("in-0", 0)).start()
    waiting.work()
    assert waiting.body.phase is TaskPhase.DRAINING
    assert not waiting.checkpoint(5).finished
    waiting.answer(waiting.asked()[0])
    assert waiting.body.phase is TaskPhase.FINISHED


def test_an_operator_behind_the_first_makes_all_rows_wait() -> None:
    class Full(Operator):
        full = False

        def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
            type(self).full = True
            return [batch]

        def blocked_inputs(self) -> frozenset[int]:
            return frozenset({0}) if self.full else frozenset()

        def next_timer(self) -> int | None:
            return 3_000_000 if self.full else None

        def on_processing_time(self, now: int) -> list[Batch]:
            type(self).full = False
            return []

    waiting = Waiting(job([Operator, Full], inputs=2)).start()
    waiting.send(rows(1), to=0)
    waiting.send(rows(2), to=1)
    waiting.send(rows(3), to=0)
    assert values(waiting.sent()) == [1]
    waiting.now = 3.0
    waiting.work()
    assert len(values(waiting.sent())) == 2


def test_an_input_that_ends_before_others_is_told_and_may_unblock_them() -> None:
    class Table(Operator):
        """Reads all of input 1 before any of input 0."""

        def __init__(self) -> None:
            self.ready = False
            self.ends: list[int] = []

        def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
            assert self.ready or input_index == 1
            return [batch]

        def blocked_inputs(self) -> frozenset[int]:
            return frozenset() if self.ready else frozenset({0})

        def on_input_end(self, input_index: int) -> list[Batch]:
            self.ready = True
            return [rows(100 + input_index)]

    waiting = Waiting(job([Table], inputs=2)).start()
    waiting.send(rows(1), EndOfInput(), to=0)
    assert values(waiting.sent()) == []
    waiting.send(rows(2), EndOfInput(), to=1)
    assert values(waiting.sent()) == [2, 101, 1]
    assert waiting.body.phase is TaskPhase.FINISHED


def test_a_rate_limit_goes_on_at_its_rate_after_the_end_and_wakes_for_its_rows_only() -> None:
    waiting = Waiting(job([lambda: RateLimitOperator(2)])).start()
    waiting.now = 10.0
    waiting.send(rows(1, 2, 3, 4), Watermark(5), EndOfInput())
    assert values(waiting.sent()) == [1]
    assert waiting.body.phase is TaskPhase.DRAINING
    moments = waiting.run(most=12)
    assert moments[-1] == 11.5
    assert values(waiting.sent()) == [1, 2, 3, 4]
    assert waiting.sent()[-2:] == [Watermark(5), EndOfInput()]
    last_row = max(n for n, e in enumerate(waiting.sent()) if isinstance(e, Batch))
    assert waiting.sent().index(Watermark(5)) > last_row


def test_a_retry_is_made_when_its_time_has_come_also_while_the_end_waits() -> None:
    waiting = Waiting(job([asking(retry=AsyncRetry(attempts=2))])).start()
    waiting.now = 1_700_000_000.123456
    waiting.send(rows(1), EndOfInput())
    waiting.answer(waiting.asked()[0], error=OSError("busy"))
    assert len(waiting.asked()) == 1
    waiting.now = waiting.body.next_wakeup()
    waiting.work()
    assert len(waiting.asked()) == 2
    waiting.answer(waiting.asked()[1], {"x": 5})
    assert values(waiting.sent()) == [5]
    assert waiting.body.phase is TaskPhase.FINISHED


def test_every_operator_knows_the_time_before_it_is_called() -> None:
    seen: dict[str, list[int]] = {}

    class Timed(Operator):
        now = MIN_TIMESTAMP

        def set_processing_time(self, now: int) -> None:
            self.now = now

        def note(self, what: str) -> list[Batch]:
            seen.setdefault(what, []).append(self.now)
            return []

        def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
            self.note("rows")
            return [batch]

        def on_watermark(self, timestamp: int) -> list[Batch]:
            return self.note("watermark")

        def on_input_end(self, input_index: int) -> list[Batch]:
            return self.note("one end")

        def end_input(self) -> list[Batch]:
            return self.note("end")

    waiting = Waiting(job([Timed, Timed], inputs=2)).start()
    waiting.now = 2.5
    waiting.send(rows(1), Watermark(3), EndOfInput(), to=0)
    waiting.now = 4.0
    waiting.send(Watermark(4), EndOfInput(), to=1)
    assert seen["rows"] == [2_500_000, 2_500_000]
    assert seen["one end"] == [2_500_000]
    assert set(seen["watermark"]) == {4_000_000}
    assert seen["end"] == [4_000_000, 4_000_000]


def test_timers_of_a_finished_task_are_silent() -> None:
    class Late(Operator):
        def next_timer(self) -> int | None:
            return 5_000_000

        def on_processing_time(self, now: int) -> list[Batch]:
            return [rows(99)]

    waiting = Waiting(job([Late])).start()
    waiting.send(EndOfInput())
    waiting.now = 6.0
    waiting.step(2)
    assert values(waiting.sent()) == []
