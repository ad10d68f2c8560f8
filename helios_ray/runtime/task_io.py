"""Uploads and downloads of a task, off its processing thread.

Why it exists: compressing, encrypting and storing a snapshot takes longer than the task can
stand still (rule 10). Plaintext state leaves the process nowhere but through the sealer.

May import: checkpoint, execution, records and below.
"""

from __future__ import annotations

import pyarrow as pa

from helios_ray.checkpoint.catalog import CheckpointCatalog
from helios_ray.checkpoint.config import CheckpointConfig
from helios_ray.checkpoint.layout import object_name, state_path
from helios_ray.checkpoint.sealed import Binding
from helios_ray.checkpoint.snapshots import Sealer
from helios_ray.execution.actions import SealSnapshot
from helios_ray.execution.restore import RestoredTask, objects_for, share_out
from helios_ray.identifiers import TaskId
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.records import Manifest, StateObject, TaskSnapshot
from helios_ray.runtime.deployment import INLINE_BYTES


class TaskStorage:
    """Seals and stores a task's snapshots, loads and opens its state. Thread-safe.

    Args:
        config: storage and keys.
        plan: the job.
        task: whose state.
    """

    def __init__(self, config: CheckpointConfig, plan: PhysicalPlan, task: TaskId) -> None:
        self._plan = plan
        self._task = task
        self._sealer = Sealer(config.encryption)
        self._store = config.storage.open().scoped(plan.job)
        self._catalog = CheckpointCatalog(self._store, self._sealer)

    def store(self, order: SealSnapshot) -> TaskSnapshot:
        """Seal a snapshot and make it durable, or small enough to travel in the answer.

        Raises:
            CheckpointError: storage or keys failed; the checkpoint must be declined.
        """
        objects = [
            self._seal(order, uid, name, state.kind.value, state.table)
            for uid, snapshot in order.state.items()
            for name, state in snapshot.items()
        ]
        return TaskSnapshot(
            task=self._task,
            objects=tuple(objects),
            prepared=order.prepared,
            watermark=order.watermark,
            finished=order.finished,
        )

    def _seal(
        self, order: SealSnapshot, uid: str, name: str, kind: str, table: pa.Table
    ) -> StateObject:
        subtask = self._task.subtask
        sealed = self._sealer.seal_table(
            table,
            Binding(
                job=self._plan.job,
                epoch=order.epoch,
                checkpoint_id=order.checkpoint_id,
                operator=uid,
                subtask=subtask,
                name=name,
            ),
        )
        path = None
        if sealed.size > INLINE_BYTES:
            path = state_path(order.epoch, uid, subtask, object_name(order.checkpoint_id, name))
            self._store.put(path, sealed.data)
        return StateObject(
            operator=uid,
            subtask=subtask,
            name=name,
            kind=kind,
            path=path,
            inline=None if path else sealed.data,
            size=sealed.size,
            raw_size=sealed.raw_size,
            rows=sealed.rows,
            key_id=sealed.key_id,
            digest=sealed.digest,
        )

    def load(self, manifest: Manifest) -> RestoredTask:
        """The state that the task takes up from a checkpoint.

        Raises:
            CheckpointError: it cannot be read, authenticated or opened.
        """
        loaded = [
            (o, self._catalog.read_table(o, manifest))
            for o in objects_for(manifest, self._plan, self._task)
        ]
        return share_out(loaded, manifest, self._plan, self._task)
