"""What the coordinator core has asked of storage and not been told yet.

Why it exists: a storage call may fail, or never be answered although it happened (rule 16).
Each call has a number; an answer to a number nobody waits for any more is old news; a call
without a good answer is repeated after a wait, up to so many failures in a row.

May import: records, and the instructions of this room.
"""

from __future__ import annotations

from collections.abc import Callable

from helios_ray.protocol import instructions as i
from helios_ray.records import EpochRecord, Manifest


class StorageRequests:
    """The open calls of one attempt.

    Args:
        attempts: failures in a row after which storage counts as lost.

    Example:
        >>> requests = StorageRequests(attempts=2)
        >>> requests.ask(i.ReadEpochs)
        ReadEpochs(request=1)
        >>> requests.failed(1), requests.exhausted
        (ReadEpochs(request=1), False)
        >>> requests.retry(1, at=10.0)
        >>> requests.due(9.0), requests.due(10.0)
        ([], [ReadEpochs(request=1)])
        >>> requests.answered(1), requests.answered(1)
        (ReadEpochs(request=1), None)
    """

    def __init__(self, *, attempts: int) -> None:
        self._attempts = attempts
        self._last = 0
        self._waiting: dict[int, i.Instruction] = {}
        self._retry_at: dict[int, float] = {}
        self._failures = 0

    def ask(self, kind: Callable[..., i.Instruction], *arguments: object) -> i.Instruction:
        """Number a call; return the instruction that makes it."""
        return self._waiting[self._number(kind, *arguments)]

    def _number(self, kind: Callable[..., i.Instruction], *arguments: object) -> int:
        self._last += 1
        self._waiting[self._last] = kind(self._last, *arguments)
        return self._last

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

    def retry(self, request: int, *, at: float) -> None:
        """Make a failed call again at ``at``.

        Creating the same record again is safe: it either stands there already, and is ours,
        or it does not. Only a claim is not repeated: an unanswered one may yet land, and a
        later epoch, chosen after another look, is as good and certain.
        """
        asked = self._waiting[request]
        if isinstance(asked, i.WriteRecord) and isinstance(asked.record, EpochRecord):
            del self._waiting[request]
            request = self._number(i.ReadCatalog)
        self._retry_at[request] = at

    def withdraw_manifests(self, before: int) -> None:
        """Write no manifest older than ``before`` any more: a later one is durable.

        Written again after retention has dropped it, it would name objects that are gone.
        """
        for request, asked in list(self._waiting.items()):
            record = asked.record if isinstance(asked, i.WriteRecord) else None
            if isinstance(record, Manifest) and record.checkpoint_id < before:
                del self._waiting[request]
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
