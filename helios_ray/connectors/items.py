"""A source of what the program already has: a list of rows or plain values.

Why it exists: first steps and tests need input without files. What it promises: items keep
their order within a split; the list travels to the cluster as one Arrow batch.

May import: elements, errors, connectors.base.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from helios_ray.connectors.base import Exhausted, Json, Poll, Rows, Source, Split, SplitReader
from helios_ray.elements import Origin
from helios_ray.errors import ConfigError

ITEM = "item"
"""The column that plain values live in, as in Ray Data."""


class ItemsSource(Source):
    """Rows of dicts, of plain values in a column named ``item``, or of an Arrow table.

    Args:
        items: all dicts or none; a key that a dict lacks is null. Or a table or record batch.
        schema: columns and types; inferred from all items if None. A table is cast to it.

    Raises:
        ConfigError: dicts and plain values are mixed, or the values of a column have no
            common type. Names the first item that does not fit.

    Example:
        >>> ItemsSource([{"n": 1}, {"n": 2, "s": "x"}]).schema()
        n: int64
        s: string
        >>> ItemsSource([1, 2, 3]).schema()
        item: int64
        >>> ItemsSource(pa.table({"a": ["x"]}))
        ItemsSource(1 items)
    """

    def __init__(self, items: Iterable[Any], schema: pa.Schema | None = None) -> None:
        if isinstance(items, pa.Table | pa.RecordBatch):
            self._data = _one_batch(items, schema)
        else:
            self._data = _to_batch(list(items), schema)

    @property
    def bounded(self) -> bool:
        return True

    def schema(self) -> pa.Schema:
        return self._data.schema

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        rows = self._data.num_rows
        cuts = [rows * i // parallelism for i in range(parallelism + 1)]
        return [
            Split(split_id=f"items[{start}:{stop}]", spec={"start": start, "stop": stop})
            for start, stop in itertools.pairwise(cuts)
            if start < stop
        ]

    def open_split(self, split: Split) -> SplitReader:
        return _ItemsReader(self._data, split)

    def __repr__(self) -> str:
        return f"ItemsSource({self._data.num_rows} items)"


class _ItemsReader(SplitReader):
    def __init__(self, data: pa.RecordBatch, split: Split) -> None:
        self._data = data
        self._next = int(split.spec["start"])
        self._stop = int(split.spec["stop"])

    def poll(self, max_rows: int, now: float) -> Poll:
        if self._next >= self._stop:
            return Exhausted()
        origin = Origin("items", f"index {self._next}")
        batch = self._data.slice(self._next, min(max_rows, self._stop - self._next))
        self._next += batch.num_rows
        return Rows(batch, origin)

    def position(self) -> Json:
        return {"index": self._next}

    def seek(self, position: Json) -> None:
        self._next = int(position["index"])


def _one_batch(table: pa.Table | pa.RecordBatch, schema: pa.Schema | None) -> pa.RecordBatch:
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    if schema is not None:
        try:
            table = table.select(schema.names).cast(schema)
        except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ConfigError(
                f"a table of columns {table.schema.names} does not become schema= "
                f"{schema.names}: {error}. Leave schema= out, or cast the table first."
            ) from None
    if table.num_columns == 0:
        raise ConfigError("a table must have a column, got none. Give it one.")
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _to_batch(items: list[Any], schema: pa.Schema | None) -> pa.RecordBatch:
    rows = [isinstance(item, Mapping) for item in items]
    if any(rows) and not all(rows):
        odd = rows.index(not rows[0])
        raise ConfigError(
            f"items must be all dicts or all plain values: item 0 is a "
            f"{type(items[0]).__name__}, item {odd} is a {type(items[odd]).__name__}. Put plain "
            f"values into dicts, as {{'{ITEM}': value}}."
        )
    if rows:
        columns = _columns(items, schema) if rows[0] else {ITEM: items}
    else:
        columns = {name: [] for name in (schema.names if schema is not None else [ITEM])}
    names = list(columns) if schema is None else schema.names
    if list(columns) != names:
        raise ConfigError(
            f"plain values live in one column named {ITEM!r}, schema= has {names}. Pass "
            f"pa.schema([({ITEM!r}, type)]), or items that are dicts."
        )
    if schema is None:
        arrays = [_array(name, columns[name], None) for name in names]
        return pa.RecordBatch.from_arrays(arrays, names=names)
    arrays = [_array(field.name, columns[field.name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _columns(items: list[Any], schema: pa.Schema | None) -> dict[str, list[Any]]:
    """The values of each key, in the order in which keys appear first."""
    found = dict.fromkeys(key for item in items for key in item)
    for key in found:
        if not isinstance(key, str):
            raise ConfigError(f"the keys of rows must be strings, got {key!r}. Rename the column.")
    if schema is None:
        if not found:
            raise ConfigError("rows must have a column, got only empty dicts. Give them a key.")
        return {key: [item.get(key) for item in items] for key in found}
    for key in found:
        if schema.get_field_index(key) < 0:
            at = next(i for i, item in enumerate(items) if key in item)
            raise ConfigError(
                f"item {at} has column {key!r}, schema= has only {schema.names}. Add the column "
                f"to schema=, or take it out of the item."
            )
    return {name: [item.get(name) for item in items] for name in schema.names}


def _array(name: str, values: list[Any], kind: Any) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        pass  # found and named below
    try:
        kind = kind or pa.array([v for v in values if v is not None][:1]).type
        at = next(i for i in range(len(values)) if not _fits(values[i], kind))
    except (StopIteration, pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        at = next((i for i, value in enumerate(values) if value is not None), 0)
    raise ConfigError(
        f"column {name!r}: expected values of one Arrow type{f' ({kind})' if kind else ''}, item "
        f"{at} is {values[at]!r} ({type(values[at]).__name__}). Convert the values, or pass "
        f"schema=."
    )


def _fits(value: Any, kind: Any) -> bool:
    try:
        pa.array([value], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return False
    return True
