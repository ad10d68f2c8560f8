"""One value per key: a cell per slot.

Why it exists: the row-at-a-time path must cost a dict look-up, so the values of all keys of a
batch are decoded together at the first read, and written back together at its end.

May import: errors, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.errors import DataError
from helios_ray.state.index import Slots
from helios_ray.state.keyed.cells import Mask
from helios_ray.state.keyed.declarations import ValueState
from helios_ray.state.keyed.handle import EXPIRES, NAMESPACE, VALUE, Handle
from helios_ray.state.keyed.scope import Scope

_UNLOADED: Any = object()


class ValueHandle(Handle, ValueState):
    """A :class:`ValueState` at work."""

    def __init__(self, declaration: ValueState, scope: Scope) -> None:
        Handle.__init__(self, declaration, scope)
        try:
            default = declaration.default
            self.default = None if default is None else self._fit(default)
        except ValueError as error:
            raise scope.refused(self.state_name, "the default", error) from error
        self._values: dict[int, Any] = {}
        self._dirty: dict[int, bool] = {}
        self._read: dict[int, None] = {}

    # ------------------------------------------------------------------------ row by row

    def value(self) -> Any:
        slot = self._scope.slot
        try:
            value = self._values[slot]
        except KeyError:
            value = self._load(slot)
        if self._on_read:
            self._read[slot] = None
        if self._nested and value is not None:
            return self._fit(value)
        return value

    def update(self, value: Any) -> None:
        if value is None:
            self.clear()
            return
        slot = self._scope.slot
        if slot < 0:
            self._scope.require_key(self.state_name)
        try:
            value = self._fit(value)
        except ValueError as error:
            raise self._scope.refused(self.state_name, "the value", error) from error
        if self._scope.undo is not None:
            self._remember(slot)
        self._values[slot] = value
        self._dirty[slot] = True

    def clear(self) -> None:
        slot = self._scope.require_key(self.state_name)
        if self._scope.undo is not None:
            self._remember(slot)
        self._values[slot] = self.default
        self._dirty[slot] = False

    def _load(self, slot: int) -> Any:
        self._scope.require_key(self.state_name)
        cells, values = self._cells, self._values
        cells.resize(self._scope.size)
        touched = self._scope.touched
        loaded = cells.load(touched, self._now(), self.default)
        for each, value in zip(touched.tolist(), loaded, strict=True):
            values.setdefault(each, value)
        if slot not in values:
            values[slot] = cells.load(np.array([slot]), self._now(), self.default)[0]
        return values[slot]

    def _remember(self, slot: int) -> None:
        assert self._scope.undo is not None
        before = self._values.get(slot, _UNLOADED), self._dirty.get(slot)
        self._scope.undo.append(partial(self._take_back, slot, *before))

    def _take_back(self, slot: int, value: Any, dirty: bool | None) -> None:
        if value is _UNLOADED:
            self._values.pop(slot, None)
        else:
            self._values[slot] = value
        if dirty is None:
            self._dirty.pop(slot, None)
        else:
            self._dirty[slot] = dirty

    # ------------------------------------------------------------------- column by column

    def get_column(self) -> pa.Array:
        self._settle()
        cells, slots, now = self._cells, self._scope.touched, self._now()
        cells.resize(self._scope.size)
        present = cells.present(slots, now)
        if self._on_read:
            cells.touch(slots, now, self._deadline())
        if present.all():
            return cells.values.read(slots)
        there = np.flatnonzero(present)
        places = np.full(len(slots), len(there), np.int64)
        places[there] = np.arange(len(there))
        rest = pa.array([self.default], self._kind)
        if len(there) == 0:
            return rest.take(pa.array(places))
        known = cells.values.read(slots[there])
        return pa.concat_arrays([known, rest]).take(pa.array(places))

    def put_column(self, values: Any) -> None:
        self._settle()
        cells, slots = self._cells, self._scope.touched
        cells.resize(self._scope.size)
        column = self._column(values, len(slots))
        if self._scope.undo is not None:
            self._remember_column(slots)
        if column.null_count == 0:
            cells.write(slots, column, self._deadline())
        else:
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            cells.write(slots[valid], column.drop_null(), self._deadline())
            cells.kill(slots[~valid])
        self._mark(slots)

    def _settle(self) -> None:
        """Columns are read from and written to the cells, so what is cached goes there first."""
        if self._dirty and self._scope.undo is not None:
            self._cells.resize(self._scope.size)
            self._remember_column(np.fromiter(self._dirty, np.int64, len(self._dirty)))
        self.flush()

    def _column(self, values: Any, expected: int) -> pa.Array:
        try:
            column = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
            if isinstance(column, pa.ChunkedArray):
                column = column.combine_chunks()
            if len(column) != expected:
                raise ValueError(f"expected {expected} values, one per key, got {len(column)}")
            return column if column.type == self._kind else pc.cast(column, self._kind)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise DataError(
                f"{self._scope.where}: a column for state {self.state_name!r}: {error}; expected "
                f"{self._kind}. Write one value of the declared type per key of ctx.keys."
            ) from error

    def _remember_column(self, slots: Slots) -> None:
        assert self._scope.undo is not None
        cells = self._cells
        alive = slots[cells.alive_mask()[slots]]
        before = cells.read(alive), cells.deadlines(alive)
        self._scope.undo.append(partial(self._take_back_column, slots, alive, *before))

    def _take_back_column(
        self, slots: Slots, alive: Slots, values: pa.Array, deadlines: pa.Array | None
    ) -> None:
        self._cells.kill(slots)
        if len(alive):
            restored = self._deadline() if deadlines is None else deadlines.to_numpy()
            self._cells.write(alive, values, restored)

    # --------------------------------------------------------------------- for the backend

    def flush(self) -> None:
        values, dirty, cells = self._values, self._dirty, self._cells
        if dirty:
            cells.resize(self._scope.size)
            slots = np.fromiter(dirty, np.int64, len(dirty))
            self._mark(slots)
            written = np.fromiter(dirty.values(), np.bool_, len(dirty))
            if not written.all():
                cells.kill(slots[~written])
                slots = slots[written]
            if len(slots):
                column = pa.array([values[slot] for slot in slots.tolist()], self._kind)
                cells.write(slots, column, self._deadline())
            self._dirty = {}
        if self._read:
            cells.resize(self._scope.size)
            read = np.fromiter(self._read, np.int64, len(self._read))
            cells.touch(read, self._now(), self._deadline())
            self._read = {}
        if values:
            self._values = {}

    def sweep(self) -> int:
        gone = self._cells.sweep(self._now())
        if len(gone):
            self._cells.kill(gone)
            self._mark(gone)
        return len(gone)

    def occupy(self, mask: Mask) -> None:
        alive = self._cells.alive_mask()
        mask[: len(alive)] |= alive

    def remap(self, kept: Slots, places: Slots) -> None:
        self._cells.resize(len(places))
        self._cells = self._cells.selected(kept)
        if self._changed is not None:
            self._changed = {int(places[slot]) for slot in self._changed if places[slot] >= 0}

    def contents(self) -> tuple[Slots | None, dict[str, pa.Array]]:
        cells = self._cells
        slots = cells.all_present(self._now())
        if slots is None and len(cells) != self._scope.size:
            slots = np.arange(len(cells))
        values = cells.read(slots)
        columns = {NAMESPACE: pa.nulls(len(values)), VALUE: values}
        deadlines = cells.deadlines(slots)
        if deadlines is not None:
            columns[EXPIRES] = deadlines
        return slots, columns

    def restore(self, slots: Slots, columns: Mapping[str, Any]) -> None:
        self._cells.resize(self._scope.size)
        self._cells.write(slots, columns[VALUE], self._stored_deadlines(columns))
