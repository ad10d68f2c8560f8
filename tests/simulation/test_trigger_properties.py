"""However often windows speak, and however late rows come: it all adds up to the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.aggregates import collect_list, count, sum_
from helios_ray.stream import DataStream
from helios_ray.windows import (
    GlobalWindow,
    ProcessWindowFunction,
    SessionWindow,
    SlidingWindow,
    Trigger,
    TumblingWindow,
    Window,
)
from tests.simulation.oracle import (
    SCHEMA,
    by_pane,
    ms,
    only,
    panes,
    sessions,
    sliding,
    timed_rows,
    tumbling,
    values,
)
from tests.simulation.programs import Case, Row, Stage, cases, few

Batch = dict[Any, list[Row]]
Spec = tuple[Any, Callable[[list[Row]], Batch]]


def everything(rows: list[Row]) -> Batch:
    return {
        (key, None, None): [row for row in rows if row["key"] == key]
        for key in {row["key"] for row in rows}
    }


FIXED: dict[str, Spec] = {
    "tumbling": (TumblingWindow(ms(60)), lambda rows: panes(rows, tumbling(ms(60)))),
    "sliding": (SlidingWindow(ms(80), ms(30)), lambda rows: panes(rows, sliding(ms(80), ms(30)))),
}
GLOBAL: Spec = (GlobalWindow(), everything)
SESSION: Spec = (SessionWindow(ms(12)), lambda rows: sessions(rows, ms(12)))


def early() -> st.SearchStrategy[Trigger]:
    """Every few rows, or every few milliseconds of processing time."""
    by_rows = st.integers(1, 5).map(lambda n: Trigger.early(rows=n))
    by_clock = st.integers(5, 400).map(lambda n: Trigger.early(every=ms(n)))
    return by_rows | by_clock


def ids(rows: list[Row]) -> list[int]:
    return sorted(row["id"] for row in rows)


SAID = {"n": count(), "total": sum_("v"), "ids": collect_list("id")}


def said(rows: list[Row]) -> Row:
    vs = values(rows)
    return {"n": len(rows), "total": sum(vs) if vs else None, "ids": ids(rows)}


def tidy(results: dict[Any, list[Row]]) -> dict[Any, list[Row]]:
    """Lists sorted: the order of rows of the same time is that of arrival."""
    return {
        pane: [{**row, "ids": sorted(row["ids"])} for row in rows] for pane, rows in results.items()
    }


def disordered(stage: Stage, rows: list[Row], by: float) -> DataStream:
    """Rows that come up to ``by`` milliseconds later than the watermarks know."""
    return stage.stream(rows, schema=SCHEMA, time="t", disorder=stage.case.bound + ms(by))


@given(
    case=cases(),
    rows=timed_rows(),
    kind=st.sampled_from(["tumbling", "sliding", "global"]),
    trigger=early(),
)
@settings(few, max_examples=15)
def test_early_results_grow_into_the_result_of_the_batch(
    case: Case, rows: list[Row], kind: str, trigger: Trigger
) -> None:
    stage = Stage(case)
    window, batch = {**FIXED, "global": GLOBAL}[kind]
    keyed = stage.stream(rows, schema=SCHEMA, time="t").key_by("key")
    cut = keyed.window(window).trigger(trigger)
    found = tidy(by_pane(stage.rows(cut.aggregate(SAID, uid="w"))))
    expected = batch(rows)
    assert {pane: results[-1] for pane, results in found.items()} == {
        pane: said(own) for pane, own in expected.items()
    }
    for results in found.values():
        for one, following in pairwise(results):
            assert set(one["ids"]) <= set(following["ids"])


@given(case=cases(), rows=timed_rows(), trigger=early())
@few
def test_early_results_of_sessions_end_in_those_of_the_batch(
    case: Case, rows: list[Row], trigger: Trigger
) -> None:
    """A session that spoke early may have grown since: its last bounds are the batch's."""
    stage = Stage(case)
    window, batch = SESSION
    keyed = stage.stream(rows, schema=SCHEMA, time="t").key_by("key")
    cut = keyed.window(window).trigger(trigger)
    found = tidy(by_pane(stage.rows(cut.aggregate(SAID, uid="w"))))
    expected = {pane: said(own) for pane, own in batch(rows).items()}
    assert {pane: found[pane][-1] for pane in expected} == expected
    for (key, start, end), results in found.items():
        inside = [
            bounds
            for bounds in expected
            if bounds[0] == key and bounds[1] <= start and end <= bounds[2]
        ]
        assert len(inside) == 1
        for row in results:
            assert set(row["ids"]) <= set(expected[inside[0]]["ids"])


@given(
    case=cases(),
    rows=timed_rows(),
    kind=st.sampled_from(["tumbling", "sliding", "global"]),
    trigger=early() | st.just(Trigger.on_watermark()),
    lateness=st.integers(0, 300).map(ms),
    disorder=st.sampled_from([0, 40, 150]),
)
@settings(few, max_examples=20)
def test_what_discarding_windows_say_adds_up_to_the_rows_that_were_not_late(
    case: Case,
    rows: list[Row],
    kind: str,
    trigger: Trigger,
    lateness: timedelta,
    disorder: int,
) -> None:
    stage = Stage(case)
    window, batch = {**FIXED, "global": GLOBAL}[kind]
    cut = disordered(stage, rows, disorder).key_by("key").window(window).trigger(trigger)
    if kind != "global":
        cut = cut.allowed_lateness(lateness)
    results = cut.discarding().aggregate(SAID, uid="w")
    results.late().collect(uid="late")
    results.collect(uid="out")
    stage.run_all()
    late = {row["id"] for row in stage.committed("late")}
    pieces = by_pane(stage.committed("out"))
    there = pieces_of(pieces)
    taken = [row for row in rows if row["id"] not in late]
    # A row that is late for the older of two windows that hold it may be in time for the other.
    assert {pane: there[pane] for pane in there if there[pane]} == held(taken, there, batch)
    for pane, own in pieces.items():
        total = [piece["total"] for piece in own if piece["total"] is not None]
        vs = [row["v"] for row in rows if there[pane][row["id"]] and row["v"] is not None]
        assert sum(total) == sum(vs)
        assert [len(piece["ids"]) for piece in own] == [piece["n"] for piece in own]


def pieces_of(pieces: dict[Any, list[Row]]) -> dict[Any, Counter[int]]:
    return {pane: Counter(i for piece in own for i in piece["ids"]) for pane, own in pieces.items()}


def held(
    taken: list[Row],
    found: dict[Any, Counter[int]],
    batch: Callable[[list[Row]], Batch],
) -> dict[Any, Counter[int]]:
    """The rows that windows must hold, given which were not late.

    A row that is in no window any more is late. One that was taken is in the youngest of its
    windows for certain, and in an older one unless that was over, with all older ones.
    """
    expected: dict[Any, Counter[int]] = {}
    whole = batch(taken)
    by_row: dict[int, list[Any]] = {}
    for pane, own in whole.items():
        for row in own:
            by_row.setdefault(row["id"], []).append(pane)
    for i, panes_of_row in by_row.items():
        ordered = sorted(panes_of_row, key=lambda pane: (pane[2] is not None, pane[2] or 0))
        present = [found.get(pane, Counter())[i] == 1 for pane in ordered]
        first = present.index(True) if True in present else len(ordered) - 1
        for pane in ordered[first:]:
            expected.setdefault(pane, Counter())[i] += 1
    return expected


@given(
    case=cases(),
    rows=timed_rows(),
    kind=st.sampled_from(sorted(FIXED)),
    trigger=early() | st.just(Trigger.on_watermark()),
    lateness=st.integers(0, 300).map(ms),
    disorder=st.sampled_from([0, 40, 150]),
)
@few
def test_rows_are_in_their_window_or_late_and_the_last_result_holds_all_of_the_window(
    case: Case,
    rows: list[Row],
    kind: str,
    trigger: Trigger,
    lateness: timedelta,
    disorder: int,
) -> None:
    stage = Stage(case)
    window, batch = FIXED[kind]
    cut = disordered(stage, rows, disorder).key_by("key").window(window)
    results = cut.trigger(trigger).allowed_lateness(lateness).aggregate(SAID, uid="w")
    results.late().collect(uid="late")
    results.collect(uid="out")
    stage.run_all()
    late = stage.committed("late")
    known = {row["id"]: row for row in rows}
    assert all(row == known[row["id"]] for row in late)
    late_ids = Counter(row["id"] for row in late)
    assert set(late_ids.values()) <= {1}
    found = tidy(by_pane(stage.committed("out")))
    last = {pane: Counter(results[-1]["ids"]) for pane, results in found.items()}
    taken = [row for row in rows if row["id"] not in late_ids]
    assert last == held(taken, last, batch)
    for results_of_pane in found.values():
        assert results_of_pane[-1] == said([known[i] for i in results_of_pane[-1]["ids"]])
    if disorder == 0:
        assert late == []
        assert last == {pane: Counter(ids(own)) for pane, own in batch(rows).items()}
    if kind == "tumbling":
        assert {pane: ids(own) for pane, own in batch(taken).items()} == {
            pane: results[-1]["ids"] for pane, results in found.items()
        }


@given(case=cases(), rows=timed_rows(), disorder=st.sampled_from([30, 150]))
@few
def test_with_enough_lateness_no_row_is_late_and_the_last_results_are_the_batch(
    case: Case, rows: list[Row], disorder: int
) -> None:
    """Rows of a split that is far behind wait for nobody: the minimum of the splits rules."""
    stage = Stage(case)
    window, batch = FIXED["sliding"]
    cut = disordered(stage, rows, disorder).key_by("key").window(window)
    results = cut.allowed_lateness(ms(disorder)).aggregate(SAID, uid="w")
    results.late().collect(uid="late")
    results.collect(uid="out")
    stage.run_all()
    assert stage.committed("late") == []
    found = tidy(by_pane(stage.committed("out")))
    assert {pane: results[-1] for pane, results in found.items()} == {
        pane: said(own) for pane, own in batch(rows).items()
    }


@given(case=cases(), rows=timed_rows(), disorder=st.sampled_from([30, 150]))
@few
def test_no_row_of_a_session_stream_is_lost_it_is_in_a_session_or_late(
    case: Case, rows: list[Row], disorder: int
) -> None:
    stage = Stage(case)
    window, _ = SESSION
    results = disordered(stage, rows, disorder).key_by("key").window(window).aggregate(
        SAID, uid="w"
    )  # fmt: skip
    results.late().collect(uid="late")
    results.collect(uid="out")
    stage.run_all()
    found = only(tidy(by_pane(stage.committed("out"))))
    held_ids = [i for row in found.values() for i in row["ids"]]
    late_ids = [row["id"] for row in stage.committed("late")]
    assert sorted(held_ids + late_ids) == ids(rows)
    known = {row["id"]: row for row in rows}
    for (key, start, end), row in found.items():
        assert sessions([known[i] for i in row["ids"]], ms(12)).keys() == {(key, start, end)}


@given(
    case=cases(),
    rows=timed_rows(),
    lateness=st.sampled_from([0, 60]).map(ms),
    local=st.sampled_from([None, True]),
)
@few
def test_late_rows_whose_stream_nobody_reads_are_left_out_and_change_nothing_else(
    case: Case, rows: list[Row], lateness: timedelta, local: bool | None
) -> None:
    stage = Stage(case)
    window, batch = FIXED["tumbling"]
    cut = disordered(stage, rows, 100).key_by("key").window(window).allowed_lateness(lateness)
    made = cut.aggregate({"n": count(), "ids": collect_list("id")}, local_aggregation=local,
                         uid="w")  # fmt: skip
    found = by_pane(stage.rows(made))
    whole = {pane: Counter(ids(own)) for pane, own in batch(rows).items()}
    assert set(found) <= set(whole)
    for pane, results in found.items():
        for row in results:
            assert len(row["ids"]) == row["n"]
            assert Counter(row["ids"]) <= whole[pane]
        grown = [row["n"] for row in results]
        assert grown == sorted(set(grown))


class Ids(ProcessWindowFunction):
    def process(self, key: Row, window: Window, rows: Any) -> Any:
        return [{"ids": sorted(rows["id"].to_pylist())}]


@given(
    case=cases(),
    rows=timed_rows(),
    trigger=early(),
    accumulating=st.booleans(),
    kind=st.sampled_from(sorted(FIXED)),
)
@few
def test_a_process_window_function_that_speaks_early_sees_each_row(
    case: Case, rows: list[Row], trigger: Trigger, accumulating: bool, kind: str
) -> None:
    """All of them the last time if it accumulates, each of them once if it does not."""
    stage = Stage(case)
    window, batch = FIXED[kind]
    keyed = stage.stream(rows, schema=SCHEMA, time="t").key_by("key")
    cut = keyed.window(window).trigger(trigger)
    made = (cut if accumulating else cut.discarding()).process(Ids, uid="w")
    found = by_pane(stage.rows(made))
    seen = {
        pane: sorted(i for row in (results[-1:] if accumulating else results) for i in row["ids"])
        for pane, results in found.items()
    }
    assert seen == {pane: ids(own) for pane, own in batch(rows).items()}


@given(case=cases(), rows=timed_rows(), trigger=early())
@few
def test_without_keys_early_results_end_in_the_batch_as_well(
    case: Case, rows: list[Row], trigger: Trigger
) -> None:
    stage = Stage(case)
    stream = stage.stream(rows, schema=SCHEMA, time="t")
    made = stream.window_all(TumblingWindow(ms(60))).trigger(trigger).aggregate(SAID, uid="w")
    found = tidy(by_pane(stage.rows(made)))
    # Its one task feeds several subtasks of the sink: the fullest result is the last one.
    fullest = {pane: max(results, key=lambda r: r["n"]) for pane, results in found.items()}
    assert fullest == {pane: said(own) for pane, own in panes(rows, tumbling(ms(60)), None).items()}
