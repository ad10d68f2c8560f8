"""examples/database_sink.py as its docstring says to run it, against a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg

EXAMPLE = Path(__file__).parents[3] / "examples" / "database_sink.py"


def run(dsn: str, place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), dsn],
        env={
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "HELIOS_KEY_FILE": str(place / "keys.json"),
            # A Ray of its own, whatever else runs on this machine.
            "RAY_ADDRESS": "local",
        },
        cwd=place,  # .helios/checkpoints is made here
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )


def test_the_example_commits_each_event_once_however_often_it_is_run(
    postgres_dsn: str, tmp_path: Path
) -> None:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("create table events (id bigint, data text, at timestamptz)")
        connection.execute("create table event_commits (transaction text primary key)")

        first = run(postgres_dsn, tmp_path)
        assert first.returncode == 0, first.stderr
        assert "database-sink: finished" in first.stdout

        def stored() -> list[tuple[int, str]]:
            return connection.execute("select id, data from events order by id").fetchall()

        assert stored() == [(n, f"event {n}") for n in range(1_000)]
        assert connection.execute("select count(*) from pg_prepared_xacts").fetchone() == (0,)

        # The job had finished: run again, it finds nothing left to do.
        second = run(postgres_dsn, tmp_path)
        assert second.returncode == 0, second.stderr
        assert stored() == [(n, f"event {n}") for n in range(1_000)]
