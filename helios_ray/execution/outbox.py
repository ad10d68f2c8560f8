"""What a task body has to say in one step: to its neighbours, to storage, to the coordinator.

Why it exists: actions are gathered in order while the body works and handed over at once;
every message carries the task and its epoch (rule 13).

May import: protocol, identifiers, records, and the actions and failures of this room.
"""

from __future__ import annotations

from helios_ray.execution.actions import Action, Tell
from helios_ray.execution.failures import kind_of
from helios_ray.identifiers import TaskId
from helios_ray.protocol.messages import (
    CommitAcknowledged,
    Heartbeat,
    ResolveTransactions,
    SourceProgress,
    TaskFailed,
    TaskPhase,
    TransactionsResolved,
)


class Outbox:
    """Actions that wait to be taken.

    Args:
        task: whose they are.
    """

    def __init__(self, task: TaskId) -> None:
        self._task = task
        self._actions: list[Action] = []

    def put(self, action: Action) -> None:
        """Ask the driver for something."""
        self._actions.append(action)

    def beat(self, epoch: int, phase: TaskPhase) -> None:
        """Say where the task stands."""
        self.put(Tell(Heartbeat(task=self._task, epoch=epoch, phase=phase)))

    def committed(self, epoch: int, checkpoint_id: int) -> None:
        """Say that everything prepared up to a checkpoint is committed."""
        done = CommitAcknowledged(task=self._task, epoch=epoch, checkpoint_id=checkpoint_id)
        self.put(Tell(done))

    def resolved(self, epoch: int, request: ResolveTransactions) -> None:
        """Say that the transactions of earlier epochs are settled."""
        done = TransactionsResolved(
            task=self._task, epoch=epoch, sink=request.sink, sweep=request.sweep
        )
        self.put(Tell(done))

    def progress(self, epoch: int, number: int, watermark: int, idle: bool) -> None:
        """Say how far the source of this task is."""
        said = SourceProgress(
            task=self._task, epoch=epoch, number=number, watermark=watermark, idle=idle
        )
        self.put(Tell(said))

    def failed(self, epoch: int, error: BaseException) -> None:
        """Say that the task cannot go on in this epoch."""
        reason = f"{type(error).__name__}: {error}"
        failed = TaskFailed(task=self._task, epoch=epoch, kind=kind_of(error), reason=reason)
        self.put(Tell(failed))

    def take(self) -> list[Action]:
        """Everything said since the last time, in order."""
        actions, self._actions = self._actions, []
        return actions
