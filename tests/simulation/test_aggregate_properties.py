"""Every aggregate of a window is what plain Python makes of the window's rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.aggregates import (
    AggregateFunction,
    any_value,
    approx_count_distinct,
    arg_max,
    arg_min,
    collect_list,
    count,
    count_distinct,
    first,
    last,
    max_,
    mean,
    min_,
    quantile,
    stddev,
    sum_,
    top_k,
    variance,
)
from helios_ray.windows import GlobalWindow, SessionWindow, SlidingWindow, TumblingWindow
from tests.simulation.oracle import (
    MS,
    by_pane,
    keys,
    ms,
    numbered,
    only,
    panes,
    sessions,
    sliding,
    tumbling,
    values,
)
from tests.simulation.programs import Case, Row, Stage, cases, few, lists_of

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("key", pa.string()),
        ("t", pa.int64()),
        ("v", pa.int64()),
        ("x", pa.float64()),
        ("word", pa.string()),
    ]
)

Check = Callable[[Any, list[Row]], bool]


def rows_with_all_types() -> st.SearchStrategy[list[Row]]:
    """No two rows of the same time: what is first and last is certain."""
    row = st.fixed_dictionaries(
        {
            "key": keys(),
            "t": st.integers(-30, 120).map(lambda n: n * MS),
            "v": st.none() | st.integers(-6, 6),
            "x": st.none() | st.floats(-1e3, 1e3, allow_nan=False, width=32),
            "word": st.none() | st.sampled_from(["", "ä", "bee", "sea", "deer"]),
        }
    )
    return lists_of(row, 40, unique_by=lambda r: r["t"]).map(numbered)


def same(of: Callable[[list[Row]], Any]) -> Check:
    return lambda found, rows: bool(found == of(rows))


def near(of: Callable[[list[Row]], float | None], size: float = 1e-6) -> Check:
    def check(found: Any, rows: list[Row]) -> bool:
        expected = of(rows)
        if found is None or expected is None:
            return found is expected
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=size)

    return check


def moment(of: Callable[[Sequence[float]], float], column: str, least: int) -> Check:
    """A variance or the like, of floats: near."""

    def expected(rows: list[Row]) -> float | None:
        vs = values(rows, column)
        return of(vs) if len(vs) >= least else None

    # Squares of numbers up to 1000 cancel each other.
    return near(expected, 1e-4)


def best(column: str, by: str, sign: int) -> Callable[[list[Row]], Any]:
    """The value in the row with the least ``sign * by``, the earliest such row."""

    def expected(rows: list[Row]) -> Any:
        there = [r for r in rows if r[column] is not None and r[by] is not None]
        ranked = sorted(there, key=lambda r: (sign * r[by], r["t"]))
        return ranked[0][column] if ranked else None

    return expected


def top(n: int, column: str, by: str) -> Callable[[list[Row]], Any]:
    def expected(rows: list[Row]) -> Any:
        there = [r for r in rows if r[column] is not None and r[by] is not None]
        return [r[column] for r in sorted(there, key=lambda r: (-r[by], r["t"]))[:n]]

    return expected


def between_neighbours(found: Any, rows: list[Row]) -> bool:
    """So few values are all kept by a t-digest: a median lies next to the middle one."""
    vs = sorted(values(rows, "x"))
    if not vs:
        return found is None
    middle = (len(vs) - 1) / 2
    low, high = vs[max(0, math.floor(middle) - 1)], vs[min(len(vs) - 1, math.ceil(middle) + 1)]
    return bool(low <= found <= high)


def ends(rows: list[Row], column: str, which: int) -> Any:
    vs = values(rows, column)
    return vs[which] if vs else None


class Words(AggregateFunction):
    """How often there is each word; the accumulator is JSON."""

    result_type = pa.string()

    def create(self) -> Any:
        return {}

    def add(self, accumulator: Any, row: Row) -> Any:
        word = str(row["word"])
        return {**accumulator, word: accumulator.get(word, 0) + 1}

    def merge(self, a: Any, b: Any) -> Any:
        return {word: a.get(word, 0) + b.get(word, 0) for word in {*a, *b}}

    def result(self, accumulator: Any) -> Any:
        return " ".join(f"{word}:{n}" for word, n in sorted(accumulator.items()))


class Squares(AggregateFunction):
    """The sum of squares, a batch at a time; the accumulator is an Arrow value."""

    result_type = pa.int64()
    accumulator_type = pa.int64()

    def create(self) -> int:
        return 0

    def add(self, accumulator: int, row: Row) -> int:
        return accumulator + (row["v"] or 0) ** 2

    def add_batch(self, accumulator: int, rows: pa.RecordBatch) -> int:
        return accumulator + sum((v or 0) ** 2 for v in rows.column("v").to_pylist())

    def merge(self, a: int, b: int) -> int:
        return a + b

    def result(self, accumulator: int) -> int:
        return accumulator


def words(rows: list[Row]) -> str:
    found = [str(row["word"]) for row in rows]
    return " ".join(f"{word}:{found.count(word)}" for word in sorted(set(found)))


ALL: dict[str, tuple[Any, Check]] = {
    "rows": (count(), same(len)),
    "count_v": (count("v"), same(lambda rows: len(values(rows)))),
    "sum_v": (sum_("v"), same(lambda rows: sum(values(rows)) if values(rows) else None)),
    "sum_x": (sum_("x"), near(lambda rows: math.fsum(vs) if (vs := values(rows, "x")) else None)),
    "min_v": (min_("v"), same(lambda rows: min(values(rows), default=None))),
    "max_x": (max_("x"), same(lambda rows: max(values(rows, "x"), default=None))),
    "min_word": (min_("word"), same(lambda rows: min(values(rows, "word"), default=None))),
    "max_word": (max_("word"), same(lambda rows: max(values(rows, "word"), default=None))),
    "mean_v": (mean("v"), moment(statistics.fmean, "v", 1)),
    "mean_x": (mean("x"), moment(statistics.fmean, "x", 1)),
    "variance_v": (variance("v"), moment(statistics.variance, "v", 2)),
    "variance_x": (variance("x", ddof=0), moment(statistics.pvariance, "x", 1)),
    "stddev_v": (stddev("v", ddof=0), moment(statistics.pstdev, "v", 1)),
    "stddev_x": (stddev("x"), moment(statistics.stdev, "x", 2)),
    "first_v": (first("v"), same(lambda rows: ends(rows, "v", 0))),
    "last_v": (last("v"), same(lambda rows: ends(rows, "v", -1))),
    "first_word": (first("word"), same(lambda rows: ends(rows, "word", 0))),
    "last_x": (last("x"), same(lambda rows: ends(rows, "x", -1))),
    "any_word": (
        any_value("word"),
        lambda found, rows: found in (values(rows, "word") or [None]),
    ),
    "distinct_v": (count_distinct("v"), same(lambda rows: len(set(values(rows))))),
    "distinct_word": (count_distinct("word"), same(lambda rows: len(set(values(rows, "word"))))),
    "about_v": (approx_count_distinct("v"), same(lambda rows: len(set(values(rows))))),
    "about_x": (
        approx_count_distinct("x"),
        lambda found, rows: abs(found - len(set(values(rows, "x")))) <= 1,
    ),
    "median": (quantile("x"), between_neighbours),
    "q0": (quantile("x", 0.0), same(lambda rows: min(values(rows, "x"), default=None))),
    "q1": (quantile("v", 1.0), same(lambda rows: max(values(rows), default=None))),
    "arg_min": (arg_min("id", "v"), same(best("id", "v", 1))),
    "arg_max": (arg_max("word", "v"), same(best("word", "v", -1))),
    "top_v": (top_k("v", 3), same(top(3, "v", "v"))),
    "top_word": (top_k("word", 2, by="v"), same(top(2, "word", "v"))),
    "list_v": (collect_list("v"), same(values)),
    "list_word": (collect_list("word"), same(lambda rows: values(rows, "word"))),
    "words": (Words(), same(words)),
    "squares": (Squares(), same(lambda rows: sum(v * v for v in values(rows)))),
}
"""Every aggregate, and what its result must be for some rows."""

WINDOWS: dict[str, tuple[Any, Callable[[list[Row]], dict[Any, list[Row]]]]] = {
    "tumbling": (TumblingWindow(ms(40)), lambda rows: panes(rows, tumbling(ms(40)))),
    "sliding": (SlidingWindow(ms(50), ms(20)), lambda rows: panes(rows, sliding(ms(50), ms(20)))),
    "session": (SessionWindow(ms(8)), lambda rows: sessions(rows, ms(8))),
    "global": (
        GlobalWindow(),
        lambda rows: {
            (key, None, None): [row for row in rows if row["key"] == key]
            for key in {row["key"] for row in rows}
        },
    ),
}

some_names = st.lists(st.sampled_from(sorted(ALL)), min_size=1, max_size=12, unique=True)


def wrong(found: dict[Any, Row], batch: dict[Any, list[Row]], names: Sequence[str]) -> list[Any]:
    """Which results are not what they must be."""
    assert set(found) == set(batch)
    return [
        (pane, name, row[name], batch[pane])
        for pane, row in found.items()
        for name in names
        if not ALL[name][1](row[name], batch[pane])
    ]


@pytest.mark.parametrize("kind", sorted(WINDOWS))
@given(
    case=cases(),
    rows=rows_with_all_types(),
    names=some_names,
    local=st.sampled_from([None, False, True]),
)
@settings(few, max_examples=12)
def test_several_aggregates_at_once_are_each_what_the_rows_of_the_window_amount_to(
    kind: str, case: Case, rows: list[Row], names: list[str], local: bool | None
) -> None:
    stage = Stage(case)
    window, batch = WINDOWS[kind]
    cut = stage.stream(rows, schema=SCHEMA, time="t").key_by("key").window(window, time="t")
    if kind == "session" and local:
        local = None  # sessions have no half before the shuffle
    chosen = {name: ALL[name][0] for name in names}
    found = only(by_pane(stage.rows(cut.aggregate(chosen, local_aggregation=local, uid="w"))))
    assert wrong(found, batch(rows), names) == []


@given(case=cases(), rows=rows_with_all_types(), kind=st.sampled_from(sorted(WINDOWS)))
@settings(few, max_examples=8)
def test_all_aggregates_go_together(case: Case, rows: list[Row], kind: str) -> None:
    stage = Stage(case)
    window, batch = WINDOWS[kind]
    cut = stage.stream(rows, schema=SCHEMA, time="t").key_by("key").window(window, time="t")
    found = only(
        by_pane(stage.rows(cut.aggregate({name: made for name, (made, _) in ALL.items()}, uid="w")))
    )
    assert wrong(found, batch(rows), list(ALL)) == []


@given(
    case=cases(),
    rows=rows_with_all_types(),
    names=some_names,
    kind=st.sampled_from(["tumbling", "sliding", "global"]),
)
@settings(few, max_examples=12)
def test_aggregation_in_two_stages_and_in_one_agree(
    case: Case, rows: list[Row], names: list[str], kind: str
) -> None:
    stage = Stage(case)
    window, batch = WINDOWS[kind]
    cut = stage.stream(rows, schema=SCHEMA, time="t").key_by("key").window(window, time="t")
    for uid, local in (("one", False), ("two", True)):
        chosen = {name: ALL[name][0] for name in names}
        cut.aggregate(chosen, local_aggregation=local, uid=uid).collect(uid=f"{uid}-out")
    stage.run_all()
    exact = [name for name in names if name not in ROUNDED]
    one, two = (only(by_pane(stage.committed(f"{uid}-out"))) for uid in ("one", "two"))
    assert {p: {n: row[n] for n in exact} for p, row in one.items()} == {
        p: {n: row[n] for n in exact} for p, row in two.items()
    }
    assert wrong(one, batch(rows), names) == wrong(two, batch(rows), names) == []


ROUNDED = {"sum_x", "mean_x", "variance_v", "variance_x", "stddev_v", "stddev_x", "median",
           "any_word"}  # fmt: skip
"""Results whose last digits (or whose choice) may depend on the order of addition."""


@given(
    case=cases(),
    vs=st.lists(st.integers(0, 4000), min_size=150, max_size=250),
    local=st.sampled_from([False, True]),
    compression=st.sampled_from([100, 200]),
)
@settings(few, max_examples=5)
def test_approximations_of_many_values_are_within_their_error(
    case: Case, vs: list[int], local: bool, compression: int
) -> None:
    stage = Stage(case)
    schema = pa.schema([("v", pa.int64())])
    stream = stage.stream([{"v": v} for v in vs], schema=schema).window_all(GlobalWindow())
    qs = (0.01, 0.25, 0.5, 0.9, 0.99)
    chosen: dict[str, Any] = {f"q{q}": quantile("v", q, compression=compression) for q in qs}
    chosen["distinct"] = approx_count_distinct("v", precision=10)
    [row] = stage.rows(stream.aggregate(chosen, local_aggregation=local, uid="w"))
    truth = len(set(vs))
    assert abs(row["distinct"] - truth) <= max(2, 5 * 1.04 / math.sqrt(2**10) * truth)
    ordered = sorted(vs)
    for q in qs:
        below = sum(v < row[f"q{q}"] for v in ordered) / len(vs)
        upto = sum(v <= row[f"q{q}"] for v in ordered) / len(vs)
        slack = 8 * math.sqrt(q * (1 - q)) / compression + 2 / len(vs)
        assert below - slack <= q <= upto + slack


@given(
    case=cases(),
    rows=rows_with_all_types(),
    emit=st.sampled_from(["updates", "final"]),
    local=st.sampled_from([None, True, False]),
)
@few
def test_running_aggregates_end_at_what_all_rows_of_a_key_amount_to(
    case: Case, rows: list[Row], emit: Any, local: bool | None
) -> None:
    stage = Stage(case)
    names = ["rows", "count_v", "sum_v", "sum_x", "min_v", "max_x", "mean_v", "mean_x"]
    chosen = {name: ALL[name][0] for name in names}
    keyed = stage.stream(rows, schema=SCHEMA).key_by("key")
    found = {
        row["key"]: row
        for row in stage.rows(keyed.aggregate(chosen, emit=emit, local_aggregation=local, uid="a"))
    }
    batch = {key: [r for r in rows if r["key"] == key] for key in {r["key"] for r in rows}}
    assert wrong(found, batch, names) == []


@given(case=cases(), rows=rows_with_all_types(), size=st.integers(5, 80).map(ms))
@settings(few, max_examples=10)
def test_a_windows_aggregates_are_those_of_a_database(
    case: Case, rows: list[Row], size: timedelta
) -> None:
    stage = Stage(case)
    keyed = stage.stream(rows, schema=SCHEMA, time="t").key_by("key")
    cut = keyed.window(TumblingWindow(size))
    made = cut.aggregate(
        n=count(), total=sum_("v"), low=min_("v"), kinds=count_distinct("word"),
        top=arg_max("id", "x"), uid="w",
    )  # fmt: skip
    found = only(by_pane(stage.rows(made)))
    width = size // timedelta(microseconds=1)
    with duckdb.connect() as database:
        database.register("rows", pa.Table.from_pylist(rows, schema=SCHEMA))
        answer = database.execute(
            f"""SELECT key, CAST(floor(t / {width}) AS BIGINT) * {width} AS start,
                       count(*), sum(v), min(v), count(DISTINCT word),
                       (list(id ORDER BY x DESC, t) FILTER (x IS NOT NULL))[1]
                FROM rows GROUP BY ALL"""
        ).fetchall()
    assert found == {
        (key, start, start + width): dict(
            zip(("n", "total", "low", "kinds", "top"), rest, strict=True)
        )
        for key, start, *rest in answer
    }
