"""Time that only grows and starts out as wall clock time.

Why it exists: timers, pacing and timeouts must not jump when somebody sets the clock, and
processing time must still look like a date.

May import: nothing of the package.
"""

from __future__ import annotations

import time


class Clock:
    """Seconds since the Unix epoch when it was made, plus monotonic time since.

    Example:
        >>> clock = Clock()
        >>> clock.now() <= clock.now()
        True
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds."""
        return self._offset + time.monotonic()
