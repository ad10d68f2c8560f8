"""Rows of windows are aggregated before the shuffle exactly where that changes nothing that
anybody looks at; ``explain`` says which windows they are."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from helios_ray.aggregates import (
    collect_list,
    count,
    first,
    last,
    max_,
    mean,
    quantile,
    sum_,
    top_k,
)
from helios_ray.environment import StreamExecutionEnvironment
from helios_ray.errors import ConfigError
from helios_ray.operators.windows.halves import LocalWindowOperator, MergingWindowOperator
from helios_ray.operators.windows.sliced import SlicedWindowOperator
from helios_ray.plan.explain import explain_plan
from helios_ray.plan.physical import Partitioning
from helios_ray.stream.windowed import WindowedStream
from helios_ray.watermarks import WatermarkStrategy
from helios_ray.windows import (
    CountWindow,
    GlobalWindow,
    SessionWindow,
    SlidingWindow,
    Trigger,
    TumblingWindow,
)
from tests.unit.plan.fakes import FakeSink, FakeSource

SCHEMA = pa.schema(
    [("k", pa.string()), ("ts", pa.timestamp("us")), ("x", pa.int32()), ("f", pa.float64())]
)
TEN, TWO = timedelta(seconds=10), timedelta(seconds=2)


@pytest.fixture
def env() -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment()


def stream(env: StreamExecutionEnvironment, **options: Any) -> Any:
    strategy = WatermarkStrategy.monotonic("ts")
    return env.from_source(FakeSource(SCHEMA), strategy, uid="in", **options)


def operators(env: StreamExecutionEnvironment) -> dict[str, type]:
    """Class by uid of the operators of the windows."""
    chains = env.compile("job").plan.chains
    made = {spec.uid: spec.factory() for chain in chains for spec in chain.operators}
    return {uid: type(operator) for uid, operator in made.items()}


WHOLE = {"w": SlicedWindowOperator}
HALVES = {"w.local": LocalWindowOperator, "w": MergingWindowOperator}


@pytest.mark.parametrize(
    ("window", "aggregations", "asked", "halved"),
    [
        (TumblingWindow(TEN), {"n": count(), "t": sum_("x"), "m": max_("f")}, None, True),
        (SlidingWindow(TEN, TWO), {"f": first("f"), "l": last("k")}, None, True),
        (GlobalWindow(), {"t": top_k("k", by="x", n=3)}, None, True),
        (TumblingWindow(TEN), {"n": count()}, False, False),
        (TumblingWindow(TEN), {"n": count(), "t": sum_("f")}, None, False),
        (TumblingWindow(TEN), {"n": count(), "t": sum_("f")}, True, True),
        (TumblingWindow(TEN), {"m": mean("x"), "q": quantile("x", 0.5)}, None, False),
        (TumblingWindow(TEN), {"m": mean("x"), "q": quantile("x", 0.5)}, True, True),
        (TumblingWindow(TEN), {"all": collect_list("x")}, None, False),
        (TumblingWindow(TEN), {"all": collect_list("x")}, True, True),
    ],
)
def test_rows_are_aggregated_before_the_shuffle_where_that_cannot_change_a_digit(
    env: StreamExecutionEnvironment, window: Any, aggregations: Any, asked: Any, halved: bool
):
    windows = stream(env).key_by("k").window(window)
    windows.aggregate(aggregations, uid="w", local_aggregation=asked).sink_to(FakeSink(), uid="out")
    assert operators(env) == (HALVES if halved else WHOLE)


@pytest.mark.parametrize("window", [SessionWindow(TEN), CountWindow(5)])
def test_sessions_and_count_windows_get_the_rows_and_refuse_to_be_asked(
    env: StreamExecutionEnvironment, window: Any
):
    windows = stream(env).key_by("k").window(window)
    windows.aggregate(n=count(), uid="w").sink_to(FakeSink(), uid="out")
    assert list(operators(env)) == ["w"]
    with pytest.raises(ConfigError, match=rf"test_local_windows\.py:\d+.*{window}"):
        windows.aggregate(n=count(), local_aggregation=True)


def test_early_and_late_results_do_not_stand_in_the_way(env: StreamExecutionEnvironment):
    windows = stream(env).key_by("k").window(TumblingWindow(TEN)).allowed_lateness(TWO)
    windows = windows.trigger(Trigger.early(rows=100)).discarding()
    windows.aggregate(n=count(), uid="w").sink_to(FakeSink(), uid="out")
    assert operators(env) == HALVES


@pytest.mark.parametrize("side", ["late", "dead_letters"])
def test_whoever_reads_late_rows_or_dead_letters_gets_them_whole(
    env: StreamExecutionEnvironment, side: str
):
    windows = stream(env).key_by("k").window(TumblingWindow(TEN))
    results = windows.aggregate(n=count(), uid="w", on_error="dead_letter")
    results.sink_to(FakeSink(), uid="out")
    unread = getattr(results, side)()
    assert operators(env) == HALVES
    unread.sink_to(FakeSink(), uid="side")
    assert operators(env) == WHOLE


def test_every_subtask_aggregates_before_all_rows_meet_in_one(env: StreamExecutionEnvironment):
    results = (
        stream(env, parallelism=3).window_all(TumblingWindow(TEN)).aggregate(n=count(), uid="w")
    )
    results.sink_to(FakeSink(), uid="out")
    assert operators(env) == HALVES
    plan = env.compile("job").plan
    [edge] = plan.edges
    assert (edge.operator, edge.partitioning) == ("w.local", Partitioning.REBALANCE)
    assert [(c.uid, c.parallelism) for c in plan.chains] == [("in", 3), ("w", 1)]


def test_rows_that_cross_no_process_are_aggregated_once(env: StreamExecutionEnvironment):
    results = stream(env).window_all(TumblingWindow(TEN)).aggregate(n=count(), uid="w")
    results.sink_to(FakeSink(), uid="out")
    assert operators(env) == WHOLE
    assert len(env.compile("job").plan.chains) == 1


def test_it_can_be_turned_off_for_the_job(env: StreamExecutionEnvironment):
    windows = stream(env).key_by("k").window(TumblingWindow(TEN))
    windows.aggregate(n=count(), uid="w").sink_to(FakeSink(), uid="out")
    env.disable_local_aggregation()
    assert operators(env) == WHOLE


def test_both_halves_travel_to_their_actors(env: StreamExecutionEnvironment):
    windows = stream(env).key_by("k").window(TumblingWindow(TEN))
    windows.aggregate(n=count(), uid="w").sink_to(FakeSink(), uid="out")
    specs = [spec for chain in env.compile("job").plan.chains for spec in chain.operators]
    again = [pickle.loads(pickle.dumps(spec.factory))() for spec in specs]
    assert [type(operator) for operator in again] == list(HALVES.values())


# --------------------------------------------------------------------------- in plain words

SAID = [
    (TumblingWindow(TEN), "tumbling 0:00:10"),
    (TumblingWindow(TEN, -TWO), "tumbling 0:00:10 offset -0:00:02"),
    (
        TumblingWindow(timedelta(days=1), timedelta(hours=6), "Europe/Berlin"),
        "tumbling 1 day, 0:00:00 offset 6:00:00 in Europe/Berlin",
    ),
    (SlidingWindow(TEN, TWO), "sliding 0:00:10 every 0:00:02"),
    (SessionWindow(TEN), "session gap 0:00:10"),
    (CountWindow(100), "count 100"),
    (CountWindow(100, 10), "count 100 every 10"),
    (GlobalWindow(), "global"),
    (Trigger.on_watermark(), "on watermark"),
    (Trigger.early(rows=1), "early every 1 row"),
    (Trigger.early(rows=5), "early every 5 rows"),
    (Trigger.early(every=TWO), "early every 0:00:02"),
]


@pytest.mark.parametrize(("spec", "said"), SAID, ids=[said for _, said in SAID])
def test_windows_and_triggers_say_what_they_are_in_plain_words(spec: Any, said: str):
    assert str(spec) == said
    assert type(spec).__name__ in repr(spec), "repr stays what one would write"


def test_the_plan_and_the_stream_say_which_windows_and_what_is_unusual_about_them(
    env: StreamExecutionEnvironment,
):
    usual: WindowedStream = stream(env).key_by("k").window(SlidingWindow(TEN, TWO))
    windows = usual.trigger(Trigger.early(rows=5)).allowed_lateness(TWO).discarding()
    said = "sliding 0:00:10 every 0:00:02, early every 5 rows, lateness 0:00:02, discarding"
    assert repr(usual).endswith("by k; sliding 0:00:10 every 0:00:02]")
    assert repr(windows).endswith(f"by k; {said}]")
    windows.aggregate(n=count(), uid="w").sink_to(FakeSink(), uid="out")
    text = explain_plan(env.compile("job"))
    assert f"{said}  n=count()" in text
    assert "w.local  aggregates before the shuffle" in text
