"""The promise: a row that a user's ``add`` fails on is left out of everything, as if it had never
come, and is told of once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.aggregates import AggregateFunction, collect_list, count, sum_
from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP, Batch
from helios_ray.errors import UserFunctionError
from helios_ray.operators.windows import halves
from helios_ray.operators.windows.operator import window_operator
from helios_ray.windowing import (
    CountWindow,
    GlobalWindow,
    SessionWindow,
    SlidingWindow,
    Trigger,
    TumblingWindow,
)
from tests.unit.operators.support import main_rows, opened, tagged_rows
from tests.unit.operators.windows.driving import SCHEMA, Row, stories, table, tight_limits


def us(n: int) -> timedelta:
    return timedelta(microseconds=n)


class Known(AggregateFunction):
    """The ids of rows with a value; harm first, then the check."""

    result_type = pa.string()

    def create(self) -> Any:
        return []

    def add(self, accumulator: Any, row: Row) -> Any:
        accumulator.append(row["id"])
        if row.pop("x") is None:
            raise ValueError(f"{row['id']} is unknown")
        return accumulator

    def merge(self, a: Any, b: Any) -> Any:
        return a + b

    def result(self, accumulator: Any) -> Any:
        return str(sorted(accumulator))


class Lucky(Known):
    """The same, of rows whose value is none of -9, -6, …, 9: it fails on some that Known takes,
    and on all that Known fails on."""

    def add(self, accumulator: Any, row: Row) -> Any:
        accumulator.append(row["id"])
        if row["x"] is None or row["x"] % 3 == 0:
            raise KeyError(row["id"])
        return accumulator


class Batched(AggregateFunction):
    """The sum of a batch of values; a null among them is an error."""

    result_type = pa.int64()

    def create(self) -> Any:
        return 0

    def add(self, accumulator: Any, row: Row) -> Any:
        raise AssertionError("add_batch is there")

    def add_batch(self, accumulator: Any, rows: pa.RecordBatch) -> Any:
        return accumulator + sum(rows["x"].to_pylist())

    def merge(self, a: Any, b: Any) -> Any:
        return a + b

    def result(self, accumulator: Any) -> Any:
        return accumulator


SAID: dict[str, Any] = {
    "n": count(),
    "batched": Batched(),
    "known": Known(),
    "lucky": Lucky(),
    "total": sum_("x"),
    "ids": collect_list("id"),
}


def is_bad(row: Row) -> bool:
    return row["x"] is None or row["x"] % 3 == 0


def rows(*of: tuple[str, int, int | None]) -> Batch:
    """Rows of key, time and value, numbered from 0."""
    return Batch(table([{"k": k, "ts": t, "x": x, "id": i} for i, (k, t, x) in enumerate(of)]))


class Driven:
    """One operator, with or without the half before its shuffle, and what it has said."""

    def __init__(self, make: Callable[..., Any], *, split: bool = False) -> None:
        self._make, self._split = make, split
        self._local = opened(make(half="local"), "w") if split else None
        self.letters: list[Row] = []
        self.late: list[int] = []
        self.counted: Counter[str] = Counter()
        self._open()

    def _open(self) -> None:
        half = {"half": "merge"} if self._split else {}
        self.operator = opened(self._make(**half), "w")

    def send(self, what: Sequence[Row]) -> list[Row]:
        """What is said at once, in no order."""
        sent = [Batch(table(what))] if what else []
        if self._local is not None:
            sent = [out for b in sent for out in self._local.process_batch(b)]
        out = [b for b in sent if b.tag is not None]
        for b in sent:
            out += self.operator.process_batch(b) if b.tag is None else []
        return self._said(out)

    def advance(self, watermark: int) -> list[Row]:
        return self._said(self.operator.on_watermark(watermark))

    def tick(self, now: int) -> list[Row]:
        return self._said(self.operator.on_processing_time(now))

    def restart(self) -> None:
        state, reached = self.operator.snapshot(), self.operator.clock.watermark
        self._count(self.operator)
        self._open()
        self.operator.restore(state)
        if reached > MIN_TIMESTAMP:
            assert self.advance(reached) == []

    def finish(self) -> list[Row]:
        out = self.advance(MAX_TIMESTAMP)
        for operator in (self._local, self.operator):
            if operator is not None:
                self._count(operator)
        return out

    def _count(self, operator: Any) -> None:
        self.counted += Counter(operator.counters())

    def _said(self, out: Sequence[Batch]) -> list[Row]:
        self.late += [row["id"] for row in tagged_rows(out, "late")]
        self.letters += tagged_rows(out, "dead_letter")
        return sorted(main_rows(out), key=str)


FIXED = [TumblingWindow(us(10)), SlidingWindow(us(12), us(5)), GlobalWindow()]
WINDOWS = [*FIXED, SessionWindow(us(7)), CountWindow(3), CountWindow(4, 2)]


@settings(deadline=None, max_examples=100)
@given(
    story=stories(),
    window=st.sampled_from(WINDOWS),
    trigger=st.sampled_from([Trigger.on_watermark(), Trigger.early(rows=2)])
    | st.just(Trigger.early(every=us(2))),
    lateness=st.sampled_from([0, 9]),
    accumulating=st.booleans(),
    split=st.booleans(),
    tight=st.booleans(),
)
def test_windows_say_at_every_step_what_they_say_without_the_bad_rows(
    story: list[tuple[str, Any]],
    window: Any,
    trigger: Trigger,
    lateness: int,
    accumulating: bool,
    split: bool,
    tight: bool,
) -> None:
    options: dict[str, Any] = {"trigger": trigger, "accumulating": accumulating}
    if not isinstance(window, GlobalWindow):
        options["allowed_lateness"] = us(lateness)
    if isinstance(window, CountWindow):
        options = {}

    def make(**half: Any) -> Any:
        return window_operator(
            ["k"], "ts", window, SAID, on_error="dead_letter", input_schema=SCHEMA,
            **options, **half,
        )  # fmt: skip

    split = split and window in FIXED
    with tight_limits(tight), mock.patch.object(halves, "SHRINKS", 0 if tight else 3):
        mixed, clean = Driven(make, split=split), Driven(make, split=split)
        bad: dict[int, Row] = {}
        now = 0
        for kind, what in story:
            if kind == "rows":
                bad.update({row["id"]: row for row in what if is_bad(row)})
                fine = [row for row in what if row["id"] not in bad]
                assert mixed.send(what) == clean.send(fine), (kind, what)
            elif kind == "watermark":
                assert mixed.advance(what) == clean.advance(what), (kind, what)
            elif kind == "tick":
                now += what
                assert mixed.tick(now) == clean.tick(now), (kind, what)
            else:
                mixed.restart()
                clean.restart()
        assert mixed.finish() == clean.finish()
    assert clean.letters == []
    assert [i for i in mixed.late if i not in bad] == clean.late
    # A bad row that is late is never looked at.
    told = [json.loads(letter["row"]) for letter in mixed.letters]
    late_bad = [i for i in mixed.late if i in bad]
    assert all(row == bad[row["id"]] for row in told)
    if split:  # those that are passed as they are may be late; no side output tells which
        assert Counter(row["id"] for row in told) <= Counter(list(bad))
        unseen = mixed.counted["operator.late_rows"] - clean.counted["operator.late_rows"]
        assert len(told) + unseen == len(bad)
    else:
        assert sorted([row["id"] for row in told] + late_bad) == sorted(bad)
    assert mixed.counted["operator.skipped_rows"] == len(told)


class Plain(Known):
    """The sum of values, none of them null."""

    result_type = pa.int64()

    def create(self) -> Any:
        return 0

    def add(self, accumulator: Any, row: Row) -> Any:
        return accumulator + row["x"]

    def result(self, accumulator: Any) -> Any:
        return accumulator


def test_a_row_left_out_is_not_counted_and_a_window_of_none_but_such_rows_is_silent() -> None:
    operator = opened(
        window_operator(
            ["k"], "ts", TumblingWindow(us(30)), {"w": Plain(), "n": count()}, on_error="skip"
        ),
        "w",
    )
    operator.process_batch(rows(("a", 0, None), ("b", 0, None), ("b", 1, 3)))
    said = main_rows(operator.on_watermark(MAX_TIMESTAMP))
    assert [(r["k"], r["w"], r["n"]) for r in said] == [("b", 3, 1)]
    assert operator.counters()["operator.skipped_rows"] == 2


@pytest.mark.parametrize("names", [("known", "lucky"), ("lucky", "known")])
def test_a_row_that_several_functions_fail_on_is_one_dead_letter_that_names_its_place(
    names: tuple[str, str],
) -> None:
    operator = opened(
        window_operator(
            ["k"], "ts", TumblingWindow(us(9)), {n: SAID[n] for n in names}, on_error="dead_letter"
        ),
        "w",
    )
    out = operator.process_batch(rows(("a", 1, 1), ("a", 2, None), ("a", 3, 3), ("b", 4, None)))
    letters = tagged_rows(out, "dead_letter")
    found = {json.loads(letter["row"])["id"]: letter["error"] for letter in letters}
    assert len(letters) == 3
    first = "ValueError: {} is unknown" if names[0] == "known" else "KeyError: {}"
    assert found == {1: first.format(1), 2: "KeyError: 2", 3: first.format(3)}
    assert operator.counters()["operator.skipped_rows"] == 3


def test_count_windows_give_a_row_left_out_no_number() -> None:
    operator = opened(
        window_operator(["k"], None, CountWindow(2), {"w": Plain()}, on_error="skip"), "w"
    )
    assert operator.process_batch(rows(("a", 0, 1), ("a", 0, None))) == []
    said = main_rows(operator.process_batch(rows(("a", 0, None), ("a", 0, 5), ("a", 0, 7))))
    assert [(r["window_start"], r["window_end"], r["w"]) for r in said] == [(0, 2, 6)]


def test_a_row_left_out_reaches_out_for_no_late_row() -> None:
    """Row 1 is in time, and row 2 would be for being less than the gap away from it."""
    operator = opened(
        window_operator(
            ["k"], "ts", SessionWindow(us(5)), {"known": Known()}, on_error="dead_letter"
        ),
        "w",
    )
    operator.on_watermark(100)
    out = operator.process_batch(rows(("a", 90, 1), ("a", 98, None), ("a", 95, 4), ("a", 200, 4)))
    assert [r["id"] for r in tagged_rows(out, "late")] == [0, 2]
    assert [json.loads(r["row"])["id"] for r in tagged_rows(out, "dead_letter")] == [1]
    assert operator.counters()["operator.late_rows"] == 2


def test_under_raise_the_first_bad_row_fails_the_job_and_is_named() -> None:
    operator = opened(window_operator(["k"], "ts", TumblingWindow(us(9)), {"known": Known()}), "w")
    with pytest.raises(UserFunctionError, match=r"'w': .*ValueError: 1 is unknown on row 1 of its"):
        operator.process_batch(rows(("a", 0, 1), ("a", 0, None), ("a", 0, None)))


def test_good_rows_are_added_once_where_no_row_fails_and_afresh_where_one_does() -> None:
    added: list[int] = []

    class Noting(Plain):
        def add(self, accumulator: Any, row: Row) -> Any:
            added.append(row["id"])
            return accumulator + row["x"]

    operator = opened(
        window_operator(["k"], "ts", TumblingWindow(us(9)), {"w": Noting()}, on_error="skip"), "w"
    )
    operator.process_batch(rows(("a", 0, 1), ("a", 1, 2)))
    assert added == [0, 1]
    added.clear()
    operator.process_batch(rows(("a", 0, 1), ("a", 0, None), ("a", 0, 4)))
    assert added == [0, 1, 2, 0, 2]
    said = main_rows(operator.on_watermark(MAX_TIMESTAMP))
    assert [r["w"] for r in said] == [8]
