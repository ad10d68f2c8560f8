"""One input of a join: its columns, its event times, and how its kept rows look in a checkpoint.

Why it exists: both inputs of a join are read, checked and stored in the same way. The columns
of a side are fixed by its first rows (or by the plan, where results must be named before any
row has come) and held to from then on. Encodings are undone on the way in, so a column that
comes now as a dictionary and now as plain strings is one column.

    <side>_schema  UNION   the columns of the side
    <side>         KEYED   key_group int32, key.<name> per key column, value.<name> per other
                           column, then what the operator adds

Key columns hold each row's own values, so a snapshot gathers nothing.

May import: errors, elements, operators, watermarks, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, DataError, SchemaChangedError, StateMismatchError
from helios_ray.operators.base import OperatorContext, OperatorSnapshot, StateKind, StateTable
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.keyed import KEY_GROUP
from helios_ray.operators.rows import schema_state, stored_schemas
from helios_ray.operators.user_functions import FailureHandler, position, truncated
from helios_ray.operators.window_aggregates.groups import Mask
from helios_ray.operators.windows.slices import LATEST
from helios_ray.state.hashing import check_keys, decoded, logical_type, missing_column
from helios_ray.watermarks import EventTime


class SideRows(NamedTuple):
    """Rows of one side, on their way in.

    Args:
        data: the rows, encodings undone.
        times: their event times (µs).
        slots: their keys.
        numbers: which rows of the batch they are.
    """

    data: pa.RecordBatch
    times: Ints
    slots: Ints
    numbers: Ints

    def take(self, rows: Ints) -> SideRows:
        """The given rows, copied."""
        data = self.data.take(pa.array(rows))
        return SideRows(data, self.times[rows], self.slots[rows], self.numbers[rows])

    def filter(self, mask: Mask) -> SideRows:
        """The rows of ``mask``; these rows themselves where it is true everywhere."""
        return self if mask.all() else self.take(np.flatnonzero(mask))


class StoredRows(NamedTuple):
    """Rows of one side, out of a checkpoint.

    Args:
        data: the rows.
        extras: what the operator added to them.
        groups: their key groups.
    """

    data: pa.RecordBatch
    extras: list[pa.Array]
    groups: Ints


class Side:
    """See the module's docstring.

    Args:
        name: ``left`` or ``right``; names the state table.
        keys: key columns.
        time: where its rows carry their event time.
        declared: its columns, where the plan knows them.
        what: the operator's kind, for messages.

    Raises:
        ConfigError: no event time.
        MissingColumnError, PlanError, SchemaChangedError: a column of ``declared`` that does
            not do as key or event time.
    """

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        time: str | EventTime,
        declared: pa.Schema | None,
        what: str,
    ) -> None:
        event_time = EventTime.of(time)
        if not isinstance(event_time, EventTime):
            raise ConfigError(
                f"{what} needs an event time column on the {name} side, got {time!r}. Give its "
                f"source a watermark strategy, or name the column."
            )
        self.name = name
        self.keys = tuple(keys)
        self.time = event_time
        self._declared = declared
        self.schema: pa.Schema | None = None
        """Columns, encodings undone; None as long as nothing fixed them."""
        self._last: pa.Schema | None = None
        if declared is not None:
            self.check(declared, what)

    def check(self, schema: pa.Schema, where: str) -> None:
        """Raise unless ``schema`` has the keys and an event time."""
        check_keys(schema, self.keys, f"{where}, {self.name} side")
        self.time.check(schema, f"{where}, {self.name} side")

    def known(self) -> pa.Schema | None:
        """The columns, by the first rows or by the plan; None where neither tells."""
        if self.schema is None and self._declared is not None:
            self.schema = plain_schema(self._declared)
        return self.schema

    def required(self, where: str) -> pa.Schema:
        """The columns, which results are about to be named by.

        Raises:
            DataError: nobody knows them yet.
        """
        schema = self.known()
        if schema is None:
            raise DataError(
                f"{where}: a result without a row of the {self.name} side is due, and the "
                f"columns of that side are not known: no row of it has come, and its stream does "
                f"not declare them. Declare schema= where the {self.name} stream is made."
            )
        return schema

    def prepare(self, schema: pa.Schema, where: str, origin: object) -> bool:
        """Before each batch: fix the columns at the first, compare them at later ones.

        Returns:
            Whether the columns have just been fixed.

        Raises:
            MissingColumnError: a column is not there.
            SchemaChangedError: a column changed its type.
        """
        if schema is self._last:
            return False
        fresh = self.schema is None
        if self.schema is None:
            self.check(schema, where)
            self.schema = plain_schema(schema)
        else:
            self._compare(self.schema, schema, where, origin)
        self._last = schema
        return fresh

    def _compare(self, known: pa.Schema, came: pa.Schema, where: str, origin: object) -> None:
        place = f" (read from {origin})" if origin is not None else ""
        for field in known:
            if field.name not in came.names:
                raise missing_column(field.name, came, f"{where}, {self.name} side")
            kind = logical_type(came.field(field.name).type)
            if kind != field.type:
                raise SchemaChangedError(
                    f"{where}: column {field.name!r} of the {self.name} side was {field.type} and "
                    f"is now {kind}{place}; rows that are kept have the first type. Cast the "
                    f"column before this operator, or declare schema= where it is made."
                )

    # ------------------------------------------------------------------------------- rows

    def read(self, batch: Batch, failures: FailureHandler, where: str) -> SideRows:
        """The rows that have an event time; slots are not filled in yet."""
        assert self.schema is not None
        names = self.schema.names
        columns = [decoded(batch.data.column(name)) for name in names]
        data = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        numbers = np.arange(data.num_rows)
        column = self.time.read(data)
        times = pc.fill_null(column, 0).to_numpy() if column.null_count else column.to_numpy()
        rows = SideRows(data, times, numbers, numbers)
        good: Mask | None = None
        if column.null_count:
            good = column.is_valid().to_numpy(zero_copy_only=False)
        if int(times.min()) < -LATEST or int(times.max()) > LATEST:
            near = (times >= -LATEST) & (times <= LATEST)
            good = near if good is None else good & near
        if good is None or good.all():
            return rows
        for i in np.flatnonzero(~good).tolist():
            self._untimed(batch, i, failures, where)
        return rows.filter(good)

    def _untimed(self, batch: Batch, index: int, failures: FailureHandler, where: str) -> None:
        row = batch.data.slice(index, 1).to_pylist()
        value = row[0][self.time.column]
        state = "null" if value is None else "out of range"
        problem = f"event time column {self.time.column!r} of the {self.name} side is {state}"
        error = DataError(problem)
        if failures.on_error != "raise":
            failures.failed(error, row, index, batch)
            return
        place = position(batch, index)
        source = f", read from {place}" if place else ""
        raise DataError(
            f"{where}: {problem} in row {index} of its batch {truncated(row[0])}{source}: it has "
            f"no place in time. Filter such rows out before, or pass on_error='skip' or "
            f"on_error='dead_letter' to go on without them."
        )

    def null_keys(self, data: pa.RecordBatch) -> Mask | None:
        """Which rows have a null in their key, and so equal nothing; None for none."""
        found: Mask | None = None
        for key in self.keys:
            column = data.column(key)
            if column.null_count:
                null = column.is_null().to_numpy(zero_copy_only=False)
                found = null if found is None else found | null
        return found

    # ------------------------------------------------------------------------------ state

    def _order(self) -> list[str]:
        assert self.schema is not None
        return [*self.keys, *(name for name in self.schema.names if name not in self.keys)]

    def state_schema(self, extras: Sequence[pa.Field] = ()) -> pa.Schema:
        """Columns of the state table."""
        assert self.schema is not None
        fields = [pa.field(KEY_GROUP, pa.int32())]
        for name in self._order():
            prefix = "key" if name in self.keys else "value"
            fields.append(pa.field(f"{prefix}.{name}", self.schema.field(name).type))
        return pa.schema([*fields, *extras])

    def table(self, data: pa.RecordBatch, groups: Ints) -> pa.Table:
        """Kept rows as the state has them, by reference, without extras."""
        arrays = [pa.array(groups, pa.int32()), *(data.column(name) for name in self._order())]
        return pa.Table.from_arrays(arrays, schema=self.state_schema())

    def snapshot(self, table: pa.Table, context: OperatorContext) -> OperatorSnapshot:
        """The state of this side, once its columns are known."""
        return {
            f"{self.name}_schema": schema_state(self.schema, context),
            self.name: StateTable(StateKind.KEYED, table),
        }

    def restore_schema(
        self, state: Mapping[str, StateTable], context: OperatorContext, where: str
    ) -> bool:
        """Take up the columns that state was made of; returns whether there are any.

        Raises:
            SchemaChangedError: subtasks disagree, or keys or event time are not among them.
        """
        stored = state.get(f"{self.name}_schema")
        schemas = stored_schemas(stored, context) if stored is not None else []
        if not schemas:
            return False
        for other in schemas[1:]:
            if not other.equals(schemas[0]):
                raise SchemaChangedError(
                    f"{where}: its subtasks read different columns on the {self.name} side: "
                    f"{schemas[0]} and {other}. Declare schema= where the columns are made."
                )
        lacking = [n for n in (*self.keys, self.time.column) if n not in schemas[0].names]
        if lacking:
            raise SchemaChangedError(
                f"{where}: its state was made from columns {schemas[0].names} of the {self.name} "
                f"side, and it now reads {lacking[0]!r}. Give the changed operator a new uid to "
                f"start it without state."
            )
        self.schema = schemas[0]
        return True

    def restore(
        self,
        state: Mapping[str, StateTable],
        extras: Sequence[pa.Field],
        context: OperatorContext,
        where: str,
    ) -> StoredRows | None:
        """Rows that state holds; None for none.

        Raises:
            SchemaChangedError: the state has other columns than this operator keeps.
            StateMismatchError: rows belong to another subtask.
        """
        stored = state.get(self.name)
        if stored is None or stored.table.num_rows == 0:
            return None
        table = stored.table.combine_chunks()
        if not table.schema.equals(self.state_schema(extras)):
            raise SchemaChangedError(
                f"{where}: its state of the {self.name} side has columns {table.schema.names}, "
                f"expected {self.state_schema(extras).names}: the keys or how= changed. Give the "
                f"operator a new uid to start it afresh."
            )
        assert self.schema is not None
        columns = {name: table.column(name).chunk(0) for name in table.schema.names}
        groups = columns[KEY_GROUP].to_numpy()
        own = context.key_groups
        if int(groups.min()) < own.start or int(groups.max()) >= own.stop:
            raise StateMismatchError(
                f"{where}: state of key groups {int(groups.min())} to {int(groups.max())} came to "
                f"a subtask that owns {own.start} to {own.stop - 1}. Restore it with the "
                f"max_parallelism it was written with."
            )
        arrays = [
            columns[f"{'key' if name in self.keys else 'value'}.{name}"]
            for name in self.schema.names
        ]
        data = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        return StoredRows(data, [columns[f.name] for f in extras], groups)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The same columns with encodings undone."""
    return pa.schema([pa.field(f.name, logical_type(f.type)) for f in schema])


def empty_rows(schema: pa.Schema) -> pa.RecordBatch:
    """No rows of these columns."""
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
