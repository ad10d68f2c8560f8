"""quantile: a merging t-digest, vectorized over groups.

Why it exists: a quantile of a window needs its distribution; a t-digest keeps it in at most
``compression / 2`` centroids, fine at both ends, whatever the number of values. A partial row
is the list of its centroids, sorted, and the least and greatest value.

How: all centroids of a group are sorted; the scale function ``k(q) = compression / 2π ·
asin(2q - 1)`` gives each a bucket by the quantile of its middle; a bucket becomes one
centroid. (Source: Dunning, Ertl, "Computing Extremely Accurate Quantiles Using t-Digests",
2019, scale function k1. Assigning by the middle replaces the greedy pass, which has no
vectorized form; the bound on their number is the same.)

May import: operators.window_aggregates, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from helios_ray.operators.segments import Values
from helios_ray.operators.window_aggregates.base import Rows, WindowAggregate
from helios_ray.operators.window_aggregates.groups import Groups, sums
from helios_ray.operators.window_aggregates.lists import as_lists, list_lengths
from helios_ray.operators.window_aggregates.numeric import valid_floats
from helios_ray.state.hashing import values_buffer


class QuantileAggregate(WindowAggregate):
    """About the value below which a fraction ``q`` of the values lies; float64.

    Nulls and NaN do not count; null where there is no value. Between centroids it
    interpolates; 0 gives the exact minimum, 1 the exact maximum.

    Args:
        name: output column.
        column: an integer or float column.
        q: 0 to 1.
        compression: larger is more accurate and keeps more.
    """

    def __init__(self, name: str, column: str, q: float, compression: int) -> None:
        super().__init__(name)
        self._column = column
        self._q = q
        self._compression = compression

    @property
    def fields(self) -> list[pa.Field]:
        return [
            pa.field(f"{self.name}.mean", pa.large_list(pa.float64())),
            pa.field(f"{self.name}.weight", pa.large_list(pa.float64())),
            pa.field(f"{self.name}.least", pa.float64()),
            pa.field(f"{self.name}.greatest", pa.float64()),
        ]

    @property
    def result_type(self) -> pa.DataType:
        return pa.float64()

    def lift(self, groups: Groups, rows: Rows) -> list[pa.Array]:
        groups, values = valid_floats(groups, rows.data.column(self._column))
        number = values == values
        if not number.all():
            groups, values = groups.where(number), values[number]
        return self._digest(groups, values, np.ones(len(values)), groups, values, values)

    def merge(self, groups: Groups, columns: Sequence[pa.Array]) -> list[pa.Array]:
        lengths = list_lengths(columns[0])
        inside = Groups(np.repeat(groups.codes, lengths), groups.size)
        means, weights = (_floats(column.flatten()) for column in columns[:2])
        least, greatest = (_floats(column) for column in columns[2:])
        return self._digest(inside, means, weights, groups, least, greatest)

    def _digest(
        self,
        groups: Groups,
        means: Values,
        weights: Values,
        ends: Groups,
        least: Values,
        greatest: Values,
    ) -> list[pa.Array]:
        order = groups.order_by(means)
        codes, means, weights = groups.codes[order], means[order], weights[order]
        totals = sums(codes, weights, groups.size)
        before = np.cumsum(weights) - weights
        before -= (np.cumsum(totals) - totals)[codes]
        middle = (before + weights / 2) / totals[codes]
        angle = np.arcsin(np.clip(2 * middle - 1, -1, 1)) / np.pi + 0.5  # 0 to 1
        bucket = np.floor(angle * (self._compression / 2)).astype(np.int64)
        fresh = np.ones(len(codes), np.bool_)
        fresh[1:] = (codes[1:] != codes[:-1]) | (bucket[1:] != bucket[:-1])
        target = np.cumsum(fresh) - 1
        size = int(fresh.sum())
        weight = sums(target, weights, size)
        # Around the bucket's first mean, so that large equal values stay what they are.
        base = means[fresh]
        with np.errstate(invalid="ignore"):  # of infinities
            away = np.where(means == base[target], 0.0, means - base[target])
            mean = base + sums(target, away * weights, size) / weight
        mean = np.where(np.isnan(mean), base, mean)
        counts = np.bincount(codes[fresh], minlength=groups.size)
        low, high = np.full(ends.size, np.nan), np.full(ends.size, np.nan)
        np.fmin.at(low, ends.codes, least)
        np.fmax.at(high, ends.codes, greatest)
        return [
            as_lists(counts, pa.array(mean)),
            as_lists(counts, pa.array(weight)),
            pa.array(low),
            pa.array(high),
        ]

    def finish(self, columns: Sequence[pa.Array]) -> pa.Array:
        lengths = list_lengths(columns[0])
        means, weights = (_floats(column.flatten()) for column in columns[:2])
        least, greatest = (_floats(column) for column in columns[2:])
        size = len(lengths)
        if not lengths.any():
            return pa.nulls(size, pa.float64())
        codes = np.repeat(np.arange(size), lengths)
        totals = sums(codes, weights, size)
        middle = np.cumsum(weights) - weights / 2
        middle -= (np.cumsum(totals) - totals)[codes]
        target = self._q * totals
        ends = np.cumsum(lengths)
        starts = ends - lengths
        below = np.bincount(codes, middle <= target[codes], size).astype(np.int64)
        last = np.maximum(lengths - 1, 0)
        # The stretch between two neighbours, the least and the greatest value at the ends.
        left = np.minimum(np.maximum(starts + below - 1, 0), len(means) - 1)
        right = np.minimum(starts + np.minimum(below, last), len(means) - 1)
        x0 = np.where(below == 0, 0.0, middle[left])
        y0 = np.where(below == 0, least, means[left])
        x1 = np.where(below >= lengths, totals, middle[right])
        y1 = np.where(below >= lengths, greatest, means[right])
        span = np.where(x1 > x0, x1 - x0, 1.0)
        share = np.clip((target - x0) / span, 0.0, 1.0)
        with np.errstate(invalid="ignore"):  # of infinities
            between = y0 * (1 - share) + y1 * share
        result = np.where(share <= 0.0, y0, np.where(share >= 1.0, y1, between))
        result = np.where(np.isnan(result), y0, result)
        result = np.clip(result, least, greatest)
        return pa.array(result, mask=lengths == 0)


def _floats(column: pa.Array) -> Values:
    return values_buffer(column, np.float64)
