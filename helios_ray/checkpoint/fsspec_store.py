"""Checkpoints on any file system that fsspec knows.

Why it exists: Google Cloud Storage, Azure and what is to come, without a backend each. The
protocol needs create-if-absent to be atomic; where fsspec cannot promise that for a file
system, opening it says so.

May import: storage, fsspec, errors.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import fsspec

from helios_ray.checkpoint.storage import (
    FsspecStorage,
    Names,
    ObjectStore,
    S3Storage,
    checked,
    joined,
    mask_url,
)
from helios_ray.errors import (
    ConfigError,
    StorageError,
    StorageNotFoundError,
    StorageUnknownError,
    StorageUnreachableError,
)

_ATOMIC = ("gs", "gcs", "memory")
_S3_OPTIONS = ("key", "secret", "token", "endpoint_url")
_MEMORY_LOCK = threading.Lock()


class NonAtomicStorageWarning(UserWarning):
    """This file system checks for an object and then writes it, in two steps."""


def open_fsspec(spec: FsspecStorage) -> ObjectStore:
    """Open ``spec``; ``s3://`` goes to the S3 store, whose answers are exact.

    Raises:
        ConfigError: the file system is not installed, or does not take these options.
    """
    protocol, _, rest = spec.url.partition("://")
    if protocol in ("s3", "s3a"):
        return _as_s3(spec, rest).open()
    try:
        fs, root = fsspec.core.url_to_fs(spec.url, use_listings_cache=False, **spec.options)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(
            f"CheckpointStorage.fsspec({mask_url(spec.url)!r}) cannot be opened: {error}. Install "
            f"the package that provides {protocol}:// on every node, and check the options' names."
        ) from error
    if protocol not in _ATOMIC:
        warnings.warn(
            f"fsspec cannot create-if-absent in one step on {protocol}://. Two coordinators of one "
            "job that start at the same instant could both believe they own it; make sure that "
            "only one runs at a time, or use S3, gs:// or a local directory.",
            NonAtomicStorageWarning,
            stacklevel=3,
        )
    return FsspecStore(fs, root.rstrip("/"), mask_url(spec.url))


def _as_s3(spec: FsspecStorage, rest: str) -> S3Storage:
    bucket, _, prefix = rest.partition("/")
    options = dict(spec.options)
    client = dict(options.pop("client_kwargs", None) or {})
    chosen = {name: options.pop(name, None) for name in _S3_OPTIONS}
    chosen["endpoint_url"] = chosen["endpoint_url"] or client.pop("endpoint_url", None)
    region = client.pop("region_name", None)
    # Harmless here: what they ask for is what the S3 store does anyway.
    options.pop("use_listings_cache", None)
    options.pop("config_kwargs", None)
    if options or client:
        raise ConfigError(
            f"CheckpointStorage.fsspec('s3://...') takes {', '.join(_S3_OPTIONS)} and "
            f"client_kwargs with region_name and endpoint_url, got also "
            f"{sorted((*options, *client))}. Use CheckpointStorage.S3(...)."
        )
    return S3Storage(bucket=bucket, prefix=joined(prefix), region=region, **chosen)


class FsspecStore(ObjectStore):
    """See the module; opened by ``CheckpointStorage.fsspec(url).open()``."""

    def __init__(self, fs: Any, root: str, shown: str) -> None:
        self._fs = fs
        self._root = root
        self._shown = shown

    def describe(self) -> str:
        return self._shown

    def scoped(self, prefix: str) -> ObjectStore:
        below = checked(prefix.strip("/"))
        return FsspecStore(self._fs, f"{self._root}/{below}", f"{self._shown.rstrip('/')}/{below}")

    def put_if_absent(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        with self._translated("write", name):
            self._make_parent(path)
            try:
                # In memory the check and the write are two steps of one process.
                with _MEMORY_LOCK:
                    self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
        return True

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with self._translated("write", name):
            self._make_parent(path)
            self._fs.pipe_file(path, data)

    def get(self, name: str) -> bytes:
        with self._translated("read", name):
            return bytes(self._fs.cat_file(self._path(name)))

    def get_start(self, name: str, length: int) -> bytes:
        with self._translated("read", name):
            return bytes(self._fs.cat_file(self._path(name), start=0, end=length))

    def exists(self, name: str) -> bool:
        with self._translated("look up", name):
            return bool(self._fs.isfile(self._path(name)))

    def size(self, name: str) -> int:
        with self._translated("look up", name):
            return int(self._fs.size(self._path(name)))

    def list(self, prefix: str = "") -> Names:
        directory = joined(*prefix.split("/")[:-1])
        top = f"{self._root}/{directory}" if directory else self._root
        with self._translated("list", prefix):
            try:
                found = self._fs.find(top)
            except FileNotFoundError:
                return []
        base = self._root.rstrip("/") + "/"
        names = (path.removeprefix(base) for path in found)
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        with self._translated("delete", name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{checked(name)}"

    def _make_parent(self, path: str) -> None:
        # Object stores have no directories and take this as nothing.
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _translated(self, action: str, name: str) -> Iterator[None]:
        what = f"Cannot {action} {self._shown.rstrip('/')}/{name}"
        try:
            yield
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise StorageNotFoundError(
                f"{what}: {error}. There is no such object; check the URL and the job's name."
            ) from error
        except PermissionError as error:
            raise StorageError(
                f"{what}: {error}. Storage refused it; check the credentials and their permissions."
            ) from error
        except ConnectionRefusedError as error:
            raise StorageUnreachableError(
                f"{what}: {error}. Nothing answers at that address; check it and the network."
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR):
                raise StorageError(f"{what}: {error}. Storage is full or read-only.") from error
            raise self._unknown(what, error) from error
        except Exception as error:
            # A backend's own kinds of failure: nobody can tell here what they leave behind.
            raise self._unknown(what, error) from error

    @staticmethod
    def _unknown(what: str, error: Exception) -> StorageUnknownError:
        return StorageUnknownError(
            f"{what}: {type(error).__name__}: {error}. It may have happened or not; check the "
            "network and the server. The job can be resumed."
        )
