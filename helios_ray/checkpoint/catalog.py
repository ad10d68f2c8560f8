"""What a job has in storage: its records, its checkpoints, its state.

Why it exists: the coordinator's shell and the offline reader look at one directory the same
way. It decides nothing: which checkpoint to resume from is the protocol's business, and
which to delete is the retention plan's.

May import: header, layout, manifest, retention, snapshots, storage, records, errors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import pyarrow as pa

from helios_ray.checkpoint import layout
from helios_ray.checkpoint.header import HEADER_PROBE, read_header
from helios_ray.checkpoint.manifest import (
    CheckpointSummary,
    binding_of,
    decode_manifest,
    decode_record,
    encode_manifest,
    encode_record,
    read_summary,
    record_path,
)
from helios_ray.checkpoint.retention import RetentionPlan, plan_retention, superseded_checkpoints
from helios_ray.checkpoint.snapshots import Sealer
from helios_ray.checkpoint.storage import ObjectStore
from helios_ray.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    StorageError,
    StorageNotFoundError,
    TamperedObjectError,
    TruncatedObjectError,
)
from helios_ray.records import (
    CommittedMarker,
    EpochRecord,
    Manifest,
    Record,
    RestoreRecord,
    StateObject,
)

R = TypeVar("R", EpochRecord, RestoreRecord, CommittedMarker, Manifest)


@dataclass(frozen=True, slots=True)
class Written:
    """How a write of a record ended.

    Args:
        created: it is in storage now, and was not before.
        existing: what is there instead, if it was not created.
    """

    created: bool
    existing: Record | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """One listing of a job's directory. Ids are sorted.

    Args:
        epochs: epochs with a record.
        restores: epochs with a restore record.
        checkpoints: checkpoints with a manifest.
        committed: checkpoints with a committed marker.
    """

    epochs: tuple[int, ...] = ()
    restores: tuple[int, ...] = ()
    checkpoints: tuple[int, ...] = ()
    committed: tuple[int, ...] = ()


class CheckpointCatalog:
    """The records of one job.

    Args:
        store: the job's own directory (``storage.open().scoped(job)``).
        sealer: opens and seals manifests and state.

    Every method may raise the errors of :class:`ObjectStore`.
    """

    def __init__(self, store: ObjectStore, sealer: Sealer) -> None:
        self.store = store
        self.sealer = sealer
        self._references: dict[int, tuple[int, frozenset[str]]] = {}

    # ---------------------------------------------------------------------------- records

    def write(self, record: Record) -> Written:
        """Create a record unless there is one in its place.

        Raises:
            StorageUnknownError: nobody knows; write the same record again to find out.
            TamperedObjectError, UnknownFormatError, KeyNotFoundError, WrongKeyError: there is
                one, and it cannot be read.
        """
        path = record_path(record)
        if isinstance(record, Manifest):
            data = encode_manifest(record, self.sealer)
        else:
            data = encode_record(record)
        if self.store.put_if_absent(path, data):
            return Written(True)
        return Written(False, self._read(path))

    def epoch(self, epoch: int) -> EpochRecord | None:
        """The record of an epoch, or None."""
        record = self._read_or_none(layout.epoch_path(epoch))
        return _expect(record, EpochRecord, layout.epoch_path(epoch))

    def restore(self, epoch: int) -> RestoreRecord | None:
        """The restore record of an epoch, or None."""
        record = self._read_or_none(layout.restore_path(epoch))
        return _expect(record, RestoreRecord, layout.restore_path(epoch))

    def committed(self, checkpoint_id: int) -> CommittedMarker | None:
        """The committed marker of a checkpoint, or None."""
        record = self._read_or_none(layout.committed_path(checkpoint_id))
        return _expect(record, CommittedMarker, layout.committed_path(checkpoint_id))

    def manifest(self, checkpoint_id: int) -> Manifest:
        """A checkpoint, authenticated.

        Raises:
            CheckpointNotFoundError: there is none of that id.
            TamperedObjectError, UnknownFormatError, KeyNotFoundError, WrongKeyError: it is there
                and cannot be read.
        """
        path = layout.manifest_path(checkpoint_id)
        record = _expect(self._read_or_none(path), Manifest, path)
        if record is None:
            have = ", ".join(map(str, self.inventory().checkpoints[-5:])) or "none"
            raise CheckpointNotFoundError(
                f"There is no checkpoint {checkpoint_id} in {self.store.describe()} (newest there: "
                f"{have}). Choose one of those, or correct the storage and the job's name."
            )
        return record

    def inventory(self) -> Inventory:
        """What is there, in two listings."""
        epochs = self.store.list(layout.EPOCHS)
        checkpoints = self.store.list(layout.CHECKPOINTS)
        return Inventory(
            epochs=_ids(map(layout.epoch_of, epochs)),
            restores=_ids(map(layout.restore_of, epochs)),
            checkpoints=_ids(map(layout.manifest_of, checkpoints)),
            committed=_ids(map(layout.committed_of, checkpoints)),
        )

    def summaries(self) -> list[CheckpointSummary]:
        """Every checkpoint, oldest first, read without keys."""
        inventory = self.inventory()
        found = [
            summary
            for checkpoint in inventory.checkpoints
            if (summary := self._summary(checkpoint)) is not None
        ]
        superseded = superseded_checkpoints(
            {s.checkpoint_id: s.epoch for s in found}, self._restores(inventory)
        )
        return [
            replace(
                summary,
                committed=summary.checkpoint_id in inventory.committed,
                superseded=summary.checkpoint_id in superseded,
            )
            for summary in found
        ]

    # ------------------------------------------------------------------------------ state

    def read_object(self, state: StateObject, manifest: Manifest) -> bytes:
        """The sealed bytes of a state object, inline or in storage; size and digest checked.

        Raises:
            StorageNotFoundError: the manifest refers to an object that is gone.
            TruncatedObjectError, TamperedObjectError: it is not the object the manifest means.
        """
        if state.inline is not None:
            return state.inline
        path = state.path or ""
        data = self.store.get(path)
        if state.digest and hashlib.sha256(data).hexdigest() != state.digest:
            if _is_cut(data):
                raise TruncatedObjectError(
                    f"State object {path} of checkpoint {manifest.checkpoint_id} has {len(data)} "
                    f"of {state.size} bytes. Restore it from a copy, or use another checkpoint."
                )
            raise TamperedObjectError(
                f"State object {path} is not the one that checkpoint {manifest.checkpoint_id} "
                "refers to: its SHA-256 differs. It was changed or replaced; restore it from a "
                "copy, or use another checkpoint."
            )
        return data

    def read_table(self, state: StateObject, manifest: Manifest) -> pa.Table:
        """The table of a state object, authenticated; raises as ``read_object`` and opening do."""
        data = self.read_object(state, manifest)
        return self.sealer.open_table(data, binding_of(state, manifest))

    # -------------------------------------------------------------------------- retention

    def plan_retention(self, *, retain_count: int, current_epoch: int) -> RetentionPlan:
        """List everything and plan what may go; deletes nothing."""
        inventory = self.inventory()
        if max(inventory.epochs, default=0) > current_epoch:
            return RetentionPlan()
        restores = list(self._restores(inventory))
        manifests: dict[int, frozenset[str] | None] = {}
        epochs: dict[int, int] = {}
        known, self._references = self._references, {}
        for checkpoint in inventory.checkpoints:
            try:
                # Manifests never change: each is read once.
                found = known.get(checkpoint) or self._refers_to(checkpoint)
            except CheckpointNotFoundError:
                continue  # dropped since it was listed
            except StorageError:
                raise
            except CheckpointError:
                manifests[checkpoint] = None
                continue
            self._references[checkpoint] = found
            epochs[checkpoint], manifests[checkpoint] = found
        superseded = superseded_checkpoints(epochs, restores)
        counted = [c for c in inventory.committed if c in manifests and c not in superseded]
        newest = max(counted, default=None)
        pinned = {
            restore.checkpoint_id
            for restore in restores
            if restore.epoch >= current_epoch and restore.checkpoint_id is not None
        }
        if newest is not None and epochs.get(newest) == current_epoch:
            pinned = set()
        return plan_retention(
            manifests,
            self.state_objects(),
            retain_count=retain_count,
            newest_committed=newest,
            current_epoch=current_epoch,
            superseded=superseded,
            pinned=pinned,
        )

    def _refers_to(self, checkpoint_id: int) -> tuple[int, frozenset[str]]:
        manifest = self.manifest(checkpoint_id)
        return manifest.epoch, manifest.paths

    def state_objects(self) -> dict[str, int]:
        """Every state object in storage, with its epoch."""
        found = ((path, layout.parse_state_path(path)) for path in self.store.list(layout.STATE))
        return {path: parts.epoch for path, parts in found if parts is not None}

    def drop(self, plan: RetentionPlan) -> None:
        """Delete what a plan lets go; may be repeated after a failure.

        Manifests go before what they refer to, so that no listing ever shows a checkpoint
        that cannot be restored.
        """
        for checkpoint in plan.checkpoints:
            self.store.delete(layout.manifest_path(checkpoint))
            self.store.delete(layout.committed_path(checkpoint))
        for path in plan.objects:
            self.store.delete(path)

    # ----------------------------------------------------------------------------- inside

    def _read(self, path: str) -> Record:
        data = self.store.get(path)
        if layout.manifest_of(path) is not None:
            return decode_manifest(data, self.sealer, path=path)
        return decode_record(data, path)

    def _read_or_none(self, path: str) -> Record | None:
        try:
            return self._read(path)
        except StorageNotFoundError:
            return None

    def _summary(self, checkpoint_id: int) -> CheckpointSummary | None:
        path = layout.manifest_path(checkpoint_id)
        try:
            try:
                return read_summary(self.store.get_start(path, HEADER_PROBE), path)
            except TruncatedObjectError:
                return read_summary(self.store.get(path), path)
        except StorageNotFoundError:
            return None  # dropped since it was listed

    def _restores(self, inventory: Inventory) -> Iterator[RestoreRecord]:
        for epoch in inventory.restores:
            record = self.restore(epoch)
            if record is not None:
                yield record


def _is_cut(data: bytes) -> bool:
    try:
        return read_header(data).total_size > len(data)
    except TruncatedObjectError:
        return True
    except CheckpointError:
        return False


def _ids(numbers: Iterator[int | None]) -> tuple[int, ...]:
    return tuple(sorted(number for number in numbers if number is not None))


def _expect(record: Record | None, kind: type[R], path: str) -> R | None:
    if record is None or isinstance(record, kind):
        return record
    raise TamperedObjectError(
        f"Record {path} is a {type(record).__name__} where a {kind.__name__} belongs. It was moved "
        "or replaced; restore it from a copy of the storage."
    )
