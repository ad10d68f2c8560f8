"""Cells: values that are there or not, and may expire.

Why it exists: values, list elements and map entries are all cells of one column, with a mark
for each that is alive and, under a TTL, a deadline. Expired cells count as absent at once;
:meth:`Cells.sweep` finds them a bounded number at a time, to be removed for good.

May import: state, Arrow, numpy.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from helios_ray.state.columns import GrowableColumn
from helios_ray.state.index import Slots
from helios_ray.state.keyed.columns import cell_column
from helios_ray.state.keyed.ttl import PENDING, SWEEP_CELLS

Mask: TypeAlias = npt.NDArray[np.bool_]


class Cells:
    """A column of cells.

    Args:
        kind: Arrow type of a value.
        expiring: whether cells have deadlines.

    Example:
        >>> cells = Cells(pa.int64(), expiring=True)
        >>> cells.resize(3)
        >>> cells.write(np.array([0, 2]), pa.array([5, 6]), deadline=10)
        >>> cells.load(np.arange(3), now=9), cells.load(np.arange(3), now=10)
        ([5, None, 6], [None, None, None])
    """

    __slots__ = ("_alive", "_cursor", "_deadlines", "kind", "live", "values")

    def __init__(self, kind: pa.DataType, *, expiring: bool) -> None:
        self.kind = kind
        self.values = cell_column(kind)
        self.live = 0
        self._alive = GrowableColumn(pa.uint8(), np.uint8, 0)
        self._deadlines = GrowableColumn(pa.int64(), np.int64, PENDING) if expiring else None
        self._cursor = 0

    def __len__(self) -> int:
        return len(self._alive)

    @property
    def expiring(self) -> bool:
        """Whether cells have deadlines."""
        return self._deadlines is not None

    def resize(self, size: int) -> None:
        """Make room for ``size`` cells; new ones are absent."""
        if size > len(self._alive):
            self._alive.resize(size)
            self.values.resize(size)
            if self._deadlines is not None:
                self._deadlines.resize(size)

    def write(
        self, cells: Slots, values: pa.Array, deadline: int | npt.NDArray[np.int64] = PENDING
    ) -> None:
        """Set distinct cells, which are alive from now on."""
        self.values.write(cells, values)
        alive = self._alive.writable()
        self.live += len(cells) - int(np.count_nonzero(alive[cells]))
        alive[cells] = 1
        if self._deadlines is not None:
            self._deadlines.writable()[cells] = deadline

    def touch(self, cells: Slots, now: int, deadline: int) -> None:
        """Put off the deadlines of those of ``cells`` that are there."""
        if self._deadlines is not None:
            self._deadlines.writable()[cells[self.present(cells, now)]] = deadline

    def kill(self, cells: Slots) -> None:
        """These cells are absent from now on."""
        alive = self._alive.writable()
        self.live -= int(np.count_nonzero(alive[cells]))
        alive[cells] = 0
        self.values.release(cells)

    def present(self, cells: Slots, now: int) -> Mask:
        """Which of ``cells`` are alive and not expired."""
        mask: Mask = self._alive.view()[cells] != 0
        if self._deadlines is not None:
            mask &= self._deadlines.view()[cells] > now
        return mask

    def is_present(self, cell: int, now: int) -> bool:
        """As :meth:`present`, for one cell."""
        if not self._alive.view()[cell]:
            return False
        return self._deadlines is None or bool(self._deadlines.view()[cell] > now)

    def load(self, cells: Slots, now: int, default: Any = None) -> list[Any]:
        """The values as Python has them; ``default`` where a cell is absent."""
        mask = self.present(cells, now)
        if mask.all():
            found: list[Any] = self.values.read(cells).to_pylist()
            return found
        loaded = [default] * len(cells)
        places = np.flatnonzero(mask)
        if len(places):
            values = self.values.read(cells[places]).to_pylist()
            for place, value in zip(places.tolist(), values, strict=True):
                loaded[place] = value
        return loaded

    def all_present(self, now: int) -> Slots | None:
        """The cells that are alive and not expired, in order; None if all are."""
        mask = self._alive.view() != 0
        if self._deadlines is not None:
            mask &= self._deadlines.view() > now
        return None if mask.all() else np.flatnonzero(mask)

    def alive_mask(self) -> Mask:
        """Which cells are alive, expired or not."""
        mask: Mask = self._alive.view() != 0
        return mask

    def read(self, cells: Slots | None) -> pa.Array | pa.ChunkedArray:
        """Values of cells that are alive; None is all of them, by reference."""
        return self.values.freeze() if cells is None else self.values.read(cells)

    def deadlines(self, cells: Slots | None) -> pa.Array | None:
        """The deadlines of cells, or None where they have none."""
        if self._deadlines is None:
            return None
        if cells is None:
            return self._deadlines.freeze()
        return pa.array(self._deadlines.view()[cells])

    def start_clock(self, deadline: int) -> None:
        """The first time became known: what waited for it expires at ``deadline``."""
        if self._deadlines is not None:
            deadlines = self._deadlines.writable()
            deadlines[deadlines == PENDING] = deadline

    def sweep(self, now: int) -> Slots:
        """Look at the next cells in turn; returns those that have expired."""
        size = len(self._alive)
        if self._deadlines is None or size == 0:
            return np.empty(0, np.int64)
        start = self._cursor if self._cursor < size else 0
        end = min(start + SWEEP_CELLS, size)
        self._cursor = end
        part = slice(start, end)
        gone = (self._deadlines.view()[part] <= now) & (self._alive.view()[part] != 0)
        return np.flatnonzero(gone) + start

    def selected(self, cells: Slots) -> Cells:
        """A copy with only these cells, renumbered in their order."""
        chosen = Cells(self.kind, expiring=self.expiring)
        chosen.resize(len(cells))
        alive = np.flatnonzero(self._alive.view()[cells])
        if len(alive):
            deadlines = PENDING if self._deadlines is None else self._deadlines.view()[cells[alive]]
            chosen.write(alive, self.values.read(cells[alive]), deadlines)
        return chosen
