"""PostgresSink against a real PostgreSQL: exactly once, whatever dies in between."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from helios_ray.connectors.base import CommitOutcome, Committable, SinkContext
from helios_ray.connectors.postgres import PostgresSink
from helios_ray.errors import (
    ConfigError,
    DataError,
    FatalCommitError,
    FencedError,
    RetryableCommitError,
    SinkUnavailableError,
)
from helios_ray.identifiers import TransactionId
from helios_ray.testing.servers import PostgresServer

JOB, UID = "job", "out"
PREFIX = TransactionId.prefix(JOB, UID)


def rows(*values: int) -> pa.RecordBatch:
    return pa.record_batch({"x": pa.array(values, pa.int64())})


def query(dsn: str, statement: str) -> list[Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def run(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


def visible(dsn: str) -> list[int]:
    return [x for (x,) in query(dsn, "select x from t order by x")]


Opener = Callable[..., PostgresSink]


@pytest.fixture
def open_sink(postgres_dsn: str) -> Iterator[Opener]:
    """Opens sinks on a fresh database, each as a subtask and epoch of one job."""
    opened = []

    def opener(epoch: int = 1, subtask: int = 0, uid: str = UID, **options: Any) -> PostgresSink:
        sink = PostgresSink(postgres_dsn, table="t", **options)
        opened.append(sink)
        sink.open(SinkContext(job=JOB, sink_uid=uid, subtask=subtask, parallelism=2, epoch=epoch))
        return sink

    yield opener
    for sink in opened:
        sink.close()


def name(checkpoint: int, epoch: int = 1, subtask: int = 0, uid: str = UID) -> TransactionId:
    return TransactionId(JOB, uid, subtask, epoch, checkpoint)


def prepare(sink: PostgresSink, which: TransactionId, *batches: pa.RecordBatch) -> Committable:
    sink.begin(which)
    for batch in batches:
        sink.write(batch)
    return Committable(transaction=which, payload=sink.prepare())


def test_rows_are_invisible_until_commit(postgres_dsn: str, open_sink: Opener) -> None:
    sink = open_sink()
    handle = prepare(sink, name(1), rows(1, 2), rows(3))
    assert visible(postgres_dsn) == []
    assert handle.payload == {"rows": 3}
    assert sink.commit_transaction(handle) is CommitOutcome.COMMITTED
    assert visible(postgres_dsn) == [1, 2, 3]


def test_a_second_commit_says_already_and_adds_nothing(
    postgres_dsn: str, open_sink: Opener
) -> None:
    sink = open_sink()
    handle = prepare(sink, name(1), rows(1))
    sink.commit_transaction(handle)
    assert sink.commit_transaction(handle) is CommitOutcome.ALREADY_COMMITTED
    assert visible(postgres_dsn) == [1]


def test_several_wait_while_the_next_is_written_and_commit_in_order(
    postgres_dsn: str, open_sink: Opener
) -> None:
    sink = open_sink()
    first, second = prepare(sink, name(1), rows(1)), prepare(sink, name(2), rows(2))
    sink.begin(name(3))
    sink.write(rows(3))
    sink.commit_transaction(first)
    assert visible(postgres_dsn) == [1]
    sink.commit_transaction(second)
    third = Committable(transaction=name(3), payload=sink.prepare())
    assert visible(postgres_dsn) == [1, 2]
    sink.commit_transaction(third)
    assert visible(postgres_dsn) == [1, 2, 3]
    for handle in (first, second, third):
        assert sink.commit_transaction(handle) is CommitOutcome.ALREADY_COMMITTED


def test_another_subtask_of_a_later_epoch_commits_after_the_server_was_killed(
    postgres_dsn: str, postgres_server: PostgresServer, open_sink: Opener
) -> None:
    old = open_sink(epoch=1, subtask=1)
    handles = [prepare(old, name(n, subtask=1), rows(n)) for n in (1, 2)]
    old.commit_transaction(handles[0])
    postgres_server.kill()
    with pytest.raises(RetryableCommitError):
        old.commit_transaction(handles[1])
    postgres_server.restart()
    new = open_sink(epoch=2, subtask=0)
    assert visible(postgres_dsn) == [1]
    assert new.commit_transaction(handles[0]) is CommitOutcome.ALREADY_COMMITTED
    assert new.commit_transaction(handles[1]) is CommitOutcome.COMMITTED
    assert visible(postgres_dsn) == [1, 2]


def test_the_same_sink_goes_on_after_the_server_was_restarted(
    postgres_dsn: str, postgres_server: PostgresServer, open_sink: Opener
) -> None:
    sink = open_sink()
    handle = prepare(sink, name(1), rows(1))
    postgres_server.kill()
    postgres_server.restart()
    assert sink.commit_transaction(handle) is CommitOutcome.COMMITTED
    sink.commit_transaction(prepare(sink, name(2), rows(2)))
    assert visible(postgres_dsn) == [1, 2]


def test_rows_of_an_open_transaction_die_with_the_server_and_that_is_an_error(
    postgres_dsn: str, postgres_server: PostgresServer, open_sink: Opener
) -> None:
    sink = open_sink(buffer_bytes=1)
    sink.begin(name(1))
    sink.write(rows(1))
    postgres_server.kill()
    postgres_server.restart()
    with pytest.raises(SinkUnavailableError):
        sink.prepare()
    # Never a prepared transaction that has only the rows written after the restart.
    assert list(sink.list_prepared(PREFIX)) == []
    assert visible(postgres_dsn) == []


def test_abort_throws_away_prepared_and_open_and_unknown(
    postgres_dsn: str, open_sink: Opener
) -> None:
    sink = open_sink()
    prepare(sink, name(1), rows(1))
    sink.abort_transaction(name(1))
    sink.abort_transaction(name(1))
    sink.begin(name(2))
    sink.write(rows(2))
    sink.abort_transaction(name(2))
    sink.abort_transaction(name(99, epoch=9))
    sink.commit_transaction(prepare(sink, name(3), rows(3)))
    assert visible(postgres_dsn) == [3]
    assert list(sink.list_prepared(PREFIX)) == []


def test_abort_of_a_committed_transaction_changes_nothing(
    postgres_dsn: str, open_sink: Opener
) -> None:
    sink = open_sink()
    sink.commit_transaction(prepare(sink, name(1), rows(1)))
    sink.abort_transaction(name(1))
    assert visible(postgres_dsn) == [1]


def test_a_transaction_lost_in_the_server_is_fatal(postgres_dsn: str, open_sink: Opener) -> None:
    sink = open_sink()
    sink.commit_transaction(prepare(sink, name(1), rows(1)))
    handle = prepare(sink, name(2), rows(2))
    run(postgres_dsn, f"rollback prepared '{name(2)}'")
    with pytest.raises(FatalCommitError, match=r"helios:job:out:0:1:2.*would be lost"):
        sink.commit_transaction(handle)


def test_lingering_transactions_are_listed_of_every_epoch_and_subtask_of_this_sink_alone(
    open_sink: Opener,
) -> None:
    prepare(open_sink(epoch=1, subtask=0), name(5), rows(1))
    prepare(open_sink(epoch=2, subtask=1), name(6, epoch=2, subtask=1), rows(2))
    other = open_sink(epoch=2, uid="out-2")
    prepare(other, name(6, epoch=2, uid="out-2"), rows(3))
    found = list(open_sink(epoch=3).list_prepared(PREFIX))
    assert found == [name(5), name(6, epoch=2, subtask=1)]


def test_names_longer_than_postgres_allows_read_back(postgres_dsn: str) -> None:
    job, uid = "j" * 128, "s" * 128
    sink = PostgresSink(postgres_dsn, table="t")
    sink.open(SinkContext(job=job, sink_uid=uid, subtask=0, parallelism=1, epoch=1))
    which = TransactionId(job, uid, 0, 1, 42)
    handle = prepare(sink, which, rows(1))
    assert list(sink.list_prepared(TransactionId.prefix(job, uid))) == [which]
    assert sink.commit_transaction(handle) is CommitOutcome.COMMITTED
    assert sink.commit_transaction(handle) is CommitOutcome.ALREADY_COMMITTED
    sink.close()
    assert visible(postgres_dsn) == [1]


# ------------------------------------------------------------------------------------ fencing


def test_an_older_epoch_can_neither_write_nor_prepare_nor_commit(
    postgres_dsn: str, open_sink: Opener
) -> None:
    zombie = open_sink(epoch=1, buffer_bytes=1)
    handle = prepare(zombie, name(1), rows(1))
    zombie.begin(name(2))
    zombie.write(rows(2))
    successor = open_sink(epoch=2)
    with pytest.raises((SinkUnavailableError, FencedError)):
        zombie.prepare()
    with pytest.raises(FencedError, match="epoch 2"):
        zombie.begin(name(3))
    with pytest.raises((RetryableCommitError, FencedError)):  # its connection was ended
        zombie.commit_transaction(handle)
    with pytest.raises(FencedError, match="epoch 2"):
        zombie.commit_transaction(handle)
    assert list(successor.list_prepared(PREFIX)) == [name(1)]
    assert visible(postgres_dsn) == []


def test_an_older_epoch_cannot_open(open_sink: Opener) -> None:
    open_sink(epoch=2)
    with pytest.raises(FencedError, match=r"this is epoch 1 .* epoch 2"):
        open_sink(epoch=1)


def test_prepare_is_refused_even_on_a_connection_that_survived(
    postgres_dsn: str, open_sink: Opener
) -> None:
    sink = open_sink(epoch=1)
    sink.begin(name(1))
    sink.write(rows(1))
    run(postgres_dsn, "update helios_epochs set epoch = 2")
    with pytest.raises(FencedError, match="newer epoch"):
        sink.prepare()
    assert query(postgres_dsn, "select gid from pg_prepared_xacts where database = "
                 "current_database()") == []  # fmt: skip


def test_opening_ends_the_connections_of_older_epochs_even_one_that_holds_the_fence(
    postgres_dsn: str, open_sink: Opener
) -> None:
    zombie = open_sink(epoch=1)
    zombie.begin(name(1))
    sessions = "select count(*) from pg_stat_activity where application_name like 'helios:%:1'"
    (mine,) = query(postgres_dsn, f"{sessions} and datname = current_database()")[0]
    assert mine == 2
    # A process stopped in the middle of an upsert sits on the row of its epoch.
    with zombie._ingest().cursor() as cursor:
        cursor.execute("select epoch from helios_epochs for share")
        cursor.fetchall()
    open_sink(epoch=2, lock_timeout=timedelta(milliseconds=200))
    (left,) = query(postgres_dsn, f"{sessions} and datname = current_database()")[0]
    assert left == 0


def test_subtasks_of_one_epoch_and_other_sinks_leave_each_other_alone(
    postgres_dsn: str, open_sink: Opener
) -> None:
    first = open_sink(epoch=2, subtask=0)
    first.begin(name(1, epoch=2))
    first.write(rows(1))
    open_sink(epoch=2, subtask=1)
    open_sink(epoch=9, uid="other")
    first.commit_transaction(Committable(transaction=name(1, epoch=2), payload=first.prepare()))
    assert visible(postgres_dsn) == [1]


# -------------------------------------------------------------------------------- bookkeeping


def test_the_bookkeeping_does_not_grow_with_the_stream(
    postgres_dsn: str, open_sink: Opener
) -> None:
    sink, waiting = open_sink(), []
    for checkpoint in range(1, 31):
        waiting.append(prepare(sink, name(checkpoint), rows(checkpoint)))
        if len(waiting) == 3:
            sink.commit_transaction(waiting.pop(0))
    for handle in waiting:
        sink.commit_transaction(handle)
    (count,) = query(postgres_dsn, "select count(*) from helios_transactions")[0]
    assert count <= 4
    every = [Committable(transaction=name(n)) for n in range(1, 31)]
    outcomes = {sink.commit_transaction(handle) for handle in every}
    assert outcomes == {CommitOutcome.ALREADY_COMMITTED}


def test_what_an_older_epoch_committed_is_remembered(open_sink: Opener) -> None:
    old = prepare(sink := open_sink(epoch=1), name(1), rows(1))
    sink.commit_transaction(old)
    successor = open_sink(epoch=2)
    for checkpoint in (5, 6, 7):
        successor.commit_transaction(
            prepare(successor, name(checkpoint, epoch=2), rows(checkpoint))
        )
    assert successor.commit_transaction(old) is CommitOutcome.ALREADY_COMMITTED
    with pytest.raises(FatalCommitError):
        successor.commit_transaction(Committable(transaction=name(2)))


def test_a_stream_of_aborts_does_not_lose_what_was_committed(open_sink: Opener) -> None:
    sink = open_sink()
    committed = prepare(sink, name(1), rows(1))
    sink.commit_transaction(committed)
    for checkpoint in range(2, 6):
        prepare(sink, name(checkpoint), rows(checkpoint))
        sink.abort_transaction(name(checkpoint))
    assert sink.commit_transaction(committed) is CommitOutcome.ALREADY_COMMITTED
    with pytest.raises(FatalCommitError):
        sink.commit_transaction(Committable(transaction=name(5)))


# ------------------------------------------------------------------------------ what goes wrong


def test_a_violated_constraint_names_the_table_and_leaves_nothing(
    postgres_dsn: str, open_sink: Opener
) -> None:
    run(postgres_dsn, "create table t (x bigint primary key)")
    sink = open_sink()
    sink.commit_transaction(prepare(sink, name(1), rows(1)))
    with pytest.raises(DataError, match=r"public\.t.*23505"):
        prepare(sink, name(2), rows(2, 1))
    assert visible(postgres_dsn) == [1]
    sink.commit_transaction(prepare(sink, name(3), rows(3)))
    assert visible(postgres_dsn) == [1, 3]


def test_a_key_held_by_a_prepared_transaction_fails_after_the_lock_timeout(
    postgres_dsn: str, open_sink: Opener
) -> None:
    run(postgres_dsn, "create table t (x bigint primary key)")
    sink = open_sink(lock_timeout=timedelta(milliseconds=50))
    prepare(sink, name(1), rows(1))
    with pytest.raises(SinkUnavailableError, match=r"(?s)lock_timeout.*PostgresUpsertSink"):
        prepare(sink, name(2), rows(1))


def test_no_free_slot_says_which_setting_to_raise() -> None:
    with PostgresServer(max_prepared_transactions=1) as server:
        sink = PostgresSink(server.dsn, table="t")
        sink.open(SinkContext(job=JOB, sink_uid=UID, subtask=0, parallelism=1, epoch=1))
        prepare(sink, name(1), rows(1))
        with pytest.raises(SinkUnavailableError, match="Raise max_prepared_transactions"):
            prepare(sink, name(2), rows(2))
        sink.close()


def test_check_finds_two_phase_commit_switched_off() -> None:
    with (
        PostgresServer(max_prepared_transactions=0) as server,
        pytest.raises(SinkUnavailableError, match="max_prepared_transactions > 0"),
    ):
        PostgresSink(server.dsn, table="t").check(None)


def test_check_finds_no_server_and_hides_the_password() -> None:
    sink = PostgresSink("postgresql://ann:s3cret@127.0.0.1:1/db", table="t")
    with pytest.raises(SinkUnavailableError, match=r"ann:\*\*\*@127") as caught:
        sink.check(None)
    assert "s3cret" not in str(caught.value) + repr(sink)


def test_check_names_columns_that_do_not_fit_and_changes_nothing(postgres_dsn: str) -> None:
    run(postgres_dsn, "create table t (price bigint not null, name text, tags jsonb)")
    schema = pa.schema([("prise", pa.int64()), ("name", pa.bool_()), ("tags", pa.string())])
    with pytest.raises(ConfigError) as caught:
        PostgresSink(postgres_dsn, table="t").check(schema)
    message = str(caught.value)
    assert "no column 'prise' (did you mean 'price'?)" in message
    assert "column 'name' is text and the rows have bool" in message
    assert "lack column 'price', which may not be null" in message
    assert "tags" not in message.split("Rename")[0].split("The rows have")[0]
    tables = query(postgres_dsn, "select tablename from pg_tables where schemaname = 'public'")
    assert tables == [("t",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "t", "create_table": False}, "create_table"),
        ({"table": "t", "schema": "nowhere"}, "schema 'nowhere' does not exist"),
    ],
)
def test_check_names_a_missing_table_or_schema(
    postgres_dsn: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        PostgresSink(postgres_dsn, **options).check(None)


def test_an_open_sink_is_not_pickled_and_a_closed_one_is(open_sink: Opener) -> None:
    sink = open_sink()
    with pytest.raises(Exception, match="cannot be pickled"):
        pickle.dumps(sink)
    sink.close()
    assert repr(pickle.loads(pickle.dumps(sink))) == repr(sink)
