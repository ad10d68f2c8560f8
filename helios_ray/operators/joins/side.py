"""One input of a join: its columns, its keys, and how its kept rows look in a checkpoint.

Why it exists: both inputs of every join are read, checked and stored in the same way. The
columns of a side are fixed by its first batch (or by the plan, where results must be named before
any has come) and held to from then on. Columns are read by name, with encodings undone, so one
that comes now as a dictionary and now as plain strings is one column.

    <side>_schema  UNION   the columns of the side
    <side>         KEYED   key_group int32, key.<name> per key column, value.<name> per other
                           column, then what the join adds

Key columns hold each row's own values, so a snapshot gathers nothing.

May import: errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from helios_ray.errors import PlanError, SchemaChangedError, StateMismatchError
from helios_ray.operators.base import OperatorContext, StateTable
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.keyed import KEY_GROUP
from helios_ray.operators.rows import stored_schemas
from helios_ray.operators.window_aggregates.groups import Mask
from helios_ray.state.hashing import check_keys, decoded, logical_type, missing_column

_LOOSE_BYTES = 65_536


class StoredRows(NamedTuple):
    """Rows of one side, out of a checkpoint.

    Args:
        data: the rows.
        extras: what the join added to them.
        groups: their key groups.
    """

    data: pa.RecordBatch
    extras: list[pa.Array]
    groups: Ints


class Side:
    """See the module's docstring.

    Args:
        name: ``left`` or ``right``.
        keys: key columns.
        declared: its columns, where the plan knows them.
        where: who speaks, for messages.
    """

    def __init__(
        self, name: str, keys: Sequence[str], declared: pa.Schema | None, where: str
    ) -> None:
        self.name = name
        self.keys = tuple(keys)
        self.where = where
        self.schema: pa.Schema | None = None
        """Columns, encodings undone; None as long as nothing fixed them."""
        self._declared = declared
        self._last: pa.Schema | None = None

    # ------------------------------------------------------------------------------- rows

    def prepare(self, schema: pa.Schema, origin: object) -> bool:
        """Before each batch: fix the columns at the first, compare them at later ones.

        Returns:
            Whether the columns have just been fixed.

        Raises:
            MissingColumnError: a column is not there.
            PlanError: a column cannot be a key.
            SchemaChangedError: a column changed its type.
        """
        if self._last is not None and schema.equals(self._last):
            return False
        fresh = self.schema is None
        if self.schema is None:
            check_keys(schema, self.keys, f"{self.where}, {self.name} side")
            self.schema = plain_schema(schema)
        else:
            self._compare(self.schema, schema, origin)
        self._last = schema
        return fresh

    def _compare(self, known: pa.Schema, came: pa.Schema, origin: object) -> None:
        place = f" (read from {origin})" if origin is not None else ""
        for field in known:
            if field.name not in came.names:
                raise missing_column(field.name, came, f"{self.where}, {self.name} side")
            kind = logical_type(came.field(field.name).type)
            if kind != field.type:
                raise SchemaChangedError(
                    f"{self.where}: column {field.name!r} of the {self.name} side was {field.type} "
                    f"and is now {kind}{place}; rows that are kept have the first type. Cast the "
                    f"column before this operator, or declare schema= where it is made."
                )

    def plain(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Rows in the columns of this side, encodings undone."""
        assert self.schema is not None
        if data.schema.equals(self.schema):
            return data
        arrays = [decoded(data.column(name)) for name in self.schema.names]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def null_keys(self, rows: pa.RecordBatch) -> Mask | None:
        """Which rows have a null in their key, and so equal nothing; None for none."""
        found: Mask | None = None
        for key in self.keys:
            column = rows.column(key)
            if column.null_count:
                null = column.is_null().to_numpy(zero_copy_only=False)
                found = null if found is None else found | null
        return found

    def required(self) -> pa.Schema:
        """The columns, which results are about to be named by.

        Raises:
            PlanError: nobody knows them yet.
        """
        if self.schema is None:
            if self._declared is None:
                raise PlanError(
                    f"{self.where}: a row without partner needs the columns of the {self.name} "
                    f"side, of which no row has come and whose stream does not declare them. "
                    f"Declare schema= where the {self.name} stream is made."
                )
            self.schema = plain_schema(self._declared)
        return self.schema

    # ------------------------------------------------------------------------------ state

    def _order(self) -> list[str]:
        assert self.schema is not None
        return [*self.keys, *(name for name in self.schema.names if name not in self.keys)]

    def _stored_name(self, name: str) -> str:
        return f"{'key' if name in self.keys else 'value'}.{name}"

    def state_schema(self, extras: Sequence[pa.Field] = (), *, keyed: bool = True) -> pa.Schema:
        """Columns of a table of kept rows.

        Args:
            extras: what the join adds to them.
            keyed: whether they have a key group; a table that every subtask has whole has none.
        """
        assert self.schema is not None
        fields = [pa.field(KEY_GROUP, pa.int32())] if keyed else []
        fields += [
            pa.field(self._stored_name(name), self.schema.field(name).type)
            for name in self._order()
        ]
        return pa.schema([*fields, *extras])

    def table(self, rows: pa.RecordBatch, groups: Ints | None) -> pa.Table:
        """Kept rows as the state has them, by reference, without extras.

        Args:
            rows: in the columns of this side.
            groups: their key groups, None where the state is not keyed.
        """
        arrays = [] if groups is None else [pa.array(groups, pa.int32())]
        arrays += [rows.column(name) for name in self._order()]
        return pa.Table.from_arrays(arrays, schema=self.state_schema(keyed=groups is not None))

    def restore_schema(
        self, state: Mapping[str, StateTable], context: OperatorContext, needed: Sequence[str]
    ) -> None:
        """Take up the columns that state was made of, if there is any.

        Args:
            needed: columns that the join reads by name.

        Raises:
            SchemaChangedError: subtasks disagree, or a column that is needed is not among them.
        """
        stored = state.get(f"{self.name}_schema")
        schemas = stored_schemas(stored, context) if stored is not None else []
        if not schemas:
            return
        for other in schemas[1:]:
            if not other.equals(schemas[0]):
                raise SchemaChangedError(
                    f"{self.where}: its subtasks read different columns on the {self.name} side: "
                    f"{_described(schemas[0])} and {_described(other)}. Declare schema= where the "
                    f"columns are made."
                )
        lacking = [name for name in needed if name not in schemas[0].names]
        if lacking:
            raise SchemaChangedError(
                f"{self.where}: its state was made from columns {schemas[0].names} of the "
                f"{self.name} side, and it now reads {lacking[0]!r}. Give the changed operator a "
                f"new uid to start it without state."
            )
        self.schema = schemas[0]

    def restored(
        self,
        state: Mapping[str, StateTable],
        name: str,
        context: OperatorContext,
        extras: Sequence[pa.Field] = (),
        *,
        keyed: bool = True,
    ) -> Iterator[StoredRows]:
        """The kept rows of a table, in its order; without key groups where it is not ``keyed``.

        Raises:
            SchemaChangedError: the state has other columns than this join keeps.
            StateMismatchError: rows belong to another subtask.
        """
        stored = state.get(name)
        if stored is None or stored.table.num_rows == 0:
            return
        expected = None if self.schema is None else self.state_schema(extras, keyed=keyed)
        if expected is None or not stored.table.schema.equals(expected):
            wanted = "none" if expected is None else expected.names
            raise SchemaChangedError(
                f"{self.where}: its state {name!r} has columns {stored.table.column_names}, "
                f"expected {wanted}: the keys, how= or the kind of join changed. Give the operator "
                f"a new uid to start it afresh."
            )
        assert self.schema is not None
        places = [expected.get_field_index(self._stored_name(n)) for n in self.schema.names]
        for batch in stored.table.combine_chunks().to_batches():
            arrays = [batch.column(place) for place in places]
            data = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
            more = batch.columns[len(expected) - len(extras) :]
            groups = batch.column(0).to_numpy() if keyed else np.zeros(0, np.int64)
            if keyed:
                self._check_owned(groups, context)
            yield StoredRows(data, more, groups)

    def _check_owned(self, groups: Ints, context: OperatorContext) -> None:
        own = context.key_groups
        if int(groups.min()) < own.start or int(groups.max()) >= own.stop:
            raise StateMismatchError(
                f"{self.where}: state of key groups {int(groups.min())} to {int(groups.max())} "
                f"came to a subtask that owns {own.start} to {own.stop - 1}. Restore it with the "
                f"max_parallelism it was written with."
            )


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The same columns with encodings undone."""
    return pa.schema([pa.field(f.name, logical_type(f.type)) for f in schema])


def empty_rows(schema: pa.Schema) -> pa.RecordBatch:
    """No rows of these columns."""
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)


def owned(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows that keep nothing much larger alive than themselves: a slice would, all of it."""
    if rows.get_total_buffer_size() <= 2 * rows.nbytes + _LOOSE_BYTES:
        return rows
    return rows.take(pa.array(np.arange(rows.num_rows)))


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
