"""Timers fire by timestamp, then in the order in which they were registered."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.state.keyed.timers import TimerQueue

SLOTS, TIMES = st.integers(0, 3), st.integers(0, 12)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["register", "delete"]), SLOTS, TIMES),
    st.tuples(st.just("due"), st.just(0), TIMES),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_a_queue_is_a_sorted_list_of_distinct_timers(steps: list[tuple[str, int, int]]) -> None:
    timers = TimerQueue()
    model: list[tuple[int, int]] = []  # in the order of registration
    for step, slot, time in steps:
        if step == "register":
            assert timers.register(slot, time) == ((time, slot) not in model)
            if (time, slot) not in model:
                model.append((time, slot))
        elif step == "delete":
            assert timers.delete(slot, time) == ((time, slot) in model)
            if (time, slot) in model:
                model.remove((time, slot))
        else:
            expected = sorted((t for t in model if t[0] <= time), key=lambda timer: timer[0])
            assert timers.pending(time) == expected
            assert list(timers.due(time)) == expected
            model = [timer for timer in model if timer[0] > time]
        assert len(timers) == len(model)
        assert timers.next() == min((t for t, _ in model), default=None)
        times, slots = timers.columns()
        ordered = sorted(model, key=lambda timer: timer[0])
        assert list(zip(times.tolist(), slots.tolist(), strict=True)) == ordered


def test_what_is_registered_and_deleted_while_timers_fire_counts() -> None:
    timers = TimerQueue()
    for slot, time in [(1, 10), (2, 10), (3, 20), (4, 30)]:
        timers.register(slot, time)
    fired = []
    for time, slot in timers.due(30):
        fired.append((time, slot))
        if len(fired) == 1:
            timers.delete(2, 10)
            timers.register(1, 10)
            timers.register(5, 15)
            timers.register(6, 40)
        if len(fired) == 2:
            timers.register(7, 5)
    assert fired == [(10, 1), (10, 1), (5, 7), (15, 5), (20, 3), (30, 4)]
    assert timers.pending(100) == [(40, 6)]


def test_deleted_timers_do_not_pile_up() -> None:
    timers = TimerQueue()
    for time in range(10_000):
        timers.register(1, time)
        timers.delete(1, time)
    assert len(timers._heap) < 200
