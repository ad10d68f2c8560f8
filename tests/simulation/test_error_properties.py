"""A function that fails on some rows: the others have their effect, and those come out once.

Functions do as much harm as they can before they raise: what they emitted, wrote, and
registered must be gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.aggregates import AggregateFunction, count
from helios_ray.functions import (
    BroadcastProcessFunction,
    CoProcessFunction,
    KeyedProcessFunction,
    ListState,
    ValueState,
)
from helios_ray.simulation.requests import pause
from helios_ray.stream import DataStream
from helios_ray.windows import ProcessWindowFunction, TumblingWindow, Window
from tests.simulation.oracle import SCHEMA, ms, panes, plain_rows, timed_rows, tumbling
from tests.simulation.programs import Case, Row, Stage, cases, few, multiset

END = 10**15
ROWS = timed_rows(40)
WINDOW = TumblingWindow(ms(30))


class Bad(Exception):
    """What the functions of these tests raise, on rows without a value."""


def check(row: Row) -> None:
    if row["v"] is None:
        raise Bad(row["id"])


def good(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["v"] is not None]


def bad(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["v"] is None]


def twice(row: Row) -> Row:
    row["key"] = "changed"
    check(row)
    return {"id": row["id"], "w": row["v"] * 2}


def several(row: Row) -> Iterable[Row]:
    for i in range(row["id"] % 3 + 1):
        yield {"id": row["id"], "w": i}
    check(row)


def positive(row: Row) -> bool:
    check(row)
    return bool(row["v"] > 0)


async def later(row: Row) -> Row:
    await pause(0.01)
    check(row)
    return {"id": row["id"], "w": 1}


def all_good(batch: pa.Table) -> pa.Table:
    for row in batch.to_pylist():
        check(row)
    return batch.select(["id"])


class Running(KeyedProcessFunction):
    """Sums of a key, told at the end; harm first, then the check."""

    total = ValueState(pa.int64(), default=0)
    seen = ListState(pa.int64())

    def process_element(self, row: Row, ctx: Any) -> Any:
        self.total.update(self.total.value() + (100 if row["v"] is None else row["v"]))
        self.seen.add(row["id"])
        # A time that only bad rows would register: a timer there must not fire.
        ctx.timer_service.register_event_time(END if row["v"] is not None else END + 1)
        ctx.emit({"key": row["key"], "id": row["id"], "seen": None})
        check(row)

    def on_timer(self, timestamp: int, ctx: Any) -> Any:
        seen = sorted(self.seen.get())
        yield {"key": ctx.current_key, "id": self.total.value() + timestamp - END, "seen": seen}


RUNNING = pa.schema([("key", pa.string()), ("id", pa.int64()), ("seen", pa.list_(pa.int64()))])


def running(rows: list[Row]) -> list[Row]:
    kept = good(rows)
    told: list[Row] = [{"key": row["key"], "id": row["id"], "seen": None} for row in kept]
    for key in {row["key"] for row in kept}:
        own = [row for row in kept if row["key"] == key]
        total, seen = sum(row["v"] for row in own), sorted(row["id"] for row in own)
        told.append({"key": key, "id": total, "seen": seen})
    return told


class CoRunning(CoProcessFunction):
    """The same for the second of two streams; the first has no rows."""

    total = ValueState(pa.int64(), default=0)
    seen = ListState(pa.int64())
    process_element2 = Running.process_element
    on_timer = Running.on_timer


class BesideRules(BroadcastProcessFunction):
    """The same beside a broadcast stream without rows."""

    total = ValueState(pa.int64(), default=0)
    seen = ListState(pa.int64())
    process_element = Running.process_element
    on_timer = Running.on_timer


class Sum(AggregateFunction):
    result_type = pa.int64()

    def create(self) -> Any:
        return []

    def add(self, accumulator: Any, row: Row) -> Any:
        accumulator.append(100 if row["v"] is None else row["v"])
        check(row)
        return accumulator

    def merge(self, a: Any, b: Any) -> Any:
        return a + b

    def result(self, accumulator: Any) -> Any:
        return sum(accumulator)


def sums(rows: list[Row]) -> list[Row]:
    told: list[Row] = []
    for (key, start, end), own in panes(good(rows), tumbling(WINDOW.size)).items():
        w = sum(r["v"] for r in own)
        head = {"key": key, "window_start": start, "window_end": end}
        told.append({**head, "n": len(own), "w": w, "again": w})
    return told


def folded(rows: list[Row]) -> list[Row]:
    """Running sums of each key; the first row of a key is no call."""
    so_far: dict[str, Row] = {}
    told = []
    for row in rows:
        before = so_far.get(row["key"])
        if before is not None and row["v"] is None:
            continue
        so_far[row["key"]] = row if before is None else {**row, "v": (before["v"] or 0) + row["v"]}
        told.append(so_far[row["key"]])
    return told


def not_first(rows: list[Row]) -> list[Row]:
    return [row for row in bad(rows) if any(r["key"] == row["key"] for r in rows[: row["id"]])]


def fold(so_far: Row, row: Row) -> Row:
    check(row)
    return {**row, "v": (so_far["v"] or 0) + row["v"]}


def nothing(stage: Stage, uid: str) -> DataStream:
    return stage.stream([], schema=SCHEMA, time="t", uid=uid)


@dataclass(frozen=True)
class Kind:
    """A function that users write, what it makes of rows, and which of them it fails on."""

    made: Callable[[Stage, DataStream, Any], DataStream]
    expected: Callable[[list[Row]], list[Row]]
    failing: Callable[[list[Row]], list[Row]] = bad
    ordered: bool = False
    """Whether the results depend on the order of rows."""


TWICE = pa.schema([("id", pa.int64()), ("w", pa.int64())])
TOLD: dict[str, Any] = {"schema": RUNNING, "uid": "f"}

KINDS: dict[str, Kind] = {
    "map": Kind(
        lambda _, s, policy: s.map(twice, schema=TWICE, on_error=policy, uid="f"),
        lambda rows: [{"id": r["id"], "w": r["v"] * 2} for r in good(rows)],
    ),
    "flat_map": Kind(
        lambda _, s, policy: s.flat_map(several, schema=TWICE, on_error=policy, uid="f"),
        lambda rows: [{"id": r["id"], "w": i} for r in good(rows) for i in range(r["id"] % 3 + 1)],
    ),
    "filter": Kind(
        lambda _, s, policy: s.filter(positive, on_error=policy, uid="f"),
        lambda rows: [r for r in good(rows) if r["v"] > 0],
    ),
    "branch": Kind(
        lambda _, s, policy: s.branch(up=positive, on_error=policy, uid="f").rest,
        lambda rows: [r for r in good(rows) if r["v"] <= 0],
    ),
    "inspect": Kind(lambda _, s, policy: s.inspect(check, on_error=policy, uid="f"), good),
    "map_async": Kind(
        lambda _, s, policy: s.map_async(later, capacity=3, schema=TWICE, on_error=policy, uid="f"),
        lambda rows: [{"id": r["id"], "w": 1} for r in good(rows)],
    ),
    "map_batches": Kind(
        lambda _, s, policy: s.map_batches(
            all_good, batch_format="pyarrow", schema=TWICE.remove(1), on_error=policy, uid="f"
        ),
        lambda rows: [{"id": r["id"]} for r in good(rows)],
    ),
    "reduce": Kind(
        lambda _, s, policy: s.key_by("key").reduce(fold, on_error=policy, uid="f"),
        folded,
        not_first,
        ordered=True,
    ),
    "process": Kind(
        lambda _, s, policy: s.key_by("key").process(Running, on_error=policy, **TOLD), running
    ),
    "co_process": Kind(
        lambda stage, s, policy: (
            nothing(stage, "other")
            .key_by("key")
            .connect(s.key_by("key"))
            .process(CoRunning, on_error=policy, **TOLD)
        ),
        running,
    ),
    "broadcast_process": Kind(
        lambda stage, s, policy: (
            s.key_by("key")
            .connect(nothing(stage, "rules").broadcast())
            .process(BesideRules, on_error=policy, **TOLD)
        ),
        running,
    ),
    "aggregate": Kind(
        lambda _, s, policy: (
            s.key_by("key")
            .window(WINDOW)
            .aggregate(n=count(), w=Sum(), again=Sum(), on_error=policy, uid="f")
        ),
        sums,
    ),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(case=cases(), rows=ROWS, policy=st.sampled_from(["skip", "dead_letter"]))
@settings(few, max_examples=10)
def test_good_rows_have_their_effect_and_bad_rows_are_told_of_once(
    kind: str, case: Case, rows: list[Row], policy: Any
) -> None:
    chosen = KINDS[kind]
    if chosen.ordered:
        case = replace(case, splits=1)
    stage = Stage(case)
    stream = stage.stream(rows, schema=SCHEMA, time=None if chosen.ordered else "t")
    made = chosen.made(stage, stream, policy)
    made.collect(uid="out")
    if policy == "dead_letter":
        made.dead_letters().collect(uid="letters")
    stage.run_all()
    assert multiset(plain_rows(stage.committed("out"))) == multiset(chosen.expected(rows))
    if policy == "dead_letter":
        letters = stage.committed("letters")
        failed = chosen.failing(rows)
        assert multiset(json.loads(letter["row"]) for letter in letters) == multiset(failed)
        for letter in letters:
            assert letter["error"] == f"Bad: {json.loads(letter['row'])['id']}"
            assert "Bad" in letter["traceback"]
            assert letter["operator"] == "f"


# ---------------------------------------------------------------------- whole windows that fail


class Fussy(ProcessWindowFunction):
    output_schema = pa.schema([("n", pa.int64())])

    def process(self, key: Row, window: Window, rows: pa.Table) -> Any:
        yield {"n": rows.num_rows}
        for row in rows.to_pylist():
            check(row)


class FussySum(AggregateFunction):
    """Takes every row, and fails when asked for the result."""

    result_type = pa.int64()

    def create(self) -> Any:
        return {"n": 0, "bad": 0}

    def add(self, accumulator: Any, row: Row) -> Any:
        return {"n": accumulator["n"] + 1, "bad": accumulator["bad"] + (row["v"] is None)}

    def merge(self, a: Any, b: Any) -> Any:
        return {name: a[name] + b[name] for name in a}

    def result(self, accumulator: Any) -> Any:
        if accumulator["bad"]:
            raise Bad(accumulator["bad"])
        return accumulator["n"]


@given(case=cases(), rows=ROWS, whole=st.booleans(), keyed=st.booleans())
@settings(few, max_examples=12)
def test_a_window_on_which_a_function_fails_is_told_of_once_and_the_others_are_right(
    case: Case, rows: list[Row], whole: bool, keyed: bool
) -> None:
    stage = Stage(case)
    stream = stage.stream(rows, schema=SCHEMA, time="t")
    cut = stream.key_by("key").window(WINDOW) if keyed else stream.window_all(WINDOW)
    if whole:
        made = cut.process(Fussy, on_error="dead_letter", uid="f")
    else:
        made = cut.aggregate(n=FussySum(), on_error="dead_letter", uid="f")
    made.collect(uid="out")
    made.dead_letters().collect(uid="letters")
    stage.run_all()
    key = "key" if keyed else None
    fine, failed = [], []
    for (k, start, end), own in panes(rows, tumbling(WINDOW.size), key).items():
        head = {"key": k} if keyed else {}
        if bad(own):
            failed.append((head, len(own) if whole else None))
        else:
            fine.append({**head, "window_start": start, "window_end": end, "n": len(own)})
    assert multiset(plain_rows(stage.committed("out"))) == multiset(fine)
    letters = [json.loads(letter["row"]) for letter in stage.committed("letters")]
    assert sorted((str(at["key"]), str(at["rows"])) for at in letters) == sorted(
        (str(head), str(n)) for head, n in failed
    )
    assert len({(str(at["key"]), at["window_start"], at["window_end"]) for at in letters}) == len(
        failed
    )


def fussy(_key: Row, _window: Any, left: pa.Table, right: pa.Table) -> Iterable[Row]:
    yield {"n": left.num_rows - right.num_rows}
    for row in left.to_pylist() + right.to_pylist():
        check(row)


@given(case=cases(), one=timed_rows(20), other=timed_rows(20))
@settings(few, max_examples=12)
def test_the_rows_of_a_co_group_that_fails_are_its_dead_letters(
    case: Case, one: list[Row], other: list[Row]
) -> None:
    stage = Stage(case)
    left = stage.stream(one, schema=SCHEMA, time="t", uid="one").key_by("key")
    right = stage.stream(other, schema=SCHEMA, time="t", uid="other").key_by("key")
    made = left.co_group(
        right, WINDOW, fussy, schema=pa.schema([("n", pa.int64())]), on_error="dead_letter", uid="f"
    )
    made.collect(uid="out")
    made.dead_letters().collect(uid="letters")
    stage.run_all()
    sides = [panes(rows, tumbling(WINDOW.size)) for rows in (one, other)]
    fine: list[Row] = []
    failed: list[Row] = []
    for pane in {*sides[0], *sides[1]}:
        of_one, of_other = sides[0].get(pane, []), sides[1].get(pane, [])
        if bad(of_one + of_other):
            failed += of_one + of_other
        else:
            key, start, end = pane
            n = len(of_one) - len(of_other)
            fine.append({"key": key, "window_start": start, "window_end": end, "n": n})
    assert multiset(plain_rows(stage.committed("out"))) == multiset(fine)
    letters = [json.loads(letter["row"]) for letter in stage.committed("letters")]
    assert multiset(letters) == multiset(failed)
