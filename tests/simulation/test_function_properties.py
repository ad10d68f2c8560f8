"""Functions with state and timers: their effects are those of one run without failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP
from helios_ray.functions import (
    AggregatingState,
    BroadcastProcessFunction,
    BroadcastState,
    CoProcessFunction,
    KeyedProcessFunction,
    ListState,
    MapState,
    ReducingState,
    StateTtl,
    ValueState,
)
from helios_ray.simulation.requests import pause
from helios_ray.stream import DataStream
from tests.simulation.oracle import MS, SCHEMA, keys, ms, numbered, timed_rows
from tests.simulation.programs import Case, Row, Stage, cases, few, multiset, rows_of

END = 10**15
"""An event time after all rows: a timer there fires when the input has ended."""

ROWS = timed_rows(50)


def in_order(case: Case) -> Case:
    """One split, read in the order of its rows: so they arrive at their key."""
    return replace(case, splits=1, bound=timedelta())


def of_keys(rows: list[Row]) -> dict[str, list[Row]]:
    return {key: [r for r in rows if r["key"] == key] for key in {r["key"] for r in rows}}


def worth(row: Row) -> int:
    return 0 if row["v"] is None else int(row["v"])


class Mean:
    """Folds values into sum and count."""

    def create(self) -> Any:
        return {"sum": 0, "n": 0}

    def add(self, accumulator: Any, value: Any) -> Any:
        return {"sum": accumulator["sum"] + value, "n": accumulator["n"] + 1}

    def result(self, accumulator: Any) -> Any:
        return accumulator["sum"] / accumulator["n"]


class Remember(KeyedProcessFunction):
    """Keeps a key's rows in each kind of state, and tells when the input has ended."""

    total = ValueState(pa.int64(), default=0)
    ids = ListState(pa.int64())
    times = MapState(pa.int64(), pa.int64())
    greatest = ReducingState(pa.int64(), max)
    mean = AggregatingState(pa.struct([("sum", pa.int64()), ("n", pa.int64())]), Mean())
    emptied = ListState(pa.int64())

    def process_element(self, row: Row, ctx: Any) -> Any:
        self.total.update(self.total.value() + worth(row))
        self.ids.add(row["id"])
        seen = row["t"]
        self.times.put(seen, (self.times.get(seen) or 0) + 1)
        self.greatest.add(worth(row))
        self.mean.add(worth(row))
        self.emptied.add(row["id"])
        ctx.timer_service.register_event_time(END)

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        first, twice = (self.total.value(), self.greatest.get()), self.mean.get()
        self.emptied.clear()
        yield {
            "key": ctx.current_key,
            "total": first[0],
            "ids": self.ids.get(),
            "times": [[at, n] for at, n in sorted(self.times.items())],
            "greatest": first[1],
            "mean": twice,
            "left": self.emptied.get(),
            "at": timestamp,
        }


def remembered(key: str, rows: list[Row]) -> Row:
    times = Counter(row["t"] for row in rows)
    return {
        "key": key,
        "total": sum(map(worth, rows)),
        "ids": [row["id"] for row in rows],
        "times": [list(item) for item in sorted(times.items())],
        "greatest": max(map(worth, rows)),
        "mean": sum(map(worth, rows)) / len(rows),
        "left": [],
        "at": END,
    }


@given(case=cases(), rows=ROWS)
@few
def test_every_kind_of_state_holds_what_all_rows_of_its_key_put_there(
    case: Case, rows: list[Row]
) -> None:
    stage = Stage(case)
    keyed = stage.stream(rows, schema=SCHEMA, time="t").key_by("key")
    found = stage.rows(keyed.process(Remember, uid="remember"))
    told = [{**row, "ids": sorted(row["ids"])} for row in found]
    assert multiset(told) == multiset(remembered(key, own) for key, own in of_keys(rows).items())


@given(case=cases(), rows=rows_of(50, key=keys(), v=st.integers(-9, 9)))
@few
def test_the_rows_of_a_split_reach_the_state_of_their_key_in_their_order(
    case: Case, rows: list[Row]
) -> None:
    stage = Stage(in_order(case))
    rows = [{"id": i, "t": i, **row} for i, row in enumerate(rows)]
    keyed = stage.stream(rows, schema=SCHEMA, time="t").key_by("key")
    assert stage.run(keyed.process(Remember, uid="remember")) == multiset(
        remembered(key, own) for key, own in of_keys(rows).items()
    )


# ------------------------------------------------------------------------------------ timers


class Echo(KeyedProcessFunction):
    """A timer some time after each row; those of one time are one."""

    def __init__(self, after: int) -> None:
        self.after = after

    def process_element(self, row: Row, ctx: Any) -> Any:
        ctx.timer_service.register_event_time(row["t"] + self.after)

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        assert ctx.time_domain == "event"
        assert ctx.timer_service.current_watermark >= timestamp
        return {"key": ctx.current_key, "at": timestamp}


@given(case=cases(), rows=ROWS, after=st.integers(-30, 60))
@few
def test_an_event_time_timer_fires_once_for_its_key_and_time(
    case: Case, rows: list[Row], after: int
) -> None:
    """Even one that is overdue when it is registered."""
    stage = Stage(case)
    keyed = stage.stream(rows, schema=SCHEMA, time="t").key_by("key")
    found = stage.run(keyed.process(Echo(after * MS), uid="echo"))
    due = {(row["key"], row["t"] + after * MS) for row in rows}
    if after >= 0:
        assert found == multiset({"key": key, "at": at} for key, at in due)
    else:  # a timer that has fired may be registered again by another row of its time
        assert found.keys() == multiset({"key": key, "at": at} for key, at in due).keys()
        times = Counter((row["key"], row["t"] + after * MS) for row in rows)
        assert found <= multiset({"key": k, "at": at} for k, at in times.elements())


class Alarm(KeyedProcessFunction):
    """Rows set and delete timers of both clocks, all far away; one set is none if deleted."""

    def process_element(self, row: Row, ctx: Any) -> Any:
        timers, at = ctx.timer_service, END + row["slot"]
        if row["does"] == "set":
            timers.register_event_time(at)
        elif row["does"] == "delete":
            timers.delete_event_time(at)
        else:
            # A timer of the other clock, at the same number, is another timer.
            timers.register_processing_time(at)
            timers.delete_processing_time(at)

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        return {"key": ctx.current_key, "slot": timestamp - END, "clock": ctx.time_domain}


@given(
    case=cases(),
    rows=rows_of(
        60,
        key=keys(),
        does=st.sampled_from(["set", "set", "delete", "other"]),
        slot=st.integers(0, 3),
    ),
)
@few
def test_a_timer_that_was_deleted_does_not_fire_and_all_others_do(
    case: Case, rows: list[Row]
) -> None:
    stage = Stage(in_order(case))
    rows = [{**row, "t": i} for i, row in enumerate(rows)]
    schema = pa.schema(
        [("key", pa.string()), ("does", pa.string()), ("slot", pa.int64()), ("t", pa.int64())]
    )
    keyed = stage.stream(rows, schema=schema, time="t").key_by("key")
    last: dict[Any, str] = {}
    for row in rows:
        if row["does"] != "other":
            last[(row["key"], row["slot"])] = row["does"]
    assert stage.run(keyed.process(Alarm, uid="alarm")) == multiset(
        {"key": key, "slot": slot, "clock": "event"}
        for (key, slot), does in last.items()
        if does == "set"
    )


class Once(KeyedProcessFunction):
    """One timer by the clock per key, from its first row on."""

    due = ValueState(pa.int64())
    rows = ValueState(pa.int64(), default=0)

    def __init__(self, after: int) -> None:
        self.after = after

    def process_element(self, row: Row, ctx: Any) -> Any:
        self.rows.update(self.rows.value() + 1)
        if self.due.value() is None:
            self.due.update(ctx.timer_service.current_processing_time + self.after)
            ctx.timer_service.register_processing_time(self.due.value())

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        return {
            "key": ctx.current_key,
            "kept": timestamp == self.due.value(),
            "early": ctx.timer_service.current_processing_time < timestamp,
            "clock": ctx.time_domain,
            "rows": self.rows.value() > 0,
        }


async def much_later(_: Row) -> None:
    await pause(30.0)


def lasting(stage: Stage) -> DataStream:
    """No rows, for as long as half a minute: other inputs do not end the job meanwhile."""
    schema = pa.schema([("id", pa.int64())])
    slow = stage.env.from_items([{"id": 0}], uid="slow")
    return slow.map_async(much_later, schema=schema, uid="wait").map(
        lambda row: {"id": row["id"], "key": "", "t": 0, "v": 0}, schema=SCHEMA, uid="none"
    )


@given(case=cases(), rows=ROWS, after=st.integers(1, 2000))
@settings(few, max_examples=12)
def test_a_processing_time_timer_fires_once_per_key_whatever_crashes(
    case: Case, rows: list[Row], after: int
) -> None:
    stage = Stage(case)
    stream = stage.stream(rows, schema=SCHEMA).union(lasting(stage))
    found = stage.run(stream.key_by("key").process(Once(after * MS), uid="once"))
    assert found == multiset(
        {"key": key, "kept": True, "early": False, "clock": "processing", "rows": True}
        for key in of_keys(rows)
    )


# ------------------------------------------------------------------------------ side outputs


class Sort(KeyedProcessFunction):
    """Rows by their sign, and a word about each key."""

    told = ValueState(pa.bool_(), default=False)

    def process_element(self, row: Row, ctx: Any) -> Any:
        if not self.told.value():
            self.told.update(True)
            ctx.output("keys", {"key": row["key"]})
        if row["v"] is None:
            ctx.output("unknown", row)
        elif row["v"] < 0:
            ctx.emit(row)
        else:
            yield row
            ctx.output("unknown", {**row, "v": None})


@given(case=cases(), rows=ROWS)
@few
def test_what_goes_to_side_outputs_arrives_there_once(case: Case, rows: list[Row]) -> None:
    stage = Stage(case)
    keyed = stage.stream(rows, schema=SCHEMA).key_by("key")
    made = keyed.process(
        Sort, schema=SCHEMA, uid="sort",
        side_outputs={"unknown": SCHEMA, "keys": pa.schema([("key", pa.string())])},
    )  # fmt: skip
    made.collect(uid="main")
    for tag in ("unknown", "keys"):
        made.side_output(tag).collect(uid=tag)
    assert stage.run_all() == {
        "main": multiset(row for row in rows if row["v"] is not None),
        "unknown": multiset(
            {**row, "v": None} for row in rows if row["v"] is None or row["v"] >= 0
        ),
        "keys": multiset({"key": key} for key in of_keys(rows)),
    }


# -------------------------------------------------------------------------------------- TTL


class Watch(KeyedProcessFunction):
    """Reads a value that expires, and remembers for ever when it was written."""

    kept = ValueState(pa.int64(), ttl=StateTtl(duration=ms(150)))
    entries = MapState(pa.int64(), pa.int64(), ttl=ms(150))
    elements = ListState(pa.int64(), ttl=ms(150))
    written = ValueState(pa.int64())
    often = ValueState(pa.int64(), default=0)

    def process_element(self, row: Row, ctx: Any) -> Any:
        now, before = ctx.timer_service.current_processing_time, self.written.value()
        self.often.update(self.often.value() + 1)
        yield {
            "key": row["key"],
            "nth": self.often.value(),
            "age": None if before is None else now - before,
            "value": self.kept.value() == before and before is not None,
            "entry": 0 in self.entries,
            "element": len(self.elements.get()),
        }
        if before is None or now - before >= 150 * MS or row["v"] is None:
            for state in (self.kept, self.written):
                state.update(now)
            self.entries.put(0, now)
            self.elements.update([now])


@given(case=cases(), rows=timed_rows(80))
@few
def test_state_lives_as_long_as_it_was_promised_and_not_longer(case: Case, rows: list[Row]) -> None:
    stage = Stage(case)
    keyed = stage.stream(rows, schema=SCHEMA).key_by("key")
    found = stage.rows(keyed.process(Watch, uid="watch"))
    assert multiset({"key": row["key"], "nth": row["nth"]} for row in found) == multiset(
        {"key": key, "nth": i + 1} for key, own in of_keys(rows).items() for i in range(len(own))
    )
    for row in found:
        alive = row["age"] is not None and row["age"] < 150 * MS
        assert (row["value"], row["entry"], row["element"]) == (alive, alive, int(alive))


# ------------------------------------------------------------------------- two inputs at once


class Balance(CoProcessFunction):
    """Both streams of a key work on one state."""

    plus = ValueState(pa.int64(), default=0)
    minus = ListState(pa.int64())

    def process_element1(self, row: Row, ctx: Any) -> Any:
        self.plus.update(self.plus.value() + worth(row))
        ctx.timer_service.register_event_time(END)

    def process_element2(self, row: Row, ctx: Any) -> Any:
        self.minus.add(worth(row))
        ctx.timer_service.register_event_time(END)

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        total = self.plus.value() - sum(self.minus.get())
        yield {"key": ctx.current_key, "total": total, "n": len(self.minus.get())}


@given(case=cases(), one=ROWS, other=ROWS)
@few
def test_two_streams_share_the_state_and_timers_of_a_key(
    case: Case, one: list[Row], other: list[Row]
) -> None:
    stage = Stage(case)
    left = stage.stream(one, schema=SCHEMA, time="t", uid="one").key_by("key")
    right = stage.stream(other, schema=SCHEMA, time="t", uid="other").key_by("key")
    by_key, by_other = of_keys(one), of_keys(other)
    assert stage.run(left.connect(right).process(Balance, uid="balance")) == multiset(
        {
            "key": key,
            "total": sum(map(worth, by_key.get(key, []))) - sum(map(worth, by_other.get(key, []))),
            "n": len(by_other.get(key, [])),
        }
        for key in {*by_key, *by_other}
    )


class Rated(BroadcastProcessFunction):
    """Waits until all rates are there, then tells what each row of the key is worth."""

    rates = BroadcastState(pa.string(), pa.int64())
    held = ListState(pa.int64())

    def process_element(self, row: Row, ctx: Any) -> Any:
        self.held.add(worth(row))
        ctx.timer_service.register_event_time(END)

    def process_broadcast_element(self, row: Row, ctx: Any) -> Any:
        self.rates.put(row["key"], max(worth(row), self.rates.get(row["key"], -99)))

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        rate = self.rates.get(ctx.current_key, 0)
        for value in self.held.get():
            yield {"key": ctx.current_key, "worth": value * rate}


@given(case=cases(), rows=ROWS, rates=timed_rows(15))
@few
def test_every_subtask_holds_all_broadcast_rows(
    case: Case, rows: list[Row], rates: list[Row]
) -> None:
    stage = Stage(case)
    stream = stage.stream(rows, schema=SCHEMA, time="t", uid="rows").key_by("key")
    rules = stage.stream(rates, schema=SCHEMA, time="t", uid="rates").broadcast()
    greatest = {key: max(map(worth, own)) for key, own in of_keys(rates).items()}
    assert stage.run(stream.connect(rules).process(Rated, uid="rated")) == multiset(
        {"key": row["key"], "worth": worth(row) * greatest.get(row["key"], 0)} for row in rows
    )


class Heard(BroadcastProcessFunction):
    """Passes rows on, and says in each subtask which rules it has heard."""

    rules = BroadcastState(pa.int64(), pa.int64())

    def process_element(self, row: Row, ctx: Any) -> Any:
        assert all(self.rules.get(i) == 2 * i for i in self.rules.keys())  # noqa: SIM118
        yield {"id": row["id"]}

    def process_broadcast_element(self, row: Row, ctx: Any) -> Any:
        assert row["id"] not in self.rules
        self.rules.put(row["id"], 2 * row["id"])
        yield {"id": -1 - row["id"]}


@given(case=cases(), rows=ROWS, rules=timed_rows(15))
@few
def test_a_broadcast_row_comes_to_each_subtask_once_beside_a_stream_without_keys(
    case: Case, rows: list[Row], rules: list[Row]
) -> None:
    stage = Stage(case)
    stream = stage.stream(rows, schema=SCHEMA, uid="rows")
    heard = stream.connect(stage.stream(rules, schema=SCHEMA, uid="rules").broadcast())
    found = Counter(row["id"] for row in stage.rows(heard.process(Heard, uid="heard")))
    assert found == Counter(
        [row["id"] for row in rows] + [-1 - row["id"] for row in rules] * case.parallelism
    )


# ----------------------------------------------------------------------------- batches of rows


class Total(KeyedProcessFunction):
    """Row by row."""

    total = ValueState(pa.int64(), default=0)
    n = ValueState(pa.int64(), default=0)

    def process_element(self, row: Row, ctx: Any) -> Any:
        self.total.update(self.total.value() + worth(row))
        self.n.update(self.n.value() + 1)
        ctx.timer_service.register_event_time(END)
        yield {"key": row["key"], "id": row["id"], "nth": self.n.value()}

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        yield {"key": ctx.current_key, "id": self.total.value(), "nth": -self.n.value()}


class Totals(KeyedProcessFunction):
    """The same, a sorted table at a time."""

    total = ValueState(pa.int64(), default=0)
    n = ValueState(pa.int64(), default=0)
    on_timer = Total.on_timer

    def process_batches(self, table: pa.Table, ctx: Any) -> Any:
        values = table["v"].fill_null(0).to_numpy()
        self.total.put_column(
            self.total.get_column().to_numpy() + np.add.reduceat(values, ctx.starts)
        )
        before = self.n.get_column().to_numpy()
        self.n.put_column(before + ctx.counts)
        within = np.arange(table.num_rows) - ctx.starts[ctx.key_of_row]
        for _ in ctx.each_key():
            ctx.timer_service.register_event_time(END)
        nth = ctx.spread(before).to_numpy() + within + 1
        return {"key": table["key"], "id": table["id"], "nth": nth}


@given(case=cases(), rows=timed_rows(60), ordered=st.booleans())
@settings(few, max_examples=12)
def test_a_table_at_a_time_or_row_by_row_a_function_says_the_same(
    case: Case, rows: list[Row], ordered: bool
) -> None:
    stage = Stage(in_order(case) if ordered else case)
    time = None if ordered else "t"
    keyed = stage.stream(rows, schema=SCHEMA, time=time, uid="source").key_by("key")
    keyed.process(Total, uid="rows-total").collect(uid="rows")
    keyed.process(Totals, uid="table-total").collect(uid="table")
    found = stage.run_all()
    expected = [
        {"key": key, "id": sum(map(worth, own)), "nth": -len(own)}
        for key, own in of_keys(rows).items()
    ]
    for uid in ("rows", "table"):
        told = stage.committed(uid)
        assert multiset(row for row in told if row["nth"] < 0) == multiset(expected)
        assert Counter((row["key"], row["nth"]) for row in told if row["nth"] > 0) == Counter(
            (key, i + 1) for key, own in of_keys(rows).items() for i in range(len(own))
        )
        assert sorted(row["id"] for row in told if row["nth"] > 0) == [row["id"] for row in rows]
    if ordered:
        assert found["rows"] == found["table"]


def test_the_end_of_time_is_after_the_timers_of_these_tests() -> None:
    assert END + 1000 < MAX_TIMESTAMP
    assert numbered([{}]) == [{"id": 0}]
