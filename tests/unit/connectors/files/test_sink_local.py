"""Files on a local disk appear whole, once, and only at commit, whenever the machine dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.connectors.base import CommitOutcome, Committable, SinkContext
from helios_ray.connectors.files import FileSink, FileSource, encoders, read_committed
from helios_ray.connectors.files.disk import Disk
from helios_ray.connectors.files.json_encode import encode
from helios_ray.connectors.files.local import LocalStore
from helios_ray.errors import (
    ConfigError,
    DataError,
    FatalCommitError,
    RetryableCommitError,
    SchemaChangedError,
    SinkUnavailableError,
)
from helios_ray.identifiers import TransactionId

CONTEXT = SinkContext(job="flights", sink_uid="out", subtask=1, parallelism=2, epoch=7)
PREFIX = TransactionId.prefix("flights", "out")


def batch(*values: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(values, pa.int64())})


def opened(path: Path | str, disk: Disk | None = None, **options: Any) -> FileSink:
    sink = FileSink(path, **options)
    if disk is not None:
        sink._store = LocalStore(str(path), disk)
    sink.open(CONTEXT)
    return sink


def prepared(sink: FileSink, checkpoint: int, *batches: pa.RecordBatch) -> Committable:
    transaction = CONTEXT.transaction_id(checkpoint)
    sink.begin(transaction)
    for rows in batches:
        sink.write(rows)
    return Committable(transaction=transaction, payload=sink.prepare())


def numbers(path: Path | str) -> list[int]:
    found = read_committed(path)
    return sorted(found.column("n").to_pylist()) if found.num_columns else []


def test_rows_are_seen_after_commit_and_not_before(tmp_path: Path) -> None:
    sink = opened(tmp_path / "new" / "out")
    committable = prepared(sink, 42, batch(1, 2), batch(3))
    assert numbers(tmp_path / "new" / "out") == []
    assert list(sink.list_prepared(PREFIX)) == [committable.transaction]
    assert sink.commit_transaction(committable) is CommitOutcome.COMMITTED
    assert numbers(tmp_path / "new" / "out") == [1, 2, 3]
    assert list(sink.list_prepared(PREFIX)) == []
    names = os.listdir(tmp_path / "new" / "out")
    assert sorted(names) == [".staging", "part-out@flights-1-7-42-0.parquet"]


def test_commit_from_another_process_and_twice_is_the_same_commit(tmp_path: Path) -> None:
    committable = prepared(opened(tmp_path), 1, batch(1))
    other = opened(tmp_path)
    assert other.commit_transaction(committable) is CommitOutcome.COMMITTED
    assert opened(tmp_path).commit_transaction(committable) is CommitOutcome.ALREADY_COMMITTED
    other.abort_transaction(committable.transaction, committable.payload)
    assert numbers(tmp_path) == [1]


def test_several_transactions_can_be_prepared_before_one_is_committed(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    first, second = prepared(sink, 1, batch(1)), prepared(sink, 2, batch(2))
    assert list(sink.list_prepared(PREFIX)) == [first.transaction, second.transaction]
    sink.abort_transaction(second.transaction)
    sink.commit_transaction(first)
    assert numbers(tmp_path) == [1]
    assert list(sink.list_prepared(PREFIX)) == []


def test_list_prepared_tells_jobs_and_sinks_apart_and_finds_other_epochs(tmp_path: Path) -> None:
    sink = FileSink(tmp_path)
    wanted = [TransactionId("flights", "out", 0, 3, 9), TransactionId("flights", "out", 4, 8, 10)]
    others = [
        TransactionId("flights", "out-2", 0, 1, 1),
        TransactionId("fl", "out", 0, 1, 1),
    ]
    sink.open(CONTEXT)
    for transaction in [*wanted, *others]:
        sink.begin(transaction)
        sink.write(batch(1))
        sink.prepare()
    assert list(sink.list_prepared(PREFIX)) == wanted


def test_closing_throws_away_what_was_begun_and_keeps_what_was_prepared(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    kept = prepared(sink, 1, batch(1))
    sink.begin(CONTEXT.transaction_id(2))
    sink.write(batch(2))
    sink.close()
    assert list(opened(tmp_path).list_prepared(PREFIX)) == [kept.transaction]


@pytest.mark.parametrize("missing", ["staged", "size"])
def test_a_prepared_file_that_is_lost_or_cut_is_fatal(tmp_path: Path, missing: str) -> None:
    sink = opened(tmp_path)
    committable = prepared(sink, 1, batch(1))
    [staged] = tmp_path.glob(".staging/*/*.parquet")
    if missing == "staged":
        staged.unlink()
    else:
        staged.write_bytes(staged.read_bytes()[:-1])
    with pytest.raises(FatalCommitError, match=r"flights:out:1:7:1.*expected .* bytes"):
        sink.commit_transaction(committable)
    assert numbers(tmp_path) == []


def test_nothing_is_published_when_one_of_several_files_is_lost(tmp_path: Path) -> None:
    sink = opened(tmp_path, max_file_rows=1)
    committable = prepared(sink, 1, batch(1, 2, 3))
    sorted(tmp_path.glob(".staging/*/*.parquet"))[-1].unlink()
    with pytest.raises(FatalCommitError, match=r"neither"):
        sink.commit_transaction(committable)
    assert numbers(tmp_path) == []


def test_a_stranger_under_the_final_name_is_not_overwritten(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    committable = prepared(sink, 1, batch(1))
    final = tmp_path / committable.payload["files"][0]["name"]
    final.write_bytes(b"precious")
    with pytest.raises(FatalCommitError, match=r"did not write"):
        sink.commit_transaction(committable)
    assert final.read_bytes() == b"precious"


def test_a_directory_that_is_unmounted_can_be_tried_again(tmp_path: Path) -> None:
    sink = opened(tmp_path / "disk")
    committable = prepared(sink, 1, batch(1))
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(RetryableCommitError, match=r"is not there.*Mount"):
        sink.commit_transaction(committable)
    (tmp_path / "away").rename(tmp_path / "disk")
    assert sink.commit_transaction(committable) is CommitOutcome.COMMITTED


def test_the_name_of_a_committed_transaction_is_not_used_again(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sink.commit_transaction(prepared(sink, 1, batch(1)))
    with pytest.raises(SinkUnavailableError, match=r"exists already.*Another run.*empty"):
        opened(tmp_path).begin(CONTEXT.transaction_id(1))


def test_a_payload_of_another_sink_is_fatal(tmp_path: Path) -> None:
    committable = Committable(transaction=CONTEXT.transaction_id(1), payload=["what"])
    with pytest.raises(FatalCommitError, match=r"another kind of sink"):
        opened(tmp_path).commit_transaction(committable)


# --------------------------------------------------------------------------- death at any step


class _Died(BaseException):
    """The machine lost its power."""


class MortalDisk(Disk):
    """A disk whose machine dies before its ``steps``-th step.

    The machine forgets what was not forced to the disk: with ``power_loss`` every name that
    came into a directory since it was synced is gone again, what was removed stays removed, and
    a file that was not synced is empty. That is the worst that POSIX allows.
    """

    def __init__(self, steps: int | None, *, power_loss: bool) -> None:
        self.taken = 0
        self._left = steps
        self._power_loss = power_loss
        self._undo: list[tuple[str, Callable[[], None]]] = []
        self._unsynced: set[str] = set()

    def _step(self) -> None:
        if self._left is not None and self.taken >= self._left:
            raise _Died
        self.taken += 1

    def _changed(self, path: str, undo: Callable[[], None]) -> None:
        self._undo.append((os.path.dirname(path), undo))

    def make_directory(self, path: str) -> None:
        self._step()
        existed = os.path.isdir(path)
        super().make_directory(path)
        if not existed:
            # Synced or not, what is in a directory goes with its name.
            self._changed(path, lambda: shutil.rmtree(path, ignore_errors=True))

    def create(self, path: str) -> BinaryIO:
        self._step()
        file = super().create(path)
        self._unsynced.add(path)
        self._changed(path, lambda: os.unlink(path))
        return file

    def sync_file(self, file: BinaryIO) -> None:
        self._step()
        super().sync_file(file)
        self._unsynced.discard(file.name)

    def sync_directory(self, path: str) -> None:
        self._step()
        super().sync_directory(path)
        self._undo = [(place, undo) for place, undo in self._undo if place != path]

    def rename(self, source: str, target: str) -> None:
        self._step()
        super().rename(source, target)
        self._changed(target, lambda: self._move_back(target, source))

    def remove_file(self, path: str) -> None:
        self._step()
        super().remove_file(path)

    def remove_directory(self, path: str) -> None:
        self._step()
        super().remove_directory(path)

    @staticmethod
    def _move_back(target: str, source: str) -> None:
        if os.path.isdir(os.path.dirname(source)):
            os.rename(target, source)
        else:
            os.unlink(target)  # neither name is on the disk any more

    def forget(self) -> None:
        """What the disk looks like when the machine comes back."""
        if self._power_loss:
            for _, undo in reversed(self._undo):
                undo()
            for path in self._unsynced:
                if os.path.exists(path):
                    os.truncate(path, 0)


def run_job(path: str, disk: Disk, manifest: list[Committable], committed: set[str]) -> None:
    """Two checkpoints of three files each: what the coordinator has decided is in ``manifest``."""
    sink = opened(path, disk, max_file_rows=2)
    for checkpoint in (1, 2):
        rows = batch(*range(checkpoint * 10, checkpoint * 10 + 5))
        committable = prepared(sink, checkpoint, rows)
        manifest.append(committable)  # durable: from here on it must be committed
        sink.commit_transaction(committable)
        committed.add(str(committable.transaction))


def recover(path: str, disk: Disk, manifest: list[Committable]) -> None:
    """What a restore does: commit what the manifest names, abort whatever else is there."""
    sink = opened(path, disk)
    for committable in manifest:
        sink.commit_transaction(committable)
    for transaction in list(sink.list_prepared(PREFIX)):
        sink.abort_transaction(transaction)


def expected_rows(manifest: list[Committable]) -> list[int]:
    decided = [c.transaction.checkpoint for c in manifest]
    return [n for checkpoint in decided for n in range(checkpoint * 10, checkpoint * 10 + 5)]


def steps_of_a_run() -> int:
    with tempfile.TemporaryDirectory() as folder:
        disk = MortalDisk(None, power_loss=False)
        run_job(f"{folder}/out", disk, [], set())
        return disk.taken


STEPS = steps_of_a_run()


@pytest.mark.parametrize("power_loss", [False, True], ids=["process-dies", "power-fails"])
@pytest.mark.parametrize("death", range(STEPS + 1))
def test_death_between_any_two_steps_loses_and_repeats_nothing(
    tmp_path: Path, death: int, power_loss: bool
) -> None:
    path = str(tmp_path / "out")
    manifest: list[Committable] = []
    committed: set[str] = set()
    disk = MortalDisk(death, power_loss=power_loss)
    if death < STEPS:
        with pytest.raises(_Died):
            run_job(path, disk, manifest, committed)
    else:
        run_job(path, disk, manifest, committed)
    disk.forget()
    # What was acknowledged as committed is there before any recovery.
    acknowledged = [c for c in manifest if str(c.transaction) in committed]
    there = numbers(path) if os.path.isdir(path) else []
    assert set(expected_rows(acknowledged)) <= set(there) <= set(expected_rows(manifest))

    # Recovery dies too, at each of its steps, and is run again, until it gets through.
    for second in range(100):
        again = MortalDisk(second, power_loss=power_loss)
        try:
            recover(path, again, manifest)
        except _Died:
            again.forget()
            continue
        break
    assert numbers(path) == expected_rows(manifest)
    assert list(opened(path).list_prepared(PREFIX)) == []
    assert os.listdir(f"{path}/.staging") == []


KILLED = """
import os, signal, sys
from tests.unit.connectors.files import test_sink_local as t
class Killed(t.MortalDisk):
    def _step(self):
        if self.taken == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        self.taken += 1
t.run_job(sys.argv[1], Killed(None, power_loss=False), [], set())
"""


@pytest.mark.parametrize("death", [STEPS // 3, STEPS // 2 - 1, STEPS - 2])
def test_a_process_that_is_really_killed_leaves_what_can_be_resolved(
    tmp_path: Path, death: int
) -> None:
    path = str(tmp_path / "out")
    killed = subprocess.run([sys.executable, "-c", KILLED, path, str(death)], check=False)
    assert killed.returncode == -signal.SIGKILL
    seen = numbers(path)
    sink = opened(path)
    for transaction in list(sink.list_prepared(PREFIX)):
        sink.abort_transaction(transaction)
    assert list(sink.list_prepared(PREFIX)) == []
    assert numbers(path) == seen
    assert set(seen) <= set(range(10, 15)) | set(range(20, 25))


# ----------------------------------------------------------------------------------- the files


ANY = pa.schema(
    [
        ("i", pa.int32()),
        ("s", pa.string()),
        ("f", pa.float64()),
        ("b", pa.bool_()),
        ("t", pa.timestamp("us", "UTC")),
        ("d", pa.date32()),
        ("l", pa.list_(pa.int64())),
    ]
)
any_row = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-(2**31), 2**31 - 1),
        "s": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        "f": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "b": st.none() | st.booleans(),
        "t": st.none() | st.integers(0, 4 * 10**15),
        "d": st.none() | st.integers(0, 30_000),
        "l": st.none() | st.lists(st.integers(-5, 5), max_size=3),
    }
)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in ANY.names}
    return pa.table({n: pa.array(v, ANY.field(n).type) for n, v in columns.items()}, schema=ANY)


@pytest.mark.parametrize(
    ("fmt", "compression"),
    [("parquet", "auto"), ("parquet", None), ("jsonl", None), ("jsonl", "zstd"), ("jsonl", "gzip")],
)
@given(
    rows=st.lists(any_row, min_size=1, max_size=40),
    max_rows=st.none() | st.integers(1, 15),
    size=st.integers(1, 20),
)
@settings(max_examples=30)
def test_what_is_written_is_what_is_read_back(
    fmt: str, compression: str | None, rows: list[dict[str, Any]], max_rows: int | None, size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = table_of(rows)
        sink = opened(folder, format=fmt, compression=compression, max_file_rows=max_rows)
        sink.commit_transaction(prepared(sink, 1, *data.to_batches(max_chunksize=size)))
        source = FileSource(folder, schema=ANY)
        read = [
            polled.data
            for split in source.discover_splits(1)
            for reader in [source.open_split(split)]
            for polled in [reader.poll(1000, 0.0)]
        ]
        back = pa.Table.from_batches(read)
        key = "part-out@flights-1-7-1-"
        files = sorted(
            Path(folder).glob("part-*"), key=lambda p: int(p.name[len(key) :].split(".")[0])
        )
        assert len(files) == (1 if max_rows is None else -(-len(rows) // max_rows))
        assert sorted(map(repr, back.to_pylist())) == sorted(map(repr, data.to_pylist()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("nested", [False, True])
def test_what_json_has_no_word_for_is_refused_and_named(
    tmp_path: Path, value: float, nested: bool
) -> None:
    rows = pa.record_batch({"f": [[0.5], [value]] if nested else [0.5, value]})
    sink = opened(tmp_path, format="jsonl")
    with pytest.raises(DataError, match=r"column 'f', row 1 .*Make it null before the sink"):
        prepared(sink, 1, rows)


def test_a_float_stays_a_float_in_json() -> None:
    assert encode(pa.record_batch({"f": [1.0, None, -0.0]})) == (
        b'{"f":1.0}\n{"f":null}\n{"f":-0.0}\n'
    )


def test_small_batches_share_row_groups_and_large_ones_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "ROW_GROUP_ROWS", 1000)
    sink = opened(tmp_path)
    small = [batch(*range(i * 10, i * 10 + 10)) for i in range(150)]
    large = batch(*range(1500, 4000))
    sink.commit_transaction(prepared(sink, 1, *small, large))
    [path] = tmp_path.glob("*.parquet")
    metadata = pq.ParquetFile(path).metadata
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [1000, 1000, 1000, 1000]
    assert numbers(tmp_path) == list(range(4000))


def test_rows_reach_the_file_before_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "ROW_GROUP_ROWS", 1000)
    sink = opened(tmp_path, compression=None)
    sink.begin(CONTEXT.transaction_id(1))
    for start in range(0, 100_000, 500):
        sink.write(batch(*range(start, start + 500)))
    [staged] = tmp_path.glob(".staging/*/*.parquet")
    assert staged.stat().st_size > 90 * 1000 * 8


def test_a_transaction_goes_on_in_another_file_when_one_is_large(tmp_path: Path) -> None:
    sink = opened(tmp_path, format="jsonl", max_file_bytes=100)
    sink.commit_transaction(prepared(sink, 1, *[batch(i) for i in range(50)]))
    sizes = [p.stat().st_size for p in tmp_path.glob("*.jsonl")]
    assert len(sizes) > 1
    assert max(sizes) <= 100 + len('{"n":49}\n')
    assert numbers(tmp_path) == list(range(50))


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ({"n": ["x"]}, r"'n' to be int64.*got string"),
        ({"m": [1]}, r"'n' to be int64.*no such column"),
        ({"n": [1], "z": [2]}, r"'z' besides"),
    ],
)
def test_rows_that_change_their_schema_name_the_column(
    tmp_path: Path, later: dict[str, Any], expected: str
) -> None:
    sink = opened(tmp_path)
    prepared(sink, 1, batch(1))
    sink.begin(CONTEXT.transaction_id(2))
    with pytest.raises(SchemaChangedError, match=expected):
        sink.write(pa.RecordBatch.from_pydict(later))


# ---------------------------------------------------------------------------------- the checks


def test_check_changes_nothing_and_takes_a_directory_that_is_to_be_made(tmp_path: Path) -> None:
    FileSink(tmp_path / "a" / "b").check(batch(1).schema)
    assert list(tmp_path.iterdir()) == []


def test_check_refuses_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(SinkUnavailableError, match=r"expected a directory.*is a file"):
        FileSink(tmp_path / "a" / "b").check(None)


def test_check_refuses_columns_that_the_format_cannot_hold(tmp_path: Path) -> None:
    twice = pa.schema([("n", pa.int64()), ("n", pa.int64())])
    with pytest.raises(ConfigError, match=r"'n' several times"):
        FileSink(tmp_path).check(twice)
    interval = pa.schema([("x", pa.month_day_nano_interval())])
    with pytest.raises(ConfigError, match=r"Parquet cannot hold column 'x'"):
        FileSink(tmp_path).check(interval)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"format": "csv"}, r"format must be one of.*'csv'"),
        ({"compression": "rar"}, r"compression for parquet.*'rar'"),
        ({"format": "jsonl", "compression": "snappy"}, r"compression for jsonl.*'snappy'"),
        ({"max_file_rows": 0}, r"max_file_rows must be at least 1, got 0"),
        ({"part_size": 1}, r"part_size must be at least 5242880"),
        ({"path": "gs://bucket/x"}, r"local directory or s3://"),
    ],
)
def test_wrong_settings_are_refused_on_construction(
    arguments: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        FileSink(**{"path": "x", **arguments})


def test_names_too_long_for_a_file_are_refused_when_opened(tmp_path: Path) -> None:
    context = SinkContext(job="j" * 120, sink_uid="s" * 100, subtask=0, parallelism=1, epoch=1)
    with pytest.raises(ConfigError, match=r"at most 180 characters"):
        FileSink(tmp_path).open(context)


def test_secrets_are_not_printed() -> None:
    sink = FileSink("s3://b/x", storage_options={"secret": "hunter2"})
    assert "hunter2" not in repr(sink)
