"""Watermark generators: what turns the rows of one split into the progress of event time.

Why it exists: a generator is the small state machine that a source task runs, one per split,
so that splits read at different speeds do not make each other's rows late. The contract is
public: a user's own generator is a subclass of :class:`WatermarkGenerator`.

A watermark is a promise about one split: no row with an event time at or before it is still
to come. It counts from the batch after the one that it was derived from.

May import: elements, errors, and event time of this room.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.errors import MissingColumnError, PlanError
from helios_ray.watermarks.event_time import event_time_us, nearest

STAMP = pa.timestamp("us", tz="UTC")
"""The type of a processing time column."""


class WatermarkGenerator(ABC):
    """Follows the event time of one split. Pure: state in, watermark out.

    Subclass it for :meth:`WatermarkStrategy.custom`. One instance serves one split, on one
    thread; its state travels in every checkpoint, beside the position of the split.

    Example:
        Rows of type ``mark`` say how far a split has come::

            class Marks(WatermarkGenerator):
                def __init__(self):
                    self.greatest = MIN_TIMESTAMP

                def observe(self, data):
                    marks = data.filter(pc.equal(data["type"], "mark"))
                    if marks.num_rows:
                        self.greatest = max(self.greatest, pc.max(marks["ts"]).as_py())

                @property
                def watermark(self):
                    return self.greatest

                def state(self):
                    return {"greatest": self.greatest}

                def restore(self, state):
                    self.greatest = state["greatest"]
    """

    @abstractmethod
    def observe(self, data: pa.RecordBatch) -> None:
        """Take note of rows that have been read, in the order of the split."""

    @property
    @abstractmethod
    def watermark(self) -> int:
        """Microseconds since the Unix epoch; ``MIN_TIMESTAMP`` while nothing can be said.

        It should not go back; where it does, what had been promised stands.
        """

    @abstractmethod
    def state(self) -> Mapping[str, Any]:
        """What a fresh instance needs to continue (rule 12); JSON."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` returned, perhaps in another process."""

    def on_processing_time(self, now: int) -> None:
        """Time passes, with or without rows; called at each ``update_interval`` of a strategy
        that has one.

        Args:
            now: processing time, microseconds since the Unix epoch.
        """


class BoundedOutOfOrderness(WatermarkGenerator):
    """The greatest event time seen, less what rows may be late, less one.

    Args:
        column: event time of the rows; nulls are ignored.
        out_of_orderness: microseconds.

    Example:
        >>> generator = BoundedOutOfOrderness("ts", 10)
        >>> generator.observe(pa.record_batch({"ts": [100, 95]}))
        >>> generator.watermark
        89
    """

    def __init__(self, column: str, out_of_orderness: int = 0) -> None:
        self._column = column
        self._out_of_orderness = out_of_orderness
        self._greatest = MIN_TIMESTAMP

    def observe(self, data: pa.RecordBatch) -> None:
        """Take note of the event times of a batch."""
        greatest = _greatest(data, self._column)
        if greatest is not None and greatest > self._greatest:
            self._greatest = greatest

    @property
    def watermark(self) -> int:
        """One before what may still come."""
        if self._greatest == MIN_TIMESTAMP:
            return MIN_TIMESTAMP
        return max(MIN_TIMESTAMP, self._greatest - self._out_of_orderness - 1)

    def state(self) -> Mapping[str, Any]:
        return {"greatest": self._greatest}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._greatest = int(state["greatest"])


class WatermarkColumn(WatermarkGenerator):
    """The greatest value of a column in which the rows say themselves how far time has come.

    Args:
        column: a timestamp, or an integer of microseconds; nulls are ignored. Nanoseconds
            count once their whole microsecond is complete.

    Example:
        >>> generator = WatermarkColumn("complete")
        >>> generator.observe(pa.record_batch({"complete": [100, None, 90]}))
        >>> generator.watermark
        100
    """

    def __init__(self, column: str) -> None:
        self._column = column
        self._watermark = MIN_TIMESTAMP

    def observe(self, data: pa.RecordBatch) -> None:
        """Take note of what the rows say."""
        greatest = _greatest(data, self._column, complete=True)
        if greatest is not None and greatest > self._watermark:
            self._watermark = greatest

    @property
    def watermark(self) -> int:
        """The greatest value seen."""
        return self._watermark

    def state(self) -> Mapping[str, Any]:
        return {"watermark": self._watermark}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._watermark = int(state["watermark"])


class ProcessingTime(WatermarkGenerator):
    """Stamps rows with the time at which they are read; the watermark follows that clock.

    It never goes back, not even onto a machine whose clock is behind: what has been read after
    a restore is stamped later than whatever the watermark had passed before.

    Args:
        column: what the stamp is called.

    Example:
        >>> generator = ProcessingTime("read_at")
        >>> generator.on_processing_time(1_000_000)
        >>> generator.stamp(pa.record_batch({"x": [7]}))["read_at"].cast("int64").to_pylist()
        [1000000]
        >>> generator.watermark
        999999
    """

    def __init__(self, column: str) -> None:
        self._column = column
        self._now = MIN_TIMESTAMP

    def observe(self, data: pa.RecordBatch) -> None:
        """Rows say nothing here."""

    def on_processing_time(self, now: int) -> None:
        """The clock has moved."""
        self._now = max(self._now, now)

    def stamp(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """The rows with the time of the clock.

        Raises:
            PlanError: they have a column of that name already.
        """
        if self._column in data.schema.names:
            raise taken(self._column, data.schema.names)
        return data.append_column(
            self._column, pa.repeat(pa.scalar(self._now, STAMP), data.num_rows)
        )

    @property
    def watermark(self) -> int:
        """One before now: what is read from now on is stamped now, or later."""
        return max(MIN_TIMESTAMP, self._now - 1)

    def state(self) -> Mapping[str, Any]:
        return {"watermark": self.watermark}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state["watermark"] > MIN_TIMESTAMP:
            self._now = max(self._now, int(state["watermark"]) + 1)


def taken(column: str, names: list[str]) -> PlanError:
    """The error of a processing time column whose name the source uses itself."""
    return PlanError(
        f"processing time would go to column {column!r}, but the source has one of that name "
        f"among {names}. Choose another: WatermarkStrategy.processing_time('read_at')."
    )


def _greatest(data: pa.RecordBatch, name: str, *, complete: bool = False) -> int | None:
    """The greatest time in a column, in whole microseconds.

    Args:
        complete: not the microsecond that it lies in, but the last that is over with it.
    """
    if data.num_rows == 0:
        return None
    index = data.schema.get_field_index(name)
    if index < 0:
        raise MissingColumnError(
            f"the watermark strategy reads column {name!r}, but the rows have "
            f"{data.schema.names}.{nearest(name, data.schema.names)}"
        )
    column = data.column(index)
    if complete and pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        last = pc.max(pc.cast(column, pa.int64())).as_py()
        return None if last is None else (int(last) + 1) // 1000 - 1
    greatest = pc.max(event_time_us(column, name)).as_py()
    return None if greatest is None else int(greatest)
