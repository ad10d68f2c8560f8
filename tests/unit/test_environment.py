"""The environment checks its settings where they are given, describes a job without Ray, and
hands the runtime exactly what was asked for."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import helios_ray
from helios_ray.checkpoint.config import CheckpointConfig
from helios_ray.checkpoint.storage import CheckpointStorage
from helios_ray.connectors.base import Sink
from helios_ray.environment import StreamExecutionEnvironment
from helios_ray.errors import (
    ConfigError,
    MissingColumnError,
    PlanError,
    SinkUnavailableError,
    SourceUnavailableError,
)
from helios_ray.plan.graph import PlanWarning
from helios_ray.plan.physical import Resources
from helios_ray.protocol.restart import FixedDelay, NoRestart
from helios_ray.watermarks import WatermarkStrategy
from tests.unit.plan.fakes import FLIGHTS, FakeSink, FakeSource


@pytest.fixture
def env() -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment()


class Runtime:
    """Stands where the runtime stands and writes down what it is given."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def submit(self, plan: Any, config: Any, **rest: Any) -> Runtime:
        self.calls.append({"plan": plan, "config": config, **rest})
        return self

    def wait(self, *, progress: bool | None = None) -> str:
        return "the result"

    @property
    def call(self) -> dict[str, Any]:
        [only] = self.calls
        return only


class FakeCollect(FakeSink):
    def __init__(self, *, config: CheckpointConfig, job: str, uid: str) -> None:
        super().__init__()
        self.made_with = (config, job, uid)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runtime:
    made = Runtime()
    monkeypatch.setenv("HELIOS_KEY_FILE", str(tmp_path / "keys.json"))
    job = types.ModuleType("helios_ray.runtime.submit")
    job.submit = made.submit  # type: ignore[attr-defined]
    collect = types.ModuleType("helios_ray.runtime.collect")
    collect.CollectSink = FakeCollect  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, job.__name__, job)
    monkeypatch.setitem(sys.modules, collect.__name__, collect)
    return made


def described(env: StreamExecutionEnvironment, sink: Sink | None = None) -> FakeSink:
    sink = sink or FakeSink()
    env.from_source(FakeSource(), uid="in").sink_to(sink, uid="out")
    assert isinstance(sink, FakeSink)
    return sink


# ----------------------------------------------------------------------------------- settings


def test_settings_chain_and_reach_the_plan(env: StreamExecutionEnvironment):
    same = (
        env.with_checkpoint_config(CheckpointConfig())
        .with_parallelism(3)
        .with_max_parallelism(64)
        .with_restart_strategy(FixedDelay(attempts=2))
        .with_buffer_timeout(timedelta(milliseconds=5))
        .with_default_resources(num_cpus=0.25)
        .with_ray_options(num_cpus=2)
        .build()
    )
    assert same is env
    described(env)
    plan = env.compile("job").plan
    assert plan.max_parallelism == 64
    [chain] = plan.chains
    assert (chain.parallelism, chain.resources) == (3, Resources(num_cpus=0.25))


def test_build_is_optional_and_the_defaults_are_small(env: StreamExecutionEnvironment):
    described(env)
    plan = env.compile().plan
    assert (plan.job, plan.max_parallelism) == ("job", 128)
    assert [chain.parallelism for chain in plan.chains] == [1]
    assert repr(env) == "StreamExecutionEnvironment(2 operators, parallelism 1)"


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("with_parallelism", 0, "parallelism must be a whole number from 1, got 0"),
        ("with_parallelism", -2, "parallelism must be a whole number from 1, got -2"),
        ("with_parallelism", 1.5, "parallelism must be a whole number from 1, got 1.5"),
        ("with_max_parallelism", 0, "max_parallelism must be a whole number from 1, got 0"),
        ("with_max_parallelism", 32_769, "max_parallelism must be 1 to 32768, got 32769"),
        ("with_checkpoint_config", {}, "must be given a CheckpointConfig"),
        ("with_restart_strategy", "never", "must be given a RestartStrategy"),
        ("with_buffer_timeout", 5, "must be given a timedelta"),
        ("with_buffer_timeout", timedelta(seconds=-1), "a timedelta from zero"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_where_it_is_given(
    env: StreamExecutionEnvironment, setting: str, value: Any, message: str
):
    with pytest.raises(ConfigError, match=message):
        getattr(env, setting)(value)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"heartbeat_timeout": 10}, r"heartbeat_timeout.* must be given a timedelta"),
        ({"stall_timeout": timedelta(0)}, r"stall_timeout.* must be longer than zero"),
    ],
)
def test_failure_detection_takes_durations(
    env: StreamExecutionEnvironment, limits: dict[str, Any], message: str
):
    with pytest.raises(ConfigError, match=message):
        env.with_failure_detection(**limits)


def test_build_refuses_settings_that_do_not_fit_together(env: StreamExecutionEnvironment):
    env.with_parallelism(8).with_max_parallelism(4)
    with pytest.raises(ConfigError, match=r"1 to max_parallelism \(4\), got 8"):
        env.build()
    described(env)
    with pytest.raises(ConfigError, match="max_parallelism is 4"):
        env.compile()


def test_default_resources_must_be_amounts(env: StreamExecutionEnvironment):
    with pytest.raises(ConfigError, match="num_cpus must be a number from 0, got -1"):
        env.with_default_resources(num_cpus=-1)


# ------------------------------------------------------------------------------------ sources


def test_items_and_ranges_are_sources_with_a_schema(env: StreamExecutionEnvironment):
    assert env.from_items([1, 2], uid="a").schema == pa.schema([("item", pa.int64())])
    rows = env.from_items([{"n": 1}], schema=pa.schema([("n", pa.int8())]), uid="b")
    assert rows.schema == pa.schema([("n", pa.int8())])
    env.from_range(2, 9, 3, uid="c").union(env.from_range(5, uid="d")).print()
    assert "RangeSource(2, 9, 3)" in env.explain(print_=False)


def test_a_source_that_is_none_is_refused_on_its_line(env: StreamExecutionEnvironment):
    with pytest.raises(PlanError, match=r"from_source at .*test_environment\.py:\d+.*'x\.csv'"):
        env.from_source("x.csv")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="expected a WatermarkStrategy, got 'ts'"):
        env.from_source(FakeSource(), "ts")  # type: ignore[arg-type]


def test_a_watermark_column_that_is_not_there_is_refused(env: StreamExecutionEnvironment):
    with pytest.raises(MissingColumnError, match="'ts'"):
        env.from_source(FakeSource(), WatermarkStrategy.monotonic("ts"), uid="in")
    unknown = env.from_source(FakeSource(None), WatermarkStrategy.monotonic("ts"), uid="in")
    assert unknown.schema is None


def test_a_source_with_nothing_to_read_says_so_when_it_is_named(env: StreamExecutionEnvironment):
    class Missing(FakeSource):
        def schema(self) -> pa.Schema:
            raise SourceUnavailableError("no file matches 'nowhere/*.csv'")

    with pytest.raises(SourceUnavailableError, match="nowhere"):
        env.from_source(Missing(), uid="in")


def test_the_watermark_strategy_travels_in_the_plan(env: StreamExecutionEnvironment):
    schema = FLIGHTS.append(pa.field("ts", pa.timestamp("us")))
    strategy = WatermarkStrategy.bounded_out_of_orderness("ts", timedelta(seconds=2))
    env.from_source(FakeSource(schema), strategy, uid="in").sink_to(FakeSink(), uid="out")
    source = env.compile().plan.chain("in").source
    assert source is not None
    assert source.watermarks == strategy


# --------------------------------------------------------------------------------- execution


def test_execute_hands_everything_over_and_waits(
    env: StreamExecutionEnvironment, runtime: Runtime, tmp_path: Path
):
    config = CheckpointConfig(storage=CheckpointStorage.local(str(tmp_path)))
    env.with_checkpoint_config(config).with_restart_strategy(NoRestart())
    env.with_buffer_timeout(timedelta(milliseconds=7)).with_ray_options(address="auto")
    env.with_failure_detection(heartbeat_timeout=timedelta(seconds=3))
    env.with_failure_detection(stall_timeout=timedelta(seconds=60))
    described(env)
    assert env.execute("routes", allow_unmatched_state=True, progress=False) == "the result"
    call = runtime.call
    assert call["plan"].job == "routes"
    assert call["config"] == config.prepared()
    assert call["restart_strategy"] == NoRestart()
    options = call["options"]
    assert options.buffer_timeout == timedelta(milliseconds=7)
    assert options.ray_options == {"address": "auto"}
    assert (options.allow_unmatched_state, options.progress, options.detached) == (
        True,
        False,
        False,
    )


def test_execute_async_returns_the_handle_at_once(
    env: StreamExecutionEnvironment, runtime: Runtime
):
    described(env)
    assert env.execute_async("routes", detached=True) is runtime
    assert runtime.call["options"].detached is True


def test_a_job_resumes_from_its_latest_checkpoint_unless_told_otherwise(
    env: StreamExecutionEnvironment, runtime: Runtime
):
    described(env)
    env.execute("a")
    env.execute("a", restore=None)
    env.execute("a", restore=42)
    env.execute("a", restore=Path("savepoints") / "before")
    assert [call["restore"] for call in runtime.calls] == [
        "latest",
        None,
        42,
        "savepoints/before",
    ]


@pytest.mark.parametrize("restore", [0, -1, True, 1.5, ["latest"], ""])
def test_a_place_to_restore_from_that_cannot_be_is_refused(
    env: StreamExecutionEnvironment, runtime: Runtime, restore: Any
):
    described(env)
    with pytest.raises(ConfigError, match="restore must be 'latest'"):
        env.execute("a", restore=restore)
    assert runtime.calls == []


def test_without_a_config_a_job_has_the_defaults(env: StreamExecutionEnvironment, runtime: Runtime):
    described(env)
    env.execute("a")
    assert runtime.call["config"] == CheckpointConfig().prepared()


def test_each_sink_is_checked_against_the_rows_to_come_before_anything_starts(
    env: StreamExecutionEnvironment, runtime: Runtime
):
    class NoServer(FakeSink):
        def check(self, schema: pa.Schema | None) -> None:
            super().check(schema)
            raise SinkUnavailableError("nothing answers at localhost:1")

    sink = described(env, NoServer())
    env.explain(print_=False)
    assert sink.checked == []
    with pytest.raises(SinkUnavailableError):
        env.execute("a")
    assert sink.checked == [FLIGHTS]
    assert runtime.calls == []


def test_a_collecting_sink_is_given_the_jobs_storage(
    env: StreamExecutionEnvironment, runtime: Runtime
):
    config = CheckpointConfig()
    env.with_checkpoint_config(config)
    env.from_source(FakeSource(), uid="in").collect(uid="rows")
    env.execute("routes")
    spec = runtime.call["plan"].chain("in").sink
    one, two = spec.factory(), spec.factory()
    # With its keys: a process elsewhere would look for them in its own environment.
    assert one.made_with == (config.prepared(), "routes", "rows")
    assert one.made_with[0].encryption.key_provider is not None
    assert one is not two


def test_a_missing_uid_is_warned_about_once_and_at_the_users_own_line(
    env: StreamExecutionEnvironment, runtime: Runtime
):
    stream = env.from_source(FakeSource())
    stream.sink_to(FakeSink(), uid="out")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env.explain(print_=False)
        env.execute("a")
        env.execute("a")
    assert len(runtime.calls) == 2
    [warning] = [w for w in caught if issubclass(w.category, PlanWarning)]
    assert warning.filename == __file__
    line = Path(__file__).read_text().splitlines()[warning.lineno - 1]
    assert line.strip() == "stream = env.from_source(FakeSource())"
    assert "uid='source-1'" in str(warning.message)


def test_a_job_that_cannot_run_never_reaches_the_runtime(
    env: StreamExecutionEnvironment, runtime: Runtime
):
    with pytest.raises(PlanError, match="at least one sink"):
        env.execute("a")
    described(env)
    with pytest.raises(ConfigError, match="job name"):
        env.execute("a job/../up")
    assert runtime.calls == []


# -------------------------------------------------------------------------------- the package


def test_importing_the_package_and_describing_a_job_imports_no_ray():
    program = """
import sys
import helios_ray
assert "pyarrow" not in sys.modules, "import helios_ray imported Arrow"
from helios_ray import StreamExecutionEnvironment, WatermarkStrategy, FixedDelay, CheckpointConfig
from helios_ray.aggregates import count
env = StreamExecutionEnvironment()
env.from_items([1, 2], uid="in").key_by("item").aggregate(n=count(), uid="n").print()
assert "aggregate" in env.explain(print_=False)
assert "ray" not in sys.modules, "describing a job imported Ray"
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "fine\n", done.stderr


def test_every_public_name_has_a_home_and_is_listed():
    assert set(helios_ray._HOME) | {"__version__"} == set(helios_ray.__all__)
    assert set(dir(helios_ray)) >= set(helios_ray.__all__)
    assert helios_ray.PlanWarning is PlanWarning
    assert helios_ray.StreamExecutionEnvironment is StreamExecutionEnvironment
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = helios_ray.Nothing
