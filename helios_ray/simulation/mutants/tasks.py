"""Planted bugs in what a task does.

Why it exists: see the package.

May import: execution, protocol, and the simulation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

import pyarrow as pa

from helios_ray.connectors.base import TransactionalSink
from helios_ray.elements import Batch, CheckpointBarrier, StreamElement
from helios_ray.execution.outputs import OutputChannel
from helios_ray.execution.sink import SinkDriver
from helios_ray.execution.source import SourceDriver
from helios_ray.execution.task import TaskBody
from helios_ray.identifiers import TransactionId
from helios_ray.operators.base import StateTable
from helios_ray.protocol.alignment import BarrierAligner
from helios_ray.protocol.channels import InboundChannel, Verdict
from helios_ray.protocol.commits import PendingCommits
from helios_ray.protocol.messages import AbortCheckpoint, TaskPhase, ToTask
from helios_ray.protocol.task import FinishInput, Instruction, TaskCore
from helios_ray.protocol.watermarks import WatermarkMerger
from helios_ray.records import PreparedTransaction
from helios_ray.simulation.mutants import Mutant

Original: TypeAlias = Callable[..., Any]


def nothing_is_aborted(_: Original) -> Original:
    return lambda *_: []


def closed_inputs_count(_: Original) -> Original:
    def completed(self: BarrierAligner) -> int | None:
        if self._current is None or self._blocked != self._channels:
            return None
        done = self._current
        self._finish(done)
        return done

    return completed


def nothing_is_blocked(_: Original) -> Original:
    return lambda *_: False


def one_slot(original: Original) -> Original:
    def prepared(self: PendingCommits, transaction: PreparedTransaction) -> None:
        self._by_checkpoint.clear()
        original(self, transaction)

    return prepared


def abort_means_abort(original: Original) -> Original:
    def on_message(self: TaskBody, message: ToTask) -> None:
        original(self, message)
        driver = self._sink
        if not isinstance(message, AbortCheckpoint) or driver is None:
            return
        for t in driver.prepared:
            if t.checkpoint_id == message.checkpoint_id:
                assert isinstance(driver.sink, TransactionalSink)
                driver.sink.abort_transaction(TransactionId.parse(t.transaction))
                driver._pending.committed(t)

    return on_message


def retry_means_done(original: Original) -> Original:
    def settle(self: SinkDriver, transaction: PreparedTransaction, now: float) -> bool:
        original(self, transaction, now)
        return True

    return settle


def idle_is_lost(_: Original) -> Original:
    return lambda *_: None


def duplicates_are_taken(original: Original) -> Original:
    def accept(self: InboundChannel, sequence: int) -> Verdict:
        original(self, sequence)
        return Verdict.ACCEPT

    return accept


def gaps_are_skipped(original: Original) -> Original:
    def accept(self: InboundChannel, sequence: int) -> Verdict:
        self.expected = max(self.expected, sequence)
        verdict: Verdict = original(self, sequence)
        return verdict

    return accept


def barrier_overtakes(original: Original) -> Original:
    def put(self: OutputChannel, element: StreamElement, now: float) -> None:
        original(self, element, now)
        if isinstance(element, CheckpointBarrier):
            self._buffer.insert(0, self._buffer.pop())

    return put


def position_is_behind(original: Original) -> Original:
    def snapshot(self: SourceDriver) -> StateTable:
        state: StateTable = original(self)
        rows = state.table.to_pylist()
        for row in rows:
            position = json.loads(row["position"])
            row["position"] = json.dumps(position and position - 1)
        return StateTable(state.kind, pa.Table.from_pylist(rows, schema=state.table.schema))

    return snapshot


def snapshot_after_more_rows(original: Original) -> Original:
    def take_checkpoint(self: TaskBody, checkpoint_id: int) -> None:
        source = self._source
        self._broadcast(CheckpointBarrier(checkpoint_id))
        if source is not None and self.phase is TaskPhase.RUNNING:
            elements, _ = source.poll(self._options.source_rows, self._now + 60.0)
            for element in elements:
                if isinstance(element, Batch):
                    self._process((element,), 0)
        original(self, checkpoint_id)

    return take_checkpoint


def time_goes_back(_: Original) -> Original:
    def advance(self: WatermarkMerger, timestamp: int) -> int | None:
        if timestamp == self.current:
            return None
        self.current = timestamp
        return timestamp

    return advance


def finished_flushes_again(original: Original) -> Original:
    def start(self: TaskCore, epoch: int) -> list[Instruction]:
        return [
            FinishInput() if isinstance(instruction, FinishInput) else instruction
            for instruction in original(self, epoch)
        ]

    return start


MUTANTS = [
    Mutant(
        "leftovers-kept",
        "Rules 2 and 6: what was prepared after the restored checkpoint is not aborted.",
        SinkDriver,
        "_leftovers",
        nothing_is_aborted,
    ),
    Mutant(
        "closed-inputs-awaited",
        "Rule 9: barriers are awaited on inputs that have ended.",
        BarrierAligner,
        "_completed",
        closed_inputs_count,
    ),
    Mutant(
        "channels-unblocked",
        "Rule 9: channels that are ahead are read on while others are behind.",
        BarrierAligner,
        "is_blocked",
        nothing_is_blocked,
    ),
    Mutant(
        "one-pending-slot",
        "Rule 3: what waits for commit is one slot, not a map by checkpoint.",
        PendingCommits,
        "prepared",
        one_slot,
    ),
    Mutant(
        "abort-aborts-transactions",
        "Rule 3: a checkpoint that is given up aborts the transactions prepared for it.",
        TaskBody,
        "_on_message",
        abort_means_abort,
    ),
    Mutant(
        "retry-means-done",
        "Rule 4: a commit that asked to be tried again counts as done.",
        SinkDriver,
        "_settle",
        retry_means_done,
    ),
    Mutant(
        "idle-lost",
        "Rule 12: an idle input goes on holding event time back.",
        WatermarkMerger,
        "on_idle",
        idle_is_lost,
    ),
    Mutant(
        "duplicates-accepted",
        "Channels: a frame that came twice is taken twice.",
        InboundChannel,
        "accept",
        duplicates_are_taken,
    ),
    Mutant(
        "gaps-skipped",
        "Channels: a frame that is missing is skipped.",
        InboundChannel,
        "accept",
        gaps_are_skipped,
    ),
    Mutant(
        "barrier-overtakes",
        "Rule 10: the barrier is sent before the rows that wait in the output buffer.",
        OutputChannel,
        "put",
        barrier_overtakes,
    ),
    Mutant(
        "position-behind",
        "Rule 15: a source snapshots a position one row before the last it has read.",
        SourceDriver,
        "snapshot",
        position_is_behind,
    ),
    Mutant(
        "snapshot-after-more-rows",
        "Rule 10: a source reads on between its barrier and its snapshot.",
        TaskBody,
        "_take_checkpoint",
        snapshot_after_more_rows,
    ),
    Mutant(
        "time-goes-back",
        "Rule 12: the merged watermark follows its inputs back.",
        WatermarkMerger,
        "_advance",
        time_goes_back,
    ),
    Mutant(
        "finished-flushes-again",
        "Rule 8: a task that had finished before the checkpoint flushes again after a restore.",
        TaskCore,
        "start",
        finished_flushes_again,
    ),
]
