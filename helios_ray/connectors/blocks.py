"""A table that lies in blocks, read by ranges of rows: what a Ray dataset is to a job.

Why it exists: blocks are cut anew whenever a dataset is computed anew, so a position that
outlives the program may not speak of blocks. Splits are ranges of rows counted from the start
of the whole table; which block holds a row is looked up when it is read.

What it promises: rows come once, in order within a split; the position is the number of the
next row. A checkpoint is continued with the same rows or not at all: number of rows, columns,
types and a sample of values are compared with those that the checkpoint was taken over. Nothing
is copied where a block already has the types of the stream.

May import: elements, errors, connectors.base, connectors.block_columns.
"""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from helios_ray.connectors.base import (
    Exhausted,
    Json,
    NotYet,
    Poll,
    Rows,
    Source,
    Split,
    SplitReader,
)
from helios_ray.connectors.block_columns import conform
from helios_ray.elements import Origin
from helios_ray.errors import StateMismatchError

SPLITS_PER_SUBTASK = 4
"""More than one, so that a job resumed with more subtasks has something for each."""

SAMPLED_ROWS = 64
"""Rows that stand for all values when a dataset is compared with that of a checkpoint."""

SMALL_BATCH = 1024
"""Chunks of fewer rows on average are joined: the calls would cost more than the copy."""

RETRY = 0.002
"""Seconds until a block on its way is asked for again."""


class Pending(Protocol):
    """A block on its way."""

    def done(self) -> bool:
        """Whether ``result`` returns at once."""

    def result(self) -> Any:
        """The block: a table, or a pandas frame."""


Fetch: TypeAlias = Callable[[int], Pending]
"""Starts to bring the block of an index here."""


class BlocksSource(Source):
    """Reads a table in blocks.

    Args:
        rows: of each block, none of them 0.
        schema: of the rows.
        sample: digest of the rows at ``sampled_rows``; see :func:`digest`.
        connect: given the first and the last index that a reader needs, how it gets them.
            Pickled to the cluster.
        name: of the whole, for messages.
    """

    def __init__(
        self,
        *,
        rows: Sequence[int],
        schema: pa.Schema,
        sample: str,
        connect: Callable[[int, int], Fetch],
        name: str = "dataset",
    ) -> None:
        self._starts = [0, *itertools.accumulate(rows)]
        self._schema = schema
        self._identity = {
            "rows": self._starts[-1],
            "columns": [f"{field.name}: {field.type}" for field in schema],
            "sample": sample,
        }
        self._connect = connect
        self._name = name

    def __repr__(self) -> str:
        blocks = len(self._starts) - 1
        return f"BlocksSource({self._name}, {self._starts[-1]:,} rows in {blocks:,} blocks)"

    @property
    def bounded(self) -> bool:
        return True

    def schema(self) -> pa.Schema:
        return self._schema

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        cuts = cut(self._starts, parallelism * SPLITS_PER_SUBTASK)
        return [
            # Restored splits are sorted by id, so the ids sort as the rows do.
            Split(
                split_id=f"rows[{start:015}:{stop:015}]",
                spec={"start": start, "stop": stop, "of": self._identity},
            )
            for start, stop in itertools.pairwise(cuts)
        ]

    def open_split(self, split: Split) -> SplitReader:
        self._check(split.spec["of"])
        start, stop = int(split.spec["start"]), int(split.spec["stop"])
        first, last = (bisect_right(self._starts, row) - 1 for row in (start, stop - 1))
        fetch = self._connect(first, last)
        return _RangeReader(fetch, self._starts, self._schema, start, stop, self._name)

    def _check(self, before: Mapping[str, Json]) -> None:
        if before == self._identity:
            return
        here = self._identity
        if before["columns"] != here["columns"]:
            what = f"columns {before['columns']}, and this one has {here['columns']}"
        elif before["rows"] != here["rows"]:
            what = f"{before['rows']:,} rows, and this one has {here['rows']:,}"
        else:
            what = "other values, or the same rows in another order"
        raise StateMismatchError(
            f"the checkpoint was taken over a {self._name} with {what}. A position in one says "
            f"nothing about the other. Give the dataset that the job was started with (one that "
            f"shuffles or samples needs a seed), or start afresh with restore=None or under "
            f"another job name."
        )


class _RangeReader(SplitReader):
    def __init__(
        self,
        fetch: Fetch,
        starts: Sequence[int],
        schema: pa.Schema,
        start: int,
        stop: int,
        name: str,
    ) -> None:
        self._fetch = fetch
        self._starts = starts
        self._schema = schema
        self._next, self._stop = start, stop
        self._name = name
        self._coming: dict[int, Pending] = {}
        self._batches: list[pa.RecordBatch] = []
        self._at = start  # the number of the first row of the first batch

    def poll(self, max_rows: int, now: float) -> Poll:
        if self._next >= self._stop:
            return Exhausted()
        if not self._batches and not self._take_block():
            return NotYet(now + RETRY)
        while self._at + self._batches[0].num_rows <= self._next:
            self._drop_first()
        batch = self._batches[0].slice(
            self._next - self._at, min(max_rows, self._stop - self._next)
        )
        origin = Origin(self._name, f"row {self._next}")
        self._next += batch.num_rows
        if self._at + self._batches[0].num_rows <= self._next:
            self._drop_first()
        return Rows(batch, origin)

    def _drop_first(self) -> None:
        """What is read is let go of at once: it may pin a block in shared memory."""
        self._at += self._batches.pop(0).num_rows

    def _take_block(self) -> bool:
        """Have the block of the next row, if it is here; start to bring the one after it."""
        index = bisect_right(self._starts, self._next) - 1
        self._start_fetching(index)
        if self._starts[index + 1] < self._stop:
            self._start_fetching(index + 1)
        if not self._coming[index].done():
            return False
        block = self._coming.pop(index).result()
        table = conform(block, self._schema, f"{self._name}, block {index}")
        batches = table.to_batches()
        if len(batches) > 1 and table.num_rows < SMALL_BATCH * len(batches):
            batches = table.combine_chunks().to_batches()
        self._batches = [batch for batch in batches if batch.num_rows]
        self._at = self._starts[index]
        return True

    def _start_fetching(self, index: int) -> None:
        if index not in self._coming:
            self._coming[index] = self._fetch(index)

    def position(self) -> Json:
        return {"row": self._next}

    def seek(self, position: Json) -> None:
        self._next = int(position["row"])
        self._coming.clear()
        self._batches = []

    def close(self) -> None:
        self._coming.clear()
        self._batches = []


def cut(starts: Sequence[int], pieces: int) -> list[int]:
    """Where to cut rows so that the pieces are about even, between blocks if that is near.

    Args:
        starts: the first row of each block, and the number of rows at the end.
        pieces: wanted; there may be fewer.

    Example:
        >>> cut([0, 100, 190, 300], 3)
        [0, 100, 190, 300]
        >>> cut([0, 100], 4)
        [0, 25, 50, 75, 100]
    """
    rows = starts[-1]
    near = rows // (2 * pieces)
    cuts = {0, rows}
    for i in range(1, pieces):
        wanted = rows * i // pieces
        after = min(bisect_right(starts, wanted), len(starts) - 1)
        boundary = min(starts[after - 1], starts[after], key=lambda row: abs(row - wanted))
        cuts.add(boundary if abs(boundary - wanted) < near else wanted)
    return sorted(cuts) if rows else []


def sampled_rows(rows: int, most: int = SAMPLED_ROWS) -> list[int]:
    """The numbers of the rows that stand for all: evenly spread, the first and last included.

    Example:
        >>> sampled_rows(100, 4)
        [0, 33, 66, 99]
        >>> sampled_rows(2)
        [0, 1]
    """
    if rows <= most:
        return list(range(rows))
    return [(rows - 1) * i // (most - 1) for i in range(most)]


def digest(values: Iterable[str]) -> str:
    """One digest of the digests of rows, or of their values."""
    whole = hashlib.sha256()
    for value in values:
        whole.update(hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest())
    return whole.hexdigest()


def row_digest(table: pa.Table, row: int) -> str:
    """Digest of the values of one row; the same wherever and however the row is stored."""
    said = []
    for name in table.column_names:
        column = table.column(name).slice(row, 1).combine_chunks()
        array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        plain = array.storage if isinstance(array, pa.ExtensionArray) else array
        said.append(f"{name}={plain.to_pylist()!r}")
    return digest(said)
