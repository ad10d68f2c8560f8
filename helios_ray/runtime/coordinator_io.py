"""The coordinator's storage calls: instructions in, events out.

Why it exists: each answer of storage must become the right kind of event. What failed for
sure, what nobody knows, and what cannot get better by trying again are three things (rule 16).

May import: checkpoint, execution (restore), protocol and below.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from helios_ray.checkpoint.catalog import CheckpointCatalog
from helios_ray.checkpoint.snapshots import Sealer
from helios_ray.errors import (
    CheckpointError,
    StorageError,
    StorageNotFoundError,
    StorageUnknownError,
)
from helios_ray.execution.restore import check_manifest
from helios_ray.protocol import instructions as i
from helios_ray.protocol.recovery import Catalog, CheckpointSummary
from helios_ray.records import EpochRecord, RestoreRecord
from helios_ray.runtime.deployment import JobSpec

logger = logging.getLogger("helios_ray.coordinator")


class CoordinatorStorage:
    """Carries out the coordinator's storage instructions. Called from a thread pool.

    Args:
        spec: the job.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self.store = spec.config.storage.open().scoped(spec.plan.job)
        self._catalog = CheckpointCatalog(self.store, Sealer(spec.config.encryption))
        # These records never change, and a takeover asks for all of them twice.
        self._epochs: dict[int, EpochRecord] = {}
        self._restores: dict[int, RestoreRecord] = {}
        self._retention = CheckpointCatalog(self.store, Sealer(spec.config.encryption))

    def place_of(self, name: str) -> str:
        """Where an object of the job is, as ``restore=`` and people's tools take it."""
        place = self.store.describe().removeprefix("directory ")
        return f"{place.partition(' at ')[0]}/{name}"

    def answer(self, instruction: i.Instruction) -> i.Event | None:
        """Do what an instruction says; whatever happens, return the event that tells."""
        match instruction:
            case i.ReadCatalog(request):
                return self._try(request, lambda: i.CatalogRead(request, self._read_catalog()))
            case i.ReadEpochs(request):
                return self._try(
                    request, lambda: i.EpochsRead(request, self._catalog.inventory().epochs)
                )
            case i.ReadManifest(request, checkpoint_id):
                return self._try(request, lambda: self._read_manifest(request, checkpoint_id))
            case i.WriteRecord(request, record):
                return self._try(
                    request,
                    lambda: i.RecordWritten(request, self._catalog.write(record).existing),
                )
        raise AssertionError(instruction)

    def _read_catalog(self) -> Catalog:
        inventory = self._catalog.inventory()
        epochs: list[EpochRecord] = []
        for epoch in inventory.epochs:
            record = self._epochs.get(epoch) or self._catalog.epoch(epoch)
            if record is not None:
                self._epochs[epoch] = record
                epochs.append(record)
        restores: list[RestoreRecord] = []
        for epoch in inventory.restores:
            restore = self._restores.get(epoch) or self._catalog.restore(epoch)
            if restore is not None:
                self._restores[epoch] = restore
                restores.append(restore)
        return Catalog(
            epochs=tuple(epochs),
            restores=tuple(restores),
            checkpoints=tuple(
                CheckpointSummary(
                    checkpoint_id=s.checkpoint_id,
                    epoch=s.epoch,
                    committed=s.committed,
                    final=s.final,
                )
                for s in self._catalog.summaries()
            ),
        )

    def _read_manifest(self, request: int, checkpoint_id: int) -> i.Event:
        manifest = self._catalog.manifest(checkpoint_id)
        if not self._spec.allow_unmatched_state:
            check_manifest(manifest, self._spec.plan)
        return i.ManifestRead(request, manifest)

    def _try(self, request: int, call: Callable[[], i.Event]) -> i.Event:
        try:
            return call()
        except StorageUnknownError as error:
            return i.StorageFailed(request, _reason(error), unknown=True)
        except StorageNotFoundError as error:
            return i.StorageFailed(request, _reason(error), unknown=False, permanent=True)
        except StorageError as error:
            return i.StorageFailed(request, _reason(error), unknown=False)
        except CheckpointError as error:
            return i.StorageFailed(request, _reason(error), unknown=False, permanent=True)
        except Exception as error:
            logger.exception("storage call")
            return i.StorageFailed(request, _reason(error), unknown=True)

    def retain(self, epoch: int) -> None:
        """Drop what may go. A failure is no harm: the next time finds what is left."""
        try:
            plan = self._retention.plan_retention(
                retain_count=self._spec.config.retain_count, current_epoch=epoch
            )
            # A newer epoch may have resumed from what this one is about to drop.
            if max(self._retention.inventory().epochs, default=0) <= epoch:
                self._retention.drop(plan)
            if plan.unreadable:
                logger.warning(
                    "checkpoints %s cannot be read, so no object is deleted while they stand",
                    list(plan.unreadable),
                )
        except StorageError as error:
            logger.warning("retention put off: %s", error)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
