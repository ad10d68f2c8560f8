"""Shapes in which a stream meets a table that is read beside it.

Why it exists: rows wait for the table inside an operator, and those downstream must wait with
them, however fast everything else is.

    enrich         each row with the row of its key in a table that is read first, while the
                   stream is blocked
    enrich-beside  the same, with a table that is slower than the stream and has no event time;
                   the results and a stream that waits for nothing go into one window, and no
                   row may be late there

May import: operators, plan, windowing, and the simulation below ``plans``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import Any

from helios_ray.aggregates import collect_list
from helios_ray.operators.expressions import col
from helios_ray.operators.joins.enrich import EnrichHow, EnrichOperator
from helios_ray.operators.projection import SelectOperator
from helios_ray.operators.windows.operator import window_operator
from helios_ray.plan.physical import OperatorSpec, Partitioning
from helios_ray.simulation.expectations import Expected, Multiset, Row
from helios_ray.simulation.shapes.builder import Builder, Shape, hashed
from helios_ray.simulation.shapes.windows import as_microseconds, windows_of
from helios_ray.simulation.source import SCHEMA, NumberedSource
from helios_ray.windowing import TumblingWindow

KEY, COUNT, OF_TABLE = 3, 5, 8
"""Where results have the key, the number of the row, and that of the table's row."""

_BOTH = (SCHEMA, SCHEMA)


def enrich(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    how: EnrichHow = rng.choice(("inner", "left"))
    stream = b.timed_source(rng)
    # Fewer keys than the stream may have, several rows of some: the last of each counts.
    table = NumberedSource("t", 1, rng.randint(1, 12), rng.randint(1, b.keys), b.dice, b.pace)
    factory = partial(
        EnrichOperator, ["key"], ["key"], how=how, table_is_bounded=True,
        held_bytes=rng.choice((1, 500, 1 << 20)), input_schemas=_BOTH,
    )  # fmt: skip
    heads = [b.timed_head(stream), b.head(table)]
    hashed(heads, b.last("join", factory), b)
    last = {key: n for _, _, n, key in table.expected()}
    rows: Counter[Row] = Counter(
        (row["key"], row["count"], last.get(row["key"]))
        for row in stream.every_row()
        if how == "left" or row["key"] in last
    )

    def read(row: Row) -> Iterable[Row]:
        yield row[KEY], row[COUNT], row[OF_TABLE]

    return {"out": Multiset(rows=rows, read={"out": read})}


def enrich_beside(b: Builder, rng: random.Random) -> dict[str, Expected]:
    """See the module."""
    # A checkpoint that waits for the end of the table, which waits for it, must show; and the
    # table has no event time.
    b.patient, b.timed = True, False
    stream, beside = (b.timed_source(rng, name, most=30) for name in ("a", "b"))
    table = NumberedSource("t", 1, rng.randint(10, 20), rng.randint(1, b.keys), b.dice, 0.5)
    factory = partial(
        EnrichOperator, ["key"], ["key"], how="inner", table_is_bounded=True,
        held_bytes=rng.choice((1, 500, 1 << 20)), input_schemas=_BOTH,
    )  # fmt: skip
    # The table's number in place of the row's own: it goes through the window.
    columns = {**{name: name for name in SCHEMA.names}, "n": col("n_right")}
    select = OperatorSpec(uid="select", name="select", factory=partial(SelectOperator, columns))
    enriched = b.operator("enrich", factory, behind=(select,))
    b.connect(b.timed_head(stream), enriched, Partitioning.REBALANCE)
    b.connect(b.head(table), enriched, Partitioning.BROADCAST, input_index=1)
    spec = TumblingWindow(timedelta(milliseconds=rng.choice((2, 5))))
    computed = {name: collect_list(name) for name in ("source", "count", "n")}
    window = b.last("window", partial(window_operator, ["key"], "ts", spec, computed))
    for upstream in (enriched, b.timed_head(beside)):
        b.connect(upstream, window, Partitioning.HASH)
    late = b.sink_chain("late", b.out_width)
    b.connect(window, late, Partitioning.REBALANCE, operator="window", tag="late")
    last = {key: n for _, _, n, key in table.expected()}
    rows = [{**row, "n": last[row["key"]]} for row in stream.every_row() if row["key"] in last]
    rows += beside.every_row()
    expected: Counter[Row] = Counter()
    for key in {row["key"] for row in rows}:
        mine = [row for row in rows if row["key"] == key]
        for bounds, members in windows_of(spec, [row["ts"] for row in mine]).items():
            inside = [mine[index] for index in members]
            lists = ([row[name] for row in inside] for name in computed)
            expected[_result(key, *bounds, *lists)] += 1
    # None of those that are late is expected.
    read = {"out": lambda row: [_result(*row)], "late": lambda row: [("late", *row)]}
    return {"out and late": Multiset(rows=expected, read=read)}


def _result(key: int, start: Any, end: Any, *lists: list[Any]) -> Row:
    """A window's rows, in whatever order they came."""
    rows = sorted(zip(*lists, strict=True))
    return key, as_microseconds(start), as_microseconds(end), tuple(rows)


SHAPES: dict[str, Shape] = {"enrich": enrich, "enrich-beside": enrich_beside}
