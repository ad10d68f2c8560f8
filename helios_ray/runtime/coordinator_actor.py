"""The coordinator's process: a Ray actor around the coordinator core.

Why it exists: one loop thread owns the core; actor methods only queue events or read the
latest report; storage calls run in a small pool. When this process dies, the tasks that it
made die with it (Ray's ownership), Ray starts it anew, and it resumes from storage alone.

May import: protocol, this room's io and deployment, and ``ray``.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import secrets
import threading
import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray

from helios_ray.checkpoint.config import CheckpointConfig
from helios_ray.checkpoint.layout import manifest_path
from helios_ray.connectors.base import Split
from helios_ray.execution.task import is_permanent
from helios_ray.identifiers import TaskId
from helios_ray.protocol import instructions as i
from helios_ray.protocol.coordinator import CoordinatorCore
from helios_ray.protocol.messages import (
    FailureKind,
    Heartbeat,
    ResetTask,
    TaskFailed,
    ToCoordinator,
    ToTask,
)
from helios_ray.runtime import failpoints
from helios_ray.runtime.clock import Clock
from helios_ray.runtime.coordinator_io import CoordinatorStorage
from helios_ray.runtime.deployment import (
    NAMESPACE,
    ResetOrder,
    TaskSpec,
    actor_name,
    cut_manifest,
    shape_of,
    unpack,
)
from helios_ray.runtime.metrics import MetricsExporter
from helios_ray.runtime.reports import CheckpointReport, JobReport, TaskMetrics
from helios_ray.runtime.task_actor import task_actor_class

logger = logging.getLogger("helios_ray.coordinator")

KEPT_REPORTS = 32
LINGER = 600.0
"""Seconds that the coordinator of an ended detached job stays, to be asked for its result."""


class CoordinatorActor:
    """See the module's docstring; made by :func:`coordinator_actor_class`."""

    def __init__(self, *parts: bytes) -> None:
        spec = unpack(parts)
        self._spec = spec
        self._clock = Clock()
        self._storage = CoordinatorStorage(spec)
        with warnings.catch_warnings():
            # Ray warns of a property of its own that these two use.
            warnings.simplefilter("ignore", DeprecationWarning)
            context = ray.get_runtime_context()
            restarted = context.was_current_actor_reconstructed
            self._self = context.current_actor
        self._core = CoordinatorCore(
            shape_of(spec.plan),
            spec.rules,
            owner=secrets.token_hex(8),
            # After its own death it continues what the user first asked for.
            restore="latest" if restarted else spec.restore,
            jitter=random.random,
        )
        self._failpoints = failpoints.of_coordinator(self._core)
        self._events: queue.Queue[i.Event] = queue.Queue()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="helios-storage")
        self._retention = ThreadPoolExecutor(1, thread_name_prefix="helios-retention")
        self._retaining: Future[None] | None = None
        self._tasks: dict[TaskId, Any] = {}
        self._task_class = task_actor_class()
        self._splits: dict[str, tuple[Split, ...]] = {}
        self._splits_epoch = 0
        self._splits_lock = threading.Lock()
        self._metrics: dict[TaskId, TaskMetrics] = {}
        self._checkpoints: deque[CheckpointReport] = deque(maxlen=KEPT_REPORTS)
        self._completed = 0
        self._failed = 0
        self._exporter = MetricsExporter(spec.plan.job)
        self._ended = threading.Event()
        self._lost = threading.Event()
        threading.Thread(target=self._loop, name="helios-coordinator", daemon=True).start()
        self._events.put(i.Begin())

    # --------------------------------------------------------------------- actor methods

    def tell(self, message: ToCoordinator) -> None:
        """A message from a task."""
        self._events.put(message)

    def beat(self, beat: Heartbeat, metrics: TaskMetrics) -> None:
        """A task lives; how it is doing."""
        self._metrics[beat.task] = metrics
        self._events.put(beat)

    def request(self, event: i.Event) -> JobReport:
        """A user's request; returns how things stood before it."""
        report = self.report()
        self._events.put(event)
        return report

    def report(self) -> JobReport:
        """Where the job stands."""
        core = self._core
        attempt = core.attempt
        return JobReport(
            job=self._spec.plan.job,
            status=core.status,
            reason=core.reason,
            epoch=core.epoch,
            restarts=core.restarts,
            restored=core.restored,
            committed=core.committed,
            next_checkpoint=None if attempt is None else attempt.next_checkpoint_id,
            checkpoints=tuple(self._checkpoints),
            completed_checkpoints=self._completed,
            failed_checkpoints=self._failed,
            tasks=tuple(self._metrics[t] for t in sorted(self._metrics)),
            now=self._clock.now(),
        )

    def task_handles(self) -> dict[TaskId, Any]:
        """Actor handles of the tasks; for tests that kill them and for operators."""
        return dict(self._tasks)

    def pid(self) -> int:
        """The process of the coordinator."""
        return os.getpid()

    def node(self) -> str:
        """The Ray node that it runs on."""
        return ray.get_runtime_context().get_node_id()

    def config(self) -> CheckpointConfig:
        """Where and how the job checkpoints; for those who attach to it."""
        return self._spec.config

    # ------------------------------------------------------------------------------ loop

    def _loop(self) -> None:
        published = 0.0
        while not self._core.status.terminal:
            wakeup = self._core.next_wakeup()
            wait = None if wakeup is None else max(0.001, wakeup - self._clock.now())
            try:
                event: i.Event = self._events.get(timeout=wait)
            except queue.Empty:
                event = i.Tick()
            if self._failpoints is not None:
                self._failpoints.hears(event)
            try:
                for instruction in self._core.handle(event, self._clock.now()):
                    self._perform(instruction)
            except Exception:
                # Carrying out failed, not deciding: the next tick repeats what matters.
                logger.exception("coordinator of %s", self._spec.plan.job)
            if self._clock.now() - published >= 1.0:
                published = self._clock.now()
                self._exporter.tasks(list(self._metrics.values()), published)
        self._shut_down()

    def _perform(self, instruction: i.Instruction) -> None:
        if self._failpoints is not None:
            self._failpoints.orders(instruction)
        match instruction:
            case i.Send(task, message):
                self._send(task, message)
            case i.ReplaceTask(task, incarnation):
                self._replace(task, incarnation)
            case i.RetainCheckpoints(epoch):
                # One at a time: what a slow store makes wait, the next one covers.
                if self._retaining is None or self._retaining.done():
                    self._retaining = self._retention.submit(self._storage.retain, epoch)
            case i.ReportCheckpoint():
                self._report_checkpoint(instruction)
            case i.ReportStatus(status, reason):
                level = logging.WARNING if reason else logging.INFO
                logger.log(level, "job %s: %s %s", self._spec.plan.job, status.value, reason)
                self._exporter.status(status, self._core.restarts)
            case _:
                self._pool.submit(self._ask_storage, instruction)

    def _ask_storage(self, instruction: i.Instruction) -> None:
        event = self._storage.answer(instruction)
        if self._failpoints is not None and isinstance(event, i.RecordWritten):
            self._failpoints.has_stored(instruction)
        if event is not None:
            self._events.put(event)

    # ------------------------------------------------------------------------------ tasks

    def _replace(self, task: TaskId, incarnation: int) -> None:
        old = self._tasks.pop(task, None)
        if old is not None:
            ray.kill(old, no_restart=True)
        spec = TaskSpec(
            plan=self._spec.plan,
            config=self._spec.config,
            options=self._spec.options,
            task=task,
            incarnation=incarnation,
            coordinator=self._self,
        )
        handle = self._start(task, incarnation, spec)
        self._tasks[task] = handle
        # The call ends only with the process: that is how its death is learnt at once.
        handle.lifeline.remote().future().add_done_callback(
            lambda f: self._on_death(task, incarnation, f)
        )

    def _start(self, task: TaskId, incarnation: int, spec: TaskSpec) -> Any:
        resources = self._spec.plan.chain(task.operator).resources
        options: dict[str, Any] = {
            "namespace": NAMESPACE,
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "resources": dict(resources.resources),
        }
        if resources.memory is not None:
            options["memory"] = resources.memory
        name = actor_name(self._spec.plan.job, task.operator, task.subtask)
        for suffix in ("", f"~{incarnation}", f"~{secrets.token_hex(3)}"):
            try:
                return self._task_class.options(name=name + suffix, **options).remote(spec)
            except ValueError:
                # Ray frees the name of a killed actor a little later.
                continue
        return self._task_class.options(**options).remote(spec)

    def _on_death(self, task: TaskId, incarnation: int, reply: Future[None]) -> None:
        error = reply.exception()
        if error is None or self._ended.is_set():
            return
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"its process is gone ({type(error).__name__}: {lines[0]})"
        self._events.put(i.TaskLost(task, incarnation, reason))

    def _send(self, task: TaskId, message: ToTask) -> None:
        handle = self._tasks.get(task)
        if handle is None:
            return
        if isinstance(message, ResetTask):
            # May look at the source's storage, so not on the loop.
            self._pool.submit(self._order_reset, task, handle, message, dict(self._tasks))
        else:
            reply = handle.tell.remote(message)
            if self._failpoints is not None:
                self._failpoints.has_sent(message, reply)

    def _order_reset(
        self, task: TaskId, handle: Any, message: ResetTask, tasks: dict[TaskId, Any]
    ) -> None:
        plan = self._spec.plan
        try:
            order = ResetOrder(
                epoch=message.epoch,
                first_checkpoint_id=message.first_checkpoint_id,
                manifest=(
                    None if message.manifest is None else cut_manifest(message.manifest, plan, task)
                ),
                splits=self._splits_of(task, message.epoch),
                peers={
                    t: tasks[t]
                    for c in (*plan.inputs(task), *plan.outputs(task))
                    for t in (c.upstream, c.downstream)
                    if t != task
                },
            )
            handle.reset.remote(order)
        except Exception as error:
            kind = FailureKind.PERMANENT if is_permanent(error) else FailureKind.RAISED
            reason = f"{type(error).__name__}: {error}"
            self._events.put(TaskFailed(task=task, epoch=message.epoch, kind=kind, reason=reason))

    def _splits_of(self, task: TaskId, epoch: int) -> tuple[Split, ...]:
        """All subtasks of a source must be dealt from one listing."""
        chain = self._spec.plan.chain(task.operator)
        if chain.source is None:
            return ()
        with self._splits_lock:
            if self._splits_epoch != epoch:
                self._splits, self._splits_epoch = {}, epoch
            if chain.uid not in self._splits:
                found = chain.source.source.discover_splits(chain.parallelism)
                self._splits[chain.uid] = tuple(found)
            return self._splits[chain.uid]

    # ---------------------------------------------------------------------------- reports

    def _report_checkpoint(self, r: i.ReportCheckpoint) -> None:
        committed = r.outcome == "committed"
        before = next((c for c in self._checkpoints if c.checkpoint_id == r.checkpoint_id), None)
        if before is not None:
            self._checkpoints.remove(before)
        self._completed += r.outcome == "completed"
        self._failed += r.outcome == "failed"
        report = CheckpointReport(
            checkpoint_id=r.checkpoint_id,
            outcome=r.outcome,
            duration=before.duration if committed and before else r.duration,
            commit_latency=r.duration if committed else 0.0,
            size=before.size if committed and before else r.size,
            reason=r.reason,
            path=self._storage.place_of(manifest_path(r.checkpoint_id)),
            finished_at=self._clock.now(),
        )
        self._checkpoints.append(report)
        self._exporter.checkpoint(report)
        if r.outcome == "failed":
            logger.warning("checkpoint %d failed: %s", r.checkpoint_id, r.reason)

    def _shut_down(self) -> None:
        self._ended.set()
        for handle in self._tasks.values():
            ray.kill(handle, no_restart=True)
        self._tasks.clear()
        self._retention.shutdown(wait=True)
        if self._spec.detached:
            self._lost.wait(LINGER)
            ray.kill(self._self, no_restart=True)


def coordinator_actor_class() -> Any:
    """The Ray actor class; made on demand, so that importing this module starts nothing."""
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)(CoordinatorActor)
