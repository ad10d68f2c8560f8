"""A running reduce emits the new value after every row and survives restore and rescale."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, MissingColumnError, SchemaChangedError, UserFunctionError
from helios_ray.operators.base import OperatorSnapshot
from helios_ray.operators.reduce import ReduceOperator
from helios_ray.state.key_groups import key_groups_of_batch, partition, subtask_of
from tests.unit.operators.support import (
    MAX_PARALLELISM,
    batch,
    main_rows,
    opened,
    share_out,
    tagged_rows,
)

SCHEMA = pa.schema([("k", pa.string()), ("n", pa.int64()), ("seen", pa.list_(pa.int64()))])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "k": st.one_of(st.none(), st.sampled_from(["a", "b", "ü"])),
            "n": st.integers(-9, 9),
            "seen": st.lists(st.integers(0, 9), max_size=2),
        }
    ),
    max_size=30,
)


def together(value: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return {"n": value["n"] + row["n"], "seen": value["seen"] + row["seen"]}


@settings(max_examples=80, deadline=None)
@given(ROWS, st.integers(1, 30), st.sampled_from([[1], [1, 2, 3], [3, 1]]))
def test_running_values_equal_a_plain_fold_across_restores_and_rescaling(
    rows: list[dict[str, Any]], size: int, parallelisms: list[int]
) -> None:
    expected: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        values = expected.setdefault(row["k"], [])
        values.append({"k": row["k"], **together(values[-1], row)} if values else row)
    got: dict[Any, list[dict[str, Any]]] = {}
    snapshots: list[OperatorSnapshot] = []
    whole = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    for turn, start in enumerate(range(0, len(rows), size)):
        n = parallelisms[turn % len(parallelisms)]
        operators = [opened(ReduceOperator(["k"], together), "r", s, n) for s in range(n)]
        if snapshots:
            for operator, share in zip(operators, share_out(snapshots, n), strict=True):
                operator.restore(share)
        data = whole.slice(start, size)
        groups = key_groups_of_batch(data, ["k"], MAX_PARALLELISM)
        parts = partition(data, subtask_of(groups, n, MAX_PARALLELISM), n)
        for operator, part in zip(operators, parts, strict=True):
            for row in main_rows(operator.process_batch(Batch(part))) if part is not None else []:
                got.setdefault(row["k"], []).append(row)
        snapshots = [operator.snapshot() for operator in operators]
    assert got == expected


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 10))
def test_a_snapshot_is_not_changed_by_what_follows(rows: list[dict[str, Any]], size: int) -> None:
    operator = opened(ReduceOperator(["k"], together))
    whole = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    taken = []
    for start in range(0, len(rows), size):
        operator.process_batch(Batch(whole.slice(start, size)))
        snapshot = operator.snapshot()
        taken.append((snapshot, {n: s.table.to_pylist() for n, s in snapshot.items()}))
    for snapshot, before in taken:
        assert {n: s.table.to_pylist() for n, s in snapshot.items()} == before


def test_a_function_that_writes_to_its_arguments_does_not_rewrite_what_was_emitted() -> None:
    def writes(value: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
        value["n"] += row["n"]
        return value

    operator = opened(ReduceOperator(["k"], writes))
    out = operator.process_batch(batch({"k": ["a"] * 3, "n": [1, 2, 3]}))
    assert [row["n"] for row in main_rows(out)] == [1, 3, 6]


def failing(value: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    if row["n"] < 0:
        raise ValueError("negative")
    return {"n": value["n"] + row["n"]}


def test_a_row_that_fails_leaves_the_value_as_it_was() -> None:
    rows = batch({"k": ["a", "a", "a"], "n": [1, -1, 5]}, at="40")
    with pytest.raises(
        UserFunctionError, match=r"'sums'.*negative.*rows.csv @ 40 \+ row 1"
    ) as info:
        opened(ReduceOperator(["k"], failing), "sums").process_batch(rows)
    assert isinstance(info.value.__cause__, ValueError)
    operator = opened(ReduceOperator(["k"], failing, on_error="dead_letter"), "sums")
    out = operator.process_batch(rows)
    assert [row["n"] for row in main_rows(out)] == [1, 6]
    assert [letter["row"] for letter in tagged_rows(out, "dead_letter")] == ['{"k": "a", "n": -1}']
    assert operator.counters() == {"operator.skipped_rows": 1}


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda _value, _row: None, UserFunctionError, "expects a dict, got NoneType"),
        (
            lambda _value, _row: {"k": "other", "n": 1},
            UserFunctionError,
            "must not change key column",
        ),
        (lambda _value, _row: {"n": "text"}, SchemaChangedError, "'n' expected int64"),
        (lambda _value, _row: {"n": 1, "m": 2}, SchemaChangedError, "also has 'm'"),
    ],
)
def test_a_value_that_cannot_be_one_is_refused(fn: Any, error: Any, message: str) -> None:
    operator = opened(ReduceOperator(["k"], fn))
    with pytest.raises(error, match=message):
        operator.process_batch(batch({"k": ["a", "a"], "n": [1, 2]}))


def test_keys_and_types_are_checked() -> None:
    schema = pa.schema([("key", pa.int64())])
    with pytest.raises(MissingColumnError, match="Did you mean 'key'"):
        ReduceOperator(["kye"], together, input_schema=schema)
    with pytest.raises(ConfigError, match="needs a function"):
        ReduceOperator(["key"], None)  # type: ignore[arg-type]
    operator = opened(ReduceOperator(["k"], together), "sums")
    operator.process_batch(batch({"k": [1], "n": [1]}))
    with pytest.raises(SchemaChangedError, match=r"'sums'.*'n' was int64 and is now double"):
        operator.process_batch(batch({"k": [1], "n": [1.5]}))
