"""What the coordinator core has asked of storage and not been told yet.

Why it exists: a storage call may fail, or never be answered although it happened (rule 16).
Each call has a number; an answer to a number nobody waits for any more is old news; a call
without a good answer is repeated after a wait, up to so many failures in a row.

May import: the instructions of this room.
"""

from __future__ import annotations

from collections.abc import Callable

from helios_ray.protocol import instructions as i


class StorageRequests:
    """The open calls of one attempt.

    Args:
        retry_wait: seconds before a call is repeated.
        attempts: failures in a row after which storage counts as lost.

    Example:
        >>> requests = StorageRequests(retry_wait=0.5, attempts=2)
        >>> requests.ask(i.ReadEpochs)
        ReadEpochs(request=1)
        >>> requests.failed(1), requests.exhausted
        (ReadEpochs(request=1), False)
        >>> requests.repeat(1, at=10.0)
        >>> requests.due(9.0), requests.due(10.0)
        ([], [ReadEpochs(request=1)])
        >>> requests.answered(1), requests.answered(1)
        (ReadEpochs(request=1), None)
    """

    def __init__(self, *, retry_wait: float, attempts: int) -> None:
        self.retry_wait = retry_wait
        self._attempts = attempts
        self._last = 0
        self._waiting: dict[int, i.Instruction] = {}
        self._retry_at: dict[int, float] = {}
        self._failures = 0

    def ask(self, kind: Callable[..., i.Instruction], *arguments: object) -> i.Instruction:
        """Number a call; return the instruction that makes it."""
        self._last += 1
        instruction = kind(self._last, *arguments)
        self._waiting[self._last] = instruction
        return instruction

    def ask_later(self, at: float, kind: Callable[..., i.Instruction], *arguments: object) -> None:
        """Number a call that is to be made at ``at``."""
        self.ask(kind, *arguments)
        self._retry_at[self._last] = at

    def answered(self, request: int) -> i.Instruction | None:
        """An answer came: the call it answers, or None if nobody waits for it."""
        self._retry_at.pop(request, None)
        instruction = self._waiting.pop(request, None)
        if instruction is not None:
            self._failures = 0
        return instruction

    def failed(self, request: int) -> i.Instruction | None:
        """A call failed: which one, or None if nobody waits for it."""
        instruction = self._waiting.get(request)
        self._failures += instruction is not None
        return instruction

    @property
    def exhausted(self) -> bool:
        """So many calls in a row failed that storage counts as lost."""
        return self._failures >= self._attempts

    def repeat(self, request: int, *, at: float) -> None:
        """Make a failed call again at ``at``, under its old number."""
        self._retry_at[request] = at

    def drop(self, request: int) -> None:
        """Wait for this answer no longer."""
        self._waiting.pop(request, None)
        self._retry_at.pop(request, None)

    def clear(self) -> None:
        """Wait for nothing any more: the attempt is over."""
        self._waiting.clear()
        self._retry_at.clear()
        self._failures = 0

    def due(self, now: float) -> list[i.Instruction]:
        """Calls whose time has come."""
        ready = [request for request, at in self._retry_at.items() if at <= now]
        for request in ready:
            del self._retry_at[request]
        return [self._waiting[request] for request in ready]

    def wakeups(self) -> list[float]:
        """Times at which ``due`` will have something."""
        return list(self._retry_at.values())
