"""An HTTP proxy that loses what a network loses: requests, answers, patience."""

from __future__ import annotations

import enum
import http.client
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit


class Fault(enum.Enum):
    """What happens to one request."""

    NONE = "passed on and answered"
    LOSE_REQUEST = "the connection ends before the server saw it"
    LOSE_ANSWER = "the server did it, and the connection ends without an answer"
    HANG = "the server did it, and no answer ever comes"
    SERVER_ERROR = "the server did it, and says 500"
    BUSY = "turned down with 503 SlowDown"


_ERROR = b"<Error><Code>%s</Code><Message>planned</Message></Error>"


class FaultyProxy:
    """Passes requests on to ``upstream``; the next ones suffer ``faults``, one each.

    Args:
        upstream: URL of the server.
        method: only requests of this HTTP method take a fault.
    """

    def __init__(self, upstream: str, method: str = "PUT") -> None:
        self.faults: deque[Fault] = deque()
        self.requests: list[str] = []
        self._release = threading.Event()
        self._stop_after: int | None = None
        target = urlsplit(upstream)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def relay(self) -> None:
                proxy.requests.append(self.command)
                if self.headers.get("Expect", "").lower() == "100-continue":
                    # The body has been asked for already by the base class.
                    del self.headers["Expect"]
                body = self._body()
                fault = Fault.NONE
                if self.command == method and proxy.faults:
                    fault = proxy.faults.popleft()
                if fault is Fault.LOSE_REQUEST:
                    self.close_connection = True
                    return
                if fault is Fault.BUSY:
                    self._answer(503, [], _ERROR % b"SlowDown")
                    return
                connection = http.client.HTTPConnection(str(target.hostname), target.port)
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                response = connection.getresponse()
                content = response.read()
                if proxy._stop_after is not None:
                    proxy._stop_after -= 1
                    if proxy._stop_after == 0:
                        proxy._stop_listening()
                if fault is Fault.HANG:
                    proxy._release.wait(60)
                if fault in (Fault.HANG, Fault.LOSE_ANSWER):
                    self.close_connection = True
                elif fault is Fault.SERVER_ERROR:
                    self._answer(500, [], _ERROR % b"InternalError")
                else:
                    self._answer(response.status, response.getheaders(), content)
                connection.close()

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = relay

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    parts = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    del self.headers["Transfer-Encoding"]
                    body = b"".join(parts)
                    self.headers["Content-Length"] = str(len(body))
                    return body
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response_only(status)
                length = str(len(body))
                for name, value in headers:
                    if name.lower() == "content-length":
                        length = value
                    elif name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Keep the test's output to the test."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint_url(self) -> str:
        """Where to send requests to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop_after(self, requests: int) -> None:
        """After so many more requests nobody listens here any more."""
        self._stop_after = requests

    def _stop_listening(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release.set()
        self._stop_listening()
        self._thread.join(60)
