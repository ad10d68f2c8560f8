"""The aggregates, by the names people write.

Why it exists: ``from helios_ray.aggregates import count, max_`` is part of the public face;
a trailing underscore keeps Python's own ``sum``, ``min`` and ``max`` usable beside them.

May import: operators.
"""

from __future__ import annotations

from helios_ray.operators.aggregation import Aggregation

__all__ = ["Aggregation", "count", "max_", "mean", "min_", "sum_"]


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
