"""How event time is read from rows: watermark strategies and their generators.

Why it exists: a strategy is plain data that travels in the plan; a generator is the small
state machine that a source task runs, one per split, so that splits read at different
speeds do not make each other's rows late.

May import: elements, errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.errors import ConfigError, MissingColumnError, SchemaChangedError

MICROSECOND = timedelta(microseconds=1)


def event_time_us(column: pa.Array, name: str) -> pa.Array:
    """Return a timestamp column as int64 microseconds since the Unix epoch, UTC.

    Integers are taken as microseconds already; timestamps of any unit are converted
    (nanoseconds round down); a zone is dropped, since Arrow stores UTC.

    Raises:
        SchemaChangedError: the column is neither a timestamp nor an integer.
    """
    kind = column.type
    if pa.types.is_timestamp(kind):
        unit = pa.timestamp("us", kind.tz)
        return pc.cast(pc.cast(column, unit, safe=False), pa.int64())
    if pa.types.is_integer(kind):
        return pc.cast(column, pa.int64())
    raise SchemaChangedError(
        f"event time column {name!r} must be a timestamp or an integer of microseconds, got {kind}"
        f". Cast it before the source's watermark strategy reads it."
    )


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
            guess = difflib.get_close_matches(self.column, schema.names, n=1)
            hint = f" Did you mean {guess[0]!r}?" if guess else ""
            raise MissingColumnError(
                f"{where}: there is no event time column {self.column!r}; there are "
                f"{schema.names}.{hint}"
            )
        kind = schema.field(self.column).type
        event_time_us(pa.array([], kind), self.column)
        return kind

    def read(self, data: pa.RecordBatch) -> pa.Array:
        """The event time of every row: int64 microseconds, null where it is not known."""
        times = event_time_us(data.column(self.column), self.column)
        return pc.add(times, self.shift) if self.shift else times


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkStrategy:
    """How a source derives watermarks. Build one with the class methods.

    Example:
        >>> s = WatermarkStrategy.bounded_out_of_orderness("ts", timedelta(seconds=2))
        >>> s.column, s.out_of_orderness
        ('ts', 2000000)
    """

    column: str
    out_of_orderness: int = 0
    idleness: int | None = None

    def __post_init__(self) -> None:
        if not self.column:
            raise ConfigError(
                "WatermarkStrategy.column must name the event time column, got ''. "
                "Pass the name of a timestamp column."
            )
        if self.out_of_orderness < 0:
            raise ConfigError(
                f"WatermarkStrategy.out_of_orderness must be zero or more microseconds, got "
                f"{self.out_of_orderness}. Use monotonic(column) for ordered input."
            )
        if self.idleness is not None and self.idleness <= 0:
            raise ConfigError(
                f"WatermarkStrategy.idleness must be positive, got {self.idleness} microseconds. "
                f"Leave with_idleness out if the source is never idle."
            )

    @classmethod
    def monotonic(cls, column: str) -> WatermarkStrategy:
        """Event times never go back within a split."""
        return cls(column=column)

    @classmethod
    def bounded_out_of_orderness(cls, column: str, delay: timedelta) -> WatermarkStrategy:
        """Rows may come up to ``delay`` later than rows with greater event times."""
        return cls(column=column, out_of_orderness=delay // MICROSECOND)

    def with_idleness(self, timeout: timedelta) -> WatermarkStrategy:
        """A subtask that reads nothing for ``timeout`` stops holding the watermark back."""
        return WatermarkStrategy(
            column=self.column,
            out_of_orderness=self.out_of_orderness,
            idleness=timeout // MICROSECOND,
        )

    def generator(self) -> WatermarkGenerator:
        """A fresh generator, for one split."""
        return WatermarkGenerator(self)

    def check(self, schema: pa.Schema) -> None:
        """Raise at plan time if the column is not there or is no time.

        Raises:
            MissingColumnError: the schema has no such column.
        """
        if self.column not in schema.names:
            raise MissingColumnError(
                f"watermark strategy reads column {self.column!r}, but the source has "
                f"{schema.names}. Name one of those."
            )
        event_time_us(pa.array([], schema.field(self.column).type), self.column)


class WatermarkGenerator:
    """Follows the greatest event time of one split. Pure: state in, watermark out."""

    def __init__(self, strategy: WatermarkStrategy) -> None:
        self._strategy = strategy
        self._greatest = MIN_TIMESTAMP

    def observe(self, data: pa.RecordBatch) -> None:
        """Take note of the event times of a batch; nulls are ignored."""
        if data.num_rows == 0:
            return
        column = event_time_us(data.column(self._strategy.column), self._strategy.column)
        greatest = pc.max(column).as_py()
        if greatest is not None and greatest > self._greatest:
            self._greatest = greatest

    @property
    def watermark(self) -> int:
        """Watermark in µs: one before what may still come; ``MIN_TIMESTAMP`` before any row."""
        if self._greatest == MIN_TIMESTAMP:
            return MIN_TIMESTAMP
        return self._greatest - self._strategy.out_of_orderness - 1

    def state(self) -> Mapping[str, Any]:
        """JSON, for the snapshot (rule 12)."""
        return {"greatest": self._greatest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        self._greatest = int(state["greatest"])
