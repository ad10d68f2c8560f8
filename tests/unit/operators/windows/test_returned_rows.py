"""What a function of a window may return, and what it may not."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from helios_ray.operators.windows.results import returned_rows


@pytest.mark.parametrize(
    ("result", "rows"),
    [
        (None, []),
        ({"n": 1}, [{"n": 1}]),
        ([{"n": 1}, {"n": 2}], [{"n": 1}, {"n": 2}]),
        (({"n": i} for i in range(2)), [{"n": 0}, {"n": 1}]),
        (pa.table({"n": [3]}), [{"n": 3}]),
        ([], []),
    ],
)
def test_nothing_a_row_rows_or_a_table_are_rows(result: Any, rows: list[dict[str, int]]) -> None:
    assert returned_rows(result, ["key"]) == rows


def test_what_is_no_row_and_what_names_a_column_of_the_window_is_refused() -> None:
    with pytest.raises(TypeError, match="expected rows as dicts"):
        returned_rows([5], ["key"])
    with pytest.raises(ValueError, match="'key' is added to each result by itself"):
        returned_rows({"key": 1}, ["key"])
