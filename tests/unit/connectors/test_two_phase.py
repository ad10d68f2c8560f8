"""The guide's three methods, over the contract that the runtime drives."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.connectors.base import CommitOutcome, Committable, Guarantee, SinkContext
from helios_ray.connectors.two_phase import TwoPhaseCommitSink
from helios_ray.errors import (
    ConnectorError,
    FatalCommitError,
    HeliosError,
    RetryableCommitError,
    SchemaChangedError,
    SinkUnavailableError,
)
from helios_ray.identifiers import TransactionId

CONTEXT = SinkContext(job="j", sink_uid="out", subtask=1, parallelism=2, epoch=7)


def rows(*values: int) -> pa.RecordBatch:
    return pa.record_batch({"x": pa.array(values, pa.int64())})


class Ledger(TwoPhaseCommitSink):
    """An external system in memory that knows its transactions by name."""

    def __init__(self) -> None:
        self.prepared: dict[str, list[int]] = {}
        self.visible: list[int] = []
        self.aborted: list[str] = []
        self.calls: list[str] = []
        self.fail: Exception | None = None

    def connect(self) -> None:
        self.calls.append("connect")

    def disconnect(self) -> None:
        self.calls.append("disconnect")

    def _maybe_fail(self) -> None:
        if self.fail is not None:
            raise self.fail

    def pre_commit(self, checkpoint_id: int, transactions: pa.Table) -> None:
        self._maybe_fail()
        self.prepared[self.transaction_id(checkpoint_id)] = transactions["x"].to_pylist()

    def commit(self, checkpoint_id: int) -> None:
        self._maybe_fail()
        self.visible += self.prepared.pop(self.transaction_id(checkpoint_id), [])

    def abort(self, checkpoint_id: int) -> None:
        self._maybe_fail()
        self.prepared.pop(self.transaction_id(checkpoint_id), None)
        self.aborted.append(self.transaction_id(checkpoint_id))


def opened() -> Ledger:
    sink = Ledger()
    sink.open(CONTEXT)
    return sink


def prepare(sink: TwoPhaseCommitSink, checkpoint: int, *batches: pa.RecordBatch) -> Committable:
    transaction = CONTEXT.transaction_id(checkpoint)
    sink.begin(transaction)
    for batch in batches:
        sink.write(batch)
    return Committable(transaction=transaction, payload=sink.prepare())


def test_it_is_exactly_once() -> None:
    assert TwoPhaseCommitSink.guarantee is Guarantee.EXACTLY_ONCE


def test_rows_are_invisible_until_commit_and_there_afterwards() -> None:
    sink = opened()
    handle = prepare(sink, 42, rows(1, 2), rows(3))
    assert sink.visible == []
    assert sink.prepared == {"helios:j:out:1:7:42": [1, 2, 3]}
    assert sink.commit_transaction(handle) is CommitOutcome.COMMITTED
    assert sink.visible == [1, 2, 3]


def test_a_second_commit_changes_nothing() -> None:
    sink = opened()
    handle = prepare(sink, 42, rows(1))
    sink.commit_transaction(handle)
    sink.commit_transaction(handle)
    assert sink.visible == [1]


def test_several_checkpoints_wait_at_once() -> None:
    sink = opened()
    handles = [prepare(sink, n, rows(n)) for n in (1, 2, 3)]
    assert len(sink.prepared) == 3
    for handle in handles:
        sink.commit_transaction(handle)
    assert sink.visible == [1, 2, 3]


def test_the_transaction_at_hand_keeps_the_name_it_was_prepared_under() -> None:
    sink = opened()
    old = TransactionId("j", "out", 0, 5, 42)
    sink.prepared = {str(old): [9], "helios:j:out:1:7:42": [1]}
    sink.commit_transaction(Committable(transaction=old))
    assert sink.visible == [9]
    assert sink.prepared == {"helios:j:out:1:7:42": [1]}
    sink.abort_transaction(TransactionId("j", "out", 3, 6, 43))
    assert sink.aborted == ["helios:j:out:3:6:43"]


def test_between_calls_the_name_is_that_of_this_subtask_and_epoch() -> None:
    sink = opened()
    sink.abort_transaction(TransactionId("j", "out", 3, 6, 43))
    assert sink.transaction_id(44) == "helios:j:out:1:7:44"


def test_aborting_the_transaction_being_written_discards_its_rows() -> None:
    sink = opened()
    sink.begin(CONTEXT.transaction_id(1))
    sink.write(rows(1))
    sink.abort_transaction(CONTEXT.transaction_id(1))
    with pytest.raises(ConnectorError, match="expected begin"):
        sink.write(rows(2))
    prepare(sink, 2, rows(3))
    assert list(sink.prepared.values()) == [[3]]


def test_a_transaction_of_empty_batches_calls_nobody() -> None:
    sink = opened()
    prepare(sink, 1, rows())
    assert sink.prepared == {}


def test_without_a_listing_the_runtime_is_told_to_probe() -> None:
    assert opened().list_prepared("helios:j:out:") is None


def test_use_before_open_says_so() -> None:
    with pytest.raises(ConnectorError, match=r"super\(\)\.open\(context\)"):
        Ledger().transaction_id(1)


class OperationalError(Exception):
    """As every database driver has it."""


class DeadlockDetected(OperationalError):
    pass


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError("x"), ConnectionRefusedError("x"), TimeoutError("x"), DeadlockDetected("x")],
)
def test_a_lost_link_is_retried_on_a_fresh_connection(error: Exception) -> None:
    sink = opened()
    handle = prepare(sink, 1, rows(1))
    sink.fail = error
    with pytest.raises(RetryableCommitError, match="helios:j:out:1:7:1") as caught:
        sink.commit_transaction(handle)
    assert caught.value.__cause__ is error
    sink.fail = None
    sink.commit_transaction(handle)
    assert sink.visible == [1]
    assert sink.calls == ["connect", "disconnect", "connect"]


@pytest.mark.parametrize("error", [RetryableCommitError("later"), FatalCommitError("gone")])
def test_what_the_user_decided_goes_through(error: HeliosError) -> None:
    sink = opened()
    handle = prepare(sink, 1, rows(1))
    sink.fail = error
    with pytest.raises(type(error)) as caught:
        sink.commit_transaction(handle)
    assert caught.value is error


def test_any_other_error_in_commit_is_fatal_and_carries_its_cause() -> None:
    sink = opened()
    handle = prepare(sink, 1, rows(1))
    sink.fail = KeyError("table")
    with pytest.raises(FatalCommitError, match=r"Ledger 'out'.*KeyError") as caught:
        sink.commit_transaction(handle)
    assert caught.value.__cause__ is sink.fail


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ConnectionError("x"), SinkUnavailableError), (ValueError("x"), ConnectorError)],
)
def test_a_failed_pre_commit_fails_and_forgets_the_rows(
    error: Exception, expected: type[HeliosError]
) -> None:
    sink = opened()
    sink.fail = error
    with pytest.raises(expected, match="pre_commit"):
        prepare(sink, 1, rows(1))
    sink.fail = None
    prepare(sink, 2, rows(2))
    assert list(sink.prepared.values()) == [[2]]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(TimeoutError("x"), RetryableCommitError), (ValueError("x"), ConnectorError)],
)
def test_a_failed_abort_is_no_silence(error: Exception, expected: type[HeliosError]) -> None:
    sink = opened()
    sink.fail = error
    with pytest.raises(expected, match="abort"):
        sink.abort_transaction(CONTEXT.transaction_id(1))


def test_a_failed_connect_is_an_unavailable_sink() -> None:
    class Nowhere(Ledger):
        def connect(self) -> None:
            raise OSError("no route")

    with pytest.raises(SinkUnavailableError, match="no route"):
        Nowhere().open(CONTEXT)


def test_columns_that_change_within_a_checkpoint_are_refused() -> None:
    sink = opened()
    sink.begin(CONTEXT.transaction_id(1))
    sink.write(rows(1))
    with pytest.raises(SchemaChangedError, match="select"):
        sink.write(pa.record_batch({"y": ["a"]}))


class Spilling(Ledger):
    max_buffered_bytes: ClassVar[int | None] = 64


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), max_size=20))
def test_spilled_rows_come_back_all_and_in_order(batches: list[list[int]]) -> None:
    sink = Spilling()
    sink.open(CONTEXT)
    prepare(sink, 1, *(rows(*values) for values in batches))
    expected = [value for values in batches for value in values]
    assert list(sink.prepared.values()) == ([expected] if expected else [])


def test_rows_beyond_the_bound_are_not_in_memory(tmp_path: Path) -> None:
    seen: list[int] = []

    class Big(Ledger):
        max_buffered_bytes: ClassVar[int | None] = 1 << 20
        spill_directory: ClassVar[str | None] = str(tmp_path)

        def pre_commit(self, checkpoint_id: int, transactions: pa.Table) -> None:
            seen.append(transactions.num_rows)
            seen.append(pa.total_allocated_bytes())

    sink = Big()
    sink.open(CONTEXT)
    gc.collect()
    before = pa.total_allocated_bytes()
    sink.begin(CONTEXT.transaction_id(1))
    for start in range(0, 4_000_000, 40_000):
        sink.write(pa.record_batch({"x": pa.array(range(start, start + 40_000), pa.int64())}))
    during = pa.total_allocated_bytes()
    sink.prepare()
    assert seen[0] == 4_000_000
    # 32 MB of rows: one bound's worth and the batch that crossed it are in memory, at most.
    assert max(during, seen[1]) - before < 2 << 20


def test_the_spilled_file_has_no_name_and_is_closed(tmp_path: Path) -> None:
    class Here(Spilling):
        spill_directory: ClassVar[str | None] = str(tmp_path)

    sink = Here()
    sink.open(CONTEXT)
    sink.begin(CONTEXT.transaction_id(1))
    open_before = len(os.listdir("/dev/fd"))
    sink.write(rows(*range(100)))
    assert len(os.listdir("/dev/fd")) == open_before + 1
    assert list(tmp_path.iterdir()) == []
    sink.close()
    assert len(os.listdir("/dev/fd")) == open_before
