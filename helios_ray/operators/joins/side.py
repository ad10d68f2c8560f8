"""What the two inputs of a join are: their columns, their keys, and their rows in a checkpoint.

Why it exists: whatever rows a join keeps, it must notice that an input changed its columns, give
equal keys of both sides the same slot, and store rows such that they can be opened offline and
dealt out to other subtasks.

    left_schema, right_schema   UNION   the columns of each side, once rows of it have come
    <kept rows>                 KEYED   key_group int32, what the join adds, row.<name> per column

May import: elements, errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import PlanError, SchemaChangedError, StateMismatchError
from helios_ray.operators.base import OperatorContext, OperatorSnapshot, StateTable
from helios_ray.operators.joins.columns import SUFFIX, JoinColumns, check_join_keys
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.keyed import KEY_GROUP
from helios_ray.operators.rows import schema_state, stored_schemas
from helios_ray.operators.windows.keys import KeySpace
from helios_ray.state.hashing import check_keys, decoded, logical_type

Mask: TypeAlias = npt.NDArray[np.bool_]
Schemas: TypeAlias = tuple[pa.Schema | None, pa.Schema | None]

LEFT, RIGHT = 0, 1
NAMES = ("left", "right")
EMITTED_ROWS = 65_536
"""Results come in batches of at most this many rows."""

_LOOSE_BYTES = 65_536


class Stored(NamedTuple):
    """Rows that came back from a checkpoint.

    Args:
        added: the columns that the join adds.
        rows: the rows.
        slots: the slot of each.
    """

    added: pa.RecordBatch
    rows: pa.RecordBatch
    slots: Ints


class JoinSides:
    """Both inputs of one join operator. Input 0 is the left, input 1 the right.

    Args:
        what: the kind of join, for messages.
        keys: key columns of the left, and of the right in the same order.
        suffix: for columns of the right whose names the left has.
        declared: the columns of each side, where they are known beforehand. They are checked,
            and stand in for those of a side of which no row has come.

    Raises:
        ConfigError, MissingColumnError, PlanError: keys or columns do not fit each other.

    Example:
        >>> sides = JoinSides("join", (["id"], ["user"]))
        >>> sides.open(OperatorContext(uid="j"))
        >>> left = sides.plain(Batch(pa.record_batch({"id": [7, 8]})), LEFT)
        >>> right = sides.plain(Batch(pa.record_batch({"user": [8], "n": ["b"]})), RIGHT)
        >>> sides.slots(left, LEFT).tolist(), sides.slots(right, RIGHT).tolist()
        ([0, 1], [1])
        >>> sides.columns().schema.names
        ['id', 'n']
    """

    def __init__(
        self,
        what: str,
        keys: tuple[Sequence[str], Sequence[str]],
        suffix: str = SUFFIX,
        declared: Schemas = (None, None),
    ) -> None:
        self.what = what
        self.where = what
        self.keys = (tuple(keys[LEFT]), tuple(keys[RIGHT]))
        self.suffix = suffix
        self.declared = declared
        self._schemas: list[pa.Schema | None] = [None, None]
        self._seen: list[pa.Schema | None] = [None, None]
        self._columns: JoinColumns | None = None
        self._space: KeySpace | None = None
        self._context = OperatorContext()
        check_join_keys(*declared, *self.keys, what)
        if declared[LEFT] is not None and declared[RIGHT] is not None:
            self.output_schema(*declared)

    def open(self, context: OperatorContext) -> None:
        """Learn who speaks."""
        self._context = context
        self.where = f"{self.what} {context.uid!r}"

    def output_schema(self, left: pa.Schema, right: pa.Schema, uid: str | None = None) -> pa.Schema:
        """The columns of the results; raises as the constructor does."""
        where = self.what if uid is None else f"{self.what} {uid!r}"
        return JoinColumns(left, right, *self.keys, where, self.suffix).schema

    # --------------------------------------------------------------------------- columns

    def schema(self, side: int) -> pa.Schema | None:
        """The columns of a side, encodings undone; None while no row of it has come."""
        return self._schemas[side]

    def columns(self) -> JoinColumns:
        """The columns of the results.

        Raises:
            PlanError: of one side no row has come, and its columns were not declared.
        """
        if self._columns is None:
            left, right = (self._known(side) for side in (LEFT, RIGHT))
            self._columns = JoinColumns(left, right, *self.keys, self.where, self.suffix)
        return self._columns

    def _known(self, side: int) -> pa.Schema:
        schema = self._schemas[side]
        if schema is None:
            schema = self.declared[side]
            if schema is None:
                raise PlanError(
                    f"{self.where}: a row without partner needs the columns of the {NAMES[side]} "
                    f"side, of which no row has come. Declare schema= where that stream is made."
                )
            # Results have been made of them: from now on rows must be so.
            schema = _plain_schema(schema)
            self._schemas[side] = schema
        return schema

    def plain(self, batch: Batch, side: int) -> pa.RecordBatch:
        """The rows of a batch with encodings undone.

        Raises:
            MissingColumnError, PlanError: the first rows of this side lack a key, or do not fit
                the other side.
            SchemaChangedError: later rows have other columns.
        """
        data = batch.data
        if data.schema is not self._seen[side]:
            self._look_at(data.schema, side, batch)
            self._seen[side] = data.schema
        schema = self._schemas[side]
        if data.schema.equals(schema):
            return _own(data)
        arrays = [decoded(column) for column in data.columns]
        return _own(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def _look_at(self, schema: pa.Schema, side: int, batch: Batch) -> None:
        came, known = _plain_schema(schema), self._schemas[side]
        if known is None:
            check_keys(schema, self.keys[side], f"{self.where}, {NAMES[side]} side")
            self._schemas[side] = came
            self._number(side)
            if self._schemas[1 - side] is not None:
                self.columns()
        elif not came.equals(known):
            place = f" (read from {batch.origin})" if batch.origin is not None else ""
            raise SchemaChangedError(
                f"{self.where}: rows of its {NAMES[side]} side had columns {_described(known)} "
                f"and now have {_described(came)}{place}. Make the sources agree, or cast before "
                f"the join."
            )

    # ------------------------------------------------------------------------------ keys

    @property
    def space(self) -> KeySpace:
        """The slots of the keys; only once rows of a side have come."""
        assert self._space is not None
        return self._space

    def _number(self, side: int) -> None:
        schema = self._schemas[side]
        if self._space is None and schema is not None:
            names = self.keys[LEFT]
            kinds = [schema.field(key).type for key in self.keys[side]]
            keys = pa.schema(list(zip(names, kinds, strict=True)))
            self._space = KeySpace(names, keys, self._context.max_parallelism)

    def slots(self, rows: pa.RecordBatch, side: int) -> Ints:
        """The slot of every row: equal keys of both sides have the same. Nulls have slots too."""
        names = self.keys[LEFT]
        arrays = [rows.column(key) for key in self.keys[side]]
        return self.space.slots(pa.RecordBatch.from_arrays(arrays, names=list(names)))

    def comparable(self, rows: pa.RecordBatch, side: int) -> Mask | None:
        """Which rows have no null in their key; None for all of them."""
        found: Mask | None = None
        for key in self.keys[side]:
            column = rows.column(key)
            if column.null_count:
                valid = column.is_valid().to_numpy(zero_copy_only=False)
                found = valid if found is None else found & valid
        return found

    # ----------------------------------------------------------------------------- state

    def snapshot(self) -> OperatorSnapshot:
        """The columns of the sides that have come."""
        return {
            f"{name}_schema": schema_state(schema, self._context)
            for name, schema in zip(NAMES, self._schemas, strict=True)
            if schema is not None
        }

    def restore(self, state: Mapping[str, StateTable]) -> None:
        """Take up the columns of the sides.

        Raises:
            SchemaChangedError: the keys are none of them any more, or subtasks disagree.
        """
        for side, name in enumerate(NAMES):
            stored = state.get(f"{name}_schema")
            schemas = stored_schemas(stored, self._context) if stored is not None else []
            for other in schemas[1:]:
                if not other.equals(schemas[0]):
                    raise SchemaChangedError(
                        f"{self.where}: subtasks read different columns of the {name} side: "
                        f"{_described(schemas[0])} and {_described(other)}. Declare schema= where "
                        f"they are made."
                    )
            if schemas:
                self._schemas[side] = schemas[0]
        try:
            left, right = self._schemas
            check_join_keys(left, right, *self.keys, self.where)
            if left is not None and right is not None:
                self.columns()
        except PlanError as error:
            raise SchemaChangedError(
                f"{self.where}: its state was made from other columns than it now reads: {error} "
                f"Give the changed operator a new uid to start it without state."
            ) from error
        self._number(LEFT)
        self._number(RIGHT)

    def stored_schema(self, side: int, added: pa.Schema) -> pa.Schema:
        """Of a table of kept rows."""
        schema = self._schemas[side]
        assert schema is not None
        rows = [pa.field(f"row.{f.name}", f.type) for f in schema]
        return pa.schema([pa.field(KEY_GROUP, pa.int32()), *added, *rows])

    def stored(
        self, side: int, added: pa.Schema, slots: Ints, arrays: Sequence[pa.Array]
    ) -> pa.Table:
        """A table of kept rows: ``arrays`` are the added columns and those of the rows."""
        groups = pa.array(self.space.groups()[slots], pa.int32())
        schema = self.stored_schema(side, added)
        return pa.Table.from_arrays([groups, *arrays], schema=schema)

    def restored(
        self, state: Mapping[str, StateTable], name: str, side: int, added: pa.Schema
    ) -> Iterator[Stored]:
        """The kept rows of a table, in its order.

        Raises:
            SchemaChangedError: the table was made by another kind of join.
            StateMismatchError: rows belong to another subtask, or were keyed by other columns.
        """
        found = state.get(name)
        if found is None or found.table.num_rows == 0:
            return
        schema = self._schemas[side]
        if schema is None or not found.table.schema.equals(self.stored_schema(side, added)):
            raise SchemaChangedError(
                f"{self.where}: its state {name!r} has columns {found.table.column_names}: it was "
                f"made by another kind of join. Give the operator a new uid to start it afresh."
            )
        own = self._context.key_groups
        for batch in found.table.to_batches():
            if batch.num_rows == 0:
                continue
            columns = batch.columns
            rows = pa.RecordBatch.from_arrays(columns[1 + len(added) :], schema=schema)
            slots = self.slots(rows, side)
            groups = columns[0].to_numpy()
            if int(groups.min()) < own.start or int(groups.max()) >= own.stop:
                raise StateMismatchError(
                    f"{self.where}: state of key groups {int(groups.min())} to "
                    f"{int(groups.max())} came to a subtask that owns {own.start} to "
                    f"{own.stop - 1}. Restore it with the max_parallelism it was written with."
                )
            if not np.array_equal(self.space.groups()[slots], groups):
                raise StateMismatchError(
                    f"{self.where}: rows of its state are in other key groups than their keys "
                    f"{list(self.keys[side])} hash to. Restore it with the keys and the "
                    f"max_parallelism it was written with (now {self._context.max_parallelism})."
                )
            more = pa.RecordBatch.from_arrays(columns[1 : 1 + len(added)], schema=added)
            yield Stored(more, rows, slots)


def sliced(rows: pa.RecordBatch) -> list[Batch]:
    """Results as batches of bounded size."""
    return [
        Batch(rows.slice(start, EMITTED_ROWS)) for start in range(0, rows.num_rows, EMITTED_ROWS)
    ]


def _own(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows that keep nothing much larger alive than themselves: a slice would, all of it."""
    if rows.get_total_buffer_size() <= 2 * rows.nbytes + _LOOSE_BYTES:
        return rows
    return rows.take(pa.array(np.arange(rows.num_rows)))


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field(f.name, logical_type(f.type)) for f in schema])


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
