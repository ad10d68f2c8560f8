"""The commit ledger: which prepared transactions wait for which checkpoint.

Why it exists: rules 3 and 4 of the protocol, in one place.

- An aborted checkpoint aborts no transaction: its data stays pending, and the next
  completed checkpoint covers it. So pending is a map from checkpoint id to transactions,
  never one slot.
- Completion of N commits all pending up to N, in order, and never anything after N.
- N is *committed* only when every sink subtask has acknowledged it.

May import: identifiers, records.
"""

from __future__ import annotations

from collections.abc import Iterable

from helios_ray.identifiers import TaskId
from helios_ray.records import PreparedTransaction


class PendingCommits:
    """What one sink subtask has prepared and not yet committed.

    Example:
        >>> pending = PendingCommits()
        >>> for n in (1, 2, 3):
        ...     t = PreparedTransaction(transaction=f"t{n}", sink="s", checkpoint_id=n)
        ...     pending.prepared(t)
        >>> [t.transaction for t in pending.due(2)]
        ['t1', 't2']
    """

    def __init__(self) -> None:
        self._by_checkpoint: dict[int, list[PreparedTransaction]] = {}

    def prepared(self, transaction: PreparedTransaction) -> None:
        """A transaction was prepared."""
        self._by_checkpoint.setdefault(transaction.checkpoint_id, []).append(transaction)

    def committed(self, transaction: PreparedTransaction) -> None:
        """A transaction was committed; it waits no longer."""
        waiting = self._by_checkpoint.get(transaction.checkpoint_id, [])
        if transaction in waiting:
            waiting.remove(transaction)
        if not waiting:
            self._by_checkpoint.pop(transaction.checkpoint_id, None)

    def due(self, checkpoint_id: int) -> tuple[PreparedTransaction, ...]:
        """What the completion of ``checkpoint_id`` commits, oldest first."""
        return tuple(
            transaction
            for pending_id in sorted(self._by_checkpoint)
            if pending_id <= checkpoint_id
            for transaction in self._by_checkpoint[pending_id]
        )

    @property
    def all(self) -> tuple[PreparedTransaction, ...]:
        """Everything that waits, oldest first: what a snapshot must carry."""
        return tuple(t for n in sorted(self._by_checkpoint) for t in self._by_checkpoint[n])


class CommitRound:
    """The coordinator's view of the commit of one checkpoint.

    Args:
        checkpoint_id: what is being committed.
        tasks: sink subtasks that must acknowledge.
    """

    def __init__(self, checkpoint_id: int, tasks: Iterable[TaskId], started: float) -> None:
        self.checkpoint_id = checkpoint_id
        self.started = started
        self.waiting = set(tasks)

    def acknowledged(self, task: TaskId) -> bool:
        """A subtask has committed everything up to the checkpoint; True if it was the last."""
        self.waiting.discard(task)
        return not self.waiting
