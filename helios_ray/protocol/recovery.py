"""Which checkpoint to resume from, and what to do with older epochs' transactions.

Why it exists: rules 2, 5, 6 and 13 of the protocol, as functions of what storage holds.

The race that this decides. A coordinator that lost contact may have a manifest on its way
to storage while its successor reads the catalog: the write may land before, after, or
never, and nobody is told which. Two steps, each in this order, make every outcome safe:

    old coordinator:  write manifest N  ->  read epochs   ->  commit N only if still newest
    new coordinator:  claim an epoch    ->  read manifests -> write where it resumes from

Either the old one sees the new epoch and commits nothing, or the new one sees N. And a
manifest that lands after the new epoch has recorded where it resumed does not count: the
newest restore record names the only checkpoint of older epochs that does.

May import: errors, records.

Source: the flag principle of Dekker's algorithm; epoch records as in Arroyo's state protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from helios_ray.errors import CheckpointNotFoundError
from helios_ray.records import EpochRecord, RestoreRecord


MOST_EPOCHS_PROBED = 32
"""How far back ``abandoned_ids`` looks; zombies of older epochs are not expected any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSummary:
    """What can be known of a checkpoint without opening it."""

    checkpoint_id: int
    epoch: int
    committed: bool
    final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """What storage holds of a job."""

    epochs: tuple[EpochRecord, ...] = ()
    restores: tuple[RestoreRecord, ...] = ()
    checkpoints: tuple[CheckpointSummary, ...] = ()

    @property
    def newest_epoch(self) -> int:
        """0 when the job never ran."""
        return max((e.epoch for e in self.epochs), default=0)


def valid_checkpoints(catalog: Catalog) -> list[CheckpointSummary]:
    """Checkpoints that count, oldest first; see the module's docstring."""
    restores = sorted(catalog.restores, key=lambda r: r.epoch)
    if not restores:
        return sorted(catalog.checkpoints, key=lambda c: c.checkpoint_id)
    newest = restores[-1]
    base = -1 if newest.checkpoint_id is None else newest.checkpoint_id
    # Along the chain of restores, each epoch inherits only what it resumed from or before.
    return sorted(
        (
            c
            for c in catalog.checkpoints
            if c.epoch >= newest.epoch or (c.checkpoint_id <= base and _inherited(c, restores))
        ),
        key=lambda c: c.checkpoint_id,
    )


def _inherited(checkpoint: CheckpointSummary, restores: list[RestoreRecord]) -> bool:
    """Whether no epoch after the checkpoint's own resumed from an earlier point."""
    return all(
        r.checkpoint_id is not None and checkpoint.checkpoint_id <= r.checkpoint_id
        for r in restores
        if r.epoch > checkpoint.epoch
    )


def pick_restore(catalog: Catalog, wanted: int | str | None) -> CheckpointSummary | None:
    """Choose what to resume from.

    Args:
        catalog: what storage holds, read after this attempt's epoch was claimed.
        wanted: ``"latest"``, a checkpoint id, or None for a start from nothing.

    Raises:
        CheckpointNotFoundError: ``wanted`` names a checkpoint that is not there or does not
            count.
    """
    valid = valid_checkpoints(catalog)
    if wanted is None:
        return None
    if wanted == "latest":
        return valid[-1] if valid else None
    for checkpoint in valid:
        if checkpoint.checkpoint_id == wanted:
            return checkpoint
    raise CheckpointNotFoundError(
        f"there is no checkpoint {wanted} to restore from; the job has "
        f"{[c.checkpoint_id for c in valid] or 'none'}. Pass one of those, or restore='latest'."
    )


def first_checkpoint_id(catalog: Catalog) -> int:
    """The first id that no earlier epoch can have used, recorded or not (rule 7)."""
    headroom = {e.epoch: e.headroom for e in catalog.epochs}
    highest = 0
    for restore in sorted(catalog.restores, key=lambda r: r.epoch):
        durable = max(
            (c.checkpoint_id for c in catalog.checkpoints if c.epoch == restore.epoch),
            default=restore.first_checkpoint_id - 1,
        )
        highest = max(highest, durable + headroom.get(restore.epoch, 0))
    return highest + 1


def abandoned_ids(
    catalog: Catalog, restored: CheckpointSummary | None
) -> tuple[tuple[int, int, int], ...]:
    """Per older epoch, the ids in which it may have prepared what must now be aborted.

    Needed only for sinks that cannot list their prepared transactions: a finite set to probe.
    An epoch's transactions up to its last durable checkpoint have been decided; what its
    zombies prepare lies within its headroom after that.

    Returns:
        ``(epoch, first id, last id)`` for each of the latest epochs.
    """
    headroom = {e.epoch: e.headroom for e in catalog.epochs}
    after = -1 if restored is None else restored.checkpoint_id
    since = 0 if restored is None else restored.epoch
    restores = sorted(catalog.restores, key=lambda r: r.epoch)[-MOST_EPOCHS_PROBED:]
    ranges = []
    for position, restore in enumerate(restores):
        spare = headroom.get(restore.epoch, 0)
        if position + 1 < len(restores):
            last = restores[position + 1].first_checkpoint_id - 1
        else:
            durable = max(
                (c.checkpoint_id for c in catalog.checkpoints if c.epoch == restore.epoch),
                default=restore.first_checkpoint_id - 1,
            )
            last = durable + spare
        first = last - spare + 1
        if restore.epoch >= since:
            first = min(first, after + 1)
        first = max(first, restore.first_checkpoint_id)
        if first <= last:
            ranges.append((restore.epoch, first, last))
    return tuple(ranges)


def still_owner(epochs: Iterable[int], mine: int) -> bool:
    """Whether no newer epoch has been claimed."""
    return all(epoch <= mine for epoch in epochs)
