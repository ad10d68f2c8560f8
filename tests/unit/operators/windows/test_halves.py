"""The promise: windows whose rows are aggregated before the shuffle say the same, at every step
and to the last bit, as windows that get the rows, and their states are interchangeable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.aggregates import (
    AggregateFunction,
    any_value,
    approx_count_distinct,
    arg_max,
    arg_min,
    collect_list,
    count,
    count_distinct,
    first,
    last,
    max_,
    mean,
    min_,
    quantile,
    stddev,
    sum_,
    top_k,
)
from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP, Batch
from helios_ray.errors import DataError
from helios_ray.execution.batching import concatenate
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.operators.windows import halves
from helios_ray.operators.windows.keys import KeySpace, batch_slots
from helios_ray.operators.windows.operator import halves as halves_of
from helios_ray.operators.windows.operator import window_operator
from helios_ray.protocol.channels import Frame
from helios_ray.runtime.wire import decode, encode
from helios_ray.state.key_groups import key_groups_of_batch, partition, subtask_of
from helios_ray.windowing import (
    CountWindow,
    GlobalWindow,
    SessionWindow,
    SlidingWindow,
    Trigger,
    TumblingWindow,
)
from tests.unit.operators.support import (
    MAX_PARALLELISM,
    batch,
    main_rows,
    opened,
    share_out,
    tagged_rows,
)
from tests.unit.operators.windows.driving import tight_limits

SCHEMA = pa.schema(
    [
        ("k", pa.dictionary(pa.int8(), pa.string())),
        ("ts", pa.timestamp("us", "UTC")),
        ("x", pa.int64()),
        ("f", pa.float64()),
        ("s", pa.string()),
    ]
)
EXACT: dict[str, Any] = {
    "n": count(),
    "known": count("x"),
    "total": sum_("x"),
    "least": min_("f"),
    "most": max_("s"),
    "first": first("s"),
    "last": last("x"),
    "any": any_value("f"),
    "arg": arg_min("s", by="f"),
    "top": top_k("s", by="x", n=2),
    "kinds": count_distinct("s"),
    "about": approx_count_distinct("s", precision=4),
    "all": collect_list("x"),
}
N = {"n": count()}


def us(n: int) -> timedelta:
    return timedelta(microseconds=n)


def over_the_wire(data: pa.RecordBatch) -> pa.RecordBatch:
    channel = ChannelId(0, TaskId("rows", 0), TaskId("w", 0))
    frame = Frame(1, channel, 0, (Batch(data),), data.nbytes)
    [element] = decode(*encode(frame)).elements
    assert isinstance(element, Batch)
    return element.data


@dataclass
class Job:
    """All subtasks of a window operator, and what is before its shuffle."""

    make: Callable[[str | None], Any]
    keys: Sequence[str] = ("k",)
    split: bool = False
    parallelism: int = 1
    counted: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.local = opened(self.make("local"), "w.local") if self.split else None
        half = "merge" if self.split else None
        p = self.parallelism
        self.operators = [opened(self.make(half), "w", i, p) for i in range(p)]

    def send(self, *batches: pa.RecordBatch) -> list[list[dict[str, Any]]]:
        """Rows that come to the window operator together, from so many batches."""
        sent = [Batch(data) for data in batches]
        if self.local is not None:
            sent = [out for b in sent for out in self.local.process_batch(b)]
            assert all(out.tag is None for out in sent)
        inboxes: list[list[Batch]] = [[] for _ in self.operators]
        for b in sent:
            parts: list[pa.RecordBatch | None] = [b.data]
            if self.keys:
                groups = key_groups_of_batch(b.data, list(self.keys), MAX_PARALLELISM)
                target = subtask_of(groups, self.parallelism, MAX_PARALLELISM)
                parts = partition(b.data, target, self.parallelism)
            for inbox, part in zip(inboxes, parts, strict=True):
                if part is not None:
                    inbox.append(Batch(over_the_wire(part)))
        return self._said(
            out
            for operator, inbox in zip(self.operators, inboxes, strict=True)
            for b in concatenate(inbox)
            for out in operator.process_batch(b)
        )

    def advance(self, watermark: int) -> list[list[dict[str, Any]]]:
        return self._said(b for o in self.operators for b in o.on_watermark(watermark))

    def tick(self, now: int) -> list[list[dict[str, Any]]]:
        return self._said(b for o in self.operators for b in o.on_processing_time(now))

    def restart(self, parallelism: int, *, split: bool) -> list[list[dict[str, Any]]]:
        """A checkpoint, and a fresh start from it under another plan."""
        snapshots = [operator.snapshot() for operator in self.operators]
        assert self.local is None or self.local.snapshot() == {}
        self._count()
        behind = min(o.clock.watermark for o in self.operators)
        self.parallelism, self.split = parallelism, split
        self._start()
        for operator, state in zip(self.operators, share_out(snapshots, parallelism), strict=True):
            operator.restore(state)
        return [] if behind == MIN_TIMESTAMP else self.advance(behind)

    def state(self) -> list[dict[str, tuple[Any, pa.Schema, list[Any]]]]:
        return [
            {
                name: (state.kind, state.table.schema, sorted(map(repr, state.table.to_pylist())))
                for name, state in operator.snapshot().items()
            }
            for operator in self.operators
        ]

    def counters(self) -> dict[str, int]:
        self._count()
        return self.counted

    def _count(self) -> None:
        for operator in [*self.operators, *([self.local] if self.local is not None else [])]:
            for name, value in operator.counters().items():
                self.counted[name] = self.counted.get(name, 0) + value

    @staticmethod
    def _said(out: Any) -> list[list[dict[str, Any]]]:
        return [b.data.to_pylist() for b in out if b.tag is None]


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "dd", None]),
        st.integers(-25, 12) | st.none(),
        st.none() | st.integers(-9, 9),
        st.none() | st.sampled_from([-1.5, -0.0, 0.0, 2.0, float("nan")]),
        st.none() | st.sampled_from(["u", "v", "w"]),
    ),
    max_size=9,
)


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Batches that come alone or together, watermarks, time passing, restarts."""
    steps: list[tuple[str, Any]] = []
    clock = draw(st.integers(-60, 40))
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["rows"] * 5 + ["watermark"] * 3 + ["restart", "tick"]))
        if kind == "rows":
            batches = [
                pa.RecordBatch.from_pylist(
                    [
                        {"k": k, "ts": None if t is None else clock + t, "x": x, "f": f, "s": s}
                        for k, t, x, f, s in draw(ROWS)
                    ],
                    schema=SCHEMA,
                )
                for _ in range(draw(st.sampled_from([1, 1, 2, 3])))
            ]
            steps.append((kind, batches))
        elif kind == "watermark":
            clock += draw(st.integers(1, 15))
            steps.append((kind, clock - draw(st.integers(0, 6))))
        else:
            steps.append((kind, (draw(st.integers(1, 3)), draw(st.booleans()))))
    return steps


TRIGGERS = st.sampled_from(
    [Trigger.on_watermark(), Trigger.early(rows=2), Trigger.early(every=us(10))]
)


@settings(deadline=None, max_examples=40)
@given(
    story=stories(),
    size=st.integers(1, 24) | st.none(),
    slide=st.none() | st.integers(1, 24),
    lateness=st.sampled_from([0, 0, 5, 30]),
    trigger=TRIGGERS,
    accumulating=st.booleans(),
    shrinks=st.sampled_from([0, 0, 2, 1000]),
    tight=st.booleans(),
)
def test_two_halves_say_at_every_step_what_one_operator_says_across_restarts_as_either(
    story: list[tuple[str, Any]],
    size: int | None,
    slide: int | None,
    lateness: int,
    trigger: Trigger,
    accumulating: bool,
    shrinks: int,
    tight: bool,
) -> None:
    window: Any = GlobalWindow()
    if size is not None:
        window = TumblingWindow(us(size), us(3))
        if slide is not None:
            window = SlidingWindow(us(size), us(min(slide, size)))

    def make(half: Any) -> Any:
        return window_operator(
            ["k"],
            "ts",
            window,
            EXACT,
            allowed_lateness=us(lateness if size is not None else 0),
            trigger=trigger,
            accumulating=accumulating,
            on_error="skip",
            half=half,
        )

    with (
        tight_limits(tight),
        mock.patch.object(halves, "SHRINKS", shrinks),
        mock.patch.object(halves, "TRIED_EVERY", 3),
    ):
        whole, split = Job(make), Job(make, split=True)
        now = 0
        for kind, what in [*story, ("watermark", MAX_TIMESTAMP)]:
            match kind:
                case "rows" if shrinks == 0:
                    said = [job.send(*what) for job in (whole, split)]
                case "rows":  # partial rows and rows are not joined, so let nothing be
                    said = [[b for r in what for b in job.send(r)] for job in (whole, split)]
                case "watermark":
                    said = [job.advance(what) for job in (whole, split)]
                case "tick":
                    now += 10
                    said = [job.tick(now) for job in (whole, split)]
                case _:
                    parallelism, halved = what
                    said = [
                        whole.restart(parallelism, split=False),
                        split.restart(parallelism, split=halved),
                    ]
            assert repr(said[1]) == repr(said[0]), (kind, what)  # NaN is not equal to itself
        assert split.counters() == whole.counters()


@settings(deadline=None, max_examples=25)
@given(story=stories(), trigger=TRIGGERS, lateness=st.sampled_from([0, 30]))
def test_a_checkpoint_looks_the_same_whether_or_not_rows_were_aggregated_before_the_shuffle(
    story: list[tuple[str, Any]], trigger: Trigger, lateness: int
) -> None:
    def make(half: Any) -> Any:
        window = SlidingWindow(us(9), us(6))
        return window_operator(
            ["k"], "ts", window, N | {"f": first("s")}, trigger=trigger, on_error="skip",
            allowed_lateness=us(lateness), half=half,
        )  # fmt: skip

    with mock.patch.object(halves, "SHRINKS", 0):
        whole, split = Job(make, parallelism=2), Job(make, split=True, parallelism=2)
        for kind, what in story:
            if kind == "rows":
                timed = [data.filter(data["ts"].is_valid()) for data in what]
                for job in (whole, split):
                    job.send(*timed)
            elif kind == "watermark":
                for job in (whole, split):
                    job.advance(what)
            assert split.state() == whole.state()


# ------------------------------------------------------------------------- before the shuffle


def local(aggregations: Any = N, by: Any = ("k",), **options: Any) -> Any:
    window = TumblingWindow(us(10))
    return opened(window_operator(by, "ts", window, aggregations, half="local", **options), "w.l")


def merging(aggregations: Any = N, by: Any = ("k",), **options: Any) -> Any:
    window = TumblingWindow(us(10))
    return opened(window_operator(by, "ts", window, aggregations, half="merge", **options), "w")


def rows(keys: Sequence[Any], times: Sequence[int | None]) -> Batch:
    return batch({"k": pa.array(keys), "ts": pa.array(times, pa.int64())})


def test_a_batch_crosses_the_shuffle_as_one_row_per_key_and_slice() -> None:
    [out] = local().process_batch(rows(["a", "b"] * 500, [i // 50 for i in range(1000)]))
    assert out.data.to_pylist() == [
        {"k": "a", "slice": 0, "rows": 250, "value.n.count": 250},
        {"k": "b", "slice": 0, "rows": 250, "value.n.count": 250},
        {"k": "a", "slice": 1, "rows": 250, "value.n.count": 250},
        {"k": "b", "slice": 1, "rows": 250, "value.n.count": 250},
    ]


def test_batches_that_do_not_shrink_pass_as_rows_until_one_is_tried_again() -> None:
    operator = local()
    many, few = rows(list(range(90)), [1] * 90), rows([1] * 90, [1] * 90)

    def sizes(b: Batch, times: int) -> list[int]:
        return [operator.process_batch(b)[0].data.num_rows for _ in range(times)]

    def names(b: Batch) -> list[str]:
        return list(operator.process_batch(b)[0].data.schema.names)

    assert "slice" in names(many), "one batch may be an exception"
    assert "slice" in names(many)
    assert names(few) == ["k", "ts"], "two are not"
    assert sizes(few, halves.TRIED_EVERY - 2) == [90] * (halves.TRIED_EVERY - 2)
    assert sizes(few, 3) == [1, 1, 1], "keys have become few, and that was noticed"


def test_rows_that_pass_bring_only_the_columns_that_are_needed() -> None:
    operator = local({"n": count("x")})
    wide = batch({"k": range(9), "ts": [1] * 9, "x": [2] * 9, "unread": ["text"] * 9})
    for _ in range(2):
        operator.process_batch(wide)
    [out] = operator.process_batch(wide)
    assert out.data.schema.names == ["k", "ts", "x"]


def test_keys_may_be_called_like_the_columns_of_partial_rows() -> None:
    by = ("slice", "rows", "value.n.count")
    before, after = local(by=by), merging(by=by)
    data = batch({"slice": ["p", "p"], "rows": [7, 7], "value.n.count": [True, True], "ts": [1, 2]})
    for out in before.process_batch(data):
        after.process_batch(out)
    [row] = main_rows(after.on_watermark(9))
    assert [row[name] for name in (*by, "n")] == ["p", 7, True, 2]


def test_all_rows_in_one_task_need_no_key() -> None:
    def make(half: Any) -> Any:
        return window_operator([], None, GlobalWindow(), {"top": max_("x")}, half=half)

    job = Job(make, keys=(), split=True)
    job.send(pa.record_batch({"x": [3, 9]}), pa.record_batch({"x": [4]}))
    assert job.operators[0].store.rows == 1
    [[row]] = job.advance(MAX_TIMESTAMP)
    assert row["top"] == 9


def test_late_rows_are_counted_one_by_one() -> None:
    before, after = local(), merging()
    after.on_watermark(29)
    [partial] = before.process_batch(rows(["a"] * 9, [1, 2, 3, 11, 12, 35, 36, 37, 38]))
    late = after.process_batch(partial)
    assert late == [], "they are gone: whoever reads late rows gets no local half"
    assert after.counters()["operator.late_rows"] == 5
    assert [row["n"] for row in main_rows(after.on_watermark(MAX_TIMESTAMP))] == [4]


def test_a_row_without_an_event_time_is_refused_where_it_is_read() -> None:
    with pytest.raises(DataError, match=r"window 'w\.l'.*'ts' is null in row 1 of its batch"):
        local().process_batch(rows(["a", "a"], [1, None]))
    lenient = local(on_error="dead_letter")
    out = lenient.process_batch(rows(["a", "a"], [1, None]))
    assert [row["row"] for row in tagged_rows(out, "dead_letter")] == ['{"k": "a", "ts": null}']
    assert lenient.counters()["operator.skipped_rows"] == 1


class Longest(AggregateFunction):
    result_type = pa.string()

    def create(self) -> Any:
        return ""

    def add(self, accumulator: Any, row: Any) -> Any:
        if row["s"] == "bad":
            raise ValueError("bad row")
        return max(accumulator, row["s"], key=len)

    def merge(self, a: Any, b: Any) -> Any:
        return max(a, b, key=len)

    def result(self, accumulator: Any) -> Any:
        return accumulator


def test_an_aggregate_of_ones_own_runs_before_the_shuffle_and_follows_on_error_there() -> None:
    aggregations = {"longest": Longest(), "n": count()}
    before = local(aggregations, on_error="skip")
    after = merging(aggregations, on_error="skip")
    for words in (["x", "bad", "xxx"], ["bad", "xx", "bad"]):
        data = batch({"k": ["a"] * 3, "ts": [1, 2, 3], "s": words})
        for out in before.process_batch(data):
            after.process_batch(out)
    [row] = main_rows(after.on_watermark(9))
    assert (row["longest"], row["n"]) == ("xxx", 3)
    assert before.counters()["operator.skipped_rows"] == 3


# ------------------------------------------------------------------------------------- keys

KEYS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int64(): st.integers(-3, 3) | st.sampled_from([2**63 - 1, -(2**63)]),
    pa.uint8(): st.integers(0, 255),
    pa.bool_(): st.booleans(),
    pa.float64(): st.sampled_from([0.0, -0.0, float("nan"), -float("nan"), 1.5]),
    pa.string(): st.sampled_from(["", "a", "ä", "ab"]),
    pa.binary(): st.binary(max_size=2),
    pa.timestamp("ns"): st.integers(0, 5),
    pa.date32(): st.integers(0, 5),
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["x", "y"]),
    pa.decimal128(5, 2): st.decimals(-9, 9, places=2),
    pa.null(): st.none(),
}


@settings(deadline=None, max_examples=80)
@given(data=st.data(), kinds=st.lists(st.sampled_from(list(KEYS)), min_size=1, max_size=3))
def test_a_batch_knows_the_same_keys_as_the_state(
    data: st.DataObject, kinds: list[pa.DataType]
) -> None:
    size = data.draw(st.integers(1, 12))
    columns = {
        f"c{i}": pa.array(
            data.draw(st.lists(KEYS[kind] | st.none(), min_size=size, max_size=size)), kind
        )
        for i, kind in enumerate(kinds)
    }
    came = pa.record_batch(columns)
    names = list(columns)
    slots, width = batch_slots(came, names)
    expected = KeySpace(names, came.schema, MAX_PARALLELISM).slots(came)
    assert slots.tolist() == expected.tolist()
    assert width >= slots.max() + 1


# ----------------------------------------------------------------------------- which may be


@pytest.mark.parametrize(
    ("aggregations", "expected"),
    [
        ({n: a for n, a in EXACT.items() if n != "all"}, "exact"),
        ({"arg": arg_max("s", by="x")}, "exact"),
        ({"total": sum_("f")}, "rounded"),
        ({"usual": mean("x")}, "rounded"),
        ({"n": count(), "spread": stddev("x")}, "rounded"),
        ({"middle": quantile("x", 0.5)}, "rounded"),
        ({"own": Longest()}, "rounded"),
        ({"n": count(), "all": collect_list("x")}, "whole"),
        ({"all": collect_list("x"), "total": sum_("f")}, "rounded"),
    ],
)
def test_what_halves_do_to_the_last_digits_of_results(aggregations: Any, expected: str) -> None:
    for window in (TumblingWindow(us(4)), SlidingWindow(us(4), us(2)), GlobalWindow()):
        assert halves_of(window, aggregations, SCHEMA) == expected


def test_the_sum_of_a_column_of_unknown_type_may_be_one_of_floats() -> None:
    assert halves_of(TumblingWindow(us(4)), {"total": sum_("x")}, None) == "rounded"
    assert halves_of(TumblingWindow(us(4)), N, None) == "exact"


def test_sessions_and_count_windows_are_not_cut_in_two() -> None:
    assert halves_of(SessionWindow(us(4)), N, SCHEMA) is None
    assert halves_of(CountWindow(4), N, SCHEMA) is None
