"""What joins in event time share: two sides, one space of keys, one clock, late rows, state.

Why it exists: a kind of join says which kept rows meet and until when they are kept; reading
batches, refusing changed columns, setting late rows aside and dealing state out is here.

    left_schema, right_schema   UNION   the columns of both sides
    left, right                 KEYED   kept rows of both sides
    watermark                   KEYED   how far event time has come, by key group

May import: errors, elements, operators, watermarks, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import StateMismatchError
from helios_ray.operators.base import Operator, OperatorContext, OperatorSnapshot, StateTable
from helios_ray.operators.joins.buffer_side import Side, SideRows, StoredRows
from helios_ray.operators.joins.columns import check_join_keys
from helios_ray.operators.joins.matching import Ints
from helios_ray.operators.user_functions import FailureHandler, OnError, around
from helios_ray.operators.window_aggregates.groups import Mask
from helios_ray.operators.windows.base import LATE, LATE_ROWS
from helios_ray.operators.windows.keys import KeySpace
from helios_ray.operators.windows.timing import EventClock
from helios_ray.state.hashing import logical_type
from helios_ray.watermarks import EventTime

LATE_RIGHT = "late_right"
"""Tag of the side output that carries late rows of the right; those of the left have ``late``."""

EMITTED_ROWS = 65_536
"""Rows in a batch of results, at most."""

InputSchemas: TypeAlias = tuple[pa.Schema | None, pa.Schema | None]

LEFT, RIGHT = 0, 1


class TwoSidedOperator(Operator):
    """Base of the joins in event time.

    Args:
        left_keys, right_keys: key columns of both sides, in the same order.
        left_time, right_time: where rows carry their event time.
        on_error: what to do with rows that have none.
        input_schemas: where they are known, everything is checked at once.

    Raises:
        ConfigError: no keys, or not as many on both sides; no event time.
        MissingColumnError, PlanError, SchemaChangedError: columns or types that do not do.
    """

    what: str

    def __init__(
        self,
        left_keys: Sequence[str],
        right_keys: Sequence[str],
        left_time: str | EventTime,
        right_time: str | EventTime,
        *,
        on_error: OnError,
        input_schemas: InputSchemas,
    ) -> None:
        left, right = input_schemas
        lefts = (left_keys,) if isinstance(left_keys, str) else tuple(left_keys)
        rights = (right_keys,) if isinstance(right_keys, str) else tuple(right_keys)
        check_join_keys(left, right, lefts, rights, self.what)
        self.sides = (
            Side("left", lefts, left_time, left, self.what),
            Side("right", rights, right_time, right, self.what),
        )
        self.clock = EventClock()
        self.late_rows = 0
        self._space: KeySpace | None = None
        self._failures = FailureHandler(self.what, on_error)
        if left is not None and right is not None:
            self.output_schema(left, right)

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid

    @property
    def where(self) -> str:
        """Who speaks, for messages."""
        return f"{self.what} {self.context.uid!r}"

    def output_schema(
        self, left: pa.Schema | None, right: pa.Schema | None, uid: str = "operator"
    ) -> pa.Schema | None:
        """The columns of the results, or None where they cannot be known yet.

        Raises:
            MissingColumnError, PlanError, SchemaChangedError: columns or types that do not do.
        """
        raise NotImplementedError

    def check_schemas(self, left: pa.Schema | None, right: pa.Schema | None, where: str) -> None:
        """Raise unless keys and event times are there and fit each other."""
        check_join_keys(left, right, self.sides[LEFT].keys, self.sides[RIGHT].keys, where)
        for side, schema in zip(self.sides, (left, right), strict=True):
            if schema is not None:
                side.check(schema, where)

    # ------------------------------------------------------------------------------- keys

    @property
    def space(self) -> KeySpace:
        """The keys of both sides, under the names of the left."""
        if self._space is None:
            side = next(side for side in self.sides if side.schema is not None)
            assert side.schema is not None
            kinds = [logical_type(side.schema.field(key).type) for key in side.keys]
            names = self.sides[LEFT].keys
            schema = pa.schema(list(zip(names, kinds, strict=True)))
            self._space = KeySpace(names, schema, self.context.max_parallelism)
        return self._space

    def _slots(self, side: Side, data: pa.RecordBatch) -> Ints:
        columns = [data.column(key) for key in side.keys]
        return self.space.slots(pa.RecordBatch.from_arrays(columns, schema=self.space.schema))

    def forget_keys(self) -> None:
        """Number the keys afresh where few of many are in use."""
        if self._space is not None and self._space.worth_forgetting(self.live_rows()):
            # Ascending, so that the order of slots stays what it was.
            self.remap(self._space.forget(np.sort(self.used_slots())))

    def live_rows(self) -> int:
        """At least as many as there are keys in use."""
        raise NotImplementedError

    def used_slots(self) -> Ints:
        """The slots in use, each once."""
        raise NotImplementedError

    def remap(self, mapping: Ints) -> None:
        """Slots have new numbers; their order has not changed."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------- rows

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        side = self.sides[input_index]
        if side.prepare(batch.data.schema, self.where, batch.origin):
            self._side_is_known()
        if batch.data.num_rows == 0:
            return []
        rows = side.read(batch, self._failures, self.where)
        out: list[Batch] = []
        if rows.data.num_rows:
            rows = rows._replace(slots=self._slots(side, rows.data))
            late = self.late(rows.times, rows.slots)
            if late is not None and late.any():
                out.append(self._late(batch, rows.numbers[late], input_index))
                rows = rows.filter(~late)
        if rows.data.num_rows:
            out += self.fold(input_index, rows)
            self.forget_keys()
        return out + self._failures.drain()

    def _side_is_known(self) -> None:
        left, right = (side.schema for side in self.sides)
        if left is not None and right is not None:
            check_join_keys(left, right, self.sides[LEFT].keys, self.sides[RIGHT].keys, self.where)

    def late(self, times: Ints, slots: Ints) -> Mask | None:
        """Which rows come too late; None for none."""
        raise NotImplementedError

    def fold(self, index: int, rows: SideRows) -> list[Batch]:
        """Take up rows of side ``index`` that are in time; return what they make due."""
        raise NotImplementedError

    def _late(self, batch: Batch, numbers: Ints, index: int) -> Batch:
        self.late_rows += len(numbers)
        data = batch.data.take(pa.array(numbers))
        return Batch(data, around(batch.origin), LATE if index == LEFT else LATE_RIGHT)

    # ------------------------------------------------------------------------------ state

    def counters(self) -> Mapping[str, int]:
        return {**self._failures.counters(), LATE_ROWS: self.late_rows}

    def snapshot(self) -> OperatorSnapshot:
        tables: dict[str, StateTable] = dict(self.clock.snapshot(self.context))
        for index, side in enumerate(self.sides):
            if side.schema is not None:
                tables.update(side.snapshot(self.kept(index), self.context))
        return tables

    def kept(self, index: int) -> pa.Table:
        """The kept rows of a side, as its state table."""
        raise NotImplementedError

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self.clock.restore(state, self.context)
        for side in self.sides:
            side.restore_schema(state, self.context, self.where)
        self._side_is_known()
        for index, side in enumerate(self.sides):
            if side.schema is None:
                continue
            stored = side.restore(state, self.extras(index), self.context, self.where)
            if stored is not None:
                self.put_back(index, self._found(side, stored), stored.extras)

    def extras(self, index: int) -> Sequence[pa.Field]:
        """What the operator adds to the kept rows of a side."""
        return ()

    def put_back(self, index: int, rows: SideRows, extras: Sequence[pa.Array]) -> None:
        """Take up rows of a side that were kept."""
        raise NotImplementedError

    def _found(self, side: Side, stored: StoredRows) -> SideRows:
        slots = self._slots(side, stored.data)
        if not np.array_equal(self.space.groups()[slots], stored.groups):
            raise StateMismatchError(
                f"{self.where}: keys of its state are in other key groups than they hash to. "
                f"Restore it with the max_parallelism it was written with "
                f"(now {self.context.max_parallelism})."
            )
        times = side.time.read(stored.data).to_numpy()
        return SideRows(stored.data, times, slots, np.arange(len(slots)))
