"""How event time is read from rows: columns, watermark strategies and their generators.

Why it exists: a strategy is plain data that travels in the plan; a generator is the small
state machine that a source task runs, one per split, so that splits read at different
speeds do not make each other's rows late.

    event_time   what a value of a time column means, in microseconds
    generators   from the rows of a split to its watermark; the contract of a user's own
    strategy     which generator, idleness, alignment

May import: elements, errors.
"""

from __future__ import annotations

from helios_ray.watermarks.event_time import MICROSECOND, EventTime, event_time_us
from helios_ray.watermarks.generators import (
    BoundedOutOfOrderness,
    ProcessingTime,
    WatermarkColumn,
    WatermarkGenerator,
)
from helios_ray.watermarks.strategy import WatermarkAlignment, WatermarkStrategy

__all__ = [
    "MICROSECOND",
    "BoundedOutOfOrderness",
    "EventTime",
    "ProcessingTime",
    "WatermarkAlignment",
    "WatermarkColumn",
    "WatermarkGenerator",
    "WatermarkStrategy",
    "event_time_us",
]
