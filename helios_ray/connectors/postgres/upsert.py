"""PostgreSQL as an idempotent sink: insert, or update on conflict, by key.

Why it exists: results that replace each other (a running total per key) need no two-phase
commit: replaying them ends in the same rows. They are visible within ``linger`` instead of
at the next checkpoint, and the server needs no ``max_prepared_transactions``. During a
recovery a reader may see a key go back to an older value for a moment.

How: rows are collected for a moment, of rows with one key the last is kept, all are copied
into a temporary table and merged by one ``INSERT … ON CONFLICT DO UPDATE``.

May import: elements, errors, identifiers, connectors.base, postgres.*.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pyarrow as pa

from helios_ray.connectors.base import IdempotentSink, SinkContext
from helios_ray.connectors.postgres import address
from helios_ray.connectors.postgres.bookkeeping import Bookkeeping
from helios_ray.connectors.postgres.columns import (
    Ingest,
    cast_table,
    plan_columns,
    quoted,
    select_list,
)
from helios_ray.connectors.postgres.target import Target
from helios_ray.errors import ConfigError, ConnectorError, DataError

_STAGE = "helios_stage"
_ORDER = "__helios_row"


class PostgresUpsertSink(IdempotentSink):
    """Keep one row per key in a PostgreSQL table: the newest.

    Rows with one key must come from one subtask, in order (``key_by`` the key before the
    sink, or parallelism 1), else which of them is newest is anyone's guess.

    Args:
        dsn: ``postgresql://user:password@host:port/database`` or ``host=… dbname=…``; the
            password never shows.
        table: name of the table, without the schema.
        key: columns that identify a row, none of them null; a table that exists must have a
            unique index on exactly these.
        schema: name of its schema.
        create_table: create the table, with ``key`` as its primary key, when it is missing.
        lock_timeout: how long a write waits for a lock before it fails.
        buffer_bytes: rows are merged when this many bytes have come together,
        linger: or when the oldest has waited this long as more rows arrive, and before every
            checkpoint.

    Raises:
        ConfigError: an argument is empty or not positive.

    Example:
        >>> PostgresUpsertSink("postgresql://app:s3cret@db/sales", table="totals", key=["k"])
        PostgresUpsertSink('postgresql://app:***@db/sales', table='totals', key=['k'])
    """

    def __init__(
        self,
        dsn: str,
        *,
        table: str,
        key: Sequence[str],
        schema: str = "public",
        create_table: bool = True,
        lock_timeout: timedelta = timedelta(seconds=10),
        buffer_bytes: int = 4 << 20,
        linger: timedelta = timedelta(milliseconds=100),
    ) -> None:
        address.check_arguments(dsn, table, schema, lock_timeout, buffer_bytes)
        if isinstance(key, str) or not key or len(set(key)) != len(key):
            raise ConfigError(
                f"key must be a list of one or more different column names, got {key!r}: "
                "try key=['id']"
            )
        if linger < timedelta(0):
            raise ConfigError(f"linger must not be negative, got {linger}: try 100 ms")
        self._dsn = dsn
        self._key = list(key)
        self._target = Target(schema=schema, table=table, create=create_table, key=tuple(key))
        self._lock_timeout_ms = max(1, round(lock_timeout.total_seconds() * 1000))
        self._buffer_bytes = buffer_bytes
        self._linger = linger.total_seconds()
        self._clear()

    def _clear(self) -> None:
        """What exists only between ``open`` and ``close``; never pickled."""
        self._context: SinkContext | None = None
        self._books: Bookkeeping | None = None
        self._connection: Any = None
        self._buffer: list[pa.RecordBatch] = []
        self._buffered = 0
        self._oldest = 0.0
        self._planned_for: pa.Schema | None = None
        self._plan: list[Ingest] = []

    def __getstate__(self) -> dict[str, Any]:
        if self._context is not None:
            raise ConnectorError("an open PostgresUpsertSink holds a connection: not picklable")
        return self.__dict__

    def __repr__(self) -> str:
        return (
            f"PostgresUpsertSink({address.masked(self._dsn)!r}, table={self._target.table!r}, "
            f"key={self._key!r})"
        )

    def check(self, schema: pa.Schema | None) -> None:
        address.require_packages()
        control = address.connect_control(self._dsn, "helios: check")
        try:
            columns = self._target.check(control, schema, self._dsn)
            if columns:
                self._check_key(control)
            if schema is not None:
                missing = [name for name in self._key if name not in schema.names]
                if missing:
                    raise ConfigError(
                        f"{self!r}: key columns {missing} are not in the rows, which have "
                        f"{schema.names}"
                    )
                if columns:
                    plan_columns(schema, columns, str(self._target))
        finally:
            control.close()

    def open(self, context: SinkContext) -> None:
        """Connect, and shut out older epochs of this sink.

        Raises:
            FencedError: a newer epoch has opened this sink.
            SinkUnavailableError: the server does not answer.
        """
        books = Bookkeeping(self._target.schema, context.job, context.sink_uid, context.epoch)
        self._context, self._books = context, books
        control = address.connect_control(self._dsn, self._session())
        try:
            control.execute(f"set lock_timeout = {self._lock_timeout_ms}")
            books.create(control)
            books.fence(control)
        except address.driver_errors() as error:
            raise address.write_error(error, "helios_epochs", self._dsn) from None
        finally:
            control.close()

    def write_idempotent(self, batch: pa.RecordBatch) -> None:
        """Take rows; see ``buffer_bytes`` and ``linger`` for when they are merged.

        Raises:
            DataError: a key is null, or a value does not fit its column.
            ConfigError: the table has no place for a column, or no unique index on the key.
            SinkUnavailableError: the server is gone, or a lock was held for too long.
        """
        if batch.num_rows == 0:
            return
        if self._buffer and not self._buffer[0].schema.equals(batch.schema):
            self.flush()
        if not self._buffer:
            self._oldest = time.monotonic()
        self._buffer.append(batch)
        self._buffered += batch.nbytes
        waited = time.monotonic() - self._oldest
        if self._buffered >= self._buffer_bytes or waited >= self._linger:
            self.flush()

    def flush(self) -> None:
        if not self._buffer:
            return
        table = self._last_of_each_key(pa.Table.from_batches(self._buffer))
        try:
            self._merge(table)
        except address.driver_errors() as first:
            self._disconnect()
            if not address.is_passing(first):
                raise address.write_error(first, str(self._target), self._dsn) from None
            # Merging twice changes nothing, so a broken link is tried again at once.
            try:
                self._merge(table)
            except address.driver_errors() as error:
                self._disconnect()
                raise address.write_error(error, str(self._target), self._dsn) from None
        self._buffer, self._buffered = [], 0

    def close(self) -> None:
        self._disconnect()
        self._clear()

    # ------------------------------------------------------------------------- inside

    def _last_of_each_key(self, table: pa.Table) -> pa.Table:
        """ON CONFLICT may not meet one key twice in one statement."""
        missing = [name for name in self._key if name not in table.column_names]
        if missing:
            raise ConfigError(
                f"{self!r}: key columns {missing} are not in the rows, which have "
                f"{table.column_names}"
            )
        for name in self._key:
            if table.column(name).null_count:
                raise DataError(
                    f"{self!r}: key column {name!r} is null in "
                    f"{table.column(name).null_count} of {table.num_rows} rows; a null key never "
                    "conflicts, so a replay would add rows. Filter or fill it before the sink."
                )
        keys = table.select(self._key).append_column(_ORDER, pa.array(range(table.num_rows)))
        last = keys.group_by(self._key, use_threads=False).aggregate([(_ORDER, "max")])
        return table.take(last.column(f"{_ORDER}_max").sort())

    def _merge(self, table: pa.Table) -> None:
        connection = self._connected()
        if self._planned_for is None or not self._planned_for.equals(table.schema):
            self._settle_columns(table.schema)
        rows = cast_table(table, self._plan, str(self._target))
        books = self._books
        assert books is not None
        with connection.cursor() as cursor:
            cursor.execute("begin")
            cursor.execute(books.epoch_query())
            newest = cursor.fetchall()
            if newest and newest[0][0] > books.epoch:
                self._disconnect()
                raise books.fenced(newest[0][0])
            cursor.adbc_ingest(_STAGE, rows, mode="append", temporary=True)
            cursor.execute(self._merge_statement())
            cursor.execute("commit")

    def _settle_columns(self, schema: pa.Schema) -> None:
        control = address.connect_control(self._dsn, self._session())
        try:
            columns = self._target.ensure(control, schema)
            self._check_key(control)
        finally:
            control.close()
        self._plan = plan_columns(schema, columns, str(self._target))
        self._planned_for = schema
        self._make_stage()

    def _make_stage(self) -> None:
        lines = ", ".join(f"{quoted(i.name)} {i.stage_type}" for i in self._plan)
        with self._connection.cursor() as cursor:
            cursor.execute(f"drop table if exists pg_temp.{_STAGE}")
            cursor.execute(f"create temp table {_STAGE} ({lines}) on commit delete rows")

    def _merge_statement(self) -> str:
        into = ", ".join(quoted(i.name) for i in self._plan)
        key = ", ".join(quoted(name) for name in self._key)
        others = [i.name for i in self._plan if i.name not in self._key]
        sets = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in others)
        action = f"do update set {sets}" if others else "do nothing"
        # In the order of the key, so that two subtasks never wait for each other in a circle.
        return (
            f"insert into {self._target.sql} ({into}) select {select_list(self._plan)} "
            f"from pg_temp.{_STAGE} order by {key} on conflict ({key}) {action}"
        )

    def _check_key(self, control: Any) -> None:
        keys = self._target.unique_keys(control)
        if not any(set(self._key) == set(unique) for unique in keys):
            raise ConfigError(
                f"{self!r}: expected a unique index on exactly {self._key}, and the table has "
                f"{[list(unique) for unique in keys] or 'none'}. Create one: create unique "
                f"index on {self._target.sql} ({', '.join(quoted(k) for k in self._key)})"
            )

    def _session(self) -> str:
        books, context = self._books, self._context
        if books is None or context is None:
            raise ConnectorError(f"{self!r} is not open: call open(context) first")
        return address.session_name(books.prefix, context.subtask, context.epoch)

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = address.connect_ingest(self._dsn, self._session())
            with self._connection.cursor() as cursor:
                cursor.execute(f"set lock_timeout = {self._lock_timeout_ms}")
            if self._planned_for is not None:
                self._make_stage()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(Exception):  # broken already
                self._connection.close()
            self._connection = None
