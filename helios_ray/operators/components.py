"""One column of accumulators, and how a value is folded into a slot of it.

Why it exists: every aggregate over numbers is made of components: ``mean`` is a float sum
and a count. Integer sums are exact or raise DataError: a cheap bound shows that no sum can
overflow, and where it no longer does, Python integers decide.

May import: errors, operators.segments, state, Arrow, numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from helios_ray.errors import DataError
from helios_ray.operators.segments import Segments, Values
from helios_ray.state.columns import GrowableColumn
from helios_ray.state.index import Slots

_INT64_MAX = 2**63 - 1


class Component:
    """One column of accumulators and the ufunc that folds values in."""

    __slots__ = ("_bound", "column", "ufunc", "where")

    def __init__(
        self, ufunc: np.ufunc, data_type: pa.DataType, dtype: Any, identity: Any, where: str
    ) -> None:
        self.ufunc = ufunc
        self.column = GrowableColumn(data_type, dtype, identity)
        self.where = where
        self._bound = 0

    def update(self, slots: Slots, values: Values) -> None:
        """Fold one value per row; the column already has the slots."""
        if self._may_overflow(values):
            for slot, total in self._exact(slots, values)[1].items():
                self.column.writable()[slot] = total
            return
        self.ufunc.at(self.column.writable(), slots, values)

    def running(self, segments: Segments, slots: Slots, values: Values) -> Values:
        """Fold one value per row and return the value after every row."""
        column = self.column.writable()
        if self._may_overflow(values):
            every, last = self._exact(slots, values)
            for slot, total in last.items():
                column[slot] = total
            return np.array(every, np.int64)
        result, ends = segments.running(self.ufunc, column[segments.slots], values)
        column[segments.slots] = ends
        return result

    def restore(self, slots: Slots, values: Values) -> None:
        """Set the accumulators of fresh slots."""
        self.column.writable()[slots] = values
        self._bound = _INT64_MAX + 1  # look at the real sums before the next addition

    def _may_overflow(self, values: Values) -> bool:
        """Whether a bound on every sum, after ``values``, passes int64."""
        if self.ufunc is not np.add or self.column.dtype != np.int64 or len(values) == 0:
            return False
        growth = max(abs(int(values.min())), abs(int(values.max()))) * len(values)
        if self._bound + growth > _INT64_MAX:
            self._bound = _largest(self.column.view())
        self._bound += growth
        return self._bound > _INT64_MAX

    def _exact(self, slots: Slots, values: Values) -> tuple[list[int], dict[int, int]]:
        """The running sums in Python integers, and the last one of every slot."""
        totals: dict[int, int] = {}
        every: list[int] = []
        sums = self.column.view()
        for slot, value in zip(slots.tolist(), values.tolist(), strict=True):
            total = totals.get(slot)
            total = (int(sums[slot]) if total is None else total) + value
            if not -_INT64_MAX - 1 <= total <= _INT64_MAX:
                raise DataError(
                    f"{self.where} overflows: a key's sum became {total}, and int64 ends at "
                    f"{_INT64_MAX}. Cast the column to float64 before summing it."
                )
            totals[slot] = total
            every.append(total)
        return every, totals


def _largest(values: Values) -> int:
    if len(values) == 0:
        return 0
    return max(abs(int(values.min())), abs(int(values.max())))


def extreme(function: str, kind: pa.DataType, where: str) -> Component:
    """The component of min or max of a fixed-width type."""
    lowest = function == "max"
    if pt.is_floating(kind):
        # fmin and fmax prefer any number to NaN, so NaN is the identity.
        ufunc = np.fmax if lowest else np.fmin
        return Component(ufunc, kind, kind.to_pandas_dtype(), np.nan, where)
    ufunc = np.maximum if lowest else np.minimum
    stored = kind
    if pt.is_boolean(kind):
        stored, dtype = pa.uint8(), np.dtype(np.uint8)
    elif pt.is_integer(kind):
        dtype = np.dtype(kind.to_pandas_dtype())
    else:
        dtype = np.dtype(np.int32 if kind.bit_width == 32 else np.int64)
    limits = np.iinfo(dtype)
    return Component(ufunc, stored, dtype, limits.min if lowest else limits.max, where)
