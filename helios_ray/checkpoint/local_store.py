"""Checkpoints in a directory: of one machine, or shared by all (NFS and the like).

Why it exists: no server needed, and the same promises as S3. An object appears whole, is
never replaced by ``put_if_absent``, and is on disk (file and directory synced) when a call
returns.

How: the bytes go to a temporary file beside their place, are synced, and are then linked
(which fails if the name is taken) or renamed (which replaces). Where a file system has no hard
links, an advisory lock on the directory stands in for the link.

May import: storage, errors.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from helios_ray.checkpoint.storage import Names, ObjectStore, checked
from helios_ray.errors import StorageError, StorageNotFoundError, StorageUnknownError

_TEMPORARY = ".tmp-"
_LOCK = ".lock"
_ABANDONED_AFTER = 24 * 3600.0
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
_NO_ANSWER = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.ENXIO)


class LocalStore(ObjectStore):
    """See the module; opened by ``CheckpointStorage.local(path).open()``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def describe(self) -> str:
        return f"directory {self._root}"

    def scoped(self, prefix: str) -> ObjectStore:
        return LocalStore(self._root / checked(prefix.strip("/")))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        with self._translated("write", name):
            created = False
            if not path.exists():
                with self._temporary(path, data) as temporary:
                    created = _publish(temporary, path)
            # Also where somebody else created it: the caller will rely on its being there.
            _sync_directory(path.parent)
        return created

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with self._translated("write", name), self._temporary(path, data) as temporary:
            os.replace(temporary, path)
            _sync_directory(path.parent)

    def get(self, name: str) -> bytes:
        with self._translated("read", name):
            return self._path(name).read_bytes()

    def get_start(self, name: str, length: int) -> bytes:
        with self._translated("read", name), open(self._path(name), "rb") as file:
            return file.read(length)

    def exists(self, name: str) -> bool:
        with self._translated("look up", name):
            return self._path(name).is_file()

    def size(self, name: str) -> int:
        with self._translated("look up", name):
            return self._path(name).stat().st_size

    def list(self, prefix: str = "") -> Names:
        checked(prefix + "x")
        directory = self._root.joinpath(*prefix.split("/")[:-1])
        names = []
        with self._translated("list", prefix):
            for folder, _, files in os.walk(directory, onerror=_raise_unless_missing):
                relative = os.path.relpath(folder, self._root).replace(os.sep, "/")
                base = "" if relative == "." else relative + "/"
                names += [
                    base + f for f in files if not _is_own(f) and (base + f).startswith(prefix)
                ]
        return sorted(names)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with self._translated("delete", name):
            path.unlink(missing_ok=True)
            # Directories are of no meaning here; empty ones go, a racing writer makes its own.
            for parent in path.parents:
                if parent == self._root:
                    break
                try:
                    parent.rmdir()
                except OSError:
                    break

    def check(self) -> None:
        with self._translated("make", ""):
            self._root.mkdir(parents=True, exist_ok=True)
        super().check()
        self._sweep_temporaries()

    def _sweep_temporaries(self) -> None:
        """Remove what crashed writers left; a day is longer than any write takes."""
        before = time.time() - _ABANDONED_AFTER
        for folder, _, files in os.walk(self._root):
            for file in files:
                path = Path(folder, file)
                if file.startswith(_TEMPORARY):
                    with contextlib.suppress(OSError):
                        if path.stat().st_mtime < before:
                            path.unlink()

    def _path(self, name: str) -> Path:
        return self._root / checked(name)

    @contextlib.contextmanager
    def _temporary(self, path: Path, data: bytes) -> Iterator[Path]:
        temporary = path.parent / f"{_TEMPORARY}{os.getpid()}-{os.urandom(8).hex()}"
        fd = _create(temporary)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _translated(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translate(error, action, name) from error

    def _translate(self, error: OSError, action: str, name: str) -> StorageError:
        path = self._root / name
        what = f"Cannot {action} {path}: {error.strerror or error}."
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and action in ("read", "look up"):
            return StorageNotFoundError(
                f"{what} There is no such object; check the storage path and the job's name, and "
                "that every node sees the same directory."
            )
        if error.errno in _NO_ANSWER:
            return StorageUnknownError(
                f"{what} The disk or the network file system did not answer, so it may have "
                "happened or not. Check the mount and the disk's health; the job can be resumed."
            )
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageError(
                f"{what} Free some space, raise the quota, or lower CheckpointConfig.retain_count; "
                "the job can be resumed."
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return StorageError(
                f"{what} Let the user that runs the job write to {self._root}, or choose another "
                "directory in CheckpointStorage.local(path)."
            )
        return StorageError(
            f"{what} Checkpoints need a directory that can be written to; check "
            "CheckpointStorage.local(path)."
        )


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for _ in range(16):
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            # Again in a loop: a deletion may remove the empty directory just made.
            _make_directory(path.parent)
    return os.open(path, flags, 0o600)


def _make_directory(path: Path) -> None:
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            directory.mkdir()
            _sync_directory(directory.parent)


def _publish(temporary: Path, path: Path) -> bool:
    """Give a complete file its name, unless the name is taken."""
    try:
        os.link(temporary, path)
    except OSError as error:
        # On a network file system the answer may get lost and the retry find our own link.
        if os.stat(temporary).st_nlink == 2:
            return True
        if error.errno == errno.EEXIST:
            return False
        if error.errno not in _NO_LINKS:
            raise
        return _publish_locked(temporary, path)
    return True


def _publish_locked(temporary: Path, path: Path) -> bool:
    fd = os.open(path.parent / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if path.exists():
            return False
        os.rename(temporary, path)
        return True
    finally:
        os.close(fd)  # releases the lock


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a directory and need not.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def _is_own(file: str) -> bool:
    return file.startswith(_TEMPORARY) or file == _LOCK


def _raise_unless_missing(error: OSError) -> None:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        raise error
