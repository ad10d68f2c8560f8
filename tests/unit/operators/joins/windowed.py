"""Windows over the rows of two streams in plain Python, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from hypothesis import strategies as st

from helios_ray.windowing import SessionWindow, SlidingWindow, TumblingWindow
from tests.unit.operators.joins.event_time import Marks, Row, Step

US = timedelta(microseconds=1)

windows = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(-4, 4)).map(
        lambda w: TumblingWindow(w[0] * US, w[1] * US)
    ),
    st.tuples(st.integers(1, 5), st.integers(0, 7), st.integers(-4, 4)).map(
        lambda w: SlidingWindow((w[0] + w[1]) * US, w[0] * US, w[2] * US)
    ),
    st.integers(1, 6).map(lambda gap: SessionWindow(gap * US)),
)


class Cell(NamedTuple):
    """A window of a key, with its rows in order of arrival."""

    key: str | None
    start: int
    end: int
    rows: tuple[Row, ...]


def cells_of(
    script: Sequence[Step], window: TumblingWindow | SlidingWindow | SessionWindow
) -> tuple[list[Cell], list[Cell], tuple[list[int], list[int]]]:
    """Windows that have ended, windows still open, and the ids of late rows by side.

    Which windows have ended is told by each key's own mark.
    """
    if isinstance(window, SessionWindow):
        return _sessions(script, window.gap // US)
    slide = window.slide if isinstance(window, SlidingWindow) else window.size
    return _sliced(script, window.size // US, slide // US, window.offset // US)


def _sliced(
    script: Sequence[Step], size: int, slide: int, offset: int
) -> tuple[list[Cell], list[Cell], tuple[list[int], list[int]]]:
    marks = Marks()
    late: tuple[list[int], list[int]] = ([], [])
    found: dict[tuple[str | None, int], list[Row]] = {}
    for kind, *rest in script:
        if kind == "rows":
            for row in rest[0]:
                last = (row.time - offset) // slide * slide + offset
                starts = range(last, row.time - size, -slide)
                open_still = [s for s in starts if s + size - 1 > marks.of[row.key]]
                for start in open_still:
                    found.setdefault((row.key, start), []).append(row)
                if not open_still:
                    late[row.side].append(row.id)
        elif kind == "watermark":
            marks.advance(*rest)
        else:
            marks.parallelism = rest[0]
    cells = [Cell(key, start, start + size, tuple(rows)) for (key, start), rows in found.items()]
    ended = [cell for cell in cells if cell.end - 1 <= marks.of[cell.key]]
    return ended, [cell for cell in cells if cell not in ended], late


def _sessions(
    script: Sequence[Step], gap: int
) -> tuple[list[Cell], list[Cell], tuple[list[int], list[int]]]:
    marks = Marks()
    late: tuple[list[int], list[int]] = ([], [])
    kept: dict[str | None, list[Row]] = {}
    ended: list[Cell] = []
    for kind, *rest in script:
        if kind == "rows":
            for row in rest[0]:
                others = kept.setdefault(row.key, [])
                [own] = [c for c in _chained(row.key, [*others, row], gap) if row in c.rows]
                if own.end - 1 <= marks.of[row.key]:
                    late[row.side].append(row.id)
                else:
                    others.append(row)
        elif kind == "watermark":
            marks.advance(*rest)
            for key, rows in kept.items():
                over = [c for c in _chained(key, rows, gap) if c.end - 1 <= marks.of[key]]
                ended += over
                gone = {row.id for cell in over for row in cell.rows}
                kept[key] = [row for row in rows if row.id not in gone]
        else:
            marks.parallelism = rest[0]
    still = [cell for key, rows in kept.items() for cell in _chained(key, rows, gap)]
    return ended, still, late


def _chained(key: str | None, rows: Sequence[Row], gap: int) -> list[Cell]:
    sessions: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.time):
        if sessions and row.time - sessions[-1][-1].time < gap:
            sessions[-1].append(row)
        else:
            sessions.append([row])
    return [Cell(key, s[0].time, s[-1].time + gap, tuple(s)) for s in sessions]
