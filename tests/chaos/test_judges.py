"""A judge who never complains proves nothing: each wrong output here must be found."""

from __future__ import annotations

import pytest

from tests.chaos.judges import Row, Verdict, judge_rows

GOOD = [Row(1, 0, 1, 0), Row(1, 1, 1, 1), Row(2, 0, 2, 2), Row(3, 1, 2, 3), Row(3, 0, 3, 4)]


def judged(rows: list[Row]) -> Verdict:
    verdict = Verdict()
    judge_rows(verdict, "sink", rows, inputs=5)
    return verdict


def test_every_input_once_and_counts_in_order_is_clean() -> None:
    assert judged(GOOD).clean


def test_a_missing_input_is_lost() -> None:
    verdict = judged(GOOD[:-1])
    assert (verdict.lost, verdict.duplicated) == (1, 0)
    assert not verdict.clean


def test_an_input_that_is_there_three_times_is_duplicated_twice() -> None:
    verdict = judged([*GOOD, GOOD[1], GOOD[1]])
    assert (verdict.lost, verdict.duplicated) == (0, 2)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([*GOOD[:4], Row(3, 0, 4, 4)], id="a count is skipped: a gap in the state"),
        pytest.param([*GOOD[:4], Row(3, 0, 2, 4)], id="a count comes again: state too old"),
        pytest.param(
            [Row(2, 0, 1, 0), GOOD[1], Row(1, 0, 2, 2), *GOOD[3:]], id="commits out of order"
        ),
        pytest.param(
            [GOOD[0], GOOD[1], GOOD[2], Row(3, 0, 3, 4), Row(3, 1, 1, 3)], id="a key restarted"
        ),
        pytest.param([*GOOD, Row(4, 0, 4, 17)], id="a row that nobody asked for"),
    ],
)
def test_what_is_neither_lost_nor_duplicated_and_still_wrong_is_a_complaint(
    rows: list[Row],
) -> None:
    verdict = judged(rows)
    assert (verdict.lost, verdict.duplicated) == (0, 0)
    assert len(verdict.complaints) == 1
