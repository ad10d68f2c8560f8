"""Rows that have come in and whose results have not gone out.

Why it exists: they are the state of an asynchronous map, in the order in which they came;
they stay Arrow, so that a checkpoint refers to them and a second call sees what the first saw.

May import: elements, operators, Arrow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa

from helios_ray.elements import Batch, Origin
from helios_ray.operators.rows import Row, to_rows


@dataclass(slots=True)
class Piece:
    """Neighbouring rows of one incoming batch.

    Args:
        data: the rows; no larger batch hides behind them.
        origin: of the incoming batch.
        offset: place of the first row in the incoming batch.
        watermark: event time before these rows (µs).
    """

    data: pa.RecordBatch
    origin: Origin | None
    offset: int
    watermark: int
    values: list[Row] = field(init=False)

    def __post_init__(self) -> None:
        self.values = to_rows(self.data)


@dataclass(slots=True, eq=False)
class AskedRow:
    """One row in flight.

    Args:
        number: grows in the order of arrival.
        piece: where it stands.
        index: its place there.
    """

    number: int
    piece: Piece
    index: int
    attempt: int = 0
    done: bool = False
    results: list[Row] = field(default_factory=list)
    error: Exception | None = None

    def value(self) -> Row:
        """The row as it came; a function may have changed the dict that it was given."""
        return to_rows(self.piece.data.slice(self.index, 1))[0]

    @property
    def place(self) -> tuple[int, Batch]:
        """Its index in the batch that it came in, and the batch's stand-in, for messages."""
        return self.piece.offset + self.index, Batch(self.piece.data, self.piece.origin)


@dataclass(slots=True)
class _Waiting:
    data: pa.RecordBatch
    origin: Origin | None
    offset: int
    watermark: int


class HeldRows:
    """First the rows in flight, then those that wait for a place among them.

    Args:
        piece_rows: rows are taken from a waiting batch in copies of at most so many, so that
            one slow row does not keep a large batch in memory.
    """

    def __init__(self, piece_rows: int) -> None:
        self._piece_rows = piece_rows
        self._asked: dict[int, AskedRow] = {}
        self._piece: Piece | None = None
        self._next = 0
        self._waiting: deque[_Waiting] = deque()
        self._number = 0

    def __len__(self) -> int:
        """Rows in flight."""
        return len(self._asked)

    def __bool__(self) -> bool:
        return bool(self._asked or self._piece or self._waiting)

    def add(self, batch: Batch, watermark: int) -> None:
        """Rows have come in; event time before them was ``watermark``."""
        self._waiting.append(_Waiting(batch.data, batch.origin, 0, watermark))

    def ask(self) -> tuple[AskedRow, Row] | None:
        """Put the next row in flight; None if none waits."""
        if self._piece is None:
            if not self._waiting:
                return None
            self._piece, self._next = self._cut(), 0
        piece, index = self._piece, self._next
        self._number += 1
        row = AskedRow(self._number, piece, index)
        self._asked[row.number] = row
        value = piece.values[index]
        self._next += 1
        if self._next == len(piece.values):
            piece.values = []
            self._piece = None
        return row, value

    def _cut(self) -> Piece:
        first = self._waiting[0]
        data, rows = first.data, first.data.num_rows
        if rows <= self._piece_rows:
            self._waiting.popleft()
            return Piece(data, first.origin, first.offset, first.watermark)
        copy = data.take(pa.array(range(self._piece_rows), pa.int64()))
        piece = Piece(copy, first.origin, first.offset, first.watermark)
        first.data = data.slice(self._piece_rows)
        first.offset += self._piece_rows
        return piece

    @property
    def head_is_done(self) -> bool:
        """Whether the oldest row is done."""
        return any(row.done for row in islice(self._asked.values(), 1))

    def take_done(self) -> list[AskedRow]:
        """Take out the rows at the head that are done."""
        done = []
        for row in self._asked.values():
            if not row.done:
                break
            done.append(row)
        self.remove(done)
        return done

    def remove(self, rows: Iterable[AskedRow]) -> None:
        """Take out rows, wherever they stand."""
        for row in rows:
            del self._asked[row.number]

    def watermark(self) -> int | None:
        """Event time before the oldest row, or None if none is held."""
        for row in self._asked.values():
            return row.piece.watermark
        if self._piece is not None:
            return self._piece.watermark
        return self._waiting[0].watermark if self._waiting else None

    def table(self) -> pa.Table | None:
        """Every row that is held, in the order in which they came; None if none is."""
        batches = [data for data in self._parts() if data.num_rows]
        if not batches:
            return None
        # The schema of the newest: a column seen only as null may have got its type since.
        schema = batches[-1].schema
        parts = [pa.Table.from_batches([b]) for b in batches]
        return pa.concat_tables([p if p.schema.equals(schema) else p.cast(schema) for p in parts])

    def _parts(self) -> Iterator[pa.RecordBatch]:
        pieces: dict[int, tuple[Piece, list[int]]] = {}
        for row in self._asked.values():
            pieces.setdefault(id(row.piece), (row.piece, []))[1].append(row.index)
        if self._piece is not None:
            entry = pieces.setdefault(id(self._piece), (self._piece, []))
            entry[1].extend(range(self._next, self._piece.data.num_rows))
        for piece, indexes in pieces.values():
            if len(indexes) == piece.data.num_rows:
                yield piece.data
            else:
                yield piece.data.take(pa.array(indexes, pa.int64()))
        yield from (waiting.data for waiting in self._waiting)
