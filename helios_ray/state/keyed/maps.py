"""A map per key, and the one map of broadcast state.

May import: errors, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray.errors import DataError
from helios_ray.state.index import Slots
from helios_ray.state.keyed.columns import cell_column
from helios_ray.state.keyed.declarations import BroadcastState, MapState
from helios_ray.state.keyed.entries import EntriesHandle
from helios_ray.state.keyed.fitting import hashable_fitter
from helios_ray.state.keyed.handle import NAMESPACE, VALUE
from helios_ray.state.keyed.scope import Scope


class MapHandle(EntriesHandle, MapState):
    """A :class:`MapState` at work."""

    def __init__(self, declaration: MapState, scope: Scope) -> None:
        super().__init__(declaration, scope)
        self.key_kind = declaration.key_kind
        self._fit_key = hashable_fitter(declaration.key_kind)
        self._index: dict[int, dict[Any, int]] = {}
        self._new_names: list[Any] = []
        self._stored_names = cell_column(declaration.key_kind)

    def _slot(self) -> int:
        slot = self._scope.slot
        return slot if slot >= 0 else self._scope.require_key(self.state_name)

    def _key(self, key: Any) -> Any:
        try:
            return self._fit_key(key)
        except ValueError as error:
            raise self._scope.refused(self.state_name, "a map key", error) from error

    def _find(self, key: Any) -> int | None:
        entries = self._index.get(self._slot())
        if entries is None:
            return None
        cell = entries.get(self._key(key))
        if cell is None or (self._ttl is not None and self._gone(cell)):
            return None
        return cell

    def _entries(self) -> dict[Any, int]:
        """The current key's entries that have not expired."""
        entries = self._index.get(self._slot(), {})
        if self._ttl is None or not entries:
            return entries
        present = set(self._present(entries.values()))
        return {key: cell for key, cell in entries.items() if cell in present}

    # --------------------------------------------------------------------------- for users

    def get(self, key: Any, default: Any = None) -> Any:
        cell = self._find(key)
        return default if cell is None else self._value(cell)

    def put(self, key: Any, value: Any) -> None:
        if value is None:
            self.remove(key)
            return
        slot, undo = self._slot(), self._scope.undo
        key = self._key(key)
        try:
            value = self._fit(value)
        except ValueError as error:
            raise self._scope.refused(self.state_name, f"the value at {key!r}", error) from error
        entries = self._index.get(slot)
        if entries is None:
            entries = self._index[slot] = {}
        cell = entries.get(key)
        if cell is not None and self._ttl is not None and self._gone(cell):
            # An expired entry is none: the new one comes last.
            self.remove(key)
            entries = self._index.setdefault(slot, {})
            cell = None
        if cell is None:
            entries[key] = self._create(slot, value)
            self._new_names.append(key)
            if undo is not None:
                undo.append(partial(self._take_back_new, slot, key))
            return
        if undo is not None:
            before = self._values.get(cell), cell in self._values, cell in self._dirty
            undo.append(partial(self._take_back_put, cell, *before))
        self._values[cell] = value
        self._dirty[cell] = None

    def remove(self, key: Any) -> None:
        slot = self._slot()
        entries = self._index.get(slot)
        if entries is None:
            return
        key = self._key(key)
        cell = entries.pop(key, None)
        if cell is None:
            return
        if not entries:
            del self._index[slot]
        self._kill([cell])
        if self._scope.undo is not None:
            self._scope.undo.append(partial(self._take_back_remove, slot, key, cell))

    def clear(self) -> None:
        slot = self._slot()
        entries = self._index.pop(slot, None)
        if entries is not None:
            self._kill(entries.values())
            if self._scope.undo is not None:
                self._scope.undo.append(partial(self._take_back_clear, slot, entries))

    def __contains__(self, key: Any) -> bool:
        return self._find(key) is not None

    def __len__(self) -> int:
        return len(self._entries())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def keys(self) -> list[Any]:
        return list(self._entries())

    def values(self) -> list[Any]:
        return self._load(list(self._entries().values()))

    def items(self) -> list[tuple[Any, Any]]:
        entries = self._entries()
        return list(zip(entries, self._load(list(entries.values())), strict=True))

    # ----------------------------------------------------------------- taking changes back

    def _take_back_new(self, slot: int, key: Any) -> None:
        self._kill([self._index[slot].pop(key)])
        if not self._index[slot]:
            del self._index[slot]

    def _take_back_put(self, cell: int, value: Any, known: bool, dirty: bool) -> None:
        if known:
            self._values[cell] = value
        else:
            self._values.pop(cell, None)
        if not dirty:
            self._dirty.pop(cell, None)

    def _take_back_remove(self, slot: int, key: Any, cell: int) -> None:
        entries = {**self._index.get(slot, {}), key: cell}
        # The order of the entries is that of their cells.
        self._index[slot] = dict(sorted(entries.items(), key=lambda entry: entry[1]))
        self._revive([cell])

    def _take_back_clear(self, slot: int, entries: dict[Any, int]) -> None:
        self._index[slot] = entries
        self._revive(entries.values())

    # --------------------------------------------------------------------- for the backend

    def _forget(self, cells: Slots) -> None:
        owners = self._owners.view()[cells].tolist()
        for slot, name in zip(owners, self._keys_of(cells), strict=True):
            entries = self._index[slot]
            del entries[name]
            if not entries:
                del self._index[slot]

    def _keys_of(self, cells: Slots) -> list[Any]:
        return [self._fit_key(name) for name in self._stored_names.read(cells).to_pylist()]

    def _renumber(self, cells: Slots) -> None:
        places = np.full(len(self._owners), -1, np.int64)
        places[cells] = np.arange(len(cells))
        moved = places.tolist()
        for slot, entries in self._index.items():
            self._index[slot] = {key: moved[cell] for key, cell in entries.items()}
        names = self._stored_names.read(cells)
        self._stored_names = cell_column(self.key_kind)
        self._stored_names.resize(len(cells))
        self._stored_names.write(np.arange(len(cells)), names)

    def _remap_index(self, places: Slots) -> None:
        self._index = {int(places[slot]): entries for slot, entries in self._index.items()}

    def _flush_names(self, start: int) -> None:
        names = pa.array(self._new_names, self.key_kind)
        self._stored_names.resize(self._next)
        self._stored_names.write(np.arange(start, self._next), names)
        self._new_names = []

    def _names(self, cells: Slots | None, owners: Slots) -> pa.Array:
        return self._stored_names.freeze() if cells is None else self._stored_names.read(cells)

    def _namespace_field(self) -> pa.Field:
        return pa.field(NAMESPACE, self.key_kind)

    def restore(self, slots: Slots, columns: Mapping[str, Any]) -> None:
        deadlines = self._stored_deadlines(columns)
        self._next = len(slots)
        cells = np.arange(self._next)
        self._owners.extend(slots)
        self._cells.resize(self._next)
        self._cells.write(cells, columns[VALUE], deadlines)
        self._stored_names.resize(self._next)
        self._stored_names.write(cells, columns[NAMESPACE])
        for cell, (slot, key) in enumerate(zip(slots.tolist(), self._keys_of(cells), strict=True)):
            self._index.setdefault(slot, {})[key] = cell


class BroadcastHandle(MapHandle, BroadcastState):
    """A :class:`BroadcastState` at work: a map that belongs to no key."""

    def __init__(self, declaration: BroadcastState, scope: Scope) -> None:
        super().__init__(declaration, scope)
        self.writable = False

    def _slot(self) -> int:
        return 0

    def put(self, key: Any, value: Any) -> None:
        self._require_writable()
        super().put(key, value)

    def remove(self, key: Any) -> None:
        self._require_writable()
        super().remove(key)

    def clear(self) -> None:
        self._require_writable()
        super().clear()

    def _require_writable(self) -> None:
        if not self.writable:
            raise DataError(
                f"{self._scope.where}: broadcast state {self.state_name!r} can only be written in "
                f"process_broadcast_element: every subtask must hold the same. Broadcast what "
                f"should change it."
            )
