"""Real servers for the integration tests, one of each per test session.

Tests marked ``s3_real`` need Ceph's packages and run only under ``pytest -m s3_real``
(``make test-s3``); the ordinary run deselects the mark.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from helios_ray.testing.servers import CephServer, MotoServer, PostgresServer, S3Server

# Read when Ray is imported, so set before any test module can do that.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of the session's own, two CPUs wide. Jobs share it, so each has its own name."""
    import ray

    # Paths of Unix sockets may be 107 bytes long: pytest's own directories are too deep.
    directory = tempfile.mkdtemp(prefix="hr-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        _temp_dir=directory,
    )
    yield
    ray.shutdown()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[MotoServer]:
    """An S3 emulator. Take a ``new_bucket()`` each; do not ``kill`` the shared one."""
    with MotoServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL. Tests that kill it must restart it; it keeps its address."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh, empty database, dropped afterwards with whatever was left prepared in it."""
    dsn = postgres_server.new_database()
    yield dsn
    postgres_server.drop_database(dsn)


@pytest.fixture(scope="session")
def ceph_server() -> Iterator[CephServer]:
    """A real S3 server. Tests that kill it must restart it; it keeps address and data."""
    with CephServer() as server:
        yield server


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.s3_real)])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """The S3 server of the run: moto ordinarily, Ceph too under ``-m s3_real``."""
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server
