"""Each kind of state does what a Python dict with deadlines does: over batches, time passing,
clean-up, snapshots and restores on one, two and three subtasks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.state.keyed.declarations import (
    AggregatingState,
    ListState,
    MapState,
    ReducingState,
    State,
    ValueState,
)
from helios_ray.state.keyed.ttl import StateTtl
from tests.unit.state.keyed import models
from tests.unit.state.keyed.cluster import Cluster

KEYS = st.integers(0, 5)


class Concatenation:
    """An accumulator of another type than its values and results."""

    def create(self) -> list[str]:
        return []

    def add(self, accumulator: list[str], value: str) -> list[str]:
        accumulator.append(value)
        return accumulator

    def result(self, accumulator: list[str]) -> str:
        return "".join(accumulator)


def reduced(ttl: StateTtl | None) -> State:
    return ReducingState(pa.string(), lambda a, b: a + b, name="s", ttl=ttl)


def aggregated(ttl: StateTtl | None) -> State:
    return AggregatingState(pa.list_(pa.string()), Concatenation(), name="s", ttl=ttl)


KINDS: dict[str, tuple[Callable[[StateTtl | None], State], Any, Any, Any]] = {
    "value": (
        lambda ttl: ValueState(pa.string(), name="s", ttl=ttl),
        models.VALUE_OPS,
        models.value_call,
        models.value_step,
    ),
    "map": (
        lambda ttl: MapState(pa.int64(), pa.string(), name="s", ttl=ttl),
        models.MAP_OPS,
        models.map_call,
        models.map_step,
    ),
    "list": (
        lambda ttl: ListState(pa.string(), name="s", ttl=ttl),
        models.LIST_OPS,
        models.list_call,
        models.list_step,
    ),
    "reducing": (reduced, models.FOLD_OPS, models.fold_call, models.fold_step),
    "aggregating": (aggregated, models.FOLD_OPS, models.fold_call, models.fold_step),
}
TTLS: list[StateTtl | None] = [
    None,
    StateTtl(duration=timedelta(microseconds=10)),
    StateTtl(duration=timedelta(microseconds=10), refresh="read"),
    StateTtl(duration=timedelta(microseconds=10), refresh="read", clock="event"),
]
NO_SPARE = [
    "helios_ray.state.keyed.backend._SPARE_KEYS",
    "helios_ray.state.keyed.entries._SPARE_CELLS",
    "helios_ray.state.keyed.columns._SPARE_ROWS",
]
"""Compaction that waits for thousands of keys would never be seen here."""


def machine(kind: str, ttl: StateTtl | None) -> type[RuleBasedStateMachine]:
    declare, ops, call, step = KINDS[kind]
    clock = "processing" if ttl is None else ttl.clock

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.patches = [patch(name, 0) for name in NO_SPARE]
            for each in self.patches:
                each.start()
            self.cluster = Cluster(lambda: declare(ttl))
            self.models: dict[int, models.Model] = {}
            self.kept: list[tuple[Any, Any]] = []

        def teardown(self) -> None:
            for each in self.patches:
                each.stop()

        @property
        def now(self) -> int | None:
            time = self.cluster.watermark if clock == "event" else self.cluster.now
            return None if time == MIN_TIMESTAMP else time

        @rule(steps=st.lists(st.tuples(KEYS, ops), min_size=1, max_size=8))
        def batch(self, steps: list[tuple[int, Any]]) -> None:
            got = self.cluster.run(
                [(key, lambda handle, op=op: call(op, handle)) for key, op in steps]
            )
            expected = [
                step(op, self.models.setdefault(key, models.Model(ttl)), self.now)
                for key, op in steps
            ]
            assert got == expected

        @rule(passed=st.integers(1, 12))
        def time_passes(self, passed: int) -> None:
            first = self.now is None
            self.cluster.set_time(clock, passed if self.now is None else self.now + passed)
            if first and self.now is not None:
                for model in self.models.values():
                    model.start_clock(self.now)

        @rule()
        def nothing_comes(self) -> None:
            self.cluster.end()

        @rule(parallelism=st.integers(1, 3))
        def restart(self, parallelism: int) -> None:
            self.cluster.restart(parallelism)

        @rule()
        def keep_a_snapshot(self) -> None:
            tables = self.cluster.snapshots()
            self.kept.append((tables, [{n: t.to_pylist() for n, t in s.items()} for s in tables]))

        @precondition(lambda self: self.kept)
        @invariant()
        def kept_snapshots_do_not_change(self) -> None:
            for tables, before in self.kept:
                assert [{n: t.to_pylist() for n, t in s.items()} for s in tables] == before

        @invariant()
        def the_snapshot_is_what_is_there(self) -> None:
            got = sorted(
                (row["key.k"], row["namespace"], "".join(row["value"]))
                for row in self.cluster.content("s")
            )
            expected = []
            for key, model in self.models.items():
                for position, (name, entry) in enumerate(model.live(self.now).items()):
                    expected.append((key, position if kind == "list" else name, entry[0]))
            assert got == sorted(expected)

    return Machine


@pytest.mark.parametrize("ttl", TTLS, ids=["forever", "on write", "on read", "event time"])
@pytest.mark.parametrize("kind", KINDS)
def test_state_is_a_dict_with_deadlines(kind: str, ttl: StateTtl | None) -> None:
    ran = run_state_machine_as_test(
        machine(kind, ttl),
        settings=settings(max_examples=40, stateful_step_count=30, deadline=None),
    )
    assert ran is None


def test_an_entry_that_is_put_again_after_it_expired_comes_last() -> None:
    ttl = StateTtl(duration=timedelta(microseconds=10))
    cluster = Cluster(lambda: MapState(pa.int64(), pa.string(), name="s", ttl=ttl))
    for now, key in [(0, 1), (5, 2), (10, 1)]:
        cluster.set_time("processing", now)
        cluster.run([(7, lambda handle, key=key: handle.put(key, "x"))])
    assert cluster.run([(7, lambda handle: handle.keys())]) == [[2, 1]]
