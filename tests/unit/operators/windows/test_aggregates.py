"""The promise: every aggregate, lifted from batches and merged in any way, is what it says."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from datetime import timedelta
from typing import Any

import duckdb
import numpy as np
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
from helios_ray.elements import MAX_TIMESTAMP, Batch
from helios_ray.errors import (
    ConfigError,
    DataError,
    MissingColumnError,
    PlanError,
    UserFunctionError,
)
from helios_ray.operators.windows.operator import window_operator
from helios_ray.windowing import SlidingWindow, TumblingWindow
from tests.unit.operators.support import main_rows, opened, share_out
from tests.unit.operators.windows.driving import tight_limits

SCHEMA = pa.schema(
    [
        ("k", pa.int8()),
        ("ts", pa.int64()),
        ("i", pa.int32()),
        ("f", pa.float64()),
        ("s", pa.string()),
        ("d", pa.date32()),
    ]
)


def ten(aggregations: dict[str, Any], **options: Any) -> Any:
    window = TumblingWindow(timedelta(microseconds=10))
    options = {"input_schema": SCHEMA, **options}
    return opened(window_operator(["k"], "ts", window, aggregations, **options))


def run(aggregations: dict[str, Any], columns: dict[str, Any], schema: Any = None) -> Any:
    """One window of one key over all rows."""
    rows = len(next(iter(columns.values())))
    base = {"k": [1] * rows, "ts": [0] * rows}
    operator = ten(aggregations, input_schema=None)
    operator.process_batch(Batch(pa.RecordBatch.from_pydict({**base, **columns}, schema=schema)))
    [row] = main_rows(operator.on_watermark(MAX_TIMESTAMP))
    return row


class Joined(AggregateFunction):
    """The texts of a window, with a JSON accumulator."""

    result_type = pa.string()

    def create(self) -> Any:
        return []

    def add(self, accumulator: Any, row: Any) -> Any:
        return [*accumulator, row["s"]] if row["s"] is not None else accumulator

    def merge(self, a: Any, b: Any) -> Any:
        return a + b

    def result(self, accumulator: Any) -> Any:
        return "".join(sorted(accumulator))


class Squares(AggregateFunction):
    """The sum of squares, a batch at a time, with an Arrow accumulator."""

    result_type = pa.int64()
    accumulator_type = pa.int64()

    def create(self) -> Any:
        return 0

    def add(self, accumulator: Any, row: Any) -> Any:
        raise AssertionError("add_batch is there")

    def add_batch(self, accumulator: Any, rows: pa.RecordBatch) -> Any:
        return accumulator + sum(v * v for v in rows["i"].to_pylist() if v is not None)

    def merge(self, a: Any, b: Any) -> Any:
        return a + b

    def result(self, accumulator: Any) -> Any:
        return accumulator


EVERYTHING: dict[str, Any] = {
    "n": count(),
    "n_s": count("s"),
    "sum_i": sum_("i"),
    "mean_f": mean("f"),
    "min_s": min_("s"),
    "max_d": max_("d"),
    "var0": variance("i", ddof=0),
    "sd": stddev("f"),
    "first": first("s"),
    "last": last("i"),
    "any": any_value("d"),
    "distinct": count_distinct("s"),
    "distinct_f": count_distinct("f"),
    "about": approx_count_distinct("s"),
    "median": quantile("i"),
    "low": quantile("f", 0),
    "high": quantile("f", 1),
    "by_least": arg_min("s", "i"),
    "by_most": arg_max("i", "s"),
    "top": top_k("s", 2, by="f"),
    "top_i": top_k("i", 3),
    "list": collect_list("i"),
    "joined": Joined(),
    "squares": Squares(),
}


def expected(rows: list[dict[str, Any]]) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: row["ts"])

    def values(name: str) -> list[Any]:
        return [row[name] for row in rows if row[name] is not None]

    i, f, s, d = (values(name) for name in "ifsd")
    both = [row for row in rows if row["s"] is not None and row["i"] is not None]
    ranked = [row for row in rows if row["s"] is not None and row["f"] is not None]
    ranked.sort(key=lambda row: -row["f"])
    return {
        "n": len(rows),
        "n_s": len(s),
        "sum_i": sum(i) if i else None,
        "mean_f": statistics.fmean(f) if f else None,
        "min_s": min(s, default=None),
        "max_d": max(d, default=None),
        "var0": statistics.pvariance(i) if i else None,
        "sd": statistics.stdev(f) if len(f) > 1 else None,
        "first": s[0] if s else None,
        "last": i[-1] if i else None,
        "any": d[0] if d else None,
        "distinct": len(set(s)),
        "distinct_f": len(set(f)),
        "about": len(set(s)),
        "median": statistics.median(i) if i else None,
        "low": min(f, default=None),
        "high": max(f, default=None),
        "by_least": min(both, key=lambda row: row["i"])["s"] if both else None,
        "by_most": max(both, key=lambda row: row["s"])["i"] if both else None,
        "top": [row["s"] for row in ranked[:2]],
        "top_i": sorted(i, reverse=True)[:3],
        "list": i,
        "joined": "".join(sorted(s)),
        "squares": sum(v * v for v in i),
    }


ROWS = st.fixed_dictionaries(
    {
        "k": st.integers(0, 2),
        "ts": st.integers(-20, 30),
        "i": st.none() | st.integers(-50, 50),
        "f": st.none() | st.integers(-64, 64).map(lambda n: n / 8),
        "s": st.none() | st.sampled_from(["", "a", "b", "ä", "zz"]),
        "d": st.none() | st.dates(),
    }
)


@settings(deadline=None, max_examples=25)
@given(
    batches=st.lists(st.lists(ROWS, min_size=1, max_size=12), min_size=1, max_size=5),
    sliding=st.booleans(),
    restart=st.integers(0, 5),
    tight=st.booleans(),
)
def test_all_aggregates_at_once_are_what_plain_python_computes(
    batches: list[list[dict[str, Any]]], sliding: bool, restart: int, tight: bool
) -> None:
    slide = 4 if sliding else 10
    window: Any = SlidingWindow(timedelta(microseconds=10), timedelta(microseconds=slide))

    def make() -> Any:
        return opened(window_operator(["k"], "ts", window, EVERYTHING, input_schema=SCHEMA))

    with tight_limits(tight):
        operator = make()
        for i, rows in enumerate(batches):
            if i == restart:
                [state] = share_out([operator.snapshot()], 1)
                operator = make()
                operator.restore(state)
            operator.process_batch(Batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA)))
        came = main_rows(operator.on_watermark(MAX_TIMESTAMP))

    members: dict[Any, list[Any]] = defaultdict(list)
    for row in (row for rows in batches for row in rows):
        for start in range(row["ts"] // slide * slide, row["ts"] - 10, -slide):
            members[start, row["k"]].append(row)
    assert len(came) == len(members)
    for row in came:
        start = pa.scalar(row["window_start"]).cast(pa.int64()).as_py()
        want = expected(members[start, row["k"]])
        got = {name: row[name] for name in want}
        floats = {"mean_f", "var0", "sd", "median", "low", "high"}
        for name in floats:
            assert got.pop(name) == pytest.approx(want.pop(name), abs=1e-9), name
        assert got == want


def test_results_have_the_types_that_were_announced() -> None:
    operator = ten(EVERYTHING)
    announced = operator.output_schema(SCHEMA)
    operator.process_batch(Batch(pa.RecordBatch.from_pylist([{"k": 1, "ts": 5}], schema=SCHEMA)))
    [fired] = operator.on_watermark(9)
    assert fired.data.schema.equals(announced)
    assert announced.field("top").type == pa.list_(pa.string())
    assert announced.field("window_end").type == pa.timestamp("us")


@pytest.mark.parametrize("precision", [8, 12, 14])
def test_approximate_counts_stay_within_four_standard_errors(precision: int) -> None:
    error = 1.04 / math.sqrt(2**precision)
    for size in (0, 1, 10, 300, 5_000, 80_000):
        row = run(
            {"n": approx_count_distinct("x", precision=precision)}, {"x": [*range(size), None]}
        )
        assert row["n"] == pytest.approx(size, abs=max(4 * error * size, 0.01))


def test_approximate_counts_do_not_grow_with_repetition_or_merging() -> None:
    values = list(range(2_000))
    once = run({"n": approx_count_distinct("x")}, {"x": values})
    operator = ten({"n": approx_count_distinct("x")}, input_schema=None)
    for _ in range(20):
        batch = pa.record_batch({"k": [1] * 2_000, "ts": [0] * 2_000, "x": values})
        operator.process_batch(Batch(batch))
    [row] = main_rows(operator.on_watermark(MAX_TIMESTAMP))
    assert row["n"] == once["n"]


@pytest.mark.parametrize("q", [0.0, 0.001, 0.05, 0.5, 0.9, 0.99, 0.9999, 1.0])
def test_quantiles_are_within_a_hundredth_of_the_rank_and_finer_at_the_ends(q: float) -> None:
    values = np.random.Generator(np.random.PCG64(7)).lognormal(0, 2, 40_000)
    operator = ten({"q": quantile("x", q)}, input_schema=None)
    for part in np.array_split(values, 37):
        rows = len(part)
        operator.process_batch(
            Batch(pa.record_batch({"k": [1] * rows, "ts": [0] * rows, "x": part}))
        )
    state = operator.snapshot()["windows"].table
    centroids = max(len(c) for c in state["value.q.mean"].to_pylist())
    [row] = main_rows(operator.on_watermark(MAX_TIMESTAMP))
    rank = float((values <= row["q"]).mean())
    assert centroids <= 102, "a digest is bounded by its compression"
    assert abs(rank - q) <= 0.0002 + 0.02 * math.sqrt(q * (1 - q))


def test_special_floats() -> None:
    nan, inf = math.nan, math.inf
    x = [nan, 2.0, -0.0, 0.0, inf, nan, None]
    row = run(
        {
            "distinct": count_distinct("x"),
            "top": top_k("x", 2),
            "where_max": arg_max("i", "x"),
            "where_min": arg_min("i", "x"),
            "high": quantile("x", 1),
            "all": collect_list("x"),
        },
        {"x": x, "i": list(range(7))},
    )
    assert row["distinct"] == 4  # NaN, 2, 0, inf
    assert row["top"] == [inf, 2.0]
    assert (row["where_max"], row["where_min"]) == (4, 2)
    assert row["high"] == inf
    assert len(row["all"]) == 6


def test_ties_go_to_the_earlier_row_whatever_the_order_of_arrival() -> None:
    operator = ten({"least": arg_min("s", "i"), "top": top_k("s", 2, by="i")})
    for ts, name in [(7, "late"), (2, "early"), (5, "middle")]:
        rows = [{"k": 1, "ts": ts, "i": 3, "s": name}]
        operator.process_batch(Batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA)))
    [row] = main_rows(operator.on_watermark(9))
    assert (row["least"], row["top"]) == ("early", ["early", "middle"])


def test_duckdb_agrees_over_many_windows() -> None:
    dice = np.random.Generator(np.random.PCG64(3))
    size = 5_000
    data = pa.table(
        {
            "k": dice.integers(0, 20, size),
            "ts": pa.array(dice.integers(0, 10**9, size)).cast(pa.timestamp("us")),
            "x": pa.array(dice.integers(-1000, 1000, size), mask=dice.random(size) < 0.1),
        }
    )
    operator = opened(
        window_operator(
            ["k"],
            "ts",
            TumblingWindow(timedelta(seconds=90), timedelta(seconds=7)),
            {
                "n": count(),
                "s": sum_("x"),
                "v": variance("x"),
                "d": count_distinct("x"),
                "t": top_k("x", 3),
            },
        )
    )
    for batch in data.to_batches(max_chunksize=333):
        operator.process_batch(Batch(batch))
    came = pa.Table.from_batches([b.data for b in operator.on_watermark(MAX_TIMESTAMP)])
    want = duckdb.sql(
        """
        select k,
               time_bucket(interval 90 seconds, ts, timestamp '1970-01-01 00:00:07') window_start,
               count(*) as n, sum(x)::bigint as s, var_samp(x) as v, count(distinct x) as d,
               max(x, 3) as t
        from data group by all order by 2, 1
        """
    ).to_arrow_table()
    came = came.sort_by([("window_start", "ascending"), ("k", "ascending")])
    for name in ("k", "window_start", "n", "s", "d"):
        assert came[name].to_pylist() == want[name].to_pylist(), name
    assert came["t"].to_pylist() == [t or [] for t in want["t"].to_pylist()]
    assert came["v"].to_pylist() == pytest.approx(want["v"].to_pylist())


# ---------------------------------------------------------------------------- what goes wrong


def test_a_missing_column_is_named_with_its_nearest_match_when_the_operator_is_made() -> None:
    with pytest.raises(MissingColumnError, match=r"window.*'ii'.*Did you mean 'i'"):
        ten({"x": variance("ii")})


@pytest.mark.parametrize(
    "aggregation", [variance("s"), quantile("d"), stddev("s"), top_k("i", 2, by="l")]
)
def test_a_type_that_cannot_be_aggregated_so_is_an_error_when_the_operator_is_made(
    aggregation: Any,
) -> None:
    schema = SCHEMA.append(pa.field("l", pa.list_(pa.int64())))
    with pytest.raises(PlanError, match="window 'operator'"):
        ten({"x": aggregation}, input_schema=schema)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quantile("x", 1.5), "fraction from 0 to 1, got 1.5"),
        (lambda: top_k("x", 0), "n must be a whole number from 1"),
        (lambda: approx_count_distinct("x", precision=3), "precision must be .* from 4 to 16"),
        (lambda: ten({}), "at least one aggregation"),
        (lambda: ten({"k": count()}), "both a key and a result"),
        (lambda: ten({"window_end": count()}), "every window's result carries"),
        (lambda: ten({"n": "count"}), "must be an aggregation"),
    ],
)
def test_a_wrong_setting_is_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


class Failing(Joined):
    def add(self, accumulator: Any, row: Any) -> Any:
        if row["s"] == "bad":
            raise ValueError("no such thing")
        return super().add(accumulator, row)


TWO = [{"k": 1, "ts": 1, "s": "good"}, {"k": 1, "ts": 2, "s": "bad"}]


def test_a_row_on_which_a_users_aggregate_raises_is_named() -> None:
    operator = ten({"j": Failing()})
    with pytest.raises(UserFunctionError, match=r"row 1 of its batch .*'bad'"):
        operator.process_batch(Batch(pa.RecordBatch.from_pylist(TWO, schema=SCHEMA)))


def test_a_row_on_which_a_users_aggregate_raises_can_become_a_dead_letter() -> None:
    operator = ten({"j": Failing(), "n": count()}, on_error="dead_letter")
    [letter] = operator.process_batch(Batch(pa.RecordBatch.from_pylist(TWO, schema=SCHEMA)))
    [row] = main_rows(operator.on_watermark(9))
    assert letter.tag == "dead_letter"
    assert letter.data["error"].to_pylist() == ["ValueError: no such thing"]
    assert row["j"] == "good"
    assert operator.counters()["operator.skipped_rows"] == 1


def test_a_users_accumulator_that_is_not_what_was_declared_is_an_error() -> None:
    class Wrong(Squares):
        def add_batch(self, accumulator: Any, rows: pa.RecordBatch) -> Any:
            return "text"

    with pytest.raises(UserFunctionError, match="not of its accumulator_type int64"):
        ten({"w": Wrong()}).process_batch(Batch(pa.RecordBatch.from_pylist(TWO, schema=SCHEMA)))


def test_a_users_aggregate_must_declare_its_result_type() -> None:
    class Untyped(Joined):
        result_type = "string"  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="Untyped must set result_type"):
        ten({"u": Untyped()})


def test_an_integer_sum_that_overflows_fails_and_does_not_wrap() -> None:
    big = 2**62
    with pytest.raises(DataError, match="overflows"):
        run({"s": sum_("x")}, {"x": [big, big, big]})
