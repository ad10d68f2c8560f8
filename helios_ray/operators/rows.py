"""Rows in and out of Arrow, under a schema that is fixed for the life of a stream.

Why it exists: row functions see dicts while data is columnar. This module turns one into
the other, column by column, and holds the promise that a stream does not change its columns
or types midway: the schema of the first rows (or the one that was declared) is the schema of
all later ones, in this run and in every run restored from it.

What casts to a fixed column: null to anything; numbers to numbers, strings to strings,
instants to instants, where no value changes. A column seen only as null so far takes the
first real type that comes. All else is :class:`SchemaChangedError`.

May import: elements, errors, operators.base, state, Arrow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.types as pt

from helios_ray.errors import SchemaChangedError
from helios_ray.operators.base import OperatorContext, StateKind, StateTable
from helios_ray.operators.conversion import convert, fit
from helios_ray.state.hashing import logical_type

Row: TypeAlias = dict[str, Any]

ITEM = "item"
"""The column of items that are not dicts, as in Ray Data."""

SCHEMA_TABLE = "output_schema"
_SCHEMA_STATE = pa.schema([("subtask", pa.int32()), ("schema", pa.binary())])
_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)


def to_rows(batch: pa.RecordBatch) -> list[Row]:
    """The rows as dicts.

    Example:
        >>> to_rows(pa.record_batch({"a": [1, 2], "b": ["x", None]}))
        [{'a': 1, 'b': 'x'}, {'a': 2, 'b': None}]
    """
    names = batch.schema.names
    if not names:
        return [{} for _ in range(batch.num_rows)]
    columns = [column.to_pylist() for column in batch.columns]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def as_row(value: Any) -> Row:
    """A row function's result as a row: a mapping is one, anything else becomes ``item``.

    Raises:
        TypeError: a mapping has a key that is not a string.
    """
    if not isinstance(value, Mapping):
        return {ITEM: value}
    row = value if type(value) is dict else dict(value)
    for name in row:
        if not isinstance(name, str):
            raise TypeError(f"a row's column names are strings, got {name!r} in {row!r}")
    return row


class InputSchema:
    """Notices that the rows coming in change their columns or types.

    Args:
        what: the operator's kind, for messages.
    """

    __slots__ = ("_what", "schema")

    def __init__(self, what: str) -> None:
        self._what = what
        self.schema: pa.Schema | None = None

    def check(self, schema: pa.Schema, uid: str, origin: object = None) -> bool:
        """Compare with what came before; returns whether this schema is new.

        Raises:
            SchemaChangedError: columns or types differ, other than null becoming a type.
        """
        known = self.schema
        if known is schema or (known is not None and known.equals(schema)):
            return False
        if known is not None:
            _require_compatible(known, schema, f"{self._what} {uid!r}", origin)
        self.schema = schema
        return True


def _require_compatible(known: pa.Schema, came: pa.Schema, who: str, origin: object) -> None:
    place = f" (read from {origin})" if origin is not None else ""
    way_out = "Make the sources agree, or cast the column before this operator."
    if known.names != came.names:
        raise SchemaChangedError(
            f"{who}: its input had columns {known.names} and now has {came.names}{place}. {way_out}"
        )
    for before, after in zip(known, came, strict=True):
        if before.type != after.type and not pt.is_null(before.type):
            raise SchemaChangedError(
                f"{who}: input column {before.name!r} was {before.type} and is now "
                f"{after.type}{place}. {way_out}"
            )


class OutputSchema:
    """Turns results into batches of one schema: the declared one, or that of the first rows.

    A column that has been all null so far has the type null, unless ``model`` (the rows that
    came in) has a column of its name: then that type, until a value says otherwise. So the
    subtasks of ``map(lambda row: {**row, ...})`` agree, whichever of them sees only nulls.

    Args:
        what: the operator's kind, for messages.
        declared: the schema to hold to, or None to take that of the first rows.

    Example:
        >>> out = OutputSchema("map")
        >>> out.from_rows([{"a": 1}, {"a": 2.5}]).schema.field("a").type
        DataType(double)
        >>> out.from_rows([{"a": 3}])["a"].to_pylist()
        [3.0]
    """

    def __init__(self, what: str, declared: pa.Schema | None = None) -> None:
        self._what = what
        self._declared = declared is not None
        self.schema = declared
        self.model: pa.Schema | None = None
        self._guessed: set[str] = set()
        self._context = OperatorContext()

    def open(self, context: OperatorContext) -> None:
        """Learn who speaks, for messages and for the snapshot."""
        self._context = context

    # ------------------------------------------------------------------------ rows, tables

    def from_rows(
        self, rows: Sequence[Row], describe: Callable[[int], str] | None = None
    ) -> pa.RecordBatch:
        """One batch of the fixed schema. A key that a row lacks is null.

        Args:
            rows: results, at least one.
            describe: names the i-th row for messages.

        Raises:
            SchemaChangedError: a row has a new column, or a value of another type.
        """
        names = self._names(rows, describe)
        arrays = []
        for name in names:
            values = [row.get(name) for row in rows]
            arrays.append(self._column(name, values, describe))
        return self._finish(names, arrays, len(rows))

    def from_table(self, table: pa.Table, place: str = "") -> pa.RecordBatch:
        """One batch of the fixed schema from a table that has the same columns.

        Raises:
            SchemaChangedError: columns are missing, new or named twice, or a type does not cast.
        """
        table = table.combine_chunks()
        names = table.column_names
        known = self.schema.names if self.schema is not None else names
        if len(set(names)) != len(names) or set(names) != set(known):
            raise SchemaChangedError(
                f"{self._who()}: expected columns {known}, got {names}{place}. Return the same "
                f"columns from every call{self._way_out()}"
            )
        arrays = []
        for name in known:
            column = table.column(name)
            array = column.chunk(0) if column.num_chunks == 1 else pa.nulls(0, column.type)
            arrays.append(self._fit(name, array, place))
        return self._finish(known, arrays, table.num_rows)

    def _names(self, rows: Sequence[Row], describe: Callable[[int], str] | None) -> list[str]:
        if self.schema is None:
            return list(dict.fromkeys(name for row in rows for name in row))
        names: list[str] = self.schema.names
        known = set(names)
        for i, row in enumerate(rows):
            if not row.keys() <= known:
                extra = next(name for name in row if name not in known)
                raise SchemaChangedError(
                    f"{self._who()}: expected columns {names}, and "
                    f"{_describe(describe, i, row)} also has {extra!r}: {row[extra]!r:.200}. "
                    f"Return the same columns for every row{self._way_out()}"
                )
        return names

    def _column(
        self, name: str, values: list[Any], describe: Callable[[int], str] | None
    ) -> pa.Array:
        target = self.schema.field(name).type if self.schema is not None else None
        if name in self._guessed and any(value is not None for value in values):
            self._guessed.discard(name)
            with contextlib.suppress(*_ARROW_ERRORS):
                return convert(values, target)
            target = None
        try:
            return convert(values, target)
        except _ARROW_ERRORS as error:
            i, expected = self._culprit(values, target)
            raise SchemaChangedError(
                f"{self._who()}: column {name!r} expected {expected}, and "
                f"{_describe(describe, i, None)} gives {values[i]!r:.200} "
                f"({type(values[i]).__name__}): {error}. Return one type per column"
                f"{self._way_out()}"
            ) from error

    @staticmethod
    def _culprit(values: list[Any], target: pa.DataType | None) -> tuple[int, str]:
        """The first value that does not fit, and what it had to fit."""
        if target is not None and not pt.is_null(target):
            for i, value in enumerate(values):
                try:
                    convert([value], target)
                except _ARROW_ERRORS:
                    return i, str(target)
        low, high = 0, len(values)  # the longest prefix that has a type
        while high - low > 1:
            middle = (low + high) // 2
            try:
                convert(values[:middle], None)
                low = middle
            except _ARROW_ERRORS:
                high = middle
        expected = str(convert(values[:low], None).type) if low else "a type known to Arrow"
        return high - 1, expected

    def _fit(self, name: str, array: pa.Array, place: str) -> pa.Array:
        if self.schema is None:
            return array
        target = self.schema.field(name).type
        if name in self._guessed and array.null_count < len(array):
            self._guessed.discard(name)
            with contextlib.suppress(*_ARROW_ERRORS):
                return fit(array, target)
            return array
        try:
            return fit(array, target)
        except _ARROW_ERRORS as error:
            raise SchemaChangedError(
                f"{self._who()}: column {name!r} expected {target}, got {array.type}{place}: "
                f"{error}. Return one type per column{self._way_out()}"
            ) from error

    def _finish(self, names: Sequence[str], arrays: list[pa.Array], rows: int) -> pa.RecordBatch:
        fixed = self.schema
        arrays = [self._guess(name, array) for name, array in zip(names, arrays, strict=True)]
        if fixed is None:
            fixed = pa.schema([pa.field(n, a.type) for n, a in zip(names, arrays, strict=True)])
            self.schema = fixed
        elif any(f.type != a.type for f, a in zip(fixed, arrays, strict=True)):
            fixed = pa.schema([f.with_type(a.type) for f, a in zip(fixed, arrays, strict=True)])
            self.schema = fixed
        for field, array in zip(fixed, arrays, strict=True):
            if not field.nullable and array.null_count:
                raise SchemaChangedError(
                    f"{self._who()}: column {field.name!r} is declared not null and a row has no "
                    f"value for it. Return one, or declare the column nullable."
                )
        if not arrays:
            # Arrow counts rows by their columns: rows without any would vanish unseen.
            if rows:
                raise SchemaChangedError(
                    f"{self._who()}: a row must have at least one column, got {{}}. Return "
                    f"something, or drop the row with filter or flat_map."
                )
            return pa.RecordBatch.from_arrays([], schema=fixed)
        return pa.RecordBatch.from_arrays(arrays, schema=fixed)

    def _guess(self, name: str, array: pa.Array) -> pa.Array:
        model = self.model
        if not pt.is_null(array.type) or model is None or name not in model.names:
            return array
        self._guessed.add(name)
        return pa.nulls(len(array), logical_type(model.field(name).type))

    def _who(self) -> str:
        return f"{self._what} {self._context.uid!r}"

    def _way_out(self) -> str:
        if self._declared:
            return ", or change the schema= that was declared for this operator."
        return f", or declare it: {self._what}(..., schema=pa.schema([...]))."

    # ------------------------------------------------------------------------------- state

    def snapshot(self) -> dict[str, StateTable]:
        """The schema, so that a restored job holds to the same one."""
        if self._declared or self.schema is None:
            return {}
        return {SCHEMA_TABLE: schema_state(self.schema, self._context)}

    def restore(self, state: Mapping[str, StateTable]) -> None:
        """Take up this subtask's schema, or the lowest subtask's where it had none."""
        stored = state.get(SCHEMA_TABLE)
        if stored is None or self._declared:
            return
        schemas = stored_schemas(stored, self._context)
        if not schemas:
            return
        merged = schemas[0]
        for other in schemas[1:]:
            for i, field in enumerate(merged):
                if pt.is_null(field.type) and field.name in other.names:
                    merged = merged.set(i, field.with_type(other.field(field.name).type))
        self.schema = merged


def schema_state(schema: pa.Schema, context: OperatorContext) -> StateTable:
    """A schema as state that every subtask gets."""
    content = {"subtask": [context.subtask], "schema": [schema.serialize().to_pybytes()]}
    return StateTable(StateKind.UNION, pa.table(content, schema=_SCHEMA_STATE))


def stored_schemas(state: StateTable, context: OperatorContext) -> list[pa.Schema]:
    """What ``schema_state`` stored, this subtask's own first, then by subtask."""
    rows = state.table.to_pylist()
    rows.sort(key=lambda row: (row["subtask"] != context.subtask, row["subtask"]))
    return [pa.ipc.read_schema(pa.py_buffer(row["schema"])) for row in rows]


def _describe(describe: Callable[[int], str] | None, i: int, row: object) -> str:
    if describe is not None:
        return describe(i)
    return f"row {i}" if row is None else f"row {i} {row!r:.200}"
