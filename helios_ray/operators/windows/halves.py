"""Windows in two halves: partial rows before a shuffle, windows of them after it.

Why it exists: a batch of rows of few keys is a handful of partial rows. Making those where the
rows are leaves less to hash, to copy, to send and to fold. The half before the shuffle keeps
nothing; the half after it has the very state of the operator that does both, so a job restores
whether or not the first half runs before the shuffle.

What crosses the shuffle, with the columns that the rows had in the schema's metadata:

    <key columns>   slice int64   rows int64   value.<partial columns>

A slice is late as a whole, and a partial row says how many rows it stands for: late rows are
counted exactly, and early triggers count rows. But late rows are no longer there to be sent to a
side output. (Fragments of sessions would not do: some rows of one can be late and others not.)

Source: the combiner of Dean and Ghemawat, "MapReduce", 2004.

May import: elements, operators, windowing, state, Arrow, numpy.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.operators.base import OperatorSnapshot
from helios_ray.operators.user_functions import around
from helios_ray.operators.window_aggregates.base import Rows
from helios_ray.operators.window_aggregates.groups import Groups, Ints
from helios_ray.operators.windows.grouping import Cells, group
from helios_ray.operators.windows.keys import batch_slots
from helios_ray.operators.windows.reading import WindowReader
from helios_ray.operators.windows.runs import Run
from helios_ray.operators.windows.settings import WindowSettings
from helios_ray.operators.windows.sliced import SlicedWindowOperator
from helios_ray.operators.windows.slices import slicing_of
from helios_ray.state.hashing import decoded, values_buffer
from helios_ray.windowing import GlobalWindow, SlidingWindow, TumblingWindow

_ROWS_SCHEMA = b"helios_ray.rows"
"""Metadata of partial rows: the columns that were read to make them, as an Arrow schema."""

SHRINKS = 3
"""Rows that a partial row must stand for, on average, to be worth making. (Measured on 64k-row
batches: at 6 both halves together cost what one stage costs, and half of that before the
shuffle; at 3 up to a third more, and the half after it half as much; at 2 nothing is won.)"""

TRIED_EVERY = 32
"""Batches, one of which is made partial rows to see whether that has become worth it."""


class LocalWindowOperator(WindowReader):
    """The half before the shuffle: each batch as partial rows. It keeps no state.

    Where two batches running shrink too little to pay for it, the next ones pass as the rows they
    are, in the columns that are needed; now and then one is tried again.

    Args:
        settings: as for the operator that does both halves.
    """

    def __init__(self, settings: WindowSettings) -> None:
        assert isinstance(settings.window, (TumblingWindow, SlidingWindow, GlobalWindow))
        self._slicing = slicing_of(settings.window)
        self._partial: pa.Schema | None = None
        self._passing = 0  # batches until the next trial
        self._poor = 0  # trials in a row that shrank too little
        super().__init__(settings)

    def build(self, schema: pa.Schema) -> None:
        fields = list(self.space.schema)
        own = [pa.field("slice", pa.int64()), pa.field("rows", pa.int64())]
        own += [pa.field(f"value.{f.name}", f.type) for a in self.aggregates for f in a.fields]
        for field in own:  # read by position; keys are read by name
            name = field.name
            while name in self.keys:
                name += "_"
            fields.append(field.with_name(name))
        self._partial = pa.schema(fields, {_ROWS_SCHEMA: schema.serialize().to_pybytes()})

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        data = batch.data
        self.prepare(data.schema, batch.origin)
        if data.num_rows == 0:
            return []
        if self._passing:
            self._passing -= 1
            return [Batch(data.select(self._reads), batch.origin) if self._reads else batch]
        out = self.without_rejected(self._timed(batch), self._partials)
        return out + self._failures.drain()

    def _partials(self, rows: Rows) -> list[Batch]:
        slots, width = batch_slots(rows.data, self.keys)
        cells = group(self._slicing.slices(rows.times), slots, width)
        lifted = self.lift(cells.groups, rows)
        self._poor = self._poor + 1 if cells.groups.size * SHRINKS > len(slots) else 0
        if self._poor > 1:  # a single one may just lie across the boundary of two slices
            self._passing = TRIED_EVERY - 1
        arrays = self._keys_of(rows, slots, cells, width)
        arrays += [pa.array(cells.units), pa.array(cells.groups.counts)]
        data = pa.RecordBatch.from_arrays([*arrays, *lifted], schema=self._partial)
        return [Batch(data, around(rows.batch.origin))]

    def _keys_of(self, rows: Rows, slots: Ints, cells: Cells, width: int) -> list[pa.Array]:
        """The key columns of the groups, as the first row of each key has them."""
        first = np.empty(width, np.int64)
        first[slots[::-1]] = np.arange(len(slots))[::-1]  # of equal places, the last write stays
        index = pa.array(first[cells.slots])
        return [decoded(rows.data.column(key)).take(index) for key in self.keys]

    def snapshot(self) -> OperatorSnapshot:
        return {}


class MergingWindowOperator(SlicedWindowOperator):
    """The half after the shuffle: takes up partial rows, and rows that were passed as they are."""

    _described: bytes | None = None

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        data = batch.data
        described = (data.schema.metadata or {}).get(_ROWS_SCHEMA)
        if described is None:
            return super().process_batch(batch, input_index)
        if described != self._described:
            self.prepare(pa.ipc.read_schema(pa.py_buffer(described)), batch.origin)
            self._described = described
        if data.num_rows == 0:
            return []
        width = len(self.keys)
        slots = self.space.slots(data)
        slices, counts = (values_buffer(data.column(width + i), np.int64) for i in (0, 1))
        columns = data.columns[width + 2 :]
        late = self.late_slices(slices, slots)
        if late.any():
            self.late_rows += int(counts[late].sum())
            kept = pa.array(~late)
            slices, slots, counts = slices[~late], slots[~late], counts[~late]
            columns = [column.filter(kept) for column in columns]
            if len(slots) == 0:
                return []
        cells = group(slices, slots, len(self.space))
        # Merging copies: the frame that brought the columns must not live as long as the state.
        run = Run(cells.units, cells.slots, self._merged(cells.groups, columns))
        rows = np.zeros(cells.groups.size, np.int64)
        np.add.at(rows, cells.groups.codes, counts)
        out = self.take_up(run, rows)
        self._forget_keys()
        return out

    def _merged(self, groups: Groups, columns: list[pa.Array]) -> list[pa.Array]:
        if groups.size < len(groups):
            return self.merge_columns(groups, columns)
        index = pa.array(groups.order)
        return [column.take(index) for column in columns]
