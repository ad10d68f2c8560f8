"""Event time at a source: every strategy, idleness, splits in turn, restores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.connectors.base import NotYet, Source
from helios_ray.elements import MIN_TIMESTAMP, Batch, Idle, StreamElement, Watermark
from helios_ray.errors import MissingColumnError, PlanError, UserFunctionError
from helios_ray.execution.source import SourceDriver
from helios_ray.operators.base import StateTable
from helios_ray.plan.physical import SourceSpec
from helios_ray.protocol.watermarks import WatermarkMerger
from helios_ray.testing import ManualClock
from helios_ray.watermarks import WatermarkGenerator, WatermarkStrategy
from tests.unit.execution.small_jobs import ListSource

MONOTONIC = WatermarkStrategy.monotonic("x")


def driver(
    source: Source, strategy: WatermarkStrategy | None, subtask: int = 0, parallelism: int = 1
) -> SourceDriver:
    spec = SourceSpec(uid="numbers", name="numbers", source=source, watermarks=strategy)
    return SourceDriver(spec, subtask, parallelism)


def begun(source: Source, strategy: WatermarkStrategy | None) -> SourceDriver:
    reading = driver(source, strategy)
    reading.begin(source.discover_splits(1))
    return reading


def again(reading: SourceDriver, source: Source, strategy: WatermarkStrategy) -> SourceDriver:
    """As after a crash: from the snapshot alone."""
    restored = driver(source, strategy)
    restored.restore(reading.snapshot(), MIN_TIMESTAMP)
    return restored


def read(reading: SourceDriver, polls: int, now: float = 0.0, rows: int = 1) -> list[StreamElement]:
    return [e for _ in range(polls) for e in reading.poll(rows, now)[0]]


def marks(elements: list[StreamElement]) -> list[int]:
    return [e.timestamp for e in elements if isinstance(e, Watermark)]


def late(elements: list[StreamElement]) -> list[int]:
    """Rows that came after a watermark had passed them."""
    watermark, found = MIN_TIMESTAMP, []
    for e in elements:
        if isinstance(e, Watermark):
            watermark = e.timestamp
        elif isinstance(e, Batch):
            found += [x for x in e.data.column("x").to_pylist() if x <= watermark]
    return found


# ---------------------------------------------------------------------------- splits in turn


def test_a_split_that_waits_its_turn_holds_time_back_until_it_is_open() -> None:
    source = ListSource({"a": [10, 50], "b": [20, 30]})
    reading = begun(source, MONOTONIC)
    assert marks(read(reading, 3)) == []  # two rows and the end of a, while b waits
    assert marks(read(reading, 3)) == [19, 29]


def test_ordered_splits_let_time_go_on_from_one_to_the_next() -> None:
    source = ListSource({"a": [10, 50], "b": [60, 70]})
    reading = begun(source, MONOTONIC.with_ordered_splits())
    assert marks(read(reading, 6)) == [9, 49, 59, 69]


def test_ordered_splits_that_are_not_make_late_rows_and_time_does_not_go_back() -> None:
    elements = read(begun(ListSource({"a": [50], "b": [20, 60]}), MONOTONIC), 6)
    assert late(elements) == []
    elements = read(
        begun(ListSource({"a": [50], "b": [20, 60]}), MONOTONIC.with_ordered_splits()), 6
    )
    assert late(elements) == [20]
    assert marks(elements) == [49, 59]


splits = st.lists(st.lists(st.integers(0, 100), max_size=5).map(sorted), min_size=1, max_size=5)


@given(splits, st.integers(1, 4), st.integers(1, 3))
def test_no_row_is_late_whatever_splits_are_read_together(
    times: list[list[int]], together: int, rows: int
) -> None:
    source = ListSource({f"s{i}": list(t) for i, t in enumerate(times)}, together=together)
    reading = begun(source, MONOTONIC)
    elements = read(reading, 60, rows=rows)
    assert reading.exhausted
    assert late(elements) == []
    assert marks(elements) == sorted(set(marks(elements)))


@given(splits, st.integers(1, 4), st.integers(0, 12), st.integers(1, 3))
def test_no_row_is_late_after_a_restore_at_any_point_and_any_parallelism(
    times: list[list[int]], together: int, cut: int, parallelism: int
) -> None:
    source = ListSource({f"s{i}": list(t) for i, t in enumerate(times)}, together=together)
    reading = begun(source, MONOTONIC)
    before = marks(read(reading, cut))
    state = reading.snapshot()
    for subtask in range(parallelism):
        restored = driver(source, MONOTONIC, subtask, parallelism)
        restored.restore(state, MIN_TIMESTAMP)
        elements = [Watermark(m) for m in before[-1:]] + read(restored, 60)
        assert late(elements) == []
        assert marks(elements) == sorted(set(marks(elements)))


def test_a_split_that_was_begun_and_waits_counts_with_where_it_stood() -> None:
    """Four splits were open in two subtasks; after a rescale one subtask opens two of them."""
    source = ListSource({n: [10, 20, 90] for n in "abcd"}, together=2)
    states = []
    for subtask in range(2):
        reading = driver(source, MONOTONIC, subtask, 2)
        reading.begin(source.discover_splits(2))
        assert marks(read(reading, 4)) == [9, 19]
        states.append(reading.snapshot().table)
    restored = driver(source, MONOTONIC)
    restored.restore(StateTable(reading.snapshot().kind, pa.concat_tables(states)), 5)
    # Both have stood at 19, so it is not said again; the waiting ones hold it there.
    assert marks(read(restored, 2)) == []
    assert marks(read(restored, 6)) == [89]


def test_what_was_said_stands_after_a_restore_though_the_task_announced_less() -> None:
    """An operator chained behind may hold watermarks back: it was told more all the same."""
    source = ListSource({"a": [10, 50], "b": [20, 80]})
    strategy = MONOTONIC.with_ordered_splits()
    reading = begun(source, strategy)
    assert marks(read(reading, 3)) == [9, 49]
    restored = driver(source, strategy)
    restored.restore(reading.snapshot(), 30)
    assert marks(read(restored, 3)) == [79]


# -------------------------------------------------------------------------------- no time


def test_a_source_without_time_says_so_once_and_at_once() -> None:
    source = ListSource({"a": [1, None, 2]})
    reading = begun(source, None)
    first = reading.read(10, 0.0)
    assert first[0] == Idle()
    assert isinstance(first[1], Batch)
    rest = [e for now in range(1, 6) for e in reading.read(10, float(now))]
    assert [type(e) for e in rest] == [Batch]


def test_a_silent_source_without_time_says_so_too() -> None:
    reading = begun(ListSource({"a": [None, 1]}), None)
    assert reading.read(10, 0.0) == [Idle()]
    assert reading.next_poll() == 1.0


def merged(*sources: SourceDriver) -> int:
    """Event time of a task that reads all of them."""
    merger = WatermarkMerger(range(len(sources)))
    for _ in range(6):
        for channel, reading in enumerate(sources):
            for e in reading.read(1, 0.0):
                if isinstance(e, Watermark):
                    merger.on_watermark(channel, e.timestamp)
                elif isinstance(e, Idle):
                    merger.on_idle(channel)
    return merger.current


def test_a_source_without_time_does_not_hold_back_a_timed_one_beside_it() -> None:
    table = begun(ListSource({"a": [1, 2]}, watch=1000.0), None)
    timed = begun(ListSource({"a": [10, 20]}), MONOTONIC)
    assert merged(table, timed) == 19


def test_where_nobody_has_time_it_does_not_begin() -> None:
    sources = [begun(ListSource({"a": [1, 2]}), None) for _ in range(2)]
    assert merged(*sources) == MIN_TIMESTAMP


# ------------------------------------------------------------------------------ idleness


IDLE = MONOTONIC.with_idleness(timedelta(seconds=3))


def test_an_idle_split_does_not_hold_back_its_neighbour() -> None:
    source = ListSource({"a": [10, *[None] * 20, 35], "b": [*range(20, 40)]}, together=2)
    reading = begun(source, IDLE)
    said = {now: marks(read(reading, 1, float(now))) for now in range(12)}
    # b is read from 1 s on. At 3 s split a is given up, and time follows b.
    assert [now for now, moved in said.items() if moved] == [1, *range(3, 12)]
    assert said[1] == [9]
    assert said[11] == [29]


def test_a_subtask_is_idle_when_all_its_splits_are_and_says_how_far_any_had_come() -> None:
    source = ListSource({"a": [10, *[None] * 9], "b": [30, *[None] * 9]}, together=2)
    reading = begun(source, IDLE)
    said = []
    for now in (0.0, 0.0, 1.0, 2.0, 3.0, 4.0):
        said += [e for e in read(reading, 1, now) if not isinstance(e, Batch)]
    assert said == [Watermark(9), Watermark(29), Idle()]


def test_idleness_is_awaited_and_not_polled_for() -> None:
    class Silent(ListSource):
        def open_split(self, split: Any) -> Any:
            reader = super().open_split(split)
            reader.poll = lambda _rows, now: NotYet(now + 100.0)  # type: ignore[method-assign]
            return reader

    reading = begun(Silent({"a": [1]}), IDLE)
    assert reading.read(10, 5.0) == []
    assert reading.next_poll() == 8.0
    assert reading.read(10, 8.0) == [Idle()]


# ----------------------------------------------------------------------------- strategies


class MarkSource(ListSource):
    """Rows ``x``, each with how far time is complete, in ``mark``."""

    lag = 5

    def open_split(self, split: Any) -> Any:
        reader = super().open_split(split)
        poll = reader.poll

        def marked(max_rows: int, now: float) -> Any:
            answer = poll(max_rows, now)
            data = getattr(answer, "data", None)
            if data is None:
                return answer
            mark = pa.array([x - self.lag for x in data.column("x").to_pylist()], pa.int64())
            return type(answer)(data.append_column("mark", mark), answer.origin)

        reader.poll = marked  # type: ignore[method-assign]
        return reader


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (MONOTONIC, [9, 19, 29]),
        (WatermarkStrategy.bounded_out_of_orderness("x", timedelta(microseconds=4)), [5, 15, 25]),
        (WatermarkStrategy.from_column("x", "mark"), [5, 15, 25]),
        (WatermarkStrategy.custom("x", lambda: Tens()), [10, 20, 30]),
    ],
)
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_each_strategy_goes_on_after_a_restore_where_it_was(
    strategy: WatermarkStrategy, expected: list[int], cut: int
) -> None:
    source = MarkSource({"a": [10, 20, 30]})
    reading = begun(source, strategy)
    before = marks(read(reading, cut))
    assert before == expected[:cut]
    assert before + marks(read(again(reading, source, strategy), 4)) == expected


class Tens(WatermarkGenerator):
    """Whole tens are complete."""

    def __init__(self) -> None:
        self.seen = 0

    def observe(self, data: pa.RecordBatch) -> None:
        self.seen += data.num_rows

    @property
    def watermark(self) -> int:
        return self.seen * 10 if self.seen else MIN_TIMESTAMP

    def state(self) -> Mapping[str, Any]:
        return {"seen": self.seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seen = int(state["seen"])


class Ticking(Tens):
    """Time that passes without rows."""

    def on_processing_time(self, now: int) -> None:
        self.seen = now // 1_000_000


def test_a_users_generator_is_told_the_time_at_its_interval() -> None:
    clock = ManualClock()
    start = clock.micros // 1_000_000
    strategy = WatermarkStrategy.custom("x", Ticking, update_interval=timedelta(seconds=2))
    reading = begun(ListSource({"a": [1, *[None] * 50]}), strategy)
    said = []
    for _ in range(5):
        said += marks(reading.read(10, clock.now()))
        assert reading.next_poll() is not None
        clock.advance(timedelta(seconds=1))
    # Told at 0 s, 2 s and 4 s; the row came after the first of these.
    assert said == [(start + s) * 10 for s in (0, 2, 4)]


def broken(method: str) -> Callable[[], WatermarkGenerator]:
    def fails(*_: object) -> Any:
        raise ZeroDivisionError("mine")

    body: dict[str, Any] = {method: property(fails) if method == "watermark" else fails}
    return type("Broken", (Tens,), body)


@pytest.mark.parametrize("method", ["__init__", "observe", "watermark", "state", "restore"])
def test_an_error_in_a_users_generator_names_the_source_the_split_and_the_method(
    method: str,
) -> None:
    source = ListSource({"a": [10, 20]})
    healthy = begun(source, WatermarkStrategy.custom("x", Tens))
    read(healthy, 1)
    strategy = WatermarkStrategy.custom("x", broken(method))
    name = method.strip("_").replace("init", "factory")

    def live() -> None:
        restored = again(healthy, source, strategy)
        read(restored, 2)
        restored.snapshot()

    with pytest.raises(UserFunctionError, match=rf"source 'numbers', split 'a': .*{name}.*mine"):
        live()


@pytest.mark.parametrize("wrong", [None, "soon", 1.5, True])
def test_a_watermark_that_is_no_number_of_microseconds_is_an_error(wrong: object) -> None:
    kind = type("Wrong", (Tens,), {"watermark": property(lambda _: wrong)})
    with pytest.raises(UserFunctionError, match="expected microseconds as an int"):
        read(begun(ListSource({"a": [1]}), WatermarkStrategy.custom("x", kind)), 1)


def test_state_that_is_no_json_is_an_error() -> None:
    kind = type("Odd", (Tens,), {"state": lambda _: {"seen": object()}})
    reading = begun(ListSource({"a": [1, 2]}), WatermarkStrategy.custom("x", kind))
    read(reading, 1)
    with pytest.raises(UserFunctionError, match=r"state.*JSON"):
        reading.snapshot()


def test_a_users_watermark_that_goes_back_does_not_take_time_back() -> None:
    class Back(Tens):
        @property
        def watermark(self) -> int:
            return 100 - self.seen

    reading = begun(ListSource({"a": [1, 2, 3]}), WatermarkStrategy.custom("x", Back))
    assert marks(read(reading, 4)) == [99]


def test_a_column_that_rows_do_not_have_is_named() -> None:
    reading = begun(ListSource({"a": [1]}), WatermarkStrategy.monotonic("y"))
    with pytest.raises(MissingColumnError, match="'y'"):
        read(reading, 1)


def test_the_state_of_generators_is_json_in_the_snapshot() -> None:
    reading = begun(ListSource({"a": [10, 20]}), MONOTONIC)
    read(reading, 1)
    (row,) = reading.snapshot().table.to_pylist()
    assert json.loads(row["event_time"]) == {"greatest": 10}
    assert row["watermark"] == 9


# ------------------------------------------------------------------------ processing time


CLOCK = WatermarkStrategy.processing_time("at")


def stamps(elements: list[StreamElement]) -> list[int]:
    found = []
    for e in elements:
        if isinstance(e, Batch):
            found += e.data.column("at").cast(pa.int64()).to_pylist()
    return found


def test_rows_are_stamped_with_the_time_at_which_they_are_read() -> None:
    clock = ManualClock()
    reading = begun(ListSource({"a": [1, 2]}), CLOCK)
    first = reading.read(1, clock.now())
    assert stamps(first) == [clock.micros]
    assert marks(first) == [clock.micros - 1]
    second = reading.read(1, clock.advance(timedelta(microseconds=250)))
    assert stamps(second) == [clock.micros]
    assert marks(second) == [clock.micros - 1]
    (batch,) = (e for e in second if isinstance(e, Batch))
    assert batch.data.schema == CLOCK.output_schema(pa.schema([("x", pa.int64())]))


def test_the_watermark_follows_the_clock_without_rows_every_200_ms() -> None:
    clock = ManualClock()
    reading = begun(ListSource({"a": [1, *[None] * 50]}), CLOCK)
    reading.read(10, clock.now())
    said = []
    for _ in range(100):
        clock.advance(timedelta(milliseconds=10))
        moved = marks(reading.read(10, clock.now()))
        assert moved in ([], [clock.micros - 1])
        said += moved
        wait = reading.next_poll()
        assert wait is not None
        assert wait <= clock.now() + 0.2
    assert len(said) == 5


def test_a_subtask_without_splits_has_processing_time_too() -> None:
    clock = ManualClock()
    reading = begun(ListSource({}, watch=1000.0), CLOCK)
    assert marks(reading.read(10, clock.now())) == [clock.micros - 1]
    clock.advance(timedelta(milliseconds=200))
    assert marks(reading.read(10, clock.now())) == [clock.micros - 1]


def test_processing_time_does_not_go_back_onto_a_machine_whose_clock_is_behind() -> None:
    source = ListSource({"a": [1, 2, 3]})
    clock, behind = ManualClock(), ManualClock()
    clock.advance(timedelta(seconds=60))
    reading = begun(source, CLOCK)
    (before,) = marks(reading.read(1, clock.now()))
    restored = again(reading, source, CLOCK)
    elements = restored.read(1, behind.now())
    assert stamps(elements) == [before + 1]
    assert marks(elements) == []
    elements = restored.read(1, behind.advance(timedelta(seconds=61)))
    assert stamps(elements) == [behind.micros]
    assert marks(elements) == [behind.micros - 1]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), st.integers(0, 20))
def test_under_processing_time_no_row_is_late(steps: list[int], cut: int) -> None:
    source = ListSource({"a": [*range(len(steps))]})
    clock = ManualClock()
    reading = begun(source, CLOCK)
    watermark = MIN_TIMESTAMP
    for step, micros in enumerate(steps):
        clock.advance(timedelta(microseconds=micros))
        if step == cut:
            reading, clock = again(reading, source, CLOCK), ManualClock()
        for e in reading.read(1, clock.now()):
            if isinstance(e, Watermark):
                assert e.timestamp > watermark
                watermark = e.timestamp
            else:
                assert min(stamps([e])) > watermark


def test_rows_that_have_a_column_of_that_name_are_refused() -> None:
    reading = begun(ListSource({"a": [1]}), WatermarkStrategy.processing_time("x"))
    with pytest.raises(PlanError, match="'x'"):
        reading.read(1, 0.0)
