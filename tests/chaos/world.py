"""Ray, PostgreSQL and S3 around one job, and what can be seen of it from outside.

Why it exists: the run, its progress line and its end look at the world in one place; and the
world goes away when it is closed, whatever has happened, but for the logs of a failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import warnings
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
import ray

from helios_ray.checkpoint import CheckpointConfigWarning, CheckpointStorage
from helios_ray.identifiers import TaskId
from helios_ray.runtime import failpoints
from helios_ray.runtime.deployment import NAMESPACE, coordinator_name
from helios_ray.runtime.failpoints import COORDINATOR
from helios_ray.testing.servers import MotoServer, PostgresServer
from tests.chaos.job import JOB, TABLE, build, write_horizon

OUTPUT = "output"
CHECKPOINTS = "checkpoints"
AHEAD = 5.0
"""Seconds of input that the source may be ahead of PostgreSQL."""
ANSWER = 10.0
"""Seconds that an actor may take to answer a question."""


class World:
    """Everything that a run needs, up and running; close it.

    Args:
        seed: chooses the file format, the checkpoint interval and where checkpoints go.
        rows_per_second: of the source.
    """

    def __init__(self, seed: int, rows_per_second: float) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hr-chaos-", dir="/tmp"))
        self.rows_per_second = rows_per_second
        self.failpoints = self.directory / "failpoints"
        self._horizon_file = self.directory / "horizon"
        self._horizon = 0
        self._ended = threading.Event()
        self.keys = self.directory / "keys.json"
        self.failpoints.mkdir()
        self.keep = False
        self._servers: list[Any] = []
        # Ray tells the driver of every process that dies: here, that is a line per kill and more.
        self._log = (self.directory / "driver.log").open("w")
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(contextlib.redirect_stdout(self._log))
        self._quiet.enter_context(contextlib.redirect_stderr(self._log))
        try:
            self._start(seed)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self.keep = self.keep or kind is not None
        self.close()

    def _start(self, seed: int) -> None:
        self.postgres = PostgresServer(settings={"track_commit_timestamp": "on"})
        self._servers.append(self.postgres)
        self.s3 = MotoServer()
        self._servers.append(self.s3)
        self.bucket = self.s3.new_bucket()
        self.format = ("jsonl", "parquet")[seed % 2]
        self.interval = timedelta(milliseconds=(300, 400, 500)[seed % 3])
        self.storage = self._storage("s3" if seed % 4 < 2 else "local")
        # Every process that Ray starts from here on inherits it.
        os.environ[failpoints.VARIABLE] = str(self.failpoints)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # A cluster of one's own on the loopback address, for the length of a test.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 << 20,
            log_to_driver=False,
            logging_config=ray.LoggingConfig(encoding="JSON", log_level="INFO"),
            _temp_dir=str(self.directory / "ray"),
        )
        with warnings.catch_warnings():
            # An interval this short costs what it costs.
            warnings.simplefilter("ignore", CheckpointConfigWarning)
            env = build(
                seed=seed,
                rows_per_second=self.rows_per_second,
                interval=self.interval,
                horizon=self._horizon_file,
                dsn=self.postgres.dsn,
                output=f"s3://{self.bucket}/{OUTPUT}",
                output_options=self.s3.storage_options,
                format=self.format,
                storage=self.storage,
                keys=self.keys,
            )
        self._reader = psycopg.connect(self.postgres.dsn, autocommit=True)
        self._raise_horizon(0)
        self._ahead = threading.Thread(target=self._keep_ahead, name="horizon", daemon=True)
        self._ahead.start()
        self.job = env.execute_async(JOB)
        self.coordinator = ray.get_actor(coordinator_name(JOB), namespace=NAMESPACE)

    def _storage(self, kind: str) -> CheckpointStorage:
        self.stored = kind
        if kind == "local":
            return CheckpointStorage.local(self.directory / CHECKPOINTS)
        return CheckpointStorage.S3(
            bucket=self.bucket,
            prefix=CHECKPOINTS,
            region=self.s3.region,
            endpoint_url=self.s3.endpoint_url,
            key=self.s3.access_key,
            secret=self.s3.secret_key,
        )

    # ------------------------------------------------------------------------- processes

    def pid(self, victim: str, subtask: int) -> int:
        """The process that runs the coordinator or a task now."""
        actor = self.coordinator
        if victim != COORDINATOR:
            tasks = ray.get(self.coordinator.task_handles.remote(), timeout=ANSWER)
            actor = tasks[TaskId(victim, subtask)]
        pid: int = ray.get(actor.pid.remote(), timeout=ANSWER)
        return pid

    def report(self) -> Any:
        """What the coordinator says of the job, if it says anything."""
        return ray.get(self.coordinator.report.remote(), timeout=ANSWER)

    # ---------------------------------------------------------------------------- output

    def output_epoch(self) -> int:
        """The newest attempt at the job of which PostgreSQL shows rows."""
        found = self._read("select max(epoch) from helios_transactions")
        return int(found or 0)

    def output_rows(self) -> int:
        """How many rows PostgreSQL shows."""
        return int(self._read(f"select count(*) from {TABLE}") or 0)

    def _read(self, query: str) -> Any:
        try:
            row = self._reader.execute(query).fetchone()
        except psycopg.errors.UndefinedTable:
            return None  # the job has not come to its first row
        return None if row is None else row[0]

    # ----------------------------------------------------------------------------- input

    def end_input(self) -> int:
        """There shall be no more rows than the source may have read; return how many."""
        self._ended.set()
        self._ahead.join()
        write_horizon(self._horizon_file, self._horizon, end=True)
        return self._horizon

    def _keep_ahead(self) -> None:
        """Let the source read a few seconds ahead of its output, for as long as it goes on."""
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            while not self._ended.wait(0.5):
                with contextlib.suppress(psycopg.errors.UndefinedTable):
                    row = connection.execute(f"select max(n) from {TABLE}").fetchone()
                    self._raise_horizon(0 if row is None or row[0] is None else row[0])

    def _raise_horizon(self, newest: int) -> None:
        self._horizon = max(self._horizon, newest + int(AHEAD * self.rows_per_second))
        write_horizon(self._horizon_file, self._horizon, end=False)

    # -------------------------------------------------------------------------- the end

    def logs(self) -> Path:
        """Where Ray's processes log."""
        return self.directory / "ray" / "session_latest" / "logs"

    def close(self) -> None:
        """Stop everything; delete everything, unless a failure is to be looked into."""
        self._ended.set()
        ray.shutdown()
        self._quiet.close()
        self._log.close()
        os.environ.pop(failpoints.VARIABLE, None)
        for server in reversed(self._servers):
            server.stop()
        if not self.keep:
            shutil.rmtree(self.directory, ignore_errors=True)
