"""Awaiting what operators ask for, on an event loop of the task's process.

Why it exists: operators and the task body are synchronous and own no clock. One thread with one
loop awaits many requests at a time; every answer goes back through the task's inbox, so
operators are still called by one thread only. The thread starts with the first request.

A request of an epoch that is over is cancelled and not answered.

May import: operators (the contract), and asyncio.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from helios_ray.operators.base import Request, Response

Answer: TypeAlias = Callable[[int, str, Response], None]
"""Takes an epoch, an operator's uid and how its request ended; called on the loop's thread."""


class RequestLoop:
    """See the module's docstring. Its methods are called by one thread.

    Args:
        answer: see there.

    Example:
        >>> import queue
        >>> async def fetch():
        ...     return 42
        >>> answers = queue.Queue()
        >>> requests = RequestLoop(lambda *answer: answers.put(answer))
        >>> requests.start(1, "lookup", Request(request_id=7, call=fetch))
        >>> epoch, operator, response = answers.get()
        >>> epoch, operator, response.value
        (1, 'lookup', 42)
        >>> requests.close()
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._awaited: set[asyncio.Task[Any]] = set()

    def start(self, epoch: int, operator: str, request: Request) -> None:
        """Await a request, and answer it."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=loop.run_forever, name="helios-requests", daemon=True
            )
            self._thread.start()
        loop.call_soon_threadsafe(self._begin, epoch, operator, request)

    def cancel(self) -> None:
        """Cancel whatever is awaited; what was being answered just now still is.

        Does not wait: the loop may be inside a call of the user's that does not return.
        """
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel)

    def close(self) -> None:
        """Cancel whatever is awaited and end the thread."""
        loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    # ------------------------------------------------------------------- the loop's thread

    def _begin(self, epoch: int, operator: str, request: Request) -> None:
        self._keep(asyncio.ensure_future(self._carry_out(epoch, operator, request)))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._awaited.add(task)  # the loop itself holds no reference
        task.add_done_callback(self._awaited.discard)

    def _cancel(self) -> None:
        for task in self._awaited:
            task.cancel()

    async def _end(self) -> None:
        me = asyncio.current_task()
        awaited = [task for task in self._awaited if task is not me]
        for task in awaited:
            task.cancel()
        await asyncio.gather(*awaited, return_exceptions=True)

    async def _carry_out(self, epoch: int, operator: str, request: Request) -> None:
        n = request.request_id
        call = asyncio.ensure_future(_outcome(request))
        self._keep(call)
        try:
            done, _ = await asyncio.wait({call}, timeout=request.timeout)
        except asyncio.CancelledError:
            call.cancel()
            raise
        value: Any = None
        error: Exception | None
        if not done:
            # Answered now, even if the call takes its time over being cancelled.
            call.cancel()
            error = TimeoutError(f"no answer within {request.timeout:g} s")
        elif call.cancelled():
            # Nobody cancelled the request: something that it awaited was.
            error = RuntimeError("the call was cancelled from inside")
        else:
            value, error = call.result()
        self._answer(epoch, operator, Response(request_id=n, value=value, error=error))


async def _outcome(request: Request) -> tuple[Any, Exception | None]:
    """The result, or what was raised. Only being cancelled goes through."""
    try:
        return await request.call(), None
    except asyncio.CancelledError:
        raise
    except asyncio.TimeoutError as error:  # before Python 3.11 not the built-in one
        return None, error if isinstance(error, TimeoutError) else TimeoutError(str(error))
    except Exception as error:
        return None, error
    except BaseException as error:  # SystemExit must not end the loop and all that it awaits
        return None, RuntimeError(f"{type(error).__name__}: {error}")
