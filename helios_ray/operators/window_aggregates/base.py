"""The contract of an aggregate over windows: lift, merge, finish.

Why it exists: see the package. All three are functions of Arrow columns; nothing is kept in
an aggregate, so one serves every window, slice and run of its operator.

May import: operators.window_aggregates.groups, operators.user_functions, elements, Arrow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.operators.user_functions import FailureHandler
from helios_ray.operators.window_aggregates.groups import Groups, Ints

Failed: TypeAlias = Callable[[int, str, Exception], None]
"""Told the number of a partial row, the function that raised, and what it raised."""


@dataclass(slots=True)
class Rows:
    """Rows to aggregate.

    Args:
        data: the columns that the operator reads.
        times: event time (µs) of every row; zeros where there is none, so that the order of
            arrival decides.
        batch: where they came from, for messages.
        numbers: their row numbers in that batch.
        failures: what to do when a user's function raises, or None: it always raises.
        rejected: places among these rows of those that are to be left out, because a user's
            function raised on them. ``failures`` has been told of each, once.
    """

    data: pa.RecordBatch
    times: Ints
    batch: Batch
    numbers: Ints
    failures: FailureHandler | None = None
    rejected: set[int] = field(default_factory=set)


class WindowAggregate(ABC):
    """One aggregation, as columns of partial rows.

    Args:
        name: the output column; the names of its state columns begin with it and a dot.
    """

    may_reject = False
    """Whether lifting may find rows that are to be left out (``Rows.rejected``)."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    @abstractmethod
    def fields(self) -> list[pa.Field]:
        """Columns of a partial row. Part of the checkpoint format."""

    @property
    @abstractmethod
    def result_type(self) -> pa.DataType:
        """Type of the result."""

    @abstractmethod
    def lift(self, groups: Groups, rows: Rows) -> list[pa.Array]:
        """One partial row per group from rows; a group without rows gets the neutral one.

        Where it rejects rows, what it returns is of no account: it is called again without.
        """

    @abstractmethod
    def merge(self, groups: Groups, columns: Sequence[pa.Array]) -> list[pa.Array]:
        """One partial row per group from partial rows, which are in the order of arrival
        within their slice."""

    @abstractmethod
    def finish(self, columns: Sequence[pa.Array]) -> pa.Array:
        """The result of each partial row."""

    def finish_each(self, columns: Sequence[pa.Array], failed: Failed) -> pa.Array:
        """As ``finish``; what a user's function raises is told to ``failed``, with the number
        of the partial row, whose result is then of no account."""
        return self.finish(columns)
