"""PostgresUpsertSink against a real PostgreSQL: a replay changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios_ray.connectors.base import Guarantee, SinkContext
from helios_ray.connectors.postgres import PostgresUpsertSink
from helios_ray.errors import ConfigError, DataError, FencedError, SinkUnavailableError
from helios_ray.testing.servers import PostgresServer

Opener = Callable[..., PostgresUpsertSink]


def rows(*pairs: tuple[str, int]) -> pa.RecordBatch:
    keys, values = [k for k, _ in pairs], [v for _, v in pairs]
    return pa.record_batch({"k": pa.array(keys, pa.string()), "v": pa.array(values, pa.int64())})


def content(dsn: str) -> dict[str, int]:
    with psycopg.connect(dsn) as connection:
        return dict(connection.execute("select k, v from t").fetchall())


def run(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


@pytest.fixture
def open_sink(postgres_dsn: str) -> Iterator[Opener]:
    opened = []

    def opener(epoch: int = 1, subtask: int = 0, **options: Any) -> PostgresUpsertSink:
        options = {"key": ["k"], "linger": timedelta(hours=1), **options}
        sink = PostgresUpsertSink(postgres_dsn, table="t", **options)
        opened.append(sink)
        sink.open(
            SinkContext(job="job", sink_uid="out", subtask=subtask, parallelism=2, epoch=epoch)
        )
        return sink

    yield opener
    for sink in opened:
        sink.close()


def test_it_says_what_it_guarantees() -> None:
    assert PostgresUpsertSink.guarantee is Guarantee.IDEMPOTENT


def test_the_last_row_of_a_key_wins_within_a_batch_and_across(
    postgres_dsn: str, open_sink: Opener
) -> None:
    sink = open_sink()
    sink.write(rows(("a", 1), ("b", 2), ("a", 3)))
    sink.write(rows(("b", 4)))
    sink.flush()
    assert content(postgres_dsn) == {"a": 3, "b": 4}
    sink.write(rows(("a", 5)))
    sink.flush()
    assert content(postgres_dsn) == {"a": 5, "b": 4}


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 99)), max_size=6), max_size=5
    ),
    st.integers(0, 5),
)
def test_a_replay_from_any_batch_ends_in_the_same_rows(
    postgres_dsn: str, open_sink: Opener, batches: list[list[tuple[str, int]]], cut: int
) -> None:
    run(postgres_dsn, "drop table if exists t")
    sink = open_sink()
    for batch in [*batches, *batches[cut:]]:
        sink.write(rows(*batch))
        sink.flush()
    sink.write(rows(("end", 0)))
    sink.flush()
    expected = {key: value for batch in batches for key, value in batch}
    assert content(postgres_dsn) == {**expected, "end": 0}


def test_rows_are_visible_without_a_checkpoint_once_they_lingered(
    postgres_dsn: str, open_sink: Opener
) -> None:
    sink = open_sink(linger=timedelta(0))
    sink.write(rows(("a", 1)))
    assert content(postgres_dsn) == {"a": 1}


def test_a_table_of_keys_alone_stays_a_set(postgres_dsn: str, open_sink: Opener) -> None:
    sink = open_sink()
    for _ in range(2):
        sink.write(pa.record_batch({"k": ["a", "b", "a"]}))
        sink.flush()
    with psycopg.connect(postgres_dsn) as connection:
        assert connection.execute("select k from t order by k").fetchall() == [("a",), ("b",)]


def test_columns_that_the_rows_lack_are_left_alone(postgres_dsn: str, open_sink: Opener) -> None:
    run(postgres_dsn, "create table t (k text primary key, v bigint, note text)")
    run(postgres_dsn, "insert into t values ('a', 0, 'kept')")
    sink = open_sink()
    sink.write(rows(("a", 1)))
    sink.flush()
    with psycopg.connect(postgres_dsn) as connection:
        assert connection.execute("select * from t").fetchall() == [("a", 1, "kept")]


def test_a_killed_server_costs_nothing_once_it_is_back(
    postgres_dsn: str, postgres_server: PostgresServer, open_sink: Opener
) -> None:
    sink = open_sink()
    sink.write(rows(("a", 1)))
    sink.flush()
    sink.write(rows(("a", 2)))
    postgres_server.kill()
    with pytest.raises(SinkUnavailableError):
        sink.flush()
    postgres_server.restart()
    sink.flush()
    assert content(postgres_dsn) == {"a": 2}
    postgres_server.kill()
    postgres_server.restart()
    sink.write(rows(("a", 3)))
    sink.flush()
    assert content(postgres_dsn) == {"a": 3}


def test_an_older_epoch_cannot_bring_old_values_back(postgres_dsn: str, open_sink: Opener) -> None:
    zombie = open_sink(epoch=1)
    zombie.write(rows(("a", 1)))
    zombie.flush()
    zombie.write(rows(("a", 2)))
    successor = open_sink(epoch=2)
    successor.write(rows(("a", 3)))
    successor.flush()
    with pytest.raises(FencedError, match="epoch 2"):
        zombie.flush()
    assert content(postgres_dsn) == {"a": 3}
    with pytest.raises(FencedError):
        open_sink(epoch=1)


def test_two_columns_make_a_key(postgres_dsn: str, open_sink: Opener) -> None:
    sink = open_sink(key=["k", "v"])
    sink.write(rows(("a", 1), ("a", 2), ("a", 1)))
    sink.flush()
    with psycopg.connect(postgres_dsn) as connection:
        assert connection.execute("select * from t order by v").fetchall() == [("a", 1), ("a", 2)]


def test_a_null_key_is_refused(open_sink: Opener) -> None:
    sink = open_sink()
    sink.write(pa.record_batch({"k": pa.array(["a", None]), "v": [1, 2]}))
    with pytest.raises(DataError, match="key column 'k' is null in 1 of 2 rows"):
        sink.flush()


def test_check_wants_a_unique_index_on_exactly_the_key(postgres_dsn: str) -> None:
    run(postgres_dsn, "create table t (k text, v bigint, unique (k, v))")
    sink = PostgresUpsertSink(postgres_dsn, table="t", key=["k"])
    with pytest.raises(ConfigError, match=r"unique index on exactly \['k'\].*\['k', 'v'\]"):
        sink.check(None)
    run(postgres_dsn, "create unique index on t (k)")
    sink.check(rows(("a", 1)).schema)


def test_check_wants_the_key_among_the_rows(postgres_dsn: str) -> None:
    sink = PostgresUpsertSink(postgres_dsn, table="t", key=["id"])
    with pytest.raises(ConfigError, match=r"key columns \['id'\] are not in the rows"):
        sink.check(rows(("a", 1)).schema)


@pytest.mark.parametrize("key", ["k", [], ["k", "k"]])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises(ConfigError, match="key must be a list"):
        PostgresUpsertSink("postgresql://x", table="t", key=key)
