"""A list per key.

May import: state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray.state.index import Slots
from helios_ray.state.keyed.declarations import ListState
from helios_ray.state.keyed.entries import EntriesHandle
from helios_ray.state.keyed.handle import NAMESPACE, VALUE
from helios_ray.state.keyed.scope import Scope


class ListHandle(EntriesHandle, ListState):
    """A :class:`ListState` at work."""

    def __init__(self, declaration: ListState, scope: Scope) -> None:
        super().__init__(declaration, scope)
        self._index: dict[int, list[int]] = {}

    def add(self, value: Any) -> None:
        slot = self._scope.slot
        if slot < 0:
            self._scope.require_key(self.state_name)
        try:
            value = self._fit(value)
        except ValueError as error:
            raise self._scope.refused(self.state_name, "an element", error) from error
        cells = self._index.get(slot)
        if cells is None:
            cells = self._index[slot] = []
        cell = self._create(slot, value)
        cells.append(cell)
        if self._scope.undo is not None:
            self._scope.undo.append(partial(self._take_back_add, slot, cell))

    def add_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)

    def get(self) -> list[Any]:
        cells = self._index.get(self._scope.require_key(self.state_name))
        return [] if cells is None else self._load(self._present(cells))

    def update(self, values: Iterable[Any]) -> None:
        values = list(values)
        self.clear()
        self.add_all(values)

    def clear(self) -> None:
        slot = self._scope.require_key(self.state_name)
        cells = self._index.pop(slot, None)
        if cells is not None:
            self._kill(cells)
            if self._scope.undo is not None:
                self._scope.undo.append(partial(self._take_back_clear, slot, cells))

    def _take_back_add(self, slot: int, cell: int) -> None:
        self._index[slot].pop()
        if not self._index[slot]:
            del self._index[slot]
        self._kill([cell])

    def _take_back_clear(self, slot: int, cells: list[int]) -> None:
        self._index[slot] = cells
        self._revive(cells)

    # --------------------------------------------------------------------- for the backend

    def _forget(self, cells: Slots) -> None:
        gone = set(cells.tolist())
        for slot in set(self._owners.view()[cells].tolist()):
            left = [cell for cell in self._index[slot] if cell not in gone]
            if left:
                self._index[slot] = left
            else:
                del self._index[slot]

    def _renumber(self, cells: Slots) -> None:
        self._build(self._owners.view()[cells])

    def _build(self, owners: Slots) -> None:
        index: dict[int, list[int]] = {}
        for cell, slot in enumerate(owners.tolist()):
            index.setdefault(slot, []).append(cell)
        self._index = index

    def _remap_index(self, places: Slots) -> None:
        self._index = {int(places[slot]): cells for slot, cells in self._index.items()}

    def _flush_names(self, start: int) -> None:
        pass

    def _names(self, cells: Slots | None, owners: Slots) -> pa.Array:
        """The position of each element in its list."""
        order = np.argsort(owners, kind="stable")
        ordered = owners[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        lengths = np.diff(np.append(starts, len(ordered)))
        positions = np.empty(len(owners), np.int64)
        positions[order] = np.arange(len(owners)) - np.repeat(starts, lengths)
        return pa.array(positions)

    def _namespace_field(self) -> pa.Field:
        return pa.field(NAMESPACE, pa.int64())

    def restore(self, slots: Slots, columns: Mapping[str, Any]) -> None:
        # Whoever rewrote the table may have lost its order, but not the positions.
        order = np.argsort(columns[NAMESPACE].to_numpy(), kind="stable")
        deadlines = self._stored_deadlines(columns)
        if not isinstance(deadlines, int):
            deadlines = deadlines[order]
        self._owners.extend(slots[order])
        self._next = len(slots)
        self._cells.resize(self._next)
        self._cells.write(np.arange(self._next), columns[VALUE].take(pa.array(order)), deadlines)
        self._build(self._owners.view())
