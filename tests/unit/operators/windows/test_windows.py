"""The promises of window operators, one by one."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.aggregates import collect_list, count, sum_
from helios_ray.elements import MAX_TIMESTAMP, Batch
from helios_ray.errors import (
    ConfigError,
    DataError,
    MissingColumnError,
    PlanError,
    SchemaChangedError,
    UserFunctionError,
)
from helios_ray.operators.windows import keys
from helios_ray.operators.windows.operator import window_operator
from helios_ray.operators.windows.slices import slicing_of
from helios_ray.windowing import (
    CountWindow,
    GlobalWindow,
    SessionWindow,
    SlidingWindow,
    Trigger,
    TumblingWindow,
)
from helios_ray.windows import ProcessWindowFunction
from tests.unit.operators.support import batch, main_rows, opened, share_out, tagged_rows
from tests.unit.operators.windows.driving import tight_limits

N = {"n": count()}
DAY = timedelta(days=1)


def us(n: int) -> timedelta:
    return timedelta(microseconds=n)


def made(window: Any, aggregations: Any = N, by: Any = ("k",), **options: Any) -> Any:
    return opened(window_operator(by, "ts", window, aggregations, **options), "w")


def rows(*pairs: tuple[str, int]) -> Batch:
    return batch({"k": [k for k, _ in pairs], "ts": pa.array([t for _, t in pairs], pa.int64())})


def brief(batches: Iterable[Batch]) -> list[tuple[Any, ...]]:
    """Key, start, end and count of what was emitted, times as microseconds."""
    found = []
    for out in batches:
        start, end = (
            out.data[c].cast(pa.int64()).to_pylist() for c in ("window_start", "window_end")
        )
        found += zip(out.data["k"].to_pylist(), start, end, out.data["n"].to_pylist(), strict=True)
    return found


# -------------------------------------------------------------------------------- boundaries


def test_a_row_at_a_boundary_belongs_to_the_window_that_starts_there() -> None:
    operator = made(TumblingWindow(us(10)))
    operator.process_batch(rows(("a", -10), ("a", -1), ("a", 0), ("a", 9), ("a", 10)))
    assert brief(operator.on_watermark(MAX_TIMESTAMP)) == [
        ("a", -10, 0, 2),
        ("a", 0, 10, 2),
        ("a", 10, 20, 1),
    ]


def test_a_window_speaks_at_its_last_microsecond_and_not_before() -> None:
    operator = made(TumblingWindow(us(10)))
    operator.process_batch(rows(("a", 3)))
    assert operator.on_watermark(8) == []
    assert brief(operator.on_watermark(9)) == [("a", 0, 10, 1)]
    assert operator.on_watermark(9) == []


def test_results_come_by_window_end_and_then_by_first_seen_key() -> None:
    operator = made(TumblingWindow(us(10)))
    operator.process_batch(rows(("z", 12), ("b", 1), ("a", 15)))
    operator.process_batch(rows(("a", 2), ("z", 3), ("b", 4)))
    out = brief(operator.on_watermark(30))
    assert [(k, end) for k, _, end, _ in out] == [
        ("b", 10),
        ("a", 10),
        ("z", 10),
        ("z", 20),
        ("a", 20),
    ]


def test_windows_without_rows_do_not_speak_however_wide_the_gap() -> None:
    operator = made(SlidingWindow(us(10), us(1)))
    far = 2**60
    operator.process_batch(rows(("a", -far), ("a", far)))
    out = brief(operator.on_watermark(MAX_TIMESTAMP))
    assert len(out) == 20
    assert out[0] == ("a", -far - 9, -far + 1, 1)
    assert out[-1] == ("a", far, far + 10, 1)


def test_sessions_touch_without_merging_at_exactly_the_gap() -> None:
    operator = made(SessionWindow(us(5)))
    operator.process_batch(rows(("a", 0), ("a", 4), ("a", 9), ("a", 20), ("a", 16)))
    assert brief(operator.on_watermark(MAX_TIMESTAMP)) == [
        ("a", 0, 9, 2),
        ("a", 9, 14, 1),
        ("a", 16, 25, 2),
    ]


def test_a_late_row_can_join_two_sessions_that_have_spoken() -> None:
    operator = made(SessionWindow(us(5)), allowed_lateness=us(100))
    operator.process_batch(rows(("a", 0), ("a", 8)))
    assert len(brief(operator.on_watermark(50))) == 2
    assert brief(operator.process_batch(rows(("a", 4)))) == [("a", 0, 13, 3)]


def test_a_session_kept_for_late_rows_speaks_in_time_when_new_rows_make_it_longer() -> None:
    """Also where a merge of runs has put what was kept and what is new into one fragment."""
    with tight_limits(True):
        operator = made(SessionWindow(us(8)), allowed_lateness=us(30))
        operator.process_batch(rows(("d", 31)))
        assert brief(operator.on_watermark(44)) == [("d", 31, 39, 1)]
        assert operator.process_batch(rows(("d", 38))) == []
        assert operator.store.rows == 1
        assert brief(operator.on_watermark(45)) == [("d", 31, 46, 2)]


def test_count_windows_carry_row_numbers_and_wait_until_they_are_full() -> None:
    operator = made(CountWindow(3, 2))
    out = operator.process_batch(rows(*[("a", 0)] * 5, ("b", 0)))
    assert brief(out) == [("a", 0, 2, 2), ("a", 1, 4, 3)]
    assert operator.on_watermark(MAX_TIMESTAMP) == operator.end_input() == []


def test_the_global_window_speaks_at_the_end_of_the_input() -> None:
    operator = opened(window_operator(["k"], None, GlobalWindow(), N))
    operator.process_batch(rows(("b", 5), ("a", 1), ("b", 2)))
    assert operator.on_watermark(10**15) == []
    assert brief(operator.on_watermark(MAX_TIMESTAMP)) == [
        ("b", None, None, 2),
        ("a", None, None, 1),
    ]


def test_a_stream_without_keys_is_one_group_and_one_task() -> None:
    operator = made(TumblingWindow(us(10)), by=())
    operator.process_batch(rows(("a", 1), ("b", 2), ("c", 11)))
    [state] = share_out([operator.snapshot()], 1)
    operator = made(TumblingWindow(us(10)), by=())
    operator.restore(state)
    out = main_rows(operator.on_watermark(MAX_TIMESTAMP))
    assert [row["n"] for row in out] == [2, 1]
    assert "k" not in out[0]
    with pytest.raises(PlanError, match="is one task, got parallelism=2"):
        opened(window_operator((), "ts", TumblingWindow(us(10)), N), "w", 0, 2)


# ------------------------------------------------------------------------------- lateness


def test_late_rows_go_whole_to_the_side_output_and_are_counted() -> None:
    operator = made(TumblingWindow(us(10)), allowed_lateness=us(5))
    operator.on_watermark(14)
    late = batch({"k": ["a", "b"], "ts": [9, 10], "more": ["x", "y"]}, at="4")
    out = operator.process_batch(late)
    assert tagged_rows(out, "late") == [{"k": "a", "ts": 9, "more": "x"}]
    assert str(out[0].origin) == "rows.csv @ 4 and after"
    assert operator.counters()["operator.late_rows"] == 1


def test_within_the_allowed_lateness_a_window_speaks_again() -> None:
    operator = made(TumblingWindow(us(10)), allowed_lateness=us(5))
    operator.process_batch(rows(("a", 1), ("b", 2)))
    assert len(brief(operator.on_watermark(12))) == 2
    assert brief(operator.process_batch(rows(("a", 3)))) == [("a", 0, 10, 2)]
    assert operator.on_watermark(13) == []


def test_discarding_says_only_what_is_new() -> None:
    operator = made(TumblingWindow(us(10)), allowed_lateness=us(5), accumulating=False)
    operator.process_batch(rows(("a", 1), ("b", 2)))
    assert len(brief(operator.on_watermark(12))) == 2
    assert brief(operator.process_batch(rows(("a", 3)))) == [("a", 0, 10, 1)]


def test_early_results_by_processing_time_wait_for_the_clock_and_for_rows() -> None:
    operator = made(TumblingWindow(us(10)), trigger=Trigger.early(every=us(100)))
    assert operator.next_timer() is None
    operator.process_batch(rows(("a", 1)))
    assert operator.next_timer() == 0
    assert operator.on_processing_time(1_000) == []
    assert operator.next_timer() == 1_100
    assert operator.on_processing_time(1_099) == []
    assert brief(operator.on_processing_time(1_100)) == [("a", 0, 10, 1)]
    assert operator.next_timer() is None
    assert brief(operator.on_watermark(9)) == [("a", 0, 10, 1)]


# ------------------------------------------------------------------------------- time zones


def day_starts(tz: str, *days: date) -> list[datetime]:
    return [datetime(d.year, d.month, d.day, tzinfo=ZoneInfo(tz)) for d in days]


def test_a_local_day_has_23_or_25_hours_where_the_clock_is_changed() -> None:
    tz = "America/New_York"
    hours = [datetime(2024, 3, 9, tzinfo=timezone.utc) + timedelta(hours=h) for h in range(24 * 4)]
    hours += [datetime(2024, 11, 2, tzinfo=timezone.utc) + timedelta(hours=h) for h in range(96)]
    operator = made(TumblingWindow(DAY, tz=tz))
    operator.process_batch(
        batch({"k": ["a"] * len(hours), "ts": pa.array(hours, pa.timestamp("ms", tz))})
    )
    out = {
        row["window_start"].date().isoformat(): row["n"]
        for row in main_rows(operator.on_watermark(MAX_TIMESTAMP))
    }
    assert out["2024-03-10"] == 23
    assert out["2024-11-03"] == 25
    assert out["2024-03-11"] == out["2024-11-04"] == 24


@settings(deadline=None, max_examples=60)
@given(
    tz=st.sampled_from(
        ["America/New_York", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu", "Asia/Beirut"]
    ),
    moments=st.lists(
        st.datetimes(datetime(1995, 1, 1), datetime(2030, 1, 1)), min_size=1, max_size=20
    ),
    days=st.integers(1, 3),
)
def test_local_days_are_those_of_the_calendar(tz: str, moments: list[datetime], days: int) -> None:
    zone = ZoneInfo(tz)
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    instants = [m.replace(tzinfo=timezone.utc) for m in moments]
    slicing = slicing_of(TumblingWindow(days * DAY, tz=tz))
    slices = slicing.slices(np.array([(m - epoch) // us(1) for m in instants]))
    want = [(m.astimezone(zone).date() - date(1970, 1, 1)).days // days for m in instants]
    assert slices.tolist() == want
    starts, ends = slicing.bounds(slices) or (None, None)
    for instant, start, end in zip(instants, starts.tolist(), ends.tolist(), strict=True):
        begin = (epoch + us(start)).astimezone(zone)
        assert epoch + us(start) <= instant < epoch + us(end)
        assert (begin - us(1)).date() <= begin.date()
        assert (epoch + us(start) - us(1)).astimezone(zone).date() < begin.date()


@pytest.mark.parametrize(
    ("tz", "day", "begins"),
    [
        ("America/Sao_Paulo", date(2018, 11, 4), "2018-11-04T03:00:00"),  # 00:00 is skipped
        ("America/Toronto", date(1919, 3, 31), "1919-03-31T04:30:00"),  # 23:30 becomes 00:30
        ("Pacific/Apia", date(2011, 12, 31), "2011-12-30T10:00:00"),  # the 30th does not exist
        ("Asia/Beirut", date(2022, 10, 30), "2022-10-29T22:00:00"),  # 24:00 becomes 23:00
        ("America/Havana", date(2022, 11, 6), "2022-11-06T04:00:00"),  # 00:00 comes twice
        ("America/St_Johns", date(2010, 11, 7), "2010-11-07T02:30:00"),  # 00:01 becomes 23:01
    ],
)
def test_a_day_begins_at_its_first_instant_where_midnight_is_odd(
    tz: str, day: date, begins: str
) -> None:
    slicing = slicing_of(TumblingWindow(DAY, tz=tz))
    start = slicing.starts(np.array([(day - date(1970, 1, 1)).days]))[0]
    assert datetime(1970, 1, 1) + us(int(start)) == datetime.fromisoformat(begins)
    assert slicing.slices(np.array([start, start - 1])).tolist()[0] == (day - date(1970, 1, 1)).days
    assert slicing.slices(np.array([start - 1]))[0] < (day - date(1970, 1, 1)).days


def test_an_offset_in_a_zone_is_on_the_local_clock() -> None:
    tz = "Europe/Berlin"
    operator = made(TumblingWindow(DAY, timedelta(hours=6), tz))
    six = datetime(2024, 3, 31, 6, tzinfo=ZoneInfo(tz))  # an hour was skipped at 02:00
    moments = [six.astimezone(timezone.utc) - us(1), six]
    operator.process_batch(
        batch({"k": ["a", "a"], "ts": pa.array(moments, pa.timestamp("us", tz))})
    )
    out = main_rows(operator.on_watermark(MAX_TIMESTAMP))
    assert [(row["window_start"], row["n"]) for row in out] == [
        (datetime(2024, 3, 30, 6, tzinfo=ZoneInfo(tz)), 1),
        (six, 1),
    ]


# -------------------------------------------------------------------- functions of windows


class Ranks(ProcessWindowFunction):
    def process(self, key: Any, window: Any, rows: pa.Table) -> Any:
        for i, ts in enumerate(rows["ts"].to_pylist()):
            yield {"place": i, "of": rows.num_rows, "who": key["k"], "at": ts, "from": window.start}


def test_a_process_window_function_gets_the_rows_in_time_order_across_a_restart() -> None:
    def make() -> Any:
        return opened(window_operator(["k"], "ts", SlidingWindow(us(10), us(5)), process=Ranks()))

    operator = make()
    operator.process_batch(rows(("a", 7), ("b", 1)))
    [state] = share_out([operator.snapshot()], 1)
    operator = make()
    operator.restore(state)
    operator.process_batch(rows(("a", 3)))
    out = [row for row in main_rows(operator.on_watermark(MAX_TIMESTAMP)) if row["k"] == "a"]
    assert [(row["window_end"].microsecond, row["place"], row["of"], row["at"]) for row in out] == [
        (5, 0, 1, 3),
        (10, 0, 2, 3),
        (10, 1, 2, 7),
        (15, 0, 1, 7),
    ]
    assert all(row["who"] == "a" and row["from"] == row["window_start"] for row in out)


def test_a_process_window_function_that_raises_names_key_and_window() -> None:
    class Broken(ProcessWindowFunction):
        def process(self, key: Any, window: Any, rows: pa.Table) -> Any:
            raise ValueError("no")

    operator = opened(window_operator(["k"], "ts", TumblingWindow(us(10)), process=Broken()), "p")
    operator.process_batch(rows(("a", 1)))
    with pytest.raises(UserFunctionError, match=r"window 'p'.*ValueError: no on key {'k': 'a'}"):
        operator.on_watermark(9)


# ------------------------------------------------------------------------- state and memory


def test_a_snapshot_holds_keys_and_partials_as_columns_and_does_not_change_later() -> None:
    operator = made(TumblingWindow(us(10)), {"n": count(), "s": sum_("ts"), "l": collect_list("k")})
    operator.process_batch(rows(("a", 1), ("b", 12), ("a", 3)))
    table = operator.snapshot()["windows"].table
    before = table.to_pylist()
    operator.process_batch(rows(("a", 2)))
    operator.on_watermark(50)
    assert table.to_pylist() == before
    assert table.schema.names[:3] == ["key_group", "key.k", "slice"]
    by_key = {
        row["key.k"]: (row["slice"], row["value.n.count"], row["value.s.sum"]) for row in before
    }
    assert by_key == {"a": (0, 2, 4), "b": (1, 1, 12)}


def test_a_snapshot_makes_the_table_of_each_run_once() -> None:
    operator = made(TumblingWindow(us(10)))
    operator.process_batch(rows(("a", 1)))

    def places() -> list[int]:
        chunks = operator.snapshot()["windows"].table["key.k"].chunks
        return [chunk.buffers()[2].address for chunk in chunks if len(chunk)]

    first = places()
    operator.process_batch(rows(("b", 1)))
    assert len(first) == 1
    assert places()[:1] == first
    assert len(places()) == 2


def test_keys_are_forgotten_with_their_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "FORGET_ABOVE", 100)
    operator = made(TumblingWindow(us(10)))
    for i in range(200):
        operator.process_batch(rows(*[(f"{i}-{j}", 10 * i) for j in range(20)]))
        assert len(operator.on_watermark(10 * i + 9)) == 1
        assert len(operator.space) <= 120


def test_partial_rows_do_not_grow_with_the_number_of_rows() -> None:
    for window in (SlidingWindow(us(1000), us(100)), SessionWindow(us(1000))):
        operator = made(window)
        for i in range(300):
            operator.process_batch(rows(("a", i), ("b", i)))
        assert operator.store.rows <= 2 * 10 * 8 * 3


def test_changed_aggregations_are_refused_with_the_way_out() -> None:
    operator = made(TumblingWindow(us(10)))
    operator.process_batch(rows(("a", 1)))
    [state] = share_out([operator.snapshot()], 1)
    with pytest.raises(SchemaChangedError, match=r"aggregations.*new uid"):
        made(TumblingWindow(us(10)), {"m": count()}).restore(state)


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("value", "problem"), [(None, "is null"), (2**62, "is out of range")])
def test_a_row_without_an_event_time_is_named_or_set_aside(value: Any, problem: str) -> None:
    bad = batch({"k": ["a", "b"], "ts": pa.array([1, value], pa.int64())}, at="7")
    with pytest.raises(
        DataError, match=rf"window 'w'.*'ts' {problem} in row 1.*rows.csv @ 7 \+ row 1"
    ):
        made(TumblingWindow(us(10))).process_batch(bad)
    operator = made(TumblingWindow(us(10)), on_error="dead_letter")
    [letter] = tagged_rows(operator.process_batch(bad), "dead_letter")
    assert letter["position"] == "rows.csv @ 7 + row 1"
    assert brief(operator.on_watermark(9)) == [("a", 0, 10, 1)]


def test_event_times_may_be_timestamps_of_any_unit_and_zone() -> None:
    for kind in (pa.timestamp("s"), pa.timestamp("ns", "Asia/Tokyo"), pa.timestamp("ms")):
        operator = made(TumblingWindow(timedelta(seconds=10)))
        operator.process_batch(
            batch({"k": ["a"], "ts": pa.array([13], pa.timestamp("s")).cast(kind)})
        )
        [out] = operator.on_watermark(MAX_TIMESTAMP)
        assert out.data.schema.field("window_start").type == pa.timestamp("us", kind.tz)
        assert out.data["window_start"].cast(pa.int64()).to_pylist() == [10_000_000]


def test_a_missing_or_unfit_time_column_is_an_error_when_the_operator_is_made() -> None:
    schema = pa.schema([("k", pa.string()), ("time", pa.int64()), ("ts", pa.string())])
    window = TumblingWindow(us(10))
    with pytest.raises(MissingColumnError, match="Did you mean 'time'"):
        window_operator(["k"], "tme", window, N, input_schema=schema)
    with pytest.raises(SchemaChangedError, match="'ts' must be a timestamp or an integer"):
        window_operator(["k"], "ts", window, N, input_schema=schema)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TumblingWindow(us(0)), "size must be positive"),
        (lambda: TumblingWindow(10), "must be a timedelta, got 10"),
        (lambda: TumblingWindow(timedelta.max), "at most 73,000 years"),
        (lambda: TumblingWindow(us(10), tz="Mars/Olympus"), "IANA time zone"),
        (lambda: TumblingWindow(us(10), tz="UTC"), "must be whole days"),
        (lambda: SlidingWindow(us(5), us(6)), "slide must be at most size"),
        (lambda: SessionWindow(us(-1)), "gap must be positive"),
        (lambda: CountWindow(0), "n must be a number of rows"),
        (lambda: CountWindow(2, 3), "slide must be at most n"),
        (lambda: Trigger.early(), "needs rows= or every="),
        (lambda: Trigger.early(rows=1, every=us(1)), "got both"),
        (lambda: made("tumbling"), "window must be a TumblingWindow"),
        (lambda: made(CountWindow(2), trigger=Trigger.early(rows=1)), "takes no early trigger"),
        (lambda: made(GlobalWindow(), allowed_lateness=us(1)), "no end in event time"),
        (lambda: made(SessionWindow(us(1)), allowed_lateness=us(-1)), "zero or more"),
        (lambda: made(SessionWindow(us(1)), by=("k", "k")), "twice"),
        (lambda: window_operator(["k"], None, SessionWindow(us(1)), N), "needs an event time"),
        (lambda: made(SessionWindow(us(1)), N, process=Ranks()), "not both"),
    ],
)
def test_a_wrong_setting_is_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_window_kept_for_late_rows_does_not_speak_again_when_a_restart_announces_its_time() -> (
    None
):
    def make() -> Any:
        window = TumblingWindow(us(10))
        return opened(
            window_operator(["k"], "ts", window, {"n": count()}, allowed_lateness=us(50)), "w"
        )

    operator = make()
    operator.process_batch(batch({"k": ["a"], "ts": [1]}))
    assert [row["n"] for row in main_rows(operator.on_watermark(15))] == [1]
    restored = make()
    restored.restore(operator.snapshot())
    assert restored.on_watermark(15) == []
    again = restored.process_batch(batch({"k": ["a"], "ts": [2]}))
    assert [row["n"] for row in main_rows(again)] == [2]
