"""The coordinator core: one attempt after another to run a job, as a pure state machine.

Why it exists: every rule about *order* that exactly-once rests on is in this class and in
``attempt.py`` (what happens while an attempt runs). Events in, instructions out; time and
randomness are handed in.

    CREATED ─> CLAIMING ─> RESTORING ─> DEPLOYING ─> RESOLVING ─> RUNNING ─> FINISHING ─> end
                  ^                                                  │
                  └────────────── RESTARTING <───────── failure ─────┘

    CLAIMING    an epoch record is created: from here on, older attempts are fenced
    RESTORING   the catalog is read, a checkpoint chosen, the choice recorded
    DEPLOYING   dead tasks are replaced, all are reset to the checkpoint
    RESOLVING   transactions up to it are committed, later ones aborted, before any new row
    RUNNING     checkpoints and commits (``attempt.py``)
    FINISHING   all input has ended: one final checkpoint, its commit, the end

May import: errors, identifiers, records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from helios_ray.errors import CheckpointNotFoundError
from helios_ray.identifiers import TaskId
from helios_ray.protocol import instructions as i
from helios_ray.protocol.attempt import Attempt
from helios_ray.protocol.checkpoints import CheckpointRules
from helios_ray.protocol.instructions import JobStatus
from helios_ray.protocol.messages import (
    FailureKind,
    Heartbeat,
    ResetTask,
    ResolveTransactions,
    StartTask,
    TaskFailed,
    TaskPhase,
    TransactionsResolved,
)
from helios_ray.protocol.recovery import (
    Catalog,
    abandoned_ids,
    first_checkpoint_id,
    pick_restore,
)
from helios_ray.protocol.restart import ExponentialBackoff, RestartStrategy
from helios_ray.records import EpochRecord, Manifest, RestoreRecord


_RANK = {phase: rank for rank, phase in enumerate(TaskPhase)}


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
        self.restored: int | None = None
        self._wanted = restore
        self._jitter = jitter
        self._restart = rules.restart.begin()
        self._request = 0
        self._waiting: dict[int, i.Instruction] = {}
        self._retry_at: dict[int, float] = {}
        self._storage_failures = 0
        self._claim = 0
        self._catalog = Catalog()
        self._record: RestoreRecord | None = None
        self._manifest: Manifest | None = None
        self._blank = set(shape.tasks)
        self._incarnations = dict.fromkeys(shape.tasks, 0)
        self._phases: dict[TaskId, TaskPhase] = {}
        self._heard: dict[TaskId, float] = {}
        self._unresolved: set[str] = set()
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
        times = [*self._retry_at.values(), self._resend_at]
        if self._restart_at is not None:
            times.append(self._restart_at)
        if self.attempt is not None:
            times += self.attempt.wakeups()
        times += [heard + self._patience(task) for task, heard in self._heard.items()]
        return min(times)

    def _patience(self, task: TaskId) -> float:
        blank = self.phase_of(task) is TaskPhase.BLANK
        return self.rules.deploy_timeout if blank else self.rules.heartbeat_timeout

    def phase_of(self, task: TaskId) -> TaskPhase:
        """How far a task has come in the current epoch, as far as is known."""
        return self._phases.get(task, TaskPhase.BLANK)

    # ------------------------------------------------------------------------- dispatch

    def _dispatch(self, event: i.Event) -> None:
        match event:
            case i.Begin():
                if self.status is JobStatus.CREATED:
                    self._begin_attempt()
            case i.Tick():
                self._tick()
            case i.CatalogRead(request, catalog):
                if self._answered(request):
                    self._on_catalog(catalog)
            case i.ManifestRead(request, manifest):
                if self._answered(request):
                    self._manifest = manifest
                    self._deploy()
            case i.EpochsRead(request, epochs):
                if self._answered(request) and self.attempt is not None:
                    self.attempt.on_epochs(epochs)
            case i.RecordWritten(request, existing):
                written = self._waiting.get(request)
                if self._answered(request):
                    assert isinstance(written, i.WriteRecord)
                    self._on_written(written, existing)
            case i.StorageFailed():
                self._on_storage_failed(event)
            case i.CheckpointRequested():
                if self.attempt is not None:
                    self.attempt.request_checkpoint()
            case i.TaskLost():
                self._on_lost(event)
            case i.StopRequested():
                if self.attempt is not None:
                    self.attempt.request_stop()
                else:
                    self._begin_ending(JobStatus.STOPPED, "stopped while it was not running")
            case i.CancelRequested():
                self._begin_ending(JobStatus.CANCELLED, "cancelled")
            case _:
                self._on_message(event)

    def _on_message(self, message: i.ToCoordinator) -> None:
        if message.epoch != self.epoch or message.task not in self._heard:
            return  # of a fenced epoch, or of an epoch that has not begun: rule 13
        self._heard[message.task] = self.now
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

    # ---------------------------------------------------------------- claiming an epoch

    def _begin_attempt(self) -> None:
        self.attempt = None
        self._waiting.clear()
        self._retry_at.clear()
        self._storage_failures = 0
        self._heard.clear()
        self._phases.clear()
        self._restart_at = None
        self._set_status(JobStatus.CLAIMING)
        self._claim = 0
        self.storage(i.ReadCatalog)

    def _on_catalog(self, catalog: Catalog) -> None:
        self._catalog = catalog
        if self.status is JobStatus.CLAIMING:
            # Never the same epoch twice: an unanswered claim may yet land.
            self._claim = max(catalog.newest_epoch, self._claim, self.epoch) + 1
            headroom = self.rules.checkpoints.headroom
            record = EpochRecord(epoch=self._claim, owner=self.owner, headroom=headroom)
            self.storage(i.WriteRecord, record)
            return
        if catalog.newest_epoch > self.epoch:
            self._fenced(catalog.newest_epoch)
            return
        try:
            chosen = pick_restore(catalog, self._wanted)
        except CheckpointNotFoundError as error:
            self._end(JobStatus.FAILED, str(error))
            return
        self.restored = None if chosen is None else chosen.checkpoint_id
        self._record = RestoreRecord(
            epoch=self.epoch,
            owner=self.owner,
            checkpoint_id=self.restored,
            first_checkpoint_id=first_checkpoint_id(catalog),
        )
        self.storage(i.WriteRecord, self._record)

    def _on_written(self, written: i.WriteRecord, existing: object) -> None:
        record = written.record
        match record:
            case EpochRecord(epoch=epoch):
                if existing is not None and existing != record:
                    self.storage(i.ReadCatalog)  # somebody else took it: claim a later one
                    return
                self.epoch = epoch
                self._set_status(JobStatus.RESTORING)
                # Read again: only what is seen after the claim decides (see recovery.py).
                self.storage(i.ReadCatalog)
            case RestoreRecord(checkpoint_id=checkpoint_id):
                # From here on this attempt's choice stands; later attempts take the latest.
                self._wanted = "latest"
                self._manifest = None
                if checkpoint_id is None:
                    self._deploy()
                else:
                    self.storage(i.ReadManifest, checkpoint_id)
            case _:
                if self.attempt is not None:
                    self.attempt.on_written(record, existing)

    # ----------------------------------------------------------- deploying and resolving

    def _deploy(self) -> None:
        self._set_status(JobStatus.DEPLOYING)
        for task in self.shape.tasks:
            if task in self._blank:
                self._incarnations[task] += 1
                self._out.append(i.ReplaceTask(task, self._incarnations[task]))
            self._heard[task] = self.now
            self._phases[task] = TaskPhase.BLANK
        self._blank.clear()
        self._resend()

    def _on_heartbeat(self, beat: Heartbeat) -> None:
        if _RANK[beat.phase] > _RANK[self.phase_of(beat.task)]:
            self._phases[beat.task] = beat.phase
            if self.attempt is not None:
                self.attempt.on_phase(beat.task, beat.phase)
        if beat.phase is TaskPhase.FAILED:
            # The message that said why was lost.
            self.fail(f"{beat.task}: failed", FailureKind.RAISED)
        elif beat.stalled_for > self.rules.stall_timeout:
            self._blank.add(beat.task)
            self.fail(
                f"{beat.task}: has not returned from one call for {beat.stalled_for:.0f} s",
                FailureKind.RAISED,
            )
        elif self.status is JobStatus.DEPLOYING and all(
            self.phase_of(t) is not TaskPhase.BLANK for t in self.shape.tasks
        ):
            self._resolve()

    def _on_lost(self, event: i.TaskLost) -> None:
        if event.incarnation != self._incarnations[event.task]:
            return
        self._blank.add(event.task)
        if self._heard:
            self.fail(f"{event.task}: {event.reason}", FailureKind.RAISED)

    def _resolve(self) -> None:
        self._set_status(JobStatus.RESOLVING)
        self._unresolved = set(self.shape.sinks)
        if self._unresolved:
            self._resend()
        else:
            self._start()

    def _on_resolved(self, message: TransactionsResolved) -> None:
        if message.sweep:
            if self.attempt is not None:
                self.attempt.on_swept(message.sink)
        elif self.status is JobStatus.RESOLVING:
            self._unresolved.discard(message.sink)
            if not self._unresolved:
                self._start()

    def resolution(self, sink: str, *, sweep: bool = False) -> ResolveTransactions:
        """What a sink must settle: before the first row, and once more at the very end."""
        prepared = self._manifest.prepared if self._manifest is not None and not sweep else ()
        chosen = next(
            (c for c in self._catalog.checkpoints if c.checkpoint_id == self.restored), None
        )
        before = 1 if self._manifest is None else self._manifest.parallelism.get(sink, 1)
        return ResolveTransactions(
            epoch=self.epoch,
            sink=sink,
            commit=tuple(p for p in prepared if p.sink == sink),
            abort_epochs=abandoned_ids(self._catalog, chosen),
            width=max(self.shape.parallelism.get(sink, 1), before),
            sweep=sweep,
        )

    def _start(self) -> None:
        if self._ending is not None:
            self._end(self._ending, self.reason)
            return
        assert self._record is not None
        self.attempt = Attempt(self, self._record.first_checkpoint_id, self._manifest, self.now)
        self._set_status(JobStatus.RUNNING)
        self._resend()

    # ------------------------------------------------------------------ time and repeats

    def _tick(self) -> None:
        for request in [r for r, at in self._retry_at.items() if at <= self.now]:
            del self._retry_at[request]
            instruction = self._waiting.get(request)
            if instruction is not None:
                self._out.append(instruction)
        if self._restart_at is not None and self._restart_at <= self.now:
            self._begin_attempt()
            return
        silent = [
            task for task, heard in self._heard.items() if self.now - heard >= self._patience(task)
        ]
        if silent:
            for task in silent:
                self._blank.add(task)
                del self._heard[task]
            names = ", ".join(map(str, silent))
            self.fail(
                f"{names}: no sign of life for {self._patience(silent[0]):.0f} s",
                FailureKind.RAISED,
            )
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
                assert self._record is not None
                first = self._record.first_checkpoint_id
                self.send(
                    task,
                    ResetTask(epoch=self.epoch, manifest=self._manifest, first_checkpoint_id=first),
                )
            elif self.attempt is not None and phase is TaskPhase.READY:
                self.send(task, StartTask(epoch=self.epoch))
        if self.status is JobStatus.RESOLVING:
            for sink in sorted(self._unresolved):
                self.send(self.shape.sinks[sink][0], self.resolution(sink))
        if self.attempt is not None:
            self.attempt.resend()

    # -------------------------------------------------------------------------- storage

    def storage(
        self, kind: Callable[..., i.Instruction], *arguments: object, after: float | None = None
    ) -> None:
        """Ask storage for something; the answer carries the request's number."""
        self._request += 1
        instruction = kind(self._request, *arguments)
        self._waiting[self._request] = instruction
        if after is None:
            self._out.append(instruction)
        else:
            self._retry_at[self._request] = after

    def _answered(self, request: int) -> bool:
        """Whether anyone still waits for this answer."""
        self._retry_at.pop(request, None)
        if self._waiting.pop(request, None) is None:
            return False
        self._storage_failures = 0
        return True

    def _on_storage_failed(self, event: i.StorageFailed) -> None:
        instruction = self._waiting.get(event.request)
        if instruction is None:
            return
        self._storage_failures += 1
        if event.permanent:
            self._end(JobStatus.FAILED, event.reason)
        elif self._storage_failures >= self.rules.storage_attempts:
            self.fail(f"storage: {event.reason}", FailureKind.RAISED)
        elif isinstance(instruction, i.WriteRecord) and isinstance(instruction.record, EpochRecord):
            # An unanswered claim may yet land. A later epoch is as good, and certain.
            del self._waiting[event.request]
            self.storage(i.ReadCatalog, after=self.now + self.rules.storage_retry)
        else:
            # Creating the same record again is safe: it either stands there already, and is
            # ours, or it does not.
            self._retry_at[event.request] = self.now + self.rules.storage_retry

    # -------------------------------------------------------------------------- failure

    def fail(self, reason: str, kind: FailureKind) -> None:
        """This attempt is over; decide whether there is another (rule 14)."""
        if self.status.terminal or self.status is JobStatus.RESTARTING:
            return
        delay = None
        if kind is not FailureKind.PERMANENT:
            delay = self._restart.on_failure(self.now, self._jitter())
        if delay is None:
            self._end(JobStatus.FAILED, reason)
            return
        self.restarts += 1
        self._begin_restart(reason, delay)

    def _begin_restart(self, reason: str, delay: float) -> None:
        self.attempt = None
        self._waiting.clear()
        self._retry_at.clear()
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

    def _fenced(self, by: int) -> None:
        self._end(
            JobStatus.FENCED,
            f"epoch {by} has been claimed by another run of this job; epoch {self.epoch} stops "
            f"and touches nothing more. If that was not intended, give the runs different names.",
        )

    def fenced(self, by: int) -> None:
        """The attempt found a newer epoch."""
        self._fenced(by)

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
        self._waiting.clear()
        self._retry_at.clear()
        self._set_status(status, reason)

    def _set_status(self, status: JobStatus, reason: str = "") -> None:
        self.status = status
        if reason:
            self.reason = reason
        self._out.append(i.ReportStatus(status, reason))
