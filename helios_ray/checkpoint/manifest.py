"""The durable records as bytes, format version 1.

Why it exists: what one release wrote another must read, or say clearly that it cannot.

Epoch, restore and committed records are plain (:mod:`helios_ray.checkpoint.plain`). A manifest is a
sealed object, because committables and inline state are secret and must not be changed. Its
public part, authenticated and readable without keys, is JSON with what a listing shows; its
payload is::

    JSON length u32 | JSON | inline objects, one after another

with each inline object in the JSON as ``[start, length]``: they are ciphertext already,
and base64 would make a third more of them.

May import: layout, plain, sealed, snapshots, records, identifiers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from helios_ray.checkpoint.layout import (
    committed_path,
    epoch_path,
    manifest_path,
    object_name,
    parse_object_name,
    parse_state_path,
    restore_path,
    state_path,
)
from helios_ray.checkpoint.plain import FORMAT, damaged, decode_record, dump, encode_record, load
from helios_ray.checkpoint.sealed import Binding, read_header
from helios_ray.checkpoint.snapshots import Sealer
from helios_ray.identifiers import TaskId
from helios_ray.records import (
    EpochRecord,
    Manifest,
    PreparedTransaction,
    Record,
    RestoreRecord,
    StateObject,
    TaskSnapshot,
)

__all__ = [
    "FORMAT",
    "CheckpointSummary",
    "binding_of",
    "committed_path",
    "decode_manifest",
    "decode_record",
    "encode_manifest",
    "encode_record",
    "epoch_path",
    "manifest_binding",
    "manifest_path",
    "object_name",
    "read_summary",
    "record_path",
    "restore_path",
    "state_path",
]

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSummary:
    """What a listing shows of a checkpoint; read without keys, and so not authenticated.

    Args:
        created_at: seconds since the Unix epoch.
        duration: seconds from trigger to the last acknowledgement.
        state_size: bytes of sealed state.
        raw_size: bytes of that state before compression and encryption.
        key_id: the key that wrapped the manifest's data key, or ``""``.
        committed: every sink has committed it.
        superseded: a later epoch resumed from before it, so it does not count.
    """

    job: str
    checkpoint_id: int
    epoch: int
    owner: str
    created_at: float
    duration: float
    state_size: int
    raw_size: int
    tasks: int
    final: bool
    encrypted: bool
    key_id: str
    committed: bool = False
    superseded: bool = False

    @property
    def created(self) -> datetime:
        """``created_at`` as a time in UTC."""
        return datetime.fromtimestamp(self.created_at, timezone.utc)


def record_path(record: Record) -> str:
    """Where a record belongs."""
    if isinstance(record, EpochRecord):
        return epoch_path(record.epoch)
    if isinstance(record, RestoreRecord):
        return restore_path(record.epoch)
    if isinstance(record, Manifest):
        return manifest_path(record.checkpoint_id)
    return committed_path(record.checkpoint_id)


# ---------------------------------------------------------------------------- the manifest


def manifest_binding(job: str, epoch: int, checkpoint_id: int) -> Binding:
    """Where a manifest belongs."""
    return Binding(job=job, epoch=epoch, checkpoint_id=checkpoint_id, name="manifest")


def binding_of(state: StateObject, manifest: Manifest) -> Binding:
    """Where a state object of ``manifest`` belongs.

    An object in storage may be older than the manifest that refers to it: its path says which
    epoch and checkpoint it was sealed for. An inline object is as old as the manifest.

    Raises:
        TamperedObjectError: the path is not one this package writes, or not this object's.
    """
    epoch, checkpoint_id = manifest.epoch, manifest.checkpoint_id
    if state.path is not None:
        parts = parse_state_path(state.path)
        named = parse_object_name(parts.object) if parts is not None else None
        if parts is None or named is None:
            raise damaged(state.path, "its path is not that of a state object")
        epoch, checkpoint_id = parts.epoch, named[0]
    return Binding(
        job=manifest.job,
        epoch=epoch,
        checkpoint_id=checkpoint_id,
        operator=state.operator,
        subtask=state.subtask,
        name=state.name,
    )


def encode_manifest(manifest: Manifest, sealer: Sealer) -> bytes:
    """Seal a manifest; asks the key provider to rotate first, if that is due."""
    sealer.rotate_if_due()
    binding = manifest_binding(manifest.job, manifest.epoch, manifest.checkpoint_id)
    return sealer.seal_bytes(encode_payload(manifest), binding, public=_public(manifest)).data


def decode_manifest(data: bytes, sealer: Sealer, *, path: str = "") -> Manifest:
    """Authenticate and read a manifest.

    Raises:
        UnknownFormatError: written by a release with another format.
        TamperedObjectError: it was changed, or is not the manifest its path says.
        KeyNotFoundError: the key it names is missing.
        WrongKeyError: a key of that id is there and is another one.
    """
    summary = read_summary(data, path)
    if path and path != manifest_path(summary.checkpoint_id):
        raise damaged(path, f"it is the manifest of checkpoint {summary.checkpoint_id}")
    binding = manifest_binding(summary.job, summary.epoch, summary.checkpoint_id)
    return decode_payload(sealer.open_bytes(data, binding).to_pybytes(), path)


def read_summary(data: bytes, path: str = "") -> CheckpointSummary:
    """Read the public part of a manifest; its front is enough. Nothing is authenticated.

    Raises:
        TruncatedObjectError: ``data`` ends within the header.
        UnknownFormatError: not a manifest, or of another format.
    """
    header = read_header(data)
    values = load(header.public, path)
    try:
        if values["record"] != "manifest":
            raise damaged(path, f"it is a {values['record']!r} record")
        return CheckpointSummary(
            job=str(values["job"]),
            checkpoint_id=int(values["checkpoint_id"]),
            epoch=int(values["epoch"]),
            owner=str(values["owner"]),
            created_at=float(values["created_at"]),
            duration=float(values["duration"]),
            state_size=int(values["state_size"]),
            raw_size=int(values["raw_size"]),
            tasks=int(values["tasks"]),
            final=bool(values["final"]),
            encrypted=header.encrypted,
            key_id=header.key_id,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"it lacks a field ({error!r})") from error


def _public(manifest: Manifest) -> bytes:
    return dump(
        {
            "format": FORMAT,
            "record": "manifest",
            "job": manifest.job,
            "checkpoint_id": manifest.checkpoint_id,
            "epoch": manifest.epoch,
            "owner": manifest.owner,
            "created_at": manifest.created_at,
            "duration": manifest.duration,
            "state_size": manifest.state_size,
            "raw_size": sum(o.raw_size for t in manifest.tasks for o in t.objects),
            "tasks": len(manifest.tasks),
            "final": manifest.final,
        }
    )


def encode_payload(manifest: Manifest) -> bytes:
    """The secret part of a manifest, before it is sealed."""
    inline: list[bytes] = []
    position = 0

    def place(state: StateObject) -> list[int] | None:
        nonlocal position
        if state.inline is None:
            return None
        inline.append(state.inline)
        start, position = position, position + len(state.inline)
        return [start, len(state.inline)]

    document = {
        "format": FORMAT,
        "job": manifest.job,
        "epoch": manifest.epoch,
        "owner": manifest.owner,
        "checkpoint_id": manifest.checkpoint_id,
        "created_at": manifest.created_at,
        "duration": manifest.duration,
        "max_parallelism": manifest.max_parallelism,
        "parallelism": dict(manifest.parallelism),
        "final": manifest.final,
        "tasks": [
            {
                "operator": task.task.operator,
                "subtask": task.task.subtask,
                "finished": task.finished,
                "objects": [_object_values(o, place(o)) for o in task.objects],
                "prepared": [
                    {
                        "transaction": p.transaction,
                        "sink": p.sink,
                        "checkpoint_id": p.checkpoint_id,
                        "payload": p.payload,
                    }
                    for p in task.prepared
                ],
            }
            for task in manifest.tasks
        ],
    }
    text = dump(document)
    return b"".join((_LENGTH.pack(len(text)), text, *inline))


def decode_payload(payload: bytes, path: str = "") -> Manifest:
    """Read back what ``encode_payload`` wrote."""
    if len(payload) < _LENGTH.size:
        raise damaged(path, "it is empty")
    (length,) = _LENGTH.unpack_from(payload)
    start = _LENGTH.size + length
    values = load(payload[_LENGTH.size : start], path)
    inline = memoryview(payload)[start:]
    try:
        return Manifest(
            job=str(values["job"]),
            epoch=int(values["epoch"]),
            owner=str(values["owner"]),
            checkpoint_id=int(values["checkpoint_id"]),
            created_at=float(values["created_at"]),
            duration=float(values["duration"]),
            max_parallelism=int(values["max_parallelism"]),
            parallelism={str(uid): int(n) for uid, n in values["parallelism"].items()},
            final=bool(values["final"]),
            tasks=tuple(
                TaskSnapshot(
                    task=TaskId(str(task["operator"]), int(task["subtask"])),
                    finished=bool(task["finished"]),
                    objects=tuple(_object_from(o, inline, path) for o in task["objects"]),
                    prepared=tuple(
                        PreparedTransaction(
                            transaction=str(p["transaction"]),
                            sink=str(p["sink"]),
                            checkpoint_id=int(p["checkpoint_id"]),
                            payload=p["payload"],
                        )
                        for p in task["prepared"]
                    ),
                )
                for task in values["tasks"]
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"it lacks a field ({error!r})") from error


def _object_values(state: StateObject, inline: list[int] | None) -> dict[str, Any]:
    return {
        "operator": state.operator,
        "subtask": state.subtask,
        "name": state.name,
        "kind": state.kind,
        "path": state.path,
        "inline": inline,
        "size": state.size,
        "raw_size": state.raw_size,
        "rows": state.rows,
        "key_id": state.key_id,
        "digest": state.digest,
    }


def _object_from(values: Mapping[str, Any], inline: memoryview, path: str) -> StateObject:
    data = None
    if values["inline"] is not None:
        start, length = values["inline"]
        data = bytes(inline[start : start + length])
        if len(data) != length:
            raise damaged(path, "an inline object runs past its end")
    return StateObject(
        operator=str(values["operator"]),
        subtask=int(values["subtask"]),
        name=str(values["name"]),
        kind=str(values["kind"]),
        path=values["path"],
        inline=data,
        size=int(values["size"]),
        raw_size=int(values["raw_size"]),
        rows=int(values["rows"]),
        key_id=str(values["key_id"]),
        digest=str(values["digest"]),
    )
