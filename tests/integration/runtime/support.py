"""What the runtime's tests share: a job whose input the test writes while the job runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from helios_ray import DataStream, JobHandle, NoRestart, RestartStrategy, StreamExecutionEnvironment
from helios_ray.aggregates import count
from helios_ray.checkpoint import CheckpointConfig
from helios_ray.connectors.files import FileSink, read_committed
from helios_ray.runtime.deployment import NAMESPACE
from helios_ray.testing import EventLog, EventLogSource, await_committed, create_test_config

ROOT = Path(__file__).resolve().parents[3]
WAIT = timedelta(minutes=4)
SOON = timedelta(milliseconds=100)


_ENVIRONMENTS: dict[int, StreamExecutionEnvironment] = {}


def env_of(events: DataStream) -> StreamExecutionEnvironment:
    """The environment of a stream, for transforms that read more than the log."""
    return _ENVIRONMENTS[id(events._graph)]


def count_per_event(events: DataStream) -> DataStream:
    """Keyed state in the middle, in actors of its own."""
    return events.key_by("event_id").aggregate(times=count(), emit="every", uid="count")


def pass_on(events: DataStream) -> DataStream:
    """No operator at all: source and sink share one actor."""
    return events


@dataclass
class Flow:
    """A log, a job that follows it, and the files that it writes."""

    name: str
    directory: Path
    config: CheckpointConfig
    parallelism: int = 1
    transform: Any = pass_on
    restart: RestartStrategy | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, directory: Path, **settings: Any) -> Flow:
        # Kept long enough to be looked into, however often they are taken.
        checkpoints = {"retain_count": 20, **settings.pop("checkpoints", {})}
        return cls(name, directory, create_test_config(directory, **checkpoints), **settings)

    @property
    def log(self) -> EventLog:
        return EventLog(self.directory / "events", partitions=2)

    @property
    def output(self) -> Path:
        return self.directory / "output"

    def emit(self, *ids: int) -> None:
        self.log.append(ids)

    def environment(self) -> StreamExecutionEnvironment:
        _ = self.log
        self.output.mkdir(exist_ok=True)
        env = StreamExecutionEnvironment().with_checkpoint_config(self.config)
        env.with_parallelism(self.parallelism)
        if self.restart is not None:
            env.with_restart_strategy(self.restart)
        for setting, value in self.options.items():
            getattr(env, setting)(**value)
        events = env.from_source(EventLogSource(self.directory / "events"), uid="source")
        _ENVIRONMENTS[id(events._graph)] = env
        self.transform(events).sink_to(FileSink(self.output), uid="sink")
        return env

    def start(self, **arguments: Any) -> JobHandle:
        return self.environment().execute_async(self.name, **arguments)

    def settled(self, job: JobHandle) -> Counter[int]:
        """How often each id came out, once all that was emitted is committed."""
        await_committed(job, self.log)
        return self.ids()

    def ids(self) -> Counter[int]:
        return Counter(column(self.output, "event_id"))

    def staged(self) -> list[str]:
        """Files that are prepared or half-written."""
        return [str(p) for p in (self.output / ".staging").rglob("*") if p.is_file()]


def once(ids: range) -> Counter[int]:
    return Counter(dict.fromkeys(ids, 1))


def column(path: Path, name: str) -> list[Any]:
    table: pa.Table = read_committed(path)
    values: list[Any] = table.column(name).to_pylist() if table.num_rows else []
    return values


def no_restart(flow: Flow) -> Flow:
    flow.restart = NoRestart()
    return flow


def actor_names(job: str) -> list[str]:
    """Living actors of a job."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return sorted(
        a["name"]
        for a in found
        if a["namespace"] == NAMESPACE and a["name"].startswith(f"helios:{job}:")
    )


def run_program(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Another driver, in a process of its own; talks by lines."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
    )


def said(process: subprocess.Popen[str], word: str) -> str:
    """Read what a program prints until a line starts with ``word``; return the rest of it."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(word):
            return line.removeprefix(word).strip()
    raise AssertionError(f"the program ended ({process.wait()}) without saying {word!r}")


def batches(rows: int, size: int) -> Iterator[range]:
    for start in range(0, rows, size):
        yield range(start, min(rows, start + size))
