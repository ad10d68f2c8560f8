"""map_async gives what map gives, whenever and however often the calls are answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, PlanError, SchemaChangedError, UserFunctionError
from helios_ray.operators.async_map import AsyncMapOperator, AsyncRetry
from helios_ray.operators.base import Operator, Request, Response, StateKind
from tests.unit.operators.process.driving import share_out
from tests.unit.operators.support import batch, main_rows, opened, tagged_rows

MINUTE = timedelta(minutes=1)


async def answer(row: dict[str, Any]) -> Any:
    """A row, several, or none."""
    n = row["n"]
    row["n"] = "changed"
    if n % 5 == 3:
        return None
    if n % 5 == 4:
        return [{"n": n, "part": 0}, {"n": n, "part": 1}]
    return {"n": n, "part": 0}


def expected(n: int) -> list[dict[str, int]]:
    return [{"n": n, "part": part} for part in {3: (), 4: (0, 1)}.get(n % 5, (0,))]


def carried_out(request: Request) -> Response:
    """What an event loop makes of a call that waits for nothing."""
    call: Any = request.call()
    try:
        call.send(None)
    except StopIteration as done:
        return Response(request_id=request.request_id, value=done.value)
    except Exception as error:
        return Response(request_id=request.request_id, error=error)
    raise AssertionError("it waits")


def respond(operator: Any, response: Response, now: int = 0) -> list[Batch]:
    """Tell an operator, and give it the moment that it asks for."""
    out: list[Batch] = operator.on_response(response)
    due = operator.next_timer()
    return out + operator.on_processing_time(now) if due is not None and due <= now else out


def numbers(*ns: int, at: str | None = None) -> Batch:
    return batch({"n": list(ns)}, at=at)


class Subtasks:
    """Subtasks of one operator, and the requests that are under way."""

    def __init__(self, make: Callable[[], Operator]) -> None:
        self._make = make
        self.now = 0
        self.watermark = -1
        self.out: list[Batch] = []
        self.passed = -1
        self.late: list[dict[str, Any]] = []
        self.start(1, [])

    def start(self, parallelism: int, snapshots: list[Any]) -> None:
        self.operators = [
            opened(self._make(), subtask=n, parallelism=parallelism) for n in range(parallelism)
        ]
        self.under_way: list[tuple[Any, Request]] = []
        for operator, share in zip(self.operators, share_out(snapshots, parallelism), strict=True):
            operator.restore(share)
            operator.set_processing_time(self.now)
            operator.on_watermark(max(self.watermark, 0))
        self.look()

    def look(self) -> None:
        for operator in self.operators:
            self.under_way += [(operator, request) for request in operator.take_requests()]

    def take(self, out: list[Batch]) -> None:
        self.out += out
        self.look()

    def feed(self, rows: list[int]) -> None:
        free = [o for o in self.operators if not o.blocked_inputs()]
        if free and rows:
            self.take(free[0].process_batch(numbers(*rows)))
            del rows[:]

    def answer(self, which: int, fate: str) -> None:
        if not self.under_way:
            return
        operator, request = self.under_way.pop(which % len(self.under_way))
        response = carried_out(request)
        if fate == "fail":
            response = Response(request_id=request.request_id, error=OSError("busy"))
        elif fate == "late":
            response = Response(request_id=request.request_id, error=TimeoutError("slow"))
        self.take(respond(operator, response, self.now))
        assert operator.on_response(response) == []  # one answer to each request

    def pass_time(self, by: int) -> None:
        self.now += by
        for operator in self.operators:
            operator.set_processing_time(self.now)
            due = operator.next_timer()
            if due is not None and due <= self.now:
                self.take(operator.on_processing_time(self.now))

    def restart(self, parallelism: int) -> None:
        self.start(parallelism, [operator.snapshot() for operator in self.operators])

    def end(self) -> None:
        while any(operator.outstanding for operator in self.operators):
            assert self.under_way or any(o.next_timer() is not None for o in self.operators)
            self.answer(0, "well")
            self.pass_time(1_000_000)
        for operator in self.operators:
            self.take(operator.end_input())
            assert "held" not in operator.snapshot()


EVENTS = st.lists(
    st.one_of(
        st.integers(1, 6).map(lambda n: ("rows", n)),
        st.tuples(st.just("answer"), st.tuples(
            st.integers(0, 50), st.sampled_from(["well", "well", "well", "fail", "late"])
        )),
        st.sampled_from([50_000, 400_000]).map(lambda by: ("time", by)),
        st.sampled_from([1, 1, 2, 3]).map(lambda n: ("restart", n)),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.booleans(), st.integers(1, 5))
def test_every_row_has_its_effect_once(
    events: list[tuple[str, Any]], ordered: bool, capacity: int
) -> None:
    retry = AsyncRetry(attempts=10_000)
    subtasks = Subtasks(
        lambda: AsyncMapOperator(answer, ordered=ordered, capacity=capacity, retry=retry)
    )
    sent = 0
    waiting: list[int] = []
    rescaled = False
    for kind, what in events:
        if kind == "rows":
            waiting += range(sent, sent + what)
            sent += what
        elif kind == "answer":
            subtasks.answer(*what)
        elif kind == "time":
            subtasks.pass_time(what)
        else:
            subtasks.restart(what)
            rescaled |= what > 1
        subtasks.feed(waiting)
        for operator in subtasks.operators:
            mine = [r for o, r in subtasks.under_way if o is operator]
            assert len(mine) <= capacity
    while waiting:
        subtasks.answer(0, "well")
        subtasks.pass_time(1_000_000)
        subtasks.feed(waiting)
    subtasks.end()
    rows = main_rows(subtasks.out)
    wanted = [row for n in range(sent) for row in expected(n)]
    if ordered and not rescaled:
        assert rows == wanted
    else:
        key = lambda row: (row["n"], row["part"])  # noqa: E731
        assert sorted(rows, key=key) == wanted


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(["row", "row", "watermark", "answer", "answer", "fail"]), max_size=40),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_no_row_comes_out_behind_a_watermark_that_it_came_in_before(
    events: list[str], dice: Any, ordered: bool
) -> None:
    operator = opened(
        AsyncMapOperator(answer, ordered=ordered, capacity=3, on_error="skip"), parallelism=1
    )
    came_at: dict[int, int] = {}
    under_way: list[Request] = []
    watermark, passed_on, sent = 0, 0, 0
    operator.on_watermark(watermark)
    for event in events:
        out: list[Batch] = []
        if event == "row" and not operator.blocked_inputs():
            came_at[sent] = watermark
            out = operator.process_batch(numbers(sent))
            sent += 1
        elif event == "watermark":
            watermark += 1
            operator.on_watermark(watermark)
        elif under_way:
            request = under_way.pop(dice.randrange(len(under_way)))
            response = carried_out(request)
            if event == "fail":
                response = Response(request_id=request.request_id, error=OSError())
            out = respond(operator, response)
        under_way += operator.take_requests()
        assert all(came_at[row["n"]] >= passed_on for row in main_rows(out))
        leaving = operator.output_watermark(watermark)
        assert passed_on <= leaving <= watermark
        passed_on = leaving
        assert operator.outstanding or leaving == watermark


# ------------------------------------------------------------------------------- capacity, order


def test_rows_beyond_the_capacity_wait_and_follow_one_for_one() -> None:
    operator = opened(AsyncMapOperator(answer, capacity=2))
    assert operator.blocked_inputs() == frozenset()
    assert operator.process_batch(numbers(0, 1, 2, 5)) == []
    first, second = operator.take_requests()
    assert operator.take_requests() == []
    assert operator.blocked_inputs() == {0}
    assert operator.outstanding
    assert respond(operator, carried_out(second)) == []  # waits for its turn, and counts
    assert operator.take_requests() == []
    assert main_rows(respond(operator, carried_out(first))) == [*expected(0), *expected(1)]
    assert len(operator.take_requests()) == 2
    assert operator.blocked_inputs() == {0}


@pytest.mark.parametrize("ordered", [True, False])
def test_results_that_are_there_together_go_on_together(ordered: bool) -> None:
    operator = opened(AsyncMapOperator(answer, ordered=ordered))
    operator.set_processing_time(7)
    operator.process_batch(numbers(0, 1, 2))
    assert operator.next_timer() is None
    for request in operator.take_requests()[:2]:
        assert operator.on_response(carried_out(request)) == []
        assert operator.next_timer() == 7
    assert operator.snapshot()["held"].table.num_rows == 3
    (together,) = operator.on_processing_time(7)
    assert together.data.to_pylist() == [*expected(0), *expected(1)]
    assert operator.next_timer() is None
    assert operator.snapshot()["held"].table.num_rows == 1


def test_unordered_results_come_at_once() -> None:
    operator = opened(AsyncMapOperator(answer, ordered=False))
    operator.process_batch(numbers(0, 1))
    _, second = operator.take_requests()
    assert main_rows(respond(operator, carried_out(second))) == expected(1)
    (left,) = operator.snapshot()["held"].table.to_pylist()
    assert left == {"n": 0}


def test_the_snapshot_holds_all_rows_not_passed_on_in_their_order_and_their_types() -> None:
    schema = pa.schema([("n", pa.int8()), ("at", pa.timestamp("ms", "UTC"))])
    rows = {"n": list(range(7)), "at": [None, *range(6)]}
    operator = opened(AsyncMapOperator(answer, ordered=False, capacity=3))
    operator.process_batch(batch(rows, schema))
    requests = operator.take_requests()
    respond(operator, carried_out(requests[1]))
    held = operator.snapshot()["held"]
    assert held.kind is StateKind.SPLIT
    assert held.table.schema == schema
    assert held.table.column("n").to_pylist() == [0, 2, 3, 4, 5, 6]
    again = opened(AsyncMapOperator(answer, ordered=False, capacity=3))
    again.restore(operator.snapshot())
    assert [carried_out(r).value["n"] for r in again.take_requests()[:2]] == [0, 2]
    assert again.snapshot()["held"].table == held.table


def test_the_schema_of_results_is_held_to_across_restarts() -> None:
    operator = opened(AsyncMapOperator(answer))
    operator.process_batch(numbers(0))
    respond(operator, carried_out(operator.take_requests()[0]))
    again = opened(AsyncMapOperator(answer))
    again.restore(operator.snapshot())
    again.process_batch(numbers(1, at="40"))
    request = again.take_requests()[0]
    other = Response(request_id=request.request_id, value={"n": 1, "more": 2})
    with pytest.raises(SchemaChangedError, match=r"rows\.csv @ 40 \+ row 0 also has 'more'"):
        respond(again, other)


def test_a_class_is_made_once_per_subtask_when_it_opens() -> None:
    made: list[object] = []

    class Client:
        def __init__(self) -> None:
            made.append(self)
            self.calls = 0

        async def __call__(self, row: dict[str, Any]) -> str:
            self.calls += 1
            return f"{row['n']}, call {self.calls}"

    operator = AsyncMapOperator(Client)
    assert made == []
    opened(operator).process_batch(numbers(5, 6))
    answers = [carried_out(r) for r in operator.take_requests()]
    out = [row for a in answers for row in main_rows(respond(operator, a))]
    assert out == [{"item": "5, call 1"}, {"item": "6, call 2"}]
    assert len(made) == 1


# ------------------------------------------------------------------------------------- failures


def failing(operator: Any, error: Exception) -> list[Batch]:
    """Fail the one request that is under way."""
    (request,) = operator.take_requests()
    return respond(operator, Response(request_id=request.request_id, error=error))


def test_a_failed_call_is_made_again_after_growing_pauses_with_the_row_as_it_came() -> None:
    retry = AsyncRetry(attempts=4, initial=timedelta(seconds=1), maximum=timedelta(seconds=3))
    operator = opened(AsyncMapOperator(answer, retry=retry, timeout=MINUTE))
    operator.set_processing_time(0)
    operator.process_batch(numbers(7))
    pauses, now = [], 0
    for _ in range(3):
        (request,) = operator.take_requests()
        assert request.timeout == 60.0
        carried_out(request)  # which changes the dict that it is given
        failed = Response(request_id=request.request_id, error=TimeoutError())
        assert operator.on_response(failed) == []
        assert operator.take_requests() == []
        due = operator.next_timer()
        pauses.append(due - now)
        operator.on_processing_time(due - 1)
        assert operator.take_requests() == []
        operator.on_processing_time(due)
        assert operator.next_timer() is None
        now = due
    assert pauses == [1_000_000, 2_000_000, 3_000_000]
    assert operator.counters()["operator.retries"] == 3
    (request,) = operator.take_requests()
    assert main_rows(respond(operator, carried_out(request), now)) == expected(7)
    assert not operator.outstanding


def test_only_the_chosen_exceptions_are_worth_another_call() -> None:
    operator = opened(AsyncMapOperator(answer, retry=AsyncRetry(on=(OSError,))), "names")
    operator.process_batch(numbers(7, at="40"))
    with pytest.raises(
        UserFunctionError,
        match=r"map_async 'names'.*KeyError.*\{'n': 7\}, read from rows\.csv @ 40",
    ) as raised:
        failing(operator, KeyError("no such thing"))
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_row_that_fails_names_its_own_place_however_its_batch_was_cut() -> None:
    operator = opened(AsyncMapOperator(answer, capacity=2, ordered=False), "names")
    operator.process_batch(numbers(0, 1, 2, 3, 5, 6, at="40"))
    for _ in range(2):
        for request in operator.take_requests():
            respond(operator, carried_out(request))
    _, sixth = operator.take_requests()
    with pytest.raises(UserFunctionError, match=r"row 5 of its batch \{'n': 6\}.*40 \+ row 5"):
        respond(operator, Response(request_id=sixth.request_id, error=OSError()))


def test_skipped_rows_are_counted_and_hold_nothing_up() -> None:
    operator = opened(AsyncMapOperator(answer, on_error="skip"))
    operator.process_batch(numbers(0, 1))
    first, second = operator.take_requests()
    assert respond(operator, carried_out(second)) == []
    out = respond(operator, Response(request_id=first.request_id, error=OSError()))
    assert main_rows(out) == expected(1)
    assert operator.counters()["operator.skipped_rows"] == 1
    assert not operator.outstanding


def test_a_dead_letter_comes_in_its_turn_so_that_a_restart_does_not_repeat_it() -> None:
    operator = opened(AsyncMapOperator(answer, on_error="dead_letter"))
    operator.process_batch(numbers(0, 1, at="40"))
    first, second = operator.take_requests()
    assert respond(operator, Response(request_id=second.request_id, error=OSError("x"))) == []
    assert operator.snapshot()["held"].table.num_rows == 2
    out = respond(operator, carried_out(first))
    assert main_rows(out) == expected(0)
    (letter,) = tagged_rows(out, "dead_letter")
    assert (letter["row"], letter["error"]) == ('{"n": 1}', "OSError: x")
    assert letter["position"] == "rows.csv @ 40 + row 1"
    assert "held" not in operator.snapshot()


def test_a_result_that_is_no_row_fails_its_row_without_another_call() -> None:
    async def wrong(row: dict[str, Any]) -> Any:
        return {row["n"]: "a column that is a number"}

    operator = opened(AsyncMapOperator(wrong, retry=AsyncRetry(attempts=5), on_error="skip"))
    operator.process_batch(numbers(1))
    (request,) = operator.take_requests()
    assert respond(operator, carried_out(request)) == []
    assert operator.counters() == {"operator.skipped_rows": 1, "operator.retries": 0}


def test_a_function_that_is_not_async_is_refused_whatever_on_error_says() -> None:
    operator = opened(AsyncMapOperator(lambda row: row, on_error="skip"))  # type: ignore[arg-type]
    operator.process_batch(numbers(1))
    (request,) = operator.take_requests()
    with pytest.raises(ConfigError, match="returned dict without being awaited"):
        respond(operator, carried_out(request))


def test_an_end_that_does_not_wait_is_refused() -> None:
    operator = opened(AsyncMapOperator(answer))
    operator.process_batch(numbers(1))
    with pytest.raises(PlanError, match="waits for answers"):
        operator.end_input()


class NotCallable:
    pass


async def yields(row: dict[str, Any]) -> Any:
    yield row


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fn": None}, "needs an async function"),
        ({"fn": NotCallable}, "needs an async function"),
        ({"fn": yields}, "return a list"),
        ({"capacity": 0}, "capacity must be"),
        ({"capacity": True}, "capacity must be"),
        ({"timeout": timedelta()}, "timeout must be"),
        ({"timeout": 5}, "timeout must be"),
        ({"retry": 3}, "retry must be"),
        ({"on_error": "ignore"}, "on_error must be"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AsyncMapOperator(**{"fn": answer, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attempts": 0}, "attempts must be"),
        ({"initial": 1.0}, "initial must be"),
        ({"initial": timedelta(seconds=-1)}, "initial must be"),
        ({"maximum": timedelta(0)}, "maximum must not be less than initial"),
        ({"multiplier": 0.5}, "multiplier must be"),
        ({"on": (BaseException,)}, "on must be exception classes"),
        ({"on": ()}, "on must be exception classes"),
    ],
)
def test_retries_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AsyncRetry(**settings)


def test_one_exception_class_is_enough_and_pauses_stay_finite() -> None:
    retry = AsyncRetry(attempts=100_000, on=OSError)  # type: ignore[arg-type]
    assert retry.on == (OSError,)
    assert retry.pause(99_999) == 10_000_000
    assert AsyncRetry(initial=timedelta(0)).pause(50) == 0
    assert Counter(AsyncRetry(multiplier=1).pause(n) for n in range(1, 9)) == {100_000: 8}
