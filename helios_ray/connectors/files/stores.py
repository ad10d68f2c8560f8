"""Where the files of transactions stand until they are committed.

Why it exists: a local disk and S3 hide and publish files in different ways; the sink above
them is the same. What it promises is the contract of ``TransactionalSink``, one file at a time.

May import: connectors.base, identifiers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol

from helios_ray.connectors.base import CommitOutcome, Json
from helios_ray.identifiers import TransactionId


class OpenFile(Protocol):
    """A file being written, unseen. ``out`` takes bytes and tells how many it took."""

    name: str

    @property
    def out(self) -> Any:
        """A binary file object to write to."""

    def size(self) -> int:
        """Bytes written so far."""

    def seal(self) -> Json:
        """End the file; return what ``commit`` needs to know besides its name."""

    def discard(self) -> None:
        """Let go of the file without ending it. Never raises."""


class Store(ABC):
    """A place for the files of transactions."""

    @abstractmethod
    def check(self) -> None:
        """Raise SinkUnavailableError if nothing can be written there; change nothing."""

    @abstractmethod
    def open(self) -> None:
        """Connect, make directories."""

    @abstractmethod
    def begin(self, transaction: TransactionId, first: str) -> None:
        """Make room for a transaction; ``first`` is what its first file will be called.

        Raises:
            SinkUnavailableError: a file of that name is published already.
        """

    @abstractmethod
    def create(self, transaction: TransactionId, name: str) -> OpenFile:
        """Start a file."""

    @abstractmethod
    def seal(self, transaction: TransactionId) -> None:
        """All files of the transaction are sealed; make that survive."""

    @abstractmethod
    def commit(self, transaction: TransactionId, files: list[Json]) -> CommitOutcome:
        """Publish the files of a transaction."""

    @abstractmethod
    def abort(self, transaction: TransactionId, files: list[Json]) -> None:
        """Remove whatever there is of a transaction that is not published.

        Raises:
            RetryableCommitError: it may succeed later.
        """

    @abstractmethod
    def list_prepared(self, prefix: str) -> Iterable[TransactionId]:
        """Transactions of which something is there and not published."""

    @abstractmethod
    def close(self) -> None:
        """Release connections."""
