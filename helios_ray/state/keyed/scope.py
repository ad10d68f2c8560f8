"""Whose state is meant, and what time it is: shared by all states of an operator subtask.

Why it exists: ``state.value()`` takes no key. The operator sets the current key's slot here
before it calls a user's function, and every state and timer looks here.

May import: elements, errors, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.errors import DataError
from helios_ray.state.index import KeyIndex, Slots
from helios_ray.state.keyed.ttl import Clock

NO_KEY = -1
"""The slot while no key is current."""


class Scope:
    """The current key and time.

    Attributes:
        where: who speaks, for messages.
        slot: of the current key, or ``NO_KEY``.
        now: processing time (µs), or ``MIN_TIMESTAMP`` before anybody said.
        watermark: event time (µs) so far.
        undo: what takes back the changes of the current call, newest last; None where a
            failing call fails the job, so that nothing need be taken back.
        index: the slots of the keys.
    """

    __slots__ = ("_rows", "_touched", "index", "now", "slot", "undo", "watermark", "where")

    def __init__(self, where: str) -> None:
        self.where = where
        self.slot = NO_KEY
        self.now = MIN_TIMESTAMP
        self.watermark = MIN_TIMESTAMP
        self.undo: list[Callable[[], Any]] | None = None
        self.index: KeyIndex | None = None
        self._rows: Slots = np.empty(0, np.int64)
        self._touched: Slots | None = None

    def enter(self, rows: Slots) -> None:
        """The keys that are about to be current, one after another; may name one twice."""
        self._rows = rows
        self._touched = None

    def enter_distinct(self, slots: Slots) -> None:
        """As ``enter``, for slots that are known to be distinct; keeps their order."""
        self._rows = self._touched = slots

    @property
    def touched(self) -> Slots:
        """The distinct slots of ``enter``: what is worth decoding together."""
        if self._touched is None:
            self._touched = pa.array(self._rows).unique().to_numpy()
        return self._touched

    @property
    def size(self) -> int:
        """How many slots there are."""
        return 0 if self.index is None else len(self.index)

    def time(self, clock: Clock) -> int:
        """The time of a clock."""
        return self.watermark if clock == "event" else self.now

    def key(self, slot: int) -> Any:
        """The key of a slot: its value, or a tuple where there are several key columns."""
        assert self.index is not None
        row = self.index.take_keys(np.array([slot])).to_pylist()[0]
        values = tuple(row.values())
        return values[0] if len(values) == 1 else values

    def require_key(self, state: str) -> int:
        """The current slot.

        Raises:
            DataError: no key is current.
        """
        if self.slot < 0:
            raise DataError(
                f"{self.where}: state {state!r} was used where no key is current. Use keyed state "
                f"in process_element, on_timer and process_batches only; what must be the same "
                f"for all keys is broadcast state."
            )
        return self.slot

    def refused(self, state: str, what: str, error: Exception) -> DataError:
        """The error for a value that does not fit a state's declared type."""
        whose = f"of key {self.key(self.slot)!r:.200}" if self.slot >= 0 else "(broadcast)"
        return DataError(
            f"{self.where}: {what} of state {state!r} {whose}: {error}. Write a value of the "
            f"declared type, or declare the state with another."
        )
