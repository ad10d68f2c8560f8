"""A source of truth that outlives any crash: events appended to files, read with exact offsets.

Why it exists: a test of exactly-once needs an input that is surely complete, whatever dies.
Each partition of the log is one append-only file of fixed-size records; a position is a
number of records. The test appends, the job follows, for ever.

May import: connectors, elements, errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from helios_ray.connectors.base import Json, NotYet, Poll, Rows, Source, Split, SplitReader
from helios_ray.elements import Origin
from helios_ray.errors import CorruptInputError, SourceUnavailableError

SCHEMA = pa.schema([("event_id", pa.int64()), ("batch", pa.int64())])
"""Events as the job sees them: the id that the test gave, and the number of the emission."""

_RECORD = np.dtype([("event_id", "<i8"), ("batch", "<i8")])


class EventLog:
    """Append events to the partitions of a log. One writer at a time.

    Args:
        directory: where the files are; made if there is none.
        partitions: files; as in the existing log if there is one.

    Example:
        >>> import tempfile
        >>> log = EventLog(tempfile.mkdtemp(), partitions=2)
        >>> log.append([7, 8, 9])
        0
        >>> log.lengths()
        {'events-0': 1, 'events-1': 2}
    """

    def __init__(self, directory: str | os.PathLike[str], partitions: int = 2) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self._files():
            for index in range(partitions):
                (self._directory / f"events-{index}.log").touch()

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob("events-*.log"))

    def append(self, event_ids: Iterable[int]) -> int:
        """Append events, all with one emission number; return that number.

        An id always goes to the same partition, so repeated ids keep their order.
        """
        ids = np.fromiter(event_ids, dtype=np.int64)
        files = self._files()
        batch = 1 + max((self._last_batch(f) for f in files), default=-1)
        for index, file in enumerate(files):
            mine = ids[ids % len(files) == index]
            records = np.empty(len(mine), dtype=_RECORD)
            records["event_id"], records["batch"] = mine, batch
            with file.open("ab") as stream:
                stream.write(records.tobytes())
        return batch

    def lengths(self) -> dict[str, int]:
        """Records per partition, under the ids of its splits."""
        return {f.stem: f.stat().st_size // _RECORD.itemsize for f in self._files()}

    @staticmethod
    def _last_batch(file: Path) -> int:
        records = _read(file, max(0, file.stat().st_size // _RECORD.itemsize - 1), 1)
        return int(records["batch"][0]) if len(records) else -1


class EventLogSource(Source):
    """Follow an :class:`EventLog`, one split per partition, without end.

    Args:
        directory: the log's.
        poll_interval: seconds between looks for new events.
    """

    # None of the splits ends, so a subtask reads all of its own in turn.
    concurrent_splits = 1 << 30

    def __init__(self, directory: str | os.PathLike[str], poll_interval: float = 0.01) -> None:
        self._directory = str(Path(directory).absolute())
        self._poll_interval = poll_interval

    @property
    def bounded(self) -> bool:
        return False

    def schema(self) -> pa.Schema:
        return SCHEMA

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        files = sorted(Path(self._directory).glob("events-*.log"))
        if not files:
            raise SourceUnavailableError(
                f"EventLogSource: no log in {self._directory}. Make one with EventLog(directory)."
            )
        return [Split(split_id=f.stem, spec={"file": str(f)}) for f in files]

    def open_split(self, split: Split) -> SplitReader:
        return _EventLogReader(Path(split.spec["file"]), self._poll_interval)

    def __repr__(self) -> str:
        return f"EventLogSource({self._directory!r})"


class _EventLogReader(SplitReader):
    def __init__(self, file: Path, poll_interval: float) -> None:
        self._file = file
        self._poll_interval = poll_interval
        self._next = 0

    def poll(self, max_rows: int, now: float) -> Poll:
        records = _read(self._file, self._next, max_rows)
        if not len(records):
            return NotYet(now + self._poll_interval)
        origin = Origin(self._file.stem, f"record {self._next}")
        self._next += len(records)
        columns = [pa.array(np.ascontiguousarray(records[name])) for name in SCHEMA.names]
        return Rows(pa.RecordBatch.from_arrays(columns, schema=SCHEMA), origin)

    def position(self) -> Json:
        return {"record": self._next}

    def seek(self, position: Json) -> None:
        self._next = int(position["record"])
        if self._next * _RECORD.itemsize > self._file.stat().st_size:
            raise CorruptInputError(
                f"{self._file} ends before record {self._next}, where the checkpoint stands: "
                f"somebody cut it. Restore the file."
            )


def _read(file: Path, first: int, count: int) -> np.ndarray:
    with file.open("rb") as stream:
        stream.seek(first * _RECORD.itemsize)
        data = stream.read(count * _RECORD.itemsize)
    # An append that is under way may have written part of a record.
    whole = len(data) // _RECORD.itemsize
    return np.frombuffer(data, dtype=_RECORD, count=whole)
