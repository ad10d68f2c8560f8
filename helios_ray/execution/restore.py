"""Which state a task takes up from a checkpoint.

Why it exists: the rules of sharing out state (by key group, to all, one copy, dealt out)
in one place, for the same and for another parallelism. Pure: the driver loads the objects.

May import: plan, operators, state, records and below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.errors import StateMismatchError
from helios_ray.identifiers import TaskId
from helios_ray.operators.base import OperatorSnapshot, StateKind, StateTable
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.records import Manifest, StateObject, TaskSnapshot
from helios_ray.state.key_groups import key_group_range


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredTask:
    """What a task starts an epoch with.

    Args:
        state: state tables by operator uid.
        watermark: event time announced downstream before the checkpoint (µs).
        finished: the task had seen the end of its input and flushed its operators.
    """

    state: Mapping[str, OperatorSnapshot] = field(default_factory=dict)
    watermark: int = MIN_TIMESTAMP
    finished: bool = False


def check_manifest(manifest: Manifest, plan: PhysicalPlan) -> None:
    """Raise if a checkpoint does not fit a job.

    Raises:
        StateMismatchError: the number of key groups differs, or state belongs to an operator
            uid that the job does not have (rule 18).
    """
    if manifest.max_parallelism != plan.max_parallelism:
        raise StateMismatchError(
            f"checkpoint {manifest.checkpoint_id} of job {manifest.job!r} is cut into "
            f"{manifest.max_parallelism} key groups, the job asks for {plan.max_parallelism}. "
            f"Set max_parallelism={manifest.max_parallelism} to restore it."
        )
    known = set(plan.parallelism)
    owners = {o.operator for t in manifest.tasks for o in t.objects}
    missing = sorted(owners - known)
    if missing:
        raise StateMismatchError(
            f"checkpoint {manifest.checkpoint_id} of job {manifest.job!r} holds state of "
            f"operators that the job does not have: {missing}; the job has {sorted(known)}. "
            f"Give those operators their uid back, or start afresh with restore=None."
        )


def objects_for(manifest: Manifest, plan: PhysicalPlan, task: TaskId) -> list[StateObject]:
    """The objects that a task has to load.

    Args:
        manifest: the checkpoint.
        plan: the job as it will run.
        task: whose state.
    """
    chain = plan.chain(task.operator)
    uids = set(chain.uids)
    return [
        o
        for snapshot in manifest.tasks
        for o in snapshot.objects
        if o.operator in uids
        and _wanted(o, task.subtask, chain.parallelism, manifest.parallelism[o.operator], manifest)
    ]


def _wanted(o: StateObject, subtask: int, now: int, before: int, manifest: Manifest) -> bool:
    kind = StateKind(o.kind)
    if kind is StateKind.UNION:
        return True
    if kind is StateKind.BROADCAST:
        return o.subtask == subtask % before
    if now == before:
        return o.subtask == subtask
    if kind is StateKind.KEYED:
        mine = key_group_range(subtask, now, manifest.max_parallelism)
        theirs = key_group_range(o.subtask, before, manifest.max_parallelism)
        return mine.start < theirs.stop and theirs.start < mine.stop
    return True


def share_out(
    loaded: Iterable[tuple[StateObject, pa.Table]],
    manifest: Manifest,
    plan: PhysicalPlan,
    task: TaskId,
) -> RestoredTask:
    """Cut what ``objects_for`` named, once loaded, down to what the task owns."""
    chain = plan.chain(task.operator)
    groups = key_group_range(task.subtask, chain.parallelism, plan.max_parallelism)
    gathered: dict[tuple[str, str], tuple[StateKind, list[pa.Table]]] = {}
    for o, table in loaded:
        kind = StateKind(o.kind)
        same = manifest.parallelism[o.operator] == chain.parallelism
        if kind is StateKind.KEYED and not same:
            column = table.column("key_group")
            inside = pc.and_(pc.greater_equal(column, groups.start), pc.less(column, groups.stop))
            table = table.filter(inside)
        gathered.setdefault((o.operator, o.name), (kind, []))[1].append(table)
    state: dict[str, OperatorSnapshot] = {}
    for (uid, name), (kind, tables) in gathered.items():
        table = pa.concat_tables(tables, promote_options="default")
        if kind is StateKind.SPLIT and manifest.parallelism[uid] != chain.parallelism:
            every_nth = range(task.subtask, table.num_rows, chain.parallelism)
            table = table.take(pa.array(every_nth, pa.int64()))
        state.setdefault(uid, {})[name] = StateTable(kind, table)
    before = [s for s in manifest.tasks if s.task.operator == task.operator]
    return RestoredTask(
        state=state,
        watermark=_watermark(before, task, chain.parallelism),
        finished=_finished(before, task, chain.parallelism),
    )


def _watermark(before: list[TaskSnapshot], task: TaskId, parallelism: int) -> int:
    if len(before) == parallelism:
        before = [s for s in before if s.task == task]
    return min((s.watermark for s in before), default=MIN_TIMESTAMP)


def _finished(before: list[TaskSnapshot], task: TaskId, parallelism: int) -> bool:
    if not any(s.finished for s in before):
        return False
    if len(before) == parallelism:
        return any(s.task == task and s.finished for s in before)
    if all(s.finished for s in before):
        return True
    raise StateMismatchError(
        f"operator {task.operator!r} had finished on some of its {len(before)} subtasks and not "
        f"on others, and is to run on {parallelism}: what they flushed cannot be told apart. "
        f"Restore with parallelism={len(before)}."
    )
