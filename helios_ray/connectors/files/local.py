"""Transactional files on a local (or shared) disk: staged, then renamed.

Why it exists: a rename within one file system is the only atomic publication a disk has.

    <path>/.staging/part-out@flights-0-1-5/part-out@flights-0-1-5-0.parquet   until commit
    <path>/part-out@flights-0-1-5-0.parquet                                   from then on

What it promises: after ``seal`` the files survive the loss of the machine's power; ``commit``
can be repeated after a death at any step, and finishes what was begun. Files of one
transaction are published one after another: a reader that looks in between sees some of them.

May import: connectors.base, identifiers, errors, and the rest of this package.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from helios_ray.connectors.base import CommitOutcome, Json
from helios_ray.connectors.files import names
from helios_ray.connectors.files.disk import Disk
from helios_ray.connectors.files.stores import OpenFile, Store
from helios_ray.errors import FatalCommitError, RetryableCommitError, SinkUnavailableError
from helios_ray.identifiers import TransactionId

STAGING = ".staging"
"""Where uncommitted files stand; the dot keeps readers of the directory away."""


class _StagedFile:
    """One file in a staging directory."""

    def __init__(self, disk: Disk, path: str, name: str) -> None:
        self.name = name
        self._disk = disk
        self._file: BinaryIO = disk.create(path)

    @property
    def out(self) -> Any:
        return self._file

    def size(self) -> int:
        return self._file.tell()

    def seal(self) -> Json:
        size = self._file.tell()
        self._disk.sync_file(self._file)
        self._file.close()
        return {"bytes": size}

    def discard(self) -> None:
        try:
            self._file.close()
        except OSError:
            return  # a full disk refuses the last flush too; the file is thrown away anyway


class LocalStore(Store):
    """A directory on a disk that every subtask of the sink can reach.

    Args:
        root: absolute path of the directory.
        disk: the file system's operations.
    """

    def __init__(self, root: str, disk: Disk | None = None) -> None:
        self._root = root
        self._staging = os.path.join(root, STAGING)
        self._disk = disk or Disk()

    def check(self) -> None:
        place = self._root
        while not os.path.exists(place) and os.path.dirname(place) != place:
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            raise SinkUnavailableError(
                f"FileSink({self._root!r}): expected a directory, {place} is a file. Choose "
                f"another path."
            )
        if not os.access(place, os.W_OK | os.X_OK):
            raise SinkUnavailableError(
                f"FileSink({self._root!r}): {place} may not be written to. Change its "
                f"permissions, or choose another path."
            )

    def open(self) -> None:
        try:
            missing = []
            place = self._staging
            while not os.path.isdir(place):
                missing.append(place)
                place = os.path.dirname(place)
            for place in reversed(missing):
                self._disk.make_directory(place)
                self._disk.sync_directory(os.path.dirname(place))
        except OSError as error:
            raise SinkUnavailableError(
                f"FileSink({self._root!r}): cannot make the directory: {error}. Make it, or "
                f"choose another path."
            ) from error

    def begin(self, transaction: TransactionId, first: str) -> None:
        if os.path.exists(os.path.join(self._root, first)):
            raise already_published(os.path.join(self._root, first), transaction)
        with _writing(self._root):
            self._remove_staging(transaction)
            self._disk.make_directory(self._place(transaction))

    def create(self, transaction: TransactionId, name: str) -> OpenFile:
        with _writing(self._root):
            path = os.path.join(self._place(transaction), name)
            return _StagedFile(self._disk, path, name)

    def seal(self, transaction: TransactionId) -> None:
        with _writing(self._root):
            self._disk.sync_directory(self._place(transaction))
            self._disk.sync_directory(self._staging)

    def commit(self, transaction: TransactionId, files: list[Json]) -> CommitOutcome:
        try:
            return self._publish(transaction, files)
        except OSError as error:
            raise RetryableCommitError(
                f"FileSink: commit of {transaction} in {self._root} did not finish: {error}. It is "
                f"tried again; check the disk."
            ) from error

    def _publish(self, transaction: TransactionId, files: list[Json]) -> CommitOutcome:
        pairs = []
        for entry in files:
            staged = os.path.join(self._place(transaction), entry["name"])
            final = os.path.join(self._root, entry["name"])
            self._must_be_there(transaction, staged, final, entry["bytes"])
            pairs.append((staged, final, entry["bytes"]))
        renamed = 0
        for staged, final, size in pairs:
            if not os.path.exists(staged):
                continue
            try:
                self._disk.rename(staged, final)
                renamed += 1
            except FileNotFoundError:
                # Somebody else commits the same transaction: it has to be there now.
                self._must_be_there(transaction, staged, final, size)
        # Also when nothing was renamed: whoever did it may have died before this line.
        self._disk.sync_directory(self._root)
        self._remove_staging(transaction)
        return CommitOutcome.COMMITTED if renamed else CommitOutcome.ALREADY_COMMITTED

    def _must_be_there(
        self, transaction: TransactionId, staged: str, final: str, size: int
    ) -> None:
        if not os.path.isdir(self._root):
            raise RetryableCommitError(
                f"FileSink: commit of {transaction}: the directory {self._root} is not there. "
                f"Mount it again, or restore it; the commit is tried again."
            )
        here = [path for path in (staged, final) if os.path.exists(path)]
        if len(here) == 2:
            raise FatalCommitError(
                f"FileSink: commit of {transaction}: expected no file at {final}, found one that "
                f"this job did not write. Move it away and resume the job."
            )
        found = os.path.getsize(here[0]) if here else None
        if found != size:
            raise FatalCommitError(
                f"FileSink: commit of {transaction}: expected {size} bytes at {staged} (prepared) "
                f"or {final} (committed), found {'neither' if found is None else found}. Its rows "
                f"are lost: put the file back, or replay the job from an older savepoint into an "
                f"empty directory."
            )

    def abort(self, transaction: TransactionId, files: list[Json]) -> None:
        try:
            self._remove_staging(transaction)
        except OSError as error:
            raise RetryableCommitError(
                f"FileSink: abort of {transaction} in {self._root} did not finish: {error}. It is "
                f"tried again; check the disk."
            ) from error

    def list_prepared(self, prefix: str) -> Iterable[TransactionId]:
        try:
            found = sorted(os.listdir(self._staging))
        except FileNotFoundError:
            return []
        transactions = (names.parse(name) for name in found)
        return [t for t in transactions if t is not None and str(t).startswith(prefix)]

    def close(self) -> None:
        return

    def _place(self, transaction: TransactionId) -> str:
        return os.path.join(self._staging, names.stem(transaction))

    def _remove_staging(self, transaction: TransactionId) -> None:
        place = self._place(transaction)
        try:
            leftovers = sorted(os.listdir(place))
        except FileNotFoundError:
            return
        for name in leftovers:
            self._disk.remove_file(os.path.join(place, name))
        self._disk.remove_directory(place)


@contextmanager
def _writing(root: str) -> Iterator[None]:
    """Turn what a disk raises while it is written to into SinkUnavailableError."""
    try:
        yield
    except OSError as error:
        raise SinkUnavailableError(
            f"FileSink({root!r}) cannot be written to: {error}. Make room or mend the disk; the "
            f"job resumes from its last checkpoint."
        ) from error


def already_published(place: str, transaction: TransactionId) -> SinkUnavailableError:
    """The error of a transaction whose name another run has used up."""
    return SinkUnavailableError(
        f"FileSink: {place} exists already, as if {transaction} had been committed. Another run "
        f"of a job with this name wrote it, from another checkpoint storage. Restore from that "
        f"run's checkpoints, or write into an empty directory, or rename the job."
    )
