"""Real servers that a test starts, kills and restarts: S3 (moto, Ceph) and PostgreSQL.

Why it exists: users test their own jobs too. Each server runs on a free port of the
loopback address, is a child of the test process, and is a context manager::

    with PostgresServer() as server:
        sink = PostgresSink(server.dsn, table="results")
        ...
        server.kill()       # SIGKILL: what survives is what was durable
        server.restart()    # same address

As a pytest fixture::

    @pytest.fixture(scope="session")
    def postgres_server():
        with PostgresServer() as server:
            yield server

May import: errors.
"""

from __future__ import annotations

from helios_ray.testing.servers.ceph import CephServer
from helios_ray.testing.servers.moto import MotoServer
from helios_ray.testing.servers.postgres import PostgresServer
from helios_ray.testing.servers.process import MissingServerError, Server, ServerError, free_port
from helios_ray.testing.servers.s3 import S3Server

__all__ = [
    "CephServer",
    "MissingServerError",
    "MotoServer",
    "PostgresServer",
    "S3Server",
    "Server",
    "ServerError",
    "free_port",
]
