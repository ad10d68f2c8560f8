"""The latest row of each slot is what a dict would hold, and costs no more than its size."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.operators.joins import side_rows
from helios_ray.operators.joins.side_rows import LatestRows, last_rows

SCHEMA = pa.schema([("v", pa.int64()), ("s", pa.string())])

puts = st.dictionaries(st.integers(0, 30), st.integers(), max_size=6)
steps = st.lists(
    st.tuples(st.just("put"), puts) | st.tuples(st.just("drop"), st.sets(st.integers(0, 30))),
    max_size=20,
)


@given(story=steps, chunk=st.sampled_from([0, side_rows.LARGEST_CHUNK]))
def test_the_latest_row_of_a_slot_is_found(story: list[Any], chunk: int) -> None:
    with (
        mock.patch.object(side_rows, "_SPARE_ROWS", 2),
        mock.patch.object(side_rows, "LARGEST_CHUNK", chunk),
    ):
        latest = LatestRows(SCHEMA)
        model: dict[int, int] = {}
        for kind, what in story:
            if kind == "put":
                values = [np.int64(v % 1000).item() for v in what.values()]
                columns = [pa.array(values, pa.int64()), pa.array(map(str, values), pa.string())]
                rows = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
                latest.put(np.array(list(what), np.int64), rows)
                model.update(zip(what, values, strict=True))
            else:
                model = {slot: v for slot, v in model.items() if slot not in what}
                mapping = np.arange(31)
                mapping[list(what)] = -1
                latest.remap(mapping)
            asked = np.array([40, *range(31), 3])
            rows, places = latest.fetch(latest.of(asked))
            found = [rows["s"][p].as_py() if p >= 0 else None for p in places.tolist()]
            assert found == [str(model[a]) if a in model else None for a in asked.tolist()]
            assert len(latest) == len(model)
            assert latest.slots().tolist() == sorted(model)
            assert latest.rows()["v"].to_pylist() == [model[slot] for slot in sorted(model)]


def test_rows_that_were_replaced_do_not_pile_up() -> None:
    latest = LatestRows(SCHEMA)
    rows = pa.record_batch({"v": list(range(100)), "s": ["x"] * 100}, schema=SCHEMA)
    most = 0
    for _ in range(200):
        latest.put(np.arange(100), rows)
        most = max(most, latest._end)
        assert len(latest._chunks) <= 8
    assert most < 1500


@pytest.mark.parametrize(
    ("slots", "rows"), [([], []), ([4], [0]), ([4, 4], [1]), ([1, 2, 1, 0, 2], [2, 3, 4])]
)
def test_the_last_row_of_each_slot(slots: list[int], rows: list[int]) -> None:
    assert last_rows(np.array(slots, np.int64)).tolist() == rows
