"""Which rows are late for a session: windows are merged first, row after row."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.aggregates import count
from helios_ray.elements import MAX_TIMESTAMP, Batch
from helios_ray.operators.windows.fragments import late_rows
from helios_ray.operators.windows.operator import window_operator
from helios_ray.windowing import SessionWindow
from tests.unit.operators.support import batch, opened, tagged_rows

GAP = 5


def sessions(lateness: int = 0, gap: int = GAP) -> Any:
    return opened(
        window_operator(
            ["k"],
            "ts",
            SessionWindow(timedelta(microseconds=gap)),
            {"n": count()},
            allowed_lateness=timedelta(microseconds=lateness),
        )
    )


def send(operator: Any, *times: int, key: str = "a") -> tuple[list[Any], list[int]]:
    """Results that rows make due at once, and the times of those that are late."""
    data = {"k": [key] * len(times), "ts": pa.array(times, pa.int64())}
    out = operator.process_batch(batch(data))
    return said(out), [row["ts"] for row in tagged_rows(out, "late")]


def said(out: list[Batch]) -> list[tuple[int, ...]]:
    """Start, end and count."""
    found: list[tuple[int, ...]] = []
    for made in (b.data for b in out if b.tag is None):
        bounds = [made[c].cast(pa.int64()).to_pylist() for c in ("window_start", "window_end")]
        found += zip(*bounds, made["n"].to_pylist(), strict=True)
    return found


def test_an_old_row_that_touches_an_open_session_is_not_late() -> None:
    operator = sessions()
    send(operator, 10, 12)
    operator.on_watermark(15)  # [10, 17) is open; a row at 8 alone would be over at 13
    assert send(operator, 8) == ([], [])
    assert said(operator.on_watermark(16)) == [(8, 17, 3)]
    assert operator.counters()["operator.late_rows"] == 0


def test_an_old_row_exactly_the_gap_away_is_late() -> None:
    operator = sessions()
    send(operator, 10, 12)
    operator.on_watermark(15)
    assert send(operator, 5) == ([], [5])
    assert send(operator, 6) == ([], [])
    assert operator.counters()["operator.late_rows"] == 1
    assert said(operator.on_watermark(MAX_TIMESTAMP)) == [(6, 17, 3)]


def test_a_session_of_another_key_takes_up_no_one() -> None:
    operator = sessions()
    send(operator, 10, 12)
    operator.on_watermark(15)
    assert send(operator, 10, key="b") == ([], [10])


def test_a_session_that_is_over_takes_up_no_one() -> None:
    operator = sessions()
    send(operator, 10)
    assert said(operator.on_watermark(14)) == [(10, 15, 1)]
    assert send(operator, 9) == ([], [9])


def test_an_old_row_inside_a_long_session_of_few_rows_is_not_late() -> None:
    """What it lies near is a fragment that began long before."""
    operator = sessions()
    send(operator, 0, 4)
    send(operator, 8, 12)
    operator.on_watermark(14)
    assert send(operator, 2, 6, -5) == ([], [-5])
    assert said(operator.on_watermark(MAX_TIMESTAMP)) == [(0, 17, 6)]


def test_within_the_lateness_a_session_that_has_spoken_takes_up_older_rows() -> None:
    operator = sessions(lateness=10)
    send(operator, 10)
    assert said(operator.on_watermark(22)) == [(10, 15, 1)]  # kept until 24
    assert send(operator, 7) == ([(7, 15, 2)], [])  # alone it would be over and late at 21
    assert send(operator, 2) == ([], [2])
    assert said(operator.on_watermark(24)) == []
    assert send(operator, 7) == ([], [7])


def test_an_old_row_bridges_a_session_that_has_spoken_and_one_that_is_open() -> None:
    operator = sessions(lateness=4)
    send(operator, 10, 16)
    assert said(operator.on_watermark(17)) == [(10, 15, 1)]  # kept until 18; [16, 21) is open
    assert send(operator, 13) == ([], [])
    assert said(operator.on_watermark(19)) == []
    assert said(operator.on_watermark(20)) == [(10, 21, 3)]


@pytest.mark.parametrize("together", [True, False])
def test_rows_that_came_before_it_make_the_session_that_an_old_row_belongs_to(
    together: bool,
) -> None:
    """Whether they came in its batch or in one before."""
    first, second = sessions(), sessions()
    first.on_watermark(20)
    second.on_watermark(20)
    times = (18, 14, 11, 7, 2)  # each touches the one before, but for the last
    late = send(first, *times)[1] if together else [t for at in times for t in send(first, at)[1]]
    assert late == [2]
    assert said(first.on_watermark(MAX_TIMESTAMP)) == [(7, 23, 4)]
    # The other way round no session is there yet when the old ones come.
    times = times[::-1]
    late = send(second, *times)[1] if together else [t for at in times for t in send(second, at)[1]]
    assert late == [2, 7, 11, 14]
    assert said(second.on_watermark(MAX_TIMESTAMP)) == [(18, 23, 1)]


def test_what_comes_later_in_a_batch_does_not_reach_back() -> None:
    operator = sessions()
    operator.on_watermark(20)
    # 13 is exactly the gap away from 18; 15 lies between them and comes too late for it.
    assert send(operator, 18, 13, 15) == ([], [13])
    assert said(operator.on_watermark(MAX_TIMESTAMP)) == [(15, 23, 2)]


def test_old_rows_far_from_everything_are_late_however_near_each_other() -> None:
    operator = sessions()
    send(operator, 30)
    operator.on_watermark(32)
    assert send(operator, 1, 2, 31, 3) == ([], [1, 2, 3])


@given(
    rows=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 14)), min_size=1, max_size=14),
    kept=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 14), st.integers(0, 3)), max_size=3),
    limits=st.tuples(*[st.integers(4, 14)] * 2),
    gap=st.integers(1, 4),
)
@settings(max_examples=100, deadline=None)
def test_late_rows_are_those_of_one_row_after_the_other(
    rows: list[tuple[int, int]],
    kept: list[tuple[int, int, int]],
    limits: tuple[int, ...],
    gap: int,
) -> None:
    """Each key has a limit of its own, as after rescaling."""
    held = [(slot, start, start + length) for slot, start, length in kept]
    expected = []
    for slot, time in rows:
        own = [(first, last) for s, first, last in held if s == slot]
        near = any(time - last < gap and first - time < gap for first, last in own)
        late = time <= limits[slot] and not near
        expected.append(late)
        if not late:
            held.append((slot, time, time))
    slots, times = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    parts = [tuple(np.array([n], np.int64) for n in (s, at, at + more)) for s, at, more in kept]
    old = times <= np.array(limits)[slots]
    found = late_rows(slots, times, old, parts, gap, 2)  # type: ignore[arg-type]
    assert (found is None and not any(expected)) or (
        found is not None and found.tolist() == expected
    )
