"""Watermark merge: the least of the active inputs, and never back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP
from helios_ray.protocol.watermarks import WatermarkMerger


def test_the_slowest_active_input_decides() -> None:
    merger = WatermarkMerger("ab")
    assert merger.on_watermark("a", 10) is None
    assert merger.on_watermark("b", 7) == 7
    assert merger.on_watermark("b", 20) == 10


def test_an_idle_input_does_not_hold_time_back() -> None:
    merger = WatermarkMerger("ab")
    merger.on_watermark("a", 10)
    assert merger.on_idle("b") == 10
    assert not merger.all_idle
    assert merger.on_watermark("a", 30) == 30


def test_an_idle_input_that_wakes_up_behind_does_not_pull_time_back() -> None:
    merger = WatermarkMerger("ab")
    merger.on_watermark("a", 10)
    merger.on_idle("b")
    assert merger.on_watermark("b", 3) is None
    assert merger.on_watermark("a", 12) == 12
    assert merger.on_watermark("b", 12) is None
    assert merger.on_watermark("a", 40) is None  # b counts again, at 12
    assert merger.on_watermark("b", 35) == 35


def test_an_ended_input_does_not_hold_time_back_and_the_last_one_ends_it() -> None:
    merger = WatermarkMerger("ab")
    merger.on_watermark("a", 10)
    assert merger.on_closed("b") == 10
    assert merger.on_closed("a") == MAX_TIMESTAMP


def test_the_end_of_one_input_says_nothing_about_an_idle_one() -> None:
    merger = WatermarkMerger("ab")
    merger.on_idle("b")
    merger.on_watermark("a", 10)
    assert merger.on_closed("a") is None
    assert merger.current == 10
    assert merger.all_idle


def test_all_idle_needs_an_open_input() -> None:
    merger = WatermarkMerger("a")
    merger.on_idle("a")
    assert merger.all_idle
    merger.on_closed("a")
    assert not merger.all_idle


def test_after_a_restore_time_stands_where_it_stood_until_inputs_are_past_it() -> None:
    merger = WatermarkMerger("ab", initial=50)
    assert merger.on_watermark("a", 10) is None
    assert merger.on_watermark("b", 60) is None
    assert merger.on_watermark("a", 55) == 55


steps = st.lists(
    st.tuples(
        st.sampled_from(["watermark", "idle", "closed"]),
        st.integers(0, 2),
        st.integers(-5, 50),
    ),
    max_size=40,
)


@given(steps)
def test_merged_time_only_grows_and_never_passes_an_active_input(
    happenings: list[tuple[str, int, int]],
) -> None:
    merger = WatermarkMerger(range(3))
    told = [MIN_TIMESTAMP] * 3
    active, closed = {0, 1, 2}, set()
    for what, channel, timestamp in happenings:
        if channel in closed:
            continue
        before = merger.current
        if what == "watermark":
            told[channel] = max(told[channel], timestamp)
            moved = merger.on_watermark(channel, timestamp)
            if told[channel] >= before:
                active.add(channel)
        elif what == "idle":
            active.discard(channel)
            moved = merger.on_idle(channel)
        else:
            active.discard(channel)
            closed.add(channel)
            moved = merger.on_closed(channel)
        assert merger.current >= before
        assert (moved is None) == (merger.current == before)
        if active:
            assert merger.current <= max(before, min(told[c] for c in active))
        elif len(closed) < 3:
            assert merger.current <= max(before, *told)
