"""A task's process: a Ray actor around one task body.

Why it exists: actor methods only put things into an inbox; one processing thread owns the
body; an I/O thread seals, uploads and downloads; a third thread says that the process lives,
and for how long the processing thread has been inside one call; a fourth awaits what operators
ask for, if they do. So control never queues behind data, and a hung user function does not
look like a healthy task.

May import: execution, protocol, this room's io and wire, and ``ray``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import ray

from helios_ray.elements import MAX_TIMESTAMP
from helios_ray.errors import CheckpointError, StorageError
from helios_ray.execution.actions import (
    Action,
    SealSnapshot,
    SendCredit,
    SendFrame,
    StartRequest,
    Tell,
)
from helios_ray.execution.task import TaskBody
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.protocol.messages import (
    FailureKind,
    Heartbeat,
    SnapshotAcknowledged,
    SnapshotDeclined,
    TaskFailed,
    TaskPhase,
    ToCoordinator,
    ToTask,
)
from helios_ray.runtime import failpoints, wire
from helios_ray.runtime.clock import Clock
from helios_ray.runtime.deployment import ResetOrder, TaskSpec
from helios_ray.runtime.reports import TaskMetrics
from helios_ray.runtime.requests import RequestLoop
from helios_ray.runtime.task_io import TaskStorage

logger = logging.getLogger("helios_ray.task")

LONGEST_WAIT = 0.25

CREDIT_REPEAT = 0.5
"""Seconds before a credit whose call failed is sent again."""


class TaskActor:
    """See the module's docstring; made by :func:`task_actor_class`."""

    def __init__(self, spec: TaskSpec) -> None:
        import pyarrow as pa

        # One thread for processing, one for sealing: more would fight over the cores.
        pa.set_cpu_count(1)
        self._spec = spec
        self._clock = Clock()
        self._body = TaskBody(spec.plan, spec.task, spec.options)
        self._inbox: deque[tuple[Any, ...]] = deque()
        self._wakeup = threading.Event()
        self._io = ThreadPoolExecutor(1, thread_name_prefix="helios-io")
        self._requests = RequestLoop(partial(self._put, "answer"))
        self._storage = TaskStorage(spec.config, spec.plan, spec.task)
        self._peers: dict[TaskId, Any] = {}
        self._loading = 0
        self._busy_since: float | None = None
        self._blocked = 0.0
        self._failpoints = failpoints.of_task(spec.task)
        self._stopped = threading.Event()
        self._lost = threading.Event()
        for target in (self._process, self._beat):
            threading.Thread(target=target, name=f"helios-{target.__name__}", daemon=True).start()

    # --------------------------------------------------------------------- actor methods

    def push(self, header: wire.Header, payload: bytes) -> None:
        """A frame; returns as soon as it is queued."""
        self._put("frame", header, payload)

    def credit(self, epoch: int, channel: ChannelId, consumed: int) -> None:
        """A receiver has consumed that much."""
        self._put("credit", epoch, channel, consumed)

    def tell(self, message: ToTask) -> None:
        """A message from the coordinator."""
        self._put("message", message)

    def reset(self, order: ResetOrder) -> None:
        """Join an epoch."""
        self._put("order", order)

    def pid(self) -> int:
        """The process that runs this task; for tests and operators."""
        return os.getpid()

    def node(self) -> str:
        """The Ray node that it runs on."""
        return ray.get_runtime_context().get_node_id()

    def lifeline(self) -> None:
        """Never returns: the caller learns of the process's death at once."""
        self._lost.wait()

    def _put(self, *item: Any) -> None:
        self._inbox.append(item)
        self._wakeup.set()

    # ---------------------------------------------------------------- processing thread

    def _process(self) -> None:
        body, inbox, clock = self._body, self._inbox, self._clock
        while not self._stopped.is_set():
            now = clock.now()
            if not inbox and not body.ready:
                wait = min(LONGEST_WAIT, body.next_wakeup() - now)
                if wait > 0:
                    self._wakeup.wait(wait)
            self._wakeup.clear()
            self._busy_since = clock.now()
            try:
                while inbox:
                    self._perform(self._take(inbox.popleft(), clock.now()))
                blocked = body.counters.blocked_steps
                self._perform(body.step(clock.now()))
                if self._failpoints is not None:
                    self._failpoints.stands(body.core.aligning, body.core.epoch)
                if body.counters.blocked_steps > blocked:
                    self._blocked += LONGEST_WAIT / 10
                    self._wakeup.wait(LONGEST_WAIT / 10)
            except Exception as error:  # a bug here must end the epoch, not the thread
                logger.exception("task %s", self._spec.task)
                self._perform(body.fail(error, clock.now()))
            self._busy_since = None

    def _take(self, item: tuple[Any, ...], now: float) -> list[Action]:
        body = self._body
        if self._failpoints is not None:
            self._failpoints.hears(item, body.core.epoch)
        match item:
            case ("frame", header, payload):
                return body.receive(wire.decode(header, payload), now)
            case ("credit", epoch, channel, consumed):
                body.credit(epoch, channel, consumed)
            case ("confirm", epoch, channel, sequence):
                body.confirm(epoch, channel, sequence)
            case ("repeat", epoch, channel, consumed) if epoch == body.core.epoch:
                self._send_credit(epoch, channel, consumed)
            case ("answer", epoch, operator, response):
                return body.respond(epoch, operator, response, now)
            case ("message", message):
                return body.handle(message, now)
            case ("order", order):
                return self._begin_reset(order, now)
            case ("loaded", order, restored):
                if order.epoch == self._loading:
                    self._requests.cancel()
                    self._peers = dict(order.peers)
                    return body.reset(
                        order.epoch, restored, order.splits, order.first_checkpoint_id, now
                    )
            case ("failed", error):
                return body.fail(error, now)
        return []

    def _begin_reset(self, order: ResetOrder, now: float) -> list[Action]:
        if order.epoch <= self._body.core.epoch:
            # Said before, or stale; the body repeats its answer or ignores it.
            return self._body.reset(order.epoch, None, (), order.first_checkpoint_id, now)
        if order.epoch > self._loading:
            self._loading = order.epoch
            if order.manifest is None:
                self._put("loaded", order, None)
            else:
                self._io.submit(self._load, order)
        return []

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case SendFrame(frame):
                    peer = self._peers[frame.channel.downstream]
                    reply = peer.push.remote(*wire.encode(frame))
                    key = ("confirm", frame.epoch, frame.channel, frame.sequence)
                    reply.future().add_done_callback(lambda f, key=key: self._arrived(f, key))
                case SendCredit(epoch, channel, consumed):
                    self._send_credit(epoch, channel, consumed)
                case Tell(Heartbeat() as beat):
                    self._spec.coordinator.beat.remote(beat, self._metrics(0.0))
                case Tell(message):
                    self._tell(message)
                case StartRequest(epoch, operator, request):
                    self._requests.start(epoch, operator, request)
                case SealSnapshot():
                    self._io.submit(self._seal, action)

    def _send_credit(self, epoch: int, channel: ChannelId, consumed: int) -> None:
        """A credit that got lost would leave a full channel full: it is said again."""

        def sent(reply: Future[None]) -> None:
            if reply.exception() is not None:
                item = ("repeat", epoch, channel, consumed)
                again = threading.Timer(CREDIT_REPEAT, self._put, item)
                again.daemon = True
                again.start()

        credit = self._peers[channel.upstream].credit
        credit.remote(epoch, channel, consumed).future().add_done_callback(sent)

    def _arrived(self, reply: Future[None], key: tuple[Any, ...]) -> None:
        # A failed call may have executed. The frame is repeated, and if the receiver is
        # gone, the coordinator hears of it from Ray.
        if reply.exception() is None:
            self._put(*key)

    def _tell(self, message: ToCoordinator) -> None:
        if self._failpoints is not None:
            self._failpoints.speaks(message)
        reply = self._spec.coordinator.tell.remote(message)
        if self._failpoints is not None:
            self._failpoints.has_spoken(message, reply)

    # ----------------------------------------------------------------------- I/O thread

    def _load(self, order: ResetOrder) -> None:
        assert order.manifest is not None
        task = self._spec.task
        try:
            self._put("loaded", order, self._storage.load(order.manifest))
        except Exception as error:
            # What cannot be authenticated will not be tomorrow; storage may answer again.
            permanent = isinstance(error, CheckpointError) and not isinstance(error, StorageError)
            self._tell(
                TaskFailed(
                    task=task,
                    epoch=order.epoch,
                    kind=FailureKind.PERMANENT if permanent else FailureKind.RAISED,
                    reason=f"cannot restore: {type(error).__name__}: {error}",
                )
            )

    def _seal(self, order: SealSnapshot) -> None:
        task, epoch, checkpoint_id = self._spec.task, order.epoch, order.checkpoint_id
        try:
            snapshot = self._storage.store(order)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self._tell(
                SnapshotDeclined(task=task, epoch=epoch, checkpoint_id=checkpoint_id, reason=reason)
            )
            return
        self._tell(
            SnapshotAcknowledged(
                task=task, epoch=epoch, checkpoint_id=checkpoint_id, snapshot=snapshot
            )
        )

    # ---------------------------------------------------------------------- beat thread

    def _beat(self) -> None:
        interval = self._spec.options.heartbeat_interval
        last_blocked = 0.0
        while not self._stopped.wait(interval):
            since, body = self._busy_since, self._body
            blocked, last_blocked = self._blocked - last_blocked, self._blocked
            beat = Heartbeat(
                task=self._spec.task,
                epoch=body.core.epoch,
                phase=body.phase if body.core.epoch else TaskPhase.BLANK,
                stalled_for=0.0 if since is None else self._clock.now() - since,
            )
            try:
                self._spec.coordinator.beat.remote(
                    beat, self._metrics(min(1.0, blocked / interval))
                )
            except Exception:  # Ray is going down, and this process with it
                return

    def _metrics(self, backpressure: float) -> TaskMetrics:
        body, chain = self._body, self._spec.plan.chain(self._spec.task.operator)
        c = body.counters
        return TaskMetrics(
            task=self._spec.task,
            uids=chain.uids,
            is_source=chain.source is not None,
            is_sink=chain.sink is not None,
            rows_in=c.rows_in,
            rows_out=c.rows_out,
            bytes_in=c.bytes_in,
            bytes_out=c.bytes_out,
            backpressure=backpressure,
            watermark=min(body.watermark, MAX_TIMESTAMP),
            queued_bytes=body.core.queued_bytes,
            skipped_rows=body.skipped_rows,
            pid=os.getpid(),
            node=ray.get_runtime_context().get_node_id(),
        )


def task_actor_class() -> Any:
    """The Ray actor class; made on demand, so that importing this module starts nothing."""
    methods = {"lifeline": ray.method(concurrency_group="lifeline")(TaskActor.lifeline)}
    plain = type("TaskActor", (TaskActor,), {"__doc__": TaskActor.__doc__, **methods})
    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_restarts": 0,
        "max_task_retries": 0,
        "concurrency_groups": {"lifeline": 1},
        "enable_task_events": False,
    }
    return ray.remote(**options)(plain)
