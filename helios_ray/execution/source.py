"""The source at the head of a task: splits, positions, watermarks per split, idleness.

Why it exists: a connector reads one split; this reads all splits of a subtask and keeps what
the snapshot needs: per split its exact position and its event time (rules 12 and 15).

Ownership of splits. Those known when a job starts are dealt out in order. One found later
belongs to the subtask given by a stable hash of its id, so subtasks need not talk. After a
change of parallelism all known splits are dealt out anew.

May import: plan, connectors, operators, watermarks, elements.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from helios_ray.connectors.base import Exhausted, NotYet, Rows, Source, Split, SplitReader
from helios_ray.elements import MIN_TIMESTAMP, Batch, Idle, StreamElement, Watermark
from helios_ray.operators.base import StateKind, StateTable
from helios_ray.plan.physical import SourceSpec
from helios_ray.watermarks import WatermarkGenerator

STATE_NAME = "splits"

_SCHEMA = pa.schema(
    [
        ("split_id", pa.string()),
        ("owner", pa.int32()),
        ("parallelism", pa.int32()),
        ("done", pa.bool_()),
        ("spec", pa.string()),
        ("position", pa.string()),
        ("event_time", pa.string()),
    ]
)


def deal(splits: Sequence[Split], subtask: int, parallelism: int) -> list[Split]:
    """The splits that a subtask gets when a job starts: every n-th, in order."""
    return list(splits[subtask::parallelism])


def owner_of(split_id: str, parallelism: int) -> int:
    """The subtask that owns a split found while running. Part of the checkpoint format."""
    return zlib.crc32(split_id.encode()) % parallelism


@dataclass(slots=True)
class _SplitState:
    split: Split
    position: Any = None
    done: bool = False
    event_time: dict[str, Any] = field(default_factory=dict)
    reader: SplitReader | None = None
    generator: WatermarkGenerator | None = None
    retry_at: float = 0.0


class SourceDriver:
    """Reads the splits of one subtask.

    Args:
        spec: the source and its watermark strategy.
        subtask: which subtask this is.
        parallelism: of how many.
    """

    def __init__(self, spec: SourceSpec, subtask: int, parallelism: int) -> None:
        self._spec = spec
        self._source: Source = spec.source
        self._subtask = subtask
        self._parallelism = parallelism
        self._mine: dict[str, _SplitState] = {}
        self._others: set[str] = set()
        self._turn = 0
        self._watermark = MIN_TIMESTAMP
        self._last_row: float | None = None
        self._idle = False
        self._discover_at: float | None = None
        self._poll_at: float | None = 0.0
        self._suspended = False

    @property
    def uid(self) -> str:
        """The source's uid; its state is kept under it."""
        return self._spec.uid

    # ----------------------------------------------------------------- splits and state

    def begin(self, splits: Iterable[Split]) -> None:
        """Start afresh with all the splits that are known."""
        every = list(splits)
        for split in deal(every, self._subtask, self._parallelism):
            self._mine[split.split_id] = _SplitState(split)
        self._others = {s.split_id for s in every} - self._mine.keys()

    def restore(self, state: StateTable, watermark: int) -> None:
        """Continue from a snapshot; rows of every subtask are given."""
        self._watermark = watermark
        rows = sorted(state.table.to_pylist(), key=lambda r: str(r["split_id"]))
        redeal = any(r["parallelism"] != self._parallelism for r in rows)
        for index, row in enumerate(rows):
            owner = index % self._parallelism if redeal else row["owner"]
            if owner != self._subtask:
                self._others.add(row["split_id"])
                continue
            split = Split(split_id=row["split_id"], spec=json.loads(row["spec"]))
            self._mine[split.split_id] = _SplitState(
                split,
                position=json.loads(row["position"]),
                done=row["done"],
                event_time=json.loads(row["event_time"]),
            )

    def snapshot(self) -> StateTable:
        """Every split of this subtask with its exact position."""
        rows = []
        for split_id, s in self._mine.items():
            position = s.reader.position() if s.reader is not None else s.position
            event_time = s.generator.state() if s.generator is not None else s.event_time
            rows.append(
                {
                    "split_id": split_id,
                    "owner": self._subtask,
                    "parallelism": self._parallelism,
                    "done": s.done,
                    "spec": json.dumps(dict(s.split.spec)),
                    "position": json.dumps(position),
                    "event_time": json.dumps(event_time),
                }
            )
        return StateTable(StateKind.UNION, pa.Table.from_pylist(rows, schema=_SCHEMA))

    # -------------------------------------------------------------------------- reading

    @property
    def exhausted(self) -> bool:
        """Whether the last row has been read; never for an unbounded source."""
        return self._source.bounded and all(s.done for s in self._mine.values())

    def suspend(self) -> None:
        """Read no more in this epoch: the job is being stopped."""
        self._suspended = True

    def ready(self, now: float) -> bool:
        """Whether ``read`` would ask the source now."""
        return not self._suspended and self._poll_at is not None and self._poll_at <= now

    def next_poll(self) -> float | None:
        """When the source should be asked again, or None."""
        return None if self._suspended else self._poll_at

    def read(self, max_rows: int, now: float) -> list[StreamElement]:
        """Read some rows if it is time to ask the source again."""
        if not self.ready(now):
            return []
        elements, self._poll_at = self.poll(max_rows, now)
        if elements:
            self._poll_at = now
        return elements

    def poll(self, max_rows: int, now: float) -> tuple[list[StreamElement], float | None]:
        """Read some rows.

        Returns:
            Elements, and, when there were no rows, the time to ask again (None: only when
            something else happens).
        """
        self._discover(now)
        if self._last_row is None:
            self._last_row = now
        open_splits = self._open()
        retry: list[float] = []
        for step in range(len(open_splits)):
            s = open_splits[(self._turn + step) % len(open_splits)]
            if s.retry_at > now:
                retry.append(s.retry_at)
                continue
            assert s.reader is not None
            answer = s.reader.poll(max_rows, now)
            match answer:
                case Rows(data, origin):
                    self._turn = (self._turn + step + 1) % len(open_splits)
                    return self._rows(s, data, origin, now), None
                case NotYet(retry_at):
                    s.retry_at = retry_at
                    retry.append(retry_at)
                case Exhausted():
                    self._close(s)
                    # What was behind this split may be open to the watermark now.
                    return self._marks(now), now
        if self._discover_at is not None:
            retry.append(self._discover_at)
        marks = self._marks(now)
        if self._idle_at is not None and not self._idle:
            retry.append(self._idle_at)
        return marks, min(retry, default=None)

    def _open(self) -> list[_SplitState]:
        unfinished = [s for s in self._mine.values() if not s.done]
        chosen = unfinished[: max(1, self._source.concurrent_splits)]
        for s in chosen:
            if s.reader is None:
                s.reader = self._source.open_split(s.split)
                if s.position is not None:
                    s.reader.seek(s.position)
                if self._spec.watermarks is not None:
                    s.generator = self._spec.watermarks.generator()
                    if s.event_time:
                        s.generator.restore(s.event_time)
        return chosen

    def _close(self, s: _SplitState) -> None:
        assert s.reader is not None
        s.position = s.reader.position()
        s.reader.close()
        s.reader, s.done = None, True
        if s.generator is not None:
            s.event_time = dict(s.generator.state())

    def _rows(
        self, s: _SplitState, data: pa.RecordBatch, origin: Any, now: float
    ) -> list[StreamElement]:
        self._last_row = now
        if s.generator is not None:
            s.generator.observe(data)
        return [Batch(data, origin), *self._marks(now, had_rows=True)]

    def _discover(self, now: float) -> None:
        interval = self._source.discovery_interval
        if interval is None or (self._discover_at is not None and now < self._discover_at):
            return
        self._discover_at = now + interval
        found = self._source.discover_splits(self._parallelism)
        for split in found:
            if split.split_id in self._mine or split.split_id in self._others:
                continue
            if owner_of(split.split_id, self._parallelism) == self._subtask:
                self._mine[split.split_id] = _SplitState(split)
            else:
                self._others.add(split.split_id)
        # Memory is bounded by the listing: what has left it is forgotten. An empty listing is
        # more likely a mount that is away for a moment than a directory swept clean.
        if not found:
            return
        listed = {split.split_id for split in found}
        self._others &= listed
        for split_id in [i for i, s in self._mine.items() if s.done and i not in listed]:
            del self._mine[split_id]

    # ------------------------------------------------------------------------- time

    @property
    def _idle_at(self) -> float | None:
        strategy = self._spec.watermarks
        if strategy is None or strategy.idleness is None or self._last_row is None:
            return None
        return self._last_row + strategy.idleness / 1_000_000

    def _marks(self, now: float, *, had_rows: bool = False) -> list[StreamElement]:
        if self._spec.watermarks is None:
            return []
        woken = had_rows and self._idle
        if had_rows:
            self._idle = False
        merged = min(
            (s.generator.watermark for s in self._mine.values() if s.generator and not s.done),
            default=None,
        )
        if merged is not None and merged > self._watermark:
            self._watermark = merged
            return [Watermark(merged)]
        if woken and self._watermark > MIN_TIMESTAMP:
            return [Watermark(self._watermark)]
        idle_at = self._idle_at
        if not had_rows and not self._idle and idle_at is not None and now >= idle_at:
            self._idle = True
            return [Idle()]
        return []

    def close(self) -> None:
        """Close every reader."""
        for s in self._mine.values():
            if s.reader is not None:
                s.reader.close()
                s.reader = None
