"""The sink driver: its transactions, their commit, and those of earlier epochs."""

from __future__ import annotations

import pyarrow as pa
import pytest

from helios_ray.connectors.base import Sink
from helios_ray.errors import FatalCommitError
from helios_ray.execution.sink import FIRST_RETRY, SinkDriver
from helios_ray.plan.physical import SinkSpec
from helios_ray.protocol.messages import ResolveTransactions
from helios_ray.records import PreparedTransaction
from tests.unit.execution.small_jobs import Bank, BankSink, sink_context


def driver(bank: Bank, *, epoch: int = 3, first: int = 7, subtask: int = 0) -> SinkDriver:
    spec = SinkSpec(uid="out", name="out", factory=lambda: BankSink(bank))
    return SinkDriver(spec, sink_context(epoch, subtask), first)


def write(sink: SinkDriver, *values: int) -> None:
    sink.write(pa.record_batch({"x": list(values)}))


def name(checkpoint: int, *, epoch: int = 3, subtask: int = 0) -> str:
    return f"helios:job:out:{subtask}:{epoch}:{checkpoint}"


def prepared(checkpoint: int, *, epoch: int = 2, subtask: int = 0) -> PreparedTransaction:
    text = name(checkpoint, epoch=epoch, subtask=subtask)
    return PreparedTransaction(transaction=text, sink="out", checkpoint_id=checkpoint)


def test_a_checkpoint_without_rows_has_no_transaction() -> None:
    bank = Bank()
    sink = driver(bank)
    sink.prepare(7)
    assert sink.prepared == ()
    assert sink.commit(7, 0.0) == 7
    assert bank.calls == []


def test_rows_after_a_checkpoint_that_was_given_up_are_covered_by_the_next() -> None:
    bank = Bank()
    sink = driver(bank)
    write(sink, 1)
    sink.prepare(9)  # 7 and 8 never reached this subtask
    write(sink, 2)
    sink.prepare(10)
    assert [(t.transaction, t.checkpoint_id) for t in sink.prepared] == [
        (name(7), 9),
        (name(10), 10),
    ]
    assert sink.commit(9, 0.0) == 9
    assert bank.committed == {name(7): [1]}
    assert [t.transaction for t in sink.prepared] == [name(10)]


def test_a_commit_covers_all_before_it_in_order() -> None:
    bank = Bank()
    sink = driver(bank)
    for n in (7, 8, 9):
        write(sink, n)
        sink.prepare(n)
    assert sink.commit(8, 0.0) == 8
    assert bank.calls == [f"commit {name(7)}", f"commit {name(8)}"]
    assert sink.commit(8, 0.0) == 8  # told again
    assert len(bank.calls) == 2


def test_a_busy_system_is_tried_again_ever_later_and_only_then_acknowledged() -> None:
    bank = Bank()
    sink = driver(bank)
    write(sink, 1)
    sink.prepare(7)
    bank.busy = 3
    assert sink.commit(7, 10.0) is None
    waits, now = [], 10.0
    while (at := sink.next_retry()) is not None:
        waits.append(at - now)
        assert sink.retry(at - 0.001) == (None, None)
        now = at
        committed, _ = sink.retry(now)
    assert committed == 7
    assert waits == pytest.approx([FIRST_RETRY, 2 * FIRST_RETRY, 4 * FIRST_RETRY])
    assert bank.committed == {name(7): [1]}
    assert sink.retries == 3


def test_a_transaction_that_is_gone_is_never_passed_over() -> None:
    bank = Bank()
    sink = driver(bank)
    write(sink, 1)
    sink.prepare(7)
    bank.prepared.clear()
    with pytest.raises(FatalCommitError):
        sink.commit(7, 0.0)


def resolve(
    sink: SinkDriver, *commit: PreparedTransaction, width: int = 2, sweep: bool = False
) -> ResolveTransactions:
    request = ResolveTransactions(
        epoch=3,
        sink="out",
        commit=commit,
        abort_epochs=((1, 3, 4), (2, 5, 6)),
        width=width,
        sweep=sweep,
    )
    assert sink.resolve(request, 0.0) is request
    return request


def test_what_the_checkpoint_decided_is_committed_and_all_else_of_older_epochs_aborted() -> None:
    bank = Bank()
    decided, later, elsewhere = name(5, epoch=2), name(6, epoch=2), name(6, epoch=2, subtask=1)
    newer = name(20, epoch=4)
    foreign = "helios:job:outer:0:2:6"
    bank.prepared = {t: [1] for t in (later, elsewhere, decided, newer, foreign)}
    resolve(driver(bank), prepared(5))
    assert list(bank.committed) == [decided]
    assert sorted(bank.prepared) == sorted([newer, foreign])


def test_settling_twice_changes_nothing() -> None:
    bank = Bank()
    bank.prepared = {name(5, epoch=2): [1]}
    sink = driver(bank)
    resolve(sink, prepared(5))
    resolve(sink, prepared(5))
    assert list(bank.committed) == [name(5, epoch=2)]


def test_a_system_that_cannot_list_is_probed_for_every_id_that_may_have_been_used() -> None:
    bank = Bank()
    bank.can_list = False
    bank.prepared = {name(5, epoch=2): [1], name(6, epoch=2, subtask=1): [2]}
    resolve(driver(bank), prepared(5))
    assert bank.prepared == {}
    assert list(bank.committed) == [name(5, epoch=2)]
    aborted = {c.removeprefix("abort ") for c in bank.calls if c.startswith("abort")}
    due = {name(n, epoch=e, subtask=s) for e, n in ((1, 3), (1, 4), (2, 5), (2, 6)) for s in (0, 1)}
    assert aborted == due - {name(5, epoch=2)}


def test_a_settlement_that_has_to_wait_is_finished_later() -> None:
    bank = Bank()
    bank.prepared = {name(5, epoch=2): [1], name(6, epoch=2): [1]}
    sink = driver(bank)
    bank.busy = 1
    request = ResolveTransactions(epoch=3, sink="out", commit=(prepared(5),))
    assert sink.resolve(request, 0.0) is None
    at = sink.next_retry()
    assert at is not None
    assert sink.retry(at) == (None, request)
    assert bank.prepared == {}
    assert sink.next_retry() is None


class Plain(Sink):
    flushed = 0

    def write(self, batch: pa.RecordBatch) -> None:
        pass

    def flush(self) -> None:
        self.flushed += 1


def test_a_plain_sink_is_flushed_for_a_checkpoint_and_has_nothing_to_commit() -> None:
    spec = SinkSpec(uid="out", name="out", factory=Plain)
    sink = SinkDriver(spec, sink_context(), 1)
    write(sink, 1)
    sink.prepare(1)
    assert isinstance(sink.sink, Plain)
    assert sink.sink.flushed == 1
    assert sink.prepared == ()
    assert sink.commit(1, 0.0) == 1
