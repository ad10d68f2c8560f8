"""What the backend asks of every state, whatever its kind.

May import: state, Arrow, numpy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.state.index import Slots
from helios_ray.state.keyed.cells import Cells, Mask
from helios_ray.state.keyed.declarations import State
from helios_ray.state.keyed.fitting import fitter, is_nested
from helios_ray.state.keyed.scope import Scope
from helios_ray.state.keyed.ttl import PENDING

NAMESPACE, VALUE, EXPIRES = "namespace", "value", "expires"


class Handle(ABC):
    """A state of one operator subtask, for all of its keys.

    What a batch reads is cached as Python values, what it writes stays in that cache until
    :meth:`flush`. Between batches all is in the cells.
    """

    def __init__(self, declaration: State, scope: Scope) -> None:
        assert declaration.name is not None
        self.state_name: str = declaration.name
        self._scope = scope
        self._kind = declaration.kind
        self._fit = fitter(declaration.kind)
        self._nested = is_nested(declaration.kind)
        self._ttl = declaration.ttl
        self._on_read = self._ttl is not None and self._ttl.refresh == "read"
        self._cells = Cells(declaration.kind, expiring=self._ttl is not None)
        self._changed: set[int] | None = None

    # ------------------------------------------------------------------------------ time

    @property
    def expiring(self) -> bool:
        """Whether there is anything that may expire."""
        return self._ttl is not None and self._cells.live > 0

    @property
    def clock(self) -> str | None:
        """The clock of its TTL."""
        return None if self._ttl is None else self._ttl.clock

    @property
    def live(self) -> int:
        """How many cells are held, those that expired and were not yet removed included."""
        return self._cells.live

    def _now(self) -> int:
        return MIN_TIMESTAMP if self._ttl is None else self._scope.time(self._ttl.clock)

    def _deadline(self) -> int:
        return PENDING if self._ttl is None else self._ttl.deadline(self._now())

    def start_clock(self, clock: str) -> None:
        """The clock went from unknown to known."""
        if self._ttl is not None and self._ttl.clock == clock:
            self._cells.start_clock(self._deadline())

    # ----------------------------------------------------------------------------- changes

    def track_changes(self) -> None:
        """From now on, remember the slots of keys whose state changed."""
        self._changed = set()

    def changed(self) -> set[int]:
        """Slots changed since ``track_changes``."""
        return self._changed or set()

    def _mark(self, slots: Slots) -> None:
        if self._changed is not None:
            self._changed.update(slots.tolist())

    # ----------------------------------------------------------------------- for the backend

    @abstractmethod
    def flush(self) -> None:
        """Write what the batch changed to the cells, and forget what it read."""

    @abstractmethod
    def sweep(self) -> int:
        """Remove some of what has expired; returns how many cells."""

    @abstractmethod
    def occupy(self, mask: Mask) -> None:
        """Mark the slots of keys that have state."""

    @abstractmethod
    def remap(self, kept: Slots, places: Slots) -> None:
        """Slots were renumbered: ``kept`` are the old ones in new order, ``places[old]`` is
        the new one, or -1."""

    @abstractmethod
    def contents(self) -> tuple[Slots | None, dict[str, pa.Array]]:
        """What a snapshot holds: the slot of every row (None is every slot in order), and the
        columns beside the key."""

    @abstractmethod
    def restore(self, slots: Slots, columns: Mapping[str, Any]) -> None:
        """Take up what ``contents`` gave."""

    @property
    def fields(self) -> list[pa.Field]:
        """The columns of ``contents``."""
        fields = [self._namespace_field(), pa.field(VALUE, self._kind)]
        if self._ttl is not None:
            fields.append(pa.field(EXPIRES, pa.int64()))
        return fields

    def _namespace_field(self) -> pa.Field:
        return pa.field(NAMESPACE, pa.null())

    def _stored_deadlines(self, columns: Mapping[str, Any]) -> npt.NDArray[np.int64] | int:
        stored = columns.get(EXPIRES)
        if stored is None:
            # The state had no TTL when it was written: its life starts now.
            return self._deadline()
        deadlines: npt.NDArray[np.int64] = stored.to_numpy()
        return deadlines
