"""Pairs of rows are exactly those that a loop over both sides finds, in its order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.operators.joins.matching import equal_pairs, unmatched

codes = st.lists(st.integers(-1, 5), max_size=20)


@given(left=codes, right=codes)
def test_pairs_are_those_of_two_nested_loops(left: list[int], right: list[int]) -> None:
    lefts, rights = equal_pairs(np.array(left, np.int64), np.array(right, np.int64))
    expected = [
        (i, j) for i, a in enumerate(left) for j, b in enumerate(right) if a == b and a >= 0
    ]
    assert list(zip(lefts.tolist(), rights.tolist(), strict=True)) == expected
    assert unmatched(len(left), lefts).tolist() == [
        i for i, a in enumerate(left) if a < 0 or a not in right
    ]
