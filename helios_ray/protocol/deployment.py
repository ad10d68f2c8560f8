"""The roster: which process runs each task, how far it has come, when it was last heard.

Why it exists: the coordinator's half of rule 14. A process that is lost, silent or hung is
*blank*: it is replaced at the next deployment; the healthy ones are kept and reset.

May import: identifiers, and the messages and settings of this room.
"""

from __future__ import annotations

from collections.abc import Iterable

from helios_ray.identifiers import TaskId
from helios_ray.protocol.messages import Heartbeat, TaskPhase
from helios_ray.protocol.settings import CoordinatorRules

_RANK = {phase: rank for rank, phase in enumerate(TaskPhase)}


class Deployment:
    """The tasks of a job, as one coordinator knows them.

    Args:
        tasks: every task, in a stable order.
        rules: how long a task may be silent, or inside one call.
    """

    def __init__(self, tasks: Iterable[TaskId], rules: CoordinatorRules) -> None:
        self.tasks = tuple(tasks)
        self._rules = rules
        self._blank = set(self.tasks)
        self._incarnations = dict.fromkeys(self.tasks, 0)
        self._phases: dict[TaskId, TaskPhase] = {}
        self._heard: dict[TaskId, float] = {}

    def forget(self) -> None:
        """A new attempt begins: nobody has joined it yet."""
        self._phases.clear()
        self._heard.clear()

    def deploy(self, now: float) -> list[tuple[TaskId, int]]:
        """Expect every task anew; return those to replace, with the new incarnation."""
        replaced = []
        for task in self.tasks:
            if task in self._blank:
                self._incarnations[task] += 1
                replaced.append((task, self._incarnations[task]))
            self._heard[task] = now
            self._phases[task] = TaskPhase.BLANK
        self._blank.clear()
        return replaced

    @property
    def deployed(self) -> bool:
        """Whether this attempt has tasks to lose."""
        return bool(self._heard)

    def expects(self, task: TaskId) -> bool:
        """Whether messages of a task count."""
        return task in self._heard

    def heard(self, task: TaskId, now: float) -> None:
        """A sign of life."""
        self._heard[task] = now

    def phase(self, task: TaskId) -> TaskPhase:
        """How far a task has come in the current epoch, as far as is known."""
        return self._phases.get(task, TaskPhase.BLANK)

    def advance(self, task: TaskId, phase: TaskPhase) -> bool:
        """A task reports its phase; True if that is news. Late reports turn nothing back."""
        if _RANK[phase] <= _RANK[self.phase(task)]:
            return False
        self._phases[task] = phase
        return True

    @property
    def all_joined(self) -> bool:
        """Every task has joined the epoch."""
        return all(self.phase(task) is not TaskPhase.BLANK for task in self.tasks)

    def lose(self, task: TaskId) -> None:
        """The process is of no more use; the next deployment replaces it."""
        self._blank.add(task)

    def is_current(self, task: TaskId, incarnation: int) -> bool:
        """Whether news of a process is about the one that runs the task now."""
        return self._incarnations[task] == incarnation

    def patience(self, task: TaskId) -> float:
        """Seconds of silence that a task is allowed."""
        blank = self.phase(task) is TaskPhase.BLANK
        return self._rules.deploy_timeout if blank else self._rules.heartbeat_timeout

    def trouble(self, beat: Heartbeat) -> str | None:
        """Why a task that gives a sign of life cannot go on all the same, or None."""
        if beat.phase is TaskPhase.FAILED:
            # The message that said why was lost.
            return f"{beat.task}: failed"
        if beat.stalled_for > self._rules.stall_timeout:
            self.lose(beat.task)
            return f"{beat.task}: has not returned from one call for {beat.stalled_for:.0f} s"
        return None

    def drop_silent(self, now: float) -> str | None:
        """Count the tasks that have been silent for too long as lost; say which, if any."""
        silent = [task for task, heard in self._heard.items() if now - heard >= self.patience(task)]
        if not silent:
            return None
        for task in silent:
            self.lose(task)
            del self._heard[task]
        names = ", ".join(map(str, silent))
        return f"{names}: no sign of life for {self.patience(silent[0]):.0f} s"

    def wakeups(self) -> list[float]:
        """Times at which ``drop_silent`` may find somebody."""
        return [heard + self.patience(task) for task, heard in self._heard.items()]
