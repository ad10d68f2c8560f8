"""Windows, by the names people write.

Why it exists: ``from helios_ray.windows import TumblingWindow`` is part of the public face.

May import: operators, windowing.
"""

from __future__ import annotations

from helios_ray.operators.windows.results import ProcessWindowFunction, Window
from helios_ray.windowing import (
    CountWindow,
    GlobalWindow,
    SessionWindow,
    SlidingWindow,
    Trigger,
    TumblingWindow,
)

__all__ = [
    "CountWindow",
    "GlobalWindow",
    "ProcessWindowFunction",
    "SessionWindow",
    "SlidingWindow",
    "Trigger",
    "TumblingWindow",
    "Window",
]
