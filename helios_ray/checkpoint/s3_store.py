"""Checkpoints on S3 and on servers that speak its protocol.

Why it exists: one client that behaves the same on AWS, moto and Ceph RGW, and that never
confuses "no" with "no answer".

How: every request goes through s3fs once (its own retries are off) and is retried here, where
it is known which answers were lost. ``put_if_absent`` is a PUT with ``If-None-Match: *``. A "412
already there" may be the echo of our own request (repeated by us, or by the HTTP client on
a stale connection), so the object is then read back and compared.

May import: storage, s3fs and its transport, errors.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp
import botocore.exceptions as boto
import s3fs

from helios_ray.checkpoint.storage import Names, ObjectStore, S3Storage, checked, joined, mask_url
from helios_ray.errors import (
    StorageError,
    StorageNotFoundError,
    StorageUnknownError,
    StorageUnreachableError,
)

T = TypeVar("T")

_PAUSES = (0.1, 0.4)  # seconds before the second and the third attempt
_MULTIPART_CHUNK = 32 * 1024 * 1024
_PAGE = 1_000
_CONNECTIONS = 32
_EXISTS = ("PreconditionFailed", "412")
_CONFLICT = ("ConditionalRequestConflict", "OperationAborted")
_NO_BUCKET = ("NoSuchBucket",)
_NO_OBJECT = ("NoSuchKey", "404", "NotFound")
_BUSY = ("SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling", "503")
_NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.TokenRetrievalError)
_NOTHING_THERE = (
    boto.EndpointConnectionError,
    boto.ConnectTimeoutError,
    boto.ProxyConnectionError,
    boto.SSLError,
    aiohttp.ClientConnectorError,
    ConnectionRefusedError,
)


class S3Store(ObjectStore):
    """See the module; opened by ``CheckpointStorage.S3(...).open()``."""

    def __init__(self, spec: S3Storage, fs: Any, prefix: str) -> None:
        self._spec = spec
        self._fs = fs
        self._prefix = prefix

    @classmethod
    def connect(cls, spec: S3Storage) -> S3Store:
        """Make a client of our own: settings are not shared with other users of s3fs."""
        config: dict[str, Any] = {
            "connect_timeout": spec.connect_timeout.total_seconds(),
            "read_timeout": spec.read_timeout.total_seconds(),
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": _CONNECTIONS,
        }
        if spec.endpoint_url:
            config["s3"] = {"addressing_style": "path"}
        fs = s3fs.S3FileSystem(
            key=spec.key,
            secret=spec.secret,
            token=spec.token,
            endpoint_url=spec.endpoint_url,
            client_kwargs={"region_name": spec.region} if spec.region else {},
            config_kwargs=config,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        fs.retries = 1
        return cls(spec, fs, spec.prefix)

    def describe(self) -> str:
        at = f" at {mask_url(self._spec.endpoint_url)}" if self._spec.endpoint_url else ""
        return f"s3://{joined(self._spec.bucket, self._prefix)}{at}"

    def scoped(self, prefix: str) -> ObjectStore:
        return S3Store(self._spec, self._fs, joined(self._prefix, checked(prefix.strip("/"))))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        def create() -> bool:
            try:
                self._call("put_object", Key=self._key(name), Body=data, IfNoneMatch="*")
            except OSError as error:
                if _code(error) in _CONFLICT:
                    raise _Busy(error) from error
                if isinstance(error, FileExistsError) or _code(error) in _EXISTS:
                    return False
                raise
            return True

        return self._attempt("write", name, create) or self._holds(name, data)

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self.get(name) == data
        except StorageNotFoundError as error:
            raise StorageUnknownError(
                f"Cannot write {self._where(name)}: the server says it exists already, and then "
                "that it does not. It is being deleted, or the server is not consistent. "
                "Resume the job; if it recurs, check the server."
            ) from error

    def put(self, name: str, data: bytes) -> None:
        path = f"{self._spec.bucket}/{self._key(name)}"
        self._attempt(
            "write", name, lambda: self._fs.pipe_file(path, data, chunksize=_MULTIPART_CHUNK)
        )

    def get(self, name: str) -> bytes:
        path = f"{self._spec.bucket}/{self._key(name)}"
        # One stream: restoring reads many objects at once anyway, and this spares a HEAD.
        return bytes(
            self._attempt("read", name, lambda: self._fs.cat_file(path, max_concurrency=1))
        )

    def get_start(self, name: str, length: int) -> bytes:
        path = f"{self._spec.bucket}/{self._key(name)}"
        return bytes(
            self._attempt("read", name, lambda: self._fs.cat_file(path, start=0, end=length))
        )

    def exists(self, name: str) -> bool:
        try:
            self._head(name)
        except StorageNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        return int(self._head(name)["ContentLength"])

    def list(self, prefix: str = "") -> Names:
        base = f"{self._prefix}/" if self._prefix else ""
        names: Names = []
        more: dict[str, str] = {}
        while True:
            request = functools.partial(self._list_page, base + prefix, more)
            page = self._attempt("list", prefix, request)
            names += [item["Key"][len(base) :] for item in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return sorted(names)
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _list_page(self, prefix: str, more: dict[str, str]) -> Any:
        return self._call("list_objects_v2", Prefix=prefix, MaxKeys=_PAGE, **more)

    def delete(self, name: str) -> None:
        def remove() -> None:
            try:
                self._call("delete_object", Key=self._key(name))
            except FileNotFoundError as error:
                if _code(error) in _NO_BUCKET:
                    raise

        self._attempt("delete", name, remove)

    def check(self) -> None:
        self._attempt("reach", "", lambda: self._call("head_bucket"))
        super().check()

    # ------------------------------------------------------------------------ requests

    def _key(self, name: str) -> str:
        return joined(self._prefix, checked(name))

    def _where(self, name: str) -> str:
        at = f" at {mask_url(self._spec.endpoint_url)}" if self._spec.endpoint_url else ""
        return f"s3://{joined(self._spec.bucket, self._prefix, name)}{at}"

    def _head(self, name: str) -> Any:
        return self._attempt(
            "look up", name, lambda: self._call("head_object", Key=self._key(name))
        )

    def _call(self, method: str, **arguments: Any) -> Any:
        return self._fs.call_s3(method, Bucket=self._spec.bucket, **arguments)

    def _attempt(self, action: str, name: str, request: Callable[[], T]) -> T:
        """Send a request that may be sent again, and translate its failure.

        Once an answer was lost, a later "nothing there" does not take that back: the
        failure stays unknown for whatever changes storage.
        """
        unknown: StorageUnknownError | None = None
        for pause in (*_PAUSES, None):
            try:
                return request()
            except _Busy as busy:
                failure = self._translate(busy.error, action, name)
            except Exception as error:
                failure = self._translate(error, action, name)
                failure.__cause__ = error
            if isinstance(failure, StorageUnknownError):
                unknown = failure
            elif not isinstance(failure, (StorageUnreachableError, _RetryLaterError)):
                break
            if pause is not None:
                time.sleep(pause)
        if unknown is not None and action in ("write", "delete"):
            raise unknown
        raise failure

    def _translate(self, error: BaseException, action: str, name: str) -> StorageError:
        what = f"Cannot {action} {self._where(name)}: {_reason(error)}."
        code, status = _code(error), _status(error)
        bucket = self._spec.bucket
        if code in _NO_BUCKET or (action == "reach" and code in _NO_OBJECT):
            return StorageNotFoundError(
                f"{what} There is no bucket {bucket!r}. Create it, or correct bucket=, region= and "
                "endpoint_url= of CheckpointStorage.S3."
            )
        if isinstance(error, FileNotFoundError) or code in _NO_OBJECT:
            return StorageNotFoundError(
                f"{what} There is no such object; check bucket, prefix and the job's name."
            )
        if isinstance(error, _NO_CREDENTIALS):
            return StorageError(
                f"{what} Give key= and secret= to CheckpointStorage.S3, set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in every process of the job, or attach a role to the nodes."
            )
        if isinstance(error, _NOTHING_THERE):
            return StorageUnreachableError(
                f"{what} Nothing answers at that address. Check endpoint_url= and region=, DNS, "
                "the network between the nodes and storage, and that the server runs; the job "
                "can be resumed."
            )
        if isinstance(error, PermissionError) or status in (401, 403):
            return StorageError(
                f"{what} Storage refused the credentials or the permission. They need "
                f"s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket on bucket {bucket!r}; "
                "a clock that is minutes off is refused, too."
            )
        if code in _BUSY or code in _CONFLICT or status == 429:
            return _RetryLaterError(
                f"{what} Storage is busy and turned the request down. Checkpoint less often, or "
                "raise the server's limits; the job can be resumed."
            )
        if status is not None and 400 <= status < 500:
            return StorageError(
                f"{what} Storage refused the request (HTTP {status}). Check bucket=, region= and "
                "endpoint_url= of CheckpointStorage.S3."
            )
        if isinstance(error, boto.BotoCoreError) and not isinstance(error, boto.HTTPClientError):
            return StorageError(
                f"{what} The request could not be made. Check the values given to "
                "CheckpointStorage.S3 and the AWS configuration of this process."
            )
        return StorageUnknownError(
            f"{what} No proper answer came, so it may have happened or not. Check the network and "
            "the server's log; raise read_timeout= if the server is only slow. The job can be "
            "resumed."
        )


class _RetryLaterError(StorageError):
    """Turned down for now; nothing happened."""


class _Busy(Exception):
    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _response(error: BaseException) -> dict[str, Any]:
    # s3fs wraps the client's error into an OSError, at times one without a message.
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int | None:
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(status) if status else None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    code = _code(error)
    if code and code not in text:
        text = f"{text} ({code})"
    return text.rstrip(".")
