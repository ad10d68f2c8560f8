"""Nulls without a type are a column of the type that is known for it."""

from __future__ import annotations

import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.execution.chain import OperatorChain
from helios_ray.execution.input_types import InputTypes
from helios_ray.operators.aggregates import RunningAggregateOperator
from helios_ray.operators.aggregation import Aggregation
from helios_ray.operators.base import OperatorContext

NUMBERS = pa.record_batch({"k": ["a"], "v": [1]})
NULLS = pa.record_batch({"k": ["a"], "v": pa.nulls(1)})


def chain(out: list[Batch]) -> OperatorChain:
    sums = RunningAggregateOperator(["k"], {"s": Aggregation("sum", "v")})
    return OperatorChain(
        [(sums, OperatorContext(uid="sums"))], "sums", lambda _, batch: out.append(batch)
    )


def test_what_one_upstream_subtask_knows_only_as_nulls_is_a_number_all_the_same() -> None:
    out: list[Batch] = []
    running = chain(out)
    for batch in (NUMBERS, NULLS, NUMBERS):
        running.process(Batch(batch))
    assert [row for batch in out for row in batch.data.to_pylist()] == [
        {"k": "a", "s": 1}, {"k": "a", "s": 1}, {"k": "a", "s": 2},
    ]  # fmt: skip


def test_after_a_restore_the_types_of_the_state_are_known() -> None:
    before = chain([])
    before.process(Batch(NUMBERS))
    out: list[Batch] = []
    after = chain(out)
    after.restore(before.snapshot())
    after.process(Batch(NULLS))
    assert [row for batch in out for row in batch.data.to_pylist()] == [{"k": "a", "s": 1}]


def test_inputs_do_not_share_their_types_and_typed_nulls_stay_what_they_are() -> None:
    types = InputTypes()
    types.fit(Batch(NUMBERS), 0)
    assert types.fit(Batch(NULLS), 1).data.schema == NULLS.schema
    strings = pa.record_batch({"k": ["a"], "v": pa.nulls(1, pa.string())})
    assert types.fit(Batch(strings), 0).data.schema == strings.schema
