"""The regular join: every row with every row of its key on the other side, without windows.

Why it exists: two streams that belong together by key alone. What it costs is plain: both
sides are kept, for ``ttl`` or for ever.

    left_schema, right_schema   UNION   the columns of each side
    left, right                 KEYED   kept rows, with arrived int64 (µs of processing time)
                                        and matched bool

May import: elements, errors, operators, windowing, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import get_args

import numpy as np
import pyarrow as pa

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP, Batch
from helios_ray.operators.base import (
    Operator,
    OperatorContext,
    OperatorSnapshot,
    StateKind,
    StateTable,
)
from helios_ray.operators.joins.columns import SUFFIX, JoinHow, check_how
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.joins.regular_rows import KeptRows, Run, make_run
from helios_ray.operators.joins.side import owned
from helios_ray.operators.joins.side_rows import joined
from helios_ray.operators.joins.sides import LEFT, NAMES, RIGHT, InputSchemas, Sides, Stored
from helios_ray.windowing import microseconds

EXPIRED_ROWS = "operator.expired_rows"
_MANY = 4096
_ADDED = (pa.field("arrived", pa.int64()), pa.field("matched", pa.bool_()))


class RegularJoinOperator(Operator):
    """Joins each row that comes with all rows of its key that are kept of the other side.

    The output is only ever appended to. A pair comes out once, when the later of its rows comes.
    In an outer join a row that has no partner comes out with nulls, not when it comes but when
    it leaves the state: ``ttl`` after it came, or at the end of the input. By then the watermark
    may have passed its event time, and so it may have passed that of the older row of a pair.

    Without ``ttl`` nothing ever leaves: the state grows with the input, and of an endless input
    no row without partner comes out. A null in a key equals nothing.

    Args:
        left_keys, right_keys: key columns, in the same order.
        how: ``"inner"``, ``"left"``, ``"right"`` or ``"full"``.
        ttl: how long a row is kept, in processing time since it came; None for ever.
        suffix: for columns of the right whose names the left has.
        input_schemas: of both sides; where they are known, the columns are checked at once.

    Raises:
        ConfigError: no keys, an unknown ``how``, a ``ttl`` that is not positive.
        MissingColumnError, PlanError: columns do not fit each other.

    Example:
        >>> join = RegularJoinOperator(["id"], ["id"], how="left", ttl=timedelta(seconds=5))
        >>> join.open(OperatorContext(uid="pairs"))
        >>> join.set_processing_time(0)
        >>> join.process_batch(Batch(pa.record_batch({"id": [1, 2], "a": ["x", "y"]})), 0)
        []
        >>> join.process_batch(Batch(pa.record_batch({"id": [1], "b": [7]})), 1)[0].data.to_pylist()
        [{'id': 1, 'a': 'x', 'b': 7}]
        >>> join.next_timer()
        5000000
        >>> join.on_processing_time(5000000)[0].data.to_pylist()
        [{'id': 2, 'a': 'y', 'b': None}]
    """

    what = "join"

    def __init__(
        self,
        left_keys: Sequence[str],
        right_keys: Sequence[str],
        *,
        how: JoinHow = "inner",
        ttl: timedelta | None = None,
        suffix: str = SUFFIX,
        input_schemas: InputSchemas = (None, None),
    ) -> None:
        check_how(how, self.what, get_args(JoinHow))
        self._outer = (how in ("left", "full"), how in ("right", "full"))
        self._ttl = None if ttl is None else microseconds("ttl", ttl)
        self._sides = Sides(self.what, (left_keys, right_keys), input_schemas, suffix)
        self._kept: list[KeptRows | None] = [None, None]
        self._now = MIN_TIMESTAMP
        self._expired = 0

    def signature(self) -> str:
        return "regular join"

    def input_types(self) -> tuple[pa.Schema | None, ...]:
        return (self._sides.schema(LEFT), self._sides.schema(RIGHT))

    def output_schema(
        self, left: pa.Schema | None, right: pa.Schema | None, uid: str = "operator"
    ) -> pa.Schema | None:
        """The columns of the results, None where a side is not known; raises as the constructor
        does."""
        return self._sides.output_schema(left, right, uid)

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._sides.open(context)

    # ------------------------------------------------------------------------------- rows

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        out = self._expire(self._now)
        side = input_index
        rows = self._sides.read(batch, side)
        if rows.num_rows == 0:
            return out
        rows = owned(rows)
        slots = self._sides.slots(rows, side)
        null = self._sides[side].null_keys(rows)
        # A row that can equal nothing waits for its end only where that end is told.
        if null is not None and not self._outer[side]:
            rows, slots = rows.filter(pa.array(~null)), slots[~null]
            null = None
        now = self._now
        kept = self._opened(side)
        if kept.newest is not None:
            now = max(now, kept.newest)  # a clock that went back must not upset the order
        arrived, alone = np.full(len(slots), now), np.zeros(len(slots), np.bool_)
        run = make_run(rows, arrived, slots, alone, null)
        results = self._pairs(run, side)
        kept.add(run)
        self._forget_keys()
        return out + results

    def _pairs(self, run: Run, side: int) -> list[Batch]:
        """Rows that came with all rows kept of the other side; notes which have a partner."""
        other = self._kept[1 - side]
        if other is None:
            return []
        numbers: list[Ints] = []
        rows: list[pa.RecordBatch] = []
        out, size = [], 0
        for kept in other.runs:
            for asking, found in kept.pairs(run.sorted_slots):
                asking = run.order[asking]
                run.mark(asking)
                kept.mark(found)
                if len(found) >= _MANY:
                    out += self._sides.results(side, run.rows, asking, kept.rows, found)
                    continue
                # Few rows from each of many runs: together they are cheaper to assemble.
                numbers.append(asking)
                rows.append(kept.rows.take(pa.array(found)))
                size += len(found)
        if size:
            every = np.arange(size)
            others = joined(rows, other.schema)
            asking = np.concatenate(numbers)
            out += self._sides.results(side, run.rows, asking, others, every)
        return out

    def _opened(self, side: int) -> KeptRows:
        kept = self._kept[side]
        if kept is None:
            kept = self._kept[side] = KeptRows(self._sides.schema(side))
        return kept

    # --------------------------------------------------------------------------- leaving

    def set_processing_time(self, now: int) -> None:
        self._now = now

    def next_timer(self) -> int | None:
        if self._ttl is None:
            return None
        oldest = [kept.oldest for kept in self._kept if kept is not None]
        return min((t + self._ttl for t in oldest if t is not None), default=None)

    def on_processing_time(self, now: int) -> list[Batch]:
        self._now = now
        return self._expire(now)

    def end_input(self) -> list[Batch]:
        return self._leave(MAX_TIMESTAMP)

    def _expire(self, now: int) -> list[Batch]:
        due = self.next_timer()
        if due is None or self._ttl is None or due > now:
            return []
        before = sum(len(kept) for kept in self._kept if kept is not None)
        out = self._leave(now - self._ttl)
        self._expired += before - sum(len(kept) for kept in self._kept if kept is not None)
        return out

    def _leave(self, through: int) -> list[Batch]:
        """Let go of the rows that came up to then."""
        out = []
        for side in (LEFT, RIGHT):
            kept = self._kept[side]
            gone = [] if kept is None else kept.expire(through)
            for rows in gone if self._outer[side] else []:
                out += self._sides.lone(side, rows, np.arange(rows.num_rows))
        return out

    def _forget_keys(self) -> None:
        kept = [each for each in self._kept if each is not None]

        def used() -> Ints:
            none = np.empty(0, np.int64)
            return np.concatenate([none, *(slots for each in kept for slots in each.used_slots())])

        mapping = self._sides.forget_keys(sum(map(len, kept)), used)
        if mapping is not None:
            for each in kept:
                each.remap(mapping)

    # ------------------------------------------------------------------------------ state

    def counters(self) -> Mapping[str, int]:
        """``operator.expired_rows``: kept rows whose time to live ran out, since ``open``."""
        return {EXPIRED_ROWS: self._expired}

    def snapshot(self) -> OperatorSnapshot:
        tables = dict(self._sides.snapshot())
        for side, name in enumerate(NAMES):
            kept = self._kept[side]
            if kept is not None and kept.runs:
                parts = [self._run_table(run, side) for run in kept.runs]
                tables[name] = StateTable(StateKind.KEYED, pa.concat_tables(parts))
        return tables

    def _run_table(self, run: Run, side: int) -> pa.Table:
        """A run's rows; made once but for ``matched``, which may have changed since."""
        arrived, matched = _ADDED
        if run.marks is None:
            run.marks = pa.array(run.matched)
        if run.stored is None:
            table = self._sides.table(side, run.rows, run.slots)
            run.stored = table.append_column(arrived, pa.array(run.arrived))
        return run.stored.append_column(matched, run.marks).slice(run.head)

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self._sides.restore(state)
        for side in (LEFT, RIGHT):
            for rows, slots, (arrived, matched) in _in_order(
                list(self._sides.restored(state, side, _ADDED))
            ):
                marks = matched.to_numpy(zero_copy_only=False)
                null = self._sides[side].null_keys(rows)
                run = make_run(rows, arrived.to_numpy(), slots, marks, null)
                self._opened(side).add(run)


def _in_order(found: list[Stored]) -> list[Stored]:
    """Kept rows in order of arrival: those of several subtasks stand one after the other."""
    if not found:
        return []
    arrived = np.concatenate([each.extras[0].to_numpy() for each in found])
    if bool((arrived[1:] >= arrived[:-1]).all()):
        return found
    order = np.argsort(arrived, kind="stable")
    slots = np.concatenate([each.slots for each in found])[order]
    index, ordered, at = pa.array(order), [], 0
    extras = [
        pa.concat_arrays(parts).take(index)
        for parts in zip(*(each.extras for each in found), strict=True)
    ]
    rows = pa.Table.from_batches([each.rows for each in found]).take(index).combine_chunks()
    for batch in rows.to_batches():
        end = at + batch.num_rows
        more = [column.slice(at, batch.num_rows) for column in extras]
        ordered.append(Stored(batch, slots[at:end], more))
        at = end
    return ordered
