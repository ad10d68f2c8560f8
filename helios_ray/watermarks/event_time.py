"""Event time as it stands in a column: where to find it, and how to read it as microseconds.

Why it exists: watermark strategies, windows, joins and timers must agree on what one value of
a time column means, to the microsecond.

May import: errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.errors import MissingColumnError, SchemaChangedError

MICROSECOND = timedelta(microseconds=1)


def event_time_us(column: pa.Array, name: str) -> pa.Array:
    """Return a timestamp column as int64 microseconds since the Unix epoch, UTC.

    Integers are taken as microseconds already; timestamps of any unit are converted
    (nanoseconds round down); a zone is dropped, since Arrow stores UTC.

    Raises:
        SchemaChangedError: the column is neither a timestamp nor an integer.

    Example:
        >>> event_time_us(pa.array([-1, 1999], pa.timestamp("ns")), "ts").to_pylist()
        [-1, 1]
    """
    kind = column.type
    if pa.types.is_timestamp(kind):
        if kind.unit == "ns":
            # A cast would round towards 1970.
            column = pc.floor_temporal(column, unit="microsecond")
        unit = pa.timestamp("us", kind.tz)
        return pc.cast(pc.cast(column, unit, safe=False), pa.int64())
    if pa.types.is_integer(kind):
        return pc.cast(column, pa.int64())
    raise SchemaChangedError(
        f"event time column {name!r} must be a timestamp or an integer of microseconds, got {kind}"
        f". Cast it before the source's watermark strategy reads it."
    )


def nearest(name: str, names: Sequence[str]) -> str:
    """`` Did you mean 'ts'?``, or nothing if no name is near."""
    guess = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {guess[0]!r}?" if guess else ""


@dataclass(frozen=True, slots=True)
class EventTime:
    """Where the rows of a stream carry their event time.

    Args:
        column: a timestamp, or an integer of microseconds.
        shift: microseconds to add. The result of a window belongs to the window's last
            instant, which is one before ``window_end``: a coarser window over it then gets it.

    Example:
        >>> EventTime("ts", -1).read(pa.record_batch({"ts": [10, None]})).to_pylist()
        [9, None]
    """

    column: str
    shift: int = 0

    @classmethod
    def of(cls, time: str | EventTime | None) -> EventTime | None:
        """A column's name as an event time; anything else as it is."""
        return cls(time) if isinstance(time, str) else time

    def check(self, schema: pa.Schema, where: str) -> pa.DataType:
        """The column's type.

        Raises:
            MissingColumnError: it is not in ``schema``; offers the nearest.
            SchemaChangedError: it is no time.
        """
        if self.column not in schema.names:
            raise MissingColumnError(
                f"{where}: there is no event time column {self.column!r}; there are "
                f"{schema.names}.{nearest(self.column, schema.names)}"
            )
        kind = schema.field(self.column).type
        event_time_us(pa.array([], kind), self.column)
        return kind

    def read(self, data: pa.RecordBatch) -> pa.Array:
        """The event time of every row: int64 microseconds, null where it is not known."""
        times = event_time_us(data.column(self.column), self.column)
        return pc.add(times, self.shift) if self.shift else times
