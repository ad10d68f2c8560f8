"""The explanation shows everything that the compiler decided, in the order rows take."""

from __future__ import annotations

import textwrap

import pyarrow.compute as pc
import pytest

from helios_ray.aggregates import count, max_
from helios_ray.environment import StreamExecutionEnvironment
from helios_ray.errors import PlanError
from tests.unit.plan.fakes import FakeSink, FakeSource, LeakySink


def test_the_explanation_of_a_whole_job_reads_like_this():
    env = StreamExecutionEnvironment()
    flights = env.from_source(FakeSource(), uid="flights")
    late = flights.filter(pc.field("delay") > 15, uid="late", name="late ones")
    (
        late.key_by("carrier", "origin")
        .aggregate(n=count(), worst=max_("delay"), uid="by-route", parallelism=2)
        .map(len, uid="width", on_error="skip", parallelism=2, num_gpus=0.5)
        .sink_to(LeakySink(), uid="out")
    )
    assert env.explain("routes", print_=False) == textwrap.dedent(
        """\
        job routes: 6 actors in 4 chains, 3 edges, 128 key groups

        chain flights  (1 actor)
          source     flights         FakeSource
                     rows: carrier: string, origin: string, delay: double
          filter     late            [late ones]  (delay > 15)
          local      by-route.local  aggregates before the shuffle

        chain by-route  (2 actors)
          <= hash(carrier, origin) from by-route.local
          aggregate  by-route        n=count(), worst=max(delay)  emit=updates
                     rows: carrier: string, origin: string, n: int64, worst: double

        chain width  (2 actors, each num_gpus=0.5)
          <= forward from by-route
          map        width           len  on_error=skip
                     rows: known when it runs

        chain out  (1 actor)
          <= rebalance from width
          sink       out             LeakySink  at-least-once
                     rows: known when it runs

        warnings
          - sink 'out' (LeakySink) is at-least-once: after a failure, rows written since the \
last checkpoint can appear again"""
    )


def test_side_outputs_and_unions_show_where_rows_come_from():
    env = StreamExecutionEnvironment()
    parts = env.from_source(FakeSource(), uid="flights").branch(late=pc.field("delay") > 15)
    parts.late.union(parts.rest).sink_to(FakeSink(), uid="all")
    text = env.explain(print_=False)
    assert "  <= forward from branch-1, side output 'late'\n  <= forward from branch-1\n" in text
    assert "  branch  branch-1  late: (delay > 15)" in text


def test_hints_about_uids_are_shown_among_the_warnings():
    env = StreamExecutionEnvironment()
    env.from_source(FakeSource()).sink_to(FakeSink(), uid="out")
    text = env.explain(print_=False)
    assert "warnings\n  - source at " in text
    assert "Add uid='source-1'" in text


def test_explain_prints_what_it_returns_unless_told_not_to(capsys: pytest.CaptureFixture[str]):
    env = StreamExecutionEnvironment()
    env.from_source(FakeSource(), uid="in").sink_to(FakeSink(), uid="out")
    text = env.explain()
    assert capsys.readouterr().out == text + "\n"
    assert env.explain(print_=False) == text
    assert capsys.readouterr().out == ""


def test_a_collecting_sink_can_be_explained_before_there_is_storage():
    env = StreamExecutionEnvironment()
    env.from_source(FakeSource(), uid="in").collect(uid="rows")
    assert "collect  rows  exactly-once" in env.explain(print_=False)


def test_what_cannot_run_cannot_be_explained():
    with pytest.raises(PlanError, match="at least one sink"):
        StreamExecutionEnvironment().explain()
