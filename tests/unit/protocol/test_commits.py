"""The commit ledger: pending is a map, and completion of N covers all up to N."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helios_ray.identifiers import TaskId
from helios_ray.protocol.commits import CommitRound, PendingCommits
from helios_ray.records import PreparedTransaction


def transaction(checkpoint_id: int, name: str = "") -> PreparedTransaction:
    return PreparedTransaction(
        transaction=f"t{checkpoint_id}{name}", sink="s", checkpoint_id=checkpoint_id
    )


def test_what_is_committed_waits_no_longer_and_the_rest_does() -> None:
    pending = PendingCommits()
    for n in (1, 2, 4):
        pending.prepared(transaction(n))
    for due in pending.due(2):
        pending.committed(due)
    assert [t.checkpoint_id for t in pending.all] == [4]
    assert pending.due(3) == ()
    pending.committed(transaction(2))  # told twice
    assert [t.checkpoint_id for t in pending.due(9)] == [4]


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(0, 10))
def test_due_is_everything_up_to_a_checkpoint_in_order_and_nothing_after(
    prepared: list[int], completed: int
) -> None:
    pending = PendingCommits()
    for index, n in enumerate(prepared):
        pending.prepared(transaction(n, f"-{index}"))
    due = [t.checkpoint_id for t in pending.due(completed)]
    assert due == sorted(n for n in prepared if n <= completed)
    assert sorted(prepared) == [t.checkpoint_id for t in pending.all]


def test_a_round_is_over_when_the_last_subtask_has_answered() -> None:
    a, b = TaskId("sink", 0), TaskId("sink", 1)
    commit = CommitRound(3, [a, b], started=1.0)
    assert not commit.acknowledged(a)
    assert not commit.acknowledged(a)
    assert commit.acknowledged(b)
