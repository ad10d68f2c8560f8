"""What operators with one row of state per key share.

Why it exists: the input columns such an operator depends on are fixed by its first rows and
stored with its state, the state is one ``KEYED`` table, and restoring it means the same
checks everywhere.

    input_schema   UNION   the types of the columns the operator reads
    <table>        KEYED   key_group int32, key.<name> per key column, value.<...> columns

May import: errors, operators.base, operators.rows, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from helios_ray.errors import PlanError, SchemaChangedError, StateMismatchError
from helios_ray.operators.base import (
    Operator,
    OperatorSnapshot,
    StateKind,
    StateTable,
)
from helios_ray.operators.rows import schema_state, stored_schemas
from helios_ray.state.hashing import missing_column
from helios_ray.state.index import KeyIndex, Slots

INPUT_SCHEMA = "input_schema"
KEY_GROUP = "key_group"


class KeyedOperator(Operator):
    """Base of operators whose state is one Arrow row per key.

    Subclasses set ``what``, ``table_name`` and ``keys`` and define :meth:`build`.
    """

    what: str
    table_name: str
    keys: tuple[str, ...]
    index: KeyIndex | None = None
    input_schema: pa.Schema | None = None
    _last_schema: pa.Schema | None = None

    def build(self, schema: pa.Schema) -> None:
        """Make the empty state for an input of these columns. Called once."""
        raise NotImplementedError

    def needed(self, schema: pa.Schema) -> Sequence[str]:
        """The input columns whose types must not change."""
        raise NotImplementedError

    @property
    def where(self) -> str:
        """Who speaks, for messages."""
        return f"{self.what} {self.context.uid!r}"

    def prepare(self, schema: pa.Schema, origin: object = None) -> None:
        """Before each batch: build the state at the first, compare columns at later ones.

        Raises:
            MissingColumnError: a needed column is not there.
            SchemaChangedError: a needed column changed its type.
        """
        if schema is self._last_schema:
            return
        if self.input_schema is None:
            self._begin(self._select(schema))
        else:
            self._compare(self.input_schema, self._select(schema), origin)
        self._last_schema = schema

    def _begin(self, schema: pa.Schema) -> None:
        self.build(schema)
        self.index = KeyIndex(self.keys, schema, self.context.max_parallelism)
        self.input_schema = schema

    def _select(self, schema: pa.Schema) -> pa.Schema:
        known = self.input_schema
        names = self.needed(schema) if known is None else known.names
        for name in names:
            if name not in schema.names:
                raise missing_column(name, schema, self.where)
        return pa.schema([pa.field(name, schema.field(name).type) for name in names])

    def _compare(self, known: pa.Schema, came: pa.Schema, origin: object) -> None:
        for before, after in zip(known, came, strict=True):
            if before.type != after.type:
                place = f" (read from {origin})" if origin is not None else ""
                raise SchemaChangedError(
                    f"{self.where}: input column {before.name!r} was {before.type} and is now "
                    f"{after.type}{place}; its state has the first type. Cast the column before "
                    f"this operator, or declare schema= where it is made."
                )

    # ------------------------------------------------------------------------------- state

    def input_types(self) -> tuple[pa.Schema | None, ...]:
        return (self.input_schema,)

    def keyed_snapshot(
        self, columns: Sequence[pa.Array | pa.ChunkedArray], fields: Sequence[pa.Field]
    ) -> OperatorSnapshot:
        """The state, by reference: key groups, keys, then ``columns`` named ``value.…``."""
        if self.input_schema is None or self.index is None:
            return {}
        keys = self.index.key_table()
        schema = [pa.field(KEY_GROUP, pa.int32())]
        schema += [pa.field(f"key.{f.name}", f.type) for f in keys.schema]
        schema += [pa.field(f"value.{f.name}", f.type) for f in fields]
        arrays = [self.index.key_groups(), *keys.columns, *columns]
        table = pa.Table.from_arrays(arrays, schema=pa.schema(schema))
        return {
            INPUT_SCHEMA: schema_state(self.input_schema, self.context),
            self.table_name: StateTable(StateKind.KEYED, table),
        }

    def keyed_restore(self, state: Mapping[str, StateTable]) -> tuple[Slots, pa.Table] | None:
        """Rebuild index and schema; returns each stored row's slot, and the value columns.

        Raises:
            SchemaChangedError: the operator reads other columns than the state was made of.
            StateMismatchError: a row belongs to another subtask, or there are two of a key.
        """
        stored = state.get(INPUT_SCHEMA)
        schemas = stored_schemas(stored, self.context) if stored is not None else []
        if not schemas:
            return None
        for other in schemas[1:]:
            if not other.equals(schemas[0]):
                raise SchemaChangedError(
                    f"{self.where}: its subtasks read different column types: {schemas[0]} and "
                    f"{other}. Declare schema= where the columns are made."
                )
        self._check_same_columns(schemas[0])
        self._begin(schemas[0])
        table = state[self.table_name].table if self.table_name in state else None
        if table is None or table.num_rows == 0:
            return None
        table = table.combine_chunks()
        assert self.index is not None
        groups = table.column(KEY_GROUP).to_numpy()
        own = self.context.key_groups
        if int(groups.min()) < own.start or int(groups.max()) >= own.stop:
            raise StateMismatchError(
                f"{self.where}: state of key groups {int(groups.min())} to {int(groups.max())} "
                f"came to a subtask that owns {own.start} to {own.stop - 1}. Restore it with the "
                f"max_parallelism it was written with."
            )
        keys = table.select([f"key.{key}" for key in self.keys]).rename_columns(list(self.keys))
        slots = self.index.restore(keys)
        if len(self.index) != len(slots):
            raise StateMismatchError(
                f"{self.where}: its state has {len(slots)} rows for {len(self.index)} keys; a key "
                f"has one. The checkpoint was not written by this operator."
            )
        if not np.array_equal(self.index.key_groups().to_numpy(), groups):
            raise StateMismatchError(
                f"{self.where}: keys of its state are in other key groups than they hash to. "
                f"Restore it with the max_parallelism it was written with "
                f"(now {self.context.max_parallelism})."
            )
        values = [name for name in table.column_names if name.startswith("value.")]
        return slots, table.select(values)

    def _check_same_columns(self, stored: pa.Schema) -> None:
        try:
            self.needed(stored)
        except PlanError as error:
            raise SchemaChangedError(
                f"{self.where}: its state was made from columns {stored.names}, and it now reads "
                f"others: {error} Give the changed operator a new uid to start it without state."
            ) from error
