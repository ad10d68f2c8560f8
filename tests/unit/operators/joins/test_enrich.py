"""A row of the stream meets the table as it stands, or, where it is bounded, as it ends."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP, Batch
from helios_ray.errors import ConfigError, MissingColumnError, PlanError, SchemaChangedError
from helios_ray.operators.base import StateKind
from helios_ray.operators.joins.enrich import EnrichOperator
from tests.unit.operators.joins.side_driving import (
    LEFT,
    RIGHT,
    SCHEMAS,
    Row,
    Subtasks,
    in_order,
    numbered,
    result,
    row_batch,
    row_lists,
    share_out,
    tight_limits,
)
from tests.unit.operators.support import main_rows, opened


class Model:
    """Enrichment, row by row."""

    def __init__(self, how: str, *, waits: bool) -> None:
        self.how = how
        self.waits = waits
        self.table: dict[str | None, Row] = {}
        self.held: list[Row] = []

    def left(self, row: Row) -> list[Row]:
        if self.waits:
            self.held.append(row)
            return []
        found = self.table.get(row["k"])
        return [result(row, found)] if found or self.how == "left" else []

    def right(self, row: Row) -> list[Row]:
        if row["key"] is not None:
            self.table[row["key"]] = row
        return []

    def ends(self) -> list[Row]:
        self.waits = False
        held, self.held = self.held, []
        return [out for row in held for out in self.left(row)]


times = st.integers(0, 9)
steps = st.lists(
    st.one_of(
        st.tuples(st.just(0), row_lists(0, times), st.booleans()),
        st.tuples(st.just(1), row_lists(1, times), st.booleans()),
        st.tuples(st.just("restart"), st.integers(1, 3), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(
    how=st.sampled_from(["inner", "left"]),
    bounded=st.booleans(),
    ending=st.integers(0, 12),
    story=steps,
    tight=st.booleans(),
)
def test_every_row_gets_the_last_row_of_its_key(
    how: Any, bounded: bool, ending: int, story: list[Any], tight: bool
) -> None:
    with tight_limits(tight):
        subtasks = Subtasks(
            lambda: EnrichOperator(
                ["k"], ["key"], how=how, table_is_bounded=bounded, input_schemas=SCHEMAS
            ),
            broadcast=True,
        )
        model = Model(how, waits=bounded)
        first = 0
        ended = False
        for i, (kind, what, more) in enumerate([*story, ("end", None, None)]):
            came: list[Batch] = []
            expected: list[Row] = []
            if i == ending and bounded and kind != "end":
                came += subtasks.each("on_input_end", 1)
                expected += model.ends()
                ended = True
            if kind in (0, 1) and not (kind == 1 and ended):
                rows = numbered(what, kind, first)
                first += len(rows)
                came += subtasks.send(kind, rows, encoded=more)
                for row in rows:
                    expected += (model.right if kind else model.left)(row)
            elif kind == "restart":
                subtasks.rescale(what)
            elif kind == "end":
                came += subtasks.each("end_input")
                expected += model.ends()
            assert in_order(main_rows(came)) == in_order(expected)


def enrich(*, bounded: bool = True, **more: Any) -> Any:
    return opened(EnrichOperator(["k"], ["key"], table_is_bounded=bounded, **more), "e")


def stream(*rows: tuple[Any, ...]) -> Batch:
    return Batch(row_batch([dict(zip(LEFT.names, row, strict=True)) for row in rows], LEFT))


def table(*rows: tuple[Any, ...]) -> Batch:
    return Batch(row_batch([dict(zip(RIGHT.names, row, strict=True)) for row in rows], RIGHT))


def values(batches: list[Batch]) -> list[Any]:
    return [row["v"] for row in main_rows(batches)]


def test_a_changing_table_answers_with_what_it_holds_now() -> None:
    operator = enrich(bounded=False, input_schemas=SCHEMAS)
    assert values(operator.process_batch(stream(("a", 0, 0)), 0)) == [None]
    operator.process_batch(table(("a", 0, 1), ("a", 0, 2)), 1)
    assert values(operator.process_batch(stream(("a", 0, 0)), 0)) == [2]
    operator.process_batch(table(("a", 0, 3)), 1)
    assert values(operator.process_batch(stream(("a", 0, 0), ("b", 0, 1)), 0)) == [3, None]
    assert operator.counters()["operator.unmatched_rows"] == 2


def test_rows_that_wait_beyond_the_limit_block_the_stream_until_the_table_has_ended() -> None:
    one = stream(("a", 0, 0))
    operator = enrich(held_bytes=2 * one.data.nbytes)
    operator.process_batch(table(("a", 0, 7)), 1)
    blocked = []
    for _ in range(3):
        operator.process_batch(one, 0)
        blocked.append(operator.blocked_inputs())
    assert blocked == [frozenset(), {0}, {0}]
    assert values(operator.on_input_end(1)) == [7, 7, 7]
    assert operator.blocked_inputs() == frozenset()


def test_the_watermark_does_not_overtake_rows_that_wait() -> None:
    operator = enrich()
    assert operator.output_watermark(5) == 5
    operator.process_batch(stream(("a", 6, 0)), 0)
    assert operator.output_watermark(9) == 5
    again = enrich()
    again.restore(operator.snapshot())
    assert again.output_watermark(9) == 5
    again.process_batch(table(("a", 0, 1)), 1)
    assert values(again.on_input_end(1)) == [1]
    assert again.output_watermark(9) == 9
    assert again.output_watermark(MAX_TIMESTAMP) == MAX_TIMESTAMP


def test_a_stream_that_ends_first_still_waits_for_the_table() -> None:
    operator = enrich()
    operator.process_batch(stream(("a", 6, 0)), 0)
    assert operator.on_input_end(0) == []
    assert operator.output_watermark(9) == MIN_TIMESTAMP
    operator.process_batch(table(("a", 0, 1)), 1)
    assert operator.on_watermark(9) == []
    assert values(operator.on_watermark(MAX_TIMESTAMP)) == [1]
    assert operator.output_watermark(MAX_TIMESTAMP) == MAX_TIMESTAMP
    assert operator.end_input() == []
    assert "held" not in operator.snapshot()


def test_that_the_table_has_ended_is_remembered() -> None:
    operator = enrich()
    operator.process_batch(table(("a", 0, 1), ("b", 0, 2)), 1)
    operator.on_input_end(1)
    state = operator.snapshot()
    assert {state[name].kind for name in ("table", "ended")} == {StateKind.BROADCAST}
    for share in share_out([state], 3):
        again = enrich()
        again.restore(share)
        assert values(again.process_batch(stream(("b", 0, 0), ("a", 0, 0)), 0)) == [2, 1]


def test_rows_that_wait_are_shared_out_among_subtasks() -> None:
    operator = enrich(how="inner")
    operator.process_batch(stream(*[("a", 0, i) for i in range(5)]), 0)
    found = []
    for share in share_out([operator.snapshot()], 2):
        again = enrich(how="inner")
        again.restore(share)
        again.process_batch(table(("a", 0, 1)), 1)
        found.append([row["id"] for row in main_rows(again.on_input_end(1))])
    assert found == [[0, 2, 4], [1, 3]]


def test_nulls_in_keys_are_equal_to_nothing() -> None:
    operator = enrich()
    operator.process_batch(table((None, 0, 1)), 1)
    operator.on_input_end(1)
    assert values(operator.process_batch(stream((None, 0, 0)), 0)) == [None]


def test_several_keys_of_other_names_and_types() -> None:
    operator = opened(EnrichOperator(["a", "b"], ["x", "y"], table_is_bounded=False), "e")
    rows = pa.record_batch({"x": [1, 1, None], "y": ["u", "v", "u"], "z": [1.0, 2.0, 3.0]})
    operator.process_batch(Batch(rows), 1)
    asks = pa.record_batch({"a": [1, 1, None, 2], "b": ["v", "u", "u", "v"]})
    out = operator.process_batch(Batch(asks), 0)
    assert [row["z"] for row in main_rows(out)] == [2.0, 1.0, None, None]


def test_keys_that_only_the_stream_has_are_forgotten() -> None:
    with tight_limits(True):
        operator = enrich(bounded=False)
        operator.process_batch(table(("a", 0, 1)), 1)
        for i in range(50):
            operator.process_batch(stream((f"key-{i}", 0, i)), 0)
        assert len(operator._sides.space) < 5
        assert values(operator.process_batch(stream(("a", 0, 0)), 0)) == [1]


def test_the_stored_table_is_made_once_per_change() -> None:
    operator = enrich(bounded=False)
    operator.process_batch(table(("a", 0, 1), ("a", 1, 2)), 1)
    state = operator.snapshot()["table"]
    operator.process_batch(stream(("a", 0, 0)), 0)
    assert operator.snapshot()["table"] is state
    assert state.table.to_pylist() == [{"key.key": "a", "value.ts": 1, "value.v": 2}]
    operator.process_batch(table(("a", 2, 3)), 1)
    assert operator.snapshot()["table"].table["value.v"].to_pylist() == [3]


def test_columns_that_do_not_fit_or_changed_are_refused() -> None:
    with pytest.raises(MissingColumnError, match="'k'"):
        EnrichOperator(["k"], ["key"], table_is_bounded=True, input_schemas=(RIGHT, None))
    with pytest.raises(ConfigError, match="how must be one of"):
        enrich(how="full")
    with pytest.raises(ConfigError, match="held_bytes must be a positive number"):
        enrich(held_bytes=0)
    with pytest.raises(PlanError, match="of which no row has come"):
        enrich(bounded=False).process_batch(stream(("a", 0, 0)), 0)
    operator = enrich()
    operator.process_batch(table(("a", 0, 1)), 1)
    with pytest.raises(MissingColumnError, match="right side needs column 'v'"):
        operator.process_batch(Batch(pa.record_batch({"key": ["a"], "ts": [1]})), 1)
    changed = opened(EnrichOperator(["k"], ["nr"], table_is_bounded=True), "e")
    with pytest.raises(SchemaChangedError, match="new uid"):
        changed.restore(operator.snapshot())
    assert operator.output_schema(LEFT, RIGHT).names == ["k", "ts", "id", "ts_right", "v"]
