"""Where files are: paths, globs and directories, on local disk or behind any fsspec URL.

Why it exists: the source and the sink, on a laptop and on S3, name files the same way and
fail with the same errors. What it promises: names are absolute and stable across processes;
a listing is sorted; names that start with ``.`` or ``_`` below the place that was asked for
are never listed (they belong to files still being written); nothing prints a secret.

May import: errors.
"""

from __future__ import annotations

import glob as _glob
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec

from helios_ray.errors import ConfigError, HeliosError, SourceUnavailableError

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".tsv"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
}
"""What the files of each format are called."""

COMPRESSIONS: Mapping[str, str] = {".gz": "gzip", ".zst": "zstd"}
"""Suffixes of files that are compressed as a whole, and Arrow's name for the codec."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a listing.

    Args:
        name: absolute path or full URL; what users see and positions refer to.
        size: bytes.
        version: the store's own mark of the content (an ETag), or "" where it has none.
    """

    name: str
    size: int
    version: str


def absolute(url: str | os.PathLike[str]) -> str:
    """The name that means the same file in every process.

    Example:
        >>> absolute("file:///data/x.csv"), absolute("s3://bucket/x.csv")
        ('/data/x.csv', 's3://bucket/x.csv')
    """
    text = os.fspath(url)
    if not text:
        raise ConfigError("expected a path or URL, got an empty one; '.' is the working directory")
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        return text
    return os.path.abspath(os.path.expanduser(text))


def protocol(name: str) -> str:
    """``"file"`` for a local path, else what stands before ``://``."""
    return name.split("://", 1)[0] if "://" in name else "file"


def filesystem(name: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    """The fsspec file system behind a name, and the path that it knows the file by.

    Raises:
        ConfigError: nothing installed speaks that protocol, or it refuses the options.
    """
    options = dict(storage_options or {})
    if protocol(name) in {"s3", "s3a"}:
        # Other processes write there; a cached listing would hide what they wrote.
        options.setdefault("use_listings_cache", False)
    try:
        fs, path = fsspec.core.url_to_fs(name, **options)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot open a file system for {name!r} with storage_options="
            f"{masked(storage_options)}: {error}. Expected a local path or a URL that fsspec "
            f"knows; install the package it asks for, or correct the option it names."
        ) from error
    return fs, path


def masked(storage_options: Mapping[str, Any] | None) -> str:
    """The options' names, without their values: some are secrets."""
    if not storage_options:
        return "{}"
    return "{" + ", ".join(f"{key!r}: ***" for key in sorted(storage_options)) + "}"


def format_of(name: str) -> tuple[str | None, str | None]:
    """Format and whole-file compression, as the suffixes tell.

    Example:
        >>> format_of("trips/2013.csv.gz"), format_of("a.parquet"), format_of("README")
        (('csv', 'gzip'), ('parquet', None), (None, None))
    """
    lower = name.lower()
    compression = None
    for suffix, codec in COMPRESSIONS.items():
        if lower.endswith(suffix):
            lower, compression = lower.removesuffix(suffix), codec
    for fmt, suffixes in SUFFIXES.items():
        if lower.endswith(suffixes):
            return fmt, None if fmt == "parquet" else compression
    return None, compression


@contextmanager
def unavailable(name: str) -> Iterator[None]:
    """Turn what a file system raises into SourceUnavailableError, with the file's name."""
    try:
        yield
    except HeliosError:
        raise
    except FileNotFoundError as error:
        raise SourceUnavailableError(
            f"{name} is not there (any more). Files must stay until the job has read them: put "
            f"it back, or start the job afresh without it."
        ) from error
    except PermissionError as error:
        raise SourceUnavailableError(
            f"{name} may not be read: {error}. Check the file's permissions, or the credentials "
            f"in storage_options and the environment."
        ) from error
    except Exception as error:
        raise SourceUnavailableError(
            f"{name} cannot be reached: {type(error).__name__}: {error}. Check the network, the "
            f"endpoint and the credentials; the job can be resumed when it answers again."
        ) from error


def open_binary(name: str, storage_options: Mapping[str, Any] | None, buffer: int) -> BinaryIO:
    """Open a file to read bytes, seekable, ``buffer`` bytes ahead where it is remote.

    Raises:
        SourceUnavailableError: it is not there or may not be read.
    """
    with unavailable(name):
        if protocol(name) == "file":
            return open(name, "rb")
        fs, path = filesystem(name, storage_options)
        return cast(BinaryIO, fs.open(path, "rb", block_size=buffer, cache_type="readahead"))


def stat(name: str, storage_options: Mapping[str, Any] | None) -> FileInfo:
    """Size and version of one file, now.

    Raises:
        SourceUnavailableError: it is not there or may not be seen.
    """
    with unavailable(name):
        fs, path = filesystem(name, storage_options)
        return _info(name, fs.info(path))


def list_files(
    places: Sequence[str], storage_options: Mapping[str, Any] | None, fmt: str | None
) -> list[FileInfo]:
    """Every file at ``places`` (files, directories, globs), each once; sorted within a place.

    In a directory, files of ``fmt`` count (of any known format where it is None), at any
    depth. A glob and a plain path say for themselves which files they mean. A place with
    nothing in it contributes nothing.

    Raises:
        SourceUnavailableError: the file system does not answer, or there is no such bucket.
    """
    found: dict[str, FileInfo] = {}
    for place in places:
        with unavailable(place):
            for info in _list_one(place, storage_options, fmt):
                found.setdefault(info.name, info)
    return list(found.values())


def _list_one(
    place: str, storage_options: Mapping[str, Any] | None, fmt: str | None
) -> list[FileInfo]:
    fs, path = filesystem(place, storage_options)
    try:
        known = fs.info(path)
    except FileNotFoundError:
        known = {"type": "missing"}
    if known["type"] == "file":
        return [_info(place, known)]
    prefix = "" if protocol(place) == "file" else f"{protocol(place)}://"
    if known["type"] == "directory":
        root, entries = path, fs.find(path, detail=True)
    elif _glob.has_magic(path):
        # Hidden names are those below the first component with a wildcard in it.
        parts = path.split("/")
        magic = next(i for i, part in enumerate(parts) if _glob.has_magic(part))
        root, entries = "/".join(parts[:magic]), fs.glob(path, detail=True)
    else:
        return []
    listed = []
    for entry, details in entries.items():
        below = entry[len(root) :].lstrip("/")
        if details["type"] != "file" or entry.endswith("/"):
            continue
        if any(part.startswith((".", "_")) for part in below.split("/")):
            continue
        kind = format_of(entry)[0]
        if known["type"] == "directory" and (kind is None or kind != (fmt or kind)):
            continue
        listed.append(_info(prefix + entry, details))
    return sorted(listed, key=lambda info: info.name)


def _info(name: str, details: Mapping[str, Any]) -> FileInfo:
    version = str(details.get("ETag") or "").strip('"')
    return FileInfo(name, int(details.get("size") or 0), version)
