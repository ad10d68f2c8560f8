"""What a process function is given beside its rows: outputs, timers, the current key.

Why it exists: the face between user code and the operator that drives it. Times are
microseconds since the Unix epoch, UTC; a datetime is taken wherever a time is.

May import: elements, errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from helios_ray.errors import DataError
from helios_ray.operators.base import OperatorContext
from helios_ray.operators.process.outputs import Outputs, as_table
from helios_ray.operators.rows import Row, as_row
from helios_ray.operators.segments import Segments
from helios_ray.state.keyed.backend import KeyedBackend
from helios_ray.state.keyed.declarations import State
from helios_ray.state.keyed.timers import TimerQueue

TimeDomain: TypeAlias = Literal["event", "processing"]
S = TypeVar("S", bound=State)

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def microseconds(time: Any, where: str) -> int:
    """A time in µs; a datetime without a zone is UTC.

    Raises:
        DataError: neither an integer nor a datetime.
    """
    if isinstance(time, datetime):
        aware = time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)
        return (aware - _EPOCH) // timedelta(microseconds=1)
    if isinstance(time, (int, np.integer)) and not isinstance(time, bool):
        return int(time)
    raise DataError(
        f"{where}: a timer needs a datetime or an integer of microseconds, got {time!r} "
        f"({type(time).__name__})."
    )


class TimerService:
    """Timers of the current key, and the clocks.

    A key has at most one timer per time and domain: registering it again changes nothing. An
    event-time timer at or before the watermark fires as soon as the current call returns, so
    that results do not depend on how the stream was cut into batches.
    """

    __slots__ = ("_backend", "_event", "_processing", "_scope", "overdue")

    def __init__(self, backend: KeyedBackend) -> None:
        self._backend = backend
        self._scope = backend.scope
        self._event = backend.event_timers
        self._processing = backend.processing_timers
        self.overdue = False

    @property
    def current_watermark(self) -> int:
        """Event time so far (µs); ``MIN_TIMESTAMP`` at first, ``MAX_TIMESTAMP`` at the end."""
        return self._scope.watermark

    @property
    def current_processing_time(self) -> int:
        """Processing time (µs) of the current batch."""
        return self._scope.now

    def register_event_time(self, time: int | datetime) -> None:
        """Call ``on_timer`` for the current key when the watermark reaches ``time``."""
        timestamp = self._register(self._event, time)
        if timestamp <= self._scope.watermark:
            self.overdue = True

    def register_processing_time(self, time: int | datetime) -> None:
        """Call ``on_timer`` for the current key when processing time reaches ``time``."""
        self._register(self._processing, time)

    def delete_event_time(self, time: int | datetime) -> None:
        """Remove an event-time timer of the current key, if there is one."""
        self._delete(self._event, time)

    def delete_processing_time(self, time: int | datetime) -> None:
        """Remove a processing-time timer of the current key, if there is one."""
        self._delete(self._processing, time)

    def _register(self, timers: TimerQueue, time: int | datetime) -> int:
        scope = self._scope
        timestamp = time if type(time) is int else microseconds(time, scope.where)
        slot = scope.slot if scope.slot >= 0 else scope.require_key("timers")
        if timers.register(slot, timestamp) and scope.undo is not None:
            scope.undo.append(partial(timers.delete, slot, timestamp))
        return timestamp

    def _delete(self, timers: TimerQueue, time: int | datetime) -> None:
        scope = self._scope
        timestamp = time if type(time) is int else microseconds(time, scope.where)
        slot = scope.require_key("timers")
        if timers.delete(slot, timestamp) and scope.undo is not None:
            scope.undo.append(partial(timers.register, slot, timestamp))


class FunctionContext:
    """What ``open`` is given.

    Attributes:
        operator: uid, subtask and parallelism of the operator.
        timer_service: timers and clocks; timers need a current key.
    """

    def __init__(self, operator: OperatorContext, backend: KeyedBackend, outputs: Outputs) -> None:
        self.operator = operator
        self.timer_service = TimerService(backend)
        self._backend = backend
        self._scope = backend.scope
        self._outputs = outputs
        self._may_declare = True

    def state(self, declaration: S) -> S:
        """Declare state in ``open``: the state itself, to be kept on the function.

        Raises:
            ConfigError: it has no name, or another state has that name.
            DataError: called after ``open``.
        """
        if not self._may_declare:
            raise DataError(
                f"{self._scope.where}: state is declared in open, or as an attribute of the "
                f"function's class, so that it can be restored. Declare it there."
            )
        found: Any = self._backend.declare(declaration)
        return found  # type: ignore[no-any-return]

    def opened(self) -> None:
        """``open`` is over."""
        self._may_declare = False


class ProcessContext(FunctionContext):
    """What a call for one row or timer is given.

    Attributes:
        time_domain: in ``on_timer``, which clock the timer is of; else None.
    """

    def __init__(self, operator: OperatorContext, backend: KeyedBackend, outputs: Outputs) -> None:
        super().__init__(operator, backend, outputs)
        self.time_domain: TimeDomain | None = None
        self._append: Callable[[Row], None] = outputs.main.rows.append
        self._keys: dict[int, Any] = {}
        self._keys_of: Any = None

    @property
    def current_key(self) -> Any:
        """The key of this row or timer: its value, or a tuple of several key columns' values.

        Raises:
            DataError: there is none, as in ``process_broadcast_element``.
        """
        slot = self._scope.require_key("current_key")
        if self._keys_of is not self._scope.touched:
            self._load_keys()
        if slot not in self._keys:
            self._keys[slot] = self._scope.key(slot)
        return self._keys[slot]

    def _load_keys(self) -> None:
        index, touched = self._scope.index, self._scope.touched
        assert index is not None
        columns = [column.to_pylist() for column in index.take_keys(touched).columns]
        keys = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        self._keys = dict(zip(touched.tolist(), keys, strict=True))
        self._keys_of = touched

    def emit(self, row: Any) -> None:
        """Send a row (or a plain value, as ``item``) to the main output."""
        self._append(row.copy() if type(row) is dict else dict(as_row(row)))

    def output(self, tag: str, row: Any) -> None:
        """Send a row to a side output that was declared.

        Raises:
            DataError: it was not.
        """
        side = self._outputs.side(tag)
        side.rows.append(row.copy() if type(row) is dict else dict(as_row(row)))


class BatchContext(ProcessContext):
    """What ``process_batches`` is given.

    Attributes:
        keys: the keys of the batch, one row each, in the order in which they first came.
        starts: the first row of each key in the table.
        counts: how many rows each key has.
        key_of_row: for each row of the table, which row of ``keys`` it belongs to.
    """

    keys: pa.RecordBatch
    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    _slots: npt.NDArray[np.int64]

    def begin(self, segments: Segments, keys: pa.RecordBatch) -> None:
        """A batch has been sorted."""
        self.keys = keys
        self.starts = segments.starts
        self.counts = segments.ends - segments.starts
        self._slots = segments.slots

    @property
    def key_of_row(self) -> npt.NDArray[np.int64]:
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def spread(self, values: Any) -> pa.Array:
        """One value per key, repeated for each row of the key."""
        array = values if isinstance(values, pa.Array) else pa.array(values)
        return array.take(pa.array(self.key_of_row))

    def each_key(self) -> Iterator[int]:
        """Make one key after another the current one, for states and timers that are used key
        by key; gives the row of ``keys``."""
        for number, slot in enumerate(self._slots.tolist()):
            self._scope.slot = slot
            yield number
        self._scope.slot = -1

    def emit(self, row: Any) -> None:
        """Send a table, a record batch or a dict of arrays to the main output."""
        self._outputs.main.tables.append(as_table(row))

    def output(self, tag: str, row: Any) -> None:
        """Send a table, a record batch or a dict of arrays to a side output."""
        self._outputs.side(tag).tables.append(as_table(row))
