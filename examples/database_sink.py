"""The guide's DatabaseSink: two-phase commit into PostgreSQL, written by hand.

Shows what a sink of one's own needs: three methods, each naming its transaction by
``self.transaction_id(checkpoint_id)``. For real work use
``helios_ray.connectors.postgres.PostgresSink``, which takes Arrow in directly.

    pip install helios-ray[postgres]
    psql "$DSN" -c "create table events (id bigint, data text, at timestamptz)"
    psql "$DSN" -c "create table event_commits (transaction text primary key)"
    python examples/database_sink.py "$DSN"

The server needs ``max_prepared_transactions`` above 0. ``event_commits`` takes a row per
checkpoint, which tells a transaction that was committed before from one that was lost.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import sys

import psycopg
import pyarrow as pa

from helios_ray import StreamExecutionEnvironment
from helios_ray.connectors.two_phase import TwoPhaseCommitSink


class DatabaseSink(TwoPhaseCommitSink):
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def connect(self) -> None:
        self.connection = psycopg.connect(self.dsn, autocommit=True)

    def pre_commit(self, checkpoint_id: int, transactions: pa.Table) -> None:
        name, events = self.transaction_id(checkpoint_id), transactions.to_pylist()
        with self.connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.executemany("INSERT INTO events VALUES (%(id)s, %(data)s, %(at)s)", events)
            cursor.execute("INSERT INTO event_commits VALUES (%s)", (name,))
            cursor.execute(f"PREPARE TRANSACTION '{name}'")

    def commit(self, checkpoint_id: int) -> None:
        name = self.transaction_id(checkpoint_id)
        try:
            self.connection.execute(f"COMMIT PREPARED '{name}'")
        except psycopg.errors.UndefinedObject:  # committed before, or lost?
            found = "SELECT 1 FROM event_commits WHERE transaction = %s"
            if self.connection.execute(found, (name,)).fetchone() is None:
                raise

    def abort(self, checkpoint_id: int) -> None:
        with contextlib.suppress(psycopg.errors.UndefinedObject):  # never prepared
            self.connection.execute(f"ROLLBACK PREPARED '{self.transaction_id(checkpoint_id)}'")

    def disconnect(self) -> None:
        self.connection.close()


def main(dsn: str) -> None:
    start = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
    events = [
        {"id": n, "data": f"event {n}", "at": start + dt.timedelta(seconds=n)} for n in range(1000)
    ]
    env = StreamExecutionEnvironment().build()
    env.from_items(events, uid="events").sink_to(DatabaseSink(dsn), uid="database")
    result = env.execute("database-sink")
    print(f"database-sink: {result.status.value}, {len(events)} events committed")


if __name__ == "__main__":
    main(sys.argv[1])
