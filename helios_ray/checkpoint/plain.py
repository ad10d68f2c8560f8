"""The plain records as bytes, format version 1: JSON with ``format`` and ``record``.

Why it exists: epoch, restore and committed records hold no secret, and whoever looks after a
cluster should be able to read them with ``cat``. The manifest's own JSON parts are written and
read by the same two functions.

May import: records, errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from helios_ray.errors import TamperedObjectError, UnknownFormatError
from helios_ray.records import CommittedMarker, EpochRecord, RestoreRecord

FORMAT = 1


def encode_record(record: EpochRecord | RestoreRecord | CommittedMarker) -> bytes:
    """JSON, the same bytes for the same record.

    Example:
        >>> encode_record(CommittedMarker(checkpoint_id=42, epoch=7))
        b'{"checkpoint_id":42,"epoch":7,"format":1,"record":"committed"}'
    """
    if isinstance(record, EpochRecord):
        values: dict[str, Any] = {
            "record": "epoch",
            "epoch": record.epoch,
            "owner": record.owner,
            "headroom": record.headroom,
        }
    elif isinstance(record, RestoreRecord):
        values = {
            "record": "restore",
            "epoch": record.epoch,
            "owner": record.owner,
            "checkpoint_id": record.checkpoint_id,
            "first_checkpoint_id": record.first_checkpoint_id,
        }
    else:
        values = {
            "record": "committed",
            "checkpoint_id": record.checkpoint_id,
            "epoch": record.epoch,
        }
    return dump({"format": FORMAT, **values})


def decode_record(data: bytes, path: str = "") -> EpochRecord | RestoreRecord | CommittedMarker:
    """Read back what ``encode_record`` wrote.

    Args:
        data: the record.
        path: only for error messages.

    Raises:
        UnknownFormatError: written by a release with another format.
        TamperedObjectError: not such a record.
    """
    values = load(data, path)
    try:
        kind = values["record"]
        if kind == "epoch":
            return EpochRecord(
                epoch=int(values["epoch"]),
                owner=str(values["owner"]),
                headroom=int(values["headroom"]),
            )
        if kind == "restore":
            checkpoint = values["checkpoint_id"]
            return RestoreRecord(
                epoch=int(values["epoch"]),
                owner=str(values["owner"]),
                checkpoint_id=None if checkpoint is None else int(checkpoint),
                first_checkpoint_id=int(values["first_checkpoint_id"]),
            )
        if kind == "committed":
            return CommittedMarker(
                checkpoint_id=int(values["checkpoint_id"]), epoch=int(values["epoch"])
            )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"it lacks a field ({error!r})") from error
    raise damaged(path, f"it is a {kind!r} record")


def dump(values: Mapping[str, Any]) -> bytes:
    """JSON, the same bytes for the same values."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def load(data: bytes, path: str) -> dict[str, Any]:
    """A JSON object of this format; ``path`` is only for error messages."""
    try:
        values = json.loads(data)
    except ValueError as error:
        raise damaged(path, "it is not JSON") from error
    if not isinstance(values, dict):
        raise damaged(path, "it is not a JSON object")
    if values.get("format") != FORMAT:
        raise UnknownFormatError(
            f"Record {path or '(no path)'} has format {values.get('format')!r}; this release reads "
            f"format {FORMAT}. Use the helios_ray release that wrote it, or a newer one."
        )
    return values


def damaged(path: str, why: str) -> TamperedObjectError:
    """The error to raise for a record that cannot be read."""
    return TamperedObjectError(
        f"Record {path or '(no path)'} cannot be read: {why}. It was changed after it was written. "
        "Restore it from a copy of the storage; nothing was deleted or resumed."
    )
