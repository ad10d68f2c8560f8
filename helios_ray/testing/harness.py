"""The guide's test pipeline, really on Ray: emit events, break things, count what came out.

Why it exists: "exactly once" is a claim that everybody should be able to test, with the
guide's own words, and with their own operators in the middle::

    source, sink = create_test_pipeline(create_test_config())
    source.emit_events(range(5_000))
    source.trigger_checkpoint()
    source.emit_events(range(5_000, 10_000))
    source.simulate_operator_failure()
    source, sink = recover_pipeline(source.config)
    assert sink.get_all_event_ids() == set(range(10_000))

The job: an append-only log that the test writes (:mod:`helios_ray.testing.event_log`), a
keyed operator with state, and a transactional Parquet sink whose committed files are read
from outside. Events, output and the job's name live beside the checkpoints, so a pipeline is
found again from the configuration alone, in another process too.

May import: everything below, and ``ray``.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from helios_ray.aggregates import count, max_
from helios_ray.checkpoint.config import (
    CheckpointConfig,
    CheckpointConfigWarning,
    EncryptionConfig,
)
from helios_ray.checkpoint.key_file import FileKeyProvider
from helios_ray.checkpoint.layout import manifest_of
from helios_ray.checkpoint.storage import CheckpointStorage, LocalStorage
from helios_ray.connectors.files import FileSink, read_committed
from helios_ray.environment import StreamExecutionEnvironment
from helios_ray.errors import CheckpointNotFoundError, ConfigError, JobError
from helios_ray.protocol.instructions import JobStatus
from helios_ray.runtime.job import JobHandle
from helios_ray.stream import DataStream
from helios_ray.testing.event_log import EventLog, EventLogSource
from helios_ray.testing.faults import kill_operator, lose_job
from helios_ray.testing.waiting import await_committed, await_report, await_running

Transform: TypeAlias = Callable[[DataStream], DataStream]
"""The operators between source and sink. Rows come with the columns ``event_id`` and
``batch`` (int64) and must leave with them."""

PARALLELISM = 2
_POINTER = "pipeline.json"


def count_per_event(events: DataStream) -> DataStream:
    """The default operators: how often each id has been seen, as keyed state in the middle."""
    return events.key_by("event_id").aggregate(
        batch=max_("batch"), times=count(), emit="every", uid="operator"
    )


@dataclass(frozen=True)
class _Pipeline:
    """What there is to know of a pipeline besides its checkpoints."""

    config: CheckpointConfig
    job: str
    directory: Path
    transform: Transform = field(default=count_per_event)

    @property
    def events(self) -> Path:
        return self.directory / self.job / "events"

    @property
    def output(self) -> Path:
        return self.directory / self.job / "output"

    def start(self, restore: str | int | None) -> JobHandle:
        env = StreamExecutionEnvironment().with_checkpoint_config(self.config)
        env.with_parallelism(PARALLELISM).with_buffer_timeout(timedelta(milliseconds=2))
        events = env.from_source(EventLogSource(self.events), uid="source")
        self.transform(events).sink_to(FileSink(self.output), uid="sink")
        return env.execute_async(self.job, restore=restore)


_TRANSFORMS: dict[str, Transform] = {}
"""What the pipelines of this process were created with, by job: functions leave no trace in
storage."""


class TestSource:
    """The end of the pipeline where events go in, and from which it is driven and broken."""

    __test__ = False  # pytest must not take it for a test

    def __init__(self, pipeline: _Pipeline, job: JobHandle) -> None:
        self._pipeline = pipeline
        self._log = EventLog(pipeline.events, PARALLELISM)
        self.job = job

    @property
    def config(self) -> CheckpointConfig:
        """What the pipeline was created with."""
        return self._pipeline.config

    def emit_events(self, event_ids: Iterable[int]) -> None:
        """Append events to the log, for good. Emitting an id again is another event."""
        self._log.append(event_ids)

    def wait_for_completion(self, timeout: timedelta = timedelta(minutes=2)) -> None:
        """Wait until everything emitted so far is processed and committed.

        Raises:
            JobError: the job has ended; recover the pipeline.
            TimeoutError: it takes longer than ``timeout``.
        """
        await_committed(self.job, self._log, "source", timeout)

    def trigger_checkpoint(self) -> Path:
        """Take a checkpoint now, wait until it is committed, and return its manifest's path.

        Raises:
            CheckpointError: it failed.
            JobError: the job has ended.
        """
        await_running(self.job)
        return Path(self.job.trigger_checkpoint().path)

    def simulate_operator_failure(self) -> None:
        """SIGKILL the process of one operator. The job notices and recovers by itself."""
        kill_operator(self.job, "sink")

    def simulate_failure(self) -> None:
        """Lose the whole job at once, coordinator and all: only storage is left."""
        lose_job(self.job)

    def is_healthy(self) -> bool:
        """Whether the job runs and takes checkpoints."""
        try:
            await_running(self.job)
            self.job.trigger_checkpoint()
        except JobError:
            return False
        return self.job.status() is JobStatus.RUNNING

    def close(self) -> None:
        """End the job. Its checkpoints and output stay."""
        self.job.cancel()


class TestSink:
    """The end where results come out: what a reader of the committed files sees."""

    __test__ = False

    def __init__(self, pipeline: _Pipeline, source: TestSource) -> None:
        self._pipeline = pipeline
        self._source = source

    def rows(self) -> pa.Table:
        """Every committed row, once all that was emitted so far is committed; duplicates, if
        there were any, included."""
        self._source.wait_for_completion()
        return read_committed(self._pipeline.output)

    def get_all_event_ids(self) -> set[int]:
        """The ids of all committed events."""
        return set(self._column("event_id"))

    def count_unique_events(self) -> int:
        """How many different events are committed; an id emitted twice is two events."""
        rows = self.rows()
        if not rows.num_rows:
            return 0
        return int(rows.group_by(["event_id", "batch"]).aggregate([]).num_rows)

    def count_rows(self) -> int:
        """How many rows are committed: more than there are events if one came out twice."""
        return int(self.rows().num_rows)

    def _column(self, name: str) -> list[Any]:
        rows = self.rows()
        values: list[Any] = rows.column(name).to_pylist() if rows.num_rows else []
        return values


def create_test_config(
    directory: str | os.PathLike[str] | None = None, **settings: Any
) -> CheckpointConfig:
    """A checkpoint configuration with storage and keys of its own.

    Args:
        directory: where everything goes; a new temporary directory by default.
        settings: for :class:`CheckpointConfig`. ``interval`` is a minute unless given, so that
            a test decides itself what is checkpointed when.

    Raises:
        ConfigError: a setting is wrong.

    Example:
        >>> create_test_config().interval
        datetime.timedelta(seconds=60)
    """
    root = Path(directory if directory is not None else tempfile.mkdtemp(prefix="helios-test-"))
    settings.setdefault("storage", CheckpointStorage.local(root / "checkpoints"))
    if "encryption" not in settings:
        keys = FileKeyProvider(root / "keys.json")
        settings["encryption"] = EncryptionConfig(key_provider=keys)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointConfigWarning)
        return CheckpointConfig(**settings)


def create_test_pipeline(
    config: CheckpointConfig,
    transform: Transform = count_per_event,
    *,
    directory: str | os.PathLike[str] | None = None,
) -> tuple[TestSource, TestSink]:
    """Start a new, empty pipeline on the Ray cluster (a local one if there is none).

    Args:
        config: the same configuration finds the pipeline again; see :func:`recover_pipeline`.
        transform: your own operators; see :data:`Transform`.
        directory: where events and output go; beside the checkpoints if those are local.

    Raises:
        ConfigError: the checkpoints are not local and no directory is given.

    Example:
        A job of one's own under test::

            source, sink = create_test_pipeline(
                create_test_config(), lambda events: events.map(enrich, uid="enrich")
            )
    """
    place = _directory(config, directory)
    place.mkdir(parents=True, exist_ok=True)
    pipeline = _Pipeline(config, f"pipeline-{secrets.token_hex(4)}", place, transform)
    pipeline.output.mkdir(parents=True)
    EventLog(pipeline.events, PARALLELISM)
    (place / _POINTER).write_text(json.dumps({"job": pipeline.job}))
    _TRANSFORMS[pipeline.job] = transform
    return _ends(pipeline, pipeline.start(restore=None))


def recover_pipeline(
    config: CheckpointConfig,
    transform: Transform | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
) -> tuple[TestSource, TestSink]:
    """Bring the newest pipeline of a configuration back after a failure.

    A job that is recovering by itself is waited for; one that is gone is started again from
    its newest checkpoint.

    Args:
        config: as for :func:`create_test_pipeline`.
        transform: needed only in another process than the one that created the pipeline.
        directory: as there.

    Raises:
        ConfigError: no pipeline was ever created there.
        JobFailedError: it cannot be brought back.
    """
    place = _directory(config, directory)
    try:
        job = str(json.loads((place / _POINTER).read_text())["job"])
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no pipeline in {place}. Make one with create_test_pipeline(config)."
        ) from error
    pipeline = _Pipeline(config, job, place, transform or _transform_of(job))
    return _ends(pipeline, _running(job) or pipeline.start(restore="latest"))


def recover_from_checkpoint(
    path: str | os.PathLike[str],
    config: CheckpointConfig | None = None,
    transform: Transform | None = None,
) -> tuple[TestSource, TestSink]:
    """Start a pipeline again from one checkpoint. A run that is still under way ends first.

    Args:
        path: of its manifest, as ``trigger_checkpoint`` returned it.
        config: needed if the keys are not in the default key file.
        transform: as for :func:`recover_pipeline`.

    Raises:
        CheckpointNotFoundError: ``path`` is no manifest's.
        JobFailedError: the pipeline cannot be started from there.
    """
    manifest = Path(path).absolute()
    checkpoint = manifest_of("/".join(manifest.parts[-3:]))
    if checkpoint is None or not manifest.exists():
        raise CheckpointNotFoundError(
            f"expected the path of a manifest (…/checkpoints/0000000042/manifest), got {path}"
        )
    storage, job = manifest.parents[3], manifest.parents[2].name
    config = config or CheckpointConfig(storage=CheckpointStorage.local(storage))
    pipeline = _Pipeline(config, job, _directory(config, None), transform or _transform_of(job))
    running = _running(job)
    if running is not None:
        running.cancel()
    return _ends(pipeline, pipeline.start(restore=checkpoint))


def _ends(pipeline: _Pipeline, job: JobHandle) -> tuple[TestSource, TestSink]:
    await_running(job)
    source = TestSource(pipeline, job)
    return source, TestSink(pipeline, source)


def _running(job: str) -> JobHandle | None:
    try:
        handle = JobHandle.attach(job)
        report = await_report(
            handle, lambda r: r.status is JobStatus.RUNNING or r.status.terminal, "its recovery"
        )
    except (ConfigError, JobError):
        return None
    return None if report.status.terminal else handle


def _transform_of(job: str) -> Transform:
    return _TRANSFORMS.get(job, count_per_event)


def _directory(config: CheckpointConfig, directory: str | os.PathLike[str] | None) -> Path:
    if directory is not None:
        return Path(directory).absolute()
    if isinstance(config.storage, LocalStorage):
        path = Path(config.storage.path).absolute()
        return path.with_name(path.name + "-pipeline")
    raise ConfigError(
        f"checkpoints go to {config.storage.describe()}; say where events and output go with "
        f"directory=, which all processes of the job must see."
    )
