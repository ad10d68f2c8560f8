"""Runs are merged so that few are looked at, and never into one that Arrow cannot hold."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pyarrow as pa

from helios_ray.operators.windows import runs
from helios_ray.operators.windows.runs import Run, RunStore


def run_of(unit: int, text: str) -> Run:
    return Run(np.array([unit]), np.array([0]), [pa.array([text])])


def texts(store: RunStore) -> list[str]:
    return [text for run in store.runs for text in run.columns[0].to_pylist()]


def test_runs_are_merged_in_their_order() -> None:
    store = RunStore(lambda run: run)
    for i in range(100):
        store.add(run_of(i, f"row {i}"))
    assert len(store.runs) < 2 * runs.FANOUT
    assert texts(store) == [f"row {i}" for i in range(100)]


def test_no_merge_makes_a_run_larger_than_the_limit() -> None:
    store = RunStore(lambda run: run)
    with mock.patch.object(runs, "LARGEST", 2_000):
        for i in range(100):
            store.add(run_of(i, f"{i:03}" * 30))
    assert max(run.nbytes for run in store.runs) <= 2_000
    assert len(store.runs) < 30, "what is small enough is merged all the same"
    assert texts(store) == [f"{i:03}" * 30 for i in range(100)]


def test_a_run_larger_than_the_limit_does_not_keep_small_ones_apart() -> None:
    store = RunStore(lambda run: run)
    with mock.patch.object(runs, "LARGEST", 2_000):
        store.add(run_of(0, "x" * 5_000))
        for i in range(50):
            store.add(run_of(i, "small"))
    assert len(store.runs) < 2 * runs.FANOUT
    assert store.rows == 51
