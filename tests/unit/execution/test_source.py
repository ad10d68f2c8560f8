"""The source driver: splits, positions, event time, idleness, rescaling."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.connectors.base import Source
from helios_ray.elements import MIN_TIMESTAMP, Batch, Idle, StreamElement, Watermark
from helios_ray.execution.source import SourceDriver, owner_of
from helios_ray.operators.base import StateTable
from helios_ray.plan.physical import SourceSpec
from helios_ray.watermarks import WatermarkStrategy
from tests.unit.execution.small_jobs import ListSource


def driver(
    source: Source,
    subtask: int = 0,
    parallelism: int = 1,
    watermarks: WatermarkStrategy | None = None,
) -> SourceDriver:
    spec = SourceSpec(uid="in", name="in", source=source, watermarks=watermarks)
    return SourceDriver(spec, subtask, parallelism)


def begun(source: ListSource, subtask: int = 0, parallelism: int = 1) -> SourceDriver:
    reading = driver(source, subtask, parallelism)
    reading.begin(source.discover_splits(parallelism))
    return reading


def values(elements: list[StreamElement]) -> list[int]:
    return [x for e in elements if isinstance(e, Batch) for x in e.data.column("x").to_pylist()]


def read_all(reading: SourceDriver, max_rows: int = 2, now: float = 0.0) -> list[int]:
    got: list[int] = []
    for _ in range(100):
        elements, _ = reading.poll(max_rows, now)
        got += values(elements)
        if reading.exhausted:
            break
        now += 1.0
    return got


SPLITS: dict[str, list[int | None]] = {"a": [1, 2, 3], "b": [4, 5], "c": [6], "d": []}


@pytest.mark.parametrize("parallelism", [1, 2, 3, 5])
def test_each_split_is_read_by_exactly_one_subtask(parallelism: int) -> None:
    source = ListSource(SPLITS)
    got = [read_all(begun(source, s, parallelism)) for s in range(parallelism)]
    assert sorted(x for part in got for x in part) == [1, 2, 3, 4, 5, 6]


def tables(readers: list[SourceDriver]) -> StateTable:
    states = [r.snapshot() for r in readers]
    return StateTable(states[0].kind, pa.concat_tables([s.table for s in states]))


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 12),
    st.integers(1, 3),
)
def test_what_was_read_before_a_snapshot_and_after_a_restore_is_everything_once(
    sizes: list[int], before: int, after: int, polls: int, together: int
) -> None:
    """At the same parallelism and at any other."""
    splits: dict[str, list[int | None]] = {
        f"s{i}": [100 * i + n for n in range(size)] for i, size in enumerate(sizes)
    }
    source = ListSource(splits, together=together)
    readers = [begun(source, s, before) for s in range(before)]
    got: list[int] = []
    for step in range(polls):
        elements, _ = readers[step % before].poll(2, 0.0)
        got += values(elements)
    state = tables(readers)
    for subtask in range(after):
        restored = driver(source, subtask, after)
        restored.restore(state, MIN_TIMESTAMP)
        got += read_all(restored)
    assert sorted(got) == sorted(x for rows in splits.values() for x in rows if x is not None)


def test_a_restore_at_the_same_parallelism_keeps_splits_where_they_were() -> None:
    source = ListSource(SPLITS)
    readers = [begun(source, s, 2) for s in range(2)]
    state = tables(readers)
    owners = dict(
        zip(*(state.table.column(c).to_pylist() for c in ("split_id", "owner")), strict=True)
    )
    restored = driver(source, 1, 2)
    restored.restore(state, MIN_TIMESTAMP)
    mine = restored.snapshot().table.column("split_id").to_pylist()
    assert sorted(mine) == sorted(name for name, owner in owners.items() if owner == 1)


def test_a_source_that_has_nothing_now_is_asked_again_when_it_says() -> None:
    reading = begun(ListSource({"a": [1, None, 2]}))
    assert values(reading.read(10, 5.0)) == [1]
    assert reading.read(10, 5.0) == []
    assert not reading.ready(5.9)
    assert reading.next_poll() == 6.0
    assert values(reading.read(10, 6.0)) == [2]


def test_a_suspended_source_reads_no_more() -> None:
    reading = begun(ListSource({"a": [1, 2]}))
    assert values(reading.read(1, 0.0)) == [1]
    reading.suspend()
    assert reading.read(1, 1.0) == []
    assert reading.next_poll() is None
    assert not reading.exhausted


def test_event_time_of_a_subtask_is_that_of_its_slowest_open_split() -> None:
    source = ListSource({"a": [10, 50], "b": [20, 30]}, together=2)
    reading = driver(source, watermarks=WatermarkStrategy.monotonic("x"))
    reading.begin(source.discover_splits(1))
    marks = []
    for _ in range(10):
        elements, _ = reading.poll(1, 0.0)
        marks += [e.timestamp for e in elements if isinstance(e, Watermark)]
    # Nothing while b has said nothing; then a is the slower one, then b, to its own end.
    assert marks == [9, 19, 29]


def test_event_time_goes_on_where_it_was_after_a_restore() -> None:
    source = ListSource({"a": [10, 50, 60]})
    strategy = WatermarkStrategy.monotonic("x")
    reading = driver(source, watermarks=strategy)
    reading.begin(source.discover_splits(1))
    reading.poll(2, 0.0)
    restored = driver(source, watermarks=strategy)
    restored.restore(reading.snapshot(), 49)
    elements, _ = restored.poll(10, 0.0)
    assert values(elements) == [60]
    assert [e for e in elements if isinstance(e, Watermark)] == [Watermark(59)]


def test_a_silent_source_says_so_once_and_takes_it_back_with_the_next_row() -> None:
    quiet: list[int | None] = [10, *[None] * 6, 10]
    source = ListSource({"a": quiet})
    strategy = WatermarkStrategy.monotonic("x").with_idleness(timedelta(seconds=3))
    reading = driver(source, watermarks=strategy)
    reading.begin(source.discover_splits(1))
    said = []
    for now in range(9):
        elements, _ = reading.poll(10, float(now))
        said += [(now, e) for e in elements if not isinstance(e, Batch)]
    assert said == [(0, Watermark(9)), (3, Idle()), (7, Watermark(9))]


def test_a_watched_source_shares_what_it_finds_by_a_stable_hash() -> None:
    source = ListSource({}, watch=10.0)
    readers = [begun(source, s, 3) for s in range(3)]
    assert [read_all(r, now=0.0) for r in readers] == [[], [], []]
    source.splits.update({f"new-{i}": [i] for i in range(12)})
    got = []
    for reader in readers:
        for _ in range(40):
            elements, _ = reader.poll(10, 200.0)
            got.append(values(elements))
    assert sorted(x for part in got for x in part) == list(range(12))
    assert not readers[0].exhausted
    assert {owner_of(f"new-{i}", 3) for i in range(12)} == {0, 1, 2}
    assert owner_of("new-0", 3) == owner_of("new-0", 3)


def test_a_watched_split_is_not_read_again_after_a_restore() -> None:
    source = ListSource({"a": [1]}, watch=10.0)
    reading = begun(source)
    assert read_all(reading) == [1]
    restored = driver(source)
    restored.restore(reading.snapshot(), MIN_TIMESTAMP)
    assert read_all(restored, now=500.0) == []
    source.splits["b"] = [2]
    elements, _ = restored.poll(10, 1000.0)
    assert values(elements) == [2]


def test_a_done_split_that_has_left_the_listing_is_forgotten_but_not_all_at_once() -> None:
    source = ListSource({"a": [1], "b": [2]}, watch=10.0)
    reading = begun(source)
    assert sorted(read_all(reading)) == [1, 2]
    del source.splits["a"]
    reading.poll(1, 300.0)
    assert reading.snapshot().table.column("split_id").to_pylist() == ["b"]
    source.splits.clear()  # a mount that is away for a moment
    reading.poll(1, 600.0)
    assert reading.snapshot().table.column("split_id").to_pylist() == ["b"]


def test_closing_closes_the_readers() -> None:
    source = ListSource({"a": [1, 2]})
    reading = begun(source)
    reading.poll(1, 0.0)
    reading.close()
    assert [r.closed for r in source.readers] == [True]
