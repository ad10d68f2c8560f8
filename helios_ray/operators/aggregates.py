"""Running aggregates per key, vectorized, and their local half before a shuffle.

Why it exists: "count and sum per key so far" is the bread and butter of streams. A batch is
mapped to dense slots (:class:`helios_ray.state.index.KeyIndex`) and folded into columns of
accumulators; no row is touched in Python.

Modes of emission:

    updates   after each batch, one row per key that had rows in it, with the values so far;
              in the order in which the keys first appear in the batch
    every     one row per input row, with the values after that row, in the rows' order:
              the output does not depend on how the stream was cut into batches
    final     one row per key, when the input has ended, in first-seen order

May import: elements, errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, SchemaChangedError
from helios_ray.operators.accumulator_base import Accumulator, part_name
from helios_ray.operators.accumulators import make_accumulator
from helios_ray.operators.aggregation import (
    Aggregation,
    Aggregations,
    aggregate_schema,
    check_names,
)
from helios_ray.operators.base import Operator, OperatorSnapshot, StateTable
from helios_ray.operators.keyed import KeyedOperator
from helios_ray.operators.rows import InputSchema
from helios_ray.operators.segments import Segments, first_rows
from helios_ray.operators.user_functions import around
from helios_ray.state.index import KeyIndex, Slots

Emit: TypeAlias = Literal["updates", "every", "final"]

FINAL_BATCH_ROWS = 65_536
"""Rows per batch of the output at the end."""


class RunningAggregateOperator(KeyedOperator):
    """Aggregates over all rows so far of each key.

    Args:
        keys: key columns.
        aggregations: what to compute, by output column.
        emit: ``"updates"``, ``"every"`` or ``"final"``.
        partial: the input is what :class:`LocalAggregateOperator` made of the same keys and
            aggregations, rather than raw rows.
        input_schema: where it is known, everything is checked at once.

    Raises:
        ConfigError: no keys or aggregations, an unknown mode, ``partial`` with ``every``.
        MissingColumnError: a column is not in ``input_schema``.
        PlanError: a type that cannot be a key or cannot be aggregated so.

    Example:
        >>> from helios_ray.operators.base import OperatorContext
        >>> operator = RunningAggregateOperator(["k"], {"n": Aggregation("count")})
        >>> operator.open(OperatorContext(uid="per-key"))
        >>> def run(keys):
        ...     batch = Batch(pa.record_batch({"k": keys}))
        ...     return operator.process_batch(batch)[0].data.to_pydict()
        >>> run(["a", "b", "a"]), run(["a"])
        ({'k': ['a', 'b'], 'n': [2, 1]}, {'k': ['a'], 'n': [3]})
    """

    what = "aggregate"
    table_name = "aggregate"

    def __init__(
        self,
        keys: Sequence[str],
        aggregations: Aggregations,
        *,
        emit: Emit = "updates",
        partial: bool = False,
        input_schema: pa.Schema | None = None,
    ) -> None:
        self.keys = _checked_keys(keys, aggregations)
        if emit not in get_args(Emit):
            raise ConfigError(f"emit must be 'updates', 'every' or 'final', got {emit!r}.")
        if partial and emit == "every":
            raise ConfigError(
                "emit='every' needs the rows themselves, and partial=True gives one row per key "
                "and batch. Use emit='updates', or no local aggregation."
            )
        self._emit = emit
        self._partial = partial
        self._aggregations = (
            {name: _of_partial(name, a) for name, a in aggregations.items()}
            if partial
            else dict(aggregations)
        )
        self._accumulators: list[Accumulator] = []
        self._schema: pa.Schema | None = None
        if input_schema is not None:
            self.output_schema(input_schema)

    def output_schema(self, input_schema: pa.Schema, uid: str = "operator") -> pa.Schema:
        """Key columns (dictionary encoding undone), then results by name; raises as the
        constructor does."""
        return aggregate_schema(self.keys, self._aggregations, input_schema, f"aggregate {uid!r}")

    def needed(self, schema: pa.Schema) -> Sequence[str]:
        self.output_schema(schema, self.context.uid)
        columns = [a.column for a in self._aggregations.values() if a.column is not None]
        if self._partial:
            made = self._make(schema)
            columns += [field.name for a in made for field in a.partial_fields]
        return list(dict.fromkeys([*self.keys, *columns]))

    def build(self, schema: pa.Schema) -> None:
        self._schema = self.output_schema(schema, self.context.uid)
        self._accumulators = self._make(schema)

    def _make(self, schema: pa.Schema) -> list[Accumulator]:
        return [
            make_accumulator(name, aggregation, schema, self.where)
            for name, aggregation in self._aggregations.items()
        ]

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        data = batch.data
        self.prepare(data.schema, batch.origin)
        if data.num_rows == 0:
            return []
        assert self.index is not None
        keys = self.index.key_columns(data)
        slots = self.index.slots(data, keys)
        for accumulator in self._accumulators:
            accumulator.resize(len(self.index))
        results = self._fold(data, slots)
        if results is not None:
            return [self._output(keys.columns, results, batch)]
        if self._emit == "final":
            return []
        rows = first_rows(slots)
        touched = slots[rows]
        results = [accumulator.result(touched) for accumulator in self._accumulators]
        return [self._output(keys.take(pa.array(rows)).columns, results, batch)]

    def _fold(self, data: pa.RecordBatch, slots: Slots) -> list[pa.Array] | None:
        """Fold a batch; the running values in mode ``every``, else None."""
        segments = Segments(slots) if self._emit == "every" else None
        running = []
        for accumulator, aggregation in zip(
            self._accumulators, self._aggregations.values(), strict=True
        ):
            if self._partial:
                parts = [data.column(f.name) for f in accumulator.partial_fields]
                accumulator.merge(slots, parts)
                continue
            column = data.column(aggregation.column) if aggregation.column is not None else None
            if segments is not None:
                running.append(accumulator.running(segments, slots, column))
            else:
                accumulator.update(slots, column)
        return running if segments is not None else None

    def _output(self, keys: list[pa.Array], results: list[pa.Array], batch: Batch) -> Batch:
        data = pa.RecordBatch.from_arrays([*keys, *results], schema=self._schema)
        origin = batch.origin if self._emit == "every" else around(batch.origin)
        return Batch(data, origin)

    def end_input(self) -> list[Batch]:
        if self._emit != "final" or self.index is None or len(self.index) == 0:
            return []
        slots = np.arange(len(self.index))
        keys = self.index.key_table().columns
        results = [accumulator.result(slots) for accumulator in self._accumulators]
        table = pa.Table.from_arrays([*keys, *results], schema=self._schema).combine_chunks()
        return [Batch(b) for b in table.to_batches(max_chunksize=FINAL_BATCH_ROWS)]

    def snapshot(self) -> OperatorSnapshot:
        columns = [column for a in self._accumulators for column in a.freeze()]
        return self.keyed_snapshot(columns, [f for a in self._accumulators for f in a.fields])

    def restore(self, state: Mapping[str, StateTable]) -> None:
        restored = self.keyed_restore(state)
        if restored is None:
            return
        slots, values = restored
        for accumulator in self._accumulators:
            accumulator.resize(len(slots))
            columns = []
            for field in accumulator.fields:
                name = f"value.{field.name}"
                if name not in values.column_names or values.schema.field(name).type != field.type:
                    raise SchemaChangedError(
                        f"{self.where}: its state has no column {name!r} of type {field.type}: the "
                        f"aggregations changed. Give the operator a new uid to start it afresh."
                    )
                columns.append(values.column(name).combine_chunks())
            accumulator.restore(slots, [_plain(column) for column in columns])


class LocalAggregateOperator(Operator):
    """Partial aggregates of each batch, one row per key: fewer rows to shuffle.

    It keeps nothing from one batch to the next, so there is nothing to snapshot. What it
    emits is for :class:`RunningAggregateOperator` with ``partial=True``. Sums of floats may
    differ in the last digits from unshuffled ones, because they are added in another order.

    Args:
        keys, aggregations, input_schema: as for :class:`RunningAggregateOperator`.

    Example:
        >>> from helios_ray.operators.base import OperatorContext
        >>> local = LocalAggregateOperator(["k"], {"total": Aggregation("sum", "x")})
        >>> local.open(OperatorContext(uid="local"))
        >>> batch = Batch(pa.record_batch({"k": ["a", "b", "a"], "x": [1, 2, 3]}))
        >>> local.process_batch(batch)[0].data.to_pydict()
        {'k': ['a', 'b'], 'total.count': [2, 1], 'total.sum': [4, 2]}
    """

    def __init__(
        self,
        keys: Sequence[str],
        aggregations: Aggregations,
        *,
        input_schema: pa.Schema | None = None,
    ) -> None:
        self._keys = _checked_keys(keys, aggregations)
        self._aggregations = dict(aggregations)
        self._input = InputSchema("local aggregate")
        self._schema: pa.Schema | None = None
        for name, aggregation in aggregations.items():
            clash = {f"{name}.count", f"{name}.{part_name(aggregation.function)}"} & set(keys)
            if clash:
                raise ConfigError(
                    f"local aggregate: key {clash.pop()!r} is also the name of a partial result of "
                    f"{name!r}. Give one of them another name."
                )
        if input_schema is not None:
            self.output_schema(input_schema)

    def output_schema(self, input_schema: pa.Schema, uid: str = "operator") -> pa.Schema:
        """Key columns, then the partial results; raises as the constructor does."""
        where = f"local aggregate {uid!r}"
        fields = list(aggregate_schema(self._keys, self._aggregations, input_schema, where))
        fields = fields[: len(self._keys)]
        for accumulator in self._accumulators(input_schema, where):
            fields += accumulator.partial_fields
        return pa.schema(fields)

    def _accumulators(self, schema: pa.Schema, where: str) -> list[Accumulator]:
        return [make_accumulator(n, a, schema, where) for n, a in self._aggregations.items()]

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        data = batch.data
        if self._input.check(data.schema, self.context.uid, batch.origin) or self._schema is None:
            self._schema = self.output_schema(data.schema, self.context.uid)
        if data.num_rows == 0:
            return []
        index = KeyIndex(self._keys, data.schema, self.context.max_parallelism)
        slots = index.slots(data)
        arrays: list[pa.Array] = list(index.key_table().combine_chunks().to_batches()[0].columns)
        where = f"local aggregate {self.context.uid!r}"
        accumulators = self._accumulators(data.schema, where)
        for accumulator, aggregation in zip(accumulators, self._aggregations.values(), strict=True):
            accumulator.resize(len(index))
            column = data.column(aggregation.column) if aggregation.column is not None else None
            accumulator.update(slots, column)
            for field, state in zip(accumulator.partial_fields, accumulator.freeze(), strict=True):
                array = _plain(state)
                arrays.append(array if array.type == field.type else array.cast(field.type))
        out = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        return [Batch(out, around(batch.origin), batch.tag)]


def _checked_keys(keys: Sequence[str], aggregations: Aggregations) -> tuple[str, ...]:
    if isinstance(keys, str):
        keys = [keys]
    if not keys or len(set(keys)) != len(keys):
        raise ConfigError(
            f"an aggregate needs distinct key columns, at least one, got {list(keys)}."
        )
    check_names(keys, aggregations, "aggregate")
    return tuple(keys)


def _of_partial(name: str, aggregation: Aggregation) -> Aggregation:
    """The aggregation over the columns that its local half emits."""
    if aggregation.function == "count":
        return Aggregation("count")
    return Aggregation(aggregation.function, f"{name}.{part_name(aggregation.function)}")


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column
