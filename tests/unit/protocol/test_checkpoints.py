"""The scheduler of checkpoints: when, how many, and which ids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helios_ray.identifiers import TaskId
from helios_ray.protocol.checkpoints import CheckpointRules, CheckpointScheduler, PendingCheckpoint
from helios_ray.records import TaskSnapshot

A, B = TaskId("a", 0), TaskId("b", 0)


def test_a_checkpoint_is_acknowledged_when_the_last_task_has_answered_once() -> None:
    pending = PendingCheckpoint(1, (A, B), 10.0)
    assert not pending.acknowledge(TaskSnapshot(task=A), 11.0)
    assert not pending.acknowledge(TaskSnapshot(task=A), 12.0)
    assert pending.acknowledge(TaskSnapshot(task=B), 13.5)
    assert pending.duration == 3.5
    assert not pending.acknowledge(TaskSnapshot(task=B), 14.0)


def test_overdue_are_those_past_their_timeout() -> None:
    rules = CheckpointRules(interval=None, max_concurrent=2, timeout=10.0)
    scheduler = CheckpointScheduler(rules, 1, 0.0)
    scheduler.begin((A,), 0.0)
    scheduler.begin((A,), 5.0)
    assert scheduler.overdue(9.9) == []
    assert scheduler.overdue(10.0) == [1]
    assert scheduler.overdue(15.0) == [1, 2]


def test_next_due_is_none_where_nothing_comes_of_itself() -> None:
    assert CheckpointScheduler(CheckpointRules(interval=None), 1, 0.0).next_due() is None
    periodic = CheckpointScheduler(CheckpointRules(interval=5.0, min_pause=2.0), 1, 0.0)
    assert periodic.next_due() == 5.0
    periodic.begin((A,), 5.0)
    assert periodic.next_due() is None
    periodic.completed(1, 9.0)
    assert periodic.next_due() == 11.0


def test_headroom_is_twice_the_failures_for_one_checkpoint_at_a_time() -> None:
    assert CheckpointRules(tolerable_failures=0, max_concurrent=1).headroom == 2
    assert CheckpointRules(tolerable_failures=3, max_concurrent=2).headroom == 12


choices = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "complete", "fail", "late", "confirm"]),
        st.integers(0, 9),
    ),
    max_size=120,
)


@given(st.integers(0, 4), st.integers(1, 4), choices)
def test_no_id_is_used_beyond_the_headroom_and_the_scheduler_never_gets_stuck(
    tolerable: int, concurrent: int, happenings: list[tuple[str, int]]
) -> None:
    """The next epoch begins beyond the headroom: were an id past it used, it would be reused.

    ``late`` is a manifest that turns out durable after its checkpoint was given up. What
    counts is only what is confirmed: simulator seed 3157, where a fenced coordinator went on
    completing checkpoints that its successor had not seen.
    """
    rules = CheckpointRules(interval=None, tolerable_failures=tolerable, max_concurrent=concurrent)
    scheduler = CheckpointScheduler(rules, 100, 0.0)
    confirmed, used, given_up = 99, [99], []
    unconfirmed: list[int] = []
    for what, which in happenings:
        pending = sorted(scheduler.pending)
        if what == "begin" and scheduler.due(0.0, ignore_pause=True):
            used.append(scheduler.begin((A,), 0.0).checkpoint_id)
        elif what == "complete" and pending:
            done = pending[which % len(pending)]
            subsumed = scheduler.completed(done, 0.0)
            assert subsumed == [n for n in pending if n < done]
            unconfirmed.append(done)
        elif what == "late" and given_up:
            done = given_up.pop(which % len(given_up))
            scheduler.completed(done, 0.0)
            unconfirmed.append(done)
        elif what == "confirm" and unconfirmed:
            scheduler.confirmed(unconfirmed[0])
            confirmed = max(confirmed, unconfirmed.pop(0))
        elif what == "fail" and pending:
            failed = pending[which % len(pending)]
            given_up.append(failed)
            if scheduler.failed(failed, 0.0):
                return  # the attempt is over
        assert used == sorted(set(used))
        assert used[-1] <= confirmed + rules.headroom
        assert len(scheduler.pending) <= concurrent
        # Unless something is under way, the next may always begin.
        waiting = scheduler.pending or unconfirmed
        assert waiting or scheduler.due(0.0, ignore_pause=True)
