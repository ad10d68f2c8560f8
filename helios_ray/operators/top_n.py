"""The n best rows of each key so far.

Why it exists: leaderboards. Vectorized: the rows kept of the keys that a batch touches are
sorted together with the batch's own.

    updates   after each batch, for every key whose best rows changed, all of its best rows
    final     the best rows of every key, when the input has ended

May import: elements, errors, operators, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, PlanError, SchemaChangedError
from helios_ray.operators.base import (
    Operator,
    OperatorContext,
    OperatorSnapshot,
    StateKind,
    StateTable,
)
from helios_ray.operators.segments import first_rows
from helios_ray.operators.user_functions import around
from helios_ray.state.hashing import check_keys, decoded, logical_type, missing_column
from helios_ray.state.keyed.backend import STATE_PREFIX, KeyedBackend
from helios_ray.state.keyed.declarations import ValueState
from helios_ray.state.keyed.handle import VALUE

Emit: TypeAlias = Literal["updates", "final"]

_STATE = "top"
_FINAL_KEYS = 16_384


class TopNOperator(Operator):
    """Keeps the ``n`` best rows of each key; of equal ones, those that came first.

    Args:
        keys: key columns.
        n: how many rows to keep per key.
        by: the column that decides; nulls and NaN come last.
        ascending: whether small is good.
        emit: ``"updates"`` or ``"final"``.
        rank_column: name of the added int64 column, 1 for the best row.
        input_schema: where it is known, the columns are checked at once.

    Raises:
        ConfigError: no keys, ``n`` below 1, an unknown mode.
        MissingColumnError: a column is not in ``input_schema``.
        PlanError: a type that cannot be a key or cannot be ordered, or ``rank_column`` is a
            column already.

    Example:
        >>> operator = TopNOperator(["k"], 2, "x")
        >>> operator.open(OperatorContext(uid="best"))
        >>> batch = Batch(pa.record_batch({"k": ["a", "a", "b", "a"], "x": [1, 5, 2, 3]}))
        >>> operator.process_batch(batch)[0].data.to_pydict()
        {'k': ['a', 'a', 'b'], 'x': [5, 3, 2], 'rank': [1, 2, 1]}
    """

    what = "top_n"

    def __init__(
        self,
        keys: Sequence[str],
        n: int,
        by: str,
        *,
        ascending: bool = False,
        emit: Emit = "updates",
        rank_column: str = "rank",
        input_schema: pa.Schema | None = None,
    ) -> None:
        if isinstance(keys, str):
            keys = [keys]
        if not keys:
            raise ConfigError("top_n needs at least one key column, got none.")
        if type(n) is not int or n < 1:
            raise ConfigError(f"top_n: n must be a positive number of rows, got {n!r}.")
        if emit not in get_args(Emit):
            raise ConfigError(f"top_n: emit must be 'updates' or 'final', got {emit!r}.")
        self.keys = tuple(keys)
        self._n = n
        self._by = by
        self._order = "ascending" if ascending else "descending"
        self._emit = emit
        self._rank = rank_column
        self._schema: pa.Schema | None = None
        self._top: Any = None
        if input_schema is not None:
            self.output_schema(input_schema)

    def output_schema(self, schema: pa.Schema, uid: str = "operator") -> pa.Schema:
        """The input's columns (encodings undone), then the rank; raises as the constructor."""
        where = f"{self.what} {uid!r}"
        check_keys(schema, self.keys, where)
        if self._by not in schema.names:
            raise missing_column(self._by, schema, where)
        if self._rank in schema.names:
            raise PlanError(
                f"{where} adds column {self._rank!r}, and the stream has one. Pass rank_column=."
            )
        kind = logical_type(schema.field(self._by).type)
        if pt.is_nested(kind) or pt.is_interval(kind):
            raise PlanError(f"{where}: column {self._by!r} of type {kind} has no order.")
        return _plain(schema).append(pa.field(self._rank, pa.int64()))

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._where = f"{self.what} {context.uid!r}"
        self.backend = KeyedBackend(
            self._where, self.keys, context.max_parallelism, context.key_groups
        )

    def _begin(self, schema: pa.Schema) -> None:
        self._schema = schema
        row = pa.struct(list(schema))
        self._top = self.backend.declare(ValueState(pa.list_(row), name=_STATE))

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        if batch.data.num_rows == 0:
            return []
        rows = self._rows(batch)
        slots = self.backend.begin(batch.data, self.keys, batch.origin)
        touched = slots[first_rows(slots)]
        local = np.empty(int(slots.max()) + 1, np.int64)
        local[touched] = np.arange(len(touched))
        self.backend.scope.enter_distinct(touched)
        stored = self._top.get_column()
        kept = stored.flatten()
        codes = np.concatenate((pc.list_parent_indices(stored).to_numpy(), local[slots]))
        every = pa.concat_arrays([kept, rows])
        chosen, ranks = self._best(codes, every)
        changed = np.zeros(len(touched), np.bool_)
        changed[codes[chosen[chosen >= len(kept)]]] = True
        mine = changed[codes[chosen]]
        chosen, ranks = chosen[mine], ranks[mine]
        if len(chosen) == 0:
            self.backend.end()
            return []
        best = every.take(pa.array(chosen))
        counts = np.bincount(codes[chosen], minlength=len(touched))[changed]
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(offsets), best)
        self.backend.scope.enter_distinct(touched[changed])
        self._top.put_column(lists)
        self.backend.end()
        if self._emit == "final":
            return []
        return [Batch(self._output(best, ranks), around(batch.origin), batch.tag)]

    def _rows(self, batch: Batch) -> Any:
        """The rows as structs of the columns that the first rows had."""
        data = batch.data
        plain = _plain(data.schema)
        if self._schema is None:
            self.output_schema(data.schema, self.context.uid)
            self._begin(plain)
        elif not self._schema.equals(plain):
            place = f" (read from {batch.origin})" if batch.origin is not None else ""
            raise SchemaChangedError(
                f"{self._where}: its rows had columns {_described(self._schema)} and now have "
                f"{_described(plain)}{place}. Make the sources agree, or cast before."
            )
        arrays = [decoded(column) for column in data.columns]
        return pa.StructArray.from_arrays(arrays, fields=list(plain))

    def _best(self, codes: Any, rows: Any) -> tuple[Any, Any]:
        """The best rows of every code, best first, and their ranks from 0."""
        table = pa.table({"code": codes, "by": pc.struct_field(rows, self._by)})
        keys = [("code", "ascending"), ("by", self._order)]
        order = pc.sort_indices(table, sort_keys=keys).to_numpy()
        ordered = codes[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        lengths = np.diff(np.append(starts, len(ordered)))
        ranks = np.arange(len(ordered)) - np.repeat(starts, lengths)
        inside = ranks < self._n
        return order[inside], ranks[inside]

    def _output(self, rows: Any, ranks: Any) -> pa.RecordBatch:
        assert self._schema is not None
        columns = [*rows.flatten(), pa.array(ranks + 1, pa.int64())]
        schema = self._schema.append(pa.field(self._rank, pa.int64()))
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def end_input(self) -> list[Batch]:
        if self._emit != "final" or self._top is None:
            return []
        out = []
        lists = self._top.contents()[1][VALUE]
        for start in range(0, len(lists), _FINAL_KEYS):
            part = lists.slice(start, _FINAL_KEYS)
            part = part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part
            counts = pc.list_value_length(part).to_numpy()
            starts = np.cumsum(counts) - counts
            ranks = np.arange(int(counts.sum())) - np.repeat(starts, counts)
            out.append(Batch(self._output(part.flatten(), ranks)))
        return out

    def signature(self) -> str:
        return f"top {self._n} by {self._by} {self._order}"

    def snapshot(self) -> OperatorSnapshot:
        tables = self.backend.snapshot()
        return {name: StateTable(StateKind.KEYED, table) for name, table in tables.items()}

    def restore(self, state: Mapping[str, StateTable]) -> None:
        stored = state.get(f"{STATE_PREFIX}{_STATE}")
        if stored is not None:
            self._begin(pa.schema(list(stored.table.schema.field(VALUE).type.value_type)))
            self.backend.restore({name: each.table for name, each in state.items()})


def _plain(schema: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field(f.name, logical_type(f.type)) for f in schema])


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
