"""Names of objects in storage, one directory a job.

Why it exists: the layout is a format like any other: written once here, and read back here.

    epochs/00000007                                    epoch_path
    epochs/00000007.restore                            restore_path
    state/00000007/<operator>/<subtask>/<object>       state_path
    checkpoints/0000000042/manifest                    manifest_path
    checkpoints/0000000042/committed                   committed_path

Numbers are padded so that listings sort; a number that outgrows its padding still parses.

May import: nothing of this package.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

EPOCHS = "epochs/"
CHECKPOINTS = "checkpoints/"
STATE = "state/"

_EPOCH = re.compile(r"^epochs/(\d{8,})$")
_RESTORE = re.compile(r"^epochs/(\d{8,})\.restore$")
_MANIFEST = re.compile(r"^checkpoints/(\d{10,})/manifest$")
_COMMITTED = re.compile(r"^checkpoints/(\d{10,})/committed$")
_STATE = re.compile(r"^state/(\d{8,})/([^/]+)/(\d+)/([^/]+)$")
_OBJECT = re.compile(r"^(\d{10,})-(.+)$")


class StatePath(NamedTuple):
    """The parts of a state object's path."""

    epoch: int
    operator: str
    subtask: int
    object: str


def epoch_path(epoch: int) -> str:
    """
    Example:
        >>> epoch_path(7)
        'epochs/00000007'
    """
    return f"{EPOCHS}{epoch:08d}"


def restore_path(epoch: int) -> str:
    """
    Example:
        >>> restore_path(7)
        'epochs/00000007.restore'
    """
    return f"{EPOCHS}{epoch:08d}.restore"


def manifest_path(checkpoint_id: int) -> str:
    """
    Example:
        >>> manifest_path(42)
        'checkpoints/0000000042/manifest'
    """
    return f"{CHECKPOINTS}{checkpoint_id:010d}/manifest"


def committed_path(checkpoint_id: int) -> str:
    """
    Example:
        >>> committed_path(42)
        'checkpoints/0000000042/committed'
    """
    return f"{CHECKPOINTS}{checkpoint_id:010d}/committed"


def object_name(checkpoint_id: int, name: str) -> str:
    """Name of a state object: the checkpoint it was first written for, and its table.

    The checkpoint is part of the name because later checkpoints refer to the same object,
    and what it is bound to must be known to open it.

    Example:
        >>> object_name(42, "timers/event")
        '0000000042-timers%2Fevent'
    """
    return f"{checkpoint_id:010d}-{quote(name, safe='')}"


def parse_object_name(text: str) -> tuple[int, str] | None:
    """Read back what :func:`object_name` wrote; None for any other name."""
    match = _OBJECT.match(text)
    return (int(match[1]), unquote(match[2])) if match else None


def state_path(epoch: int, operator: str, subtask: int, object: str) -> str:
    """
    Example:
        >>> state_path(7, "hot", 1, object_name(42, "runs"))
        'state/00000007/hot/1/0000000042-runs'
    """
    return f"{STATE}{epoch:08d}/{operator}/{subtask}/{object}"


def parse_state_path(path: str) -> StatePath | None:
    """Read back what :func:`state_path` wrote; None for any other path."""
    match = _STATE.match(path)
    return StatePath(int(match[1]), match[2], int(match[3]), match[4]) if match else None


def epoch_of(path: str) -> int | None:
    """The epoch of an ``epochs/`` record, restore records excluded; None for other paths."""
    return _number(_EPOCH, path)


def restore_of(path: str) -> int | None:
    """The epoch of a restore record; None for other paths."""
    return _number(_RESTORE, path)


def manifest_of(path: str) -> int | None:
    """The id of a manifest's checkpoint; None for other paths."""
    return _number(_MANIFEST, path)


def committed_of(path: str) -> int | None:
    """The id of a committed marker's checkpoint; None for other paths."""
    return _number(_COMMITTED, path)


def _number(pattern: re.Pattern[str], path: str) -> int | None:
    match = pattern.match(path)
    return int(match[1]) if match else None
