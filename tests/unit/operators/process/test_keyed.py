"""A process function gives the same rows however its stream is cut and wherever it resumes."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP, Batch, Origin
from helios_ray.errors import (
    ConfigError,
    DataError,
    MissingColumnError,
    SchemaChangedError,
    StateMismatchError,
    UserFunctionError,
)
from helios_ray.functions import KeyedProcessFunction, ListState, MapState, StateTtl, ValueState
from helios_ray.operators.base import StateKind, StateTable
from helios_ray.operators.process import driver
from helios_ray.operators.process.keyed import KeyedProcessOperator
from tests.unit.operators.process.driving import (
    CUTS,
    EVENTS,
    Expected,
    Tasks,
    by_key,
    drive,
)
from tests.unit.operators.support import batch, main_rows, opened, tagged_rows

OUT = pa.schema([("k", pa.string()), ("what", pa.string()), ("at", pa.int64())])


class Busy(KeyedProcessFunction):
    """State of every kind, timers of both domains, set, deleted and set again by timers."""

    total = ValueState(pa.int64(), default=0)
    last = ListState(pa.int64())
    seen = MapState(pa.int64(), pa.int64())

    def process_element(self, row: Any, ctx: Any) -> Any:
        n, timers = row["n"], ctx.timer_service
        self.total.update(self.total.value() + n)
        self.last.add(n)
        self.seen.put(n, self.seen.get(n, 0) + 1)
        timers.register_event_time(5 * n)
        if n % 3 == 0:
            timers.register_processing_time(4 * n)
        if n == 7:
            timers.delete_event_time(25)
            self.last.clear()
        yield {"k": ctx.current_key, "what": f"{self.total.value()} {self.seen.items()}", "at": n}

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        k, what = ctx.current_key, f"{ctx.time_domain} {self.last.get()}"
        if timestamp % 2 and timestamp < 60:
            ctx.timer_service.register_event_time(timestamp + 11)
        if ctx.time_domain == "processing":
            self.seen.clear()
        ctx.emit({"k": k, "what": what, "at": timestamp})


def busy_row(world: Expected, row: dict[str, Any]) -> None:
    k, n = row["k"], row["n"]
    state = world.state.setdefault(k, {"total": 0, "last": [], "seen": {}})
    state["total"] += n
    state["last"].append(n)
    state["seen"][n] = state["seen"].get(n, 0) + 1
    world.register("event", 5 * n, k)
    if n % 3 == 0:
        world.register("processing", 4 * n, k)
    if n == 7:
        world.delete("event", 25, k)
        state["last"] = []
    world.out.append({"k": k, "what": f"{state['total']} {list(state['seen'].items())}", "at": n})


def busy_timer(world: Expected, domain: str, timestamp: int, k: str) -> None:
    state = world.state[k]
    if timestamp % 2 and timestamp < 60:
        world.register("event", timestamp + 11, k)
    if domain == "processing":
        state["seen"].clear()
    world.out.append({"k": k, "what": f"{domain} {state['last']}", "at": timestamp})


@settings(max_examples=60, deadline=None)
@given(EVENTS, CUTS)
def test_any_cut_and_any_restart_gives_the_rows_of_one_plain_run(
    events: list[Any], cuts: list[str]
) -> None:
    expected = Expected(busy_row, busy_timer).run(events)
    tasks = Tasks(lambda: KeyedProcessOperator(["k"], Busy(), schema=OUT))
    drive(tasks, events, cuts)
    got = tasks.taken()
    assert by_key(got) == by_key(expected)
    if not any(cut.isdigit() and cut != "1" for cut in cuts):
        assert sorted(map(str, got)) == sorted(map(str, expected))


class Sums(KeyedProcessFunction):
    total = ValueState(pa.int64(), default=0)
    label = ValueState(pa.string())

    def process_batches(self, table: pa.Table, ctx: Any) -> Any:
        assert ctx.keys.num_rows == len(ctx.starts) == len(ctx.counts)
        assert ctx.spread(ctx.keys["k"]).to_pylist() == table["k"].to_pylist()
        n = table["n"].to_numpy()
        before = np.repeat(self.total.get_column().to_numpy(), ctx.counts)
        sums = np.cumsum(n)
        offsets = np.repeat(sums[ctx.starts] - n[ctx.starts], ctx.counts)
        running = before + sums - offsets
        self.total.put_column(running[ctx.starts + ctx.counts - 1])
        known = self.label.get_column().to_pylist()
        keys = ctx.keys["k"].to_pylist()
        self.label.put_column(
            pa.array([old or key * 2 for old, key in zip(known, keys, strict=True)])
        )
        labels = ctx.spread(self.label.get_column())
        return {"k": table["k"], "what": labels, "at": running}


@settings(max_examples=30, deadline=None)
@given(EVENTS, CUTS)
def test_columns_of_state_are_the_values_of_the_keys(events: list[Any], cuts: list[str]) -> None:
    totals: dict[str, int] = {}
    expected = []
    for row in [what for kind, what in events if kind == "row"]:
        totals[row["k"]] = totals.get(row["k"], 0) + row["n"]
        expected.append({"k": row["k"], "what": row["k"] * 2, "at": totals[row["k"]]})
    tasks = Tasks(lambda: KeyedProcessOperator(["k"], Sums(), schema=OUT))
    drive(tasks, events, cuts)
    assert by_key(tasks.taken()) == by_key(expected)


class ByKey(KeyedProcessFunction):
    """A batch function that uses a list, and timers, key by key."""

    seen = ListState(pa.int64())

    def process_batches(self, table: pa.Table, ctx: Any) -> Any:
        n = table["n"].to_pylist()
        for number in ctx.each_key():
            start = ctx.starts[number]
            self.seen.add_all(n[start : start + ctx.counts[number]])
            ctx.timer_service.register_event_time(50)
        ctx.output("all", table)

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        return {"k": ctx.current_key, "what": str(self.seen.get()), "at": timestamp}


def test_a_batch_function_uses_lists_and_timers_key_by_key() -> None:
    operator = opened(KeyedProcessOperator(["k"], ByKey, side_outputs={"all": None}))
    out = operator.process_batch(batch({"k": ["b", "a", "b"], "n": [1, 2, 3]}))
    assert tagged_rows(out, "all") == [{"k": "b", "n": 1}, {"k": "b", "n": 3}, {"k": "a", "n": 2}]
    assert main_rows(operator.on_watermark(49)) == []
    assert main_rows(operator.on_watermark(50)) == [
        {"k": "b", "what": "[1, 3]", "at": 50},
        {"k": "a", "what": "[2]", "at": 50},
    ]


# ------------------------------------------------------------------------------ failing calls


class Failing(KeyedProcessFunction):
    total = ValueState(pa.int64(), default=0)
    seen = ListState(pa.int64())
    counts = MapState(pa.string(), pa.int64())

    def process_element(self, row: Any, ctx: Any) -> Any:
        n = row["n"]
        row["n"] = None
        yield {"n": n}
        ctx.output("side", {"n": n})
        ctx.timer_service.register_event_time(n)
        self.total.update(self.total.value() + n)
        if n == 13:
            self.seen.clear()
            self.counts.remove("a")
            self.counts.put("a", 5)
            self.counts.put("c", 5)
            self.counts.clear()
        self.seen.add(n)
        self.counts.put("a", n)
        self.counts.put("b", n)
        if n == 13:
            raise ValueError("unlucky")

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        ctx.emit({"n": -timestamp})
        if timestamp == 5:
            self.seen.clear()
            raise KeyError("five")
        ctx.output("side", {"n": [self.total.value(), *self.seen.get()][-1]})
        assert self.counts.keys() == ["a", "b"]


@pytest.mark.parametrize("sizes", [[4], [1, 1, 1, 1], [2, 2]])
def test_a_call_that_fails_leaves_nothing_behind(sizes: list[int]) -> None:
    function = Failing()
    operator = opened(
        KeyedProcessOperator(["k"], function, side_outputs={"side": None}, on_error="dead_letter"),
        "careful",
    )
    whole = pa.record_batch({"k": ["x"] * 4, "n": [5, 13, 6, 13]})
    out, start = [], 0
    for size in sizes:
        data = whole.slice(start, size)
        out += operator.process_batch(Batch(data, Origin("rows.csv", str(start))))
        start += size
    assert main_rows(out) == [{"n": 5}, {"n": 6}]
    assert tagged_rows(out, "side") == [{"n": 5}, {"n": 6}]
    letters = tagged_rows(out, "dead_letter")
    assert [letter["row"] for letter in letters] == ['{"k": "x", "n": 13}'] * 2
    assert letters[0]["error"] == "ValueError: unlucky"
    assert letters[0]["operator"] == "careful"
    assert letters[0]["position"].startswith("rows.csv @ ")
    fired = operator.on_watermark(100)
    assert main_rows(fired) == [{"n": -6}]
    assert tagged_rows(fired, "side") == [{"n": 6}]
    (letter,) = tagged_rows(fired, "dead_letter")
    assert letter["row"] == '{"key": "x", "timer": 5, "time_domain": "event"}'
    assert operator.counters() == {"operator.skipped_rows": 3}
    stored = operator.snapshot()["state.total"].table
    assert stored["value"].to_pylist() == [11]


def test_a_batch_call_that_fails_takes_its_columns_back() -> None:
    class Half(KeyedProcessFunction):
        total = ValueState(pa.int64())

        def process_batches(self, table: pa.Table, ctx: Any) -> Any:
            for _ in ctx.each_key():
                self.total.update(99)
            self.total.put_column(table["n"].combine_chunks())
            if pa.compute.max(table["n"]).as_py() > 9:
                raise ValueError("too much")

    operator = opened(KeyedProcessOperator(["k"], Half, on_error="skip"))
    operator.process_batch(batch({"k": ["a", "b"], "n": [1, 2]}))
    assert operator.process_batch(batch({"k": ["b", "c"], "n": [3, 10]})) == []
    table = operator.snapshot()["state.total"].table
    assert list(zip(table["key.k"].to_pylist(), table["value"].to_pylist(), strict=True)) == [
        ("a", 1),
        ("b", 2),
    ]
    assert operator.counters() == {"operator.skipped_rows": 2}


def test_an_error_names_operator_row_and_place() -> None:
    operator = opened(KeyedProcessOperator(["k"], Failing, side_outputs={"side": None}), "fraud")
    with pytest.raises(UserFunctionError, match=r"process 'fraud'.*unlucky.*rows.csv @ 7 \+ row 1"):
        operator.process_batch(batch({"k": ["x", "x"], "n": [5, 13]}, at="7"))
    operator = opened(KeyedProcessOperator(["k"], Failing, side_outputs={"side": None}), "fraud")
    operator.process_batch(batch({"k": ["x"], "n": [5]}))
    with pytest.raises(UserFunctionError, match=r"'fraud': on_timer.*event-time.* 5 µs of key 'x'"):
        operator.on_watermark(5)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (pa.int64(), "text", "expected int64, got 'text'"),
        (pa.int8(), 200, "expected int8, got 200 .*out of range"),
        (pa.int64(), True, "expected int64, got True"),
        (pa.float64(), 2**53 + 1, "not exactly"),
        (pa.string(), b"raw", "expected string, got b'raw'"),
        (pa.date32(), datetime(2024, 1, 1, 5, tzinfo=timezone.utc), "time of day"),
        (pa.struct([("a", pa.int64())]), {"b": 1}, "no field 'b'"),
        (pa.list_(pa.int64()), [1, "x"], "expected int64, got 'x'"),
    ],
)
def test_a_value_of_another_type_is_refused_where_it_is_written(
    kind: pa.DataType, value: Any, message: str
) -> None:
    class Wrong(KeyedProcessFunction):
        def open(self, ctx: Any) -> None:
            self.held = ctx.state(ValueState(kind, name="held"))

        def process_element(self, row: Any, ctx: Any) -> Any:
            self.held.update(value)

    operator = opened(KeyedProcessOperator(["k"], Wrong()), "typed")
    with pytest.raises(UserFunctionError) as info:
        operator.process_batch(batch({"k": ["x"]}))
    with pytest.raises(DataError, match=rf"'typed'.*state 'held' of key 'x'.*{message}"):
        raise info.value.__cause__  # type: ignore[misc]


# ------------------------------------------------------------------------------------- timers


class Alarm(KeyedProcessFunction):
    def process_element(self, row: Any, ctx: Any) -> Any:
        ctx.timer_service.register_processing_time(row["n"])

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        now = ctx.timer_service.current_processing_time
        if timestamp < 100:
            ctx.timer_service.register_processing_time(timestamp)
            ctx.timer_service.register_processing_time(timestamp + 100)
        return {"k": ctx.current_key, "at": timestamp, "now": now}


def test_processing_timers_wait_for_the_clock_and_overdue_ones_fire_after_a_restore() -> None:
    tasks = Tasks(lambda: KeyedProcessOperator(["k"], Alarm()))
    tasks.batch(pa.record_batch({"k": ["a", "b"], "n": [60, 50]}))
    assert [operator.next_timer() for operator in tasks.operators] == [50]
    assert tasks.operators[0].on_processing_time(49) == []
    tasks.restart(3)
    assert min(o.next_timer() for o in tasks.operators if o.next_timer() is not None) == 50
    for operator in tasks.operators:
        due = operator.next_timer()
        if due is not None and due <= 70:
            tasks.out += operator.on_processing_time(70)
    assert sorted((r["k"], r["at"], r["now"]) for r in tasks.taken()) == [
        ("a", 60, 70),
        ("b", 50, 70),
    ]
    assert all(operator.next_timer() in (None, 50, 60) for operator in tasks.operators)


def test_a_timer_for_the_past_fires_at_once() -> None:
    class Past(KeyedProcessFunction):
        def process_element(self, row: Any, ctx: Any) -> Any:
            ctx.timer_service.register_event_time(datetime(1970, 1, 1, 0, 0, row["n"]))
            return {"k": "row", "at": row["n"]}

        def on_timer(self, timestamp: int, ctx: Any) -> Any:
            return {"k": ctx.current_key, "at": timestamp}

    operator = opened(KeyedProcessOperator(["k"], Past))
    operator.on_watermark(3_000_000)
    out = operator.process_batch(batch({"k": ["a", "b", "c"], "n": [2, 9, 3]}))
    assert main_rows(out) == [
        {"k": "row", "at": 2},
        {"k": "a", "at": 2_000_000},
        {"k": "row", "at": 9},
        {"k": "row", "at": 3},
        {"k": "c", "at": 3_000_000},
    ]


def test_a_timer_that_sets_itself_for_ever_is_named_at_the_end_of_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Periodic(KeyedProcessFunction):
        def process_element(self, row: Any, ctx: Any) -> Any:
            ctx.timer_service.register_event_time(row["n"])

        def on_timer(self, timestamp: int, ctx: Any) -> Any:
            ctx.timer_service.register_event_time(timestamp + 10)

    monkeypatch.setattr(driver, "CHAIN_LIMIT", 1000)
    operator = opened(KeyedProcessOperator(["k"], Periodic), "minutes")
    operator.process_batch(batch({"k": ["a"], "n": [10]}))
    assert operator.on_watermark(10**6) == []
    with pytest.raises(DataError, match=r"'minutes'.*key 'a' has set timer after timer"):
        operator.on_watermark(MAX_TIMESTAMP)


def test_timers_and_state_need_a_key_and_on_timer() -> None:
    class NoHandler(KeyedProcessFunction):
        def process_element(self, row: Any, ctx: Any) -> Any:
            ctx.timer_service.register_event_time(1)

    operator = opened(KeyedProcessOperator(["k"], NoHandler))
    operator.process_batch(batch({"k": ["a"]}))
    with pytest.raises(UserFunctionError, match="has no on_timer"):
        operator.on_watermark(1)
    assert opened(KeyedProcessOperator(["k"], NoHandler)).next_timer() is None


# ------------------------------------------------------------------------- time to live, size


class Remember(KeyedProcessFunction):
    seen = ValueState(pa.int64(), default=0, ttl=timedelta(seconds=10))

    def process_element(self, row: Any, ctx: Any) -> Any:
        self.seen.update(self.seen.value() + 1)
        return {"n": self.seen.value()}


def test_expired_state_is_gone_from_results_snapshots_and_memory() -> None:
    operator = opened(KeyedProcessOperator(["k"], Remember))
    operator.set_processing_time(0)
    keys = pa.array(range(50_000))
    operator.process_batch(Batch(pa.record_batch({"k": keys})))
    assert operator.snapshot()["state.seen"].table.num_rows == 50_000
    assert operator.next_timer() == 1_000_000
    operator.set_processing_time(9_999_999)
    assert main_rows(operator.process_batch(batch({"k": [1]}))) == [{"n": 2}]
    assert operator.on_processing_time(10_000_000) == []
    assert operator.snapshot()["state.seen"].table.num_rows == 1
    steps = 0
    while operator.function.seen.live > 1:
        operator.on_processing_time(10_000_000)
        steps += 1
    assert 2 <= steps <= 6  # 16,384 cells a step
    assert len(operator.backend.scope.index) < 20_000
    assert main_rows(operator.process_batch(batch({"k": [2, 1]}))) == [{"n": 1}, {"n": 3}]


def test_keys_without_state_are_forgotten() -> None:
    class Once(KeyedProcessFunction):
        open_ = ValueState(pa.bool_())

        def process_element(self, row: Any, ctx: Any) -> Any:
            if row["n"]:
                self.open_.clear()
            else:
                self.open_.update(True)

    operator = opened(KeyedProcessOperator(["k"], Once))
    for start in range(0, 100_000, 1000):
        for n in (0, 1):
            keys = pa.array([f"session-{i}" for i in range(start, start + 1000)])
            operator.process_batch(Batch(pa.record_batch({"k": keys, "n": [n] * 1000})))
    operator.process_batch(batch({"k": ["last"], "n": [0]}))
    assert len(operator.backend.scope.index) < 10_000
    assert operator.snapshot()["state.open_"].table["key.k"].to_pylist() == ["last"]


# ------------------------------------------------------------------------------- being restored


def test_state_that_does_not_fit_the_program_is_refused() -> None:
    def declared(**states: Any) -> KeyedProcessOperator:
        class Some(KeyedProcessFunction):
            def open(self, ctx: Any) -> None:
                for name, state in states.items():
                    setattr(self, name, ctx.state(state(name=name)))

            def process_element(self, row: Any, ctx: Any) -> Any:
                self.amount.update(row["n"])  # type: ignore[attr-defined]

        return opened(KeyedProcessOperator(["k"], Some), "changed")  # type: ignore[no-any-return]

    def integer(name: str) -> ValueState:
        return ValueState(pa.int64(), name=name)

    before = declared(amount=integer)
    before.process_batch(batch({"k": ["a"], "n": [1]}))
    state = before.snapshot()
    declared(amount=integer, more=integer).restore(state)
    with pytest.raises(StateMismatchError, match=r"'changed'.*'amount'.*rename it to 'amounts'"):
        declared(amounts=integer).restore(state)
    with pytest.raises(StateMismatchError, match="'amount' was written as int64 and is declared"):
        declared(amount=lambda name: ValueState(pa.string(), name=name)).restore(state)
    with pytest.raises(StateMismatchError, match="namespace of state 'amount'"):
        declared(amount=lambda name: ListState(pa.int64(), name=name)).restore(state)
    moved = state["state.amount"].table
    wrong = moved.set_column(0, "key_group", pa.array([(moved["key_group"][0].as_py() + 1) % 16]))
    with pytest.raises(StateMismatchError, match="max_parallelism"):
        declared(amount=integer).restore(
            {"state.amount": StateTable(StateKind.KEYED, wrong.cast(moved.schema))}
        )


def test_a_ttl_may_be_added_and_removed() -> None:
    def operator(ttl: StateTtl | None) -> Any:
        class Count(KeyedProcessFunction):
            n = ValueState(pa.int64(), default=0, ttl=ttl)

            def process_element(self, row: Any, ctx: Any) -> Any:
                self.n.update(self.n.value() + 1)
                return {"n": self.n.value()}

        return opened(KeyedProcessOperator(["k"], Count))

    ttl = StateTtl(duration=timedelta(seconds=1))
    plain = operator(None)
    plain.process_batch(batch({"k": ["a"]}))
    limited = operator(ttl)
    limited.restore(plain.snapshot())
    limited.set_processing_time(5_000_000)
    again = operator(None)
    again.restore(limited.snapshot())
    assert main_rows(again.process_batch(batch({"k": ["a"]}))) == [{"n": 2}]
    assert limited.snapshot()["state.n"].table["expires"].to_pylist() == [6_000_000]
    limited.set_processing_time(6_000_000)
    assert main_rows(limited.process_batch(batch({"k": ["a"]}))) == [{"n": 1}]


def test_each_subtask_works_on_a_copy_of_the_function() -> None:
    class Own(KeyedProcessFunction):
        def __init__(self) -> None:
            self.rows: list[Any] = []
            self.closed = 0

        def process_element(self, row: Any, ctx: Any) -> Any:
            self.rows.append(row)

        def close(self) -> None:
            self.closed += 1

    function = Own()
    one = opened(KeyedProcessOperator(["k"], function))
    two = opened(KeyedProcessOperator(["k"], function))
    one.process_batch(batch({"k": ["a"]}))
    one.close()
    assert (function.rows, two.function.rows, len(one.function.rows)) == ([], [], 1)
    assert (one.function.closed, two.function.closed) == (1, 0)


# ----------------------------------------------------------------------- what is refused early


def test_declarations_outputs_and_columns_are_checked() -> None:
    class Plain(KeyedProcessFunction):
        def process_element(self, row: Any, ctx: Any) -> Any:
            ctx.output("sied", row)

    class Both(Plain):
        def process_batches(self, table: pa.Table, ctx: Any) -> Any:
            return table

    class Twice(Plain):
        one = ValueState(pa.int64(), name="same")
        two = ValueState(pa.int64(), name="same")

    with pytest.raises(ConfigError, match="defines both"):
        KeyedProcessOperator(["k"], Both)
    with pytest.raises(ConfigError, match="defines neither"):
        KeyedProcessOperator(["k"], KeyedProcessFunction())
    with pytest.raises(ConfigError, match="needs a KeyedProcessFunction, got 5"):
        KeyedProcessOperator(["k"], 5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="two states are named 'same'"):
        opened(KeyedProcessOperator(["k"], Twice))
    with pytest.raises(MissingColumnError, match="Did you mean 'key'"):
        KeyedProcessOperator(["kye"], Plain, input_schema=pa.schema([("key", pa.int64())]))
    with pytest.raises(ConfigError, match="dead_letter"):
        KeyedProcessOperator(["k"], Plain, side_outputs={"dead_letter": None})
    with pytest.raises(ConfigError, match="only a declaration"):
        Remember().seen.value()
    operator = opened(KeyedProcessOperator(["k"], Plain, side_outputs={"side": None}))
    with pytest.raises(UserFunctionError, match=r"'sied' was not declared.*Did you mean 'side'"):
        operator.process_batch(batch({"k": ["a"]}))
    operator = opened(KeyedProcessOperator(["k"], Remember))
    operator.process_batch(batch({"k": ["a"]}))
    with pytest.raises(SchemaChangedError, match="key column 'k' is int64"):
        operator.process_batch(batch({"k": [1]}))


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_nested_values_cannot_be_changed_behind_the_state(data: st.DataObject) -> None:
    class Nested(KeyedProcessFunction):
        bag = ValueState(pa.struct([("xs", pa.list_(pa.int64()))]))

        def process_element(self, row: Any, ctx: Any) -> Any:
            bag = self.bag.value() or {"xs": []}
            if row["n"] % 2:
                bag["xs"].append(row["n"])
                self.bag.update(bag)
            bag["xs"].append(-1)
            return {"xs": list((self.bag.value() or {"xs": []})["xs"])}

    numbers = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    cut = data.draw(st.integers(0, len(numbers)))
    operator = opened(
        KeyedProcessOperator(["k"], Nested, schema=pa.schema([("xs", pa.list_(pa.int64()))]))
    )
    out = []
    for part in (numbers[:cut], numbers[cut:]):
        out += operator.process_batch(
            batch({"k": ["a"] * len(part), "n": pa.array(part, pa.int64())})
        )
    odd = [[n for n in numbers[: i + 1] if n % 2] for i in range(len(numbers))]
    assert [row["xs"] for row in main_rows(out)] == odd
