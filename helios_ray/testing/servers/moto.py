"""The moto S3 emulator as a subprocess.

Why it exists: it starts in about a second, needs only pip, and answers conditional writes
as S3 does. It keeps data in memory and checks no credentials; for durability and
signatures use :class:`helios_ray.testing.servers.ceph.CephServer`.

May import: s3, process.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from helios_ray.testing.servers.process import (
    LOOPBACK,
    MissingServerError,
    ServerProcess,
    free_port,
)
from helios_ray.testing.servers.s3 import S3Server


class MotoServer(S3Server):
    """A running moto server; ``stop`` it or use it in a ``with`` statement.

    A subprocess rather than a thread, so that it neither shares the interpreter lock with
    the test nor survives a ``kill``.

    Raises:
        MissingServerError: moto is not installed.

    Example:
        >>> with MotoServer() as server:
        ...     bucket = server.new_bucket()
        ...     _ = server.client().put_object(Bucket=bucket, Key="a", Body=b"1")
        ...     server.client().get_object(Bucket=bucket, Key="a")["Body"].read()
        b'1'
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("moto") is None:
            raise MissingServerError(
                "MotoServer expected the package moto, which is not installed: "
                "pip install 'moto[server,s3]'"
            )
        super().__init__(port=free_port(), access_key="test", secret_key="test")
        self._directory = tempfile.TemporaryDirectory(prefix="hr-moto-")
        self._process = ServerProcess(
            "moto",
            [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(self.port)],
            log=Path(self._directory.name) / "log",
        )
        self.restart()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint_url}/moto-api/data.json", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def reset(self) -> None:
        """Forget every bucket and object."""
        request = urllib.request.Request(f"{self.endpoint_url}/moto-api/reset", method="POST")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def kill(self) -> None:
        """SIGKILL and reap; what was stored is lost."""
        self._process.kill()

    def restart(self) -> None:
        """Start at the same address after ``kill``, empty."""
        self._process.start()
        self._process.await_ready(self._answers)

    def stop(self) -> None:
        self._process.stop()
        self._directory.cleanup()
