"""Real servers for the integration tests, one of each per test session.

Tests marked ``s3_real`` need Ceph's packages and run only under ``pytest -m s3_real``
(``make test-s3``); the ordinary run deselects the mark.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helios_ray.testing.servers import CephServer, MotoServer, PostgresServer, S3Server


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
