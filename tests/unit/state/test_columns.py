"""State columns: what was frozen never changes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.state.columns import GrowableColumn, ValuePool

steps = st.lists(
    st.one_of(
        st.tuples(st.just("resize"), st.integers(0, 3000)),
        st.tuples(st.just("write"), st.integers(0, 2999)),
        st.tuples(st.just("extend"), st.integers(0, 5)),
        st.tuples(st.just("freeze"), st.just(0)),
    ),
    max_size=30,
)


@given(steps)
def test_a_frozen_column_is_not_changed_by_what_follows(script: list[tuple[str, int]]) -> None:
    column = GrowableColumn(pa.int64(), np.int64, -7)
    model: list[int] = []
    frozen: list[tuple[pa.Array, list[int]]] = []
    for count, (step, number) in enumerate(script):
        if step == "resize":
            column.resize(number)
            model += [-7] * (number - len(model))
        elif step == "extend":
            column.extend(np.arange(number))
            model += range(number)
        elif step == "write" and number < len(model):
            column.writable()[number] = count
            model[number] = count
        elif step == "freeze":
            frozen.append((column.freeze(), list(model)))
    assert column.view().tolist() == model
    for array, expected in frozen:
        assert array.to_pylist() == expected


def test_freezing_does_not_copy() -> None:
    column = GrowableColumn(pa.int64(), np.int64, 0)
    column.resize(10)
    assert column.freeze().buffers()[1].address == column.view().ctypes.data


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 30), st.text(max_size=3)),
            max_size=30,
            unique_by=lambda pair: pair[0],
        ),
        max_size=120,
    )
)
def test_a_pool_holds_the_last_row_of_each_slot(puts: list[list[tuple[int, str]]]) -> None:
    pool = ValuePool(pa.schema([("v", pa.string())]))
    model: dict[int, str] = {}
    frozen: list[tuple[pa.Table, list[str | None]]] = []

    def expected() -> list[str | None]:
        return [model.get(i) for i in range(max(model, default=-1) + 1)]

    for put in puts:
        slots = np.array([slot for slot, _ in put], np.int64)
        rows = pa.RecordBatch.from_arrays([pa.array([v for _, v in put], pa.string())], names=["v"])
        pool.put(slots, rows)
        model.update(put)
        frozen.append((pool.gather(), expected()))
    for table, values in frozen:
        assert table["v"].to_pylist() == values


def test_a_pool_does_not_grow_with_the_number_of_writes() -> None:
    pool = ValuePool(pa.schema([("v", pa.int64())]))
    for i in range(500):
        pool.put(np.arange(100), pa.record_batch({"v": [i] * 100}))
    assert pool.gather()["v"].to_pylist() == [499] * 100
    assert pool._rows <= 2 * 100 + 1024
