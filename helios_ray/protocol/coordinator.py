"""The coordinator core: one attempt after another to run a job, as a pure state machine.

Why it exists: every rule about *order* that exactly-once rests on is in this class and in
``attempt.py`` (what happens while an attempt runs). Events in, instructions out; time and
randomness are handed in.

    CREATED ─> CLAIMING ─> RESTORING ─> DEPLOYING ─> RESOLVING ─> RUNNING ─> FINISHING ─> end
                  ^                                                  │
                  └────────────── RESTARTING <───────── failure ─────┘

    CLAIMING    an epoch record is created: from here on, older attempts are fenced
    RESTORING   the catalog is read, a checkpoint chosen, the choice recorded, and the claim
                looked at once more
    DEPLOYING   dead tasks are replaced, all are reset to the checkpoint
    RESOLVING   transactions up to it are committed, later ones aborted, before any new row
    RUNNING     checkpoints and commits (``attempt.py``)
    FINISHING   all input has ended: one final checkpoint, its commit, the end

May import: errors, identifiers, records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from helios_ray.identifiers import TaskId
from helios_ray.protocol import instructions as i
from helios_ray.protocol.attempt import Attempt
from helios_ray.protocol.deployment import Deployment
from helios_ray.protocol.instructions import JobStatus
from helios_ray.protocol.messages import (
    FailureKind,
    Heartbeat,
    ResolveTransactions,
    StartTask,
    TaskFailed,
    TaskPhase,
    TransactionsResolved,
)
from helios_ray.protocol.settings import CoordinatorRules as CoordinatorRules
from helios_ray.protocol.settings import JobShape as JobShape
from helios_ray.protocol.storage_requests import StorageRequests
from helios_ray.protocol.takeover import Takeover
from helios_ray.records import EpochRecord, Record, RestoreRecord


class CoordinatorCore:
    """See the module's docstring.

    Args:
        shape: what to run.
        rules: settings.
        owner: a token that no other coordinator has.
        restore: ``"latest"``, a checkpoint id, or None. It governs the first attempt; after a
            failure an attempt always resumes from the latest.
        jitter: source of random numbers in [0, 1).
        wall_clock_offset: what to add to ``now`` to get seconds since the Unix epoch.
    """

    def __init__(
        self,
        shape: JobShape,
        rules: CoordinatorRules,
        *,
        owner: str,
        restore: int | str | None,
        jitter: Callable[[], float],
        wall_clock_offset: float = 0.0,
    ) -> None:
        self.wall_clock_offset = wall_clock_offset
        self.shape = shape
        self.rules = rules
        self.owner = owner
        self.status = JobStatus.CREATED
        self.reason = ""
        self.epoch = 0
        self.restarts = 0
        self.attempt: Attempt | None = None
        self.committed: int | None = None
        self.stopping = False
        self._takeover = Takeover(self, restore)
        self._jitter = jitter
        self.backoff = rules.restart.begin()
        self.requests = StorageRequests(attempts=rules.storage_attempts)
        self._tasks = Deployment(shape.tasks, rules)
        self._resend_at = 0.0
        self._restart_at: float | None = None
        self._ending: JobStatus | None = None
        self._out: list[i.Instruction] = []
        self.now = 0.0

    # ------------------------------------------------------------------------ interface

    def handle(self, event: i.Event, now: float) -> list[i.Instruction]:
        """Take an event; return what to do, in order. Never raises, never waits.

        Args:
            event: what happened.
            now: seconds on a clock that only grows.
        """
        self.now = max(self.now, now)
        self._out = []
        if not self.status.terminal:
            self._dispatch(event)
        return self._out

    def next_wakeup(self) -> float | None:
        """When a ``Tick`` can next do something, or None when the job has ended."""
        if self.status.terminal:
            return None
        times = [self._resend_at, *self.requests.wakeups(), *self._tasks.wakeups()]
        if self._restart_at is not None:
            times.append(self._restart_at)
        if self.attempt is not None:
            times += self.attempt.wakeups()
        return min(times)

    def phase_of(self, task: TaskId) -> TaskPhase:
        """How far a task has come in the current epoch, as far as is known."""
        return self._tasks.phase(task)

    @property
    def restored(self) -> int | None:
        """The checkpoint that the current attempt resumed from."""
        return self._takeover.restored

    # ------------------------------------------------------------------------- dispatch

    def _dispatch(self, event: i.Event) -> None:
        match event:
            case i.Begin():
                if self.status is JobStatus.CREATED:
                    self._begin_attempt()
            case i.Tick():
                self._tick()
            case i.StorageFailed():
                self._on_storage_failed(event)
            case i.CatalogRead() | i.ManifestRead() | i.EpochsRead() | i.RecordWritten():
                asked = self.requests.answered(event.request)
                if asked is not None:
                    self._on_answer(asked, event)
            case i.TaskLost():
                self._on_lost(event)
            case i.CheckpointRequested():
                if self.attempt is not None:
                    self.attempt.request_checkpoint()
            case i.StopRequested():
                self.stopping = True
                if self.attempt is not None:
                    self.attempt.request_stop()
                else:
                    self._begin_ending(JobStatus.STOPPED, "stopped while it was not running")
            case i.CancelRequested():
                self._begin_ending(JobStatus.CANCELLED, "cancelled")
            case _:
                self._on_message(event)

    def _on_answer(self, asked: i.Instruction, answer: i.Event) -> None:
        match answer:
            case i.CatalogRead(catalog=catalog):
                self._takeover.on_catalog(catalog)
            case i.ManifestRead(manifest=manifest):
                self._takeover.on_manifest(manifest)
            case i.EpochsRead(epochs=epochs):
                if self.attempt is not None:
                    self.attempt.on_epochs(epochs)
                else:
                    self._takeover.on_epochs(epochs)
            case i.RecordWritten(existing=existing):
                assert isinstance(asked, i.WriteRecord)
                self._on_written(asked.record, existing)

    def _on_message(self, message: i.ToCoordinator) -> None:
        if message.epoch != self.epoch or not self._tasks.expects(message.task):
            return  # of a fenced epoch, or of an epoch that has not begun: rule 13
        self._tasks.heard(message.task, self.now)
        match message:
            case Heartbeat():
                self._on_heartbeat(message)
            case TaskFailed(task=task, kind=kind, reason=reason):
                self.fail(f"{task}: {reason}", kind)
            case TransactionsResolved():
                self._on_resolved(message)
            case _:
                if self.attempt is not None:
                    self.attempt.on_message(message)

    # ---------------------------------------------------------- claiming, then deploying

    def _begin_attempt(self) -> None:
        self.attempt = None
        self.requests.clear()
        self._tasks.forget()
        self._restart_at = None
        self._set_status(JobStatus.CLAIMING)
        self._takeover.begin()

    def _on_written(self, record: Record, existing: object) -> None:
        match record:
            case EpochRecord():
                self._takeover.on_claimed(record, existing)
            case RestoreRecord():
                self._takeover.on_recorded()
            case _ if self.attempt is not None:
                self.attempt.on_written(record, existing)

    def joined(self, epoch: int) -> None:
        """The epoch is this coordinator's."""
        self.epoch = epoch
        self._set_status(JobStatus.RESTORING)

    def deploy(self) -> None:
        """What to resume from is decided: replace the dead, reset all."""
        self._set_status(JobStatus.DEPLOYING)
        for task, incarnation in self._tasks.deploy(self.now):
            self.emit(i.ReplaceTask(task, incarnation))
        self._resend()

    def _on_heartbeat(self, beat: Heartbeat) -> None:
        if self._tasks.advance(beat.task, beat.phase) and self.attempt is not None:
            self.attempt.on_phase(beat.task, beat.phase)
        trouble = self._tasks.trouble(beat)
        if trouble is not None:
            self.fail(trouble, FailureKind.RAISED)
        elif self.status is JobStatus.DEPLOYING and self._tasks.all_joined:
            self._takeover.resolve()

    def _on_lost(self, event: i.TaskLost) -> None:
        if not self._tasks.is_current(event.task, event.incarnation):
            return
        self._tasks.lose(event.task)
        if self._tasks.deployed:
            self.fail(f"{event.task}: {event.reason}", FailureKind.RAISED)

    def _on_resolved(self, message: TransactionsResolved) -> None:
        if not message.sweep:
            self._takeover.on_resolved(message.sink)
        elif self.attempt is not None:
            self.attempt.on_swept(message.sink)

    def resolution(self, sink: str, *, sweep: bool = False) -> ResolveTransactions:
        """What a sink must settle: before the first row, and once more at the very end."""
        return self._takeover.resolution(sink, sweep=sweep)

    def begin_resolving(self) -> None:
        """Every task has joined the epoch."""
        self._set_status(JobStatus.RESOLVING)

    def start(self) -> None:
        """All that earlier epochs left is settled: process, or end if that was all."""
        if self._ending is not None:
            self._end(self._ending, self.reason)
            return
        first = self._takeover.first_checkpoint_id
        self.attempt = Attempt(self, first, self._takeover.manifest, self.now)
        self._set_status(JobStatus.RUNNING)
        self._resend()

    # ------------------------------------------------------------------ time and repeats

    def _tick(self) -> None:
        self.emit(*self.requests.due(self.now))
        if self._restart_at is not None and self._restart_at <= self.now:
            self._begin_attempt()
            return
        silence = self._tasks.drop_silent(self.now)
        if silence is not None:
            self.fail(silence, FailureKind.RAISED)
            return
        if self._resend_at <= self.now:
            self._resend()
        if self.attempt is not None:
            self.attempt.tick()

    def _resend(self) -> None:
        """Say again what has not been answered; receivers ignore what they have done."""
        self._resend_at = self.now + self.rules.resend_interval
        for task in self.shape.tasks:
            phase = self.phase_of(task)
            if self.status is JobStatus.DEPLOYING and phase is TaskPhase.BLANK:
                self.send(task, self._takeover.reset_order())
            elif self.attempt is not None and phase is TaskPhase.READY:
                self.send(task, StartTask(epoch=self.epoch))
        self._takeover.resend()
        if self.attempt is not None:
            self.attempt.resend()

    # -------------------------------------------------------------------------- storage

    def storage(self, kind: Callable[..., i.Instruction], *arguments: object) -> None:
        """Ask storage for something; the answer carries the request's number."""
        self.emit(self.requests.ask(kind, *arguments))

    def _on_storage_failed(self, event: i.StorageFailed) -> None:
        if self.requests.failed(event.request) is None:
            return
        if event.permanent:
            self._end(JobStatus.FAILED, event.reason)
        elif self.requests.exhausted:
            self.fail(f"storage: {event.reason}", FailureKind.RAISED)
        else:
            self.requests.retry(event.request, at=self.now + self.rules.storage_retry)

    # -------------------------------------------------------------------------- failure

    def fail(self, reason: str, kind: FailureKind) -> None:
        """This attempt is over; decide whether there is another (rule 14)."""
        if self.status.terminal or self.status is JobStatus.RESTARTING:
            return
        delay = None
        if kind is not FailureKind.PERMANENT:
            delay = self.backoff.on_failure(self.now, self._jitter())
        if delay is None:
            self._end(JobStatus.FAILED, reason)
            return
        self.restarts += 1
        self._begin_restart(reason, delay)

    def _begin_restart(self, reason: str, delay: float) -> None:
        self.attempt = None
        self.requests.clear()
        self._set_status(JobStatus.RESTARTING, reason)
        self._restart_at = self.now + delay
        if delay <= 0:
            self._begin_attempt()

    def _begin_ending(self, status: JobStatus, reason: str) -> None:
        """Settle every transaction under a new epoch, then end without processing."""
        if self._ending is not None:
            return
        if self.epoch == 0:
            self._end(status, reason)
            return
        self._ending = status
        self._begin_restart(reason, 0.0)
        self.reason = reason

    def fenced(self, by: int) -> None:
        """A newer epoch was found: this run stops."""
        self._end(
            JobStatus.FENCED,
            f"epoch {by} has been claimed by another run of this job; epoch {self.epoch} stops "
            f"and touches nothing more. If that was not intended, give the runs different names.",
        )

    def finish(self, status: JobStatus, reason: str = "") -> None:
        """The attempt has ended well."""
        self._end(status, reason)

    # -------------------------------------------------------------------------- helpers

    def send(self, task: TaskId, message: i.ToTask) -> None:
        """Deliver a message to a task."""
        self._out.append(i.Send(task, message))

    def emit(self, *instructions: i.Instruction) -> None:
        """Hand instructions out."""
        self._out += instructions

    def begin_finishing(self) -> None:
        """All input has ended."""
        self._set_status(JobStatus.FINISHING)

    @property
    def sink_tasks(self) -> Sequence[TaskId]:
        """Every task that takes part in two-phase commit."""
        return [task for tasks in self.shape.sinks.values() for task in tasks]

    def _end(self, status: JobStatus, reason: str) -> None:
        self.attempt = None
        self.requests.clear()
        self._set_status(status, reason)

    def _set_status(self, status: JobStatus, reason: str = "") -> None:
        self.status = status
        if reason:
            self.reason = reason
        self._out.append(i.ReportStatus(status, reason))
