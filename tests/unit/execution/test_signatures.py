"""A changed program does not misread the state of the one before it."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import pyarrow as pa
import pytest

from helios_ray.elements import Batch
from helios_ray.errors import StateMismatchError
from helios_ray.execution.chain import OperatorChain
from helios_ray.operators.aggregation import Aggregation
from helios_ray.operators.base import Operator, OperatorContext
from helios_ray.operators.joins.interval_join import IntervalJoinOperator
from helios_ray.operators.top_n import TopNOperator
from helios_ray.operators.window_aggregates.specs import WindowAggregation
from helios_ray.operators.windows.operator import window_operator
from helios_ray.windowing import CountWindow, SessionWindow, SlidingWindow, Trigger, TumblingWindow

ROWS = pa.record_batch({"k": ["a"], "ts": [1], "v": [2], "w": [3]})
SECOND = timedelta(seconds=1)
COUNT = {"n": Aggregation("count")}
TOP = {"t": WindowAggregation(function="top_k", column="v", n=2)}
MORE = {"t": WindowAggregation(function="top_k", column="v", n=3)}

window = partial(window_operator, ["k"], "ts")
interval = partial(IntervalJoinOperator, ["k"], ["k"], "ts", "ts")


def chain(operator: Operator) -> OperatorChain:
    return OperatorChain([(operator, OperatorContext(uid="op"))], "op", lambda *_: None)


def state_of(operator: Operator) -> Any:
    made = chain(operator)
    made.process(Batch(ROWS))
    return made.snapshot()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (window(TumblingWindow(SECOND), COUNT), window(TumblingWindow(2 * SECOND), COUNT)),
        (
            window(SlidingWindow(2 * SECOND, SECOND), COUNT),
            window(SlidingWindow(3 * SECOND, SECOND), COUNT),
        ),
        (
            window(TumblingWindow(SECOND), COUNT),
            window(TumblingWindow(SECOND, offset=SECOND / 2), COUNT),
        ),
        (window(SessionWindow(SECOND), COUNT), window(SessionWindow(2 * SECOND), COUNT)),
        (window(CountWindow(5), COUNT), window(CountWindow(7), COUNT)),
        (window(TumblingWindow(SECOND), TOP), window(TumblingWindow(SECOND), MORE)),
        (interval(-SECOND, SECOND), interval(-SECOND, 2 * SECOND)),
        (TopNOperator(["k"], 3, "v"), TopNOperator(["k"], 3, "w")),
        (TopNOperator(["k"], 3, "v"), TopNOperator(["k"], 3, "v", ascending=True)),
    ],
    ids=lambda o: type(o).__name__,
)
def test_state_that_means_something_else_is_refused_with_the_way_out(
    before: Operator, after: Operator
) -> None:
    with pytest.raises(StateMismatchError, match=r"'op'.*another uid") as refusal:
        chain(after).restore(state_of(before))
    assert str(before.signature()) in str(refusal.value)
    assert str(after.signature()) in str(refusal.value)


def test_settings_that_leave_the_state_as_it_is_may_change() -> None:
    state = state_of(window(TumblingWindow(SECOND), COUNT))
    later = window(
        TumblingWindow(SECOND), COUNT, allowed_lateness=SECOND, trigger=Trigger.early(rows=2)
    )
    restored = chain(later)
    restored.restore(state)
    assert state["op"].keys() <= restored.snapshot()["op"].keys()


def test_state_from_before_there_were_signatures_is_taken_as_it_is() -> None:
    state = state_of(window(TumblingWindow(SECOND), COUNT))
    del state["op"]["signature"]
    restored = chain(window(TumblingWindow(SECOND), COUNT))
    restored.restore(state)
    assert "windows" in restored.snapshot()["op"]
