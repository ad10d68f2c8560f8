"""What operators share that look at the rows of two streams window by window.

Why it exists: the window join and co_group differ only in what they make of the rows of a key
and window; keeping rows until their windows end, and the state of that, is here.

May import: errors, elements, operators, watermarks, windowing, state, Arrow, numpy.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError
from helios_ray.operators.base import StateTable
from helios_ray.operators.joins.columns import SUFFIX
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.joins.side import empty_rows
from helios_ray.operators.joins.sides import LEFT, NAMES, InputSchemas
from helios_ray.operators.joins.timed import SideRows, TimedJoinOperator
from helios_ray.operators.joins.window_rows import TIME, Ended, SessionRows, SlicedRows, WindowRows
from helios_ray.operators.user_functions import OnError
from helios_ray.operators.window_aggregates.groups import Mask
from helios_ray.operators.windows.results import WINDOW_END, WINDOW_START
from helios_ray.watermarks import EventTime
from helios_ray.windowing import SessionWindow, SlidingWindow, TumblingWindow


class TwoSidedWindowOperator(TimedJoinOperator):
    """Base of the window join and of co_group.

    Rows are kept until the watermark passes the end of their windows. A row is late when all
    windows it belongs to have ended. Its session is merged with those of its key first: an old
    row that touches one that goes on is not late.

    Args:
        window: tumbling, sliding, or sessions of the rows of both sides.
        left_keys, right_keys, left_time, right_time, on_error, input_schemas, suffix, joined:
            as for the base.

    Raises:
        ConfigError: another kind of window; and as the base does.
    """

    def __init__(
        self,
        left_keys: Sequence[str],
        right_keys: Sequence[str],
        left_time: str | EventTime,
        right_time: str | EventTime,
        window: TumblingWindow | SlidingWindow | SessionWindow,
        *,
        on_error: OnError,
        input_schemas: InputSchemas,
        suffix: str = SUFFIX,
        joined: bool = True,
    ) -> None:
        if not isinstance(window, (TumblingWindow, SlidingWindow, SessionWindow)):
            raise ConfigError(
                f"{self.what}: window must be a TumblingWindow, SlidingWindow or SessionWindow, "
                f"got {window!r}: other kinds do not tell when both sides are there."
            )
        super().__init__(
            left_keys, right_keys, left_time, right_time,
            on_error=on_error, input_schemas=input_schemas, suffix=suffix, joined=joined,
        )  # fmt: skip
        self._rows: WindowRows
        if isinstance(window, SessionWindow):
            self._rows = SessionRows(self.clock, window)
        else:
            self._rows = SlicedRows(self.clock, window)

    def window_fields(self, left: pa.Schema | None) -> list[pa.Field]:
        """window_start and window_end, in the zone of the left's time column."""
        column = self.times[LEFT].time.column
        kind = left.field(column).type if left is not None else pa.int64()
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        return [pa.field(name, pa.timestamp("us", zone)) for name in (WINDOW_START, WINDOW_END)]

    # ------------------------------------------------------------------------------- rows

    def late(self, index: int, rows: SideRows) -> Mask | None:
        return self._rows.late(rows.times, rows.slots, self.sides.space)

    def fold(self, index: int, rows: SideRows) -> list[Batch]:
        self._rows.add(index, rows.times, rows.slots, rows.data)
        return []

    def on_watermark(self, timestamp: int) -> list[Batch]:
        if not self.clock.advance(timestamp):
            return []
        if all(self.sides.schema(index) is None for index in range(len(NAMES))):
            self._rows.follow_clock()
            return []
        out: list[Batch] = []
        for ended in self._rows.take_ended(self.sides.space):
            out += self.finish(ended)
        self.forget_keys()
        return out + self._failures.drain()

    @abstractmethod
    def finish(self, ended: Ended) -> list[Batch]:
        """The results of windows that have ended."""

    def rows_of(self, ended: Ended, index: int) -> pa.RecordBatch:
        """The rows of a side that ``ended`` speaks of."""
        schema = self.sides[index].required()
        run = ended.runs[index]
        if run is None:
            return empty_rows(schema)
        return pa.RecordBatch.from_arrays(run.columns[TIME + 1 :], schema=schema)

    # ------------------------------------------------------------------------------ state

    def live_rows(self) -> int:
        return sum(store.rows for store in self._rows.stores)

    def used_slots(self) -> Ints:
        return np.concatenate([store.used_slots() for store in self._rows.stores])

    def remap(self, mapping: Ints) -> None:
        for store in self._rows.stores:
            store.remap(mapping)

    def kept(self, index: int) -> pa.Table:
        return pa.concat_tables(self.kept_runs(index, self._rows.stores[index], TIME + 1))

    def restore(self, state: Mapping[str, StateTable]) -> None:
        super().restore(state)
        self._rows.follow_clock()
