"""What rows pass through on their way, each of them once: requests, brakes, classes, choices."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.aggregates import count
from helios_ray.operators.async_map import AsyncRetry
from helios_ray.simulation.requests import pause
from helios_ray.windows import TumblingWindow
from tests.simulation.oracle import SCHEMA, by_pane, ms, only, panes, timed_rows, tumbling
from tests.simulation.programs import Case, Row, Stage, cases, few, multiset

ROWS = timed_rows(50)


def one_split(case: Case) -> Case:
    return replace(case, splits=1)


def of_keys(rows: list[Row]) -> dict[str, list[Row]]:
    return {key: [r for r in rows if r["key"] == key] for key in {r["key"] for r in rows}}


# ---------------------------------------------------------------------------------- map_async


class Service:
    """Answers after a while; fails now and then, but not twice in a row for one row."""

    def __init__(self, case: Case, answer: Callable[[Row], Any]) -> None:
        self.answer = answer
        self.rng = random.Random(case.seed)
        self.failed: set[int] = set()
        self.calls: Counter[int] = Counter()

    async def __call__(self, row: Row) -> Any:
        self.calls[row["id"]] += 1
        await pause(self.rng.uniform(0.0, 0.2))
        if row["id"] not in self.failed and self.rng.random() < 0.4:
            self.failed.add(row["id"])
            raise ConnectionError("not now")
        self.failed.discard(row["id"])
        return self.answer(row)


OFTEN = AsyncRetry(attempts=40, initial=ms(5), maximum=ms(50))


def some_rows(row: Row) -> Any:
    """None, a row, or several."""
    n = row["id"] % 4
    made = {"id": row["id"], "n": n}
    return None if n == 0 else made if n == 1 else [{**made, "n": i} for i in range(n)]


def as_rows(answer: Any) -> list[Row]:
    return [] if answer is None else answer if isinstance(answer, list) else [answer]


@given(
    case=cases(),
    rows=ROWS,
    ordered=st.booleans(),
    capacity=st.integers(1, 8),
    timeout=st.none() | st.just(ms(300)),
)
@few
def test_each_row_has_the_effect_of_one_successful_request(
    case: Case, rows: list[Row], ordered: bool, capacity: int, timeout: timedelta | None
) -> None:
    stage = Stage(case)
    service = Service(case, some_rows)

    async def ask(row: Row) -> Any:
        return await service(row)

    schema = pa.schema([("id", pa.int64()), ("n", pa.int64())])
    made = stage.stream(rows, schema=SCHEMA).map_async(
        ask, ordered=ordered, capacity=capacity, timeout=timeout, retry=OFTEN, schema=schema,
        uid="ask",
    )  # fmt: skip
    assert stage.run(made) == multiset(made for row in rows for made in as_rows(some_rows(row)))
    assert set(service.calls) == {row["id"] for row in rows}


@given(case=cases(), rows=ROWS, capacity=st.integers(1, 8))
@few
def test_ordered_requests_keep_the_order_of_each_split(
    case: Case, rows: list[Row], capacity: int
) -> None:
    stage = Stage(case)
    service = Service(case, dict)

    async def ask(row: Row) -> Any:
        return await service(row)

    made = stage.stream(rows, schema=SCHEMA).map_async(
        ask, capacity=capacity, retry=OFTEN, schema=SCHEMA, uid="ask"
    )
    check_order(stage, stage.rows(made))


def check_order(stage: Stage, found: list[Row]) -> None:
    """All rows are there, those of each split in their order."""
    for split in stage.dealt["rows"]:
        ids = {row["id"] for row in split}
        assert [row["id"] for row in found if row["id"] in ids] == [row["id"] for row in split]


@given(
    case=cases(),
    rows=ROWS,
    ordered=st.booleans(),
    on_error=st.sampled_from(["skip", "dead_letter"]),
)
@few
def test_rows_whose_requests_keep_failing_are_left_out_alone(
    case: Case, rows: list[Row], ordered: bool, on_error: Any
) -> None:
    stage = Stage(case)

    async def ask(row: Row) -> Any:
        await pause(0.01 * (row["id"] % 7))
        if row["v"] is None:
            raise ValueError(row["id"])
        return row

    made = stage.stream(rows, schema=SCHEMA).map_async(
        ask, ordered=ordered, capacity=5, retry=AsyncRetry(attempts=2, initial=ms(1)),
        schema=SCHEMA, on_error=on_error, uid="ask",
    )  # fmt: skip
    assert stage.run(made) == multiset(row for row in rows if row["v"] is not None)


@given(case=cases(), rows=ROWS, ordered=st.booleans())
@settings(few, max_examples=12)
def test_no_answer_is_overtaken_by_the_watermark_its_row_came_before(
    case: Case, rows: list[Row], ordered: bool
) -> None:
    stage = Stage(case)
    service = Service(case, dict)

    async def ask(row: Row) -> Any:
        return await service(row)

    asked = stage.stream(rows, schema=SCHEMA, time="t").map_async(
        ask, ordered=ordered, capacity=4, retry=OFTEN, schema=SCHEMA, uid="ask"
    )
    counted = asked.key_by("key").window(TumblingWindow(ms(10)), time="t").aggregate(
        n=count(), uid="w"
    )  # fmt: skip
    counted.late().collect(uid="late")
    counted.collect(uid="out")
    stage.run_all()
    assert stage.committed("late") == []
    assert only(by_pane(stage.committed("out"))) == {
        pane: {"n": len(own)} for pane, own in panes(rows, tumbling(ms(10))).items()
    }


# ------------------------------------------------------------------------- brakes and glances


@given(case=cases(), rows=ROWS, rate=st.sampled_from([3.0, 20.0, 1000.0]))
@few
def test_a_rate_limit_lets_every_row_pass_once_in_the_order_of_its_split(
    case: Case, rows: list[Row], rate: float
) -> None:
    stage = Stage(case)
    found = stage.rows(stage.stream(rows, schema=SCHEMA).rate_limit(rate, uid="brake"))
    assert multiset(found) == multiset(rows)
    check_order(stage, found)


@given(case=cases(), rows=ROWS, rate=st.sampled_from([20.0, 100.0]))
@settings(few, max_examples=12)
def test_rows_that_wait_for_their_turn_hold_the_watermark_back(
    case: Case, rows: list[Row], rate: float
) -> None:
    stage = Stage(case)
    slow = stage.stream(rows, schema=SCHEMA, time="t").rate_limit(rate, uid="brake")
    counted = slow.key_by("key").window(TumblingWindow(ms(10))).aggregate(n=count(), uid="w")
    counted.late().collect(uid="late")
    counted.collect(uid="out")
    stage.run_all()
    assert stage.committed("late") == []
    assert only(by_pane(stage.committed("out"))) == {
        pane: {"n": len(own)} for pane, own in panes(rows, tumbling(ms(10))).items()
    }


@given(case=cases(), rows=ROWS)
@few
def test_inspect_sees_every_row_and_changes_none(case: Case, rows: list[Row]) -> None:
    stage = Stage(case)
    seen: list[Row] = []

    def look(row: Row) -> None:
        seen.append(dict(row))
        row["v"] = "changed by whoever looks"

    assert stage.run(stage.stream(rows, schema=SCHEMA).inspect(look)) == multiset(rows)
    assert multiset(rows) <= multiset(seen)
    assert multiset(seen).keys() <= multiset(rows).keys()


# ------------------------------------------------------------------------------ map_batches


class Scale:
    """A model: loaded once per subtask, called with batches."""

    made = 0

    def __init__(self, factor: int, *, offset: int) -> None:
        Scale.made += 1
        self.factor, self.offset = factor, offset

    def __call__(self, batch: pa.Table, most: int) -> pa.Table:
        assert 0 < batch.num_rows <= most
        ids = batch["id"].to_pylist()
        rows = [
            {"id": i, "y": self.factor * i + self.offset}
            for i in ids
            for _ in range(i % 3)  # none, one or two
        ]
        return pa.Table.from_pylist(rows, schema=SCALED)


SCALED = pa.schema([("id", pa.int64()), ("y", pa.int64())])


@given(
    case=cases(),
    rows=ROWS,
    factor=st.integers(-3, 3),
    size=st.integers(1, 20),
    concurrency=st.integers(1, 3),
)
@few
def test_a_class_over_batches_makes_of_all_rows_what_it_makes_of_each(
    case: Case, rows: list[Row], factor: int, size: int, concurrency: int
) -> None:
    stage = Stage(case)
    Scale.made = 0
    made = stage.stream(rows, schema=SCHEMA).map_batches(
        Scale, batch_size=size, batch_format="pyarrow", fn_args=[size],
        fn_constructor_args=[factor], fn_constructor_kwargs={"offset": 7},
        concurrency=concurrency, schema=SCALED, uid="scale",
    )  # fmt: skip
    assert stage.run(made) == multiset(
        {"id": row["id"], "y": factor * row["id"] + 7} for row in rows for _ in range(row["id"] % 3)
    )
    assert Scale.made >= concurrency


# ----------------------------------------------------------------- deduplicate, top_n, branch


@given(case=cases(), rows=ROWS, day=st.booleans())
@few
def test_deduplication_passes_one_row_of_each_key(case: Case, rows: list[Row], day: bool) -> None:
    stage = Stage(case)
    ttl = timedelta(days=1) if day else None
    found = stage.rows(
        stage.stream(rows, schema=SCHEMA).key_by("key").deduplicate(ttl=ttl, uid="d")
    )
    assert sorted(row["key"] for row in found) == sorted(of_keys(rows))
    assert multiset(found) <= multiset(rows)


@given(case=cases(), rows=ROWS)
@few
def test_of_one_split_it_is_the_first_row_that_deduplication_passes(
    case: Case, rows: list[Row]
) -> None:
    stage = Stage(one_split(case))
    keyed = stage.stream(rows, schema=SCHEMA).key_by("key", "v")
    first: dict[Any, Row] = {}
    for row in rows:
        first.setdefault((row["key"], row["v"]), row)
    assert stage.run(keyed.deduplicate(uid="d")) == multiset(first.values())


@given(
    case=cases(),
    rows=ROWS,
    n=st.integers(1, 6),
    ascending=st.booleans(),
    emit=st.sampled_from(["final", "updates"]),
)
@few
def test_top_n_ends_with_the_best_rows_of_each_key(
    case: Case, rows: list[Row], n: int, ascending: bool, emit: Any
) -> None:
    stage = Stage(case)
    keyed = stage.stream(rows, schema=SCHEMA).key_by("key")
    found = stage.rows(keyed.top_n(n, "v", ascending=ascending, emit=emit, uid="top"))
    expected: dict[Any, Any] = {}
    for key, own in of_keys(rows).items():
        there = sorted((r["v"] for r in own if r["v"] is not None), reverse=not ascending)
        unknown = [None] * (len(own) - len(there))
        for rank, v in enumerate([*there, *unknown][:n], 1):
            expected[(key, rank)] = v
    assert {(row["key"], row["rank"]): row["v"] for row in found} == expected
    if emit == "final":
        assert len(found) == len(expected)
        assert len({row["id"] for row in found}) == len(found)


@given(case=cases(), rows=ROWS, n=st.integers(1, 4))
@few
def test_of_equally_good_rows_of_a_split_the_first_come_wins(
    case: Case, rows: list[Row], n: int
) -> None:
    stage = Stage(one_split(case))
    rows = [{**row, "v": (row["v"] or 0) % 3} for row in rows]
    keyed = stage.stream(rows, schema=SCHEMA).key_by("key")
    expected = [
        {**row, "rank": rank}
        for own in of_keys(rows).values()
        for rank, row in enumerate(sorted(own, key=lambda r: (-r["v"], r["id"]))[:n], 1)
    ]
    assert stage.run(keyed.top_n(n, "v", emit="final", uid="top")) == multiset(expected)


@given(case=cases(), rows=ROWS)
@settings(few, max_examples=10)
def test_a_row_goes_down_the_first_branch_that_wants_it(case: Case, rows: list[Row]) -> None:
    stage = Stage(case)
    branches = stage.stream(rows, schema=SCHEMA).branch(
        unknown=lambda row: row["v"] is None,
        low=lambda row: row["v"] < 0,
        even=lambda row: row["v"] % 2 == 0,
        uid="branch",
    )
    for name in ("unknown", "low", "even", "rest"):
        getattr(branches, name).collect(uid=name)
    expected: dict[str, list[Row]] = {"unknown": [], "low": [], "even": [], "rest": []}
    for row in rows:
        v = row["v"]
        name = "unknown" if v is None else "low" if v < 0 else "rest" if v % 2 else "even"
        expected[name].append(row)
    assert stage.run_all() == {name: multiset(own) for name, own in expected.items()}
