"""Keyed state on several subtasks, restarted at will."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.state.key_groups import key_group_range, key_groups_of_batch, subtask_of
from helios_ray.state.keyed.backend import KeyedBackend
from helios_ray.state.keyed.declarations import State

MAX_PARALLELISM = 8
KEYS = pa.schema([("k", pa.int64())])
T = TypeVar("T")


def rows(keys: Sequence[Any]) -> pa.RecordBatch:
    return pa.record_batch({"k": list(keys)}, schema=KEYS)


class Cluster:
    """Backends with one state each; keys go where a stream would send them."""

    def __init__(self, declaration: Callable[[], State]) -> None:
        self._declaration = declaration
        self.now = self.watermark = MIN_TIMESTAMP
        self._start(1)

    def _start(self, parallelism: int) -> None:
        self.backends: list[KeyedBackend] = []
        self.handles: list[Any] = []
        for subtask in range(parallelism):
            own = key_group_range(subtask, parallelism, MAX_PARALLELISM)
            self.backends.append(KeyedBackend("process 'test'", ["k"], MAX_PARALLELISM, own))
            self.handles.append(self.backends[-1].declare(self._declaration()))

    def run(self, steps: Sequence[tuple[Any, Callable[[Any], T]]]) -> list[T]:
        """One batch: each step is a key and what to do with its state."""
        groups = key_groups_of_batch(rows([key for key, _ in steps]), ["k"], MAX_PARALLELISM)
        owners = subtask_of(groups, len(self.backends), MAX_PARALLELISM).tolist()
        results: dict[int, T] = {}
        for subtask, backend in enumerate(self.backends):
            mine = [i for i, owner in enumerate(owners) if owner == subtask]
            if not mine:
                continue
            slots = backend.begin(rows([steps[i][0] for i in mine]), ["k"]).tolist()
            for i, slot in zip(mine, slots, strict=True):
                backend.scope.slot = slot
                results[i] = steps[i][1](self.handles[subtask])
            backend.end()
        return [results[i] for i in range(len(steps))]

    def set_time(self, clock: str, time: int) -> None:
        if clock == "event":
            self.watermark = time
        else:
            self.now = time
        self._tell_time()

    def _tell_time(self) -> None:
        for backend in self.backends:
            backend.set_now(self.now)
            backend.set_watermark(self.watermark)

    def end(self) -> None:
        for backend in self.backends:
            backend.end()

    def snapshots(self) -> list[dict[str, pa.Table]]:
        return [backend.snapshot() for backend in self.backends]

    def restart(self, parallelism: int) -> None:
        self.restore(self.snapshots(), parallelism)

    def restore(self, snapshots: Sequence[dict[str, pa.Table]], parallelism: int) -> None:
        self._start(parallelism)
        for name in {name for snapshot in snapshots for name in snapshot}:
            whole = pa.concat_tables([s[name] for s in snapshots if name in s])
            groups = whole["key_group"].to_numpy()
            for subtask, backend in enumerate(self.backends):
                own = key_group_range(subtask, parallelism, MAX_PARALLELISM)
                mine = whole.filter(pa.array((groups >= own.start) & (groups < own.stop)))
                backend.restore({name: mine})
        self._tell_time()

    def content(self, name: str) -> list[dict[str, Any]]:
        tables = [s[f"state.{name}"] for s in self.snapshots() if s]
        return [row for table in tables for row in table.to_pylist()]
