"""Key groups: contiguous ranges that tile, and batches cut by target in order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.errors import ConfigError
from helios_ray.state.key_groups import (
    key_group_range,
    key_groups_of_batch,
    key_hash,
    partition,
    subtask_of,
)


@given(st.integers(1, 300).flatmap(lambda m: st.tuples(st.just(m), st.integers(1, m))))
def test_ranges_tile_all_key_groups_and_subtask_of_inverts_them(sizes: tuple[int, int]) -> None:
    groups, parallelism = sizes
    ranges = [key_group_range(i, parallelism, groups) for i in range(parallelism)]
    assert [g for r in ranges for g in r] == list(range(groups))
    owners = subtask_of(np.arange(groups), parallelism, groups).tolist()
    assert owners == [i for i, r in enumerate(ranges) for _ in r]
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize(("parallelism", "groups"), [(0, 128), (129, 128), (1, 0), (1, 32_769)])
def test_parallelism_out_of_bounds_is_refused(parallelism: int, groups: int) -> None:
    with pytest.raises(ConfigError, match="parallelism must be 1 to"):
        key_group_range(0, parallelism, groups)


def test_a_subtask_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="subtask must be 0 to 1, got 2"):
        key_group_range(2, 2)


def test_the_key_group_is_the_hash_modulo_max_parallelism() -> None:
    batch = pa.record_batch({"k": list(range(100))})
    expected = [h % 7 for h in key_hash(batch, ["k"]).tolist()]
    groups = key_groups_of_batch(batch, ["k"], 7)
    assert groups.tolist() == expected
    assert groups.dtype == np.int32


@given(st.lists(st.integers(0, 8), max_size=60), st.sampled_from([9, 300]), st.integers(0, 3))
def test_partition_loses_nothing_and_keeps_the_order(targets: list[int], n: int, skip: int) -> None:
    whole = pa.record_batch(
        {"row": list(range(len(targets))), "s": [str(t) for t in targets]},
        schema=pa.schema([("row", pa.int64()), ("s", pa.string())]),
    )
    batch, targets = whole.slice(skip), targets[skip:]
    parts = partition(batch, np.array(targets, np.int64), n)
    assert len(parts) == n
    for target, part in enumerate(parts):
        expected = [i + skip for i, t in enumerate(targets) if t == target]
        assert (part["row"].to_pylist() if part is not None else []) == expected


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60))
def test_partition_to_few_targets_agrees(targets: list[int]) -> None:
    batch = pa.record_batch({"row": list(range(len(targets)))})
    parts = partition(batch, np.array(targets), 3)
    for target, part in enumerate(parts):
        expected = [i for i, t in enumerate(targets) if t == target]
        assert (part["row"].to_pylist() if part is not None else []) == expected


def test_partition_to_one_target_does_not_copy() -> None:
    batch = pa.record_batch({"row": [1, 2]})
    parts = partition(batch, np.array([1, 1]), 2)
    assert parts[0] is None
    assert parts[1] is not None
    assert parts[1]["row"].buffers()[1].address == batch["row"].buffers()[1].address


def test_partition_makes_plain_strings_of_views_always() -> None:
    batch = pa.record_batch({"s": pa.array(["a", None, "b"], pa.string_view())})
    for targets in ([0, 1, 0], [0, 0, 0]):
        parts = [p for p in partition(batch, np.array(targets), 2) if p is not None]
        assert {p.schema.field("s").type for p in parts} == {pa.string()}
        assert sum(p.num_rows for p in parts) == 3


@pytest.mark.parametrize("targets", [[0, 2], [-1, 0], [0]])
def test_partition_refuses_targets_that_do_not_fit(targets: list[int]) -> None:
    with pytest.raises(ConfigError, match="target"):
        partition(pa.record_batch({"x": [1, 2]}), np.array(targets), 2)
