"""What comes out of PostgreSQL is what went in, whatever the types on both sides."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from helios_ray.connectors.base import Committable, SinkContext
from helios_ray.connectors.postgres import PostgresSink, PostgresUpsertSink
from helios_ray.errors import ConfigError, DataError

CONTEXT = SinkContext(job="job", sink_uid="out", subtask=0, parallelism=1, epoch=1)
MOMENT = dt.datetime(2013, 1, 1, 5, 17, 0, 123456)
UTC = MOMENT.replace(tzinfo=dt.timezone.utc)
ID = uuid.UUID("00000000-0000-0000-0000-00000000002a")


def through(dsn: str, batch: pa.RecordBatch, table: str = "t") -> list[Any]:
    sink = PostgresSink(dsn, table=table)
    sink.check(batch.schema)
    sink.open(CONTEXT)
    try:
        sink.begin(CONTEXT.transaction_id(1))
        sink.write(batch)
        sink.commit_transaction(
            Committable(transaction=CONTEXT.transaction_id(1), payload=sink.prepare())
        )
    finally:
        sink.close()
    return read(dsn, table)


def read(dsn: str, table: str = "t") -> list[Any]:
    with psycopg.connect(dsn) as connection:
        connection.execute("set timezone to 'UTC'")
        return [row[0] for row in connection.execute(f'select v from "{table}"')]


NATURAL = [
    (pa.int8(), -5, -5),
    (pa.int16(), 7, 7),
    (pa.int32(), 7, 7),
    (pa.int64(), 2**62, 2**62),
    (pa.uint8(), 255, 255),
    (pa.uint32(), 2**32 - 1, 2**32 - 1),
    (pa.uint64(), 7, 7),
    (pa.float32(), 0.5, 0.5),
    (pa.float64(), 0.1, 0.1),
    (pa.bool_(), True, True),
    (pa.string(), "Grüße", "Grüße"),
    (pa.large_string(), "a", "a"),
    (pa.string_view(), "a", "a"),
    (pa.dictionary(pa.int32(), pa.string()), "a", "a"),
    (pa.binary(), b"\x00\xff", b"\x00\xff"),
    (pa.binary(2), b"\x00\xff", b"\x00\xff"),
    (pa.date32(), MOMENT.date(), MOMENT.date()),
    (pa.date64(), MOMENT.date(), MOMENT.date()),
    (pa.timestamp("s"), MOMENT.replace(microsecond=0), MOMENT.replace(microsecond=0)),
    (pa.timestamp("us"), MOMENT, MOMENT),
    (pa.timestamp("us", "UTC"), UTC, UTC),
    (pa.timestamp("us", "Europe/Berlin"), UTC, UTC),
    (pa.time64("us"), MOMENT.time(), MOMENT.time()),
    (pa.duration("us"), dt.timedelta(hours=3), dt.timedelta(hours=3)),
    (pa.decimal128(10, 2), decimal.Decimal("1.50"), decimal.Decimal("1.50")),
    (pa.list_(pa.int64()), [1, 2], [1, 2]),
    (pa.list_(pa.string()), ["a", None], ["a", None]),
    (pa.null(), None, None),
]


@pytest.mark.parametrize(("arrow", "value", "expected"), NATURAL, ids=lambda v: str(v)[:30])
def test_a_table_made_for_the_rows_holds_them(
    postgres_dsn: str, arrow: Any, value: Any, expected: Any
) -> None:
    batch = pa.record_batch({"v": pa.array([value, None], arrow)})
    assert through(postgres_dsn, batch) == [expected, None]


EXISTING = [
    ("smallint", pa.int64(), 7, 7),
    ("integer", pa.int64(), 7, 7),
    ("bigint", pa.int32(), 7, 7),
    ("double precision", pa.int64(), 7, 7.0),
    ("real", pa.float64(), 0.5, 0.5),
    ("numeric", pa.float64(), 0.5, decimal.Decimal("0.5")),
    ("numeric(12,2)", pa.int64(), 7, decimal.Decimal("7.00")),
    ("varchar(10)", pa.string(), "a", "a"),
    ("json", pa.string(), '{"a": 1}', {"a": 1}),
    ("jsonb", pa.string(), '{"a": 1}', {"a": 1}),
    ("uuid", pa.string(), str(ID), ID),
    ("timestamptz", pa.timestamp("us"), MOMENT, UTC),
    ("timestamptz", pa.timestamp("ns", "UTC"), UTC, UTC),
    ("timestamp", pa.date32(), MOMENT.date(), dt.datetime(2013, 1, 1)),
    ("integer[]", pa.list_(pa.int64()), [1, 2], [1, 2]),
    ("jsonb", pa.null(), None, None),
    ("integer", pa.null(), None, None),
]


@pytest.fixture
def existing(postgres_dsn: str, request: pytest.FixtureRequest) -> Iterator[str]:
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute(f"create table t (k bigint primary key default 1, v {request.param})")
    return postgres_dsn


@pytest.mark.parametrize(
    ("existing", "arrow", "value", "expected"), EXISTING, indirect=["existing"],
    ids=lambda v: str(v)[:30],
)  # fmt: skip
def test_a_table_that_exists_takes_what_fits_without_loss(
    existing: str, arrow: Any, value: Any, expected: Any
) -> None:
    assert through(existing, pa.record_batch({"v": pa.array([value], arrow)})) == [expected]


@pytest.mark.parametrize(
    ("existing", "arrow", "value", "expected"), EXISTING, indirect=["existing"],
    ids=lambda v: str(v)[:30],
)  # fmt: skip
def test_an_upsert_takes_the_same(existing: str, arrow: Any, value: Any, expected: Any) -> None:
    sink = PostgresUpsertSink(existing, table="t", key=["k"])
    batch = pa.record_batch({"v": pa.array([value], arrow), "k": pa.array([1], pa.int64())})
    sink.check(batch.schema)
    sink.open(CONTEXT)
    sink.write(batch)
    sink.flush()
    sink.close()
    assert read(existing) == [expected]


@pytest.mark.parametrize("existing", ["integer"], indirect=True)
def test_a_value_that_does_not_fit_is_refused_by_name(existing: str) -> None:
    batch = pa.record_batch({"v": pa.array([2**31], pa.int64())})
    with pytest.raises(DataError, match=r"column 'v'.*integer"):
        through(existing, batch)
    assert read(existing) == []


@pytest.mark.parametrize("existing", ["jsonb"], indirect=True)
def test_text_that_the_server_cannot_read_is_refused(existing: str) -> None:
    with pytest.raises(DataError, match="22P02"):
        through(existing, pa.record_batch({"v": ["{"]}))


def test_a_type_without_a_place_is_refused_before_anything_is_made(postgres_dsn: str) -> None:
    batch = pa.record_batch({"v": pa.array([{"a": 1}])})
    with pytest.raises(ConfigError, match=r"column 'v' of type struct<a: int64>"):
        PostgresSink(postgres_dsn, table="t").check(batch.schema)


def test_names_with_spaces_quotes_and_capitals_are_kept(postgres_dsn: str) -> None:
    batch = pa.record_batch({"v": [1], 'Odd "name"': [2]})
    assert through(postgres_dsn, batch, table="My Table") == [1]
    with psycopg.connect(postgres_dsn) as connection:
        rows = connection.execute('select "Odd ""name""" from "My Table"').fetchall()
    assert rows == [(2,)]
