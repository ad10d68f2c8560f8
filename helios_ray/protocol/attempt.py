"""A running attempt: checkpoints, their manifests, their commits, the final one, the end.

Why it exists: rules 1, 3, 4, 7, 8 and 17 of the protocol. The order for each checkpoint is

    trigger ─> all acknowledge ─> manifest durable ─> still the newest epoch? ─> commit
            ─> every sink acknowledged ─> committed marker durable ─> retention

and no step is taken before the one to its left is known to have happened.

May import: identifiers, records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from helios_ray.identifiers import TaskId
from helios_ray.protocol import instructions as i
from helios_ray.protocol.checkpoints import CheckpointScheduler, PendingCheckpoint
from helios_ray.protocol.commits import CommitRound
from helios_ray.protocol.drift import DriftControl
from helios_ray.protocol.instructions import JobStatus
from helios_ray.protocol.messages import (
    AbortCheckpoint,
    CommitAcknowledged,
    CommitCheckpoint,
    FailureKind,
    SnapshotAcknowledged,
    SnapshotDeclined,
    SourceProgress,
    TaskPhase,
    TriggerCheckpoint,
)
from helios_ray.protocol.recovery import same_writer, still_owner
from helios_ray.records import CommittedMarker, Manifest, Record

if TYPE_CHECKING:
    from helios_ray.protocol.coordinator import CoordinatorCore

MOST_UNCOMMITTED = 8
"""Complete checkpoints whose commits may be outstanding before triggering pauses: while a sink
cannot commit, neither manifests nor prepared transactions pile up without end."""

_ENDED = (TaskPhase.DRAINING, TaskPhase.FINISHED)
"""Phases of a task whose input has ended."""


class Attempt:
    """What the coordinator remembers while an epoch processes.

    Args:
        core: whose attempt this is.
        first_id: the first checkpoint id of this epoch.
        restored: the checkpoint it resumed from; its transactions are settled already.
        now: seconds.
    """

    def __init__(
        self, core: CoordinatorCore, first_id: int, restored: Manifest | None, now: float
    ) -> None:
        self._core = core
        self._scheduler = CheckpointScheduler(core.rules.checkpoints, first_id, now)
        self._drift = DriftControl(core.shape)
        self._ended: set[TaskId] = set()
        self._finished: set[TaskId] = set()
        self._durable: list[Manifest] = []
        self._checked: list[Manifest] = []
        self._rounds: dict[int, CommitRound] = {}
        self._manifests: dict[int, Manifest] = {}
        self._stopping = core.stopping
        self._stop_id: int | None = None
        self._unswept: set[str] | None = None
        self._end_status = JobStatus.FINISHED
        if restored is not None:
            # Resolving committed it; say so durably before anything else may rely on it.
            self._manifests[restored.checkpoint_id] = restored
            self._write_marker(restored.checkpoint_id)

    @property
    def pending(self) -> dict[int, PendingCheckpoint]:
        """Checkpoints under way."""
        return self._scheduler.pending

    @property
    def next_checkpoint_id(self) -> int:
        """The id that the next checkpoint will have."""
        return self._scheduler.next_id

    def wakeups(self) -> list[float]:
        """Times at which ``tick`` has something to do."""
        timeout = self._core.rules.checkpoints.timeout
        times = [p.started + timeout for p in self.pending.values()] + self._drift.wakeups()
        due = None
        if self._started and not self._last and not self._behind:
            due = self._scheduler.next_due()
        return times if due is None else [*times, due]

    # ----------------------------------------------------------------------- triggering

    def request_checkpoint(self) -> None:
        """A user wants one now."""
        self._scheduler.request()
        self._trigger_if_due()

    def request_stop(self) -> None:
        """A user wants the job to end with a last checkpoint."""
        self._stopping = True
        self._trigger_if_due()

    def on_phase(self, task: TaskId, phase: TaskPhase) -> None:
        """A task has come further: it runs, or it has seen the end of all its input."""
        if phase is TaskPhase.FINISHED:
            self._finished.add(task)
        if phase in _ENDED and task not in self._ended:
            self._ended.add(task)
            self._drift.on_finished(task)
            for pending in self.pending.values():
                # Its inputs bring no barrier any more; ask it directly (rule 8).
                if task in pending.waiting:
                    self._trigger_task(task, pending)
        self._trigger_if_due()

    @property
    def _all_finished(self) -> bool:
        return len(self._finished) == len(self._core.shape.tasks)

    def tick(self) -> None:
        """Time has passed."""
        now = self._core.now
        for checkpoint_id in self._scheduler.overdue(now):
            timeout = self._core.rules.checkpoints.timeout
            waiting = sorted(self.pending[checkpoint_id].waiting)
            missing = ", ".join(map(str, waiting[:5])) or "its manifest"
            self._checkpoint_failed(
                checkpoint_id, f"not complete after {timeout:g} s; waited for {missing}"
            )
            if self._core.attempt is not self:
                return
        self._send_limits()
        self._trigger_if_due()

    def _trigger_if_due(self) -> None:
        core = self._core
        if not self._started:
            return
        if self._all_finished and core.status is JobStatus.RUNNING:
            core.begin_finishing()
        last = self._last
        if last and self._unsettled:
            return  # the last checkpoint waits for those under way
        if self._behind or not self._scheduler.due(core.now, ignore_pause=last):
            return
        pending = self._scheduler.begin(
            core.shape.tasks,
            core.now,
            final=core.status is JobStatus.FINISHING,
            stop=self._stopping,
        )
        if pending.stop:
            self._stop_id = pending.checkpoint_id
        for task in core.shape.tasks:
            if task in core.shape.sources or task in self._ended:
                self._trigger_task(task, pending)

    @property
    def _behind(self) -> bool:
        """Whether commits lag so far that another checkpoint would only lengthen the queue."""
        return len(self._rounds) >= MOST_UNCOMMITTED

    @property
    def _unsettled(self) -> bool:
        """Whether an earlier checkpoint, its commit, or the end is still under way."""
        under_way = self.pending or self._durable or self._checked or self._rounds
        return bool(under_way) or self._unswept is not None

    @property
    def _last(self) -> bool:
        """Whether the next checkpoint is meant to be the last."""
        return self._core.status is JobStatus.FINISHING or self._stopping

    @property
    def _started(self) -> bool:
        return all(
            self._core.phase_of(t) in (TaskPhase.RUNNING, *_ENDED) for t in self._core.shape.tasks
        )

    def _trigger_task(self, task: TaskId, pending: PendingCheckpoint) -> None:
        self._core.send(
            task,
            TriggerCheckpoint(
                epoch=self._core.epoch, checkpoint_id=pending.checkpoint_id, suspend=pending.stop
            ),
        )

    # ------------------------------------------------------------------ acknowledgements

    def on_message(self, message: i.ToCoordinator) -> None:
        """A task answered."""
        match message:
            case SnapshotAcknowledged(checkpoint_id=checkpoint_id, snapshot=snapshot):
                pending = self.pending.get(checkpoint_id)
                if pending is not None and pending.acknowledge(snapshot, self._core.now):
                    self._write_manifest(pending)
            case SnapshotDeclined(task=task, checkpoint_id=checkpoint_id, reason=reason):
                self._checkpoint_failed(checkpoint_id, f"{task}: {reason}")
            case CommitAcknowledged(task=task, checkpoint_id=checkpoint_id):
                self._on_commit_acknowledged(task, checkpoint_id)
            case SourceProgress():
                self._drift.on_progress(message)
                self._send_limits()

    def _send_limits(self, *, again: bool = False) -> None:
        self._core.emit(*self._drift.due(self._core.epoch, self._core.now, again=again))

    def _write_manifest(self, pending: PendingCheckpoint) -> None:
        core = self._core
        manifest = Manifest(
            job=core.shape.job,
            epoch=core.epoch,
            owner=core.owner,
            checkpoint_id=pending.checkpoint_id,
            created_at=core.now + core.wall_clock_offset,
            duration=pending.duration,
            max_parallelism=core.shape.max_parallelism,
            parallelism=dict(core.shape.parallelism),
            tasks=tuple(pending.snapshots[t] for t in sorted(pending.snapshots)),
            final=pending.final,
        )
        core.storage(i.WriteRecord, manifest)

    def on_written(self, record: Record, existing: object) -> None:
        """A manifest or a committed marker is durable, or another stands in its place."""
        if isinstance(record, CommittedMarker):
            self._on_marked(record.checkpoint_id)
            return
        assert isinstance(record, Manifest)
        if existing is not None and not same_writer(existing, record):
            self._checkpoint_failed(
                record.checkpoint_id, "its id was taken by another run of this job"
            )
            return
        # Durable, even if it had been given up meanwhile: then it is a checkpoint all the
        # same, and leaving it uncommitted would lose it on restore.
        self._durable.append(record)
        for older in self._scheduler.completed(record.checkpoint_id, self._core.now):
            self._abandon(older, "subsumed by a later checkpoint")
        # What they had prepared is part of this one.
        self._core.requests.withdraw_manifests(record.checkpoint_id)
        self._check_ownership()

    def _check_ownership(self) -> None:
        """Only epochs that are read *after* a manifest is durable decide about it."""
        if self._durable and not self._checked:
            self._checked, self._durable = self._durable, []
            self._core.storage(i.ReadEpochs)

    # -------------------------------------------------------------------------- commits

    def on_epochs(self, epochs: tuple[int, ...]) -> None:
        """Which epochs exist, read after the manifests in ``_checked`` were written."""
        core = self._core
        if not still_owner(epochs, core.epoch):
            core.fenced(max(epochs))
            return
        ready, self._checked = self._checked, []
        for manifest in ready:
            self._manifests[manifest.checkpoint_id] = manifest
            self._scheduler.confirmed(manifest.checkpoint_id)
            core.emit(
                i.ReportCheckpoint(
                    manifest.checkpoint_id, "completed", manifest.duration, manifest.state_size
                )
            )
            self._begin_commit(manifest)
        self._check_ownership()
        self._trigger_if_due()

    def _begin_commit(self, manifest: Manifest) -> None:
        core = self._core
        tasks = core.sink_tasks
        round_ = CommitRound(manifest.checkpoint_id, tasks, core.now)
        self._rounds[manifest.checkpoint_id] = round_
        if not tasks:
            self._write_marker(manifest.checkpoint_id)
            return
        for task in tasks:
            core.send(
                task, CommitCheckpoint(epoch=core.epoch, checkpoint_id=manifest.checkpoint_id)
            )

    def _on_commit_acknowledged(self, task: TaskId, checkpoint_id: int) -> None:
        for n in sorted(self._rounds):
            # A subtask that has committed up to a later id has committed up to this one.
            round_ = self._rounds[n]
            waited = n <= checkpoint_id and task in round_.waiting
            if waited and round_.acknowledged(task):
                self._write_marker(n)

    def _write_marker(self, checkpoint_id: int) -> None:
        self._core.storage(
            i.WriteRecord, CommittedMarker(checkpoint_id=checkpoint_id, epoch=self._core.epoch)
        )

    def _on_marked(self, checkpoint_id: int) -> None:
        core = self._core
        round_ = self._rounds.pop(checkpoint_id, None)
        manifest = self._manifests.pop(checkpoint_id)
        core.committed = max(checkpoint_id, core.committed or 0)
        duration = 0.0 if round_ is None else core.now - round_.started
        core.emit(
            i.ReportCheckpoint(checkpoint_id, "committed", duration),
            i.RetainCheckpoints(core.epoch, core.committed),
        )
        if round_ is None:
            return  # the restored checkpoint: it ends nothing
        core.backoff.on_progress()
        if manifest.final or checkpoint_id == self._stop_id:
            self._sweep(JobStatus.FINISHED if manifest.final else JobStatus.STOPPED)
        else:
            self._trigger_if_due()

    # ---------------------------------------------------------------------------- the end

    def _sweep(self, status: JobStatus) -> None:
        """All is committed. Settle what zombies of older epochs may have prepared since."""
        self._end_status = status
        self._unswept = set(self._core.shape.sinks)
        if not self._unswept:
            self._core.finish(status)
            return
        self.resend()

    def on_swept(self, sink: str) -> None:
        """No transaction of an older epoch is left at a sink."""
        if self._unswept is None:
            return
        self._unswept.discard(sink)
        if not self._unswept:
            self._core.finish(self._end_status)

    def resend(self) -> None:
        """Repeat commits and sweeps that have not been acknowledged, and limits of sources."""
        core = self._core
        self._send_limits(again=True)
        for round_ in self._rounds.values():
            for task in sorted(round_.waiting):
                core.send(
                    task, CommitCheckpoint(epoch=core.epoch, checkpoint_id=round_.checkpoint_id)
                )
        for sink in sorted(self._unswept or ()):
            core.send(core.shape.sinks[sink][0], core.resolution(sink, sweep=True))

    # -------------------------------------------------------------------------- failures

    def _abandon(self, checkpoint_id: int, reason: str) -> None:
        core = self._core
        core.emit(i.ReportCheckpoint(checkpoint_id, "failed", reason=reason))
        for task in core.shape.tasks:
            core.send(task, AbortCheckpoint(epoch=core.epoch, checkpoint_id=checkpoint_id))

    def _checkpoint_failed(self, checkpoint_id: int, reason: str) -> None:
        if checkpoint_id not in self.pending:
            return
        too_many = self._scheduler.failed(checkpoint_id, self._core.now)
        self._abandon(checkpoint_id, reason)
        if too_many:
            self._core.fail(f"checkpoint {checkpoint_id} failed: {reason}", FailureKind.RAISED)
        else:
            self._trigger_if_due()
