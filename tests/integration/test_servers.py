"""The test servers keep their promises: real, at one address, killable, gone afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import psycopg
import pytest
from botocore.exceptions import ClientError

from helios_ray.testing.servers import (
    CephServer,
    MissingServerError,
    MotoServer,
    PostgresServer,
    S3Server,
    ServerError,
    postgres,
)
from helios_ray.testing.servers.process import ServerProcess, port_answers


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_s3_server_serves_what_fsspec_writes(s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    filesystem = fsspec.filesystem("s3", **s3_server.storage_options)
    filesystem.pipe(f"{bucket}/folder/object", b"content")
    assert filesystem.ls(f"{bucket}/folder", detail=False) == [f"{bucket}/folder/object"]
    answer = s3_server.client().get_object(Bucket=bucket, Key="folder/object")
    assert answer["Body"].read() == b"content"


def test_s3_server_creates_an_object_only_once(s3_server: S3Server) -> None:
    bucket, client = s3_server.new_bucket(), s3_server.client()
    client.put_object(Bucket=bucket, Key="epoch", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="epoch", Body=b"2", IfNoneMatch="*")


def test_moto_is_killed_for_good_and_comes_back_empty_at_the_same_address() -> None:
    with MotoServer() as server:
        bucket, pid, endpoint = server.new_bucket(), server.pid, server.endpoint_url
        server.kill()
        assert not _exists(pid)
        assert not port_answers(server.port)
        server.restart()
        assert server.endpoint_url == endpoint
        names = [b["Name"] for b in server.client().list_buckets()["Buckets"]]
        assert bucket not in names


def test_repr_of_an_s3_server_hides_the_secret(moto_server: MotoServer) -> None:
    assert "secret_key='***'" in repr(moto_server)


def test_postgres_keeps_prepared_transactions_across_a_kill() -> None:
    with PostgresServer() as server:
        dsn, pid = server.new_database(), server.pid
        with psycopg.connect(dsn) as connection:
            connection.execute("create table t (x int)")
        with psycopg.connect(dsn) as connection:
            connection.execute("insert into t values (7)")
            connection.execute("prepare transaction 'kept'")
        server.kill()
        assert not _exists(pid)
        server.restart()
        with psycopg.connect(dsn, autocommit=True) as connection:
            assert connection.execute("select x from t").fetchall() == []
            connection.execute("commit prepared 'kept'")
            assert connection.execute("select x from t").fetchall() == [(7,)]
    assert not server.directory.exists()
    assert not port_answers(server.port)


def test_postgres_runs_binaries_that_other_users_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = postgres._copy_install(postgres._find_binaries(), tmp_path / "closed" / "site")
    (tmp_path / "closed").chmod(0o700)
    monkeypatch.setattr(postgres, "_find_binaries", lambda: binaries)
    with PostgresServer() as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_server_that_ends_at_once_shows_its_log() -> None:
    with pytest.raises(ServerError, match="no_such_setting"):
        PostgresServer(settings={"no_such_setting": 1})


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    process = ServerProcess("x", ["no-such-program-here"], log=tmp_path / "log")
    with pytest.raises(MissingServerError, match="no-such-program-here"):
        process.start()


def test_missing_ceph_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingServerError, match="apt-get install -y --no-install-recommends"):
        CephServer()


@pytest.mark.s3_real
def test_ceph_keeps_acknowledged_objects_across_a_kill_of_all_daemons() -> None:
    with CephServer() as server:
        bucket, pids = server.new_bucket(), server.pids
        server.client().put_object(Bucket=bucket, Key="acknowledged", Body=b"x" * 100_000)
        server.kill()
        assert not any(_exists(pid) for pid in pids)
        server.restart()
        answer = server.client().get_object(Bucket=bucket, Key="acknowledged")
        assert answer["Body"].read() == b"x" * 100_000
    assert not server.directory.exists()


@pytest.mark.s3_real
def test_ceph_checks_signatures(ceph_server: CephServer) -> None:
    options = {**ceph_server.storage_options, "secret": "wrong", "skip_instance_cache": True}
    with pytest.raises(PermissionError):
        fsspec.filesystem("s3", **options).ls(ceph_server.new_bucket())
