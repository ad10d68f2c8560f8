"""approx_count_distinct: HyperLogLog, vectorized over groups.

Why it exists: counting distinct values of a high-cardinality column exactly keeps them all; a
sketch keeps at most ``2**precision`` registers. A partial row is the list of its registers
that are not zero, as ``register << 6 | rank``: a few values cost a few bytes.

Sources: Flajolet, Fusy, Gandouet, Meunier, "HyperLogLog", 2007; the estimator, which needs no
bias tables, is that of Ertl, "New cardinality estimation algorithms for HyperLogLog
sketches", 2017. Values are hashed by the stable key hash.

May import: operators.window_aggregates, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from helios_ray.operators.segments import Values
from helios_ray.operators.window_aggregates.base import Rows
from helios_ray.operators.window_aggregates.groups import Groups, Ints, stable_order
from helios_ray.operators.window_aggregates.lists import ListAggregate, list_lengths, valid_only
from helios_ray.state.hashing import UInt64Array, decoded, hash_array

_CHUNK = 1 << 16
"""Groups that are estimated at a time: each has a row of counts per rank."""


class ApproxDistinctAggregate(ListAggregate):
    """About how many distinct values that are not null; int64.

    Args:
        name: output column.
        column: whose values.
        kind: its type, encodings undone.
        precision: 4 to 16; the relative error is about ``1.04 / sqrt(2**precision)``.
    """

    def __init__(self, name: str, column: str, kind: pa.DataType, precision: int) -> None:
        super().__init__(name)
        self._column = column
        self._bits = precision
        hash_array(pa.array([], kind), column)  # raises for what has no hash

    @property
    def element_fields(self) -> list[pa.Field]:
        return [pa.field("register", pa.uint32())]

    @property
    def result_type(self) -> pa.DataType:
        return pa.int64()

    def elements(self, groups: Groups, rows: Rows) -> tuple[Groups, list[pa.Array]]:
        groups, (values,) = valid_only(groups, [decoded(rows.data.column(self._column))])
        hashes = hash_array(values, self._column)
        registers = hashes >> np.uint64(64 - self._bits)
        ranks = _leading_zeros(hashes << np.uint64(self._bits))
        ranks = np.minimum(ranks, np.uint64(64 - self._bits)) + np.uint64(1)
        packed = ((registers << np.uint64(6)) | ranks).astype(np.uint32)
        return groups, [pa.array(packed)]

    def keep(self, groups: Groups, columns: list[pa.Array]) -> Ints:
        packed = columns[0].to_numpy(zero_copy_only=False).astype(np.int64)
        order = stable_order((groups.codes << np.int64(22)) | packed)
        place = (groups.codes[order] << np.int64(16)) | (packed[order] >> 6)
        last = np.ones(len(order), np.bool_)  # the greatest rank of a register comes last
        last[:-1] = place[1:] != place[:-1]
        kept: Ints = order[last]
        return kept

    def finish(self, columns: Sequence[pa.Array]) -> pa.Array:
        lists = columns[0]
        parts = [
            self._estimates(lists.slice(start, _CHUNK)) for start in range(0, len(lists), _CHUNK)
        ]
        return pa.array(np.concatenate(parts) if parts else np.zeros(0, np.int64))

    def _estimates(self, lists: pa.Array) -> Ints:
        registers = float(1 << self._bits)
        top = 64 - self._bits + 1
        lengths = list_lengths(lists)
        groups = np.repeat(np.arange(len(lists)), lengths)
        ranks = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64) & 63
        counts = np.bincount(groups * 64 + ranks, minlength=64 * len(lists)).reshape(-1, 64)
        zeros = registers - lengths
        z = registers * _tau(1.0 - counts[:, top] / registers)
        for rank in range(top - 1, 0, -1):
            z = 0.5 * (z + counts[:, rank])
        with np.errstate(divide="ignore"):
            z = z + registers * _sigma(zeros / registers)
            estimate = registers * registers / (2 * np.log(2) * z)
        rounded: Ints = np.rint(estimate).astype(np.int64)
        return rounded


def _leading_zeros(values: UInt64Array) -> UInt64Array:
    """How many of the 64 bits stand above the highest one; 64 for zero."""
    high = (values >> np.uint64(32)).astype(np.float64)
    low = (values & np.uint64(0xFFFFFFFF)).astype(np.float64)
    # frexp's exponent of an integer below 2**53 is its length in bits.
    bits = np.where(high > 0, np.frexp(high)[1] + 32, np.frexp(low)[1])
    zeros: UInt64Array = (64 - bits).astype(np.uint64)
    return zeros


def _sigma(x: Values) -> Values:
    """x + sum of x**(2**k) * 2**(k-1); infinite at 1, where every register is zero."""
    result, power, weight = x.copy(), x.copy(), 1.0
    full = x >= 1.0
    power[full] = 0.0
    for _ in range(64):
        power = power * power
        step = power * weight
        if not step.any():
            break
        result = result + step
        weight *= 2
    result[full] = np.inf
    return result


def _tau(x: Values) -> Values:
    """(1 - x - sum of (1 - x**(2**-k))**2 * 2**-k) / 3."""
    inside = (x > 0.0) & (x < 1.0)
    root = np.where(inside, x, 1.0)
    result, weight = 1.0 - root, 1.0
    for _ in range(64):
        root = np.sqrt(root)
        weight *= 0.5
        step = (1.0 - root) ** 2 * weight
        if not step.any():
            break
        result = result - step
    taken: Values = np.where(inside, result / 3.0, 0.0)
    return taken
