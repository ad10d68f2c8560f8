"""The key file: a ring of keys that only its owner can read.

Why it exists: a job must be encrypted without any set-up, so the first one that needs a key
makes the file. Many processes may be first at once, and rotation happens while others read.

Promises: created with mode 0600, whole or not at all, once; never read while others could
read it too; keys are only ever added. An advisory lock on ``<path>.lock`` orders writers; readers
need none, because the file is replaced by rename.

May import: keys, errors.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from helios_ray.checkpoint.keys import (
    KEY_BYTES,
    KeyProvider,
    LocalKeyProvider,
    check_key,
    decode_key,
)
from helios_ray.errors import ConfigError, KeyNotFoundError, UnknownFormatError

FORMAT = 1
ENVIRONMENT_VARIABLE = "HELIOS_KEY_FILE"


def default_key_file() -> Path:
    """Where keys live when nothing says otherwise: ``$HELIOS_KEY_FILE`` or
    ``~/.helios/keys.json``. Not beside the checkpoints: who copies those must not get the
    keys as well.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(named) if named else Path.home() / ".helios" / "keys.json"


@dataclass(frozen=True, slots=True)
class _Entry:
    key_id: str
    created_at: datetime
    key: bytes = field(repr=False)


class FileKeyProvider(LocalKeyProvider):
    """Keys in a JSON file of mode 0600, made on first use.

    Every node of a cluster must see the same file: put it on a shared disk, copy it to
    each node, or use :class:`EnvironmentKeyProvider`. A copied file is rotated by hand, on
    all nodes; a shared one rotates by itself.

    Args:
        path: the file; relative paths are resolved here and now, because other processes
            have other working directories.
        create: make the file if there is none. ``prepare`` returns a provider that does not.

    Raises:
        ConfigError: (on use) others may read the file, or it is not a key file.
        KeyNotFoundError: (on use) there is no file and ``create`` is False.

    Example:
        >>> import tempfile
        >>> from datetime import datetime, timezone
        >>> path = tempfile.mkdtemp() + "/keys.json"
        >>> key_id = FileKeyProvider(path).current_key_id(datetime.now(timezone.utc))
        >>> FileKeyProvider(path).key_ids() == (key_id,)
        True
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, create: bool = True) -> None:
        self.path = Path(path if path is not None else default_key_file()).expanduser().absolute()
        self.create = create
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._cached: tuple[tuple[int, ...], tuple[_Entry, ...]] | None = None

    # ------------------------------------------------------------------- the provider

    def current_key_id(self, now: datetime) -> str:
        return self._current(self._ring(now), now).key_id

    def key_ids(self) -> tuple[str, ...]:
        return tuple(entry.key_id for entry in self._ring(None))

    def rotate_if_due(self, now: datetime, max_age: timedelta) -> str:
        current = self._current(self._ring(now), now)
        if now - current.created_at < max_age:
            return current.key_id
        with self._exclusively():
            # Another process may have rotated between the look and the lock.
            ring = self._read()
            current = self._current(ring, now)
            if now - current.created_at >= max_age:
                current = _new_entry(now)
                self._write((*ring, current))
        return current.key_id

    def prepare(self, now: datetime) -> KeyProvider:
        self.current_key_id(now)
        return FileKeyProvider(self.path, create=False)

    def _key(self, key_id: str) -> bytes | None:
        return next((e.key for e in self._ring(None) if e.key_id == key_id), None)

    def _where(self) -> str:
        return f"the key file {self.path}"

    @staticmethod
    def _current(ring: tuple[_Entry, ...], now: datetime) -> _Entry:
        # A key "of the future" was made by a process whose clock is ahead: not current yet,
        # unless there is no other.
        return next((e for e in reversed(ring) if e.created_at <= now), ring[0])

    # ----------------------------------------------------------------------- the file

    def _ring(self, now: datetime | None) -> tuple[_Entry, ...]:
        """The keys; with ``now``, the file is made if need be (reading alone makes nothing)."""
        with self._lock:
            try:
                signature = _signature(os.stat(self.path))
            except FileNotFoundError:
                if now is None or not self.create:
                    raise self._missing() from None
                self._make(now)
                signature = _signature(os.stat(self.path))
            if self._cached is None or self._cached[0] != signature:
                self._cached = (signature, self._read())
            return self._cached[1]

    def _make(self, now: datetime) -> None:
        with self._exclusively():
            if not self.path.exists():
                self._write((_new_entry(now),))

    def _read(self) -> tuple[_Entry, ...]:
        try:
            with open(self.path, "rb") as file:
                self._refuse_if_exposed(os.fstat(file.fileno()))
                text = file.read()
        except FileNotFoundError:
            raise self._missing() from None
        except PermissionError as error:
            raise ConfigError(
                f"The key file {self.path} cannot be read by this user ({error.strerror}). Run "
                "the job as the file's owner, or name another file in FileKeyProvider(path)."
            ) from error
        return self._parse(text)

    def _parse(self, text: bytes) -> tuple[_Entry, ...]:
        try:
            document: dict[str, Any] = json.loads(text)
            version = document["format"]
            if version != FORMAT:
                raise UnknownFormatError(
                    f"The key file {self.path} has format {version!r}; this release reads format "
                    f"{FORMAT}. Upgrade helios_ray."
                )
            ring = tuple(
                _Entry(
                    str(item["id"]),
                    datetime.fromisoformat(item["created_at"]),
                    decode_key(str(item["key"]), f"key {item['id']!r} of {self.path}"),
                )
                for item in document["keys"]
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            # The cause is not chained: a parser's message could quote key material.
            raise ConfigError(
                f"{self.path} is not a helios_ray key file (expected JSON with 'format' and "
                "'keys'; its content is not shown). Restore it from a copy. Only if no "
                "checkpoint needs its keys any more, delete it: a new one is made on first use."
            ) from None
        for entry in ring:
            check_key(entry.key_id, entry.key, str(self.path))
        if not ring:
            raise KeyNotFoundError(
                f"The key file {self.path} holds no key. Restore it from a copy."
            )
        return tuple(sorted(ring, key=lambda entry: entry.created_at))

    def _write(self, ring: tuple[_Entry, ...]) -> None:
        document = {
            "format": FORMAT,
            "keys": [
                {
                    "id": entry.key_id,
                    "created_at": entry.created_at.isoformat(),
                    "key": base64.b64encode(entry.key).decode("ascii"),
                }
                for entry in ring
            ],
        }
        data = json.dumps(document, indent=2).encode()
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(
                self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600
            )
        except OSError as error:
            raise ConfigError(
                f"The key file {self.path} cannot be written ({error.strerror}). Make its "
                f"directory writable, set {ENVIRONMENT_VARIABLE}, or name another file in "
                "EncryptionConfig(key_provider=FileKeyProvider(path))."
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)  # releases the lock

    def _refuse_if_exposed(self, status: os.stat_result) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise ConfigError(
                f"The key file {self.path} has mode {mode:04o}: others than its owner may use it. "
                f"It must be 0600. Run `chmod 600 {self.path}`, and if others may have read "
                "it, rotate the keys."
            )

    def _missing(self) -> KeyNotFoundError:
        return KeyNotFoundError(
            f"There is no key file {self.path} on this machine, and making a new one would not "
            "help to read what another key wrote. Copy the file that the job was started with "
            "to every node (mode 0600), put it on a shared disk, or use EnvironmentKeyProvider."
        )

    # ------------------------------------------------- the specification, not the keys

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (str(self.path), self.create)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileKeyProvider) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"FileKeyProvider({str(self.path)!r})"


def _rebuild(path: str, create: bool) -> FileKeyProvider:
    return FileKeyProvider(path, create=create)


def _new_entry(now: datetime) -> _Entry:
    key_id = f"key-{now:%Y%m%d}-{os.urandom(4).hex()}"
    return _Entry(key_id, now, os.urandom(KEY_BYTES))


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode)
