"""The columns of a join's results, and how they are put together from rows of both sides.

    all columns of the left, then those of the right that are no key columns

A column of the right that is called like one of the left gets a suffix. Where a row of the
right has no partner, the key columns (called as on the left) hold its key and the left's other
columns are null; where a row of the left has none, the right's columns are null.

May import: elements, errors, state, Arrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias, get_args

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, PlanError
from helios_ray.operators.joins.matching import Ints
from helios_ray.state.hashing import check_keys, logical_type

JoinHow: TypeAlias = Literal["inner", "left", "right", "full"]
"""Which rows without a partner appear: none, those of the left, of the right, of both."""

SUFFIX = "_right"

EMITTED_ROWS = 65_536
"""Rows in a batch of results, at most."""


def parts(rows: int) -> Iterator[slice]:
    """Which of so many results go into each batch."""
    return (slice(at, at + EMITTED_ROWS) for at in range(0, rows, EMITTED_ROWS))


def check_how(how: str, what: str, allowed: Sequence[str] = get_args(JoinHow)) -> None:
    """Raise ConfigError unless ``how`` is among ``allowed``."""
    if how not in allowed:
        raise ConfigError(f"{what}: how must be one of {list(allowed)}, got {how!r}.")


def check_join_keys(
    left: pa.Schema | None,
    right: pa.Schema | None,
    left_keys: Sequence[str],
    right_keys: Sequence[str],
    what: str,
) -> None:
    """Check the keys of both sides as far as their columns are known.

    Raises:
        ConfigError: no keys, or not as many on both sides.
        MissingColumnError, PlanError: a key is not a column, cannot be a key, or has another
            type on the other side.
    """
    if not left_keys or len(left_keys) != len(right_keys):
        raise ConfigError(
            f"{what} needs the same number of key columns on both sides, at least one, got "
            f"{list(left_keys)} and {list(right_keys)}. Use key_by on both streams."
        )
    for schema, keys, side in ((left, left_keys, "left"), (right, right_keys, "right")):
        if schema is not None:
            check_keys(schema, keys, f"{what}, {side} side")
    if left is None or right is None:
        return
    for one, other in zip(left_keys, right_keys, strict=True):
        kinds = logical_type(left.field(one).type), logical_type(right.field(other).type)
        if kinds[0] != kinds[1]:
            raise PlanError(
                f"{what}: key column {one!r} of the left is {kinds[0]} and {other!r} of the right "
                f"is {kinds[1]}. Cast one of them before key_by."
            )


class JoinColumns:
    """See the module's docstring.

    Args:
        left, right: columns of both sides; their encodings are undone in the results.
        left_keys, right_keys: the key columns, in the same order.
        what: the operator, for messages.
        suffix: for columns of the right whose names the left has.

    Raises:
        ConfigError, MissingColumnError, PlanError: as :func:`check_join_keys`; or a name is
            taken even with the suffix.

    Example:
        >>> import numpy as np
        >>> left = pa.table({"id": [1, 2], "n": [10, 20]})
        >>> right = pa.table({"user": [1, 3], "n": [7, 8]})
        >>> columns = JoinColumns(left.schema, right.schema, ["id"], ["user"], "join")
        >>> columns.schema.names
        ['id', 'n', 'n_right']
        >>> rows = columns.assemble(left, np.array([0, 1, -1]), right, np.array([0, -1, 1]))
        >>> rows.to_pydict()
        {'id': [1, 2, 3], 'n': [10, 20, None], 'n_right': [7, None, 8]}
    """

    def __init__(
        self,
        left: pa.Schema,
        right: pa.Schema,
        left_keys: Sequence[str],
        right_keys: Sequence[str],
        what: str,
        suffix: str = SUFFIX,
    ) -> None:
        check_join_keys(left, right, left_keys, right_keys, what)
        self._keys = dict(zip(left_keys, right_keys, strict=True))
        self.left = pa.schema([pa.field(f.name, logical_type(f.type)) for f in left])
        self.right = pa.schema([pa.field(f.name, logical_type(f.type)) for f in right])
        self._kept = [n for n in right.names if n not in right_keys]
        fields = list(self.left)
        taken = set(left.names)
        for name in self._kept:
            called = f"{name}{suffix}" if name in taken else name
            if called in taken:
                raise PlanError(
                    f"{what}: both sides have a column {name!r}, and {called!r} is taken as well. "
                    f"Rename one with select(...) before the join, or pass another suffix."
                )
            taken.add(called)
            fields.append(pa.field(called, self.right.field(name).type))
        self.schema = pa.schema(fields)

    def batches(
        self,
        left: pa.Table | pa.RecordBatch,
        left_rows: Ints,
        right: pa.Table | pa.RecordBatch,
        right_rows: Ints,
    ) -> list[Batch]:
        """Results as :meth:`assemble` makes them, in batches of bounded size."""
        # Made at once and cut by reference: many small allocations cost more than a few large.
        rows = self.assemble(left, left_rows, right, right_rows)
        return [Batch(rows.slice(p.start, p.stop - p.start)) for p in parts(rows.num_rows)]

    def assemble(
        self,
        left: pa.Table | pa.RecordBatch,
        left_rows: Ints,
        right: pa.Table | pa.RecordBatch,
        right_rows: Ints,
    ) -> pa.RecordBatch:
        """Rows of results.

        Args:
            left, right: rows of both sides, plain.
            left_rows, right_rows: which row of each side goes into each result; -1 for none.
        """
        lefts, rights = _indices(left_rows), _indices(right_rows)
        alone = lefts.null_count > 0
        columns = []
        for name in self.left.names:
            column = _take(left.column(name), lefts)
            if alone and name in self._keys:
                column = pc.coalesce(column, _take(right.column(self._keys[name]), rights))
            columns.append(column)
        columns += [_take(right.column(name), rights) for name in self._kept]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _indices(rows: Ints) -> pa.Array:
    none = rows < 0
    return pa.array(rows, mask=none) if none.any() else pa.array(rows)


def _take(column: pa.Array | pa.ChunkedArray, rows: pa.Array) -> pa.Array:
    taken = column.take(rows)
    return taken.combine_chunks() if isinstance(taken, pa.ChunkedArray) else taken
