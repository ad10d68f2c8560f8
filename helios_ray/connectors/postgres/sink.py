"""PostgreSQL as an exactly-once sink: PREPARE TRANSACTION and COMMIT PREPARED.

Why it exists: rows appear in the table once, all rows of a checkpoint at one moment per
subtask, and only when the checkpoint is complete. They go in as Arrow through ADBC's
binary COPY, about a million rows a second into one narrow table.

How: on an ADBC connection ``BEGIN``, COPY batches as they come, insert a row that says
"this transaction" into ``helios_transactions``, ``PREPARE TRANSACTION '<id>'``. On another
connection ``COMMIT PREPARED '<id>'``; if PostgreSQL knows no such transaction, that row
tells whether it was committed before (fine) or lost (fatal). Connections of older epochs
are ended when a newer one opens (see ``bookkeeping``).

May import: elements, errors, identifiers, connectors.base, postgres.*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import pyarrow as pa

from helios_ray.connectors.base import (
    CommitOutcome,
    Committable,
    Json,
    SinkContext,
    TransactionalSink,
)
from helios_ray.connectors.postgres import address
from helios_ray.connectors.postgres.bookkeeping import Bookkeeping, gid_of, literal
from helios_ray.connectors.postgres.columns import Ingest, cast_table, plan_columns
from helios_ray.connectors.postgres.target import Target
from helios_ray.errors import (
    ConnectorError,
    FatalCommitError,
)
from helios_ray.identifiers import TransactionId

_NO_SUCH_OBJECT = "42704"
_T = TypeVar("_T")


class PostgresSink(TransactionalSink):
    """Append rows to a PostgreSQL table, exactly once.

    Needs PostgreSQL 14 or newer with ``max_prepared_transactions`` of at least twice the
    number of sink subtasks (its default is 0), a direct connection or a pool in session
    mode, and ``pip install helios-ray[postgres]``. Two small tables, ``helios_transactions``
    and ``helios_epochs``, are kept in the same schema. Transactions are named after job and
    sink uid, so two jobs of one name must not write to one server.

    A job that is stopped for good while transactions are prepared leaves them locked in the
    server until it is resumed; ``select * from pg_prepared_xacts`` shows them.

    Args:
        dsn: ``postgresql://user:password@host:port/database`` or ``host=… dbname=…``; the
            password never shows in ``repr``, errors or logs.
        table: name of the table, without the schema.
        schema: name of its schema.
        create_table: create the table from the rows' Arrow schema when it is missing.
            Otherwise, and if it exists, the rows' columns must be columns of the table and
            have types that go in without loss; ``jsonb``, ``uuid``, enums and the like take
            strings.
        lock_timeout: how long a write waits for a lock, of a conflicting unique key say,
            before it fails.
        buffer_bytes: rows are sent when this many bytes have come together, and before every
            checkpoint.

    Raises:
        ConfigError: an argument is empty or not positive.

    Example:
        >>> sink = PostgresSink("postgresql://app:s3cret@db/sales", table="totals")
        >>> sink
        PostgresSink('postgresql://app:***@db/sales', table='totals', schema='public')

    Source: Gray, "Notes on Data Base Operating Systems", 1978, for two-phase commit;
    the PostgreSQL manual, "PREPARE TRANSACTION".
    """

    def __init__(
        self,
        dsn: str,
        *,
        table: str,
        schema: str = "public",
        create_table: bool = True,
        lock_timeout: timedelta = timedelta(seconds=10),
        buffer_bytes: int = 4 << 20,
    ) -> None:
        address.check_arguments(dsn, table, schema, lock_timeout, buffer_bytes)
        self._dsn = dsn
        self._target = Target(schema=schema, table=table, create=create_table)
        self._lock_timeout_ms = max(1, round(lock_timeout.total_seconds() * 1000))
        self._buffer_bytes = buffer_bytes
        self._clear()

    def _clear(self) -> None:
        """What exists only between ``open`` and ``close``; never pickled."""
        self._context: SinkContext | None = None
        self._books: Bookkeeping | None = None
        self._control_connection: Any = None
        self._ingest_connection: Any = None
        self._transaction: TransactionId | None = None
        self._buffer: list[pa.RecordBatch] = []
        self._buffered = 0
        self._rows = 0
        self._planned_for: pa.Schema | None = None
        self._plan: list[Ingest] = []

    def __getstate__(self) -> dict[str, Any]:
        if self._context is not None:
            raise ConnectorError("an open PostgresSink holds connections and cannot be pickled")
        return self.__dict__

    def __repr__(self) -> str:
        return (
            f"PostgresSink({address.masked(self._dsn)!r}, table={self._target.table!r}, "
            f"schema={self._target.schema!r})"
        )

    # ------------------------------------------------------------------ before and after

    def check(self, schema: pa.Schema | None) -> None:
        address.require_packages()
        control = address.connect_control(self._dsn, "helios: check")
        try:
            columns = self._target.check(control, schema, self._dsn)
            address.check_two_phase(control, self._dsn)
            if columns and schema is not None:
                plan_columns(schema, columns, str(self._target))
        finally:
            control.close()

    def open(self, context: SinkContext) -> None:
        """Connect, and shut out older epochs of this sink.

        Raises:
            FencedError: a newer epoch has opened this sink.
            SinkUnavailableError: the server does not answer.
        """
        self._context = context
        self._books = Bookkeeping(self._target.schema, context.job, context.sink_uid, context.epoch)
        control = self._control()
        try:
            self._books.create(control)
            self._books.fence(control)
        except address.driver_errors() as error:
            raise address.write_error(error, "helios_epochs", self._dsn) from None

    def close(self) -> None:
        for connection in (self._ingest_connection, self._control_connection):
            if connection is not None:
                with suppress(Exception):  # gone already, or the server is; both are closed
                    connection.close()
        self._clear()

    # --------------------------------------------------------------------------- writing

    def begin(self, transaction: TransactionId) -> None:
        self._drop_ingest_if(self._transaction is not None)
        try:
            self._begin()
        except address.driver_errors() as first:
            # The server was restarted since the last transaction; nothing is lost yet.
            if not address.is_passing(first):
                raise self._write_error(first) from None
            self._drop_ingest_if(True)
            try:
                self._begin()
            except address.driver_errors() as error:
                raise self._write_error(error) from None
        self._transaction = transaction
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Take rows into the transaction at hand.

        Raises:
            DataError: a value does not fit its column, or violates a constraint.
            ConfigError: the table has no place for a column.
            SinkUnavailableError: the server is gone, or a lock was held for too long.
        """
        if batch.num_rows == 0:
            return
        if self._buffer and not self._buffer[0].schema.equals(batch.schema):
            self._send()
        self._buffer.append(batch)
        self._buffered += batch.nbytes
        if self._buffered >= self._buffer_bytes:
            self._send()

    def prepare(self) -> Json:
        transaction, books = self._transaction, self._open_books()
        if transaction is None:
            raise ConnectorError("PostgresSink.prepare: expected begin and write before it")
        self._send()
        cursor = self._ingest().cursor()
        try:
            cursor.execute(books.record(transaction))
            recorded = cursor.fetchall()
            if not recorded:
                self._drop_ingest_if(True)
                raise books.fenced()
            cursor.execute(f"prepare transaction {literal(gid_of(transaction))}")
        except address.driver_errors() as error:
            raise self._write_error(error) from None
        finally:
            with suppress(Exception):
                cursor.close()
        self._transaction = None
        return {"rows": self._rows}

    # ------------------------------------------------------------------------ settling

    def commit_transaction(self, committable: Committable) -> CommitOutcome:
        transaction, books = committable.transaction, self._open_books()
        try:
            outcome = self._controlled(lambda control: books.commit(control, transaction))
        except address.settle_errors() as error:
            raise address.settle_error("commit", transaction, self._dsn, error) from None
        if outcome is not None:
            return outcome
        raise FatalCommitError(
            f"{self!r}: expected the prepared transaction {transaction} "
            f"({committable.payload}), and PostgreSQL has none of that name, nor was it ever "
            "committed: its rows would be lost. Somebody rolled it back by hand, or the "
            "database was restored from a backup. Resume the job from an older checkpoint or "
            "savepoint that fits the database."
        )

    def abort_transaction(self, transaction: TransactionId, payload: Json = None) -> None:
        if transaction == self._transaction:
            self._drop_ingest_if(True)
        statement = f"rollback prepared {literal(gid_of(transaction))}"
        try:
            self._controlled(lambda control: control.execute(statement))
        except address.settle_errors() as error:
            if address.sqlstate(error) != _NO_SUCH_OBJECT:
                raise address.settle_error("abort", transaction, self._dsn, error) from None

    def list_prepared(self, prefix: str) -> Iterable[TransactionId]:
        """As the contract says; ``prefix`` is that of a job and a sink.

        Raises:
            RetryableCommitError: the server does not answer.
        """
        books = self._open_books()
        try:
            return self._controlled(lambda control: books.list_prepared(control, prefix))
        except address.settle_errors() as error:
            raise address.settle_error("list", prefix, self._dsn, error) from None

    # ------------------------------------------------------------------------- inside

    def _begin(self) -> None:
        connection = self._ingest()
        with connection.cursor() as cursor:
            cursor.execute("begin")
            cursor.execute(f"set local lock_timeout = {self._lock_timeout_ms}")

    def _send(self) -> None:
        if not self._buffer:
            return
        table = pa.Table.from_batches(self._buffer)
        self._buffer, self._buffered = [], 0
        try:
            if self._planned_for is None or not self._planned_for.equals(table.schema):
                columns = self._controlled(lambda c: self._target.ensure(c, table.schema))
                self._plan = plan_columns(table.schema, columns, str(self._target))
                self._planned_for = table.schema
            rows = cast_table(table, self._plan, str(self._target))
            with self._ingest().cursor() as cursor:
                self._target.append(cursor, rows, self._plan, self._stage_name())
        except address.driver_errors() as error:
            raise self._write_error(error) from None
        self._rows += table.num_rows

    def _stage_name(self) -> str:
        context = self._context
        assert context is not None
        return f"helios_stage_{self._target.table[:30]}_{context.subtask}_{context.epoch}"

    def _open_books(self) -> Bookkeeping:
        if self._books is None:
            raise ConnectorError(f"{self!r} is not open: call open(context) first")
        return self._books

    def _session(self) -> str:
        books, context = self._open_books(), self._context
        assert context is not None
        return address.session_name(books.prefix, context.subtask, context.epoch)

    def _control(self) -> Any:
        connection = self._control_connection
        if connection is None or connection.closed or connection.broken:
            connection = address.connect_control(self._dsn, self._session())
            self._control_connection = connection
            connection.execute(f"set lock_timeout = {self._lock_timeout_ms}")
        return connection

    def _controlled(self, work: Callable[[Any], _T]) -> _T:
        """Run ``work`` on the control connection, once more on a fresh one if that broke: the
        server may have been restarted since. Whatever is done on it may be done twice.
        """
        control = self._control()
        try:
            return work(control)
        except address.driver_errors():
            if not (control.closed or control.broken):
                raise
            return work(self._control())

    def _ingest(self) -> Any:
        if self._ingest_connection is None:
            self._ingest_connection = address.connect_ingest(self._dsn, self._session())
            books = self._open_books()
            with self._ingest_connection.cursor() as cursor:
                # A zombie whose connections were ended comes back through here.
                cursor.execute(books.epoch_query().removesuffix(" for share"))
                newest = cursor.fetchall()
            if newest and newest[0][0] > books.epoch:
                self._drop_ingest_if(True)
                raise books.fenced(newest[0][0])
        return self._ingest_connection

    def _drop_ingest_if(self, needed: bool) -> None:
        """Close the writing connection, and with it roll back what is open on it."""
        if needed and self._ingest_connection is not None:
            with suppress(Exception):
                self._ingest_connection.close()
            self._ingest_connection = None
        if needed:
            self._transaction = None
            self._buffer, self._buffered = [], 0

    def _write_error(self, error: BaseException) -> Exception:
        transaction = self._transaction
        self._drop_ingest_if(True)
        return address.write_error(error, str(self._target), self._dsn, transaction)
