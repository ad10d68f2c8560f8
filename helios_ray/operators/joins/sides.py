"""Both inputs of a join: one space of keys, the columns of the results, and the state of both.

Why it exists: equal keys of both sides must have the same slot, whatever the columns are called;
and results can be named only once both sides are known.

May import: elements, errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import PlanError, SchemaChangedError, StateMismatchError
from helios_ray.operators.base import OperatorContext, OperatorSnapshot, StateTable
from helios_ray.operators.joins.columns import SUFFIX, JoinColumns, check_join_keys
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.joins.side import Side, empty_rows
from helios_ray.operators.rows import schema_state
from helios_ray.operators.windows.keys import KeySpace
from helios_ray.state.hashing import logical_type

InputSchemas: TypeAlias = tuple[pa.Schema | None, pa.Schema | None]

LEFT, RIGHT = 0, 1
NAMES = ("left", "right")


class Stored(NamedTuple):
    """Kept rows that came back from a checkpoint.

    Args:
        rows: the rows.
        slots: the slot of each.
        extras: what the join added to them.
    """

    rows: pa.RecordBatch
    slots: Ints
    extras: list[pa.Array]


class Sides:
    """Both inputs of one join operator. Input 0 is the left, input 1 the right.

    Args:
        what: the kind of join, for messages.
        keys: key columns of the left, and of the right in the same order.
        declared: the columns of each side, where they are known beforehand. They are checked,
            and stand in for those of a side of which no row has come.
        suffix: for columns of the right whose names the left has.
        joined: whether results have the columns of both sides.

    Raises:
        ConfigError: no keys, or not as many on both sides.
        MissingColumnError, PlanError: keys or columns do not fit each other.

    Example:
        >>> sides = Sides("join", (["id"], ["user"]))
        >>> sides.open(OperatorContext(uid="j"))
        >>> left = sides.read(Batch(pa.record_batch({"id": [7, 8]})), LEFT)
        >>> right = sides.read(Batch(pa.record_batch({"user": [8], "n": ["b"]})), RIGHT)
        >>> sides.slots(left, LEFT).tolist(), sides.slots(right, RIGHT).tolist()
        ([0, 1], [1])
        >>> sides.columns().schema.names
        ['id', 'n']
    """

    def __init__(
        self,
        what: str,
        keys: tuple[str | Sequence[str], str | Sequence[str]],
        declared: InputSchemas = (None, None),
        suffix: str = SUFFIX,
        *,
        joined: bool = True,
    ) -> None:
        self.what = what
        self.where = what
        left, right = ((k,) if isinstance(k, str) else tuple(k) for k in keys)
        self.keys = (left, right)
        self.suffix = suffix
        self._joined = joined
        self._pair = tuple(
            Side(name, own, schema, what)
            for name, own, schema in zip(NAMES, self.keys, declared, strict=True)
        )
        self._columns: JoinColumns | None = None
        self._space: KeySpace | None = None
        self._context = OperatorContext()
        self.check(*declared, what)

    def open(self, context: OperatorContext) -> None:
        """Learn who speaks."""
        self._context = context
        self.where = f"{self.what} {context.uid!r}"
        for side in self._pair:
            side.where = self.where

    def __getitem__(self, index: int) -> Side:
        return self._pair[index]

    def check(self, left: pa.Schema | None, right: pa.Schema | None, where: str) -> None:
        """Raise unless the columns fit each other, as far as they are known."""
        check_join_keys(left, right, *self.keys, where)
        if self._joined and left is not None and right is not None:
            self.columns_of(left, right, where)

    # --------------------------------------------------------------------------- columns

    def schema(self, index: int) -> pa.Schema | None:
        """The columns of a side, encodings undone; None as long as nothing fixed them."""
        return self._pair[index].schema

    def columns_of(self, left: pa.Schema, right: pa.Schema, where: str) -> JoinColumns:
        """The columns of the results for these inputs; raises as the constructor does."""
        return JoinColumns(left, right, *self.keys, where, self.suffix)

    def output_schema(
        self, left: pa.Schema | None, right: pa.Schema | None, uid: str
    ) -> pa.Schema | None:
        """The columns of the results, None where they are not known; raises likewise."""
        where = f"{self.what} {uid!r}"
        check_join_keys(left, right, *self.keys, where)
        if left is None or right is None or not self._joined:
            return None
        return self.columns_of(left, right, where).schema

    def columns(self) -> JoinColumns:
        """The columns of the results.

        Raises:
            PlanError: of one side nothing has come, and its columns were not declared.
        """
        if self._columns is None:
            left, right = (side.required() for side in self._pair)
            self._columns = self.columns_of(left, right, self.where)
        return self._columns

    # ------------------------------------------------------------------------------- rows

    def read(self, batch: Batch, index: int) -> pa.RecordBatch:
        """The rows of a batch with encodings undone.

        Raises:
            MissingColumnError, PlanError: the first batch of this side lacks a key, or does not
                fit the other side; a later one lacks a column.
            SchemaChangedError: a column changed its type.
        """
        side = self._pair[index]
        if side.prepare(batch.data.schema, batch.origin):
            left, right = (each.schema for each in self._pair)
            self.check(left, right, self.where)
        return side.plain(batch.data)

    def results(
        self, index: int, rows: pa.RecordBatch, own: Ints, others: pa.RecordBatch, other: Ints
    ) -> list[Batch]:
        """Rows of side ``index`` joined with rows of the other.

        Args:
            rows, others: rows of this side and of the other.
            own, other: which of them go into each result, -1 for none.
        """
        if len(own) == 0:
            return []
        if index == LEFT:
            return self.columns().batches(rows, own, others, other)
        return self.columns().batches(others, other, rows, own)

    def lone(self, index: int, rows: pa.RecordBatch, own: Ints) -> list[Batch]:
        """Rows of side ``index`` that have no partner.

        Raises:
            PlanError: the columns of the other side are not known.
        """
        if len(own) == 0:
            return []
        others = empty_rows(self._pair[1 - index].required())
        return self.results(index, rows, own, others, np.full(len(own), -1))

    # ------------------------------------------------------------------------------ keys

    @property
    def space(self) -> KeySpace:
        """The keys of both sides, under the names of the left; once a side is known."""
        if self._space is None:
            side = next(side for side in self._pair if side.schema is not None)
            assert side.schema is not None
            kinds = [logical_type(side.schema.field(key).type) for key in side.keys]
            names = self.keys[LEFT]
            schema = pa.schema(list(zip(names, kinds, strict=True)))
            self._space = KeySpace(names, schema, self._context.max_parallelism)
        return self._space

    def slots(self, rows: pa.RecordBatch, index: int) -> Ints:
        """The slot of every row: equal keys of both sides have the same. Nulls have slots too."""
        columns = [rows.column(key) for key in self.keys[index]]
        return self.space.slots(pa.RecordBatch.from_arrays(columns, schema=self.space.schema))

    def forget_keys(self, live: int, used: Callable[[], Ints]) -> Ints | None:
        """Number the keys afresh where few of many are in use.

        Args:
            live: at least as many as there are keys in use.
            used: finds their slots.

        Returns:
            The new slot of every old one, ascending and -1 for those forgotten; None where
            nothing was done.
        """
        if self._space is None or not self._space.worth_forgetting(live):
            return None
        return self._space.forget(np.unique(used()))

    # ------------------------------------------------------------------------------ state

    def snapshot(self) -> OperatorSnapshot:
        """The columns of the sides that are known."""
        return {
            f"{side.name}_schema": schema_state(side.schema, self._context)
            for side in self._pair
            if side.schema is not None
        }

    def restore(self, state: Mapping[str, StateTable], times: tuple[str, ...] = ()) -> None:
        """Take up the columns of the sides.

        Args:
            times: the event time column of each side, where they are needed.

        Raises:
            SchemaChangedError: they do not do any more, or subtasks disagree.
        """
        for index, side in enumerate(self._pair):
            needed = [*side.keys, *times[index : index + 1]]
            side.restore_schema(state, self._context, needed)
        left, right = (side.schema for side in self._pair)
        try:
            self.check(left, right, self.where)
        except PlanError as error:
            raise SchemaChangedError(
                f"{self.where}: its state was made from other columns than it now reads: {error} "
                f"Give the changed operator a new uid to start it without state."
            ) from error

    def table(self, index: int, rows: pa.RecordBatch, slots: Ints) -> pa.Table:
        """Kept rows as the state has them, without extras."""
        return self._pair[index].table(rows, self.space.groups()[slots])

    def restored(
        self, state: Mapping[str, StateTable], index: int, extras: Sequence[pa.Field] = ()
    ) -> Iterator[Stored]:
        """The kept rows of a side, in their order.

        Raises:
            SchemaChangedError: the state has other columns than this join keeps.
            StateMismatchError: rows belong to another subtask.
        """
        side = self._pair[index]
        for found in side.restored(state, side.name, self._context, extras):
            slots = self.slots(found.data, index)
            if not np.array_equal(self.space.groups()[slots], found.groups):
                raise StateMismatchError(
                    f"{self.where}: keys of its state are in other key groups than they hash to. "
                    f"Restore it with the max_parallelism it was written with "
                    f"(now {self._context.max_parallelism})."
                )
            yield Stored(found.data, slots, found.extras)
