"""The batch oracle: windows in plain Python, written to be read and not to be fast.

Times are integers of microseconds. Nothing here knows how the package does it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
from hypothesis import strategies as st

from tests.simulation.programs import Row, lists_of, rows_of

MS = 1000
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Span = tuple[int, int]
"""A window: its first microsecond, and the first one after it."""

Pane = tuple[Any, int, int]
"""A key and its window."""

SCHEMA = pa.schema([("id", pa.int64()), ("key", pa.string()), ("t", pa.int64()), ("v", pa.int64())])
"""Rows with an event time ``t`` and a value, which may be null."""


def ms(n: float) -> timedelta:
    return timedelta(milliseconds=n)


def us(length: timedelta) -> int:
    return length // timedelta(microseconds=1)


def keys() -> st.SearchStrategy[str]:
    return st.sampled_from(["a", "b", "c"])


def numbered(rows: Sequence[Row]) -> list[Row]:
    return [{"id": i, **row} for i, row in enumerate(rows)]


def timed_rows(
    max_size: int = 40, span: int = 200, *, grain: int = MS, unique: bool = False
) -> st.SearchStrategy[list[Row]]:
    """Rows of :data:`SCHEMA`, their times within ``span`` grains, before and after 1970.

    Args:
        max_size: of the list.
        span: how many different times there are.
        grain: microseconds between them.
        unique: no two rows have the same time.
    """
    times = st.integers(-span // 4, span - span // 4).map(lambda n: n * grain)
    values = st.none() | st.integers(-20, 20)
    if unique:
        row = st.fixed_dictionaries({"key": keys(), "t": times, "v": values})
        return lists_of(row, max_size, unique_by=lambda r: r["t"]).map(numbered)
    return rows_of(max_size, key=keys(), t=times, v=values).map(numbered)


# ---------------------------------------------------------------------------------- windows


def tumbling(size: timedelta, offset: timedelta = timedelta()) -> Callable[[int], list[Span]]:
    return sliding(size, size, offset)


def sliding(
    size: timedelta, slide: timedelta, offset: timedelta = timedelta()
) -> Callable[[int], list[Span]]:
    """The windows that a time is in: starts are ``offset`` plus a multiple of ``slide``."""
    width, step, shift = us(size), us(slide), us(offset)

    def spans(t: int) -> list[Span]:
        latest = (t - shift) // step * step + shift
        starts = [latest - i * step for i in range(width // step + 1)]
        return [(start, start + width) for start in starts if start <= t < start + width]

    return spans


def local_days(days: int, slide: int, zone: str, offset: timedelta) -> Callable[[int], list[Span]]:
    """Windows of whole days of the local calendar, which begin at a time of the local clock."""
    tz = ZoneInfo(zone)

    def begin(day: int) -> int:
        clock = datetime(1970, 1, 1) + timedelta(days=day) + offset
        return us(clock.replace(tzinfo=tz) - EPOCH)

    def spans(t: int) -> list[Span]:
        day = t // us(timedelta(days=1))
        near = [d for d in range(day - 2 * days - 2, day + 3) if d % slide == 0]
        bounds = [(begin(d), begin(d + days)) for d in near]
        return [(start, end) for start, end in bounds if start <= t < end]

    return spans


def panes(
    rows: Iterable[Row], spans: Callable[[int], list[Span]], key: str | None = "key", at: str = "t"
) -> dict[Pane, list[Row]]:
    """The rows of every key and window."""
    found: dict[Pane, list[Row]] = defaultdict(list)
    for row in rows:
        for start, end in spans(row[at]):
            found[(row[key] if key else None, start, end)].append(row)
    return dict(found)


def sessions(
    rows: Iterable[Row], gap: timedelta, key: str | None = "key", at: str = "t"
) -> dict[Pane, list[Row]]:
    """The sessions of every key: rows that follow each other in less than ``gap``."""
    by_key: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        by_key[row[key] if key else None].append(row)
    found: dict[Pane, list[Row]] = {}
    for value, own in by_key.items():
        session: list[Row] = []
        for row in sorted(own, key=lambda r: r[at]):
            if session and row[at] - session[-1][at] >= us(gap):
                found[(value, session[0][at], session[-1][at] + us(gap))] = session
                session = []
            session.append(row)
        found[(value, session[0][at], session[-1][at] + us(gap))] = session
    return found


# ---------------------------------------------------------------------------------- results


def plain(value: Any) -> Any:
    """Datetimes as microseconds, whatever their zone."""
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
        return us(aware - EPOCH)
    return value


def plain_rows(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [{name: plain(value) for name, value in row.items()} for row in rows]


def by_pane(rows: Iterable[Mapping[str, Any]], key: str = "key") -> dict[Pane, list[Row]]:
    """Results by key and window, in the order in which they came; without key and window."""
    found: dict[Pane, list[Row]] = defaultdict(list)
    for row in plain_rows(rows):
        pane = (row.pop(key, None), row.pop("window_start"), row.pop("window_end"))
        found[pane].append(row)
    return dict(found)


def only(results: Mapping[Pane, list[Row]]) -> dict[Pane, Row]:
    """Results of windows that spoke once each."""
    assert {pane: rows for pane, rows in results.items() if len(rows) != 1} == {}
    return {pane: rows[0] for pane, rows in results.items()}


def values(rows: Iterable[Row], column: str = "v") -> list[Any]:
    """The values that count, in the order of time."""
    ordered = sorted(rows, key=lambda r: r["t"])
    return [row[column] for row in ordered if row[column] is not None]
