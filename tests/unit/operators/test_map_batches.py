"""map_batches has Ray Data's arguments and meanings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from helios_ray.errors import ConfigError, SchemaChangedError, UserFunctionError
from helios_ray.operators.map_batches import MapBatchesOperator
from tests.unit.operators.support import batch, main_rows, opened, tagged_rows

FIVE = {"x": [1, 2, 3, 4, 5]}


@pytest.mark.parametrize(
    ("batch_format", "kind"),
    [
        ("default", dict),
        ("numpy", dict),
        ("pandas", pd.DataFrame),
        ("pyarrow", pa.Table),
        (None, pa.Table),
    ],
)
def test_a_batch_comes_in_the_format_asked_for_and_may_be_returned_in_it(
    batch_format: Any, kind: type
) -> None:
    seen: list[type] = []

    def same(given: Any) -> Any:
        seen.append(type(given))
        return given

    operator = opened(MapBatchesOperator(same, batch_format=batch_format))
    out = operator.process_batch(batch({"x": [1, 2], "s": ["a", "b"]}))
    assert seen == [kind]
    assert main_rows(out) == [{"x": 1, "s": "a"}, {"x": 2, "s": "b"}]


def test_batch_size_cuts_each_incoming_batch_and_none_waits_for_the_next() -> None:
    sizes: list[int] = []

    def note(given: dict[str, Any]) -> dict[str, Any]:
        sizes.append(len(given["x"]))
        return given

    operator = opened(MapBatchesOperator(note, batch_size=2))
    assert [row["x"] for row in main_rows(operator.process_batch(batch(FIVE)))] == FIVE["x"]
    operator.process_batch(batch({"x": [6]}))
    assert sizes == [2, 2, 1, 1]


class Scale:
    made = 0

    def __init__(self, factor: int, *, plus: int = 0) -> None:
        type(self).made += 1
        self.factor, self.plus, self.closed = factor, plus, False

    def __call__(self, given: dict[str, Any], minus: int, *, times: int = 1) -> dict[str, Any]:
        return {"y": (given["x"] * self.factor + self.plus - minus) * times}

    def close(self) -> None:
        self.closed = True


def test_a_class_is_made_once_in_open_with_its_arguments_and_closed() -> None:
    Scale.made = 0
    operator = MapBatchesOperator(
        Scale,
        batch_size=2,
        fn_args=[1],
        fn_kwargs={"times": 100},
        fn_constructor_args=[10],
        fn_constructor_kwargs={"plus": 5},
    )
    assert Scale.made == 0
    opened(operator)
    assert [r["y"] for r in main_rows(operator.process_batch(batch({"x": [1, 2, 3]})))] == [
        1400,
        2400,
        3400,
    ]
    assert Scale.made == 1
    instance: Any = operator._call
    operator.close()
    assert instance.closed


def test_a_generator_gives_several_batches_in_order() -> None:
    def twice(given: dict[str, Any]) -> Iterator[Any]:
        yield {"x": given["x"]}
        yield pa.record_batch({"x": given["x"] + 10})
        yield pd.DataFrame({"x": given["x"] + 20})

    out = opened(MapBatchesOperator(twice)).process_batch(batch({"x": [1, 2]}))
    assert [b.data["x"].to_pylist() for b in out] == [[1, 2], [11, 12], [21, 22]]


def test_copies_may_be_written_to_and_the_stream_does_not_see_it() -> None:
    def zero(given: Any) -> Any:
        given["x"][:] = 0
        return given

    given = batch(FIVE)
    out = opened(MapBatchesOperator(zero, zero_copy_batch=False)).process_batch(given)
    assert [r["x"] for r in main_rows(out)] == [0] * 5
    assert given.data["x"].to_pylist() == FIVE["x"]
    with pytest.raises(UserFunctionError, match="read-only"):
        opened(MapBatchesOperator(zero)).process_batch(given)


def test_arrays_of_several_dimensions_are_tensors_there_and_back() -> None:
    shapes: list[tuple[int, ...]] = []

    def images(given: dict[str, Any]) -> dict[str, Any]:
        return {"image": np.arange(len(given["x"]) * 6).reshape(-1, 2, 3)}

    def look(given: dict[str, Any]) -> dict[str, Any]:
        shapes.append(given["image"].shape)
        return {"total": given["image"].sum(axis=(1, 2))}

    [made] = opened(MapBatchesOperator(images)).process_batch(batch({"x": [1, 2]}))
    out = opened(MapBatchesOperator(look)).process_batch(made)
    assert shapes == [(2, 2, 3)]
    assert [r["total"] for r in main_rows(out)] == [15, 51]


def fails_on_three(given: dict[str, Any]) -> dict[str, Any]:
    if 3 in given["x"]:
        raise ValueError("three")
    return given


def test_a_call_that_raises_names_its_rows_or_leaves_out_those_that_fail_alone() -> None:
    rows = batch(FIVE, at="100")
    with pytest.raises(
        UserFunctionError, match=r"map_batches 'm'.*three on rows 2 to 3.*\{'x': 3\}.*100 \+ row 2"
    ):
        opened(MapBatchesOperator(fails_on_three, batch_size=2), "m").process_batch(rows)
    operator = opened(MapBatchesOperator(fails_on_three, batch_size=2, on_error="dead_letter"))
    out = operator.process_batch(rows)
    assert [r["x"] for r in main_rows(out)] == [1, 2, 4, 5]
    letters = tagged_rows(out, "dead_letter")
    assert [json.loads(r["row"]) for r in letters] == [{"x": 3}]
    assert [r["position"] for r in letters] == ["rows.csv @ 100 + row 2"]
    assert operator.counters() == {"operator.skipped_rows": 1}


def test_failing_rows_are_found_by_halves_and_nothing_of_a_failed_call_is_used() -> None:
    calls: list[int] = []

    def double_then_maybe_fail(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        calls.append(len(given["x"]))
        for _ in range(2):
            yield {"x": given["x"]}
        if set(given["x"]) & {5, 70}:
            raise ValueError("bad")

    operator = opened(MapBatchesOperator(double_then_maybe_fail, on_error="skip"))
    out = operator.process_batch(batch({"x": list(range(100))}))
    assert Counter(r["x"] for r in main_rows(out)) == {x: 2 for x in range(100) if x not in (5, 70)}
    assert operator.counters() == {"operator.skipped_rows": 2}
    assert calls[0] == 100
    assert len(calls) <= 2 * 2 * 7 + 1, "two bad rows of a hundred take few calls"


def test_a_batch_that_is_only_too_large_is_done_in_parts_and_loses_no_row() -> None:
    def small_only(given: dict[str, Any]) -> dict[str, Any]:
        if len(given["x"]) > 3:
            raise MemoryError("too many rows")
        return given

    operator = opened(MapBatchesOperator(small_only, on_error="dead_letter"))
    out = operator.process_batch(batch({"x": list(range(10))}))
    assert [r["x"] for r in main_rows(out)] == list(range(10))
    assert tagged_rows(out, "dead_letter") == []
    assert operator.counters() == {"operator.skipped_rows": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fn": Scale}, r"the constructor of Scale\(factor.*missing a required argument: 'factor'"),
        ({"fn": Scale, "fn_constructor_args": [1]}, r"Scale.__call__.*'minus'"),
        ({"fn_args": [1]}, r"fails_on_three.*too many positional"),
        ({"fn_kwargs": {"times": 2}}, r"fails_on_three.*unexpected keyword argument 'times'"),
    ],
)
def test_arguments_that_the_function_does_not_take_are_found_when_the_job_is_built(
    arguments: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        MapBatchesOperator(**{"fn": fails_on_three, **arguments})


@pytest.mark.parametrize(
    "bad", [None, 5, {"x": 1}, {"x": "text"}, {1: [1]}, {"x": [1], "y": [1, 2]}, {"x": np.array(1)}]
)
def test_a_result_that_is_no_batch_is_the_functions_fault(bad: Any) -> None:
    with pytest.raises(UserFunctionError):
        opened(MapBatchesOperator(lambda _batch: bad)).process_batch(batch(FIVE))


def test_the_schema_of_the_first_result_holds_through_a_restore() -> None:
    def shape(given: dict[str, Any]) -> Any:
        return {1: {"v": [1.5]}, 2: {"v": [2]}, 3: {"v": ["a"]}, 4: {"w": [1]}, 5: {"v": [None]}}[
            int(given["x"][0])
        ]

    operator = opened(MapBatchesOperator(shape), "m")
    operator.process_batch(batch({"x": [1]}))
    again = opened(MapBatchesOperator(shape), "m")
    again.restore(operator.snapshot())
    for running in (operator, again):
        assert running.process_batch(batch({"x": [2]}))[0].data.schema.types == [pa.float64()]
        assert main_rows(running.process_batch(batch({"x": [5]}))) == [{"v": None}]
        with pytest.raises(SchemaChangedError, match="'v' expected double, got string"):
            running.process_batch(batch({"x": [3]}))
        with pytest.raises(SchemaChangedError, match=r"expected columns \['v'\], got \['w'\]"):
            running.process_batch(batch({"x": [4]}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fn": 3}, "needs a function"),
        ({"batch_size": 0}, "batch_size must be a positive"),
        ({"batch_size": True}, "batch_size must be a positive"),
        ({"batch_format": "polars"}, "batch_format must be one of"),
        ({"fn_constructor_args": [1]}, "are for a callable class"),
        ({"fn": object}, "needs a __call__"),
        ({"on_error": "x"}, "on_error"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MapBatchesOperator(**{"fn": fails_on_three, **arguments})
