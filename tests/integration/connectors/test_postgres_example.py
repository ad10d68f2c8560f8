"""The guide's DatabaseSink, as in examples/, does what the guide promises."""

from __future__ import annotations

import datetime as dt
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from helios_ray.connectors.base import Committable, SinkContext
from helios_ray.errors import FatalCommitError, RetryableCommitError
from helios_ray.testing.servers import PostgresServer

MOMENT = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
EXAMPLE = Path(__file__).parents[3] / "examples" / "database_sink.py"


def context(epoch: int = 1, subtask: int = 0) -> SinkContext:
    return SinkContext(job="j", sink_uid="db", subtask=subtask, parallelism=2, epoch=epoch)


def events(*ids: int) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "id": pa.array(ids, pa.int64()),
            "data": [f"event {n}" for n in ids],
            "at": pa.array([MOMENT] * len(ids), pa.timestamp("us", "UTC")),
        }
    )


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("database_sink", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def open_sink(example: ModuleType, postgres_dsn: str) -> Iterator[Callable[..., Any]]:
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("create table events (id bigint, data text, at timestamptz)")
        connection.execute("create table event_commits (transaction text primary key)")
    opened = []

    def opener(**who: int) -> Any:
        sink = example.DatabaseSink(postgres_dsn)
        sink.open(context(**who))
        opened.append(sink)
        return sink

    yield opener
    for sink in opened:
        sink.close()


def prepare(sink: Any, checkpoint: int, *ids: int) -> Committable:
    transaction = sink.context.transaction_id(checkpoint)
    sink.begin(transaction)
    sink.write(events(*ids))
    return Committable(transaction=transaction, payload=sink.prepare())


def visible(dsn: str) -> list[int]:
    with psycopg.connect(dsn) as connection:
        return [n for (n,) in connection.execute("select id from events order by id")]


def test_events_appear_at_commit_once(postgres_dsn: str, open_sink: Callable[..., Any]) -> None:
    sink = open_sink()
    first, second = prepare(sink, 1, 1, 2), prepare(sink, 2, 3)
    assert visible(postgres_dsn) == []
    sink.commit_transaction(first)
    assert visible(postgres_dsn) == [1, 2]
    sink.commit_transaction(second)
    sink.commit_transaction(first)
    assert visible(postgres_dsn) == [1, 2, 3]


def test_a_later_attempt_settles_what_a_killed_server_kept(
    postgres_dsn: str, postgres_server: PostgresServer, open_sink: Callable[..., Any]
) -> None:
    old = open_sink(epoch=1, subtask=1)
    complete, incomplete = prepare(old, 1, 1), prepare(old, 2, 2)
    postgres_server.kill()
    with pytest.raises(RetryableCommitError):
        old.commit_transaction(complete)
    postgres_server.restart()
    new = open_sink(epoch=2, subtask=0)
    new.commit_transaction(complete)
    for checkpoint in range(2, 6):  # as the runtime probes for a sink that cannot list
        new.abort_transaction(context(epoch=1, subtask=1).transaction_id(checkpoint))
    assert visible(postgres_dsn) == [1]
    with pytest.raises(FatalCommitError, match="UndefinedObject"):
        new.commit_transaction(incomplete)


def test_after_a_lost_link_the_same_sink_retries(
    postgres_dsn: str, postgres_server: PostgresServer, open_sink: Callable[..., Any]
) -> None:
    sink = open_sink()
    handle = prepare(sink, 1, 1)
    postgres_server.kill()
    postgres_server.restart()
    with pytest.raises(RetryableCommitError):
        sink.commit_transaction(handle)
    sink.commit_transaction(handle)
    assert visible(postgres_dsn) == [1]
