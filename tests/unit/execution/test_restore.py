"""Sharing out the state of a checkpoint, at the same and at another parallelism."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.errors import StateMismatchError
from helios_ray.execution.restore import check_manifest, objects_for, share_out
from helios_ray.identifiers import TaskId
from helios_ray.operators.base import Operator, StateKind
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.records import Manifest, StateObject, TaskSnapshot
from helios_ray.state.key_groups import key_group_range
from tests.unit.execution.small_jobs import plan_of


def plan(parallelism: int) -> PhysicalPlan:
    return plan_of(widths=(1, parallelism), operators=[Operator])


def snapshots(
    kind: StateKind,
    parallelism: int,
    *,
    finished: tuple[int, ...] = (),
    operator: str = "op-0",
) -> tuple[Manifest, dict[StateObject, pa.Table]]:
    """Every subtask has written 8 rows, of its own key groups if they are keyed."""
    loaded: dict[StateObject, pa.Table] = {}
    tasks = []
    for subtask in range(parallelism):
        groups = key_group_range(subtask, parallelism, 8)
        group = [groups[n % len(groups)] for n in range(8)]
        if kind is StateKind.BROADCAST:
            rows = list(range(8))
        else:
            rows = [100 * subtask + n for n in range(8)]
        table = pa.table({"key_group": pa.array(group, pa.int32()), "row": rows})
        o = StateObject(
            operator=operator,
            subtask=subtask,
            name="state",
            kind=kind.value,
            path=f"p{subtask}",
            size=1,
            raw_size=1,
            rows=8,
        )
        loaded[o] = table
        task = TaskId(operator, subtask)
        tasks.append(
            TaskSnapshot(
                task=task, objects=(o,), watermark=10 + subtask, finished=subtask in finished
            )
        )
    manifest = Manifest(
        job="job",
        epoch=1,
        owner="o",
        checkpoint_id=1,
        created_at=0.0,
        duration=0.0,
        max_parallelism=8,
        parallelism={"in": 1, operator: parallelism, "out": parallelism},
        tasks=tuple(tasks),
    )
    return manifest, loaded


def restored_rows(
    manifest: Manifest, loaded: dict[StateObject, pa.Table], after: int
) -> list[list[tuple[int, int]]]:
    """Per subtask, the ``(key group, row)`` pairs that it takes up."""
    job = plan(after)
    shares = []
    for subtask in range(after):
        task = TaskId("op-0", subtask)
        chosen = [(o, loaded[o]) for o in objects_for(manifest, job, task)]
        state = share_out(chosen, manifest, job, task).state.get("op-0", {})
        table = state["state"].table if "state" in state else pa.table({"key_group": [], "row": []})
        columns = (table.column(c).to_pylist() for c in ("key_group", "row"))
        shares.append(list(zip(*columns, strict=True)))
    return shares


widths = st.integers(1, 5)


@given(widths, widths)
def test_keyed_state_goes_to_the_owner_of_its_key_group_once(before: int, after: int) -> None:
    manifest, loaded = snapshots(StateKind.KEYED, before)
    shares = restored_rows(manifest, loaded, after)
    for subtask, share in enumerate(shares):
        assert {group for group, _ in share} <= set(key_group_range(subtask, after, 8))
    every = sorted(row for share in shares for _, row in share)
    assert every == sorted(r for t in loaded.values() for r in t.column("row").to_pylist())


@given(widths, widths)
def test_split_state_is_dealt_out_once(before: int, after: int) -> None:
    manifest, loaded = snapshots(StateKind.SPLIT, before)
    shares = restored_rows(manifest, loaded, after)
    every = sorted(row for share in shares for _, row in share)
    assert every == sorted(r for t in loaded.values() for r in t.column("row").to_pylist())
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_split_state_of_fewer_rows_than_subtasks_leaves_some_with_none() -> None:
    manifest, loaded = snapshots(StateKind.SPLIT, 1)
    few = {o: table.slice(0, 2) for o, table in loaded.items()}
    shares = restored_rows(manifest, few, 4)
    assert [len(share) for share in shares] == [1, 1, 0, 0]


@given(widths, widths)
def test_union_state_goes_to_all_and_broadcast_state_in_one_copy(before: int, after: int) -> None:
    manifest, loaded = snapshots(StateKind.UNION, before)
    for share in restored_rows(manifest, loaded, after):
        assert len(share) == 8 * before
    manifest, loaded = snapshots(StateKind.BROADCAST, before)
    for share in restored_rows(manifest, loaded, after):
        assert [row for _, row in share] == list(range(8))


def test_at_the_same_parallelism_nobody_loads_what_it_does_not_need() -> None:
    manifest, _ = snapshots(StateKind.KEYED, 4)
    for subtask in range(4):
        wanted = objects_for(manifest, plan(4), TaskId("op-0", subtask))
        assert [o.subtask for o in wanted] == [subtask]
    # Two to one: each of two loads what overlaps its range, no more.
    assert len(objects_for(manifest, plan(2), TaskId("op-0", 0))) == 2


def test_event_time_is_the_tasks_own_or_after_a_rescale_the_least() -> None:
    manifest, _ = snapshots(StateKind.KEYED, 2)

    def watermark(parallelism: int, subtask: int) -> int:
        return share_out((), manifest, plan(parallelism), TaskId("op-0", subtask)).watermark

    assert [watermark(2, s) for s in range(2)] == [10, 11]
    assert [watermark(3, s) for s in range(3)] == [10, 10, 10]
    fresh = share_out((), manifest, plan(2), TaskId("in", 0))
    assert (fresh.watermark, fresh.finished) == (MIN_TIMESTAMP, False)


def test_finished_is_the_tasks_own_and_after_a_rescale_all_or_nothing() -> None:
    def finished(which: tuple[int, ...], parallelism: int) -> list[bool]:
        manifest, _ = snapshots(StateKind.KEYED, 2, finished=which)
        job = plan(parallelism)
        tasks = [TaskId("op-0", s) for s in range(parallelism)]
        return [share_out((), manifest, job, t).finished for t in tasks]

    assert finished((1,), 2) == [False, True]
    assert finished((0, 1), 3) == [True, True, True]
    assert finished((), 3) == [False, False, False]
    with pytest.raises(StateMismatchError, match="Restore with parallelism=2"):
        finished((1,), 3)


def test_a_checkpoint_must_fit_the_job() -> None:
    manifest, _ = snapshots(StateKind.KEYED, 2)
    check_manifest(manifest, plan(3))
    unknown, _ = snapshots(StateKind.KEYED, 2, operator="gone")
    with pytest.raises(StateMismatchError, match=r"\['gone'\]"):
        check_manifest(unknown, plan(2))
