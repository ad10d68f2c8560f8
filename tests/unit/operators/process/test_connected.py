"""Two streams share state by key; broadcast state is the same everywhere."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, PlanError, SchemaChangedError, UserFunctionError
from helios_ray.functions import (
    BroadcastProcessFunction,
    BroadcastState,
    CoProcessFunction,
    ValueState,
)
from helios_ray.operators.base import StateKind
from helios_ray.operators.process.connected import BroadcastProcessOperator, CoProcessOperator
from tests.unit.operators.process.driving import Tasks, by_key
from tests.unit.operators.support import batch, main_rows, opened, tagged_rows

OUT = pa.schema([("k", pa.int64()), ("name", pa.string()), ("n", pa.int64())])


class Enrich(CoProcessFunction):
    """Names from the first stream for the rows of the second; asks again after 10 µs."""

    name = ValueState(pa.string(), default="?")
    n = ValueState(pa.int64())

    def process_element1(self, row: Any, ctx: Any) -> Any:
        self.name.update(row["name"])

    def process_element2(self, row: Any, ctx: Any) -> Any:
        self.n.update(row["n"])
        ctx.timer_service.register_event_time(row["n"] + 10)
        return {"k": row["user"], "name": self.name.value(), "n": row["n"]}

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        return {"k": ctx.current_key, "name": self.name.value(), "n": -self.n.value()}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("name"), st.integers(0, 4), st.sampled_from(["ann", "bob"])),
        st.tuples(st.just("n"), st.integers(0, 4), st.integers(0, 20)),
        st.tuples(st.just("watermark"), st.just(0), st.integers(1, 9)),
        st.tuples(st.just("restart"), st.just(0), st.integers(1, 3)),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_both_streams_meet_in_the_state_of_the_key(steps: list[tuple[str, int, Any]]) -> None:
    tasks = Tasks(lambda: CoProcessOperator(["id"], ["user"], Enrich(), schema=OUT))
    names: dict[int, str] = {}
    last: dict[int, int] = {}
    timers: set[tuple[int, int]] = set()
    expected: list[dict[str, Any]] = []

    def fire() -> None:
        for time, k in sorted(t for t in timers if t[0] <= tasks.watermark):
            timers.remove((time, k))
            expected.append({"k": k, "name": names.get(k, "?"), "n": -last[k]})

    for kind, key, what in steps:
        if kind == "name":
            tasks.batch(pa.record_batch({"id": [key], "name": [what]}), 0, "id")
            names[key] = what
        elif kind == "n":
            tasks.batch(pa.record_batch({"user": [key], "n": [what]}), 1, "user")
            last[key] = what
            timers.add((what + 10, key))
            expected.append({"k": key, "name": names.get(key, "?"), "n": what})
        elif kind == "watermark":
            tasks.set_watermark(max(tasks.watermark, 0) + what)
        else:
            tasks.restart(what)
        fire()
    assert by_key(tasks.taken()) == by_key(expected)


def test_keys_of_both_sides_must_agree() -> None:
    one, other = pa.schema([("a", pa.int64())]), pa.schema([("b", pa.string())])
    with pytest.raises(PlanError, match=r"'a' of the first stream is int64 and 'b' .*string"):
        CoProcessOperator(["a"], ["b"], Enrich, input_schemas=(one, other))
    with pytest.raises(ConfigError, match="same number of key columns"):
        CoProcessOperator(["a"], [], Enrich)
    operator = opened(CoProcessOperator(["id"], ["user"], Enrich), "both")
    operator.process_batch(batch({"id": [1], "name": ["a"]}), 0)
    with pytest.raises(SchemaChangedError, match=r"'both': key column 'user' is string"):
        operator.process_batch(batch({"user": ["1"], "n": [1]}), 1)


class Rules(BroadcastProcessFunction):
    limits = BroadcastState(pa.string(), pa.int64())
    over = ValueState(pa.int64(), default=0)

    def process_element(self, row: Any, ctx: Any) -> Any:
        if row["n"] > self.limits.get(row["kind"], 5):
            self.over.update(self.over.value() + 1)
            yield {"k": ctx.current_key, "over": self.over.value(), "rules": len(self.limits)}

    def process_broadcast_element(self, row: Any, ctx: Any) -> Any:
        if row["limit"] == 13:
            self.limits.put("broken", 1)
            raise ValueError("unlucky")
        self.limits.put(row["kind"], row["limit"])


def test_broadcast_state_survives_with_every_subtask_holding_the_same() -> None:
    tasks = Tasks(lambda: BroadcastProcessOperator(["k"], Rules(), on_error="skip"))
    keys = list(range(20))
    tasks.batch(pa.record_batch({"k": keys, "kind": ["a"] * 20, "n": [6] * 20}))
    tasks.broadcast(pa.record_batch({"kind": ["a", "b", "c", "b"], "limit": [7, 1, 13, None]}))
    for parallelism in (3, 2, 1, 3):
        tasks.restart(parallelism)
        for operator in tasks.operators:
            state = operator.snapshot()["broadcast.limits"]
            assert state.kind is StateKind.BROADCAST
            assert state.table.to_pylist() == [{"namespace": "a", "value": 7}]
    tasks.out.clear()
    tasks.batch(pa.record_batch({"k": keys, "kind": ["a"] * 20, "n": [7] * 20}))
    assert tasks.taken() == []
    tasks.batch(pa.record_batch({"k": keys, "kind": ["a"] * 20, "n": [8] * 20}))
    assert sorted(r["k"] for r in tasks.taken()) == keys
    assert {(r["over"], r["rules"]) for r in tasks.taken()} == {(2, 1)}


def test_broadcast_state_is_written_by_broadcast_rows_only_and_keyed_state_by_the_others() -> None:
    class Wrong(Rules):
        def process_element(self, row: Any, ctx: Any) -> Any:
            self.limits.put("a", 1)

        def process_broadcast_element(self, row: Any, ctx: Any) -> Any:
            self.over.update(1)

    for input_index, message in [(0, "only be written in process_broadcast"), (1, "no key is")]:
        operator = opened(BroadcastProcessOperator(["k"], Wrong), "rules")
        with pytest.raises(UserFunctionError, match=f"'rules'.*{message}"):
            operator.process_batch(batch({"k": [1]}), input_index)
    with pytest.raises(ConfigError, match="kept per key, and the stream has none"):
        opened(BroadcastProcessOperator([], Rules))


def test_a_stream_without_keys_sees_broadcast_state_and_dead_letters_work_on_both_inputs() -> None:
    class Unkeyed(BroadcastProcessFunction):
        limits = BroadcastState(pa.string(), pa.int64())

        def process_element(self, row: Any, ctx: Any) -> Any:
            return [row] * self.limits.get("times", 1)

        def process_broadcast_element(self, row: Any, ctx: Any) -> Any:
            self.limits.put("times", 2)
            self.limits.put("times", "many")

    operator = opened(BroadcastProcessOperator([], Unkeyed, on_error="dead_letter"))
    out = operator.process_batch(Batch(pa.record_batch({"x": [1]})), 1)
    (letter,) = tagged_rows(out, "dead_letter")
    assert "state 'limits' (broadcast): expected int64, got 'many'" in letter["error"]
    assert main_rows(operator.process_batch(batch({"n": [4]}))) == [{"n": 4}]
