"""Planted bugs in what the coordinator decides.

Why it exists: see the package.

May import: protocol, checkpoint, and the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from helios_ray.checkpoint.retention import RetentionPlan
from helios_ray.protocol import recovery, takeover
from helios_ray.protocol.attempt import Attempt
from helios_ray.protocol.checkpoints import PendingCheckpoint
from helios_ray.protocol.commits import CommitRound
from helios_ray.protocol.coordinator import CoordinatorCore
from helios_ray.protocol.instructions import JobStatus
from helios_ray.protocol.messages import CommitCheckpoint, ResolveTransactions
from helios_ray.protocol.recovery import Catalog, CheckpointSummary
from helios_ray.protocol.takeover import Takeover
from helios_ray.records import Record
from helios_ray.simulation import control
from helios_ray.simulation.mutants import Mutant
from helios_ray.simulation.storage import SimStorage, path_of

Original: TypeAlias = Callable[..., Any]


def commit_before_manifest(original: Original) -> Original:
    def write_manifest(self: Attempt, pending: PendingCheckpoint) -> None:
        original(self, pending)
        core = self._core
        for task in core.sink_tasks:
            message = CommitCheckpoint(epoch=core.epoch, checkpoint_id=pending.checkpoint_id)
            core.send(task, message)

    return write_manifest


def no_look_at_epochs(_: Original) -> Original:
    def check_ownership(self: Attempt) -> None:
        self._checked, self._durable = self._durable, []
        if self._checked:
            self.on_epochs((self._core.epoch,))

    return check_ownership


def no_look_after_choice(_: Original) -> Original:
    def on_recorded(self: Takeover) -> None:
        self.on_epochs((self._core.epoch,))

    return on_recorded


def prepared_is_aborted(original: Original) -> Original:
    def settle(*args: Any, **kwargs: Any) -> ResolveTransactions:
        wanted: ResolveTransactions = original(*args, **kwargs)
        return replace(wanted, commit=())

    return settle


def no_fencing_of_answers(original: Original) -> Original:
    def on_message(self: CoordinatorCore, message: Any) -> None:
        original(self, replace(message, epoch=self.epoch))

    return on_message


def records_are_overwritten(_: Original) -> Original:
    def create(self: SimStorage, record: Record) -> Record | None:
        self.records[path_of(record)] = record
        self.on_record(record)
        return None

    return create


def ids_without_headroom(_: Original) -> Original:
    def first_checkpoint_id(catalog: Catalog) -> int:
        return max((c.checkpoint_id for c in catalog.checkpoints), default=0) + 1

    return first_checkpoint_id


def every_manifest_counts(_: Original) -> Original:
    def valid_checkpoints(catalog: Catalog) -> list[CheckpointSummary]:
        return sorted(catalog.checkpoints, key=lambda c: c.checkpoint_id)

    return valid_checkpoints


def no_wait_for_settlement(original: Original) -> Original:
    def resolve(self: Takeover) -> None:
        original(self)
        if self._core.status is JobStatus.RESOLVING:
            self._core.start()

    return resolve


def no_final_checkpoint(_: Original) -> Original:
    def begin_finishing(self: CoordinatorCore) -> None:
        self.finish(JobStatus.FINISHED)

    return begin_finishing


def first_answer_counts_for_all(original: Original) -> Original:
    def acknowledged(self: CommitRound, task: Any) -> bool:
        original(self, task)
        return True

    return acknowledged


def probes_nothing(_: Original) -> Original:
    def abandoned_ids(*_: Any) -> tuple[tuple[int, int, int], ...]:
        return ()

    return abandoned_ids


def no_count_of_references(_: Original) -> Original:
    def plan(_: Mapping[int, Any], objects: Mapping[str, int], **rules: Any) -> RetentionPlan:
        old = sorted(p for p, epoch in objects.items() if epoch < rules["current_epoch"])
        return RetentionPlan(objects=tuple(old))

    return plan


def newest_is_dropped(original: Original) -> Original:
    def plan(manifests: Mapping[int, Any], objects: Mapping[str, int], **rules: Any) -> Any:
        planned = original(manifests, objects, **rules)
        return replace(planned, checkpoints=tuple(sorted(manifests)))

    return plan


def suspended_forever(_: Original) -> Original:
    def acknowledge(self: PendingCheckpoint, snapshot: Any, now: float) -> bool:
        self.waiting.discard(snapshot.task)
        self.snapshots.setdefault(snapshot.task, snapshot)
        self.duration = now - self.started
        return len(self.waiting) <= 1

    return acknowledge


MUTANTS = [
    Mutant(
        "commit-before-manifest",
        "Rule 1: sinks commit once all have acknowledged, not once the manifest is durable.",
        Attempt,
        "_write_manifest",
        commit_before_manifest,
    ),
    Mutant(
        "commit-unchecked",
        "Rule 13: after the manifest nobody looks whether the epoch is still the newest.",
        Attempt,
        "_check_ownership",
        no_look_at_epochs,
    ),
    Mutant(
        "restore-unchecked",
        "Rule 13: after the restore record nobody looks whether the epoch is still the newest.",
        Takeover,
        "on_recorded",
        no_look_after_choice,
    ),
    Mutant(
        "prepared-aborted-on-restore",
        "Rule 2: what the restored checkpoint had prepared is aborted instead of committed.",
        takeover,
        "settlement",
        prepared_is_aborted,
    ),
    Mutant(
        "answers-unfenced",
        "Rule 13: acknowledgements of older epochs count.",
        CoordinatorCore,
        "_on_message",
        no_fencing_of_answers,
    ),
    Mutant(
        "records-overwritten",
        "Rules 1 and 13: records are written over what stands in their place.",
        SimStorage,
        "create",
        records_are_overwritten,
    ),
    Mutant(
        "ids-reused",
        "Rule 7: an epoch begins right after the last durable checkpoint, not beyond the ids "
        "that its predecessor may have used without a trace.",
        takeover,
        "first_checkpoint_id",
        ids_without_headroom,
    ),
    Mutant(
        "restore-record-ignored",
        "Rule 13: a manifest that landed after its epoch was fenced is resumed from.",
        recovery,
        "valid_checkpoints",
        every_manifest_counts,
    ),
    Mutant(
        "processing-before-settlement",
        "Rule 2: rows are processed before the transactions of earlier epochs are settled.",
        Takeover,
        "resolve",
        no_wait_for_settlement,
    ),
    Mutant(
        "final-checkpoint-skipped",
        "Rule 8: a bounded job ends without a checkpoint after the last record.",
        CoordinatorCore,
        "begin_finishing",
        no_final_checkpoint,
    ),
    Mutant(
        "first-commit-counts-for-all",
        "Rule 4: a checkpoint counts as committed when the first sink subtask says so.",
        CommitRound,
        "acknowledged",
        first_answer_counts_for_all,
    ),
    Mutant(
        "one-snapshot-missing",
        "Rule 1: a manifest is written while one task has not acknowledged.",
        PendingCheckpoint,
        "acknowledge",
        suspended_forever,
    ),
    Mutant(
        "probes-nothing",
        "Rule 6: sinks that cannot list are not asked about ids that older epochs may have used.",
        recovery,
        "abandoned_ids",
        probes_nothing,
    ),
    Mutant(
        "references-uncounted",
        "Rule 17: objects of older epochs are deleted although a manifest needs them.",
        control,
        "plan_retention",
        no_count_of_references,
    ),
    Mutant(
        "newest-dropped",
        "Rule 17: retention drops the newest checkpoint too.",
        control,
        "plan_retention",
        newest_is_dropped,
    ),
]
