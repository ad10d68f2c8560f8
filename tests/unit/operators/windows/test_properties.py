"""The promise: whatever the batches, the disorder, the watermarks, the parallelism and the
restarts, windows give what plain Python gives row by row."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP
from helios_ray.operators.windows.operator import window_operator
from helios_ray.windowing import (
    CountWindow,
    SessionWindow,
    SlidingWindow,
    Trigger,
    TumblingWindow,
)
from tests.unit.operators.windows.driving import (
    AGGREGATIONS,
    SCHEMA,
    Row,
    Subtasks,
    results,
    stories,
    tight_limits,
)
from tests.unit.operators.windows.reference import Counted, Fixed, Sessions


def us(n: int) -> timedelta:
    return timedelta(microseconds=n)


def check_story(make: Any, model: Any, story: list[tuple[str, Any]], *, tight: bool) -> None:
    """Tell both the same story, and look at what they say after every step."""
    with tight_limits(tight):
        subtasks = Subtasks(make)
        rows: dict[int, Row] = {}
        now = 0
        subtasks.tick(0)
        for kind, what in [*story, ("watermark", MAX_TIMESTAMP)]:
            expected = []
            if kind == "rows":
                rows.update({row["id"]: row for row in what})
                came, expected = subtasks.send(what), model.send(what)
            elif kind == "watermark":
                came, expected = subtasks.advance(what), model.advance(what)
            elif kind == "restart":
                came = subtasks.rescale(what)
                subtasks.tick(now)  # the first look at the clock
            else:
                now += 10
                came = subtasks.tick(now)
                expected = model.tick() if hasattr(model, "tick") and ticking(subtasks) else []
            said = results(came, rows, ties=not isinstance(model, Sessions))
            assert sorted(said) == sorted(expected), (kind, what)
        assert sorted(subtasks.late) == sorted(model.late if hasattr(model, "late") else [])
        assert subtasks.late_rows == len(subtasks.late)
        for operator in subtasks.operators:
            if not isinstance(model, Counted) and operator.input_schema is not None:
                assert operator.store.rows == 0, "the end of input left state behind"


def ticking(subtasks: Subtasks) -> bool:
    return subtasks.operators[0].settings.trigger.every is not None


TRIGGERS = st.sampled_from(
    [
        Trigger.on_watermark(),
        Trigger.early(rows=1),
        Trigger.early(rows=3),
        Trigger.early(every=us(10)),
    ]
)


@settings(deadline=None, max_examples=40)
@given(
    story=stories(),
    size=st.integers(1, 24),
    slide=st.none() | st.integers(1, 24),
    offset=st.integers(-30, 30),
    lateness=st.sampled_from([0, 0, 5, 30]),
    trigger=TRIGGERS,
    accumulating=st.booleans(),
    tight=st.booleans(),
)
def test_tumbling_and_sliding_windows_say_at_every_step_what_plain_python_says(
    story: list[tuple[str, Any]],
    size: int,
    slide: int | None,
    offset: int,
    lateness: int,
    trigger: Trigger,
    accumulating: bool,
    tight: bool,
) -> None:
    window: Any = TumblingWindow(us(size), us(offset))
    if slide is not None:
        slide = min(slide, size)
        window = SlidingWindow(us(size), us(slide), us(offset))
    model = Fixed(size, slide or size, offset, lateness, accumulating, trigger.rows)

    def make() -> Any:
        return window_operator(
            ["k"],
            "ts",
            window,
            AGGREGATIONS,
            allowed_lateness=us(lateness),
            trigger=trigger,
            accumulating=accumulating,
            input_schema=SCHEMA,
        )

    check_story(make, model, story, tight=tight)


@settings(deadline=None, max_examples=40)
@given(
    story=stories(),
    gap=st.integers(1, 15),
    lateness=st.sampled_from([0, 0, 5, 30]),
    trigger=TRIGGERS,
    accumulating=st.booleans(),
    tight=st.booleans(),
)
def test_sessions_say_at_every_step_what_plain_python_says(
    story: list[tuple[str, Any]],
    gap: int,
    lateness: int,
    trigger: Trigger,
    accumulating: bool,
    tight: bool,
) -> None:
    def make() -> Any:
        return window_operator(
            ["k"],
            "ts",
            SessionWindow(us(gap)),
            AGGREGATIONS,
            allowed_lateness=us(lateness),
            trigger=trigger,
            accumulating=accumulating,
            input_schema=SCHEMA,
        )

    check_story(make, Sessions(gap, lateness, accumulating, trigger.rows), story, tight=tight)


@settings(deadline=None, max_examples=40)
@given(
    story=stories(),
    lag=st.integers(1, 40),
    sessions=st.booleans(),
    size=st.integers(1, 15),
    slide=st.integers(1, 15),
    lateness=st.sampled_from([0, 6]),
    accumulating=st.booleans(),
    tight=st.booleans(),
)
def test_after_rescaling_no_key_group_forgets_how_far_its_former_owner_had_come(
    story: list[tuple[str, Any]],
    lag: int,
    sessions: bool,
    size: int,
    slide: int,
    lateness: int,
    accumulating: bool,
    tight: bool,
) -> None:
    """Every other subtask is behind in time; nothing is said twice, and late stays late."""
    window: Any = SlidingWindow(us(size), us(min(slide, size)))
    models: dict[str, Any] = {}
    for key in "abcde":
        models[key] = Fixed(size, min(slide, size), 0, lateness, accumulating)
        if sessions:
            window, models[key] = SessionWindow(us(size)), Sessions(size, lateness, accumulating)

    def make() -> Any:
        return window_operator(
            ["k"],
            "ts",
            window,
            AGGREGATIONS,
            allowed_lateness=us(lateness),
            accumulating=accumulating,
            input_schema=SCHEMA,
        )

    with tight_limits(tight):
        subtasks = Subtasks(make, 2)
        rows: dict[int, Row] = {}
        for kind, what in [*story, ("restart", 1), ("watermark", MAX_TIMESTAMP)]:
            expected: list[Any] = []
            if kind == "rows":
                rows.update({row["id"]: row for row in what})
                came = subtasks.send(what)
                for key, model in models.items():
                    expected += model.send([row for row in what if row["k"] == key])
            elif kind == "watermark":
                lags = (0, lag if what < MAX_TIMESTAMP else 0)
                came = subtasks.advance(what, lags)
                for key, model in models.items():
                    expected += model.advance(what - lags[subtasks.owner(key) % 2])
            else:
                came = subtasks.rescale(what)
            said = results(came, rows, ties=not sessions)
            assert sorted(said) == sorted(expected), (kind, what)
        assert sorted(subtasks.late) == sorted(i for m in models.values() for i in m.late)


@settings(deadline=None, max_examples=50)
@given(
    story=stories(), n=st.integers(1, 8), slide=st.none() | st.integers(1, 8), tight=st.booleans()
)
def test_count_windows_say_at_every_step_what_plain_python_says(
    story: list[tuple[str, Any]], n: int, slide: int | None, tight: bool
) -> None:
    slide = n if slide is None else min(slide, n)

    def make() -> Any:
        window = CountWindow(n, slide)
        return window_operator(["k"], "ts", window, AGGREGATIONS, input_schema=SCHEMA)

    class Model(Counted):
        def advance(self, watermark: int) -> list[Any]:
            return []

    check_story(make, Model(n, slide), story, tight=tight)
