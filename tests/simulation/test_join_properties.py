"""Joins of streams are the joins of their rows: each kind, whoever comes first, whatever fails."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.aggregates import count
from helios_ray.stream import DataStream
from helios_ray.windows import SessionWindow, SlidingWindow, TumblingWindow
from tests.simulation.oracle import (
    MS,
    by_pane,
    ms,
    only,
    panes,
    plain_rows,
    sessions,
    sliding,
    tumbling,
    us,
)
from tests.simulation.programs import Case, Row, Stage, cases, few, multiset, rows_of

LEFT = pa.schema([("id", pa.int64()), ("k", pa.string()), ("t", pa.int64()), ("n", pa.int64())])
RIGHT = pa.schema([("id", pa.int64()), ("key", pa.string()), ("t", pa.int64()), ("w", pa.string())])
"""Both have ``id`` and ``t``; their keys are called differently."""

HOWS = ["inner", "left", "right", "full"]
Pair = tuple[Row | None, Row | None]

nullable_keys = st.none() | st.sampled_from(["a", "b", "c"])
times = st.integers(-20, 80).map(lambda n: n * MS)


def numbered(rows: list[Row], start: int) -> list[Row]:
    return [{"id": start + i, **row} for i, row in enumerate(rows)]


def lefts(max_size: int = 25) -> st.SearchStrategy[list[Row]]:
    rows = rows_of(max_size, k=nullable_keys, t=times, n=st.none() | st.integers(0, 2))
    return rows.map(lambda found: numbered(found, 0))


def rights(max_size: int = 25) -> st.SearchStrategy[list[Row]]:
    rows = rows_of(max_size, key=nullable_keys, t=times, w=st.none() | st.sampled_from("xy"))
    return rows.map(lambda found: numbered(found, 1000))


def keyed(stage: Stage, left: list[Row], right: list[Row]) -> tuple[Any, Any]:
    """Both sides by their keys, with event times."""
    one = stage.stream(left, schema=LEFT, time="t", uid="left")
    other = stage.stream(right, schema=RIGHT, time="t", uid="right")
    return one.key_by("k"), other.key_by("key")


def row_of(left: Row | None, right: Row | None, **more: Any) -> Row:
    """A result: the left's columns, those of the right that are no keys, with a suffix."""
    key = left["k"] if left is not None else right["key"] if right is not None else None
    return {
        "id": left and left["id"],
        "k": key,
        "t": left and left["t"],
        "n": left and left["n"],
        "id_right": right and right["id"],
        "t_right": right and right["t"],
        "w": right and right["w"],
        **more,
    }


def join(
    left: Sequence[Row], right: Sequence[Row], how: str, meet: Callable[[Row, Row], bool]
) -> list[Pair]:
    """All pairs of rows of one key that meet, and the rows without a partner, as ``how`` says."""
    pairs: list[Pair] = [
        (one, other)
        for one in left
        for other in right
        if one["k"] is not None and one["k"] == other["key"] and meet(one, other)
    ]
    of_left = {one["id"] for one, _ in pairs if one is not None}
    of_right = {other["id"] for _, other in pairs if other is not None}
    if how in ("left", "full"):
        pairs += [(one, None) for one in left if one["id"] not in of_left]
    if how in ("right", "full"):
        pairs += [(None, other) for other in right if other["id"] not in of_right]
    return pairs


def always(_: Row, __: Row) -> bool:
    return True


# ------------------------------------------------------------------------------- window join

Windows = Callable[[list[Row]], dict[Any, list[Row]]]
SPECS: dict[str, tuple[Any, Windows]] = {
    "tumbling": (TumblingWindow(ms(15), ms(4)), lambda r: panes(r, tumbling(ms(15), ms(4)))),
    "sliding": (SlidingWindow(ms(20), ms(8)), lambda r: panes(r, sliding(ms(20), ms(8)))),
    "session": (SessionWindow(ms(5)), lambda r: sessions(r, ms(5))),
}


def both_sides(
    windows: Windows, left: list[Row], right: list[Row]
) -> list[tuple[Any, int, int, list[Row], list[Row]]]:
    """Key, window, and the rows of each side in it; sessions are of the rows of both."""
    marked = [{"key": r["k"], "t": r["t"], "left": r} for r in left]
    marked += [{"key": r["key"], "t": r["t"], "right": r} for r in right]
    return [
        (
            key,
            start,
            end,
            [m["left"] for m in own if "left" in m],
            [m["right"] for m in own if "right" in m],
        )
        for (key, start, end), own in windows(marked).items()
    ]


@pytest.mark.parametrize("how", HOWS)
@given(case=cases(), left=lefts(), right=rights(), kind=st.sampled_from(sorted(SPECS)))
@settings(few, max_examples=12)
def test_a_window_join_is_a_join_of_the_rows_of_each_window(
    how: Any, case: Case, left: list[Row], right: list[Row], kind: str
) -> None:
    stage = Stage(case)
    window, windows = SPECS[kind]
    if kind == "session":  # a null equals nothing, so whose session a null row is in is moot
        left = [row for row in left if row["k"] is not None]
        right = [row for row in right if row["key"] is not None]
    one, other = keyed(stage, left, right)
    stage.run(one.join(other, how=how, window=window, uid="join"))
    expected = [
        row_of(a, b, window_start=start, window_end=end)
        for _, start, end, of_left, of_right in both_sides(windows, left, right)
        for a, b in join(of_left, of_right, how, always)
    ]
    assert multiset(plain_rows(stage.committed("out"))) == multiset(expected)


@given(case=cases(), left=lefts(12), right=rights(12))
@settings(few, max_examples=12)
def test_rows_with_a_null_key_have_a_session_of_their_own_kind_and_no_partner(
    case: Case, left: list[Row], right: list[Row]
) -> None:
    stage = Stage(case)
    left = [{**row, "k": None} for row in left]
    right = [{**row, "key": None} for row in right]
    one, other = keyed(stage, left, right)
    stage.run(one.join(other, how="full", window=SessionWindow(ms(5)), uid="join"))
    found = plain_rows(stage.committed("out"))
    assert Counter(row["id"] for row in found if row["id"] is not None) == Counter(
        row["id"] for row in left
    )
    assert Counter(row["id_right"] for row in found if row["id_right"] is not None) == Counter(
        row["id"] for row in right
    )
    assert len(found) == len(left) + len(right)
    for row in found:
        at = row["t"] if row["t"] is not None else row["t_right"]
        assert row["window_start"] <= at < row["window_end"]


# ----------------------------------------------------------------------------- interval join


@pytest.mark.parametrize("how", HOWS)
@given(
    case=cases(),
    left=lefts(),
    right=rights(),
    lower=st.integers(-25, 25),
    length=st.integers(0, 30),
    inclusive=st.tuples(st.booleans(), st.booleans()),
)
@settings(few, max_examples=12)
def test_an_interval_join_pairs_rows_whose_times_are_so_far_apart(
    how: Any,
    case: Case,
    left: list[Row],
    right: list[Row],
    lower: int,
    length: int,
    inclusive: tuple[bool, bool],
) -> None:
    stage = Stage(case)
    low, high = lower * MS, (lower + length) * MS
    if length == 0:
        inclusive = (True, True)

    def near(a: Row, b: Row) -> bool:
        apart = b["t"] - a["t"]
        return (low < apart < high) or (apart == low and inclusive[0] and low < high) or (
            apart == high and inclusive[1] and low < high
        ) or (apart == low == high)  # fmt: skip

    one, other = keyed(stage, left, right)
    made = one.interval_join(
        other, ms(lower), ms(lower + length), how=how,
        lower_inclusive=inclusive[0], upper_inclusive=inclusive[1], uid="join",
    )  # fmt: skip
    assert stage.run(made) == multiset(row_of(*pair) for pair in join(left, right, how, near))


@given(
    case=cases(),
    left=lefts(),
    right=rights(),
    lower=st.integers(-25, 15),
    length=st.integers(1, 30),
    how=st.sampled_from(["inner", "left", "right"]),
)
@settings(few, max_examples=15)
def test_a_window_over_an_interval_join_gets_every_pair_in_time(
    case: Case, left: list[Row], right: list[Row], lower: int, length: int, how: Any
) -> None:
    """Watermarks behind a join are held back for as long as its results may be old."""
    stage = Stage(case)
    low, high = lower * MS, (lower + length) * MS
    one, other = keyed(stage, left, right)
    joined = one.interval_join(other, ms(lower), ms(lower + length), how=how, uid="join")
    counted = joined.key_by("k").window(TumblingWindow(ms(10))).aggregate(
        n=count(), pairs=count("id"), uid="w"
    )  # fmt: skip
    late = counted.late()
    late.collect(uid="late")
    counted.collect(uid="out")
    stage.run_all()
    results = [
        row_of(*pair)
        for pair in join(left, right, how, lambda a, b: low <= b["t"] - a["t"] <= high)
    ]
    at = "t_right" if how == "right" else "t"
    expected = {
        pane: {"n": len(own), "pairs": sum(row["id"] is not None for row in own)}
        for pane, own in panes(results, tumbling(ms(10)), key="k", at=at).items()
    }
    assert stage.committed("late") == []
    assert only(by_pane(stage.committed("out"), key="k")) == expected


# ----------------------------------------------------------------------------- temporal join


@pytest.mark.parametrize("how", ["inner", "left"])
@given(
    case=cases(),
    left=lefts(),
    right=rights(),
    tolerance=st.none() | st.integers(0, 40).map(ms),
)
@settings(few, max_examples=12)
def test_a_temporal_join_finds_the_version_in_force_at_the_time_of_each_row(
    how: Any, case: Case, left: list[Row], right: list[Row], tolerance: timedelta | None
) -> None:
    stage = Stage(case)
    # Of versions of one time the last to arrive counts: let there be one.
    right = list({(row["key"], row["t"]): row for row in right}.values())
    one, other = keyed(stage, left, right)
    made = one.temporal_join(other, how=how, tolerance=tolerance, uid="join")
    expected: list[Row] = []
    for row in left:
        versions = [
            v for v in right if row["k"] is not None and v["key"] == row["k"] and v["t"] <= row["t"]
        ]
        version = max(versions, key=lambda v: v["t"], default=None)
        if version is not None and tolerance is not None:
            version = version if row["t"] - version["t"] <= us(tolerance) else None
        if version is not None or how == "left":
            expected.append(row_of(row, version))
    assert stage.run(made) == multiset(expected)


# -------------------------------------------------------------------------------- enrichment


@pytest.mark.parametrize("how", ["inner", "left"])
@given(case=cases(), left=lefts(40), right=rights(10), timed=st.booleans())
@settings(few, max_examples=12)
def test_enrichment_looks_every_row_up_in_the_whole_table(
    how: Any, case: Case, left: list[Row], right: list[Row], timed: bool
) -> None:
    stage = Stage(case)
    # Of several rows of a key the last to arrive counts: let there be one, but for nulls.
    table = list({row["key"] or row["id"]: row for row in right}.values())
    rows = stage.stream(left, schema=LEFT, time="t" if timed else None, uid="left")
    made = rows.enrich(
        stage.stream(table, schema=RIGHT, uid="table"), {"k": "key"}, how=how, uid="enriched"
    )
    expected = [
        row_of(a, b) for a, b in join(left, table, "left", always) if b is not None or how == "left"
    ]
    assert stage.run(made) == multiset(expected)


@given(case=cases(), left=lefts(40), right=rights(10))
@few
def test_a_table_of_one_split_answers_with_its_last_row_of_a_key(
    case: Case, left: list[Row], right: list[Row]
) -> None:
    one_split = Case(seed=case.seed, splits=1, parallelism=case.parallelism, calm=case.calm)
    stage = Stage(one_split)
    made = stage.stream(left, schema=LEFT, uid="left").enrich(
        stage.stream(right, schema=RIGHT, uid="table"), {"k": "key"}, uid="enriched"
    )
    last = {row["key"]: row for row in right if row["key"] is not None}
    assert stage.run(made) == multiset(row_of(row, last.get(row["k"])) for row in left)


# ------------------------------------------------------------------------------ regular join


@pytest.mark.parametrize("how", HOWS)
@given(case=cases(), left=lefts(), right=rights(), hour=st.booleans())
@settings(few, max_examples=12)
def test_a_regular_join_is_a_join_of_all_rows(
    how: Any, case: Case, left: list[Row], right: list[Row], hour: bool
) -> None:
    """Nor does a row go missing whose time to live is longer than the job."""
    stage = Stage(case)
    one = stage.stream(left, schema=LEFT, uid="left").key_by("k")
    other = stage.stream(right, schema=RIGHT, uid="right").key_by("key")
    ttl = timedelta(hours=1) if hour else None
    made = one.join(other, how=how, ttl=ttl, uid="join")
    assert stage.run(made) == multiset(row_of(*pair) for pair in join(left, right, how, always))


@given(case=cases(), left=lefts(), right=rights(), ttl=st.integers(1, 500).map(ms))
@few
def test_a_row_that_is_forgotten_in_time_comes_out_once_or_in_pairs_that_are_true(
    case: Case, left: list[Row], right: list[Row], ttl: timedelta
) -> None:
    stage = Stage(case)
    one = stage.stream(left, schema=LEFT, uid="left").key_by("k")
    other = stage.stream(right, schema=RIGHT, uid="right").key_by("key")
    found = stage.rows(one.join(other, how="full", ttl=ttl, uid="join"))
    possible = multiset(row_of(*pair) for pair in join(left, right, "inner", always))
    pairs = multiset(r for r in found if r["id"] is not None and r["id_right"] is not None)
    assert pairs <= possible
    for side, rows in (("id", left), ("id_right", right)):
        alone = "id_right" if side == "id" else "id"
        of_row: dict[int, list[bool]] = defaultdict(list)
        for row in found:
            if row[side] is not None:
                of_row[row[side]].append(row[alone] is None)
        assert set(of_row) == {row["id"] for row in rows}
        assert all(lone == [True] or not any(lone) for lone in of_row.values())


# --------------------------------------------------------------------------------- co_group


def matching(_key: Row, _window: Any, left: pa.Table, right: pa.Table) -> Iterable[Row]:
    """A row for a window and key, but none for those with a single row."""
    if left.num_rows + right.num_rows > 1:
        yield {"left": sorted(left["id"].to_pylist()), "right": sorted(right["id"].to_pylist())}


@given(case=cases(), left=lefts(), right=rights(), kind=st.sampled_from(sorted(SPECS)))
@few
def test_a_co_group_is_given_all_rows_of_both_sides_of_each_window_and_key(
    case: Case, left: list[Row], right: list[Row], kind: str
) -> None:
    stage = Stage(case)
    left = [row for row in left if row["k"] is not None]
    right = [row for row in right if row["key"] is not None]
    window, windows = SPECS[kind]
    one, other = keyed(stage, left, right)
    ids = pa.list_(pa.int64())
    schema = pa.schema([("left", ids), ("right", ids)])
    stage.run(one.co_group(other, window, matching, schema=schema, uid="grouped"))
    expected = [
        {
            "k": key,
            "window_start": start,
            "window_end": end,
            "left": sorted(row["id"] for row in of_left),
            "right": sorted(row["id"] for row in of_right),
        }
        for key, start, end, of_left, of_right in both_sides(windows, left, right)
        if len(of_left) + len(of_right) > 1
    ]
    assert multiset(plain_rows(stage.committed("out"))) == multiset(expected)


# ------------------------------------------------------------------------------- late, names


@given(
    case=cases(),
    left=lefts(),
    right=rights(),
    kind=st.sampled_from(["tumbling", "interval", "temporal"]),
    disorder=st.sampled_from([0, 60]),
)
@few
def test_rows_that_are_late_for_a_join_go_to_the_late_outputs_and_the_rest_is_joined(
    case: Case, left: list[Row], right: list[Row], kind: str, disorder: int
) -> None:
    stage = Stage(case)
    by = case.bound + ms(disorder)
    one = stage.stream(left, schema=LEFT, time="t", disorder=by, uid="left").key_by("k")
    other = stage.stream(right, schema=RIGHT, time="t", disorder=by, uid="right").key_by("key")
    made: DataStream
    if kind == "tumbling":
        made = one.join(other, how="full", window=TumblingWindow(ms(15)), uid="join")
    elif kind == "interval":
        made = one.interval_join(other, ms(-10), ms(10), how="full", uid="join")
    else:
        made = one.temporal_join(other, uid="join")
    made.collect(uid="out")
    made.late().collect(uid="late")
    made.side_output("late_right").collect(uid="late_right")
    stage.run_all()
    late = Counter(row["id"] for row in stage.committed("late"))
    late_right = Counter(row["id"] for row in stage.committed("late_right"))
    assert set(late.values()) | set(late_right.values()) <= {1}
    out = stage.committed("out")
    ids = {row["id"] for row in out if row["id"] is not None}
    ids_right = {row["id_right"] for row in out if row["id_right"] is not None}
    assert ids == {row["id"] for row in left} - set(late)
    if disorder == 0:
        assert not late
        assert not late_right
    taken = [row for row in left if row["id"] not in late]
    taken_right = [row for row in right if row["id"] not in late_right]
    if kind == "temporal":
        assert Counter(row["id"] for row in out) == Counter(row["id"] for row in taken)
        return
    assert ids_right == {row["id"] for row in taken_right}
    if kind == "tumbling":
        expected = [
            row_of(a, b)
            for _, _, _, of_left, of_right in both_sides(
                lambda r: panes(r, tumbling(ms(15))), taken, taken_right
            )
            for a, b in join(of_left, of_right, "full", always)
        ]
        joined = [{k: v for k, v in row.items() if not k.startswith("window_")} for row in out]
        assert multiset(joined) == multiset(expected)
    else:
        expected = [
            row_of(*pair)
            for pair in join(
                taken, taken_right, "full", lambda a, b: abs(b["t"] - a["t"]) <= 10 * MS
            )
        ]
        assert multiset(out) == multiset(expected)


@given(case=cases(), left=lefts(12), right=rights(12))
@settings(few, max_examples=10)
def test_columns_that_both_sides_have_get_the_suffix_that_was_asked_for(
    case: Case, left: list[Row], right: list[Row]
) -> None:
    stage = Stage(case)
    one, other = keyed(stage, left, right)
    made = {
        "join": one.join(other, how="full", suffix="_of_b", uid="a"),
        "interval": one.interval_join(
            other, ms(-200), ms(200), how="full", suffix="_of_b", uid="b"
        ),
    }
    for uid, stream in made.items():
        assert stream.schema is not None
        assert stream.schema.names == ["id", "k", "t", "n", "id_of_b", "t_of_b", "w"]
        stream.collect(uid=uid)
    expected = multiset(
        {name.replace("_right", "_of_b"): v for name, v in row_of(*pair).items()}
        for pair in join(left, right, "full", always)
    )
    assert stage.run_all() == {"join": expected, "interval": expected}
