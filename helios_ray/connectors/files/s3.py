"""Transactional files on S3: a multipart upload is invisible until it is completed.

Why it exists: S3 has no rename; but an upload in parts can be prepared by one process and
completed by another, and it is atomic. What it promises: after ``seal`` all bytes are with
the server; ``commit`` completes the upload, and when the server does not know the upload any
more, the object itself tells whether it had been completed. Nothing here relies on
conditional completion, which some servers ignore.

An object carries the transaction's id as metadata, so that "it is there already" can be
told from "something else is there".

May import: connectors.base, identifiers, errors, and the rest of this package.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from helios_ray.connectors.base import CommitOutcome, Json
from helios_ray.connectors.files import names
from helios_ray.connectors.files.local import already_published
from helios_ray.connectors.files.locations import filesystem
from helios_ray.connectors.files.stores import OpenFile, Store
from helios_ray.errors import FatalCommitError, RetryableCommitError, SinkUnavailableError
from helios_ray.identifiers import TransactionId

SMALLEST_PART = 5 << 20
"""S3 refuses smaller parts, except the last one."""

MOST_PARTS = 10_000
_UPLOADS_AT_ONCE = 2
_MARK = "helios-transaction"
_LOST = frozenset(
    {"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall", "NoSuchBucket"}
)
_FAILED = frozenset({"500", "InternalError"})
_ABSENT = frozenset({"NoSuchKey", "NotFound", "404"})


def error_code(error: BaseException) -> str:
    """The code that the server gave, or "" where no answer came.

    s3fs translates errors to Python's own and keeps the original as their cause.
    """
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        cause = cause.__cause__
    return "NoSuchKey" if isinstance(error, FileNotFoundError) else ""


class MultipartFile(io.RawIOBase):
    """A file object that uploads what is written to it, in parts, in the background.

    Holds at most three parts in memory: one being filled and two on their way.
    """

    def __init__(self, store: S3Store, transaction: TransactionId, name: str) -> None:
        super().__init__()
        self.name = name
        self._store = store
        answer = store.call(
            "create_multipart_upload",
            Key=store.key(name),
            Metadata={_MARK: str(transaction)},
        )
        self._upload: str = answer["UploadId"]
        self._buffer = bytearray()
        self._size = 0
        self._parts: list[Future[Json]] = []

    @property
    def out(self) -> Any:
        return self

    def size(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._size

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._size += len(view)
        self._buffer += view
        while len(self._buffer) >= self._store.part_size:
            self._send(self._store.part_size)
        return len(view)

    def _send(self, count: int) -> None:
        number = len(self._parts) + 1
        if number > MOST_PARTS:
            raise SinkUnavailableError(
                f"FileSink: {self.name} needs more than {MOST_PARTS} parts of "
                f"{self._store.part_size} bytes. Set max_file_bytes= below "
                f"{MOST_PARTS * self._store.part_size}, or checkpoint more often."
            )
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        if number > _UPLOADS_AT_ONCE:
            self._parts[number - 1 - _UPLOADS_AT_ONCE].result()
        self._parts.append(self._store.pool.submit(self._upload_part, number, data))

    def _upload_part(self, number: int, data: bytes) -> Json:
        answer = self._store.call(
            "upload_part",
            Key=self._store.key(self.name),
            UploadId=self._upload,
            PartNumber=number,
            Body=data,
        )
        # A server that checks sums wants them back when the upload is completed.
        sums = {k: v for k, v in answer.items() if k.startswith("Checksum") and k != "ChecksumType"}
        return {"ETag": answer["ETag"], **sums}

    def seal(self) -> Json:
        if self._buffer or not self._parts:
            self._send(len(self._buffer))
        parts = [part.result() for part in self._parts]
        self._store.sealed(self._upload)
        return {"bytes": self._size, "upload": self._upload, "parts": parts}

    def discard(self) -> None:
        # Parts on their way when an upload is aborted may stay behind: wait for them.
        for part in self._parts:
            part.exception()
        self._buffer.clear()


class S3Store(Store):
    """A prefix in a bucket of any server that speaks S3.

    Args:
        url: ``s3://bucket/prefix``.
        part_size: bytes of one part, at least 5 MiB.
    """

    def __init__(self, url: str, options: Mapping[str, Any], part_size: int) -> None:
        self._url = url
        self._fs, path = filesystem(url, options)
        self._bucket, _, prefix = path.partition("/")
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.part_size = part_size
        self._pool: ThreadPoolExecutor | None = None
        self._fresh: set[str] = set()  # uploads sealed here that no commit was tried for

    def key(self, name: str) -> str:
        """Where a file of that name stands in the bucket."""
        return self._prefix + name

    @property
    def pool(self) -> ThreadPoolExecutor:
        """Threads that upload parts."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_UPLOADS_AT_ONCE, thread_name_prefix="upload")
        return self._pool

    def sealed(self, upload: str) -> None:
        """Remember an upload whose completion nobody can have tried."""
        self._fresh.add(upload)

    def call(self, method: str, **arguments: Any) -> Any:
        """Ask the server, outside of a commit.

        Raises:
            SinkUnavailableError: it refused or did not answer.
        """
        with self._asking():
            return self._fs.call_s3(method, Bucket=self._bucket, **arguments)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            code = error_code(error)
            hint = {
                "NoSuchBucket": "Make the bucket, or correct the path.",
                "AccessDenied": "Allow these credentials to write there.",
                "": "Check the endpoint, the network and the credentials.",
            }.get(code, "Check bucket, credentials and endpoint in storage_options.")
            raise SinkUnavailableError(
                f"FileSink({self._url!r}): {code or type(error).__name__}: {error}. {hint}"
            ) from error

    def check(self) -> None:
        # An upload that is begun and aborted shows that one may write, and leaves nothing.
        key = self.key(".check")
        upload = self.call("create_multipart_upload", Key=key)["UploadId"]
        self.call("abort_multipart_upload", Key=key, UploadId=upload)

    def open(self) -> None:
        return

    def begin(self, transaction: TransactionId, first: str) -> None:
        with self._asking():
            if self._head(first) is not None:
                raise already_published(f"{self._url}/{first}", transaction)

    def create(self, transaction: TransactionId, name: str) -> OpenFile:
        return MultipartFile(self, transaction, name)

    def seal(self, transaction: TransactionId) -> None:
        return

    def commit(self, transaction: TransactionId, files: list[Json]) -> CommitOutcome:
        done = [self._complete(transaction, entry) for entry in files]
        return CommitOutcome.COMMITTED if any(done) else CommitOutcome.ALREADY_COMMITTED

    def _complete(self, transaction: TransactionId, entry: Json) -> bool:
        """Complete one upload; False if it had been completed before."""
        # Servers answer a repeated completion with success, or do not know the upload any more.
        # One that this process sealed itself and has not tried yet needs no look first.
        try:
            if entry["upload"] in self._fresh:
                self._fresh.discard(entry["upload"])
            elif self._find(transaction, entry):
                return False
            parts = [{"PartNumber": n, **part} for n, part in enumerate(entry["parts"], start=1)]
            self._fs.call_s3(
                "complete_multipart_upload",
                Bucket=self._bucket,
                Key=self.key(entry["name"]),
                UploadId=entry["upload"],
                MultipartUpload={"Parts": parts},
            )
            return True
        except FatalCommitError:
            raise
        except Exception as error:
            code = error_code(error)
            try:
                if code not in _LOST and not (code in _FAILED and self._is_gone(entry)):
                    raise error
                # An upload goes only after its object came, so the object is looked at last.
                if self._find(transaction, entry):
                    return False
            except FatalCommitError:
                raise
            except Exception as second:
                raise self._retryable("commit", transaction, second) from error
            raise FatalCommitError(
                f"FileSink: commit of {transaction} in {self._url}: the server answered {code} for "
                f"the upload of {entry['name']}, and no object is there. Its rows are lost: look "
                f"for a lifecycle rule that aborts uploads sooner than the job resumes, and replay "
                f"from an older savepoint into an empty prefix."
            ) from error

    def _find(self, transaction: TransactionId, entry: Json) -> bool:
        """Whether the object of an upload is there.

        Raises:
            FatalCommitError: another object is.
        """
        found = self._head(entry["name"])
        if found is None:
            return False
        marked = (found.get("Metadata") or {}).get(_MARK) == str(transaction)
        if marked and int(found["ContentLength"]) == entry["bytes"]:
            return True
        raise FatalCommitError(
            f"FileSink: commit of {transaction} in {self._url}: expected {entry['name']} with "
            f"{entry['bytes']} bytes or no such object, another object is there with "
            f"{found['ContentLength']} bytes. Move it away and resume the job."
        )

    def _is_gone(self, entry: Json) -> bool:
        """Whether the server says that it does not know an upload."""
        try:
            self._fs.call_s3(
                "list_parts",
                Bucket=self._bucket,
                Key=self.key(entry["name"]),
                UploadId=entry["upload"],
            )
        except Exception as error:
            return error_code(error) in {"NoSuchUpload", *_ABSENT}
        return False

    def _retryable(
        self, what: str, transaction: TransactionId, error: Exception
    ) -> RetryableCommitError:
        return RetryableCommitError(
            f"FileSink: {what} of {transaction} in {self._url} did not finish, or nobody knows: "
            f"{error_code(error) or type(error).__name__}: {error}. It is tried again; check the "
            f"server and the credentials."
        )

    def _head(self, name: str) -> Mapping[str, Any] | None:
        try:
            found: Mapping[str, Any] = self._fs.call_s3(
                "head_object", Bucket=self._bucket, Key=self.key(name)
            )
            return found
        except Exception as error:
            if error_code(error) in _ABSENT:
                return None
            raise

    def abort(self, transaction: TransactionId, files: list[Json]) -> None:
        known = {(self.key(entry["name"]), entry["upload"]) for entry in files}
        try:
            known.update(self._uploads(self.key(names.stem(transaction) + "-")))
        except SinkUnavailableError as error:
            raise self._retryable("abort", transaction, error) from error
        for key, upload in sorted(known):
            self._fresh.discard(upload)
            try:
                self._fs.call_s3(
                    "abort_multipart_upload", Bucket=self._bucket, Key=key, UploadId=upload
                )
            except Exception as error:
                if error_code(error) not in {"NoSuchUpload", *_ABSENT}:
                    raise self._retryable("abort", transaction, error) from error

    def list_prepared(self, prefix: str) -> Iterable[TransactionId]:
        found = set()
        for key, _ in self._uploads(self.key(names.common_start(prefix))):
            transaction = names.parse(key.removeprefix(self._prefix))
            if transaction is not None and str(transaction).startswith(prefix):
                found.add(transaction)
        return sorted(found)

    def _uploads(self, prefix: str) -> list[tuple[str, str]]:
        """Key and id of every upload below ``prefix`` that is neither completed nor aborted."""
        found: list[tuple[str, str]] = []
        marker: dict[str, str] = {}
        while True:
            page = self.call("list_multipart_uploads", Prefix=prefix, **marker)
            found += [(item["Key"], item["UploadId"]) for item in page.get("Uploads") or ()]
            following = {
                "KeyMarker": page.get("NextKeyMarker") or "",
                "UploadIdMarker": page.get("NextUploadIdMarker") or "",
            }
            # Not every server pages; one that repeats itself is not asked for ever.
            if not page.get("IsTruncated") or following == marker:
                return [item for item in found if item[0].startswith(prefix)]
            marker = following

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
