"""Retention: what may go, and what must never."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from helios_ray.checkpoint.retention import plan_retention, superseded_checkpoints
from helios_ray.records import RestoreRecord


@dataclass(frozen=True)
class Case:
    manifests: dict[int, frozenset[str] | None]
    objects: dict[str, int]
    retain_count: int
    newest_committed: int | None
    current_epoch: int
    superseded: frozenset[int]
    pinned: frozenset[int]


PATHS = [f"o{i}" for i in range(12)]


@st.composite
def cases(draw: st.DrawFn, unreadable: bool = True) -> Case:
    references = st.frozensets(st.sampled_from(PATHS), max_size=6)
    ids = draw(st.lists(st.integers(1, 20), unique=True, max_size=8))
    manifests = {
        i: draw(st.one_of(references, st.none()) if unreadable else references) for i in ids
    }
    current = draw(st.integers(1, 4))
    some = st.frozensets(st.sampled_from(ids), max_size=3) if ids else st.just(frozenset())
    return Case(
        manifests,
        draw(st.dictionaries(st.sampled_from(PATHS), st.integers(1, current), max_size=12)),
        draw(st.integers(1, 4)),
        draw(st.one_of(st.none(), st.sampled_from(ids))) if ids else None,
        current,
        draw(some),
        draw(some),
    )


def plan(case: Case) -> tuple[set[int], set[str]]:
    result = plan_retention(
        case.manifests,
        case.objects,
        retain_count=case.retain_count,
        newest_committed=case.newest_committed,
        current_epoch=case.current_epoch,
        superseded=case.superseded,
        pinned=case.pinned,
    )
    return set(result.checkpoints), set(result.objects)


@given(cases())
def test_no_object_goes_that_a_checkpoint_that_stays_needs(case: Case) -> None:
    dropped, deleted = plan(case)
    for checkpoint, paths in case.manifests.items():
        if checkpoint not in dropped:
            assert not deleted & (paths or frozenset())


@given(cases())
def test_the_newest_checkpoint_and_all_that_may_need_commits_stay(case: Case) -> None:
    dropped, _ = plan(case)
    for checkpoint in dropped:
        assert case.newest_committed is not None
        assert checkpoint < case.newest_committed
    assert not dropped & case.pinned


@given(cases())
def test_whatever_is_unknown_is_kept(case: Case) -> None:
    dropped, deleted = plan(case)
    unknown = {c for c, paths in case.manifests.items() if paths is None}
    assert not dropped & unknown
    if unknown:
        assert not deleted


@given(cases())
def test_what_the_running_epoch_uploaded_goes_only_with_a_checkpoint_that_had_it(
    case: Case,
) -> None:
    dropped, deleted = plan(case)
    released = {p for c in dropped for p in case.manifests[c] or ()}
    for path in deleted:
        assert case.objects[path] < case.current_epoch or path in released


@given(cases(unreadable=False))
def test_what_is_settled_is_cut_down_to_retain_count_and_nothing_is_left_behind(
    case: Case,
) -> None:
    if case.newest_committed is None or case.newest_committed in case.superseded:
        assert plan(case)[0] == set()
        return
    dropped, deleted = plan(case)
    settled = {c for c in case.manifests if c <= case.newest_committed}
    counted = settled - case.superseded - case.pinned - dropped
    assert len(counted) <= case.retain_count
    full = len(settled - case.superseded) >= case.retain_count
    assert not full or len((settled - case.superseded) - dropped) >= case.retain_count
    needed = {p for c, paths in case.manifests.items() if c not in dropped for p in paths or ()}
    for path, epoch in case.objects.items():
        if epoch < case.current_epoch and path not in needed:
            assert path in deleted


@given(cases())
def test_carrying_out_a_plan_leaves_nothing_more_to_do(case: Case) -> None:
    dropped, deleted = plan(case)
    after = Case(
        {c: paths for c, paths in case.manifests.items() if c not in dropped},
        {path: epoch for path, epoch in case.objects.items() if path not in deleted},
        case.retain_count,
        case.newest_committed,
        case.current_epoch,
        case.superseded,
        case.pinned,
    )
    assert plan(after) == (set(), set())


@given(cases())
def test_a_fenced_epoch_deletes_nothing(case: Case) -> None:
    newer = {**case.objects, "newer": case.current_epoch + 1}
    result = plan_retention(
        case.manifests,
        newer,
        retain_count=case.retain_count,
        newest_committed=case.newest_committed,
        current_epoch=case.current_epoch,
    )
    assert (result.checkpoints, result.objects) == ((), ())


def test_a_shared_object_lives_as_long_as_its_last_checkpoint() -> None:
    manifests = {1: frozenset({"run-1"}), 2: frozenset({"run-1", "run-2"}), 3: frozenset({"run-3"})}
    objects = {"run-1": 1, "run-2": 1, "run-3": 1}
    two = plan_retention(manifests, objects, retain_count=2, newest_committed=3, current_epoch=1)
    one = plan_retention(manifests, objects, retain_count=1, newest_committed=3, current_epoch=1)
    assert (two.checkpoints, two.objects) == ((1,), ())
    assert (one.checkpoints, one.objects) == ((1, 2), ("run-1", "run-2"))


def test_an_uncommitted_checkpoint_does_not_push_out_the_committed_one() -> None:
    manifests = {1: frozenset({"a"}), 2: frozenset({"b"})}
    result = plan_retention(
        manifests, {"a": 1, "b": 1}, retain_count=1, newest_committed=1, current_epoch=1
    )
    assert (result.checkpoints, result.objects) == ((), ())


def test_a_savepoint_keeps_its_objects() -> None:
    result = plan_retention(
        {5: frozenset()},
        {"kept": 1, "gone": 1},
        retain_count=1,
        newest_committed=5,
        current_epoch=2,
        referenced_elsewhere={"kept"},
    )
    assert result.objects == ("gone",)


def test_without_any_manifest_nothing_is_swept() -> None:
    # A listing without manifests is more likely a failed listing than an empty job.
    result = plan_retention({}, {"a": 1}, retain_count=1, newest_committed=None, current_epoch=2)
    assert result.objects == ()


def test_what_a_later_epoch_left_behind_is_superseded() -> None:
    def restore(epoch: int, checkpoint_id: int | None) -> RestoreRecord:
        return RestoreRecord(
            epoch=epoch, owner="o", checkpoint_id=checkpoint_id, first_checkpoint_id=100 * epoch
        )

    manifests = {5: 1, 6: 1, 200: 2, 201: 2, 300: 3}
    assert superseded_checkpoints(manifests, [restore(2, 5), restore(3, 200)]) == {6, 201}
    assert superseded_checkpoints(manifests, [restore(2, None)]) == {5, 6}
    assert superseded_checkpoints(manifests, []) == set()
