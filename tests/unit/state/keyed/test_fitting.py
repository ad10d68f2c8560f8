"""What is written to state is what Arrow would give back, from the very moment it is written."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.state.keyed.columns import cell_column
from helios_ray.state.keyed.fitting import fitter, hashable_fitter

UTC = datetime.timezone.utc
FITTING: list[tuple[pa.DataType, Any]] = [
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint8(), st.integers(0, 255)),
    (pa.float64(), st.floats(allow_nan=False) | st.integers(-(2**53), 2**53)),
    (pa.float32(), st.floats(-1e30, 1e30)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(st.characters(codec="utf-8"), max_size=5)),
    (pa.large_binary(), st.binary(max_size=5) | st.binary(max_size=5).map(bytearray)),
    (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
    (pa.timestamp("ms"), st.datetimes().map(lambda at: at.replace(microsecond=0))),
    (pa.date32(), st.dates()),
    (pa.duration("us"), st.timedeltas(datetime.timedelta(-99), datetime.timedelta(99))),
    (pa.decimal128(20, 2), st.integers(-(10**9), 10**9).map(lambda i: Decimal(i) / 100)),
    (pa.list_(pa.float64()), st.lists(st.none() | st.integers(-9, 9), max_size=3).map(tuple)),
    (
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
        st.fixed_dictionaries({}, optional={"a": st.integers(-9, 9), "b": st.just(["x", None])}),
    ),
    (pa.map_(pa.string(), pa.int64()), st.dictionaries(st.sampled_from("ab"), st.integers(0, 9))),
]


@pytest.mark.parametrize(("kind", "values"), FITTING, ids=[str(kind) for kind, _ in FITTING])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_value_that_fits_survives_arrow_unchanged(
    kind: pa.DataType, values: Any, data: st.DataObject
) -> None:
    written = data.draw(st.lists(values, min_size=1, max_size=6))
    fitted = [fitter(kind)(value) for value in written]
    assert pa.array(fitted, kind).to_pylist() == fitted
    assert [fitter(kind)(value) for value in fitted] == fitted
    column = cell_column(kind)
    cells = np.arange(len(fitted))[::-1].copy()
    column.resize(len(fitted) + 1)
    for start in range(0, len(fitted), 2):
        part = slice(start, start + 2)
        column.write(cells[part], pa.array(fitted[part], kind))
    assert column.read(cells).to_pylist() == fitted
    assert [column.read_one(cell) for cell in cells.tolist()] == fitted


def test_numbers_of_numpy_fit_and_others_do_not() -> None:
    assert type(fitter(pa.int64())(np.int32(3))) is int
    assert type(fitter(pa.float64())(np.float32(0.5))) is float
    assert fitter(pa.float64())(3) == 3.0
    for kind, value in [
        (pa.uint8(), -1),
        (pa.int64(), 1.0),
        (pa.float64(), 2**63 + 1),
        (pa.float64(), True),
        (pa.bool_(), 1),
        (pa.string(), "\ud800"),
        (pa.string(), None),
        (pa.timestamp("us"), 5),
        (pa.map_(pa.string(), pa.int64()), 5),
        (pa.list_(pa.string()), "abc"),
        (pa.list_(pa.int64(), 2), [1]),
        (pa.decimal128(4, 2), Decimal("1.234")),
    ]:
        with pytest.raises(ValueError, match=r"expected .* got "):
            fitter(kind)(value)


def test_a_map_has_one_nan() -> None:
    fit = hashable_fitter(pa.float64())
    assert len({fit(float("nan")), fit(np.float64("nan")), math.nan}) == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.text("ab", max_size=3)), max_size=60))
def test_a_frozen_column_does_not_change(writes: list[tuple[int, str]]) -> None:
    column, model, frozen = cell_column(pa.string()), {}, []
    column.resize(10)
    column.write(np.arange(10), pa.array([""] * 10))
    model = dict.fromkeys(range(10), "")
    for i, (cell, value) in enumerate(writes):
        column.write(np.array([cell]), pa.array([value]))
        model[cell] = value
        if i % 7 == 0:
            frozen.append((column.freeze(), list(model.values())))
    frozen.append((column.freeze(), list(model.values())))
    assert all(array.to_pylist() == before for array, before in frozen)


def test_a_column_of_values_that_come_and_go_stays_small() -> None:
    column = cell_column(pa.string())
    column.resize(100)
    cells = np.arange(100)
    for _ in range(200):
        column.write(cells, pa.array(["x" * 10] * 100))
        column.release(cells)
    column.write(cells[:1], pa.array(["y"]))
    held = sum(len(run) for run in column._runs)  # type: ignore[attr-defined]
    assert held <= 2_000
    assert column.read(cells[:1]).to_pylist() == ["y"]
