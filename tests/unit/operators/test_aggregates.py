"""Running aggregates equal a plain group_by over everything, however the stream is cut."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.aggregates import Aggregation, count, max_, mean, min_, sum_
from helios_ray.elements import Batch
from helios_ray.errors import (
    ConfigError,
    DataError,
    MissingColumnError,
    PlanError,
    SchemaChangedError,
    StateMismatchError,
)
from helios_ray.operators.aggregates import LocalAggregateOperator, RunningAggregateOperator
from helios_ray.operators.base import OperatorContext, OperatorSnapshot, StateKind
from helios_ray.state.key_groups import key_groups_of_batch, partition, subtask_of
from tests.unit.operators.support import MAX_PARALLELISM, batch, main_rows, opened, share_out

SCHEMA = pa.schema(
    [
        ("a", pa.string()),
        ("b", pa.float64()),
        ("i", pa.int32()),
        ("f", pa.float64()),
        ("s", pa.string()),
        ("t", pa.timestamp("us")),
        ("d", pa.decimal128(6, 2)),
        ("o", pa.bool_()),
    ]
)
AGGREGATIONS: dict[str, Aggregation] = {
    "rows": count(),
    "some": count("s"),
    "i_sum": sum_("i"),
    "i_min": min_("i"),
    "i_max": max_("i"),
    "i_mean": mean("i"),
    "f_sum": sum_("f"),
    "f_min": min_("f"),
    "f_max": max_("f"),
    "f_mean": mean("f"),
    "s_min": min_("s"),
    "s_max": max_("s"),
    "t_min": min_("t"),
    "t_max": max_("t"),
    "d_min": min_("d"),
    "d_max": max_("d"),
    "o_min": min_("o"),
    "o_max": max_("o"),
}
WORDS = ["", "a", "ü", "日本", "ab", "b"]


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "a": maybe(st.sampled_from(WORDS[:4])),
            "b": maybe(st.sampled_from([0.0, 1.5, math.nan])),
            "i": maybe(st.integers(-(2**31), 2**31 - 1)),
            # Quarters add up exactly in any order; the tests of order have other floats.
            "f": maybe(st.one_of(st.integers(-100, 100).map(lambda n: n / 4), st.just(math.nan))),
            "s": maybe(st.sampled_from(WORDS)),
            "t": maybe(st.datetimes(dt.datetime(1960, 1, 1), dt.datetime(2030, 1, 1))),
            "d": maybe(st.integers(-999, 999).map(lambda n: Decimal(n) / 100)),
            "o": maybe(st.booleans()),
        }
    ),
    max_size=40,
)


@st.composite
def cut_streams(draw: st.DrawFn) -> list[pa.RecordBatch]:
    """Slices of one batch, empty ones among them."""
    rows = draw(ROWS)
    whole = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    edges = [0, *cuts, len(rows)]
    return [whole.slice(x, y - x) for x, y in pairwise(edges)]


def keyed(rows: list[dict[str, Any]], keys: tuple[str, ...] = ("a", "b")) -> dict[str, Any]:
    """Rows by key, comparable: NaN equals NaN, later rows replace earlier ones."""
    return {repr(tuple(row[k] for k in keys)): repr(list(row.items())) for row in rows}


def by_arrow(batches: list[pa.RecordBatch]) -> list[dict[str, Any]]:
    """The same query by Arrow's own group_by."""
    table = pa.Table.from_batches(batches, SCHEMA)
    specs: list[Any] = []
    for aggregation in AGGREGATIONS.values():
        if aggregation.column is None:
            specs.append(([], "count_all"))
        else:
            specs.append((aggregation.column, aggregation.function))
    grouped = table.group_by(["a", "b"], use_threads=False).aggregate(specs)
    names = [
        "count_all" if a.column is None else f"{a.column}_{a.function}"
        for a in AGGREGATIONS.values()
    ]
    columns = [grouped["a"], grouped["b"], *(grouped[n] for n in names)]
    return pa.table(columns, names=["a", "b", *AGGREGATIONS]).to_pylist()


def run_rescaled(
    batches: list[pa.RecordBatch], emit: str, parallelisms: list[int], **options: Any
) -> list[list[dict[str, Any]]]:
    """Run one batch after another; each on a job restored with the next parallelism.

    Returns the rows of each batch, then those of the end.
    """
    snapshots: list[OperatorSnapshot] = []
    out: list[list[dict[str, Any]]] = []
    operators: list[Any] = []
    for i, data in enumerate(batches):
        parallelism = parallelisms[i % len(parallelisms)]
        operators = [
            opened(
                RunningAggregateOperator(["a", "b"], AGGREGATIONS, emit=emit, **options),
                "agg",
                s,
                parallelism,
            )
            for s in range(parallelism)
        ]
        if snapshots:
            for operator, share in zip(operators, share_out(snapshots, parallelism), strict=True):
                operator.restore(share)
        groups = key_groups_of_batch(data, ["a", "b"], MAX_PARALLELISM)
        parts = partition(data, subtask_of(groups, parallelism, MAX_PARALLELISM), parallelism)
        rows: list[dict[str, Any]] = []
        for operator, part in zip(operators, parts, strict=True):
            if part is not None:
                rows += main_rows(operator.process_batch(Batch(part)))
        out.append(rows)
        snapshots = [operator.snapshot() for operator in operators]
    out.append([row for operator in operators for row in main_rows(operator.end_input())])
    return out


@settings(max_examples=60, deadline=None)
@given(cut_streams(), st.sampled_from([[1], [1, 2, 3], [3, 1], [2]]))
def test_last_update_of_each_key_equals_group_by_across_restores_and_rescaling(
    batches: list[pa.RecordBatch], parallelisms: list[int]
) -> None:
    out = run_rescaled(batches, "updates", parallelisms)
    assert keyed([row for rows in out for row in rows]) == keyed(by_arrow(batches))
    for data, rows in zip(batches, out, strict=False):
        assert len(rows) == len(keyed(data.select(["a", "b"]).to_pylist()))
    assert out[-1] == []


@settings(max_examples=60, deadline=None)
@given(cut_streams(), st.sampled_from([[1], [1, 2, 3], [3, 1]]))
def test_final_emits_each_key_once_at_the_end_and_equals_group_by(
    batches: list[pa.RecordBatch], parallelisms: list[int]
) -> None:
    *during, final = run_rescaled(batches, "final", parallelisms)
    assert all(rows == [] for rows in during)
    assert keyed(final) == keyed(by_arrow(batches))
    assert len(final) == len(keyed(final))


@settings(max_examples=30, deadline=None)
@given(cut_streams(), st.integers(0, 5))
def test_every_gives_the_value_after_each_row_whatever_the_batches(
    batches: list[pa.RecordBatch], restore_at: int
) -> None:
    operator = opened(RunningAggregateOperator(["a", "b"], AGGREGATIONS, emit="every"))
    got: list[dict[str, Any]] = []
    for i, data in enumerate(batches):
        if i == restore_at:
            state = operator.snapshot()
            operator = opened(RunningAggregateOperator(["a", "b"], AGGREGATIONS, emit="every"))
            operator.restore(state)
        got += main_rows(operator.process_batch(Batch(data)))
    rows = pa.Table.from_batches(batches, SCHEMA).combine_chunks().to_batches()
    expected: list[dict[str, Any]] = []
    if rows:
        keys = [repr((r["a"], r["b"])) for r in rows[0].to_pylist()]
        for i, key in enumerate(keys):
            upto = pa.array([j <= i and keys[j] == key for j in range(len(keys))])
            expected += by_arrow([rows[0].filter(upto)])
    assert list(map(repr, got)) == list(map(repr, expected))


@settings(max_examples=60, deadline=None)
@given(cut_streams(), st.sampled_from(["updates", "final"]))
def test_local_aggregation_before_the_shuffle_changes_nothing(
    batches: list[pa.RecordBatch], emit: str
) -> None:
    local = opened(LocalAggregateOperator(["a", "b"], AGGREGATIONS))
    partials = [out.data for b in batches for out in local.process_batch(Batch(b))]
    assert local.snapshot() == {}
    out = run_rescaled(partials, emit, [1, 2], partial=True)
    assert keyed([row for rows in out for row in rows]) == keyed(by_arrow(batches))


@settings(max_examples=60, deadline=None)
@given(cut_streams(), st.sampled_from(["updates", "every", "final"]))
def test_a_snapshot_is_not_changed_by_what_follows(
    batches: list[pa.RecordBatch], emit: str
) -> None:
    operator = opened(RunningAggregateOperator(["a", "b"], AGGREGATIONS, emit=emit))
    taken: list[tuple[OperatorSnapshot, dict[str, str]]] = []

    def shown(snapshot: OperatorSnapshot) -> dict[str, str]:
        return {name: repr(state.table.to_pylist()) for name, state in snapshot.items()}

    for data in batches + batches:
        snapshot = operator.snapshot()
        taken.append((snapshot, shown(snapshot)))
        operator.process_batch(Batch(data))
    operator.end_input()
    assert [shown(snapshot) for snapshot, _ in taken] == [before for _, before in taken]


@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.floats(-1e6, 1e6)), min_size=1, max_size=300),
    st.integers(1, 300),
)
def test_float_sums_do_not_depend_on_the_batches(rows: list[tuple[str, float]], size: int) -> None:
    data = pa.record_batch({"k": [k for k, _ in rows], "x": [x for _, x in rows]})
    sums: dict[str, float] = {}
    expected = []
    for key, x in rows:
        sums[key] = sums.get(key, 0.0) + x
        expected.append(sums[key])
    for emit in ("every", "updates"):
        operator = opened(RunningAggregateOperator(["k"], {"s": sum_("x")}, emit=emit))
        got: list[dict[str, Any]] = []
        for start in range(0, len(rows), size):
            got += main_rows(operator.process_batch(Batch(data.slice(start, size))))
        if emit == "every":
            assert [row["s"] for row in got] == expected
        assert {row["k"]: row["s"] for row in got} == sums


def test_a_hot_key_with_many_rows_in_one_batch_runs_in_order() -> None:
    keys = [0 if i % 3 else i for i in range(1000)]
    operator = opened(RunningAggregateOperator(["k"], {"n": count(), "s": sum_("x")}, emit="every"))
    got = main_rows(operator.process_batch(batch({"k": keys, "x": list(range(1000))})))
    seen: dict[int, list[int]] = {}
    for i, (key, row) in enumerate(zip(keys, got, strict=True)):
        seen.setdefault(key, []).append(i)
        assert row == {"k": key, "n": len(seen[key]), "s": sum(seen[key])}


@pytest.mark.parametrize("emit", ["updates", "every", "final"])
def test_an_integer_sum_that_overflows_is_an_error_and_one_that_just_fits_is_not(emit: str) -> None:
    def run(values: list[int], kind: pa.DataType) -> Any:
        operator = opened(RunningAggregateOperator(["k"], {"s": sum_("x")}, emit=emit), "totals")
        for value in values:
            schema = pa.schema([("k", pa.int64()), ("x", kind)])
            out = operator.process_batch(batch({"k": [1], "x": [value]}, schema))
        return main_rows(out or operator.end_input())[-1]["s"]

    assert run([2**62, 2**62 - 1], pa.int64()) == 2**63 - 1
    assert run([-(2**62), -(2**62)], pa.int64()) == -(2**63)
    for values, kind in (([2**62, 2**62], pa.int64()), ([2**63], pa.uint64())):
        with pytest.raises(DataError, match=r"'totals'.*sum\(x\).*overflows.*Cast .* float64"):
            run(values, kind)


def test_a_restored_sum_still_notices_overflow() -> None:
    operator = opened(RunningAggregateOperator(["k"], {"s": sum_("x")}))
    operator.process_batch(batch({"k": [1], "x": [2**63 - 1]}))
    again = opened(RunningAggregateOperator(["k"], {"s": sum_("x")}))
    again.restore(operator.snapshot())
    with pytest.raises(DataError, match="overflows"):
        again.process_batch(batch({"k": [1], "x": [1]}))


def test_the_state_opens_as_a_plain_table() -> None:
    operator = opened(RunningAggregateOperator(["k"], {"n": count(), "m": mean("x")}))
    operator.process_batch(batch({"k": ["a", "b", "a"], "x": [1, None, 2]}))
    state = operator.snapshot()["aggregate"]
    assert state.kind is StateKind.KEYED
    assert state.table.schema.field("key_group").type == pa.int32()
    assert state.table.drop_columns(["key_group"]).to_pylist() == [
        {"key.k": "a", "value.n.count": 2, "value.m.count": 2, "value.m.sum": 3.0},
        {"key.k": "b", "value.n.count": 1, "value.m.count": 0, "value.m.sum": 0.0},
    ]


def test_output_schema_is_known_when_planned_and_is_what_comes_out() -> None:
    operator = opened(RunningAggregateOperator(["a", "b"], AGGREGATIONS, input_schema=SCHEMA))
    planned = operator.output_schema(SCHEMA)
    rows = pa.RecordBatch.from_pylist([dict.fromkeys(SCHEMA.names)], schema=SCHEMA)
    assert operator.process_batch(Batch(rows))[0].data.schema.equals(planned)
    assert planned.field("i_sum").type == pa.int64()
    assert planned.field("t_max").type == pa.timestamp("us")


def test_dictionary_keys_come_out_as_their_values() -> None:
    operator = opened(RunningAggregateOperator(["k"], {"n": count()}))
    keys = pa.array(["x", "y", "x"]).dictionary_encode()
    out = operator.process_batch(Batch(pa.record_batch({"k": keys})))
    assert out[0].data.schema.field("k").type == pa.string()
    assert main_rows(out) == [{"k": "x", "n": 2}, {"k": "y", "n": 1}]


def test_what_is_wrong_with_the_columns_is_said_when_planned() -> None:
    schema = pa.schema(
        [("carrier", pa.string()), ("delay", pa.string()), ("l", pa.list_(pa.int8()))]
    )
    with pytest.raises(MissingColumnError, match=r"'delays'.*Did you mean 'delay'"):
        RunningAggregateOperator(["carrier"], {"d": max_("delays")}, input_schema=schema)
    with pytest.raises(
        PlanError, match=r"sum needs an integer or float column, and 'delay' is str"
    ):
        RunningAggregateOperator(["carrier"], {"d": sum_("delay")}, input_schema=schema)
    with pytest.raises(PlanError, match="min needs a column whose values have an order"):
        RunningAggregateOperator(["carrier"], {"d": min_("l")}, input_schema=schema)
    with pytest.raises(PlanError, match="cannot be a key"):
        LocalAggregateOperator(["l"], {"n": count()}, input_schema=schema)


@pytest.mark.parametrize(
    ("keys", "aggregations", "options", "message"),
    [
        ([], {"n": count()}, {}, "at least one"),
        (["k", "k"], {"n": count()}, {}, "distinct"),
        (["k"], {}, {}, "at least one aggregation"),
        (["k"], {"k": count()}, {}, "both a key and a result"),
        (["k"], {"n": "count"}, {}, "must be an aggregation"),
        (["k"], {"n": count()}, {"emit": "sometimes"}, "emit must be"),
        (["k"], {"n": count()}, {"emit": "every", "partial": True}, "emit='every' needs"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    keys: list[str], aggregations: Any, options: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RunningAggregateOperator(keys, aggregations, **options)


def test_a_column_that_changes_its_type_is_named_even_after_a_restore() -> None:
    operator = opened(RunningAggregateOperator(["k"], {"s": sum_("x")}), "totals")
    operator.process_batch(batch({"k": [1], "x": [1]}))
    again = opened(RunningAggregateOperator(["k"], {"s": sum_("x")}), "totals")
    again.restore(operator.snapshot())
    for running in (operator, again):
        with pytest.raises(SchemaChangedError, match=r"'totals'.*'x' was int64 and is now double"):
            running.process_batch(batch({"k": [1], "x": [1.5]}, at="7"))
        # A column it does not read may change.
        running.process_batch(batch({"k": [1], "x": [1], "other": ["new"]}))


def test_state_of_other_aggregations_or_other_key_groups_is_refused() -> None:
    operator = opened(RunningAggregateOperator(["k"], {"s": sum_("x")}))
    operator.process_batch(batch({"k": list(range(50)), "x": [1] * 50}))
    state = operator.snapshot()
    with pytest.raises(SchemaChangedError, match=r"aggregations changed.*new uid"):
        opened(RunningAggregateOperator(["k"], {"m": max_("x")})).restore(state)
    with pytest.raises(SchemaChangedError, match="now reads others"):
        opened(RunningAggregateOperator(["k"], {"s": sum_("y")})).restore(state)
    with pytest.raises(StateMismatchError, match="owns 8 to 15"):
        opened(RunningAggregateOperator(["k"], {"s": sum_("x")}), "op", 1, 2).restore(state)
    other = RunningAggregateOperator(["k"], {"s": sum_("x")})
    other.open(OperatorContext(max_parallelism=64, key_groups=range(64)))
    with pytest.raises(StateMismatchError, match="max_parallelism"):
        other.restore(state)


def test_a_large_final_result_comes_in_pieces() -> None:
    operator = opened(RunningAggregateOperator(["k"], {"n": count()}, emit="final"))
    operator.process_batch(batch({"k": list(range(70_000))}))
    out = operator.end_input()
    assert [b.data.num_rows for b in out] == [65_536, 4464]
    assert pc.sum(pa.Table.from_batches([b.data for b in out])["n"]).as_py() == 70_000
