"""Windows over a stream say what a batch over the same rows would: each kind of window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.aggregates import collect_list, count, max_, mean, min_, sum_
from helios_ray.windows import (
    CountWindow,
    GlobalWindow,
    ProcessWindowFunction,
    SessionWindow,
    SlidingWindow,
    TumblingWindow,
    Window,
)
from tests.simulation.oracle import (
    EPOCH,
    SCHEMA,
    by_pane,
    local_days,
    ms,
    only,
    panes,
    plain,
    sessions,
    sliding,
    timed_rows,
    tumbling,
    us,
    values,
)
from tests.simulation.programs import Case, Row, Stage, cases, few, multiset

NAMED = {"n": count(), "total": sum_("v"), "low": min_("v"), "high": max_("v")}


def summary(rows: Iterable[Row]) -> Row:
    """What ``NAMED`` says of the rows of a window."""
    rows = list(rows)
    vs = values(rows)
    return {
        "n": len(rows),
        "total": sum(vs) if vs else None,
        "low": min(vs, default=None),
        "high": max(vs, default=None),
    }


def summaries(found: dict[Any, list[Row]]) -> dict[Any, Row]:
    return {pane: summary(rows) for pane, rows in found.items()}


def ran(stage: Stage, stream: Any, **key: str) -> dict[Any, Row]:
    """Results by key and window, of which each spoke once."""
    return only(by_pane(stage.rows(stream), **key))


@given(
    case=cases(),
    rows=timed_rows(),
    size=st.integers(1, 60).map(ms),
    offset=st.integers(-70, 70).map(ms),
    local=st.sampled_from([None, True, False]),
)
@few
def test_tumbling_windows_are_a_group_by_of_the_time(
    case: Case, rows: list[Row], size: timedelta, offset: timedelta, local: bool | None
) -> None:
    stage = Stage(case)
    keyed = stage.stream(rows, schema=SCHEMA, time="t").key_by("key")
    made = keyed.window(TumblingWindow(size, offset)).aggregate(
        **NAMED, local_aggregation=local, uid="w"
    )
    assert ran(stage, made) == summaries(panes(rows, tumbling(size, offset)))


@given(
    case=cases(),
    rows=timed_rows(),
    slide=st.integers(1, 30),
    more=st.integers(0, 60),
    offset=st.integers(-40, 40).map(ms),
    local=st.sampled_from([None, True, False]),
)
@few
def test_sliding_windows_hold_each_row_in_every_window_over_it_whether_or_not_slide_divides_size(
    case: Case, rows: list[Row], slide: int, more: int, offset: timedelta, local: bool | None
) -> None:
    stage = Stage(case)
    window = SlidingWindow(ms(slide + more), ms(slide), offset)
    keyed = stage.stream(rows, schema=SCHEMA, time="t").key_by("key")
    made = keyed.window(window).aggregate(**NAMED, local_aggregation=local, uid="w")
    assert ran(stage, made) == summaries(panes(rows, sliding(window.size, window.slide, offset)))


@given(case=cases(), rows=timed_rows(), gap=st.integers(1, 40).map(ms))
@few
def test_sessions_end_where_a_gap_of_silence_begins(
    case: Case, rows: list[Row], gap: timedelta
) -> None:
    stage = Stage(case)
    keyed = stage.stream(rows, schema=SCHEMA, time="t").key_by("key")
    made = keyed.window(SessionWindow(gap)).aggregate(**NAMED, uid="w")
    assert ran(stage, made) == summaries(sessions(rows, gap))


KINDS: dict[str, tuple[Any, Callable[[list[Row]], dict[Any, list[Row]]]]] = {
    "tumbling": (TumblingWindow(ms(20)), lambda rows: panes(rows, tumbling(ms(20)), None)),
    "sliding": (
        SlidingWindow(ms(25), ms(10)),
        lambda rows: panes(rows, sliding(ms(25), ms(10)), None),
    ),
    "session": (SessionWindow(ms(7)), lambda rows: sessions(rows, ms(7), None)),
}


@given(case=cases(), rows=timed_rows(), kind=st.sampled_from(sorted(KINDS)))
@few
def test_window_all_sees_the_rows_of_all_keys_together(
    case: Case, rows: list[Row], kind: str
) -> None:
    stage = Stage(case)
    window, batch = KINDS[kind]
    everything = stage.stream(rows, schema=SCHEMA, time="t")
    made = everything.window_all(window).aggregate(**NAMED, uid="w")
    assert ran(stage, made) == summaries(batch(rows))


@given(
    case=cases(),
    rows=timed_rows(),
    n=st.integers(1, 6),
    slide=st.integers(1, 6),
    keyed=st.booleans(),
)
@few
def test_count_windows_speak_once_for_every_so_many_rows_of_a_key(
    case: Case, rows: list[Row], n: int, slide: int, keyed: bool
) -> None:
    """Which rows they hold depends on the order of arrival; how many does not."""
    stage = Stage(case)
    slide = min(n, slide)
    stream = stage.stream(rows, schema=SCHEMA)
    window = CountWindow(n, slide)
    cut = stream.key_by("key").window(window) if keyed else stream.window_all(window)
    found = by_pane(stage.rows(cut.aggregate(n=count(), ids=collect_list("id"), uid="w")))
    of_key = Counter(row["key"] if keyed else None for row in rows)
    expected = {
        (key, end - n, end): min(n, end)
        for key, total in of_key.items()
        for end in range(slide, total + 1, slide)
    }
    bounds = {(key, max(0, start), end): size for (key, start, end), size in expected.items()}
    assert {
        (key, max(0, start), end): row["n"] for (key, start, end), row in only(found).items()
    } == bounds
    assert all(len(set(row["ids"])) == row["n"] for [row] in found.values())
    if slide == n:  # then no row is in two windows
        ids = [i for [row] in found.values() for i in row["ids"]]
        assert len(ids) == len(set(ids)) == sum(total // n * n for total in of_key.values())


@given(case=cases(), rows=timed_rows(), n=st.integers(1, 5))
@few
def test_count_windows_of_one_split_hold_the_rows_of_a_key_in_their_order(
    case: Case, rows: list[Row], n: int
) -> None:
    stage = Stage(Case(seed=case.seed, splits=1, parallelism=case.parallelism, calm=case.calm))
    keyed = stage.stream(rows, schema=SCHEMA).key_by("key")
    found = ran(stage, keyed.window(CountWindow(n)).aggregate(ids=collect_list("id"), uid="w"))
    expected = {}
    for key in {row["key"] for row in rows}:
        ids = [row["id"] for row in rows if row["key"] == key]
        for end in range(n, len(ids) + 1, n):
            expected[(key, end)] = ids[end - n : end]
    assert {(key, end): row["ids"] for (key, _, end), row in found.items()} == expected


@given(
    case=cases(),
    rows=timed_rows(),
    keyed=st.booleans(),
    local=st.sampled_from([None, True, False]),
)
@few
def test_a_global_window_is_a_batch_over_everything(
    case: Case, rows: list[Row], keyed: bool, local: bool | None
) -> None:
    stage = Stage(case)
    stream = stage.stream(rows, schema=SCHEMA)
    cut = (
        stream.key_by("key").window(GlobalWindow()) if keyed else stream.window_all(GlobalWindow())
    )
    made = cut.aggregate(**NAMED, local_aggregation=local, uid="w")
    expected: dict[Any, list[Row]] = {}
    for row in rows:
        expected.setdefault((row["key"] if keyed else None, None, None), []).append(row)
    assert ran(stage, made) == summaries(expected)


ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]
CHANGES = [
    datetime(2024, 3, 10),
    datetime(2024, 3, 31),
    datetime(2024, 4, 7),
    datetime(2024, 10, 27),
]
HOUR = 3_600_000_000


@given(
    case=cases(),
    change=st.sampled_from(CHANGES),
    hours=st.lists(st.tuples(st.integers(-60, 60), st.integers(0, 3)), max_size=40),
    zone=st.sampled_from(ZONES),
    days=st.integers(1, 3),
    slide=st.integers(1, 3),
    offset=st.sampled_from([0, 6, -5]).map(lambda h: timedelta(hours=h)),
    stamped=st.sampled_from([pa.timestamp("us", "UTC"), pa.timestamp("us")]),
)
@few
def test_days_of_a_time_zone_begin_at_its_midnight_on_the_days_its_clocks_change_as_well(
    case: Case,
    change: datetime,
    hours: list[tuple[int, int]],
    zone: str,
    days: int,
    slide: int,
    offset: timedelta,
    stamped: pa.DataType,
) -> None:
    stage = Stage(case)
    base = us(change.replace(tzinfo=timezone.utc) - EPOCH)
    times = [base + h * HOUR + quarter * HOUR // 4 for h, quarter in hours]
    at = [EPOCH + timedelta(microseconds=t) for t in times]
    naive = stamped.tz is None
    rows = [
        {"key": "abc"[i % 3], "ts": t.replace(tzinfo=None) if naive else t}
        for i, t in enumerate(at)
    ]
    schema = pa.schema([("key", pa.string()), ("ts", stamped)])
    slide = min(days, slide)
    window = (
        TumblingWindow(timedelta(days=days), offset, tz=zone)
        if slide == days
        else SlidingWindow(timedelta(days=days), timedelta(days=slide), offset, tz=zone)
    )
    keyed = stage.stream(rows, schema=schema, time="ts").key_by("key")
    made = keyed.window(window).aggregate(n=count(), uid="w")
    instants = [{**row, "ts": plain(row["ts"])} for row in rows]
    expected = panes(instants, local_days(days, slide, zone, offset), at="ts")
    assert ran(stage, made) == {pane: {"n": len(own)} for pane, own in expected.items()}


@given(
    case=cases(),
    rows=timed_rows(),
    size=st.integers(1, 15),
    times=st.integers(1, 4),
    kind=st.sampled_from(["tumbling", "sliding", "session"]),
)
@settings(few, max_examples=15)
def test_windows_over_windows_add_up_to_the_coarser_windows(
    case: Case, rows: list[Row], size: int, times: int, kind: str
) -> None:
    """A window of whole windows, be it of one key or of all, holds what was in those."""
    stage = Stage(case)
    keyed = stage.stream(rows, schema=SCHEMA, time="t").key_by("key")
    fine = keyed.window(TumblingWindow(ms(size))).aggregate(n=count(), total=sum_("v"), uid="fine")
    fine = fine.select("key", "window_end", "n", "total")
    partly = panes(rows, tumbling(ms(size)))
    parts = [{"key": k, "t": end - 1, "rows": own} for (k, _, end), own in partly.items()]
    cut: Any
    if kind == "tumbling":
        cut = fine.window_all(TumblingWindow(ms(size * times)))
        batch = panes(parts, tumbling(ms(size * times)), None)
    elif kind == "sliding":
        cut = fine.key_by("key").window(SlidingWindow(ms(size * times), ms(size)))
        batch = panes(parts, sliding(ms(size * times), ms(size)))
    else:
        cut = fine.key_by("key").window(SessionWindow(ms(size * times)))
        batch = sessions(parts, ms(size * times))
    found = ran(stage, cut.aggregate(rows=sum_("n"), total=sum_("total"), uid="coarse"))
    expected = {}
    for pane, some in batch.items():
        whole = summary(row for part in some for row in part["rows"])
        expected[pane] = {"rows": whole["n"], "total": whole["total"]}
    assert found == expected


class Spread(ProcessWindowFunction):
    """Two rows for a window, none for one of a single row; the rows come in order of time."""

    output_schema = pa.schema([("ids", pa.list_(pa.int64())), ("says", pa.string())])

    def process(self, key: Row, window: Window, rows: pa.Table) -> Any:
        if rows.num_rows > 1:
            ids = rows["id"].to_pylist()
            yield {"ids": ids, "says": f"{key.get('key')} from {plain(window.start)}"}
            yield {"ids": ids[:1], "says": f"to {plain(window.end)}"}


SPECS: dict[str, tuple[Any, Callable[[list[Row], str | None], dict[Any, list[Row]]]]] = {
    "tumbling": (TumblingWindow(ms(20)), lambda rows, key: panes(rows, tumbling(ms(20)), key)),
    "sliding": (
        SlidingWindow(ms(30), ms(7)),
        lambda rows, key: panes(rows, sliding(ms(30), ms(7)), key),
    ),
    "session": (SessionWindow(ms(9)), lambda rows, key: sessions(rows, ms(9), key)),
}


@given(
    case=cases(),
    rows=timed_rows(unique=True),
    kind=st.sampled_from(sorted(SPECS)),
    key=st.sampled_from(["key", None]),
)
@few
def test_a_process_window_function_is_given_the_rows_of_each_window_in_the_order_of_time(
    case: Case, rows: list[Row], kind: str, key: str | None
) -> None:
    stage = Stage(case)
    window, batch = SPECS[kind]
    stream = stage.stream(rows, schema=SCHEMA, time="t")
    cut = stream.key_by(key).window(window) if key else stream.window_all(window)
    found = by_pane(stage.rows(cut.process(Spread, uid="w")))
    expected: dict[Any, list[Row]] = {}
    for (k, start, end), own in batch(rows, key).items():
        ids = [row["id"] for row in sorted(own, key=lambda r: r["t"])]
        if len(ids) > 1:
            expected[(k, start, end)] = [
                {"ids": ids, "says": f"{k} from {start}"},
                {"ids": ids[:1], "says": f"to {end}"},
            ]
    assert found == expected


@given(case=cases(), rows=timed_rows(), size=st.integers(1, 40).map(ms))
@settings(few, max_examples=6)
def test_short_cuts_for_one_aggregate_say_the_same_as_aggregate(
    case: Case, rows: list[Row], size: timedelta
) -> None:
    stage = Stage(case)
    cut = stage.stream(rows, schema=SCHEMA, time="t").key_by("key").window(TumblingWindow(size))
    short = {
        "count": cut.count(uid="n"),
        "sum_v": cut.sum("v", uid="s"),
        "min_v": cut.min("v", uid="lo"),
        "max_v": cut.max("v", uid="hi"),
        "mean_v": cut.mean("v", uid="m"),
    }
    every = cut.aggregate(
        count=count(), sum_v=sum_("v"), min_v=min_("v"), max_v=max_("v"), mean_v=mean("v"), uid="w"
    )
    every.collect(uid="every")
    for name, stream in short.items():
        stream.collect(uid=name)
    stage.run_all()
    together = stage.committed("every")
    assert len(together) == len(panes(rows, tumbling(size)))
    for name in short:
        chosen = [{k: v for k, v in row.items() if k in HEAD or k == name} for row in together]
        assert multiset(stage.committed(name)) == multiset(chosen)


HEAD = ("key", "window_start", "window_end")
