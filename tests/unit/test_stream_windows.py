"""Windows, functions and connections as the fluent face describes them: columns, times, errors."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from helios_ray.aggregates import count, count_distinct, sum_
from helios_ray.environment import StreamExecutionEnvironment
from helios_ray.errors import ConfigError, MissingColumnError, PlanError, SchemaChangedError
from helios_ray.functions import (
    BroadcastProcessFunction,
    CoProcessFunction,
    KeyedProcessFunction,
)
from helios_ray.operators.windows.results import ProcessWindowFunction
from helios_ray.plan.physical import Edge, Partitioning, PhysicalPlan
from helios_ray.stream import DataStream
from helios_ray.watermarks import WatermarkStrategy
from helios_ray.windows import CountWindow, GlobalWindow, SlidingWindow, Trigger, TumblingWindow

HERE = r"test_stream_windows\.py:\d+"
SECOND = timedelta(seconds=1)
BIDS = pa.schema(
    [("auction", pa.int64()), ("price", pa.float64()), ("ts", pa.timestamp("us", "UTC"))]
)


@pytest.fixture
def env() -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment().with_parallelism(2)


@pytest.fixture
def bids(env: StreamExecutionEnvironment) -> DataStream:
    strategy = WatermarkStrategy.bounded_out_of_orderness("ts", SECOND)
    return env.from_items([], strategy, schema=BIDS, uid="bids")


def plan(env: StreamExecutionEnvironment) -> PhysicalPlan:
    return env.compile("job").plan


def edges_to(env: StreamExecutionEnvironment, uid: str) -> list[Edge]:
    return [edge for edge in plan(env).edges if edge.downstream == uid]


# -------------------------------------------------------------------------------- event time


def test_event_time_follows_rows_for_as_long_as_they_have_it(bids: DataStream):
    assert bids.event_time == "ts"
    assert bids.filter(pc.field("price") > 1).key_by("auction").event_time == "ts"
    assert bids.union(bids).rebalance().event_time == "ts"
    assert bids.select("auction").event_time is None
    assert bids.key_by("auction").aggregate(n=count(), uid="n").event_time is None


def test_a_windows_results_have_the_time_of_its_end_and_its_late_rows_their_own(bids: DataStream):
    windows = bids.key_by("auction").window(TumblingWindow(SECOND)).aggregate(n=count(), uid="w")
    assert windows.event_time == "window_end"
    late = windows.late()
    assert (late.event_time, late.schema) == ("ts", BIDS)
    assert windows.key_by("auction").window(TumblingWindow(SECOND * 10)).count().event_time


def test_a_union_of_streams_that_go_by_different_times_goes_by_none(
    env: StreamExecutionEnvironment, bids: DataStream
):
    other = env.from_items([], schema=BIDS, uid="other")
    assert bids.union(other).event_time is None
    with pytest.raises(PlanError, match=rf"window_all at .*{HERE}.*watermark strategy"):
        bids.union(other).window_all(TumblingWindow(SECOND))


# ----------------------------------------------------------------------------------- windows


def test_a_window_has_its_columns_before_it_has_run(bids: DataStream):
    results = (
        bids.key_by("auction")
        .window(SlidingWindow(SECOND * 10, SECOND * 2))
        .aggregate(n=count(), prices=count_distinct("price"), uid="w")
    )
    instant = pa.timestamp("us", "UTC")
    assert results.schema == pa.schema(
        [
            ("auction", pa.int64()), ("window_start", instant), ("window_end", instant),
            ("n", pa.int64()), ("prices", pa.int64()),
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("misuse", "error", "message"),
    [
        (lambda k: k.window(TumblingWindow(SECOND), time="tz"), MissingColumnError, "'ts'"),
        (lambda k: k.window(TumblingWindow(SECOND), time="price"), SchemaChangedError, "price"),
        (lambda k: k.window(SECOND), PlanError, "expected a TumblingWindow"),
        (
            lambda k: k.window(TumblingWindow(SECOND)).aggregate(s=sum_("prize")),
            MissingColumnError,
            "Did you mean 'price'",
        ),
        (lambda k: k.window(TumblingWindow(SECOND)).aggregate(), ConfigError, "at least one"),
        (lambda k: k.window(TumblingWindow(SECOND)).trigger(5), PlanError, "Trigger"),
        (
            lambda k: k.window(CountWindow(5)).allowed_lateness(SECOND).count(),
            ConfigError,
            "no end in event time",
        ),
        (
            lambda k: k.window(CountWindow(5)).trigger(Trigger.early(rows=2)).count(),
            ConfigError,
            "no early trigger",
        ),
        (lambda k: k.window(TumblingWindow(SECOND)).process(len), ConfigError, "ProcessWindow"),
        (lambda k: k.window(TumblingWindow(SECOND)).aggregate(count()), ConfigError, "n=count"),
        (lambda k: k.aggregate(count()), ConfigError, "n=count"),
        (lambda k: k.key_by(["auction"]), PlanError, "without a list"),
        (lambda k: k.top_n(3, "prize"), MissingColumnError, "'price'"),
        (lambda k: k.top_n(0, "price"), ConfigError, "positive"),
        (lambda k: k.process(KeyedProcessFunction()), ConfigError, "neither"),
    ],
)
def test_what_cannot_be_is_refused_on_its_line(
    bids: DataStream, misuse: Any, error: type[Exception], message: str
):
    with pytest.raises(error, match=message) as caught:
        misuse(bids.key_by("auction"))
    assert "test_stream_windows.py:" in str(caught.value)


def test_windows_of_all_rows_are_one_task(env: StreamExecutionEnvironment, bids: DataStream):
    windows = bids.window_all(TumblingWindow(SECOND))
    windows.aggregate(n=count(), uid="w").collect(uid="out")
    assert plan(env).chain("w").parallelism == 1
    assert [e.partitioning for e in edges_to(env, "w")] == [Partitioning.REBALANCE]
    with pytest.raises(ConfigError, match="one task, got parallelism=2"):
        windows.aggregate(n=count(), parallelism=2)


def test_windows_by_arrival_need_no_time(env: StreamExecutionEnvironment):
    untimed = env.from_items([{"k": 1}], uid="untimed").key_by("k")
    assert untimed.window(CountWindow(3)).count(uid="c").schema is not None
    assert untimed.window(GlobalWindow()).count(uid="g").event_time is None


def test_what_a_window_function_returns_may_be_declared(bids: DataStream):
    class Spread(ProcessWindowFunction):
        def process(self, key: Any, window: Any, rows: pa.Table) -> Any:
            yield {"spread": 1.0}

    windows = bids.key_by("auction").window(TumblingWindow(SECOND))
    assert windows.process(Spread, uid="a").schema is None
    declared = windows.process(Spread, schema=pa.schema([("spread", pa.float64())]), uid="b")
    assert declared.schema is not None
    assert declared.schema.names == ["auction", "window_start", "window_end", "spread"]


def test_a_keyed_operation_without_a_key_says_how_to_have_one(bids: DataStream):
    with pytest.raises(AttributeError, match=r"key_by\('column'\).process"):
        bids.process(KeyedProcessFunction())
    with pytest.raises(AttributeError, match="or window_all"):
        bids.window(TumblingWindow(SECOND))
    with pytest.raises(AttributeError, match="no attribute 'windows'"):
        bids.windows(TumblingWindow(SECOND))


def test_event_time_that_no_source_tells_is_worth_a_warning(env: StreamExecutionEnvironment):
    silent = env.from_items([], schema=BIDS, uid="silent").key_by("auction")
    silent.window(TumblingWindow(SECOND), time="ts").count(uid="w").collect(uid="out")
    assert [h.message for h in env.compile("job").hints if "no source before it" in h.message]


# ------------------------------------------------------------------------------- connections


class Both(CoProcessFunction):
    def process_element1(self, row: Any, ctx: Any) -> Any:
        return row

    process_element2 = process_element1


class Rules(BroadcastProcessFunction):
    def process_element(self, row: Any, ctx: Any) -> Any:
        return row

    def process_broadcast_element(self, row: Any, ctx: Any) -> Any:
        return None


def test_connected_streams_are_two_inputs_of_one_operator(
    env: StreamExecutionEnvironment, bids: DataStream
):
    keyed = bids.key_by("auction")
    keyed.connect(keyed).process(Both, schema=BIDS, uid="both").collect(uid="out")
    found = [(e.input_index, e.partitioning, e.keys) for e in edges_to(env, "both")]
    assert found == [(i, Partitioning.HASH, ("auction",)) for i in (0, 1)]


def test_a_broadcast_stream_reaches_every_subtask_beside_one_that_stays_where_it_is(
    env: StreamExecutionEnvironment, bids: DataStream
):
    rules = env.from_items([{"limit": 1}], uid="rules", parallelism=1)
    bids.connect(rules.broadcast()).process(Rules, schema=BIDS, uid="ruled").collect(uid="out")
    found = {e.input_index: e.partitioning for e in edges_to(env, "ruled")}
    assert found == {0: Partitioning.FORWARD, 1: Partitioning.BROADCAST}


def test_connections_that_do_not_fit_their_function_are_refused(bids: DataStream):
    keyed = bids.key_by("auction")
    with pytest.raises(PlanError, match="takes a CoProcessFunction"):
        keyed.connect(keyed).process(Rules)
    with pytest.raises(PlanError, match="takes a BroadcastProcessFunction"):
        keyed.connect(bids.broadcast()).process(Both)
    with pytest.raises(PlanError, match="both streams must be keyed"):
        bids.connect(keyed).process(Both)
    with pytest.raises(PlanError, match="comes second"):
        bids.broadcast().connect(bids)
    with pytest.raises(PlanError, match="different environments"):
        bids.connect(StreamExecutionEnvironment().from_range(3, uid="other"))
    with pytest.raises(PlanError, match="is int64 and"):
        keyed.connect(bids.key_by("price")).process(Both)


# ---------------------------------------------------------------------------- where they run


def test_operators_that_hold_rows_past_the_end_are_fused_with_nothing_before_them(
    env: StreamExecutionEnvironment, bids: DataStream
):
    bids.filter(pc.field("price") > 1, uid="f").rate_limit(100, uid="slow").inspect(
        print, uid="look"
    ).collect(uid="out")
    assert [chain.uids for chain in plan(env).chains] == [
        ("bids", "f"),
        ("slow", "look", "out"),
    ]
