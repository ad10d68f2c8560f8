"""A source that waits for its group: which splits are read, what it says, when it wakes."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from helios_ray.elements import (
    MIN_TIMESTAMP,
    Batch,
    CheckpointBarrier,
    Idle,
    StreamElement,
    Watermark,
)
from helios_ray.execution.actions import Action, SealSnapshot, SendFrame, Tell
from helios_ray.execution.drift import alignment_of
from helios_ray.execution.outputs import ChannelOptions
from helios_ray.execution.source import SourceDriver
from helios_ray.execution.task import TaskBody, TaskOptions
from helios_ray.identifiers import TaskId
from helios_ray.plan.physical import SourceSpec
from helios_ray.protocol.messages import (
    LimitSource,
    SourceProgress,
    StartTask,
    TriggerCheckpoint,
)
from helios_ray.protocol.settings import SourceAlignment
from helios_ray.watermarks import WatermarkStrategy
from tests.unit.execution.small_jobs import ListSource, plan_of

MONOTONIC = WatermarkStrategy.monotonic("x")
ALIGNED = MONOTONIC.with_alignment("g", timedelta(microseconds=100), timedelta(seconds=1))


class Reading:
    """A driver, and what it has said of itself: watermark and idleness, in order."""

    def __init__(self, source: ListSource, strategy: WatermarkStrategy = ALIGNED) -> None:
        self.source = source
        self.strategy = strategy
        self.said: list[tuple[int, bool]] = []
        self.numbers: list[int] = []
        self.limits = 0
        self.driver = self._fresh()
        self.driver.begin(source.discover_splits(1))

    def _fresh(self) -> SourceDriver:
        spec = SourceSpec(uid="in", name="in", source=self.source, watermarks=self.strategy)
        driver = SourceDriver(spec, 0, 1)
        driver.report_to(self._hear)
        return driver

    def _hear(self, number: int, watermark: int, idle: bool) -> None:
        self.numbers.append(number)
        self.said.append((watermark, idle))

    def restart(self) -> Reading:
        state = self.driver.snapshot()
        self.driver = self._fresh()
        self.driver.restore(state, MIN_TIMESTAMP)
        self.limits = 0
        return self

    def limit(self, limit: int, number: int | None = None) -> None:
        self.limits += 1
        number = self.limits if number is None else number
        self.driver.limit(LimitSource(epoch=1, number=number, limit=limit))

    def poll(self, times: int = 1, now: float = 0.0) -> list[int]:
        return rows([e for _ in range(times) for e in self.driver.poll(1, now)[0]])


def rows(elements: list[StreamElement]) -> list[int]:
    return [x for e in elements if isinstance(e, Batch) for x in e.data.column("x").to_pylist()]


def steps(first: int, last: int, by: int = 50) -> list[int | None]:
    return [*range(first, last, by)]


def test_before_it_is_told_a_limit_it_reads_no_further_than_the_drift_from_its_beginning() -> None:
    reading = Reading(ListSource({"a": steps(1001, 3000)}))
    # The watermark is one before the row; the row that goes beyond is the last.
    assert reading.poll(20) == [1001, 1051, 1101, 1151]


def test_a_limit_lets_it_go_on_and_a_lower_one_stops_it() -> None:
    reading = Reading(ListSource({"a": steps(1, 3000)}))
    reading.poll(20)
    reading.limit(300)
    assert reading.poll(20)[-1] == 351
    reading.limit(200)
    assert reading.poll(20) == []
    reading.limit(400)
    assert reading.poll(20) == [401, 451]


def test_a_limit_that_was_overtaken_does_not_count() -> None:
    reading = Reading(ListSource({"a": steps(1, 3000)}))
    reading.limit(300, number=2)
    reading.limit(2000, number=1)
    reading.limit(2000, number=2)
    assert reading.poll(30)[-1] == 351


def test_a_split_that_is_ahead_waits_while_its_neighbours_are_read() -> None:
    source = ListSource({"ahead": steps(1001, 3000), "behind": steps(1, 1200)}, together=2)
    reading = Reading(source)
    reading.limit(500)
    got = reading.poll(40)
    assert [x for x in got if x > 1000] == [1001]
    assert [x for x in got if x < 1000] == [*range(1, 552, 50)]
    reading.limit(1100)
    ahead, behind = [1051, 1101, 1151], [*range(601, 1152, 50)]
    assert sorted(reading.poll(40)) == sorted(ahead + behind)


def test_a_split_without_rows_so_far_may_always_be_read() -> None:
    reading = Reading(ListSource({"a": steps(5000, 6000), "b": steps(1, 50)}, together=2))
    reading.limit(10)
    assert sorted(reading.poll(4)) == [1, 5000]


def test_it_wakes_when_the_limit_comes() -> None:
    reading = Reading(ListSource({"a": steps(1, 3000)}))
    for _ in range(10):
        reading.driver.read(1, 5.0)
    assert not reading.driver.ready(5.0)
    reading.limit(1000)
    assert reading.driver.ready(5.0)
    assert rows(reading.driver.read(1, 5.0)) == [201]


def test_it_says_how_far_it_is_at_its_interval_and_sooner_when_it_has_to_wait() -> None:
    reading = Reading(ListSource({"a": [1, 2, 3, None, 140, 150]}))
    reading.poll(1, now=0.0)
    assert reading.said == [(MIN_TIMESTAMP, False)]
    reading.poll(1, now=0.01)  # the first row is news, but not yet
    assert len(reading.said) == 1
    reading.poll(1, now=0.06)
    assert reading.said[1:] == [(1, False)]
    reading.poll(1, now=0.9)
    assert len(reading.said) == 2
    reading.poll(1, now=1.06)
    assert reading.said[2:] == [(2, False)]
    reading.poll(1, now=2.0)
    assert len(reading.said) == 3
    reading.poll(1, now=2.01)  # it stands at 139, beyond 0 + 100, and waits
    assert len(reading.said) == 3 + 1
    reading.poll(3, now=2.02)
    assert reading.said[3:] == [(139, False)]
    assert reading.numbers == [1, 2, 3, 4]


def test_who_waits_is_asked_again_in_time_to_say_so() -> None:
    reading = Reading(ListSource({"a": steps(1, 3000)}))
    moments = []
    now = 10.0
    for _ in range(40):
        before = len(reading.said)
        reading.driver.read(1, now)
        if len(reading.said) > before:
            moments.append(now)
        wait = reading.driver.next_poll()
        assert wait is not None
        now = max(now, wait)
    assert reading.said[1] == (150, False)
    assert moments[:3] == [10.0, 10.05, 11.05]


def test_a_source_without_splits_holds_nobody_back() -> None:
    reading = Reading(ListSource({}, watch=1000.0))
    reading.poll()
    assert reading.said == [(MIN_TIMESTAMP, True)]


IDLE = ALIGNED.with_idleness(timedelta(seconds=3))


def test_who_waits_is_not_idle_however_long_it_takes() -> None:
    reading = Reading(ListSource({"a": steps(1, 3000)}), IDLE)
    elements = []
    for now in range(60):
        elements += reading.driver.poll(1, float(now))[0]
    assert rows(elements) == [1, 51, 101, 151]
    assert Idle() not in elements
    assert reading.said[-1] == (150, False)
    # Nor at once after it: the time of waiting does not count.
    reading.limit(3000)
    reading.source.readers[0]._rows[4:] = [None] * 20
    later = []
    for now in range(60, 66):
        later += [(now, e) for e in reading.driver.poll(1, float(now))[0]]
    assert later == [(62, Idle())]


def test_a_silent_source_says_that_it_is_idle_and_that_it_no_longer_is() -> None:
    reading = Reading(ListSource({"a": [1, *[None] * 9, 7]}), IDLE)
    for now in range(12):
        reading.poll(1, float(now))
    idle = [idle for _, idle in reading.said]
    assert idle == sorted(idle[: idle.index(True)]) + [True] * idle.count(True) + [False] * (
        len(idle) - idle.index(True) - idle.count(True)
    )
    assert idle[0] is idle[-1] is False
    assert reading.said[-1][0] in (0, 6)


def test_an_idle_split_that_is_stopped_counts_again_or_nobody_would_let_it_go_on() -> None:
    reading = Reading(ListSource({"a": [500, *[None] * 60, 501]}), IDLE)
    reading.limit(1000)
    for now in range(6):
        reading.poll(1, float(now))
    assert reading.said[-1][1] is True
    reading.limit(300)  # somebody woke up behind
    reading.poll(1, 7.0)
    assert reading.said[-1] == (499, False)


def test_after_a_restore_it_reads_nothing_more_until_it_is_told() -> None:
    """Else a source that is restarted again and again would creep away from its group."""
    reading = Reading(ListSource({"a": steps(1, 3000)}))
    got = reading.poll(20)
    for _ in range(5):
        got += reading.restart().poll(20)
    assert got == [1, 51, 101, 151]
    assert reading.said[-1] == (150, False)
    reading.limit(1000)
    assert reading.poll(20) == [*range(201, 1052, 50)]


@given(
    st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=12).map(sorted), min_size=1,
             max_size=4),
    st.integers(1, 4),
    st.integers(1, 200),
)  # fmt: skip
def test_a_group_of_one_always_comes_to_its_end(
    splits: list[list[int]], together: int, drift: int
) -> None:
    """The coordinator's answer to what it says is enough, whatever waits for its turn."""
    strategy = MONOTONIC.with_alignment("g", timedelta(microseconds=drift))
    source = ListSource({f"s{i}": [*s] for i, s in enumerate(splits)}, together=together)
    reading = Reading(source, strategy)
    now, got = 0.0, []
    for _ in range(400):
        got += reading.poll(1, now)
        now += 0.3
        watermark, idle = reading.said[-1]
        if watermark > MIN_TIMESTAMP and not idle:
            reading.limit(watermark + drift)
        if reading.driver.exhausted:
            break
    assert sorted(got) == sorted(x for s in splits for x in s)


# --------------------------------------------------------------------------- the task body

OPTIONS = TaskOptions(channels=ChannelOptions(buffer_timeout=0.0), source_rows=1)
IN = TaskId("in", 0)


def test_a_task_that_waits_answers_barriers_says_so_and_goes_on_when_told() -> None:
    plan = plan_of(source=ListSource({"a": steps(1, 400)}), watermarks=ALIGNED)
    body = TaskBody(plan, IN, OPTIONS)
    splits = ListSource({"a": []}).discover_splits(1)
    actions: list[Action] = body.reset(7, None, splits, 1, 0.0)
    actions += body.handle(StartTask(epoch=7), 0.0)
    for step in range(40):
        actions += body.step(step / 100)
    sent = [e for a in actions if isinstance(a, SendFrame) for e in a.frame.elements]
    assert rows(sent) == [1, 51, 101, 151]
    assert sent[-1] == Watermark(150)
    told = [a.message for a in actions if isinstance(a, Tell)]
    progress = [m for m in told if isinstance(m, SourceProgress)]
    assert progress[-1] == SourceProgress(
        task=IN, epoch=7, number=len(progress), watermark=150, idle=False
    )
    assert not body.ready

    barrier = body.handle(TriggerCheckpoint(epoch=7, checkpoint_id=3), 0.4) + body.step(0.4)
    (seal,) = (a for a in barrier if isinstance(a, SealSnapshot))
    assert seal.watermark == 150
    assert [e for a in barrier if isinstance(a, SendFrame) for e in a.frame.elements] == [
        CheckpointBarrier(3)
    ]

    body.handle(LimitSource(epoch=6, number=9, limit=10**9), 0.5)
    assert not body.ready  # of an epoch that is over
    body.handle(LimitSource(epoch=7, number=1, limit=250), 0.5)
    assert body.ready
    more = [a for step in range(10) for a in body.step(0.5 + step / 100)]
    assert rows([e for a in more if isinstance(a, SendFrame) for e in a.frame.elements]) == [
        201, 251, 301,
    ]  # fmt: skip


def test_the_plan_names_its_groups_for_the_coordinator() -> None:
    assert alignment_of(plan_of(watermarks=MONOTONIC)) == {}
    assert alignment_of(plan_of(watermarks=ALIGNED)) == {
        "in": SourceAlignment(group="g", max_drift=100, update_interval=1.0)
    }
