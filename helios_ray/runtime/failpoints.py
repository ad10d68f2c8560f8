"""Failpoints: a test says at which step of the protocol a process of a job must die.

Why it exists: a random SIGKILL hardly ever hits the microseconds between a durable manifest
and the first commit. Here the process that reaches such a step kills itself, with the
operating system's own SIGKILL: nothing is flushed, no handler runs.

How: the environment variable ``HELIOS_FAILPOINTS`` names a directory that all processes of a
job see. :func:`arm` puts a file there, named after the step. Whoever reaches the step, fits
the file's filter and wins the removal of the file leaves a note of who died and when, and
dies. Without the variable the actors hold no failpoints at all, and nothing is looked at.

    step            a task dies …                          the coordinator dies …
    before-barrier  having the trigger or the barrier, not having sent a trigger
                    before it looks at it
    while-aligned   some inputs brought the barrier,       some tasks acknowledged, others not
                    others not
    after-snapshot  its state is uploaded, nobody knows    -
    after-ack       its acknowledgement has arrived        all acknowledged, no manifest yet
    after-manifest  told to commit, before it does         the manifest is durable, nobody told
    mid-commit      it has committed, nobody knows         a sink was told, or has committed,
                                                           the rest perhaps not
    before-marker   the coordinator knows of its commit    all have committed, no marker yet
    restoring       its state is loaded, not taken up      the epoch is claimed, the manifest
                                                           not yet read
    commit-replay   it has settled what earlier epochs     a sink was told to settle, or has
                    left, nobody knows                     settled, the rest perhaps not

May import: elements, identifiers, protocol, records.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helios_ray.elements import CheckpointBarrier
from helios_ray.identifiers import TaskId
from helios_ray.protocol import instructions as i
from helios_ray.protocol.coordinator import CoordinatorCore
from helios_ray.protocol.messages import (
    CommitAcknowledged,
    CommitCheckpoint,
    ResolveTransactions,
    SnapshotAcknowledged,
    ToCoordinator,
    ToTask,
    TransactionsResolved,
    TriggerCheckpoint,
)
from helios_ray.records import CommittedMarker, Manifest

VARIABLE = "HELIOS_FAILPOINTS"
COORDINATOR = "coordinator"

COORDINATOR_STEPS = (
    "before-barrier",
    "while-aligned",
    "after-ack",
    "after-manifest",
    "mid-commit",
    "before-marker",
    "restoring",
    "commit-replay",
)
TASK_STEPS = (*COORDINATOR_STEPS, "after-snapshot")
STEPS = (
    "before-barrier",
    "while-aligned",
    "after-snapshot",
    "after-ack",
    "after-manifest",
    "mid-commit",
    "before-marker",
    "restoring",
    "commit-replay",
)
"""Every step, in the order in which a checkpoint and then a recovery pass them."""

DELIVERY = 10.0
"""Seconds that a step which includes "it has arrived" waits for that to be so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """The note of a process that has died at a failpoint.

    Args:
        who: ``"coordinator"``, or a task as its id reads.
        at: seconds since the Unix epoch, right before the end.
        pid: its process.
        epoch: the attempt that it was part of.
    """

    step: str
    who: str
    at: float
    pid: int
    epoch: int


def arm(directory: str | os.PathLike[str], step: str, *, who: str = "", skip: int = 0) -> None:
    """Have the next process that reaches ``step`` die there.

    Args:
        directory: what ``HELIOS_FAILPOINTS`` names.
        step: one of :data:`STEPS`.
        who: only ``"coordinator"``, or only tasks whose id contains this; empty: whoever comes.
        skip: let that many pass first.

    Raises:
        ValueError: there is no such step, or not at that process.
    """
    allowed = COORDINATOR_STEPS if who == COORDINATOR else STEPS
    if step not in allowed:
        raise ValueError(f"expected a step of {allowed}, got {step!r}")
    Path(directory, f"{step}.fired").unlink(missing_ok=True)
    _place(Path(directory), step, {"who": who, "skip": skip})


def disarm(directory: str | os.PathLike[str], step: str) -> bool:
    """Take a failpoint back; False if it is not there, because it has gone off."""
    try:
        Path(directory, step).unlink()
    except FileNotFoundError:
        return False
    return True


def fired(directory: str | os.PathLike[str], step: str) -> Fired | None:
    """The note of the process that died at ``step`` since it was armed last, or None."""
    try:
        return Fired(**json.loads(Path(directory, f"{step}.fired").read_text()))
    except FileNotFoundError:
        return None


def _place(directory: Path, name: str, content: object) -> None:
    """Write a file so that nobody ever sees half of it."""
    draft = directory / f".{name}.{os.getpid()}"
    draft.write_text(json.dumps(content))
    draft.rename(directory / name)


class Failpoints:
    """The failpoints of one process.

    Args:
        who: ``"coordinator"``, or a task as its id reads.
        directory: where they are armed.
    """

    def __init__(self, who: str, directory: str | os.PathLike[str]) -> None:
        self._who = who
        self._directory = Path(directory)

    def reach(self, step: str, epoch: int, *, first: Callable[[], object] | None = None) -> None:
        """This process is at ``step``; it does not return if it is armed for it.

        Args:
            epoch: for the note.
            first: what must have happened before the end.
        """
        armed = self._directory / step
        claim = self._directory / f".{step}.{os.getpid()}.claimed"
        try:
            # A look first: nearly always there is nothing, or something for others.
            if not self._fits(json.loads(armed.read_text())["who"]):
                return
            armed.rename(claim)
            order = json.loads(claim.read_text())
        except FileNotFoundError:
            return
        claim.unlink()
        if order["skip"] > 0:
            _place(self._directory, step, {**order, "skip": order["skip"] - 1})
            return
        if first is not None:
            first()
        note = Fired(step=step, who=self._who, at=time.time(), pid=os.getpid(), epoch=epoch)
        _place(self._directory, f"{step}.fired", asdict(note))
        os.kill(os.getpid(), signal.SIGKILL)

    def _fits(self, who: str) -> bool:
        if COORDINATOR in (who, self._who):
            return who in ("", self._who)
        return who in self._who


class TaskFailpoints(Failpoints):
    """Where a task's process stands in the protocol, seen from what it hears and says."""

    def hears(self, item: tuple[Any, ...], epoch: int) -> None:
        """An entry of the inbox is about to be looked at."""
        match item:
            case ("message", TriggerCheckpoint()):
                self.reach("before-barrier", epoch)
            case ("message", CommitCheckpoint()):
                self.reach("after-manifest", epoch)
            case ("frame", (_, _, _, _, layout), _):
                if any(isinstance(entry, CheckpointBarrier) for entry in layout):
                    self.reach("before-barrier", epoch)
            case ("loaded", order, restored) if restored is not None:
                self.reach("restoring", order.epoch)

    def stands(self, aligning: int | None, epoch: int) -> None:
        """A piece of work is done; ``aligning`` is the checkpoint that is half here."""
        if aligning is not None:
            self.reach("while-aligned", epoch)

    def speaks(self, message: ToCoordinator) -> None:
        """A message is about to be sent."""
        match message:
            case SnapshotAcknowledged():
                self.reach("after-snapshot", message.epoch)
            case CommitAcknowledged():
                self.reach("mid-commit", message.epoch)
            case TransactionsResolved(sweep=False):
                self.reach("commit-replay", message.epoch)

    def has_spoken(self, message: ToCoordinator, reply: Any) -> None:
        """A message is on its way; ``reply`` is the call that carries it."""
        match message:
            case SnapshotAcknowledged():
                self.reach("after-ack", message.epoch, first=lambda: _arrived(reply))
            case CommitAcknowledged():
                self.reach("before-marker", message.epoch, first=lambda: _arrived(reply))


class CoordinatorFailpoints(Failpoints):
    """Where the coordinator stands in the protocol, seen from what it hears and orders.

    Args:
        core: only looked at.
    """

    def __init__(self, directory: str | os.PathLike[str], core: CoordinatorCore) -> None:
        super().__init__(COORDINATOR, directory)
        self._core = core

    def hears(self, event: i.Event) -> None:
        """An event is about to be looked at."""
        core = self._core
        match event:
            case SnapshotAcknowledged(task=task, checkpoint_id=checkpoint_id):
                pending = core.attempt.pending.get(checkpoint_id) if core.attempt else None
                if pending is not None and set(pending.waiting) - {task}:
                    self.reach("while-aligned", core.epoch)
            case CommitAcknowledged() if event.epoch == core.epoch:
                self.reach("mid-commit", core.epoch)
            case TransactionsResolved(sweep=False) if event.epoch == core.epoch:
                self.reach("commit-replay", core.epoch)

    def orders(self, instruction: i.Instruction) -> None:
        """An instruction is about to be carried out."""
        match instruction:
            case i.Send(_, TriggerCheckpoint()):
                self.reach("before-barrier", self._core.epoch)
            case i.WriteRecord(_, Manifest()):
                self.reach("after-ack", self._core.epoch)
            case i.WriteRecord(_, CommittedMarker()):
                self.reach("before-marker", self._core.epoch)
            case i.ReadManifest():
                self.reach("restoring", self._core.epoch)

    def has_sent(self, message: ToTask, reply: Any) -> None:
        """A message to a task is on its way; ``reply`` is the call that carries it."""
        match message:
            case CommitCheckpoint():
                self.reach("mid-commit", message.epoch, first=lambda: _arrived(reply))
            case ResolveTransactions(sweep=False):
                self.reach("commit-replay", message.epoch, first=lambda: _arrived(reply))

    def has_stored(self, instruction: i.Instruction) -> None:
        """Storage has answered and said yes; nobody has heard of it yet."""
        match instruction:
            case i.WriteRecord(_, Manifest()):
                self.reach("after-manifest", self._core.epoch)


def _arrived(reply: Any) -> None:
    """Wait until a call has been carried out. If the callee is gone, it has not, and will not."""
    try:
        reply.future().result(timeout=DELIVERY)
    except Exception:
        return


def of_task(task: TaskId) -> TaskFailpoints | None:
    """The failpoints of a task's process; None where there are none, that is, in real life."""
    directory = os.environ.get(VARIABLE)
    return TaskFailpoints(str(task), directory) if directory else None


def of_coordinator(core: CoordinatorCore) -> CoordinatorFailpoints | None:
    """The failpoints of a coordinator's process; None where there are none."""
    directory = os.environ.get(VARIABLE)
    return CoordinatorFailpoints(directory, core) if directory else None
