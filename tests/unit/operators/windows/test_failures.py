"""The promise: what becomes of a window on which a user's function raises is what ``on_error``
says, and whoever reads the error knows operator, key and window."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from helios_ray.aggregates import AggregateFunction, count
from helios_ray.elements import MAX_TIMESTAMP, Batch
from helios_ray.errors import UserFunctionError
from helios_ray.operators.windows.operator import window_operator
from helios_ray.windowing import CountWindow, SessionWindow, Trigger, TumblingWindow
from helios_ray.windows import ProcessWindowFunction
from tests.unit.operators.support import batch, main_rows, opened, tagged_rows


def us(n: int) -> timedelta:
    return timedelta(microseconds=n)


class Smallest(ProcessWindowFunction):
    """Raises on windows that hold a 13, after half of its rows."""

    def process(self, key: Any, window: Any, rows: pa.Table) -> Any:
        yield {"smallest": min(rows["x"].to_pylist())}
        if 13 in rows["x"].to_pylist():
            raise ValueError("thirteen")
        yield {"smallest": -1}


class Ratio(AggregateFunction):
    result_type = pa.float64()

    def create(self) -> Any:
        return 0

    def add(self, accumulator: Any, row: Any) -> Any:
        return accumulator + row["x"]

    def merge(self, a: Any, b: Any) -> Any:
        if 99 in (a, b):
            raise RuntimeError("cannot merge 99")
        return a + b

    def result(self, accumulator: Any) -> Any:
        return 1 / accumulator


def rows(*of: tuple[str, int, int]) -> Batch:
    return batch({"k": [r[0] for r in of], "ts": [r[1] for r in of], "x": [r[2] for r in of]})


UNLUCKY = rows(("a", 1, 13), ("b", 2, 5), ("a", 3, 4), ("a", 12, 6))


def made(window: Any, what: Any, **options: Any) -> Any:
    if isinstance(what, dict):
        return opened(window_operator(["k"], "ts", window, what, **options), "w")
    return opened(window_operator(["k"], "ts", window, process=what, **options), "w")


@pytest.mark.parametrize("policy", ["skip", "dead_letter"])
def test_a_window_whose_function_raises_leaves_nothing_and_the_others_speak(policy: Any) -> None:
    operator = made(TumblingWindow(us(10)), Smallest(), on_error=policy)
    operator.process_batch(UNLUCKY)
    out = operator.on_watermark(MAX_TIMESTAMP)
    found = [(r["k"], r["window_start"].microsecond, r["smallest"]) for r in main_rows(out)]
    assert found == [("b", 0, 5), ("b", 0, -1), ("a", 10, 6), ("a", 10, -1)]
    assert operator.counters()["operator.skipped_rows"] == 1
    assert len(tagged_rows(out, "dead_letter")) == (policy == "dead_letter")


def test_the_dead_letter_of_a_window_says_key_window_and_how_many_rows() -> None:
    operator = made(TumblingWindow(us(10)), Smallest(), on_error="dead_letter")
    operator.process_batch(UNLUCKY)
    [letter] = tagged_rows(operator.on_watermark(MAX_TIMESTAMP), "dead_letter")
    assert json.loads(letter["row"]) == {
        "key": {"k": "a"},
        "window_start": "1970-01-01 00:00:00",
        "window_end": "1970-01-01 00:00:00.000010",
        "rows": 2,
    }
    assert letter["error"] == "ValueError: thirteen"
    assert 'raise ValueError("thirteen")' in letter["traceback"]
    assert (letter["operator"], letter["position"]) == ("w", None)


def test_every_failing_call_counts_when_a_window_speaks_more_than_once() -> None:
    window, early = TumblingWindow(us(10)), Trigger.early(rows=1)
    operator = made(window, Smallest(), on_error="dead_letter", trigger=early)
    out = operator.process_batch(UNLUCKY)
    out += operator.process_batch(rows(("a", 4, 1)))
    out += operator.on_watermark(9)
    assert [json.loads(r["row"])["rows"] for r in tagged_rows(out, "dead_letter")] == [2, 3, 3]
    assert operator.counters()["operator.skipped_rows"] == 3


@pytest.mark.parametrize(
    ("window", "bounds"),
    [
        (SessionWindow(us(5)), ["1970-01-01 00:00:00.000001", "1970-01-01 00:00:00.000008"]),
        (CountWindow(2), [0, 2]),
    ],
)
def test_the_policy_holds_for_every_kind_of_window(window: Any, bounds: list[Any]) -> None:
    operator = made(window, Smallest(), on_error="dead_letter")
    out = operator.process_batch(UNLUCKY) + operator.on_watermark(MAX_TIMESTAMP)
    [letter] = tagged_rows(out, "dead_letter")
    row = json.loads(letter["row"])
    assert [row["window_start"], row["window_end"]] == bounds


def test_a_function_that_returns_no_rows_is_handled_like_one_that_raises() -> None:
    class Wrong(ProcessWindowFunction):
        def process(self, key: Any, window: Any, rows: pa.Table) -> Any:
            return [{"k": "mine"}] if key["k"] == "a" else [7]

    operator = made(TumblingWindow(us(10)), Wrong(), on_error="dead_letter")
    operator.process_batch(UNLUCKY)
    letters = tagged_rows(operator.on_watermark(9), "dead_letter")
    assert [letter["error"] for letter in letters] == [
        "ValueError: column 'k' is added to each result by itself; leave it out",
        "TypeError: expected rows as dicts or a pyarrow.Table, got 7",
    ]


# ----------------------------------------------------------------------- a user's aggregate


def test_a_result_that_raises_names_operator_key_and_window_and_the_way_out() -> None:
    operator = made(TumblingWindow(us(10)), {"ratio": Ratio()})
    operator.process_batch(rows(("a", 11, 0)))
    with pytest.raises(UserFunctionError) as caught:
        operator.on_watermark(MAX_TIMESTAMP)
    message = str(caught.value)
    assert "window 'w': Ratio.result for 'ratio' raised ZeroDivisionError" in message
    assert "on key {'k': 'a'} in Window(start=datetime.datetime(1970, 1, 1, 0, 0, 0, 10)" in message
    assert "on_error='dead_letter'" in message


def test_a_result_that_raises_takes_the_row_of_its_window_along_and_no_other() -> None:
    operator = made(
        TumblingWindow(us(10)),
        {"n": count(), "ratio": Ratio(), "again": Ratio()},
        on_error="dead_letter",
    )
    operator.process_batch(rows(("a", 1, 0), ("b", 2, 4), ("c", 3, 0), ("d", 3, 2)))
    out = operator.on_watermark(MAX_TIMESTAMP)
    assert [(r["k"], r["n"], r["ratio"], r["again"]) for r in main_rows(out)] == [
        ("b", 1, 0.25, 0.25),
        ("d", 1, 0.5, 0.5),
    ]
    letters = [json.loads(r["row"]) for r in tagged_rows(out, "dead_letter")]
    assert [(r["key"], r["rows"]) for r in letters] == [({"k": "a"}, None), ({"k": "c"}, None)]
    assert operator.counters()["operator.skipped_rows"] == 2


@pytest.mark.parametrize("policy", ["raise", "skip", "dead_letter"])
def test_a_merge_that_raises_fails_the_job_whatever_the_policy(policy: Any) -> None:
    operator = made(TumblingWindow(us(10)), {"ratio": Ratio()}, on_error=policy)
    operator.process_batch(rows(("a", 1, 99)))
    operator.process_batch(rows(("a", 2, 3)))
    message = r"'w': Ratio\.merge for 'ratio' .*cannot merge 99 on 99, 3.* add and result only"
    with pytest.raises(UserFunctionError, match=message):
        operator.on_watermark(MAX_TIMESTAMP)
