"""Connecting to PostgreSQL, and what its errors mean.

Why it exists: the sinks speak to the server twice, by ADBC for rows and by psycopg for
everything else, and both must hide the password, name the way out when a package is
missing, and sort errors into "try again", "the data is wrong" and "not there".

May import: errors.
"""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta
from typing import Any

from helios_ray.errors import (
    ConfigError,
    ConnectorError,
    DataError,
    FatalCommitError,
    FencedError,
    RetryableCommitError,
    SinkUnavailableError,
)
from helios_ray.identifiers import TransactionId

OLDEST_SERVER = 140000
"""``pg_terminate_backend`` with a timeout, which the fence needs, came with 14."""

_IN_URI = re.compile(r"(?<=://)([^:@/?\s]*):([^@/?\s]*)@")
_IN_WORDS = re.compile(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", re.IGNORECASE)


def masked(text: str) -> str:
    """``text`` with the passwords of PostgreSQL addresses in it replaced by ``***``.

    Example:
        >>> masked("postgresql://ann:s3cret@db/sales")
        'postgresql://ann:***@db/sales'
        >>> masked("host=db password='it is' user=ann")
        'host=db password=*** user=ann'
    """
    return _IN_WORDS.sub(r"\1***", _IN_URI.sub(r"\1:***@", text))


def session_name(prefix: str, subtask: int, epoch: int) -> str:
    """What a connection calls itself, so that a later epoch can find and end it.

    ``application_name`` holds 63 bytes, less than a job's and a sink's name may have.
    """
    return f"{session_prefix(prefix)}{subtask}:{epoch}"


def session_prefix(prefix: str) -> str:
    """What the names of all connections of one sink start with."""
    return f"helios:{hashlib.sha256(prefix.encode()).hexdigest()[:24]}:"


def require_packages() -> None:
    """See that psycopg and ADBC are there.

    Raises:
        ConfigError: one is not; says what to install.
    """
    try:
        import adbc_driver_postgresql  # noqa: F401
        import psycopg  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the PostgreSQL sinks expected the packages psycopg and adbc-driver-postgresql "
            f"({error}): pip install helios-ray[postgres]"
        ) from error


def check_arguments(
    dsn: str, table: str, schema: str, lock_timeout: timedelta, buffer_bytes: int
) -> None:
    """Refuse what cannot be meant.

    Raises:
        ConfigError: names the argument, what came and what is allowed.
    """
    for name, value in (("dsn", dsn), ("table", table), ("schema", schema)):
        if not value or not value.strip():
            shown = "***" if name == "dsn" else repr(value)
            raise ConfigError(f"{name} must be a non-empty string, got {shown}")
    if lock_timeout <= timedelta(0):
        raise ConfigError(f"lock_timeout must be positive, got {lock_timeout}: try 10 seconds")
    if buffer_bytes < 1:
        raise ConfigError(f"buffer_bytes must be at least 1, got {buffer_bytes}: try 4194304")


def conninfo(dsn: str, application_name: str) -> str:
    """``dsn`` with the name of the connection added.

    Raises:
        ConfigError: ``dsn`` is neither a URI nor a list of ``name=value``.
    """
    import psycopg

    try:
        options = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        # The parser quotes what it did not understand, perhaps a piece of the password.
        raise ConfigError(
            f"dsn must be 'postgresql://user:password@host:port/database' or 'host=… dbname=…', "
            f"got {masked(dsn)!r}, which PostgreSQL's client library cannot read "
            f"({type(error).__name__})."
        ) from None
    options.setdefault("connect_timeout", "10")
    options["application_name"] = application_name
    return str(psycopg.conninfo.make_conninfo("", **options))


def connect_control(dsn: str, application_name: str) -> Any:
    """A psycopg connection that commits by itself: COMMIT PREPARED, listings, DDL.

    Raises:
        SinkUnavailableError: nothing answers, or it refuses the user.
    """
    require_packages()
    import psycopg

    try:
        return psycopg.connect(conninfo(dsn, application_name), autocommit=True)
    except psycopg.Error as error:
        raise unreachable(dsn, error) from None


def connect_ingest(dsn: str, application_name: str) -> Any:
    """An ADBC connection for rows. Transactions are begun by hand: the driver would take
    one to be open still after PREPARE TRANSACTION.

    Raises:
        SinkUnavailableError: nothing answers, or it refuses the user.
    """
    require_packages()
    import adbc_driver_postgresql.dbapi as adbc

    try:
        return adbc.connect(conninfo(dsn, application_name), autocommit=True)
    except adbc.Error as error:
        raise unreachable(dsn, error) from None


def check_two_phase(control: Any, dsn: str) -> None:
    """See that the server can prepare transactions.

    Raises:
        SinkUnavailableError: that is switched off.
    """
    if int(control.execute("show max_prepared_transactions").fetchone()[0]) == 0:
        raise SinkUnavailableError(
            f"PostgresSink expected max_prepared_transactions > 0 at {masked(dsn)}, got 0, the "
            "server's default: two-phase commit is switched off. Set it in postgresql.conf to "
            "at least twice the number of sink subtasks and restart the server, or use "
            "PostgresUpsertSink, which does not need it."
        )


def unreachable(dsn: str, error: BaseException) -> SinkUnavailableError:
    """The error of a server that is not there or does not let us in."""
    return SinkUnavailableError(
        f"expected a PostgreSQL server at {masked(dsn)}, got: {masked(str(error)).strip()}. "
        "See that it runs, that host, port, database and user are right, and that pg_hba.conf "
        "lets this machine in."
    )


def driver_errors() -> tuple[type[BaseException], ...]:
    """What the two drivers raise."""
    import adbc_driver_manager
    import psycopg

    return (psycopg.Error, adbc_driver_manager.Error)


def settle_errors() -> tuple[type[BaseException], ...]:
    """What may come up while a transaction is committed, aborted or looked for."""
    return (*driver_errors(), SinkUnavailableError)


def sqlstate(error: BaseException) -> str | None:
    """The five characters of an error of either driver, or None when the link broke."""
    state = getattr(error, "sqlstate", None)
    return str(state) if state else None


def is_passing(error: BaseException) -> bool:
    """Whether the same statement may succeed later: link broken, lock held, server full."""
    state = sqlstate(error)
    if state is None:
        return type(error).__name__ in {"OperationalError", "InterfaceError"}
    # 08 connection, 40 serialization and deadlock, 53 resources, 55 in use or locked,
    # 57 shut down or cancelled.
    return state[:2] in {"08", "40", "53", "55", "57"}


def write_error(
    error: BaseException, table: str, dsn: str, transaction: TransactionId | None = None
) -> ConnectorError | DataError | FencedError:
    """Sort an error of writing or preparing into this package's errors."""
    state, text = sqlstate(error), masked(str(error)).strip()
    where = f"table {table}" + (f", transaction {transaction}" if transaction else "")
    if state == "57P01" or (state is None and "57P01" in text):
        return SinkUnavailableError(
            f"{where}: an administrator, or a newer attempt of the job, ended the connection to "
            f"{masked(dsn)}: {text}"
        )
    if state == "55P03":
        return SinkUnavailableError(
            f"{where}: waited longer than lock_timeout for a lock: {text}. Rows with the same "
            "unique key in a transaction that is prepared and not yet committed hold it, or a "
            "forgotten one (select * from pg_prepared_xacts). Results that update a key belong "
            "in a PostgresUpsertSink."
        )
    if state == "53200" and "prepared transactions" in text:
        return SinkUnavailableError(
            f"{where}: {text}. Raise max_prepared_transactions in postgresql.conf to at least "
            "twice the number of sink subtasks, and restart the server."
        )
    if state is not None and state[:2] in {"22", "23"}:
        return DataError(
            f"{where} refused rows ({state}): {text}. The rows, or the table's constraints, "
            "must change; then resume the job from its last checkpoint."
        )
    if is_passing(error):
        return SinkUnavailableError(f"{where}: {masked(dsn)} answered: {text}")
    return ConnectorError(f"{where}: {masked(dsn)} answered ({state}): {text}")


def settle_error(what: str, which: object, dsn: str, error: BaseException) -> ConnectorError:
    """Sort an error of committing, aborting or listing: retryable, or fatal."""
    text = masked(str(error)).strip()
    if isinstance(error, SinkUnavailableError) or is_passing(error):
        return RetryableCommitError(f"{masked(dsn)}: {what} of {which} did not get through: {text}")
    return FatalCommitError(
        f"{masked(dsn)}: PostgreSQL refused to {what} {which} ({sqlstate(error)}): {text}. "
        "The transaction is still there; once the cause is removed the job can be resumed from "
        "its last checkpoint."
    )
