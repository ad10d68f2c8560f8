"""The source at the head of a task: splits, positions, and which of them to read next.

Why it exists: a connector reads one split; this reads all splits of a subtask and keeps what
the snapshot needs: per split its exact position and its event time (rules 12 and 15). What
event time they make together is in ``source_time``; which may not be read, because the source
is ahead of its group, in ``drift``.

Ownership of splits. Those known when a job starts are dealt out in order. One found later
belongs to the subtask given by a stable hash of its id, so subtasks need not talk. After a
change of parallelism all known splits are dealt out anew.

May import: plan, connectors, operators, elements, the messages of protocol, and this room.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from helios_ray.connectors.base import Exhausted, NotYet, Rows, Source, Split, SplitReader
from helios_ray.elements import MIN_TIMESTAMP, Batch, StreamElement
from helios_ray.execution.drift import Brake, Report
from helios_ray.execution.source_time import SourceTime, SplitTime
from helios_ray.operators.base import StateKind, StateTable
from helios_ray.plan.physical import SourceSpec
from helios_ray.protocol.messages import LimitSource

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
        ("watermark", pa.int64()),
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
    time: SplitTime | None = None
    retry_at: float = 0.0

    @property
    def held(self) -> bool:
        return self.time is not None and self.time.paused


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
        self._time = SourceTime(spec.watermarks, spec.uid)
        alignment = None if spec.watermarks is None else spec.watermarks.alignment
        self._brake = None if alignment is None else Brake(alignment)
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
        """Continue from a snapshot; rows of every subtask are given.

        Args:
            watermark: what the task had announced. The source had come at least as far.
        """
        rows = state.table.to_pylist()
        redeal = any(r["parallelism"] != self._parallelism for r in rows)
        if redeal:
            rows.sort(key=lambda r: str(r["split_id"]))
        said = []
        for index, row in enumerate(rows):
            owner = index % self._parallelism if redeal else row["owner"]
            if redeal or owner == self._subtask:
                before = row.get("watermark")
                said.append(MIN_TIMESTAMP if before is None else before)
            if owner != self._subtask:
                self._others.add(row["split_id"])
                continue
            split = Split(split_id=row["split_id"], spec=json.loads(row["spec"]))
            s = self._mine[split.split_id] = _SplitState(
                split,
                position=json.loads(row["position"]),
                done=row["done"],
                event_time=json.loads(row["event_time"]),
            )
            if s.event_time and not s.done:
                # It counts in the watermark, also while it waits its turn.
                s.time = self._time.split(split.split_id, s.event_time)
        self._time.restore(max(watermark, min(said, default=MIN_TIMESTAMP)))
        times = [s.time.watermark for s in self._mine.values() if s.time is not None]
        if self._brake is not None and any(t > MIN_TIMESTAMP for t in times):
            self._brake.resume()

    def snapshot(self) -> StateTable:
        """Every split of this subtask with its exact position."""
        rows = []
        for split_id, s in self._mine.items():
            position = s.reader.position() if s.reader is not None else s.position
            event_time = s.time.state() if s.time is not None else s.event_time
            rows.append(
                {
                    "split_id": split_id,
                    "owner": self._subtask,
                    "parallelism": self._parallelism,
                    "done": s.done,
                    "spec": json.dumps(dict(s.split.spec)),
                    "position": json.dumps(position),
                    "event_time": json.dumps(event_time),
                    "watermark": self._time.watermark,
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
        # What a source without time says at the very first; that alone is no reason to ask again.
        return [*self._time.greeting(), *elements]

    def poll(self, max_rows: int, now: float) -> tuple[list[StreamElement], float | None]:
        """Read some rows.

        Returns:
            Elements, and, when there were no rows, the time to ask again (None: only when
            something else happens).
        """
        self._discover(now)
        open_splits = self._open()
        self._hold_back(open_splits, now)
        retry: list[float] = []
        for step in range(len(open_splits)):
            s = open_splits[(self._turn + step) % len(open_splits)]
            if s.held:
                continue
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
        marks = self._marks(now)
        retry += self._time.wakeups(s.time for s in open_splits)
        if self._discover_at is not None:
            retry.append(self._discover_at)
        report_at = None if self._brake is None else self._brake.next_report
        if report_at is not None:
            retry.append(report_at)
        return marks, min(retry, default=None)

    def _open(self) -> list[_SplitState]:
        unfinished = [s for s in self._mine.values() if not s.done]
        chosen = unfinished[: max(1, self._source.concurrent_splits)]
        for s in chosen:
            if s.reader is None:
                s.reader = self._source.open_split(s.split)
                if s.position is not None:
                    s.reader.seek(s.position)
                if s.time is None:
                    s.time = self._time.split(s.split.split_id, s.event_time)
        return chosen

    def _close(self, s: _SplitState) -> None:
        assert s.reader is not None
        s.position = s.reader.position()
        s.reader.close()
        s.reader, s.done = None, True
        if s.time is not None:
            s.event_time, s.time = s.time.state(), None

    def _rows(
        self, s: _SplitState, data: pa.RecordBatch, origin: Any, now: float
    ) -> list[StreamElement]:
        if s.time is not None:
            s.time.observe(data, now)
        stamped = self._time.stamp(data, now)
        return [Batch(stamped, origin), *self._marks(now, had_rows=True)]

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

    def _marks(self, now: float, *, had_rows: bool = False) -> list[StreamElement]:
        unfinished = [s for s in self._mine.values() if not s.done]
        reading = [s.time for s in unfinished if s.reader is not None]
        waiting = [s.time for s in unfinished if s.reader is None]
        return self._time.marks(now, reading, waiting, had_rows=had_rows)

    # ---------------------------------------------------------------------------- drift

    def report_to(self, report: Report) -> None:
        """Say from now on how far the subtask is, if it belongs to a group."""
        if self._brake is not None:
            self._brake.report_to(report)

    def limit(self, message: LimitSource) -> None:
        """The coordinator says how far the splits may go."""
        if self._brake is not None and self._brake.limit(message.number, message.limit):
            self._poll_at = 0.0

    def _hold_back(self, open_splits: Sequence[_SplitState], now: float) -> None:
        if self._brake is None:
            return
        times = [s.time for s in open_splits if s.time is not None]
        for t in times:
            t.paused = self._brake.holds(t.watermark)
            t.look(now)
        active = [t for t in times if not t.idle]
        progress = min((t.watermark for t in active), default=MIN_TIMESTAMP)
        waits = any(t.paused for t in active)
        self._brake.look(now, progress, idle=not active, waits=waits)

    def close(self) -> None:
        """Close every reader."""
        for s in self._mine.values():
            if s.reader is not None:
                s.reader.close()
                s.reader = None
