"""The run of operators inside a task."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pytest

from helios_ray.elements import MIN_TIMESTAMP, Batch
from helios_ray.execution.batching import concatenate
from helios_ray.execution.chain import OperatorChain
from helios_ray.operators.base import (
    Operator,
    OperatorContext,
    OperatorSnapshot,
    Request,
    Response,
    StateKind,
    StateTable,
)


def rows(*values: int, tag: str | None = None) -> Batch:
    return Batch(pa.record_batch({"x": pa.array(values, pa.int64())}), tag=tag)


class Probe(Operator):
    """Adds ``plus``, sends rows over 100 aside, and answers every call with a row of its own."""

    def __init__(self, plus: int) -> None:
        self.plus = plus
        self.seen: list[tuple[int, int]] = []
        self.state: Mapping[str, StateTable] = {}
        self.closed = False
        self.due: int | None = None

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        values = batch.data.column("x").to_pylist()
        self.seen += [(input_index, v) for v in values]
        main = [v + self.plus for v in values if v <= 100]
        return [rows(*main), rows(*(v for v in values if v > 100), tag="aside")]

    def on_watermark(self, timestamp: int) -> list[Batch]:
        return [rows(timestamp)]

    def output_watermark(self, timestamp: int) -> int:
        return timestamp - self.plus

    def next_timer(self) -> int | None:
        return self.due

    def on_processing_time(self, now: int) -> list[Batch]:
        self.due = None
        return [rows(now)]

    def end_input(self) -> list[Batch]:
        return [rows(self.plus)]

    def snapshot(self) -> OperatorSnapshot:
        table = pa.table({"plus": [self.plus]})
        return {"plus": StateTable(StateKind.UNION, table)} if self.plus else {}

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self.state = state

    def close(self) -> None:
        self.closed = True
        if self.plus == 1:
            raise OSError("cannot close")


class Tail:
    def __init__(self, *operators: Operator) -> None:
        self.out: list[tuple[str, str | None, list[int]]] = []
        contexts = [OperatorContext(uid=f"op-{n}") for n in range(len(operators))]
        self.chain = OperatorChain(list(zip(operators, contexts, strict=True)), "in", self._emit)

    def _emit(self, operator: str, batch: Batch) -> None:
        self.out.append((operator, batch.tag, batch.data.column("x").to_pylist()))


def test_rows_go_through_all_and_side_outputs_leave_from_the_middle() -> None:
    first, second = Probe(1), Probe(10)
    tail = Tail(first, second)
    tail.chain.process(rows(5, 200), input_index=1)
    assert tail.out == [("op-0", "aside", [200]), ("op-1", "aside", []), ("op-1", None, [16])]
    assert first.seen == [(1, 5), (1, 200)]
    assert second.seen == [(0, 6)]


def test_a_chain_without_operators_passes_rows_on_under_the_name_of_its_head() -> None:
    tail = Tail()
    tail.chain.process(rows(1))
    assert tail.out == [("in", None, [1])]


def test_time_reaches_each_operator_as_the_one_before_lets_it_through() -> None:
    tail = Tail(Probe(2), Probe(10))
    assert tail.chain.advance_time(50) == 38
    # The first fires at 50, its row goes through the second; the second fires at 48.
    assert [values for _, tag, values in tail.out if tag is None] == [[60], [48]]


class Holder(Operator):
    """Holds event time back at ``held``, asks for one thing, and says what it was told."""

    def __init__(self, held: int | None = None, blocked: frozenset[int] = frozenset()) -> None:
        self.held = held
        self.blocked = blocked
        self.told: list[int] = []
        self.asked = False

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        return [batch]

    def on_watermark(self, timestamp: int) -> list[Batch]:
        self.told.append(timestamp)
        return [rows(timestamp)]

    def output_watermark(self, timestamp: int) -> int:
        return timestamp if self.held is None else min(timestamp, self.held)

    def blocked_inputs(self) -> frozenset[int]:
        return self.blocked

    @property
    def outstanding(self) -> bool:
        return self.held is not None

    def take_requests(self) -> list[Request]:
        asked, self.asked = self.asked, True
        return [] if asked else [Request(request_id=1, call=never_called)]

    def on_response(self, response: Response) -> list[Batch]:
        self.held = None
        return [rows(response.value)]

    def on_input_end(self, input_index: int) -> list[Batch]:
        return [rows(-input_index)]


async def never_called() -> None:
    raise AssertionError


def test_time_that_was_held_back_is_let_on_as_far_as_it_may_go_and_told_once() -> None:
    first, second, third = Holder(held=3), Holder(held=5), Holder()
    tail = Tail(first, second, third)
    assert tail.chain.advance_time(9) == 3
    assert tail.chain.catch_up() == 3
    assert (second.told, third.told) == ([3], [3])
    first.held = None
    assert tail.chain.catch_up() == 5
    assert (first.told, second.told, third.told) == ([9], [3, 9], [3, 5])
    tail.out.clear()
    assert tail.chain.catch_up() == 5
    assert tail.out == []
    second.held = None
    assert tail.chain.catch_up() == 9
    assert [values for _, _, values in tail.out] == [[9]]


def test_operators_are_told_nothing_while_all_of_event_time_is_held_back() -> None:
    first, second = Holder(held=MIN_TIMESTAMP), Holder()
    tail = Tail(first, second)
    assert tail.chain.advance_time(9) == MIN_TIMESTAMP
    assert second.told == []


def test_a_resumed_chain_is_nowhere_behind_where_it_stood() -> None:
    first, second = Holder(held=MIN_TIMESTAMP), Holder()
    tail = Tail(first, second)
    tail.chain.resume(7)
    assert (first.told, second.told) == ([7], [7])
    assert tail.chain.advance_time(9) == 7
    first.held = None
    assert tail.chain.catch_up() == 9
    with pytest.raises(AssertionError, match="goes back from 9 to 8"):
        tail.chain.advance_time(8)


def test_what_an_operator_waits_for_is_known_by_its_uid_and_flows_on_from_it() -> None:
    first, second = Holder(), Holder(held=1)
    tail = Tail(first, second, Probe(10))
    assert [uid for uid, _ in tail.chain.take_requests()] == ["op-0", "op-1"]
    assert tail.chain.take_requests() == []
    assert tail.chain.outstanding
    tail.chain.respond("op-1", Response(request_id=1, value=4))
    assert not tail.chain.outstanding
    tail.chain.end_one_input(2)
    assert [values for _, tag, values in tail.out if tag is None] == [[14], [8]]


@pytest.mark.parametrize(
    ("operators", "blocked"),
    [
        ([], frozenset()),
        ([Holder(), Holder()], frozenset()),
        ([Holder(blocked=frozenset({1})), Holder()], frozenset({1})),
        ([Holder(), Holder(blocked=frozenset({0}))], frozenset({0, 1})),
    ],
)
def test_an_operator_behind_the_first_blocks_every_input(
    operators: list[Operator], blocked: frozenset[int]
) -> None:
    assert Tail(*operators).chain.blocked_inputs(frozenset({0, 1})) == blocked


def test_the_end_of_input_is_told_in_order_and_rows_flow_on() -> None:
    tail = Tail(Probe(2), Probe(10))
    tail.chain.end_input()
    assert [values for _, tag, values in tail.out if tag is None] == [[12], [10]]


def test_only_timers_that_are_due_fire() -> None:
    first, second = Probe(2), Probe(10)
    first.due, second.due = 5, 9
    tail = Tail(first, second)
    assert tail.chain.next_timer() == 5
    tail.chain.fire_timers(7)
    assert [values for _, tag, values in tail.out if tag is None] == [[17]]
    assert tail.chain.next_timer() == 9


def test_state_is_kept_by_uid_and_given_back_to_whom_it_belongs() -> None:
    probes = (Probe(2), Probe(0), Probe(3))
    tail = Tail(*probes)
    state = tail.chain.snapshot()
    assert sorted(state) == ["op-0", "op-2"]
    tail.chain.restore({"op-2": state["op-2"]})
    assert [bool(p.state) for p in probes] == [False, False, True]


def test_every_operator_is_closed_even_if_one_cannot_be() -> None:
    probes = (Probe(1), Probe(2))
    with pytest.raises(OSError, match="cannot close"):
        Tail(*probes).chain.close()
    assert all(p.closed for p in probes)


def test_waiting_rows_of_one_schema_are_joined_and_others_are_not() -> None:
    other = Batch(pa.record_batch({"y": [1]}))
    joined = concatenate([rows(1), rows(2, 3), other, rows(4)])
    assert [b.data.num_rows for b in joined] == [3, 1, 1]
    assert joined[0].data.column("x").to_pylist() == [1, 2, 3]
    assert joined[1] is other
