"""Barrier alignment: when a task may snapshot, and what is blocked until then."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helios_ray.protocol.alignment import BarrierAligner


def test_a_snapshot_is_due_when_the_barrier_is_there_on_every_input() -> None:
    aligner = BarrierAligner("abc")
    assert aligner.on_barrier("a", 1) is None
    assert aligner.on_barrier("c", 1) is None
    assert aligner.blocked == {"a", "c"}
    assert aligner.aligning == 1
    assert aligner.on_barrier("b", 1) == 1
    assert aligner.blocked == frozenset()


def test_a_closed_input_lowers_the_count_before_and_during_alignment() -> None:
    aligner = BarrierAligner("abc")
    assert aligner.on_closed("a") is None
    assert aligner.on_barrier("b", 1) is None
    assert aligner.on_closed("c") == 1


def test_an_input_that_closes_behind_its_own_barrier_does_not_count_twice() -> None:
    aligner = BarrierAligner("ab")
    assert aligner.on_barrier("a", 1) is None
    assert aligner.on_closed("a") is None
    assert aligner.on_barrier("b", 1) == 1
    assert aligner.on_barrier("b", 2) == 2


def test_stale_barriers_are_ignored_and_block_nothing() -> None:
    aligner = BarrierAligner("ab")
    aligner.on_barrier("a", 5)
    assert aligner.on_barrier("b", 5) == 5
    assert aligner.on_barrier("a", 5) is None
    assert aligner.on_barrier("a", 4) is None
    assert aligner.blocked == frozenset()


def test_a_newer_barrier_supersedes_an_older_alignment() -> None:
    aligner = BarrierAligner("ab")
    aligner.on_barrier("a", 1)
    assert aligner.on_barrier("b", 2) is None
    assert aligner.blocked == {"b"}
    assert aligner.on_barrier("a", 1) is None
    assert aligner.on_barrier("a", 2) == 2


def test_an_aborted_checkpoint_unblocks_and_its_late_barriers_mean_nothing() -> None:
    aligner = BarrierAligner("ab")
    aligner.on_barrier("a", 1)
    aligner.on_aborted(1)
    assert aligner.blocked == frozenset()
    assert aligner.on_barrier("b", 1) is None
    assert aligner.blocked == frozenset()
    aligner.on_barrier("a", 2)
    assert aligner.on_barrier("b", 2) == 2


def test_an_abort_that_comes_before_the_barrier_counts() -> None:
    aligner = BarrierAligner("a")
    aligner.on_aborted(3)
    assert aligner.on_barrier("a", 3) is None
    assert aligner.on_barrier("a", 4) == 4


def test_a_direct_trigger_is_for_tasks_whose_inputs_have_all_ended() -> None:
    aligner = BarrierAligner("a")
    assert aligner.on_direct_trigger(1) is None
    aligner.on_closed("a")
    assert aligner.on_direct_trigger(1) == 1
    assert aligner.on_direct_trigger(1) is None
    aligner.on_aborted(2)
    assert aligner.on_direct_trigger(2) is None
    assert BarrierAligner(()).on_direct_trigger(1) == 1


@st.composite
def streams(draw: st.DrawFn) -> list[list[int]]:
    """Per channel, the barriers it brings: increasing ids, some of them missing."""
    return draw(
        st.lists(
            st.lists(st.integers(1, 8), unique=True, max_size=6).map(sorted),
            min_size=1,
            max_size=4,
        )
    )


@given(streams(), st.randoms(use_true_random=False))
def test_every_completed_checkpoint_cuts_each_channel_at_its_own_barrier(
    barriers: list[list[int]], dice: object
) -> None:
    """Whatever the order of arrival: on completion of n, every open channel has brought n and
    nothing behind it, and completed ids only grow."""
    aligner = BarrierAligner(range(len(barriers)))
    left = [list(b) for b in barriers]
    taken: list[list[int]] = [[] for _ in barriers]
    closed: set[int] = set()
    completed = 0
    while True:
        ready = [c for c in range(len(left)) if c not in closed and not aligner.is_blocked(c)]
        if not ready:
            break
        channel = dice.choice(ready)  # type: ignore[attr-defined]
        if left[channel]:
            taken[channel].append(left[channel].pop(0))
            done = aligner.on_barrier(channel, taken[channel][-1])
        else:
            closed.add(channel)
            done = aligner.on_closed(channel)
        if done is not None:
            assert done > completed
            completed = done
            for c, seen in enumerate(taken):
                assert c in closed or seen[-1] == done
    # Nothing waits for ever: all channels were read to their ends.
    assert closed == set(range(len(barriers)))
    assert aligner.all_closed
