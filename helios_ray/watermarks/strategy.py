"""Watermark strategies: how a source is told to derive event time, as plain data.

Why it exists: a strategy travels in the plan to every source task, where it makes a generator
for each split. It says nothing of how the source is read.

May import: errors, and event time and generators of this room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pyarrow as pa

from helios_ray.errors import ConfigError, MissingColumnError
from helios_ray.watermarks.event_time import MICROSECOND, event_time_us, nearest
from helios_ray.watermarks.generators import (
    STAMP,
    BoundedOutOfOrderness,
    ProcessingTime,
    WatermarkColumn,
    WatermarkGenerator,
    taken,
)

CLOCK_INTERVAL = timedelta(milliseconds=200)
"""How often the watermark follows a clock while there are no rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkAlignment:
    """Sources that wait for each other; see :meth:`WatermarkStrategy.with_alignment`.

    Args:
        group: its name within the job.
        max_drift: microseconds that a source may be ahead of the slowest of the group.
        update_interval: microseconds after which a source says again how far it is.
    """

    group: str
    max_drift: int
    update_interval: int

    def __post_init__(self) -> None:
        if not self.group:
            raise ConfigError(
                "with_alignment(group=…) must name the group of sources, got ''. Sources of one "
                "job that give the same name wait for each other."
            )
        for name in ("max_drift", "update_interval"):
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"with_alignment({name}=…) must be positive, got {getattr(self, name)} "
                    f"microseconds. Leave with_alignment out to let each source run."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkStrategy:
    """How a source derives watermarks. Build one with the class methods.

    Each split has a watermark of its own; that of a subtask is their minimum, and it never
    goes back. In that minimum

    - a split that has ended no longer counts, nor does one that is idle (``with_idleness``);
    - a split that waits its turn, because the source reads few at a time
      (``Source.concurrent_splits``), counts with where it stands in the checkpoint, and before
      its first row holds event time back altogether: whatever it brings is then not late. Where
      splits follow each other in time, say so: ``with_ordered_splits``;
    - a split that is not known yet cannot count: what a later look at the source finds may be
      late.

    Args:
        column: the event time of rows: a timestamp, or an integer of microseconds.
        out_of_orderness: microseconds that rows may come later than greater ones.
        idleness: microseconds without rows after which a split stops holding time back.
        watermark_column: where rows say themselves what is complete.
        factory: makes a user's generator.
        from_clock: time is when rows are read, and ``column`` is added to them.
        update_interval: microseconds after which generators are told the time.
        ordered_splits: a split that waits its turn does not hold time back.
        alignment: which sources wait for each other.

    Example:
        >>> s = WatermarkStrategy.bounded_out_of_orderness("ts", timedelta(seconds=2))
        >>> s.column, s.out_of_orderness
        ('ts', 2000000)
    """

    column: str
    out_of_orderness: int = 0
    idleness: int | None = None
    watermark_column: str | None = None
    factory: Callable[[], WatermarkGenerator] | None = None
    from_clock: bool = False
    update_interval: int | None = None
    ordered_splits: bool = False
    alignment: WatermarkAlignment | None = None

    def __post_init__(self) -> None:
        if not self.column:
            raise ConfigError(
                "WatermarkStrategy.column must name the event time column, got ''. "
                "Pass the name of a timestamp column."
            )
        if self.watermark_column == "":
            raise ConfigError(
                "WatermarkStrategy.watermark_column must name a column, got ''. Pass the name of "
                "the column that says what is complete."
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
        if self.update_interval is not None and self.update_interval <= 0:
            raise ConfigError(
                f"WatermarkStrategy.update_interval must be positive, got {self.update_interval} "
                f"microseconds. Leave it out if watermarks follow rows alone."
            )
        ways = [self.out_of_orderness > 0, self.watermark_column is not None]
        ways += [self.factory is not None, self.from_clock]
        if sum(ways) > 1:
            raise ConfigError(
                "WatermarkStrategy takes one of out_of_orderness, watermark_column, factory and "
                "from_clock, got several. Build it with one of its class methods."
            )
        if self.from_clock and (self.idleness is not None or self.alignment is not None):
            raise ConfigError(
                "WatermarkStrategy.processing_time follows a clock: it is never idle and never "
                "ahead. Leave with_idleness and with_alignment out."
            )

    # --------------------------------------------------------------------------- ways

    @classmethod
    def monotonic(cls, column: str) -> WatermarkStrategy:
        """Event times never go back within a split."""
        return cls(column=column)

    @classmethod
    def bounded_out_of_orderness(cls, column: str, delay: timedelta) -> WatermarkStrategy:
        """Rows may come up to ``delay`` later than rows with greater event times."""
        return cls(column=column, out_of_orderness=delay // MICROSECOND)

    @classmethod
    def from_column(cls, column: str, watermark_column: str) -> WatermarkStrategy:
        """The rows say themselves how far event time has come.

        Args:
            column: event time of the rows.
            watermark_column: a timestamp, or an integer of microseconds. A value ``w`` in it
                promises that no later batch of the split brings a row with an event time at or
                before ``w``. The greatest value seen counts; nulls say nothing.

        Example:
            >>> WatermarkStrategy.from_column("ts", "complete_to").watermark_column
            'complete_to'
        """
        return cls(column=column, watermark_column=watermark_column)

    @classmethod
    def custom(
        cls,
        column: str,
        generator_factory: Callable[[], WatermarkGenerator],
        *,
        update_interval: timedelta | None = None,
    ) -> WatermarkStrategy:
        """A generator of one's own, for each split.

        Args:
            column: event time of the rows.
            generator_factory: makes a generator; picklable: a class, or a function of a module.
            update_interval: how often ``on_processing_time`` is called; never if left out.

        Raises:
            ConfigError: ``generator_factory`` cannot be called, or the interval is not positive.
        """
        if not callable(generator_factory):
            raise ConfigError(
                f"WatermarkStrategy.custom expects a function that makes a generator, got "
                f"{generator_factory!r}. Pass a subclass of WatermarkGenerator, or a function."
            )
        every = None if update_interval is None else update_interval // MICROSECOND
        return cls(column=column, factory=generator_factory, update_interval=every)

    @classmethod
    def processing_time(cls, column: str = "processing_time") -> WatermarkStrategy:
        """Time is when rows are read: there are no late rows, and no reproducible windows.

        Args:
            column: added to the rows: ``timestamp[us, UTC]``. The watermark follows the
                clock, also while there are no rows, every 200 ms.
        """
        return cls(column=column, from_clock=True, update_interval=CLOCK_INTERVAL // MICROSECOND)

    # ----------------------------------------------------------------------- additions

    def with_idleness(self, timeout: timedelta) -> WatermarkStrategy:
        """A split that has no rows for ``timeout`` stops holding event time back, and a subtask
        all of whose open splits are so no longer holds back those downstream. A split that may
        not be read, because of an alignment, is not idle.
        """
        return replace(self, idleness=timeout // MICROSECOND)

    def with_ordered_splits(self) -> WatermarkStrategy:
        """The splits of a subtask follow each other in event time, as they are listed (after a
        change of parallelism: by their ids). One that waits its turn and has not been begun does
        not hold time back. Rows of a split that breaks this are late.
        """
        return replace(self, ordered_splits=True)

    def with_alignment(
        self,
        group: str,
        max_drift: timedelta,
        update_interval: timedelta = timedelta(seconds=1),
    ) -> WatermarkStrategy:
        """A fast source waits for the slow ones of its group, and a fast split likewise.

        A split whose watermark is more than ``max_drift`` ahead of the least of the group is
        not read until the others have caught up; what operators keep for those that are behind
        stays bounded. Idle and ended sources hold nobody back; one that has not come to its
        first row does: until then the others read no further than ``max_drift`` beyond where
        they began.

        Not for a source that others are waiting for anyway, such as the table of an enrichment:
        it must come to its end first.

        Args:
            group: sources of one job that give the same name belong together.
            max_drift: how far ahead. The least that makes sense is the event time that goes by
                while one batch is read.
            update_interval: how often a source says how far it is, at least. One that gets on
                fast, or has to wait, says so up to twenty times as often.

        Raises:
            ConfigError: no name, or a duration that is not positive.

        Source: Flink's FLIP-182 and FLIP-217.
        """
        alignment = WatermarkAlignment(
            group=group,
            max_drift=max_drift // MICROSECOND,
            update_interval=update_interval // MICROSECOND,
        )
        return replace(self, alignment=alignment)

    # ---------------------------------------------------------------------------- use

    def generator(self) -> WatermarkGenerator:
        """A fresh generator, for one split; under processing time, for all."""
        if self.factory is not None:
            return self.factory()
        if self.from_clock:
            return ProcessingTime(self.column)
        if self.watermark_column is not None:
            return WatermarkColumn(self.watermark_column)
        return BoundedOutOfOrderness(self.column, self.out_of_orderness)

    def check(self, schema: pa.Schema) -> None:
        """Raise at plan time if rows of ``schema`` do not fit.

        Raises:
            MissingColumnError: the schema has no such column; offers the nearest.
            SchemaChangedError: the column is no time.
            PlanError: the column that processing time would add is there already.
        """
        if self.from_clock:
            if self.column in schema.names:
                raise taken(self.column, schema.names)
            return
        for name in (self.column, self.watermark_column):
            if name is None:
                continue
            if name not in schema.names:
                raise MissingColumnError(
                    f"watermark strategy reads column {name!r}, but the source has "
                    f"{schema.names}. Name one of those.{nearest(name, schema.names)}"
                )
            event_time_us(pa.array([], schema.field(name).type), name)

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """What rows of ``schema`` look like when they leave the source.

        Raises:
            MissingColumnError, SchemaChangedError, PlanError: as for :meth:`check`.

        Example:
            >>> strategy = WatermarkStrategy.processing_time("read_at")
            >>> strategy.output_schema(pa.schema([("x", pa.int64())])).names
            ['x', 'read_at']
        """
        self.check(schema)
        return schema.append(pa.field(self.column, STAMP)) if self.from_clock else schema
