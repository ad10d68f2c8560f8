"""The contract of an accumulator: what one aggregation keeps for all keys.

Why it exists: one fold serves three uses. ``update`` folds a batch, ``running`` also gives
the value after every row, and ``merge`` folds the partial results of a local
pre-aggregation.

May import: operators.segments, state, Arrow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyarrow as pa

from helios_ray.operators.segments import Segments
from helios_ray.state.index import Slots


class Accumulator(ABC):
    """The state of one aggregation for all keys."""

    @property
    @abstractmethod
    def fields(self) -> list[pa.Field]:
        """Columns of its state."""

    @property
    def partial_fields(self) -> list[pa.Field]:
        """Columns of its partial results: those of its state, in the stream's own types."""
        return self.fields

    @abstractmethod
    def resize(self, size: int) -> None:
        """Make room for ``size`` slots."""

    @abstractmethod
    def update(self, slots: Slots, array: pa.Array | None) -> None:
        """Fold a batch of the column (None for a count of rows)."""

    @abstractmethod
    def merge(self, slots: Slots, partial: Sequence[pa.Array]) -> None:
        """Fold partial results, in the columns of ``partial_fields``."""

    @abstractmethod
    def running(self, segments: Segments, slots: Slots, array: pa.Array | None) -> pa.Array:
        """Fold a batch and return the aggregate's value after every row."""

    @abstractmethod
    def result(self, slots: Slots) -> pa.Array:
        """The aggregate's value for each of ``slots``."""

    @abstractmethod
    def freeze(self) -> list[pa.ChunkedArray | pa.Array]:
        """The columns of ``fields`` for all slots, immutable."""

    @abstractmethod
    def restore(self, slots: Slots, columns: Sequence[pa.Array]) -> None:
        """Set fresh slots from what ``freeze`` gave."""


def part_name(function: str) -> str:
    """What the accumulator of a function holds beside the count."""
    return "sum" if function == "mean" else function
