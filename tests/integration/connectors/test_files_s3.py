"""Files on S3: read as on a disk, and published exactly once by multipart uploads."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helios_ray.connectors.base import CommitOutcome, Committable, Rows, SinkContext
from helios_ray.connectors.files import FileSink, FileSource, read_committed
from helios_ray.connectors.files import s3 as s3_module
from helios_ray.errors import (
    CorruptInputError,
    FatalCommitError,
    RetryableCommitError,
    SinkUnavailableError,
    SourceUnavailableError,
)
from helios_ray.identifiers import TransactionId
from helios_ray.testing.servers import MotoServer, S3Server

CONTEXT = SinkContext(job="flights", sink_uid="out", subtask=1, parallelism=2, epoch=7)
PREFIX = TransactionId.prefix("flights", "out")


def batch(*values: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(values, pa.int64())})


class Place:
    """A fresh prefix in a fresh bucket of a server."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.options = server.storage_options
        self.client = server.client()
        self.bucket = server.new_bucket()
        self.url = f"s3://{self.bucket}/deep/out"

    def sink(self, **options: Any) -> FileSink:
        sink = FileSink(self.url, storage_options=self.options, **options)
        sink.open(CONTEXT)
        return sink

    def prepared(self, sink: FileSink, checkpoint: int, *batches: pa.RecordBatch) -> Committable:
        transaction = CONTEXT.transaction_id(checkpoint)
        sink.begin(transaction)
        for rows in batches:
            sink.write(rows)
        # Through JSON, as a manifest keeps it.
        payload = json.loads(json.dumps(sink.prepare()))
        return Committable(transaction=transaction, payload=payload)

    def numbers(self) -> list[int]:
        found = read_committed(self.url, storage_options=self.options)
        return sorted(found.column("n").to_pylist()) if found.num_columns else []

    def uploads(self) -> int:
        return len(self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []))


@pytest.fixture
def place(s3_server: S3Server) -> Place:
    return Place(s3_server)


# -------------------------------------------------------------------------------------- the sink


def test_rows_are_seen_after_commit_and_not_before(place: Place) -> None:
    sink = place.sink()
    committable = place.prepared(sink, 42, batch(1, 2), batch(3))
    assert place.numbers() == []
    assert list(sink.list_prepared(PREFIX)) == [committable.transaction]
    assert sink.commit_transaction(committable) is CommitOutcome.COMMITTED
    assert place.numbers() == [1, 2, 3]
    assert list(sink.list_prepared(PREFIX)) == []
    [entry] = place.client.list_objects_v2(Bucket=place.bucket)["Contents"]
    assert entry["Key"] == "deep/out/part-out@flights-1-7-42-0.parquet"
    sink.close()


def test_a_commit_is_finished_by_another_process_and_recognized_when_repeated(
    place: Place,
) -> None:
    first = place.sink(max_file_rows=2)
    committable = place.prepared(first, 1, batch(1, 2, 3, 4, 5))
    assert len(committable.payload["files"]) == 3
    # The first process died after completing one of the three uploads.
    half = {"files": committable.payload["files"][:1]}
    first.commit_transaction(Committable(transaction=committable.transaction, payload=half))
    first.close()
    second = place.sink()
    assert second.commit_transaction(committable) is CommitOutcome.COMMITTED
    third = place.sink()
    assert third.commit_transaction(committable) is CommitOutcome.ALREADY_COMMITTED
    third.abort_transaction(committable.transaction, committable.payload)
    third.abort_transaction(committable.transaction)
    assert place.numbers() == [1, 2, 3, 4, 5]


def test_a_completion_whose_answer_was_lost_counts_as_done(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = place.sink()
    committable = place.prepared(sink, 1, batch(1))
    fs = sink._stored._fs  # type: ignore[attr-defined]
    call_s3 = fs.call_s3

    def deaf(method: str, **arguments: Any) -> Any:
        answer = call_s3(method, **arguments)
        if method == "complete_multipart_upload":
            raise TimeoutError("no answer")
        return answer

    monkeypatch.setattr(fs, "call_s3", deaf)
    with pytest.raises(RetryableCommitError, match=r"flights:out:1:7:1.*or nobody knows.*Timeout"):
        sink.commit_transaction(committable)
    monkeypatch.undo()
    assert sink.commit_transaction(committable) is CommitOutcome.ALREADY_COMMITTED
    assert place.numbers() == [1]


def test_an_upload_that_was_aborted_behind_the_jobs_back_is_fatal(place: Place) -> None:
    sink = place.sink()
    committable = place.prepared(sink, 1, batch(1))
    sink.abort_transaction(committable.transaction)
    with pytest.raises(FatalCommitError, match=r"part-out@flights-1-7-1-0.*no object is there"):
        sink.commit_transaction(committable)


def test_another_object_under_the_final_name_is_not_taken_for_ours(place: Place) -> None:
    sink = place.sink()
    committable = place.prepared(sink, 1, batch(1))
    sink.abort_transaction(committable.transaction)
    [entry] = committable.payload["files"]
    stranger = b"x" * entry["bytes"]
    place.client.put_object(Bucket=place.bucket, Key=f"deep/out/{entry['name']}", Body=stranger)
    for process in (sink, place.sink()):
        with pytest.raises(FatalCommitError, match=r"another object is there"):
            process.commit_transaction(committable)


def test_abort_needs_nothing_but_the_transaction(place: Place) -> None:
    sink = place.sink(max_file_rows=1)
    place.prepared(sink, 1, batch(1, 2))
    kept = place.prepared(sink, 11, batch(3))
    assert place.uploads() == 3
    other = place.sink()
    other.abort_transaction(CONTEXT.transaction_id(1))
    assert list(other.list_prepared(PREFIX)) == [kept.transaction]
    other.abort_transaction(CONTEXT.transaction_id(99))
    assert place.uploads() == 1


def test_list_prepared_tells_jobs_and_sinks_apart_and_finds_what_was_only_begun(
    place: Place,
) -> None:
    sink = place.sink()
    wanted = [TransactionId("flights", "out", 0, 3, 9), TransactionId("flights", "out", 4, 8, 10)]
    others = [TransactionId("flights", "out-2", 0, 1, 1), TransactionId("fl", "out", 0, 1, 1)]
    for transaction in [*wanted, *others]:
        sink.begin(transaction)
        sink.write(batch(1))
        sink.prepare()
    begun = CONTEXT.transaction_id(1)
    sink.begin(begun)
    sink.write(batch(1))
    other = place.sink()
    assert list(other.list_prepared(PREFIX)) == [wanted[0], begun, wanted[1]]
    assert set(other.list_prepared("helios:")) == {begun, *wanted, *others}


def test_closing_aborts_what_was_begun(place: Place) -> None:
    sink = place.sink(format="jsonl")
    sink.begin(CONTEXT.transaction_id(1))
    for start in range(0, 1_000_000, 100_000):
        sink.write(batch(*range(start, start + 100_000)))
    assert place.uploads() == 1
    sink.close()
    assert place.uploads() == 0


def test_a_large_transaction_streams_in_parts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    most_held = 0
    write = s3_module.MultipartFile.write

    def watched(self: s3_module.MultipartFile, data: Any) -> int:
        nonlocal most_held
        written = write(self, data)
        most_held = max(most_held, len(self._buffer))
        return written

    monkeypatch.setattr(s3_module.MultipartFile, "write", watched)
    part = 5 << 20
    sink = place.sink(format="jsonl", part_size=part)
    batches = [batch(*range(i * 100_000, (i + 1) * 100_000)) for i in range(15)]
    committable = place.prepared(sink, 1, *batches)
    [entry] = committable.payload["files"]
    assert len(entry["parts"]) == -(-entry["bytes"] // part) >= 4
    assert most_held < part
    sink.commit_transaction(committable)
    assert place.numbers() == list(range(1_500_000))


def test_the_name_of_a_committed_transaction_is_not_used_again(place: Place) -> None:
    sink = place.sink()
    sink.commit_transaction(place.prepared(sink, 1, batch(1)))
    with pytest.raises(SinkUnavailableError, match=r"exists already.*Another run"):
        place.sink().begin(CONTEXT.transaction_id(1))


def test_check_leaves_nothing_behind_and_finds_a_missing_bucket(place: Place) -> None:
    FileSink(place.url, storage_options=place.options).check(batch(1).schema)
    assert place.uploads() == 0
    assert "Contents" not in place.client.list_objects_v2(Bucket=place.bucket)
    missing = FileSink("s3://no-such-bucket-here/x", storage_options=place.options)
    with pytest.raises(SinkUnavailableError, match=r"NoSuchBucket.*Make the bucket"):
        missing.check(None)


def test_a_server_that_is_gone_makes_commits_wait_and_checks_fail() -> None:
    with MotoServer() as server:
        place = Place(server)
        place.options["config_kwargs"]["retries"] = {"max_attempts": 0}
        sink = place.sink()
        committable = place.prepared(sink, 1, batch(1))
        server.kill()
        with pytest.raises(RetryableCommitError, match=r"flights:out:1:7:1"):
            sink.commit_transaction(committable)
        with pytest.raises(RetryableCommitError, match=r"abort of helios:flights:out:1:7:1"):
            sink.abort_transaction(committable.transaction, committable.payload)
        with pytest.raises(SinkUnavailableError, match=r"Check the endpoint"):
            FileSink(place.url, storage_options=place.options).check(None)


# ------------------------------------------------------------------------------------ the source


def read_all(source: FileSource) -> list[dict[str, Any]]:
    rows = []
    for split in source.discover_splits(2):
        reader = source.open_split(split)
        while isinstance(polled := reader.poll(1000, 0.0), Rows):
            rows += polled.data.to_pylist()
        reader.close()
    return rows


@pytest.mark.parametrize("fmt", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("pattern", ["in", "in/*.{fmt}", "in/2.{fmt}"])
def test_files_on_s3_are_read_like_files_on_a_disk(place: Place, fmt: str, pattern: str) -> None:
    expected = []
    for number in (1, 2):
        table = pa.table({"n": list(range(number * 1000, number * 1000 + 50))})
        if fmt == "parquet":
            out = pa.BufferOutputStream()
            pq.write_table(table, out, row_group_size=20)
            body = out.getvalue().to_pybytes()
        elif fmt == "csv":
            body = b"n\n" + b"".join(b"%d\n" % n for n in table.column("n").to_pylist())
        else:
            body = b"".join(b'{"n":%d}\n' % n for n in table.column("n").to_pylist())
        for name in (f"{number}.{fmt}", f".hidden-{number}.{fmt}"):
            place.client.put_object(Bucket=place.bucket, Key=f"in/{name}", Body=body)
        if number == 2 or "2" not in pattern:
            expected += table.to_pylist()
    source = FileSource(
        f"s3://{place.bucket}/{pattern.format(fmt=fmt)}",
        block_size=64,
        storage_options=place.options,
    )
    assert read_all(source) == expected
    split = source.discover_splits(2)[1]
    assert split.split_id.startswith(f"s3://{place.bucket}/in/")
    reader = source.open_split(split)
    first = reader.poll(3, 0.0)
    assert isinstance(first, Rows)
    again = source.open_split(split)
    again.seek(json.loads(json.dumps(reader.position())))
    assert again.poll(5, 0.0).data.equals(reader.poll(5, 0.0).data)  # type: ignore[union-attr]


def test_a_watched_prefix_shows_what_another_process_commits(place: Place) -> None:
    schema = pa.schema([("n", pa.int64())])
    source = FileSource(
        place.url,
        format="parquet",
        schema=schema,
        watch=timedelta(seconds=1),
        storage_options=place.options,
    )
    assert source.schema() == schema
    assert list(source.discover_splits(1)) == []
    sink = place.sink()
    committable = place.prepared(sink, 1, batch(1, 2))
    assert list(source.discover_splits(1)) == []
    sink.commit_transaction(committable)
    assert read_all(source) == [{"n": 1}, {"n": 2}]


def test_an_object_that_was_overwritten_with_as_many_bytes_is_refused(place: Place) -> None:
    key = {"Bucket": place.bucket, "Key": "in/a.csv"}
    place.client.put_object(**key, Body=b"n\n1\n")
    source = FileSource(f"s3://{place.bucket}/in", storage_options=place.options)
    [split] = source.discover_splits(1)
    place.client.put_object(**key, Body=b"n\n2\n")
    with pytest.raises(CorruptInputError, match=r"has changed since.*ETag"):
        source.open_split(split)


@pytest.mark.parametrize("name", ["no-such-bucket-here/x", "no-such-bucket-here/*.csv"])
def test_a_bucket_that_does_not_exist_is_an_error_at_once(place: Place, name: str) -> None:
    options = place.options
    with pytest.raises(SourceUnavailableError, match=r"no-such-bucket-here"):
        FileSource(f"s3://{name}", format="csv", storage_options=options).schema()
    schema, watch = pa.schema([("n", pa.int64())]), timedelta(seconds=1)
    source = FileSource(
        f"s3://{name}", format="csv", schema=schema, watch=watch, storage_options=options
    )
    with pytest.raises(SourceUnavailableError, match=r"no-such-bucket-here"):
        source.schema()
