"""Where checkpoints go: descriptions that travel, and stores that do the work.

Why it exists: a :class:`CheckpointStorage` is what a user writes down and what is pickled to
every process; ``open()`` turns it into an :class:`ObjectStore` there. The protocol rests on one
operation, ``put_if_absent``, so a store that cannot do it atomically says so.

Every failure is one of four answers:

    StorageUnreachableError   nothing answered: nothing happened
    StorageNotFoundError      no such bucket, directory or object
    StorageUnknownError       no answer came: it may have happened (neither delete nor assume)
    StorageError              refused: credentials, permissions, a full disk

May import: errors; the backends, when one is opened.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from helios_ray.errors import ConfigError, StorageError

PROBE_PREFIX = ".check/"
"""Objects that ``check()`` writes and removes again; ``list("")`` may show them meanwhile."""

_SECRET_WORD = re.compile(r"key|secret|token|password|credential|sas|account", re.IGNORECASE)
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._\-]{1,254}$")


Names: TypeAlias = list[str]


class ObjectStore(ABC):
    """Named, immutable blobs. Every method may be called from several threads at once.

    Names are relative, ``/``-separated, without ``.`` or ``..`` parts; no name is
    another one's directory. Unless it says
    otherwise, every method raises StorageUnreachableError, StorageUnknownError or
    StorageError as the module tells, after a few retries where retrying is safe.
    """

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create an object unless there is one of that name; atomic and durable.

        Returns:
            True if it was created, False if it exists already with other content. After an
            answer got lost, the object is read back: if it holds exactly ``data`` the
            lost attempt created it, and this is True. Writers who must know which of
            them won put a random token into ``data``.
        """

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Create or replace an object; readers see the old or the new one, whole."""

    @abstractmethod
    def get(self, name: str) -> bytes:
        """Read an object.

        Raises:
            StorageNotFoundError: there is none of that name.
        """

    def get_start(self, name: str, length: int) -> bytes:
        """Read at most ``length`` bytes from the front of an object."""
        return self.get(name)[:length]

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of an object.

        Raises:
            StorageNotFoundError: there is none of that name.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Names:
        """Names of every object that starts with ``prefix``, sorted, however deep."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object; that it is not there is not an error."""

    @abstractmethod
    def scoped(self, prefix: str) -> ObjectStore:
        """The same storage, seen from the directory ``prefix``."""

    @abstractmethod
    def describe(self) -> str:
        """Where this is, for people; no secrets."""

    def check(self) -> None:
        """Find out whether storage can hold a job: reachable, writable, readable, and able to
        create-if-absent. Called before a job starts.

        Raises:
            StorageNotFoundError: the bucket does not exist.
            StorageUnreachableError: nothing answers at that address.
            StorageError: it may not be written to, or it ignores create-if-absent.
        """
        token = os.urandom(8).hex()
        name = f"{PROBE_PREFIX}{token}"
        first, second = b"first " + token.encode(), b"second " + token.encode()
        try:
            created = self.put_if_absent(name, first)
            replaced = self.put_if_absent(name, second)
            if not created or replaced or self.get(name) != first:
                raise StorageError(
                    f"{self.describe()} does not honour create-if-absent (on S3: "
                    "'If-None-Match: *'): two coordinators could not be kept apart, so "
                    "exactly-once would not hold. Use AWS S3, Ceph RGW, MinIO or a local directory."
                )
        finally:
            self.delete(name)


def checked(name: str) -> str:
    """Return ``name`` if it stays inside the store.

    Raises:
        StorageError: it is empty, absolute, or has ``.``, ``..`` or empty parts.
    """
    if (
        not name
        or "\\" in name
        or "\0" in name
        or any(p in ("", ".", "..") for p in name.split("/"))
    ):
        raise StorageError(
            f"An object's name must be relative, '/'-separated, without '.' or '..' parts, got "
            f"{name!r}."
        )
    return name


def joined(*parts: str) -> str:
    """Join prefixes and names with single slashes, skipping what is empty."""
    return "/".join(part.strip("/") for part in parts if part.strip("/"))


class CheckpointStorage(ABC):
    """Describes a storage; small, frozen, pickled to every process. ``open()`` it to use it.

    Example:
        >>> storage = CheckpointStorage.S3(bucket="checkpoints", prefix="streaming/prod/",
        ...                                region="us-east-1", key="AKIA", secret="hush")
        >>> "hush" in repr(storage)
        False
    """

    @abstractmethod
    def open(self) -> ObjectStore:
        """A store for this process. Connects on first use."""

    @abstractmethod
    def describe(self) -> str:
        """Where this is, for people; no secrets."""

    @staticmethod
    def local(path: str | os.PathLike[str]) -> CheckpointStorage:
        """A directory: of one machine, or of a file system that all nodes share.

        Args:
            path: made on first use. A relative path is resolved here and now, because
                other processes have other working directories.
        """
        text = os.fspath(path)
        if not text:
            raise ConfigError(
                "CheckpointStorage.local(path) must name a directory, got ''. Use for example "
                "CheckpointStorage.local('checkpoints')."
            )
        return LocalStorage(path=str(Path(text).expanduser().absolute()))

    @staticmethod
    def S3(
        *,
        bucket: str,
        prefix: str = "",
        region: str | None = None,
        endpoint_url: str | None = None,
        key: str | None = None,
        secret: str | None = None,
        token: str | None = None,
        connect_timeout: timedelta = timedelta(seconds=5),
        read_timeout: timedelta = timedelta(seconds=30),
    ) -> CheckpointStorage:
        """A bucket on S3, or on a server that speaks its protocol (MinIO, Ceph RGW, …).

        Args:
            bucket: must exist.
            prefix: directory within it.
            region: of the bucket.
            endpoint_url: of another server than AWS; addressed path-style.
            key: access key id; None is the usual chain (environment, profile, instance role).
            secret: secret access key.
            token: session token.
            connect_timeout: until a connection stands.
            read_timeout: between two signs of life from the server.

        Raises:
            ConfigError: the bucket's name or another value is malformed.
        """
        return S3Storage(
            bucket=bucket,
            prefix=joined(prefix),
            region=region,
            endpoint_url=endpoint_url,
            key=key,
            secret=secret,
            token=token,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )

    @staticmethod
    def fsspec(url: str, **options: Any) -> CheckpointStorage:
        """Whatever fsspec can open: ``s3://``, ``gs://``, ``abfs://``, ``memory://``, …

        Args:
            url: protocol, place and directory.
            options: passed to the file system; what looks like a secret is masked in ``repr``.

        Raises:
            ConfigError: no protocol in ``url``.
        """
        if "://" not in url:
            raise ConfigError(
                f"CheckpointStorage.fsspec(url) must have a protocol, got {mask_url(url)!r}. Use "
                "for example 'gs://bucket/prefix'; CheckpointStorage.local(path) for a directory."
            )
        protocol, _, rest = url.partition("://")
        if protocol in ("file", "local") and not options:
            return CheckpointStorage.local(rest)
        return FsspecStorage(url=url, options=options)

    @staticmethod
    def of(place: str | os.PathLike[str] | CheckpointStorage) -> CheckpointStorage:
        """A path, a URL or a description, as a description."""
        if isinstance(place, CheckpointStorage):
            return place
        text = os.fspath(place)
        if text.startswith("s3://"):
            bucket, _, prefix = text.removeprefix("s3://").partition("/")
            return CheckpointStorage.S3(bucket=bucket, prefix=prefix)
        return CheckpointStorage.fsspec(text) if "://" in text else CheckpointStorage.local(text)


@dataclass(frozen=True, kw_only=True)
class LocalStorage(CheckpointStorage):
    """See :meth:`CheckpointStorage.local`."""

    path: str

    def open(self) -> ObjectStore:
        from helios_ray.checkpoint.local_store import LocalStore

        return LocalStore(Path(self.path))

    def describe(self) -> str:
        return f"directory {self.path}"


@dataclass(frozen=True, kw_only=True)
class S3Storage(CheckpointStorage):
    """See :meth:`CheckpointStorage.S3`."""

    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint_url: str | None = None
    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    connect_timeout: timedelta = timedelta(seconds=5)
    read_timeout: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        if not _BUCKET.match(str(self.bucket)):
            raise ConfigError(
                "CheckpointStorage.S3.bucket must be a bucket's name (2-255 letters, digits, '.', "
                f"'_' or '-'), got {self.bucket!r}. Leave out 's3://', and give the directory as "
                "prefix=."
            )
        if self.endpoint_url is not None and "://" not in self.endpoint_url:
            raise ConfigError(
                "CheckpointStorage.S3.endpoint_url must be a URL, got "
                f"{mask_url(self.endpoint_url)!r}. Put 'http://' or 'https://' in front."
            )
        if (self.key is None) != (self.secret is None):
            missing = "secret" if self.secret is None else "key"
            raise ConfigError(
                f"CheckpointStorage.S3.{missing} must be given together with its pair, got None. "
                "Give both key and secret, or neither to use the usual chain (environment, "
                "profile, instance role)."
            )
        for name in ("connect_timeout", "read_timeout"):
            value = getattr(self, name)
            if not isinstance(value, timedelta) or value <= timedelta(0):
                raise ConfigError(
                    f"CheckpointStorage.S3.{name} must be a positive timedelta, got {value!r}. Use "
                    "for example timedelta(seconds=30)."
                )

    def open(self) -> ObjectStore:
        from helios_ray.checkpoint.s3_store import S3Store

        return S3Store.connect(self)

    def describe(self) -> str:
        at = f" at {mask_url(self.endpoint_url)}" if self.endpoint_url else ""
        return f"s3://{joined(self.bucket, self.prefix)}{at}"

    def __repr__(self) -> str:
        shown = [f"bucket={self.bucket!r}", f"prefix={self.prefix!r}", f"region={self.region!r}"]
        if self.endpoint_url:
            shown.append(f"endpoint_url={mask_url(self.endpoint_url)!r}")
        shown += [f"{name}='***'" for name in ("key", "secret", "token") if getattr(self, name)]
        return f"CheckpointStorage.S3({', '.join(shown)})"


@dataclass(frozen=True, kw_only=True)
class FsspecStorage(CheckpointStorage):
    """See :meth:`CheckpointStorage.fsspec`."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def open(self) -> ObjectStore:
        from helios_ray.checkpoint.fsspec_store import open_fsspec

        return open_fsspec(self)

    def describe(self) -> str:
        return mask_url(self.url)

    def __repr__(self) -> str:
        shown = "".join(f", {name}={_masked(name, value)}" for name, value in self.options.items())
        return f"CheckpointStorage.fsspec({mask_url(self.url)!r}{shown})"


def mask_url(url: str) -> str:
    """The URL without the password that may stand before its host.

    Example:
        >>> mask_url("ftp://me:hush@host/dir")
        'ftp://***@host/dir'
    """
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


def _masked(name: str, value: Any) -> str:
    if _SECRET_WORD.search(name):
        return "'***'"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key!r}: {_masked(str(key), item)}" for key, item in value.items())
        return "{" + inner + "}"
    return repr(value)
