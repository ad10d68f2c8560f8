"""How the runs of a window operator look in a checkpoint.

Why it exists: a run knows keys by their slot, and a checkpoint must not: its rows carry the
key itself, so that they can be opened offline and dealt out to other subtasks. A run's table is
made when the first snapshot needs it and kept with the run, so a snapshot costs what is new.

    windows   KEYED   key_group int32, key.<name>, one int64 column per unit field,
                      value.<name> per partial column

May import: errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from helios_ray.errors import SchemaChangedError, StateMismatchError
from helios_ray.operators.base import OperatorContext, OperatorSnapshot, StateKind, StateTable
from helios_ray.operators.keyed import INPUT_SCHEMA, KEY_GROUP
from helios_ray.operators.rows import schema_state, stored_schemas
from helios_ray.operators.windows.keys import KeySpace
from helios_ray.operators.windows.runs import Run, RunStore

_TABLE = "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowState:
    """The format of one operator's runs.

    Args:
        name: of the state table.
        input_schema: columns the operator reads.
        space: its keys.
        unit_fields: names of a run's units and further number columns.
        value_fields: the partial columns.
        context: whose.
        where: who speaks, for messages.
    """

    name: str
    input_schema: pa.Schema
    space: KeySpace
    unit_fields: tuple[str, ...]
    value_fields: Sequence[pa.Field]
    context: OperatorContext
    where: str

    @property
    def schema(self) -> pa.Schema:
        """Of the table."""
        fields = [pa.field(KEY_GROUP, pa.int32())]
        fields += [pa.field(f"key.{f.name}", f.type) for f in self.space.schema]
        fields += [pa.field(name, pa.int64()) for name in self.unit_fields]
        fields += [pa.field(f"value.{f.name}", f.type) for f in self.value_fields]
        return pa.schema(fields)

    def snapshot(self, store: RunStore) -> OperatorSnapshot:
        """The runs, by reference."""
        schema = self.schema
        groups = self.space.groups()
        tables = [schema.empty_table()]
        for run in store.runs:
            table = run.cache.get(_TABLE)
            if table is None:
                arrays = [pa.array(groups[run.slots]), *self.space.take(run.slots)]
                arrays += [pa.array(run.units), *run.columns]
                table = pa.Table.from_arrays(arrays, schema=schema)
                run.cache[_TABLE] = table
            tables.append(table)
        return {
            INPUT_SCHEMA: schema_state(self.input_schema, self.context),
            self.name: StateTable(StateKind.KEYED, pa.concat_tables(tables)),
        }

    @staticmethod
    def schema_of(
        state: Mapping[str, StateTable], context: OperatorContext, where: str
    ) -> pa.Schema | None:
        """The input columns that state was made of, or None where there is none.

        Raises:
            SchemaChangedError: subtasks disagree.
        """
        stored = state.get(INPUT_SCHEMA)
        schemas = stored_schemas(stored, context) if stored is not None else []
        for other in schemas[1:]:
            if not other.equals(schemas[0]):
                raise SchemaChangedError(
                    f"{where}: its subtasks read different column types: {schemas[0]} and {other}. "
                    f"Declare schema= where the columns are made."
                )
        return schemas[0] if schemas else None

    def restore(self, state: Mapping[str, StateTable]) -> Run | None:
        """One run of all stored rows, sorted by unit; None for no rows.

        Raises:
            SchemaChangedError: the aggregations or keys are others than the state's.
            StateMismatchError: rows belong to another subtask.
        """
        stored = state.get(self.name)
        if stored is None or stored.table.num_rows == 0:
            return None
        table = stored.table.combine_chunks()
        schema = self.schema
        if not table.schema.equals(schema):
            lacking = [f for f in schema if f not in list(table.schema)]
            changed = f"lacks {lacking[0]}" if lacking else f"has {table.schema.names}"
            raise SchemaChangedError(
                f"{self.where}: its state {changed}: the keys, the aggregations or the kind of "
                f"window changed. Give the operator a new uid to start it afresh."
            )
        columns = [column.chunk(0) for column in table.columns]
        width = 1 + len(self.space.schema)
        groups = columns[0].to_numpy()
        own = self.context.key_groups
        if int(groups.min()) < own.start or int(groups.max()) >= own.stop:
            raise StateMismatchError(
                f"{self.where}: state of key groups {int(groups.min())} to {int(groups.max())} "
                f"came to a subtask that owns {own.start} to {own.stop - 1}. Restore it with the "
                f"max_parallelism it was written with."
            )
        slots = self.space.restore(columns[1:width], table.num_rows)
        if not np.array_equal(self.space.groups()[slots], groups):
            raise StateMismatchError(
                f"{self.where}: keys of its state are in other key groups than they hash to. "
                f"Restore it with the max_parallelism it was written with "
                f"(now {self.context.max_parallelism})."
            )
        run = Run(columns[width].to_numpy(), slots, columns[width + 1 :])
        return run.take(np.argsort(run.units, kind="stable"))
