"""A server process that a test starts, kills and reaps itself.

Why it exists: a crash test is only honest when the server dies by SIGKILL and is really
gone (reaped) before it is started again. A server started through a shell or a daemon
option is reaped by whoever happens to be process 1, which in a container may be nobody:
it stays a zombie, and PostgreSQL for one then refuses to restart. So every server here is
a direct child of the test process.

Promises: after ``kill`` or ``stop`` returns the process is reaped; servers still running
when the interpreter exits are stopped.

May import: errors. No third-party package.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from helios_ray.errors import ConfigError, ConnectorError

if TYPE_CHECKING:
    from typing_extensions import Self

LOOPBACK = "127.0.0.1"

# Above Ray's worker ports (10002 to 19999), below Linux's outgoing ports (from 32768).
_LOWEST_PORT = 20_000
_HIGHEST_PORT = 32_000


class ServerError(ConnectorError):
    """A server for tests did not start or did not answer; carries the end of its log."""


class MissingServerError(ConfigError):
    """A program that a test server needs is not installed; says what to install."""


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on right now.

    From below the range that systems give to outgoing connections: while a killed server is
    down, one of those could take its port, and it could not come back at its address. (Even
    the connection that asks whether the server is up could: it may meet itself.)

    Raises:
        ServerError: none was found.

    Example:
        >>> _LOWEST_PORT <= free_port() < _HIGHEST_PORT
        True
    """
    for _ in range(100):
        port = random.SystemRandom().randrange(_LOWEST_PORT, _HIGHEST_PORT)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise ServerError(f"found no free port from {_LOWEST_PORT} to {_HIGHEST_PORT}")


def port_answers(port: int) -> bool:
    """Whether something accepts connections on that port of the loopback address."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0):
            return True
    except OSError:
        return False


def _put_down(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


class ServerProcess:
    """One child process with its output in a file.

    Args:
        name: for messages.
        command: program and arguments.
        log: file that the output is appended to.
        env: added to this process's environment.
        user: name of the user to run as, or None for the current one; needs root.
        cwd: working directory.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str = "/",
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self._env = dict(env or {})
        self._user = user
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running: expected a started server.")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; returns at once, usually before it answers.

        Raises:
            MissingServerError: there is no such program.
        """
        if self.running:
            return
        with self.log.open("ab") as output:
            try:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self._env},
                    cwd=self._cwd,
                    # Ctrl-C in the terminal is for the test runner, which then stops us.
                    start_new_session=True,
                    **as_user(self._user),  # type: ignore[call-overload]
                )
            except FileNotFoundError as error:
                raise MissingServerError(
                    f"{self.name}: expected the program {self.command[0]!r}, which is not "
                    f"installed ({error})."
                ) from error
        # Of the process and not of self: the callback must not keep the server alive.
        weakref.finalize(self, _put_down, self._process)

    def await_ready(self, ready: Callable[[], bool], timeout: float = 60.0) -> None:
        """Wait until ``ready()`` is true.

        Args:
            ready: asked every few hundredths of a second.
            timeout: seconds.

        Raises:
            ServerError: the process ended, or did not get ready in time; with its log.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.running:
                code = None if self._process is None else self._process.returncode
                raise ServerError(f"{self.name} ended with code {code}: {self.tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} not ready after {timeout} s: {self.tail()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a power cut would, and reap."""
        if self._process is not None:
            _put_down(self._process)
            self._process = None

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = 20.0) -> None:
        """Ask the process to end, reap it; SIGKILL after ``timeout`` seconds."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        self._process = None

    def tail(self, size: int = 2000) -> str:
        """The end of the log, for messages."""
        try:
            text = self.log.read_bytes()[-size:].decode(errors="replace").strip()
        except OSError as error:
            return f"(no log: {error})"
        return f"the end of its log is\n{text}" if text else f"its log {self.log} is empty"


def as_user(user: str | None) -> dict[str, object]:
    """Arguments for ``subprocess`` to run as ``user``; none to stay who we are."""
    if user is None:
        return {}
    import pwd

    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


class Server:
    """What the servers of this package have in common: a context manager that stops."""

    def stop(self) -> None:
        """End the server in order and delete its data."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
