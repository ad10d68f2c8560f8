"""Enrichment: each row of a stream with the row of its key in a table.

Why it exists: the most common join by far has a small side (planes, customers, prices of the
day). Every subtask holds all of that table, so the stream need not be keyed nor shuffled, and
a lookup is one vectorized search.

    left_schema, right_schema   UNION       the columns of the stream and of the table
    table                       BROADCAST   the table's rows, one per key: key.<name>, value.<name>
    ended                       BROADCAST   one row, once the table has been read whole
    held                        SPLIT       rows of the stream that wait for that, likewise
    held_watermark              UNION       watermark int64 (µs) they came after

May import: elements, errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from helios_ray.elements import MAX_TIMESTAMP, MIN_TIMESTAMP, Batch
from helios_ray.errors import ConfigError
from helios_ray.operators.base import (
    NONE_BLOCKED,
    Operator,
    OperatorContext,
    OperatorSnapshot,
    StateKind,
    StateTable,
)
from helios_ray.operators.joins.columns import SUFFIX, check_how, parts
from helios_ray.operators.joins.side import owned
from helios_ray.operators.joins.side_rows import LatestRows, last_rows
from helios_ray.operators.joins.sides import LEFT, RIGHT, InputSchemas, Sides

EnrichHow: TypeAlias = Literal["left", "inner"]

HELD_BYTES = 64 << 20
"""How much of the stream waits for a bounded table, in bytes, unless said otherwise."""

UNMATCHED_ROWS = "operator.unmatched_rows"
_STREAM_BLOCKED = frozenset({LEFT})
_ENDED = StateTable(StateKind.BROADCAST, pa.table({"ended": [True]}))
_WATERMARK = pa.schema([("watermark", pa.int64())])


class EnrichOperator(Operator):
    """Joins each row of a stream (input 0) with the row of its key in a table (input 1).

    The last row of a key that came is the one in the table. A null in a key equals nothing.

    A bounded table is read whole first: rows of the stream wait until its input has ended, up
    to ``held_bytes`` of them per subtask; then the stream's input is blocked. While rows wait,
    the watermark does not pass them. Any other table may change at any time, and a row
    of the stream meets what is in the table when it comes.

    Args:
        keys, table_keys: key columns of the stream and of the table, in the same order.
        how: ``"left"`` fills in nulls where the table has no row, ``"inner"`` drops such rows.
        suffix: for columns of the table whose names the stream has.
        table_is_bounded: whether the table's input ends.
        held_bytes: see above; a batch is taken whole, so the last one may go beyond.
        input_schemas: of stream and table; where they are known, the columns are checked.

    Raises:
        ConfigError: no keys, an unknown ``how``, ``held_bytes`` below 1.
        MissingColumnError, PlanError: columns do not fit each other.

    Example:
        >>> enrich = EnrichOperator(["tail"], ["tail"], table_is_bounded=True)
        >>> enrich.open(OperatorContext(uid="planes"))
        >>> flights = pa.record_batch({"tail": ["N1", "N2"], "miles": [200, 300]})
        >>> enrich.process_batch(Batch(flights), 0)
        []
        >>> planes = pa.record_batch({"tail": ["N1"], "seats": [149]})
        >>> enrich.process_batch(Batch(planes), 1)
        []
        >>> enrich.on_input_end(1)[0].data["seats"].to_pylist()
        [149, None]
    """

    what = "enrich"

    def __init__(
        self,
        keys: Sequence[str],
        table_keys: Sequence[str],
        *,
        how: EnrichHow = "left",
        suffix: str = SUFFIX,
        table_is_bounded: bool,
        held_bytes: int = HELD_BYTES,
        input_schemas: InputSchemas = (None, None),
    ) -> None:
        check_how(how, self.what, get_args(EnrichHow))
        if type(held_bytes) is not int or held_bytes < 1:
            raise ConfigError(
                f"{self.what}: held_bytes must be a positive number of bytes, got {held_bytes!r}."
            )
        self._how = how
        self._held_bytes = held_bytes
        self._sides = Sides(self.what, (keys, table_keys), input_schemas, suffix)
        self._bounded = table_is_bounded
        self._ended = False
        self._table: LatestRows | None = None
        self._stored: StateTable | None = None
        self._held: list[pa.RecordBatch] = []
        self._held_size = 0
        self._passed = MIN_TIMESTAMP
        self._unmatched = 0

    def signature(self) -> str:
        return "enrichment"

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
        rows = self._sides.read(batch, input_index)
        if rows.num_rows == 0:
            return []
        if input_index == RIGHT:
            self._upsert(rows)
            return []
        if self._waits:
            self._hold(rows)
            return []
        return self._look_up(rows)

    @property
    def _waits(self) -> bool:
        return self._bounded and not self._ended

    def _upsert(self, rows: pa.RecordBatch) -> None:
        rows = owned(rows)
        null = self._sides[RIGHT].null_keys(rows)
        if null is not None:
            rows = rows.filter(pa.array(~null))
        slots = self._sides.slots(rows, RIGHT)
        last = last_rows(slots)
        if len(last) < len(slots):
            slots, rows = slots[last], rows.take(pa.array(last))
        if self._table is None:
            self._table = LatestRows(self._sides.schema(RIGHT))
        self._table.put(slots, rows)
        self._stored = None
        self._forget_keys()

    def _look_up(self, rows: pa.RecordBatch) -> list[Batch]:
        table = self._table
        numbers = np.arange(rows.num_rows)
        if table is None or len(table) == 0:
            self._unmatched += len(numbers)
            return [] if self._how == "inner" else self._sides.lone(LEFT, rows, numbers)
        found = table.of(self._sides.slots(rows, LEFT))
        matched = found >= 0
        count = int(np.count_nonzero(matched))
        self._unmatched += len(numbers) - count
        if self._how == "inner" and count < len(numbers):
            numbers, found = numbers[matched], found[matched]
        part, places = table.fetch(found)
        out = self._sides.results(LEFT, rows, numbers, part, places)
        self._forget_keys()
        return out

    def _forget_keys(self) -> None:
        """Keys that only the stream has got slots as well, which nobody needs again."""
        table, space = self._table, self._sides.space
        if table is not None and space.worth_forgetting(len(table)):
            table.remap(space.forget(table.slots()))

    # -------------------------------------------------------------------- before the end

    def _hold(self, rows: pa.RecordBatch) -> None:
        rows = owned(rows)
        self._held.append(rows)
        self._held_size += rows.nbytes

    def blocked_inputs(self) -> frozenset[int]:
        full = self._waits and self._held_size >= self._held_bytes
        return _STREAM_BLOCKED if full else NONE_BLOCKED

    @property
    def withholds(self) -> bool:
        """Rows wait for the end of the table: nobody may take the silence for idleness."""
        return bool(self._held)

    def output_watermark(self, timestamp: int) -> int:
        if not self._held:
            self._passed = max(timestamp, self._passed)
        return self._passed

    def on_watermark(self, timestamp: int) -> list[Batch]:
        # The end of time: every input has ended. What follows in the chain flushes by this very
        # watermark, so rows let go at end_input would come after it.
        return self.end_input() if timestamp == MAX_TIMESTAMP else []

    def on_input_end(self, input_index: int) -> list[Batch]:
        if input_index != RIGHT:
            return []
        self._ended = True
        return self._let_go()

    def end_input(self) -> list[Batch]:
        self._ended = True
        return self._let_go()

    def _let_go(self) -> list[Batch]:
        held, self._held, self._held_size = self._held, [], 0
        if not held:
            return []
        table = pa.Table.from_batches(held).combine_chunks()
        return [
            out
            for rows in table.to_batches()
            for part in parts(rows.num_rows)
            for out in self._look_up(rows.slice(part.start, part.stop - part.start))
        ]

    # ------------------------------------------------------------------------------ state

    def counters(self) -> Mapping[str, int]:
        """``operator.unmatched_rows``: rows of the stream without one in the table."""
        return {UNMATCHED_ROWS: self._unmatched}

    def snapshot(self) -> OperatorSnapshot:
        tables = dict(self._sides.snapshot())
        if self._table is not None:
            if self._stored is None:
                table = self._sides[RIGHT].table(self._table.rows(), None)
                self._stored = StateTable(StateKind.BROADCAST, table)
            tables["table"] = self._stored
        if self._ended:
            tables["ended"] = _ENDED
        if self._held:
            held = [self._sides[LEFT].table(rows, None) for rows in self._held]
            tables["held"] = StateTable(StateKind.SPLIT, pa.concat_tables(held))
            marks = pa.table([[self._passed]], schema=_WATERMARK)
            tables["held_watermark"] = StateTable(StateKind.UNION, marks)
        return tables

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self._sides.restore(state)
        self._ended = "ended" in state
        for name, index, take in (("table", RIGHT, self._upsert), ("held", LEFT, self._hold)):
            side = self._sides[index]
            for rows, *_ in side.restored(state, name, self.context, keyed=False):
                take(rows)
        marks = state.get("held_watermark")
        if marks is not None and self._held:
            self._passed = min(marks.table.column("watermark").to_pylist())
