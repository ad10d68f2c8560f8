"""The table that a sink writes to: is it there, does it fit, make it.

Why it exists: both sinks look at their table the same way, on the driver before the job
starts and in each subtask.

May import: errors, postgres.address, postgres.bookkeeping, postgres.columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from helios_ray.connectors.postgres.address import OLDEST_SERVER, masked
from helios_ray.connectors.postgres.bookkeeping import DDL_LOCK
from helios_ray.connectors.postgres.columns import (
    Ingest,
    TableColumn,
    create_columns,
    quoted,
    select_list,
)
from helios_ray.errors import ConfigError, SinkUnavailableError

_COLUMNS = """
select a.attname, t.typname, format_type(a.atttypid, a.atttypmod),
       a.attnotnull and not a.atthasdef and a.attidentity = '',
       a.attgenerated = '' and a.attidentity <> 'a'
from pg_attribute a join pg_class c on c.oid = a.attrelid
     join pg_namespace n on n.oid = c.relnamespace join pg_type t on t.oid = a.atttypid
where n.nspname = %s and c.relname = %s and c.relkind in ('r', 'p', 'f', 'v')
      and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""

_UNIQUE_KEYS = """
select array(select a.attname::text from pg_attribute a
             where a.attrelid = c.oid and a.attnum = any(i.indkey[0:i.indnkeyatts - 1]))
from pg_index i join pg_class c on c.oid = i.indrelid
     join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %s and c.relname = %s and i.indisunique and i.indisvalid
      and i.indpred is null and i.indexprs is null
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A table.

    Args:
        schema: name of its schema.
        table: its name.
        create: whether to create it when it is missing.
        key: columns of the primary key that is created, and that upserts go by.
    """

    schema: str
    table: str
    create: bool
    key: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def sql(self) -> str:
        """The name as one writes it in SQL."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"

    def describe(self, control: Any) -> list[TableColumn]:
        """Its columns, or an empty list when there is no such table."""
        rows = control.execute(_COLUMNS, (self.schema, self.table)).fetchall()
        return [
            TableColumn(name=name, udt=udt, sql_type=sql, required=required, writable=writable)
            for name, udt, sql, required, writable in rows
        ]

    def ensure(self, control: Any, schema: pa.Schema) -> list[TableColumn]:
        """Its columns; it is created for rows of ``schema`` when it is missing.

        Raises:
            ConfigError: it is missing and is not to be created, or cannot be.
        """
        columns = self.describe(control)
        if columns:
            return columns
        if not self.create:
            raise self._missing()
        lines = create_columns(schema, str(self))
        if self.key:
            lines.append(f"primary key ({', '.join(quoted(name) for name in self.key)})")
        with control.transaction():
            # Two subtasks arrive here at once; IF NOT EXISTS alone would let one fail.
            control.execute("select pg_advisory_xact_lock(%s)", (DDL_LOCK,))
            control.execute(f"create table if not exists {self.sql} ({', '.join(lines)})")
        return self.describe(control)

    def append(self, cursor: Any, rows: pa.Table, plan: list[Ingest], stage: str) -> None:
        """Send rows, as ``cast_table`` made them, in the transaction of ``cursor``.

        Columns that the server casts go through a table of the driver's types, made and
        dropped inside the transaction. It is unlogged and not temporary: PostgreSQL refuses
        to prepare a transaction that touched a temporary table.

        Args:
            stage: a name for that table that nobody else uses.
        """
        if not any(ingest.cast for ingest in plan):
            cursor.adbc_ingest(self.table, rows, mode="append", db_schema_name=self.schema)
            return
        name = f"{quoted(self.schema)}.{quoted(stage)}"
        lines = ", ".join(f"{quoted(i.name)} {i.stage_type}" for i in plan)
        into = ", ".join(quoted(i.name) for i in plan)
        cursor.execute(f"create unlogged table {name} ({lines})")
        cursor.adbc_ingest(stage, rows, mode="append", db_schema_name=self.schema)
        cursor.execute(f"insert into {self.sql} ({into}) select {select_list(plan)} from {name}")
        cursor.execute(f"drop table {name}")

    def check(self, control: Any, schema: pa.Schema | None, dsn: str) -> list[TableColumn]:
        """See on the driver that the table is there, or that it can be created.

        Returns:
            Its columns; empty when it is yet to be created.

        Raises:
            SinkUnavailableError: the server is too old, or refuses this user.
            ConfigError: no such schema or table.
        """
        version = control.info.server_version
        if version < OLDEST_SERVER:
            raise SinkUnavailableError(
                f"expected PostgreSQL 14 or newer at {masked(dsn)}, got {version // 10000}."
            )
        has_schema = control.execute(
            "select has_schema_privilege(oid, 'CREATE') from pg_namespace where nspname = %s",
            (self.schema,),
        ).fetchone()
        if has_schema is None:
            raise ConfigError(
                f"schema {self.schema!r} does not exist at {masked(dsn)}: create it "
                f"(create schema {quoted(self.schema)}) or name another by schema=."
            )
        columns = self.describe(control)
        if not columns:
            if not self.create:
                raise self._missing()
            if schema is not None:
                create_columns(schema, str(self))
        else:
            allowed = control.execute(
                "select has_table_privilege(%s, 'INSERT')", (self.sql,)
            ).fetchone()
            if not allowed[0]:
                raise SinkUnavailableError(
                    f"user {control.info.user!r} may not insert into {self}: "
                    f"grant insert on {self.sql} to {quoted(control.info.user)}"
                )
        if not has_schema[0] and not self._has_bookkeeping(control):
            raise SinkUnavailableError(
                f"user {control.info.user!r} may not create tables in schema {self.schema!r}, "
                "where the sink keeps helios_transactions and helios_epochs: grant create on "
                f"schema {quoted(self.schema)} to {quoted(control.info.user)}"
            )
        return columns

    def _has_bookkeeping(self, control: Any) -> bool:
        row = control.execute(
            "select count(*) from pg_tables where schemaname = %s "
            "and tablename in ('helios_transactions', 'helios_epochs')",
            (self.schema,),
        ).fetchone()
        return bool(row[0] == 2)

    def unique_keys(self, control: Any) -> list[Sequence[str]]:
        """The column sets that the table holds unique, for ON CONFLICT."""
        rows = control.execute(_UNIQUE_KEYS, (self.schema, self.table)).fetchall()
        return [key for (key,) in rows]

    def _missing(self) -> ConfigError:
        return ConfigError(
            f"table {self} does not exist and create_table is False: create it, name another, "
            "or let the sink create it (create_table=True)."
        )
