"""Event time at a source: that of each split, of the subtask, idleness, processing time.

Why it exists: the rule by which the watermarks of splits become one (see
:class:`~helios_ray.watermarks.WatermarkStrategy`) is a matter of its own, apart from reading.

A split that had no rows for the time of ``with_idleness``, although it was asked, no longer
counts. When that goes for all that are open, the subtask says ``Idle``, until the next row. A
source without a strategy has no time to say: it is idle from the start, so that it holds
nobody back who reads it together with a timed stream.

May import: watermarks, elements, errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import pyarrow as pa

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP, Idle, StreamElement, Watermark
from helios_ray.errors import HeliosError, UserFunctionError
from helios_ray.watermarks import ProcessingTime, WatermarkGenerator, WatermarkStrategy


class SplitTime:
    """Event time of one split.

    Args:
        strategy: makes the generator.
        uid: of the source; named when a user's generator fails.
        split_id: likewise.
        state: from the checkpoint; empty for a split of which nothing had been read.
    """

    def __init__(
        self, strategy: WatermarkStrategy, uid: str, split_id: str, state: Mapping[str, Any]
    ) -> None:
        self._where = f"source {uid!r}, split {split_id!r}"
        self._idleness = strategy.idleness
        self._user: bool = strategy.factory is not None
        with self._calling("its factory"):
            self._generator: WatermarkGenerator = strategy.generator()
        if state:
            with self._calling("restore"):
                self._generator.restore(state)
        self.idle = False
        self.paused = False
        self._silent_since: float | None = None
        self._watermark = self._ask()

    @property
    def watermark(self) -> int:
        """Microseconds; ``MIN_TIMESTAMP`` while nothing can be said."""
        return self._watermark

    def observe(self, data: pa.RecordBatch, now: float) -> None:
        """Rows have been read."""
        self._silent_since, self.idle = now, False
        with self._calling("observe"):
            self._generator.observe(data)
        self._watermark = self._ask()

    def look(self, now: float) -> None:
        """Time has passed; is the split idle?"""
        if self._idleness is None:
            return
        if self.paused:
            # It is not asked: its silence says nothing, and it must count, or nobody would see
            # that it could go on.
            self._silent_since, self.idle = now, False
        elif self._silent_since is None:
            self._silent_since = now
        due = self.idle_at
        if due is not None and now >= due:
            self.idle = True

    def tell_time(self, now: int) -> None:
        """Processing time is ``now`` (µs)."""
        with self._calling("on_processing_time"):
            self._generator.on_processing_time(now)
        self._watermark = self._ask()

    @property
    def idle_at(self) -> float | None:
        """When the split will count as idle if it stays silent."""
        if self._idleness is None or self.idle or self.paused or self._silent_since is None:
            return None
        return self._silent_since + self._idleness / 1_000_000

    def state(self) -> dict[str, Any]:
        """JSON, for the snapshot."""
        with self._calling("state"):
            state = dict(self._generator.state())
            json.dumps(state)
            return state

    def _ask(self) -> int:
        with self._calling("watermark"):
            watermark = self._generator.watermark
            if isinstance(watermark, bool) or not isinstance(watermark, int):
                raise TypeError(f"expected microseconds as an int, got {watermark!r}")
            # The end of time is for the runtime to say.
            return max(MIN_TIMESTAMP, min(watermark, MAX_TIMESTAMP - 1))

    def _calling(self, method: str) -> AbstractContextManager[None]:
        return _UserCode(self._where, method, blame=self._user)


class _UserCode:
    """Turns what a user's generator raises into an error that says whose it is.

    Args:
        blame: the code is a user's; errors of our own generators pass as they are.
    """

    def __init__(self, where: str, method: str, *, blame: bool) -> None:
        self._where = where
        self._method = method
        self._blame = blame

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._blame and isinstance(error, Exception) and not isinstance(error, HeliosError):
            raise UserFunctionError(
                f"{self._where}: the watermark generator failed in {self._method}: "
                f"{type(error).__name__}: {error}. See WatermarkGenerator for what it must do."
            ) from error


class SourceTime:
    """Event time of one subtask of a source.

    Args:
        strategy: None for a source without time.
        uid: of the source.
    """

    def __init__(self, strategy: WatermarkStrategy | None, uid: str) -> None:
        self._strategy = strategy
        self._uid = uid
        self.watermark = MIN_TIMESTAMP
        self._told_idle = False
        self._tick_at: int | None = None
        self._stamps: ProcessingTime | None = None
        if strategy is not None and strategy.from_clock:
            self._stamps = ProcessingTime(strategy.column)

    def restore(self, watermark: int) -> None:
        """Continue at what had been said before the checkpoint."""
        self.watermark = watermark
        if self._stamps is not None:
            self._stamps.restore({"watermark": watermark})

    def split(self, split_id: str, state: Mapping[str, Any]) -> SplitTime | None:
        """Event time of a split, unless it has none of its own."""
        if self._strategy is None or self._stamps is not None:
            return None
        return SplitTime(self._strategy, self._uid, split_id, state)

    def stamp(self, data: pa.RecordBatch, now: float) -> pa.RecordBatch:
        """Rows as they leave the source: under processing time, with the time."""
        if self._stamps is None:
            return data
        self._stamps.on_processing_time(_micros(now))
        return self._stamps.stamp(data)

    def greeting(self) -> list[StreamElement]:
        """What the source has to say before anything else, once."""
        if self._strategy is not None or self._told_idle:
            return []
        self._told_idle = True
        return [Idle()]

    def marks(
        self,
        now: float,
        reading: Iterable[SplitTime | None],
        waiting: Iterable[SplitTime | None],
        *,
        had_rows: bool = False,
    ) -> list[StreamElement]:
        """What there is to say about event time now.

        Args:
            now: seconds.
            reading: time of the splits that are open.
            waiting: of those that wait their turn; None where there is nothing to say yet.
            had_rows: rows have just been read.
        """
        if self._strategy is None:
            return []
        ticks = self._ticks(now)
        if self._stamps is not None:
            self._stamps.on_processing_time(_micros(now))
            return self._move(self._stamps.watermark) if had_rows or ticks else []
        times = [t for t in reading if t is not None]
        for t in times:
            if ticks:
                t.tell_time(_micros(now))
            t.look(now)
        return self._merge(times, waiting, had_rows=had_rows)

    def _merge(
        self, times: list[SplitTime], waiting: Iterable[SplitTime | None], *, had_rows: bool
    ) -> list[StreamElement]:
        assert self._strategy is not None
        unread = [] if self._strategy.ordered_splits else [MIN_TIMESTAMP]
        turns = [m for t in waiting for m in (unread if t is None else [t.watermark])]
        active = [t.watermark for t in times if not t.idle]
        idle = bool(times) and not active
        if idle:
            # As far as any had come, and no further.
            active = [max(t.watermark for t in times)]
        marks = self._move(min([*active, *turns])) if active else []
        if not marks and had_rows and self._told_idle and self.watermark > MIN_TIMESTAMP:
            # Those downstream take a watermark as the sign of life.
            marks.append(Watermark(self.watermark))
        if marks:
            self._told_idle = False
        if idle and not self._told_idle:
            self._told_idle = True
            marks.append(Idle())
        return marks

    def _move(self, timestamp: int) -> list[StreamElement]:
        if timestamp <= self.watermark:
            return []
        self.watermark = timestamp
        return [Watermark(timestamp)]

    def _ticks(self, now: float) -> bool:
        assert self._strategy is not None
        interval, micros = self._strategy.update_interval, _micros(now)
        if interval is None or (self._tick_at is not None and micros < self._tick_at):
            return False
        self._tick_at = micros + interval
        return True

    def wakeups(self, reading: Iterable[SplitTime | None]) -> list[float]:
        """Times at which ``marks`` may have something to say without rows."""
        times = [t.idle_at for t in reading if t is not None]
        times.append(None if self._tick_at is None else self._tick_at / 1_000_000)
        return [t for t in times if t is not None]


def _micros(now: float) -> int:
    return round(now * 1_000_000)
