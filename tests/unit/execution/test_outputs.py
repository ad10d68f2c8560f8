"""What leaves a task: which channel, when, and how much."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.elements import Batch, CheckpointBarrier, EndOfInput, Idle, Watermark
from helios_ray.execution.outputs import ChannelOptions, OutputChannel, OutputGate, Router
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.plan.physical import Edge, Partitioning
from helios_ray.state.key_groups import key_groups_of_batch, subtask_of
from tests.unit.execution.small_jobs import plan_of

CHANNEL = ChannelId(0, TaskId("in", 0), TaskId("out", 0))


def rows(*values: int) -> Batch:
    return Batch(pa.record_batch({"x": pa.array(values, pa.int64())}))


def edge(partitioning: Partitioning) -> Edge:
    return Edge(
        index=0,
        upstream="in",
        operator="in",
        downstream="out",
        partitioning=partitioning,
        keys=("x",) if partitioning is Partitioning.HASH else (),
    )


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 4))
def test_hashing_sends_each_row_once_to_the_owner_of_its_key_in_order(
    values: list[int], n: int
) -> None:
    router = Router(edge(Partitioning.HASH), 8, 0)
    parts = router.route(rows(*values), n)
    got = {index: part.data.column("x").to_pylist() for index, part in parts}
    owners = subtask_of(key_groups_of_batch(rows(*values).data, ["x"], 8), n, 8)
    due: dict[int, list[int]] = {}
    for value, owner in zip(values, owners, strict=True):
        due.setdefault(int(owner), []).append(value)
    assert got == due


def test_rebalancing_takes_turns_and_subtasks_begin_apart() -> None:
    batch = rows(1)
    for subtask in (0, 1):
        router = Router(edge(Partitioning.REBALANCE), 8, subtask)
        targets = [index for _ in range(4) for index, _ in router.route(batch, 3)]
        assert targets == [(subtask + step) % 3 for step in range(4)]


def test_broadcasting_sends_to_all_and_forwarding_to_the_only_one() -> None:
    batch = rows(1)
    assert Router(edge(Partitioning.BROADCAST), 8, 0).route(batch, 3) == [
        (0, batch),
        (1, batch),
        (2, batch),
    ]
    assert Router(edge(Partitioning.FORWARD), 8, 2).route(batch, 1) == [(0, batch)]


def channel(**options: float) -> OutputChannel:
    settings = {"frame_bytes": 1000, "buffer_timeout": 1.0, "window_bytes": 1000, **options}
    return OutputChannel(CHANNEL, 1, ChannelOptions(**settings))  # type: ignore[arg-type]


def test_small_pieces_wait_for_each_other_and_not_too_long() -> None:
    out = channel()
    out.put(rows(1), 10.0)
    out.put(rows(2), 10.5)
    assert out.flush(10.9) is None
    assert out.next_flush() == 11.0
    frame = out.flush(11.0)
    assert frame is not None
    assert len(frame.elements) == 2
    assert out.next_flush() is None


@pytest.mark.parametrize("mark", [CheckpointBarrier(1), EndOfInput()])
def test_what_others_wait_for_goes_at_once_behind_what_was_before_it(mark: object) -> None:
    out = channel()
    batch = rows(1)
    out.put(batch, 10.0)
    out.put(mark, 10.0)  # type: ignore[arg-type]
    frame = out.flush(10.0)
    assert frame is not None
    assert frame.elements == (batch, mark)


def test_a_full_buffer_goes_at_once() -> None:
    out = channel(frame_bytes=100)
    out.put(rows(*range(20)), 10.0)
    assert out.flush(10.0) is not None


def test_watermarks_that_follow_one_another_become_one_and_idle_stays_between() -> None:
    out = channel(buffer_timeout=0.0)
    for mark in (Watermark(1), Watermark(2), Idle(), Watermark(2), Watermark(3)):
        out.put(mark, 0.0)
    frame = out.flush(0.0)
    assert frame is not None
    assert frame.elements == (Watermark(2), Idle(), Watermark(3))


def test_without_credit_nothing_goes_and_a_full_buffer_says_so() -> None:
    out = channel(frame_bytes=100, window_bytes=100)
    out.put(rows(*range(20)), 0.0)
    assert out.flush(0.0) is not None
    out.put(rows(1), 0.0)
    assert out.flush(9.0) is None
    assert out.next_flush() is None
    assert not out.full
    out.put(rows(*range(20)), 0.0)
    assert out.full
    out.outbound.grant(160)
    assert not out.full
    assert out.flush(9.0) is not None


def test_a_gate_sends_marks_along_every_channel_and_a_full_one_stops_no_sibling() -> None:
    plan = plan_of(widths=(1, 2), partitioning=Partitioning.BROADCAST)
    options = ChannelOptions(frame_bytes=64, buffer_timeout=0.0, window_bytes=64)
    gate = OutputGate(plan, TaskId("in", 0), 4, options)
    gate.emit("in", rows(1, 2), 0.0)
    first = gate.flush(0.0)
    assert [f.channel.downstream.subtask for f in first] == [0, 1]
    assert {f.epoch for f in first} == {4}
    gate.grant(first[0].channel, first[0].size)
    gate.broadcast(CheckpointBarrier(1), 0.0)
    assert gate.full
    (frame,) = gate.flush(0.0)
    assert frame.channel == first[0].channel
    assert frame.elements == (CheckpointBarrier(1),)


def test_a_gate_repeats_what_was_not_confirmed() -> None:
    plan = plan_of()
    options = ChannelOptions(buffer_timeout=0.0, repeat_timeout=2.0)
    gate = OutputGate(plan, TaskId("in", 0), 1, options)
    gate.emit("in", rows(1), 0.0)
    (frame,) = gate.flush(0.0)
    assert gate.next_wakeup() == 2.0
    assert gate.flush(2.0) == [frame]
    gate.confirm(frame.channel, frame.sequence)
    assert gate.flush(9.0) == []
    assert gate.next_wakeup() is None


def test_rows_of_an_output_that_nobody_reads_go_nowhere() -> None:
    gate = OutputGate(plan_of(), TaskId("in", 0), 1, ChannelOptions(buffer_timeout=0.0))
    gate.emit("in", Batch(rows(1).data, tag="late"), 0.0)
    gate.emit("other", rows(1), 0.0)
    gate.emit("in", rows(), 0.0)
    assert gate.flush(0.0) == []
