"""Sources that wait for each other: the coordinator's side, as reports in and limits out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP
from helios_ray.identifiers import TaskId
from helios_ray.protocol import instructions as i
from helios_ray.protocol.drift import DriftControl
from helios_ray.protocol.messages import (
    FailureKind,
    LimitSource,
    SourceProgress,
    TaskFailed,
    TaskPhase,
)
from helios_ray.protocol.settings import JobShape, SourceAlignment
from tests.unit.protocol.desk import Desk

FAST, SLOW, SLOW_2, ALONE, SINK = (
    TaskId("fast", 0),
    TaskId("slow", 0),
    TaskId("slow", 1),
    TaskId("alone", 0),
    TaskId("sink", 0),
)
SHAPE = JobShape(
    job="job",
    tasks=(FAST, SLOW, SLOW_2, ALONE, SINK),
    sources=(FAST, SLOW, SLOW_2, ALONE),
    alignment={
        "fast": SourceAlignment(group="g", max_drift=100, update_interval=1.0),
        "slow": SourceAlignment(group="g", max_drift=50, update_interval=2.0),
    },
)


class Table:
    """A control, what it sends, and reports with numbers of their own."""

    def __init__(self) -> None:
        self.control = DriftControl(SHAPE)
        self.now = 100.0
        self.number = 0

    def say(self, task: TaskId, watermark: int, *, idle: bool = False, number: int = 0) -> None:
        self.number += 1
        message = SourceProgress(
            task=task, epoch=1, number=number or self.number, watermark=watermark, idle=idle
        )
        self.control.on_progress(message)

    def limits(self, wait: float = 1.0, *, again: bool = False) -> dict[TaskId, int]:
        self.now += wait
        sent = self.control.due(1, self.now, again=again)
        return {s.task: s.message.limit for s in sent if isinstance(s.message, LimitSource)}


def test_the_least_of_the_group_decides_and_each_source_has_its_own_drift() -> None:
    table = Table()
    table.say(FAST, 900)
    table.say(SLOW, 300)
    assert table.limits() == {}  # one has not said anything yet
    table.say(SLOW_2, 400)
    assert table.limits() == {FAST: 400, SLOW: 350, SLOW_2: 350}


def test_a_limit_is_sent_when_it_moved_and_not_before() -> None:
    table = Table()
    for task in (FAST, SLOW, SLOW_2):
        table.say(task, 300)
    assert table.limits()
    table.say(FAST, 350)
    assert table.limits() == {}
    assert table.control.wakeups() == []
    table.say(SLOW, 340)
    assert table.limits() == {}
    table.say(SLOW_2, 360)
    assert table.limits()[FAST] == 440


def test_limits_go_out_at_most_twenty_times_in_the_shortest_interval() -> None:
    table = Table()
    for task in (FAST, SLOW, SLOW_2):
        table.say(task, 0)
    assert table.limits()
    for task in (FAST, SLOW, SLOW_2):
        table.say(task, 10)
    assert table.limits(wait=0.02) == {}
    assert table.control.wakeups() == [table.now - 0.02 + 0.05]
    assert table.limits(wait=0.03)[FAST] == 110


def test_idle_and_ended_sources_hold_nobody_back() -> None:
    table = Table()
    table.say(FAST, 900)
    table.say(SLOW, 300)
    table.say(SLOW_2, 100)
    assert table.limits()[FAST] == 200
    table.say(SLOW_2, 100, idle=True)
    assert table.limits()[FAST] == 400
    table.control.on_finished(SLOW)
    assert table.limits() == {FAST: 1000, SLOW_2: 950}


def test_a_source_that_wakes_up_behind_takes_the_limit_back() -> None:
    table = Table()
    table.say(FAST, 900)
    table.say(SLOW, 900)
    table.say(SLOW_2, MIN_TIMESTAMP, idle=True)
    assert table.limits()[FAST] == 1000
    table.say(SLOW_2, 500)
    assert table.limits()[FAST] == 600


def test_while_one_has_not_come_to_its_first_row_limits_stay_as_they_are() -> None:
    table = Table()
    for task in (FAST, SLOW, SLOW_2):
        table.say(task, 300)
    assert table.limits()[FAST] == 400
    table.say(SLOW_2, MIN_TIMESTAMP)
    table.say(FAST, 390)
    table.say(SLOW, 390)
    assert table.limits() == {}
    table.say(SLOW_2, 390)
    assert table.limits()[FAST] == 490


def test_when_all_are_idle_limits_stay_and_the_first_to_wake_sets_them() -> None:
    table = Table()
    for task in (FAST, SLOW, SLOW_2):
        table.say(task, 300)
    assert table.limits()[FAST] == 400
    for task in (FAST, SLOW, SLOW_2):
        table.say(task, 300, idle=True)
    assert table.limits() == {}
    table.say(FAST, 5000)
    assert table.limits()[FAST] == 5100


def test_a_report_that_was_overtaken_does_not_count() -> None:
    table = Table()
    for task in (FAST, SLOW, SLOW_2):
        table.say(task, 300)
    assert table.limits()[FAST] == 400
    table.say(SLOW, 800, number=20)
    table.say(SLOW_2, 800, number=20)
    table.say(SLOW_2, 100, number=19)
    table.say(FAST, 900)
    assert table.limits()[FAST] == 900


def test_limits_can_be_said_again_with_a_greater_number() -> None:
    table = Table()
    for task in (FAST, SLOW, SLOW_2):
        table.say(task, 300)
    first = table.control.due(1, table.now)
    again = table.control.due(1, table.now, again=True)
    assert [(s.task, s.message.limit) for s in again] == [(s.task, s.message.limit) for s in first]  # type: ignore[union-attr]
    assert {s.message.number for s in again} == {2}  # type: ignore[union-attr]


def test_who_is_in_no_group_says_nothing_and_is_told_nothing() -> None:
    table = Table()
    table.say(ALONE, 1)
    table.control.on_finished(SINK)
    assert table.limits(again=True) == {}


def test_the_end_of_time_is_no_overflow() -> None:
    table = Table()
    for task in (FAST, SLOW, SLOW_2):
        table.say(task, MAX_TIMESTAMP - 1)
    assert set(table.limits().values()) == {MAX_TIMESTAMP}


TASKS = (FAST, SLOW, SLOW_2)
happenings = st.lists(
    st.tuples(
        st.sampled_from(TASKS),
        st.sampled_from(["report", "idle", "finish"]),
        st.sampled_from([MIN_TIMESTAMP, 0, 10, 20, 1000]),
    ),
    max_size=30,
)


@given(happenings)
def test_the_slowest_of_the_group_may_always_be_read(
    told: list[tuple[TaskId, str, int]],
) -> None:
    """Whatever was said: with all known, the limits out let the least of them go on."""
    table = Table()
    state: dict[TaskId, int | None] = dict.fromkeys(TASKS, MIN_TIMESTAMP)
    out: dict[TaskId, int] = {}
    for task, what, watermark in told:
        if task not in state:
            continue
        if what == "finish":
            table.control.on_finished(task)
            del state[task]
        else:
            table.say(task, watermark, idle=what == "idle")
            state[task] = None if what == "idle" else watermark
        out.update(table.limits())
        active = {t: w for t, w in state.items() if w is not None}
        if active and min(active.values()) > MIN_TIMESTAMP:
            slowest = min(active, key=lambda t: active[t])
            assert out[slowest] >= active[slowest]
            assert all(out[t] <= min(active.values()) + 100 for t in active)


# ---------------------------------------------------------------------- inside the core


def report(desk: Desk, task: TaskId, watermark: int, number: int) -> list[i.Instruction]:
    message = SourceProgress(
        task=task, epoch=desk.core.epoch, number=number, watermark=watermark, idle=False
    )
    return desk.tell(message)


def limits(told: list[i.Instruction]) -> dict[TaskId, int]:
    return {
        t.task: t.message.limit
        for t in told
        if isinstance(t, i.Send) and isinstance(t.message, LimitSource)
    }


def test_the_coordinator_sends_limits_repeats_them_and_forgets_ended_sources() -> None:
    desk = Desk(shape=SHAPE).run()
    report(desk, FAST, 900, 1)
    report(desk, SLOW, 300, 1)
    assert limits(report(desk, SLOW_2, 400, 1)) == {FAST: 400, SLOW: 350, SLOW_2: 350}
    assert limits(desk.wait(0.1)) == {}
    assert limits(desk.wait(2.0)) == {FAST: 400, SLOW: 350, SLOW_2: 350}
    desk.now += 0.05
    assert limits(report(desk, SLOW, 380, 2)) == {FAST: 480, SLOW: 430, SLOW_2: 430}
    desk.beat(TaskPhase.FINISHED, SLOW)
    wakeup = desk.core.next_wakeup()
    assert wakeup is not None
    assert wakeup <= desk.now + 0.05
    assert limits(desk.wait(0.05)) == {FAST: 500, SLOW_2: 450}


def test_after_a_recovery_the_coordinator_starts_afresh() -> None:
    desk = Desk(shape=SHAPE).run()
    for task in TASKS:
        report(desk, task, 300, 5)
    failed = TaskFailed(task=SINK, epoch=1, kind=FailureKind.RAISED, reason="broken")
    desk.tell(failed)
    desk.wait(10.0)
    desk.run()
    assert desk.core.epoch == 2
    assert limits(desk.wait(2.0)) == {}
    stale = SourceProgress(task=FAST, epoch=1, number=9, watermark=1, idle=False)
    assert limits(desk.tell(stale)) == {}
    for task in TASKS[:2]:
        assert limits(report(desk, task, 200, 1)) == {}
    assert limits(report(desk, SLOW_2, 200, 1)) == {FAST: 300, SLOW: 250, SLOW_2: 250}
