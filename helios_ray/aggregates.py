"""The aggregates, by the names people write.

Why it exists: ``from helios_ray.aggregates import count, max_`` is part of the public face;
a trailing underscore keeps Python's own ``sum``, ``min`` and ``max`` usable beside them.

Running aggregates and windows know ``count, sum_, min_, max_, mean``; windows know all. Nulls
do not count for any of them. Where rows have an order it is that of their event times, and of
their arrival where those are equal (in sessions, whose parts meet in any order, of neither).

May import: operators.
"""

from __future__ import annotations

from helios_ray.operators.aggregation import Aggregation
from helios_ray.operators.window_aggregates.specs import WindowAggregation
from helios_ray.operators.window_aggregates.user import AggregateFunction

__all__ = [
    "AggregateFunction",
    "Aggregation",
    "WindowAggregation",
    "any_value",
    "approx_count_distinct",
    "arg_max",
    "arg_min",
    "collect_list",
    "count",
    "count_distinct",
    "first",
    "last",
    "max_",
    "mean",
    "min_",
    "quantile",
    "stddev",
    "sum_",
    "top_k",
    "variance",
]


def count(column: str | None = None) -> Aggregation:
    """The number of rows, or of rows whose ``column`` is not null, as int64.

    Example:
        >>> str(count()), str(count("price"))
        ('count()', 'count(price)')
    """
    return Aggregation("count", column)


def sum_(column: str) -> Aggregation:
    """The sum of the non-null values: int64 for integers (overflow fails the job), float64
    for floats; null where there are none."""
    return Aggregation("sum", column)


def min_(column: str) -> Aggregation:
    """The least non-null value, in the column's own type; null where there is none."""
    return Aggregation("min", column)


def max_(column: str) -> Aggregation:
    """The greatest non-null value, in the column's own type; null where there is none."""
    return Aggregation("max", column)


def mean(column: str) -> Aggregation:
    """The mean of the non-null values as float64; null where there are none."""
    return Aggregation("mean", column)


def variance(column: str, *, ddof: int = 1) -> WindowAggregation:
    """The variance of the non-null values as float64.

    Args:
        column: integers or floats.
        ddof: taken off the number of values: 1 for a sample, 0 for a whole population. The
            result is null where there are no more values than that.
    """
    return WindowAggregation(function="variance", column=column, ddof=ddof)


def stddev(column: str, *, ddof: int = 1) -> WindowAggregation:
    """The standard deviation: the square root of :func:`variance`."""
    return WindowAggregation(function="stddev", column=column, ddof=ddof)


def first(column: str) -> WindowAggregation:
    """The earliest non-null value; null where there is none."""
    return WindowAggregation(function="first", column=column)


def last(column: str) -> WindowAggregation:
    """The latest non-null value; null where there is none."""
    return WindowAggregation(function="last", column=column)


def any_value(column: str) -> WindowAggregation:
    """Some non-null value; null where there is none."""
    return WindowAggregation(function="any_value", column=column)


def count_distinct(column: str) -> WindowAggregation:
    """The number of distinct non-null values, exactly, as int64. Keeps each of them until
    the window is over; :func:`approx_count_distinct` does not."""
    return WindowAggregation(function="count_distinct", column=column)


def approx_count_distinct(column: str, *, precision: int = 12) -> WindowAggregation:
    """About the number of distinct non-null values, as int64, by HyperLogLog.

    Args:
        column: of any type that can be a key.
        precision: 4 to 16; the error is about ``1.04 / sqrt(2**precision)`` (1.6 % for 12),
            and a window of a key keeps up to ``4 * 2**precision`` bytes.
    """
    return WindowAggregation(function="approx_count_distinct", column=column, precision=precision)


def quantile(column: str, q: float = 0.5, *, compression: int = 200) -> WindowAggregation:
    """About the value below which a fraction ``q`` of the non-null values lies, by t-digest.

    Args:
        column: integers or floats.
        q: 0 (exactly the least value) to 1 (exactly the greatest); 0.5 is the median.
        compression: larger is more accurate; a window of a key keeps up to ``8 * compression``
            bytes.
    """
    return WindowAggregation(function="quantile", column=column, q=q, compression=compression)


def arg_min(column: str, by: str) -> WindowAggregation:
    """The value in the row with the least ``by``, the earliest such row; rows in which either
    is null do not count."""
    return WindowAggregation(function="arg_min", column=column, by=by)


def arg_max(column: str, by: str) -> WindowAggregation:
    """The value in the row with the greatest ``by``; as :func:`arg_min`."""
    return WindowAggregation(function="arg_max", column=column, by=by)


def top_k(column: str, n: int, by: str | None = None) -> WindowAggregation:
    """The values in the ``n`` rows with the greatest ``by`` (by default: the greatest values),
    greatest first, as a list; earlier rows first where ``by`` is equal.

    Example:
        >>> str(top_k("bidder", 3, by="price"))
        'top_k(bidder)'
    """
    return WindowAggregation(function="top_k", column=column, by=by, n=n)


def collect_list(column: str) -> WindowAggregation:
    """All non-null values, earliest first, as a list."""
    return WindowAggregation(function="collect_list", column=column)
