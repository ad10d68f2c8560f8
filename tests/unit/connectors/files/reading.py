"""How the tests of this directory read a source: with interruptions, as a job would."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from helios_ray.connectors.base import Exhausted, Rows, Source, Split, SplitReader


def read_split(source: Source, split: Split, max_rows: int = 1000) -> list[dict[str, Any]]:
    reader = source.open_split(split)
    rows = list(_drain(reader, max_rows))
    reader.close()
    return rows


def _drain(reader: SplitReader, max_rows: int) -> Iterator[dict[str, Any]]:
    while isinstance(polled := reader.poll(max_rows, 0.0), Rows):
        assert 1 <= polled.data.num_rows <= max_rows
        yield from polled.data.to_pylist()
    assert isinstance(polled, Exhausted)


def read_all(source: Source, parallelism: int = 1, max_rows: int = 1000) -> list[dict[str, Any]]:
    """All rows, split by split in order."""
    return [
        row
        for split in source.discover_splits(parallelism)
        for row in read_split(source, split, max_rows)
    ]


def read_interrupted(source: Source, split: Split, data: st.DataObject) -> list[dict[str, Any]]:
    """Read a split through random batch sizes and deaths, each followed by a seek elsewhere.

    What a death forgets is what was read since the last snapshot, as in a job.
    """
    kept: list[dict[str, Any]] = []
    fresh: list[dict[str, Any]] = []
    reader = source.open_split(split)
    snapshot: Any = None
    for _ in range(10_000):
        action = data.draw(st.sampled_from(["poll", "poll", "poll", "snapshot", "die"]))
        if action == "snapshot":
            # Through JSON, as a checkpoint keeps it.
            snapshot = json.dumps(reader.position())
            kept, fresh = kept + fresh, []
        elif action == "die":
            reader.close()
            # Another process: everything but the split and the position is gone.
            source = pickle.loads(pickle.dumps(source))
            again = Split(split_id=split.split_id, spec=json.loads(json.dumps(split.spec)))
            reader, fresh = source.open_split(again), []
            if snapshot is not None:
                reader.seek(json.loads(snapshot))
        else:
            polled = reader.poll(data.draw(st.integers(1, 12)), 0.0)
            if isinstance(polled, Exhausted):
                reader.close()
                return kept + fresh
            assert isinstance(polled, Rows)
            fresh += polled.data.to_pylist()
    raise AssertionError("the split does not end")


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)
