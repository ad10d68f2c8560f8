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

The new one may itself be superseded before it has touched anything, and its successor may
choose otherwise (N has landed meanwhile). So the same step once more: having written where
it resumes from, it reads the epochs, and goes on only if it is still the newest. Either it
sees its successor and aborts nothing, or the successor sees its restore record.

May import: errors, records, and the messages of this room.

Source: the flag principle of Dekker's algorithm; epoch records as in Arroyo's state protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from helios_ray.errors import CheckpointNotFoundError
from helios_ray.protocol.messages import ResolveTransactions
from helios_ray.records import EpochRecord, Manifest, PreparedTransaction, RestoreRecord

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
    """Checkpoints that count, oldest first; see the module's docstring.

    Those of the newest epoch that recorded where it resumed, and its ancestors: up to there
    those of the epoch that wrote that checkpoint, and so on back. What an epoch in between
    recorded does not matter: the newest one did not resume from it.
    """
    restores = {r.epoch: r for r in catalog.restores}
    newest = max(restores, default=0)
    valid = [c for c in catalog.checkpoints if c.epoch >= newest]
    by_id = {c.checkpoint_id: c for c in catalog.checkpoints if c.epoch < newest}
    base = restores[newest].checkpoint_id if newest else None
    while base is not None and base in by_id:
        epoch = by_id[base].epoch
        valid += [c for c in by_id.values() if c.epoch == epoch and c.checkpoint_id <= base]
        # An ancestor is an older epoch: a record that says otherwise ends the line.
        by_id = {n: c for n, c in by_id.items() if c.epoch < epoch}
        base = restores[epoch].checkpoint_id if epoch in restores else None
    return sorted(valid, key=lambda c: c.checkpoint_id)


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


def settlement(
    epoch: int,
    sink: str,
    catalog: Catalog,
    manifest: Manifest | None,
    *,
    parallelism: int,
    sweep: bool,
) -> ResolveTransactions:
    """What a sink must settle of earlier epochs.

    Args:
        epoch: the attempt that settles.
        sink: uid of the sink.
        catalog: what its choice was made from.
        manifest: the checkpoint it resumes from, or None.
        parallelism: subtasks of the sink now.
        sweep: the commits are long done; only leftovers of zombies are looked for.
    """
    restored: CheckpointSummary | None = None
    before = 1
    prepared: tuple[PreparedTransaction, ...] = ()
    if manifest is not None:
        restored = CheckpointSummary(
            checkpoint_id=manifest.checkpoint_id, epoch=manifest.epoch, committed=False
        )
        before = manifest.parallelism.get(sink, 1)
        prepared = () if sweep else manifest.prepared
    return ResolveTransactions(
        epoch=epoch,
        sink=sink,
        commit=tuple(p for p in prepared if p.sink == sink),
        abort_epochs=abandoned_ids(catalog, restored),
        width=max(parallelism, before),
        sweep=sweep,
    )


def still_owner(epochs: Iterable[int], mine: int) -> bool:
    """Whether no newer epoch has been claimed."""
    return all(epoch <= mine for epoch in epochs)


def usurper(catalog: Catalog, mine: int, owner: str) -> int | None:
    """The newest epoch after ``mine`` that somebody else has claimed, or None."""
    return max(
        (e.epoch for e in catalog.epochs if e.epoch > mine and e.owner != owner), default=None
    )


def same_writer(existing: object, record: Manifest) -> bool:
    """Whether what stands where ``record`` was to go is its own earlier try."""
    return (
        isinstance(existing, Manifest)
        and existing.epoch == record.epoch
        and existing.owner == record.owner
    )
