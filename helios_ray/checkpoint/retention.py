"""Which checkpoints and objects may go: a pure decision, made on what was listed.

Why it exists: deleting is the one act that cannot be undone, so its rules stand alone and are
tested alone. Whatever is not known for sure is kept.

- A checkpoint goes only if a newer *committed* one exists, and ``retain_count`` checkpoints
  up to that one stay. So the newest complete checkpoint always stays, and so does every
  one whose transactions may still have to be committed.
- A checkpoint that is pinned (the running epoch resumed from it and has committed none of
  its own yet), or whose manifest cannot be read, stays.
- An object goes only if no manifest that stays refers to it, and it belongs either to a
  fenced epoch or to a checkpoint that goes. What the running epoch uploaded for no
  completed checkpoint may be about to be referred to, and stays until that epoch is fenced.
- If a manifest that stays cannot be read, nobody knows what it refers to: no object goes.
- If anything of a newer epoch is seen, this epoch is the fenced one: nothing goes at all.

May import: records.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from helios_ray.records import RestoreRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    """What may be deleted; checkpoints first, then objects.

    Args:
        checkpoints: ids whose manifest and marker may go, oldest first.
        objects: paths that may go, sorted, once those manifests are gone.
        unreadable: ids that stay, and keep every object, because their manifest is unknown.
    """

    checkpoints: tuple[int, ...] = ()
    objects: tuple[str, ...] = ()
    unreadable: tuple[int, ...] = ()


def plan_retention(
    manifests: Mapping[int, frozenset[str] | None],
    objects: Mapping[str, int],
    *,
    retain_count: int,
    newest_committed: int | None,
    current_epoch: int,
    superseded: Collection[int] = (),
    pinned: Collection[int] = (),
    referenced_elsewhere: Collection[str] = (),
) -> RetentionPlan:
    """Decide what may be deleted.

    Args:
        manifests: by checkpoint id, the paths each refers to; None if it could not be read.
        objects: every state object listed, with its epoch.
        retain_count: committed checkpoints to keep, at least 1.
        newest_committed: the newest checkpoint known to be committed, or None.
        current_epoch: the epoch of whoever asks.
        superseded: checkpoints that do not count (see :func:`superseded_checkpoints`); they
            take no place among those retained.
        pinned: checkpoints to keep in any case.
        referenced_elsewhere: objects to keep in any case (savepoints).

    Example:
        >>> plan = plan_retention(
        ...     {1: frozenset({"a"}), 2: frozenset({"a", "b"}), 3: frozenset({"c"})},
        ...     {"a": 1, "b": 1, "c": 1}, retain_count=2, newest_committed=3, current_epoch=1)
        >>> plan.checkpoints, plan.objects
        ((1,), ())
    """
    if any(epoch > current_epoch for epoch in objects.values()):
        return RetentionPlan()
    kept = _kept(manifests, retain_count, newest_committed, superseded) | set(pinned)
    # An unreadable manifest stays even where a readable one would go.
    kept |= {checkpoint for checkpoint, paths in manifests.items() if paths is None}
    dropped = tuple(sorted(set(manifests) - kept))
    unreadable = tuple(sorted(c for c, paths in manifests.items() if paths is None))
    if unreadable or not manifests:
        return RetentionPlan(checkpoints=dropped, unreadable=unreadable)
    needed = set(referenced_elsewhere)
    released: set[str] = set()
    for checkpoint, paths in manifests.items():
        (needed if checkpoint in kept else released).update(paths or ())
    deletable = sorted(
        path
        for path, epoch in objects.items()
        if path not in needed and (epoch < current_epoch or path in released)
    )
    return RetentionPlan(checkpoints=dropped, objects=tuple(deletable))


def _kept(
    manifests: Mapping[int, frozenset[str] | None],
    retain_count: int,
    newest_committed: int | None,
    superseded: Collection[int],
) -> set[int]:
    if newest_committed is None or newest_committed not in manifests:
        # Nothing is known to be safe to fall back on.
        return set(manifests)
    if newest_committed in superseded:
        return set(manifests)
    settled = sorted(c for c in manifests if c <= newest_committed and c not in superseded)
    pending = {c for c in manifests if c > newest_committed}
    return pending | set(settled[-max(1, retain_count) :])


def superseded_checkpoints(
    manifests: Mapping[int, int], restores: Iterable[RestoreRecord]
) -> frozenset[int]:
    """Checkpoints that do not count: a later epoch resumed from before them.

    Their manifest was being written when the epoch was fenced, or somebody resumed from an
    older checkpoint on purpose; either way their transactions were aborted.

    Args:
        manifests: epoch by checkpoint id.
        restores: every restore record.

    Example:
        >>> restore = RestoreRecord(epoch=2, owner="b", checkpoint_id=5, first_checkpoint_id=100)
        >>> sorted(superseded_checkpoints({5: 1, 6: 1, 100: 2}, [restore]))
        [6]
    """
    records = tuple(restores)
    return frozenset(
        checkpoint
        for checkpoint, epoch in manifests.items()
        for restore in records
        if restore.epoch > epoch and checkpoint > (restore.checkpoint_id or 0)
    )
