"""The event times of one side of a join, and what becomes of rows without.

May import: errors, elements, operators, watermarks, Arrow, numpy.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, DataError
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.user_functions import FailureHandler, position, truncated
from helios_ray.operators.window_aggregates.groups import Mask
from helios_ray.operators.windows.slices import LATEST
from helios_ray.watermarks import EventTime


class RowTimes:
    """Reads event times.

    Args:
        what: the kind of join, for messages.
        side: which side, likewise.
        time: the column.
        failures: what to do with rows whose time is null or out of range.

    Raises:
        ConfigError: no column.

    Example:
        >>> times = RowTimes("join", "left", "ts", FailureHandler("join", "skip"))
        >>> rows = pa.record_batch({"ts": [5, None]})
        >>> [part.tolist() for part in times.read(Batch(rows), rows)]
        [[5, 0], [True, False]]
    """

    def __init__(
        self, what: str, side: str, time: str | EventTime | None, failures: FailureHandler
    ) -> None:
        found = EventTime.of(time)
        if not isinstance(found, EventTime):
            raise ConfigError(
                f"{what}: {side}_time must name the event time column on the {side} side, got "
                f"{time!r}. Give its source a watermark strategy, or name the column."
            )
        self.time = found
        self._what = what
        self._side = side
        self._failures = failures

    def check(self, schema: pa.Schema, uid: str | None = None) -> None:
        """Raise MissingColumnError or SchemaChangedError unless there is such a time."""
        self.time.check(schema, f"{self._who(uid)}, {self._side} side")

    def _who(self, uid: str | None) -> str:
        return self._what if uid is None else f"{self._what} {uid!r}"

    def of(self, rows: pa.RecordBatch) -> Ints:
        """The event times of rows that were read before."""
        found: Ints = self.time.read(rows).to_numpy()
        return found

    def read(self, batch: Batch, rows: pa.RecordBatch) -> tuple[Ints, Mask | None]:
        """The event time of every row, and which rows have one; None for all of them.

        Args:
            batch: as it came, for messages.
            rows: the same, at least one, encodings undone.

        Raises:
            DataError: one has none, under the policy ``raise``.
        """
        column = self.time.read(rows)
        good = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
        times = pc.fill_null(column, 0).to_numpy() if column.null_count else column.to_numpy()
        if int(times.min()) < -LATEST or int(times.max()) > LATEST:
            near = (times >= -LATEST) & (times <= LATEST)
            good = near if good is None else good & near
        if good is not None:
            for i in np.flatnonzero(~good).tolist():
                self._untimed(batch, i)
        return times, good

    def _untimed(self, batch: Batch, index: int) -> None:
        name = self.time.column
        row = batch.data.slice(index, 1).to_pylist()
        state = "null" if row[0][name] is None else "out of range"
        problem = f"event time column {name!r} of the {self._side} side is {state}"
        if self._failures.on_error != "raise":
            self._failures.failed(DataError(problem), row, index, batch)
            return
        place = position(batch, index)
        source = f", read from {place}" if place else ""
        raise DataError(
            f"{self._who(self._failures.uid)}: {problem} in row {index} of its batch "
            f"{truncated(row[0])}{source}: nobody knows what belongs to it. Filter such rows out "
            f"before the join, or pass on_error='skip' or on_error='dead_letter' to go on without "
            f"them."
        )
