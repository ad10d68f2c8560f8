"""Taking a job over: an epoch, a checkpoint to resume from, and what earlier epochs left.

Why it exists: rules 2, 6 and 13 of the protocol as one sequence, each step of which waits for
the answer to the one before::

    read the catalog ─> create the epoch record ─> read the catalog again, choose a checkpoint
    ─> create the restore record ─> still the newest epoch? ─> read the manifest ─> (deploy)
    ─> settle the transactions of earlier epochs ─> (process)

The catalog is read again because only what is seen after the claim decides, and the claim is
looked at again because only then is it sure that a later claimant has seen the choice; why
that is enough is told in ``recovery.py``.

May import: errors, records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from helios_ray.errors import CheckpointNotFoundError
from helios_ray.protocol import instructions as i
from helios_ray.protocol.instructions import JobStatus
from helios_ray.protocol.messages import ResetTask, ResolveTransactions
from helios_ray.protocol.recovery import (
    Catalog,
    first_checkpoint_id,
    pick_restore,
    settlement,
    still_owner,
    usurper,
)
from helios_ray.records import EpochRecord, Manifest, RestoreRecord

if TYPE_CHECKING:
    from helios_ray.protocol.coordinator import CoordinatorCore


class Takeover:
    """What the coordinator remembers of how its newest epoch came about.

    Args:
        core: whose takeover this is.
        wanted: ``"latest"``, a checkpoint id, or None; governs the first one that succeeds.
    """

    def __init__(self, core: CoordinatorCore, wanted: int | str | None) -> None:
        self._core = core
        self._wanted = wanted
        self._claim = 0
        self._catalog = Catalog()
        self.restored: int | None = None
        self.first_checkpoint_id = 1
        self.manifest: Manifest | None = None
        self._unresolved: set[str] = set()

    def begin(self) -> None:
        """A new attempt: first see who has been here."""
        self._unresolved = set()
        self._core.storage(i.ReadCatalog)

    def on_catalog(self, catalog: Catalog) -> None:
        """What storage holds: before the claim, and once more after it."""
        core = self._core
        self._catalog = catalog
        # Who has run the job and finds a later run of somebody else does not take it back.
        if core.epoch and (by := usurper(catalog, core.epoch, core.owner)) is not None:
            core.fenced(by)
        elif core.status is JobStatus.CLAIMING:
            # Never the same epoch twice: an unanswered claim may yet land.
            self._claim = max(catalog.newest_epoch, self._claim, core.epoch) + 1
            headroom = core.rules.checkpoints.headroom
            claim = EpochRecord(epoch=self._claim, owner=core.owner, headroom=headroom)
            core.storage(i.WriteRecord, claim)
        elif catalog.newest_epoch > core.epoch:
            core.fenced(catalog.newest_epoch)
        else:
            self._choose(catalog)

    def on_claimed(self, claim: EpochRecord, existing: object) -> None:
        """The epoch record is durable, or another stands in its place."""
        core = self._core
        if existing is not None and existing != claim:
            core.storage(i.ReadCatalog)  # somebody else took it: claim a later one
            return
        core.joined(claim.epoch)
        core.storage(i.ReadCatalog)

    def _choose(self, catalog: Catalog) -> None:
        core = self._core
        try:
            chosen = pick_restore(catalog, self._wanted)
        except CheckpointNotFoundError as error:
            core.finish(JobStatus.FAILED, f"{type(error).__name__}: {error}")
            return
        self.restored = None if chosen is None else chosen.checkpoint_id
        self.first_checkpoint_id = first_checkpoint_id(catalog)
        record = RestoreRecord(
            epoch=core.epoch,
            owner=core.owner,
            checkpoint_id=self.restored,
            first_checkpoint_id=self.first_checkpoint_id,
        )
        core.storage(i.WriteRecord, record)

    def on_recorded(self) -> None:
        """The restore record is durable."""
        # Whoever claims from here on sees the choice. Whoever claimed before may not have
        # seen it, and then this attempt must touch nothing.
        self._core.storage(i.ReadEpochs)

    def on_epochs(self, epochs: Sequence[int]) -> None:
        """Which epochs exist, read after the restore record was durable."""
        core = self._core
        if not still_owner(epochs, core.epoch):
            core.fenced(max(epochs))
            return
        # From here on this choice stands; later attempts take the latest.
        self._wanted = "latest"
        if self.restored is None:
            self.on_manifest(None)
        else:
            core.storage(i.ReadManifest, self.restored)

    def on_manifest(self, manifest: Manifest | None) -> None:
        """What the tasks are reset to; None for a start from nothing."""
        self.manifest = manifest
        self._core.deploy()

    def reset_order(self) -> ResetTask:
        """What makes a task join the epoch."""
        return ResetTask(
            epoch=self._core.epoch,
            manifest=self.manifest,
            first_checkpoint_id=self.first_checkpoint_id,
        )

    def resolve(self) -> None:
        """Every task has joined: settle what earlier epochs left, then start."""
        self._core.begin_resolving()
        self._unresolved = set(self._core.shape.sinks)
        if self._unresolved:
            self.resend()
        else:
            self._core.start()

    def resend(self) -> None:
        """Ask every sink that has not settled its old transactions."""
        if self._core.status is not JobStatus.RESOLVING:
            return
        for sink in sorted(self._unresolved):
            task = self._core.shape.sinks[sink][0]
            self._core.send(task, self.resolution(sink, sweep=False))

    def on_resolved(self, sink: str) -> None:
        """A sink's old transactions are settled."""
        if self._core.status is JobStatus.RESOLVING and sink in self._unresolved:
            self._unresolved.discard(sink)
            if not self._unresolved:
                self._core.start()

    def resolution(self, sink: str, *, sweep: bool) -> ResolveTransactions:
        """What a sink must settle: before the first row, and once more at the very end."""
        core = self._core
        parallelism = core.shape.parallelism.get(sink, 1)
        return settlement(
            core.epoch, sink, self._catalog, self.manifest, parallelism=parallelism, sweep=sweep
        )
