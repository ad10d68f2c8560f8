"""Many values per key: what lists and maps share.

Why it exists: an element of a list and an entry of a map are a cell each, so that adding one
to a list of a million costs one cell. Cells are numbered in the order in which they were
made, which is the order of the list or map; what is removed leaves a gap until the cells are
renumbered. Which cells are a key's is kept as Python dicts, their values in Arrow.

May import: state, Arrow, numpy.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray.state.columns import GrowableColumn
from helios_ray.state.index import Slots
from helios_ray.state.keyed.cells import Mask
from helios_ray.state.keyed.declarations import State
from helios_ray.state.keyed.handle import EXPIRES, VALUE, Handle
from helios_ray.state.keyed.scope import Scope

_SPARE_CELLS = 1024


class EntriesHandle(Handle):
    """Cells that belong to slots, any number to each."""

    def __init__(self, declaration: State, scope: Scope) -> None:
        Handle.__init__(self, declaration, scope)
        self._owners = GrowableColumn(pa.int64(), np.int64, 0)
        self._next = 0
        self._new_owners: list[int] = []
        self._values: dict[int, Any] = {}
        self._dirty: dict[int, None] = {}
        self._dead: dict[int, None] = {}
        self._read: dict[int, None] = {}

    # ----------------------------------------------------------------------- kind by kind

    @abstractmethod
    def _forget(self, cells: Slots) -> None:
        """Take cells out of the lists or maps of their keys."""

    @abstractmethod
    def _renumber(self, cells: Slots) -> None:
        """Only these cells remain, numbered in their order; rebuild lists or maps."""

    @abstractmethod
    def _remap_index(self, places: Slots) -> None:
        """Slots were renumbered."""

    @abstractmethod
    def _flush_names(self, start: int) -> None:
        """Write what is kept beside the values of the cells made from ``start`` on."""

    @abstractmethod
    def _names(self, cells: Slots | None, owners: Slots) -> pa.Array:
        """The namespace column of a snapshot."""

    # -------------------------------------------------------------------------- while running

    def _create(self, slot: int, value: Any) -> int:
        """A new cell; ``value`` fits already."""
        cell = self._next
        self._next = cell + 1
        self._new_owners.append(slot)
        self._values[cell] = value
        self._dirty[cell] = None
        return cell

    def _gone(self, cell: int) -> bool:
        """Whether a cell of the index has expired."""
        # What this batch wrote, or found present, stays present throughout the batch.
        return cell not in self._values and not self._cells.is_present(cell, self._now())

    def _present(self, cells: Iterable[int]) -> list[int]:
        """Those of a key's cells that have not expired."""
        if self._ttl is None:
            return list(cells)
        listed = list(cells)
        stored = [cell for cell in listed if cell not in self._values]
        if not stored:
            return listed
        mask = self._cells.present(np.array(stored, np.int64), self._now())
        if mask.all():
            return listed
        gone = {cell for cell, there in zip(stored, mask.tolist(), strict=True) if not there}
        return [cell for cell in listed if cell not in gone]

    def _value(self, cell: int) -> Any:
        """The value of a cell that is present."""
        try:
            value = self._values[cell]
        except KeyError:
            value = self._values[cell] = self._cells.values.read_one(cell)
        if self._on_read:
            self._refresh(cell)
        return self._fit(value) if self._nested else value

    def _load(self, cells: list[int]) -> list[Any]:
        """The values of cells that are present."""
        values = self._values
        missing = [cell for cell in cells if cell not in values]
        if missing:
            column = self._cells.values.read(np.array(missing, np.int64))
            values.update(zip(missing, column.to_pylist(), strict=True))
        if self._on_read:
            for cell in cells:
                self._refresh(cell)
        if self._nested:
            return [self._fit(values[cell]) for cell in cells]
        return [values[cell] for cell in cells]

    def _refresh(self, cell: int) -> None:
        if cell not in self._read:
            self._read[cell] = None
            if self._scope.undo is not None:
                self._scope.undo.append(partial(self._read.pop, cell, None))

    def _kill(self, cells: Iterable[int]) -> None:
        for cell in cells:
            self._dead[cell] = None

    def _revive(self, cells: Iterable[int]) -> None:
        for cell in cells:
            self._dead.pop(cell, None)

    # ----------------------------------------------------------------------- for the backend

    def flush(self) -> None:
        start, cells = len(self._owners), self._cells
        if self._new_owners:
            self._owners.extend(np.array(self._new_owners, np.int64))
            cells.resize(self._next)
            self._flush_names(start)
            self._new_owners = []
        touched = []
        if self._dirty:
            written = np.fromiter(self._dirty, np.int64, len(self._dirty))
            column = pa.array([self._values[cell] for cell in self._dirty], self._kind)
            cells.write(written, column, self._deadline())
            touched.append(written)
            self._dirty = {}
        if self._read:
            read = np.fromiter(self._read, np.int64, len(self._read))
            cells.touch(read, self._now(), self._deadline())
            self._read = {}
        if self._dead:
            dead = np.fromiter(self._dead, np.int64, len(self._dead))
            cells.kill(dead)
            touched.append(dead)
            self._dead = {}
        for part in touched:
            self._mark(self._owners.view()[part])
        if self._values:
            self._values = {}
        self._compact()

    def _compact(self) -> None:
        if len(self._cells) <= 2 * self._cells.live + _SPARE_CELLS:
            return
        kept = np.flatnonzero(self._cells.alive_mask())
        self._renumber(kept)
        self._cells = self._cells.selected(kept)
        owners = self._owners.view()[kept]
        self._owners = GrowableColumn(pa.int64(), np.int64, 0)
        self._owners.extend(owners)
        self._next = len(kept)

    def sweep(self) -> int:
        gone = self._cells.sweep(self._now())
        if len(gone):
            self._forget(gone)
            self._cells.kill(gone)
            self._mark(self._owners.view()[gone])
            self._compact()
        return len(gone)

    def occupy(self, mask: Mask) -> None:
        mask[self._owners.view()[self._cells.alive_mask()]] = True

    def remap(self, kept: Slots, places: Slots) -> None:
        # Cells that are dead may belong to slots that are no more.
        owners = places[self._owners.view()]
        self._owners = GrowableColumn(pa.int64(), np.int64, 0)
        self._owners.extend(owners)
        self._remap_index(places)
        if self._changed is not None:
            self._changed = {int(places[slot]) for slot in self._changed if places[slot] >= 0}

    def contents(self) -> tuple[Slots | None, dict[str, pa.Array]]:
        cells = self._cells.all_present(self._now())
        owners = self._owners.view() if cells is None else self._owners.view()[cells]
        columns = {"namespace": self._names(cells, owners), VALUE: self._cells.read(cells)}
        deadlines = self._cells.deadlines(cells)
        if deadlines is not None:
            columns[EXPIRES] = deadlines
        # A copy: the owners go on growing.
        return owners.copy(), columns
