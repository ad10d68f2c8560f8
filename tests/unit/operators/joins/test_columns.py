"""A join's columns: the left's, then the right's without its keys, with no name twice."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from helios_ray.errors import ConfigError, MissingColumnError, PlanError
from helios_ray.operators.joins.columns import JoinColumns, check_how

LEFT = pa.schema([("id", pa.int64()), ("n", pa.string())])
RIGHT = pa.schema([("user", pa.int64()), ("n", pa.dictionary(pa.int32(), pa.string()))])


def test_a_row_of_the_right_without_partner_shows_its_key_under_the_lefts_name() -> None:
    columns = JoinColumns(LEFT, RIGHT, ["id"], ["user"], "join")
    left = pa.record_batch({"id": [1], "n": ["a"]}, schema=LEFT)
    right = pa.record_batch([pa.array([7]), pa.array(["x"])], schema=columns.right)
    rows = columns.assemble(left, np.array([-1, 0]), right, np.array([0, -1]))
    assert rows.to_pylist() == [
        {"id": 7, "n": None, "n_right": "x"},
        {"id": 1, "n": "a", "n_right": None},
    ]
    assert rows.schema == columns.schema


def test_a_name_that_is_taken_even_with_the_suffix_is_refused() -> None:
    left = LEFT.append(pa.field("n_right", pa.int64()))
    with pytest.raises(PlanError, match="another suffix"):
        JoinColumns(left, RIGHT, ["id"], ["user"], "join")
    assert "n2" in JoinColumns(left, RIGHT, ["id"], ["user"], "join", suffix="2").schema.names


def test_keys_must_exist_and_be_of_one_type_and_number() -> None:
    with pytest.raises(ConfigError, match="same number"):
        JoinColumns(LEFT, RIGHT, ["id"], [], "join")
    with pytest.raises(MissingColumnError, match="usr"):
        JoinColumns(LEFT, RIGHT, ["id"], ["usr"], "join")
    with pytest.raises(PlanError, match="is int64 and 'n' of the right is string"):
        JoinColumns(LEFT, RIGHT, ["id"], ["n"], "join")
    with pytest.raises(ConfigError, match="got 'outer'"):
        check_how("outer", "join")
