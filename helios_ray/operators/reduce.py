"""A running reduce per key: the new value after every row.

Why it exists: what no built-in aggregate does, a function of two rows does. The first row of
a key is its value; each further row gives ``fn(value, row)``, which is the new value and is
emitted. The value has the stream's own columns, types included.

State lives as Arrow rows (:class:`helios_ray.state.columns.ValuePool`); only the values of
keys that a batch touches exist as Python dicts, and only while it is processed.

May import: elements, errors, operators, state, Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError
from helios_ray.operators.base import OperatorContext, OperatorSnapshot, StateTable
from helios_ray.operators.keyed import KeyedOperator
from helios_ray.operators.rows import OutputSchema, Row, as_row, to_rows
from helios_ray.operators.segments import first_rows
from helios_ray.operators.user_functions import (
    FailureHandler,
    OnError,
    around,
    position,
    truncated,
)
from helios_ray.state.columns import ValuePool
from helios_ray.state.hashing import check_keys


class ReduceOperator(KeyedOperator):
    """Folds the rows of each key with a function.

    Args:
        keys: key columns.
        fn: given the key's value and a row, both dicts, returns the new value: a dict of the
            stream's columns. Key columns may be left out and must not be changed.
        on_error: under ``skip`` and ``dead_letter`` a row whose call raised leaves the value
            of its key as it was, and emits nothing.
        input_schema: where it is known, the keys are checked at once.

    Raises:
        ConfigError: no keys, or ``fn`` is no function.
        MissingColumnError, PlanError: a key is not a column of ``input_schema``, or cannot
            be a key.

    Example:
        >>> operator = ReduceOperator(["k"], lambda a, b: {"x": max(a["x"], b["x"])})
        >>> operator.open(OperatorContext(uid="highest"))
        >>> batch = Batch(pa.record_batch({"k": ["a", "b", "a"], "x": [3, 1, 2]}))
        >>> operator.process_batch(batch)[0].data.to_pydict()
        {'k': ['a', 'b', 'a'], 'x': [3, 1, 3]}
    """

    what = "reduce"
    table_name = "reduce"

    def __init__(
        self,
        keys: Sequence[str],
        fn: Callable[[Row, Row], Row],
        *,
        on_error: OnError = "raise",
        input_schema: pa.Schema | None = None,
    ) -> None:
        if isinstance(keys, str):
            keys = [keys]
        if not keys or len(set(keys)) != len(keys):
            raise ConfigError(f"reduce needs distinct key columns, at least one, got {list(keys)}.")
        if not callable(fn):
            raise ConfigError(f"reduce needs a function of a value and a row, got {fn!r}.")
        self.keys = tuple(keys)
        self._fn = fn
        self._failures = FailureHandler("reduce", on_error)
        self._output: OutputSchema | None = None
        self._pool = ValuePool(pa.schema([]))
        if input_schema is not None:
            check_keys(input_schema, self.keys, "reduce")

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid

    def needed(self, schema: pa.Schema) -> Sequence[str]:
        check_keys(schema, self.keys, self.where)
        names: list[str] = schema.names
        return names

    def build(self, schema: pa.Schema) -> None:
        self._pool = ValuePool(schema)
        self._output = OutputSchema("reduce", schema)
        self._output.open(self.context)

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        self.prepare(batch.data.schema, batch.origin)
        if batch.data.num_rows == 0:
            return []
        assert self.index is not None
        assert self.input_schema is not None
        assert self._output is not None
        data = batch.data.select(self.input_schema.names)
        rows = to_rows(data)
        known = len(self._pool)
        slots = self.index.slots(data)
        touched = slots[first_rows(slots)]
        old = touched[touched < known]
        stored = self._pool.take(old).combine_chunks().to_batches()
        values: dict[int, Row] = {}
        if stored:
            values = dict(zip(old.tolist(), to_rows(stored[0]), strict=True))
        results, sources = self._fold(rows, slots.tolist(), values, batch, data)
        out: list[Batch] = []
        if results:

            def describe(i: int) -> str:
                place = position(batch, sources[i])
                read = f", read from {place}" if place else ""
                return f"the value after row {sources[i]} ({truncated(rows[sources[i]])}{read})"

            emitted = self._output.from_rows(results, describe)
            self._keep(emitted, slots[sources])
            origin = batch.origin if len(results) == len(rows) else around(batch.origin)
            out.append(Batch(emitted, origin, batch.tag))
        return out + self._failures.drain()

    def _fold(
        self,
        rows: list[Row],
        slots: list[int],
        values: dict[int, Row],
        batch: Batch,
        data: pa.RecordBatch,
    ) -> tuple[list[Row], list[int]]:
        """The value after each row that went well, and which row that was."""
        results: list[Row] = []
        sources: list[int] = []
        for i, (slot, row) in enumerate(zip(slots, rows, strict=True)):
            value = values.get(slot)
            if value is None:
                new = row
            else:
                try:
                    # A copy: the value was emitted already, and fn may write to what it gets.
                    new = self._with_keys(self._fn(dict(value), dict(row)), value)
                except Exception as error:
                    self._failures.failed(error, to_rows(data.slice(i, 1)), i, batch)
                    continue
            values[slot] = new
            results.append(new)
            sources.append(i)
        return results, sources

    def _with_keys(self, result: Any, value: Row) -> Row:
        if not isinstance(result, Mapping):
            raise TypeError(f"reduce expects a dict, got {type(result).__name__} {result!r:.200}")
        new = dict(as_row(result))
        for key in self.keys:
            had, got = value[key], new.setdefault(key, value[key])
            if got != had and not (got != got and had != had):
                raise ValueError(f"reduce must not change key column {key!r}: {had!r} to {got!r}")
        return new

    def _keep(self, emitted: pa.RecordBatch, slots: Any) -> None:
        """Store the last value of every key of this batch."""
        backwards = first_rows(slots[::-1])
        last = len(slots) - 1 - backwards
        self._pool.put(slots[last], emitted.take(pa.array(last)))

    def counters(self) -> Mapping[str, int]:
        return self._failures.counters()

    def snapshot(self) -> OperatorSnapshot:
        return self.keyed_snapshot(self._pool.gather().columns, list(self._pool.schema))

    def restore(self, state: Mapping[str, StateTable]) -> None:
        restored = self.keyed_restore(state)
        if restored is None:
            return
        slots, values = restored
        rows = values.rename_columns(self._pool.schema.names).combine_chunks().to_batches()
        self._pool.put(slots, rows[0].cast(self._pool.schema))
