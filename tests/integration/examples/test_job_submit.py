"""examples/flights.py under ``ray job submit``, on a head that demands a token.

The head is a real one, started here: it takes the code from the working directory that is
submitted with the job, as a cluster would, and nobody without the token gets in.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helios_ray.connectors.files import read_committed
from helios_ray.testing.servers import free_port
from helios_ray.testing.servers.process import ServerProcess

REPOSITORY = Path(__file__).parents[3]
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    address: str
    environment: dict[str, str]
    token: str

    def get(self, path: str, token: str | None) -> int:
        """The HTTP status of a request to the job API; 0 if nobody answers."""
        request = urllib.request.Request(self.address + path)
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


@pytest.fixture
def place() -> Iterator[Path]:
    # Not tmp_path: the sockets of Ray live in here, and their paths may not be long.
    path = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def head(place: Path) -> Iterator[Head]:
    token = secrets.token_hex(32)
    (place / "token").write_text(token)
    (place / "token").chmod(0o600)
    port, dashboard = free_port(), free_port()
    environment = {
        # `python` in the command of a job is this one.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(place / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        # Fixed ports otherwise, which another Ray on this machine may have.
        "AUTOSCALER_METRIC_PORT": "0",
        "DASHBOARD_METRIC_PORT": "0",
    }
    process = ServerProcess(
        "ray start --head",
        [
            *(RAY, "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", f"--port={port}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *("--dashboard-agent-listen-port=0", f"--ray-client-server-port={free_port()}"),
            *("--num-cpus=2", f"--object-store-memory={200 << 20}", f"--temp-dir={place / 'ray'}"),
        ],
        log=place / "head.log",
        env=environment,
    )
    head = Head(f"http://127.0.0.1:{dashboard}", environment, token)
    process.start()
    try:
        process.await_ready(lambda: head.get("/api/jobs/", token) == 200)
        yield head
    finally:
        # Ray leaves helpers of its dashboard behind: end what descends from our head.
        family = psutil.Process(process.pid).children(recursive=True)
        process.stop()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive


@pytest.fixture
def working_directory(place: Path) -> Path:
    """What of the repository a job needs."""
    copy = place / "repository"
    for folder in ("helios_ray", "examples"):
        shutil.copytree(
            REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    return copy


def flights() -> pa.Table:
    """A handful of departures: some cancelled (no delay), one route without any arrival."""
    n = range(3_000)
    return pa.table(
        {
            "carrier": [("UA", "B6", "DL")[i % 3] for i in n],
            "origin": [("EWR", "JFK")[i % 2] for i in n],
            "dest": ["LGA" if i == 7 else ("MIA", "BOS", "ORD", "ATL")[i % 4] for i in n],
            "distance": pa.array([200 + i % 1_000 for i in n], pa.int64()),
            "arr_delay": pa.array(
                [None if i % 50 == 7 else i * 31 % 300 - 60 for i in n], pa.int64()
            ),
        }
    )


def submit(head: Head, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", "submit", "--address", head.address, *arguments],
        env={**os.environ, **head.environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def ordered(table: pa.Table, *keys: str) -> pa.Table:
    return table.sort_by([(key, "ascending") for key in keys]).combine_chunks()


def test_a_submitted_job_commits_what_plain_arrow_computes(
    head: Head, place: Path, working_directory: Path
) -> None:
    table = flights()
    (place / "input").mkdir()
    for n in range(3):
        pq.write_table(
            table.slice(n * 1_000, 1_000), place / f"input/{n}.parquet", row_group_size=250
        )

    assert head.get("/api/jobs/", None) == 401
    assert head.get("/api/jobs/", "0" * 64) in (401, 403)

    done = submit(
        head,
        *("--working-dir", str(working_directory), "--"),
        *("python", "examples/flights.py", "--name", "submitted"),
        *("--input", str(place / "input"), "--output", str(place / "output")),
        *("--checkpoints", str(place / "checkpoints"), "--interval", "0.5"),
        *("--key-file", str(place / "keys.json"), "--rows-per-second", "1500"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flights: finished" in done.stdout

    carriers = read_committed(place / "output/carriers")
    said = {}
    for row in carriers.to_pylist():
        said.setdefault(row["carrier"], []).append(row["flights"])
    assert {c: sorted(n) for c, n in said.items()} == {
        c: list(range(1, 1_001)) for c in ("UA", "B6", "DL")
    }

    routes = read_committed(place / "output/routes")
    plain = table.group_by(["origin", "dest"]).aggregate(
        [([], "count_all"), ("arr_delay", "count"), ("arr_delay", "mean"), ("arr_delay", "max")]
    )
    expected = plain.rename_columns(routes.column_names)
    assert ordered(routes, "origin", "dest").equals(ordered(expected, "origin", "dest"))
    assert routes["mean_delay"].null_count == 1  # the route that nobody arrived on

    # It ran in several checkpoints, and none of them shows what it holds.
    kept = sorted((place / "checkpoints/submitted/checkpoints").iterdir())
    assert int(kept[-1].name) > 1
    stored = [p.read_bytes() for p in (place / "checkpoints").rglob("*") if p.is_file()]
    assert not any(b"carrier" in content or b"arr_delay" in content for content in stored)
