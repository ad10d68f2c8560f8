"""The loop that awaits requests: every one is answered once, and those of the past never."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from helios_ray.operators.base import Request, Response
from helios_ray.runtime.requests import RequestLoop

Answered = tuple[int, str, Response]


class Caller:
    """A loop, and what it answered."""

    def __init__(self) -> None:
        self.answers: queue.Queue[Answered] = queue.Queue()
        self.loop = RequestLoop(lambda *answered: self.answers.put(answered))

    def ask(
        self,
        n: int,
        call: Callable[[], Awaitable[Any]],
        *,
        epoch: int = 1,
        timeout: float | None = None,
    ) -> None:
        request = Request(request_id=n, call=call, timeout=timeout)
        self.loop.start(epoch, "op", request)

    def next(self) -> Answered:
        return self.answers.get(timeout=60)


@pytest.fixture
def caller() -> Iterator[Caller]:
    caller = Caller()
    yield caller
    caller.loop.close()


async def value() -> int:
    return 42


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        raise error

    return call


def test_answers_carry_epoch_operator_and_request(caller: Caller) -> None:
    caller.ask(7, value, epoch=3)
    assert caller.next() == (3, "op", Response(request_id=7, value=42))


def test_many_are_awaited_at_a_time(caller: Caller) -> None:
    async def meet() -> str:
        nonlocal arrived
        arrived += 1
        if arrived == 2:
            met.set()
        await met.wait()
        return "met"

    arrived, met = 0, asyncio.Event()
    caller.ask(1, meet)
    caller.ask(2, meet)
    assert {caller.next()[2].value for _ in range(2)} == {"met"}


def test_what_a_call_raises_is_the_answer(caller: Caller) -> None:
    error = KeyError("gone")
    caller.ask(1, raising(error))
    assert caller.next()[2] == Response(request_id=1, error=error)


def test_nothing_that_a_call_raises_ends_the_loop(caller: Caller) -> None:
    def at_once() -> Awaitable[None]:
        raise OSError("before anything was awaited")

    caller.ask(1, raising(SystemExit(3)))
    caller.ask(2, raising(asyncio.CancelledError()))
    caller.ask(3, at_once)
    caller.ask(4, value)
    answers = {r.request_id: r for _, _, r in (caller.next() for _ in range(4))}
    assert isinstance(answers[1].error, RuntimeError)
    assert "SystemExit: 3" in str(answers[1].error)
    assert isinstance(answers[2].error, RuntimeError)
    assert isinstance(answers[3].error, OSError)
    assert answers[4].value == 42


def test_a_call_that_takes_too_long_fails_with_a_timeout_and_is_cancelled(caller: Caller) -> None:
    cancelled = threading.Event()

    async def slow() -> None:
        try:
            await forever()
        finally:
            cancelled.set()

    caller.ask(1, slow, timeout=0.01)
    _, _, response = caller.next()
    assert type(response.error) is TimeoutError
    assert "0.01 s" in str(response.error)
    assert cancelled.wait(60)


def test_a_timeout_of_asyncio_is_a_timeout(caller: Caller) -> None:
    caller.ask(1, raising(asyncio.TimeoutError("inside")))
    error = caller.next()[2].error
    assert isinstance(error, TimeoutError)
    assert str(error) == "inside"


def test_a_call_that_will_not_be_cancelled_is_answered_in_time_all_the_same(
    caller: Caller,
) -> None:
    ended = asyncio.Event()

    async def stubborn() -> int:
        try:
            await forever()
        except asyncio.CancelledError:
            await ended.wait()
        return 1

    async def end() -> None:
        ended.set()

    caller.ask(1, stubborn, timeout=0.01)
    assert isinstance(caller.next()[2].error, TimeoutError)
    caller.ask(2, end)
    assert caller.next()[2] == Response(request_id=2)
    caller.loop.close()
    assert caller.answers.empty()


def test_what_is_cancelled_is_not_answered_and_what_follows_is(caller: Caller) -> None:
    cancelled = queue.SimpleQueue[int]()

    def waiting(n: int) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            try:
                await forever()
            except asyncio.CancelledError:
                cancelled.put(n)
                raise

        return call

    for n in (1, 2):
        caller.ask(n, waiting(n))
    caller.ask(3, value)
    assert caller.next()[2].request_id == 3  # by now the others have begun
    caller.loop.cancel()
    caller.ask(4, value, epoch=2)
    assert caller.next()[::2] == (2, Response(request_id=4, value=42))
    assert {cancelled.get(timeout=60) for _ in range(2)} == {1, 2}
    assert caller.answers.empty()


def test_closing_cancels_and_ends_the_thread_and_nothing_starts_one_without_a_request() -> None:
    def threads() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name == "helios-requests"}

    caller = Caller()
    caller.loop.cancel()
    caller.loop.close()
    assert threads() == set()
    caller.ask(1, forever)
    assert threads() == {"helios-requests"}
    caller.loop.close()
    caller.loop.close()
    assert threads() == set()
    assert caller.answers.empty()
