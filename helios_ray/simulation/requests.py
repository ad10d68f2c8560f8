"""Requests of operators to the outside, awaited in virtual time.

Why it exists: an operator hands out awaitables; whoever drives it awaits them. Here each is
run to its end at the moment that the dice draw, on an event loop whose clock jumps, so that
``asyncio.sleep(60)`` takes no time and the same seed gives the same answers. Some answers come
late, some after the timeout, some never, until the task is started anew.

A request must wait for nothing but the loop's own clock: threads and sockets are not part of
the simulated world.

May import: execution (actions), operators (the contract), asyncio.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any

from helios_ray.execution.actions import StartRequest
from helios_ray.operators.base import Request, Response

if TYPE_CHECKING:
    from helios_ray.simulation.nodes import SimTask


class _Stuck(Exception):
    """An awaitable waits for something that no virtual time brings."""


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: time goes on instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise _Stuck
        self.now += max(0.0, timeout)
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class RequestLoop:
    """The event loop of a simulated world; made when it is first needed."""

    def __init__(self) -> None:
        self._loop: _VirtualLoop | None = None

    def run(self, request: Request) -> tuple[Response, float | None]:
        """Await a request.

        Returns:
            The answer, and the virtual seconds it took; None if it would take for ever.
        """
        if self._loop is None:
            self._loop = _VirtualLoop()
        loop = self._loop
        began = loop.time()
        task = loop.create_task(_await(request))
        try:
            value = loop.run_until_complete(task)
        except _Stuck:
            task.cancel()
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            error = RuntimeError(
                "a simulated request may wait for asyncio's clock only, and this one waits for "
                "something else, such as a thread or a socket. Give it a simulated counterpart."
            )
            return Response(request_id=request.request_id, error=error), None
        except Exception as error:  # the user's code raised: that is the answer
            return Response(request_id=request.request_id, error=error), loop.time() - began
        return Response(request_id=request.request_id, value=value), loop.time() - began

    def close(self) -> None:
        """The run is over."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()


async def pause(seconds: float) -> None:
    """What a simulated service takes its time with."""
    await asyncio.sleep(seconds)


async def _await(request: Request) -> Any:
    return await request.call()


def start_request(node: SimTask, order: StartRequest) -> None:
    """Await a request on behalf of a task, with the luck that the dice give it."""
    world = node.cluster.world
    rng, dice, timeout = world.rng, world.dice, order.request.timeout
    began = world.now
    wait = rng.expovariate(1 / 0.02)
    if dice.happens("request_slow"):
        wait += rng.uniform(0.1, 5.0)
    lost = dice.happens("request_lost")

    def answer(response: Response) -> None:
        node.respond(order.epoch, order.operator, response)

    def carry_out() -> None:
        if not node.alive:
            return
        response, took = world.requests.run(order.request)
        late = took is None or (timeout is not None and wait + took > timeout)
        if timeout is not None and (late or lost):
            error = TimeoutError(f"no answer within {timeout} s")
            response = Response(request_id=order.request.request_id, error=error)
            world.at(began + timeout - world.now, lambda: answer(response))
        elif not lost:
            world.at(began + wait + (took or 0.0) - world.now, lambda: answer(response))
        else:
            # Nobody will ever answer: only a new process asks again.
            world.at(rng.uniform(0.5, 5.0), give_up)

    def give_up() -> None:
        if node.body.core.epoch == order.epoch and node.cluster.tasks.get(node.task) is node:
            node.cluster.crash_task(node.task)

    world.at(wait if timeout is None else min(wait, timeout), carry_out)
