"""What a function emits: the main output and side outputs by tag.

Why it exists: each output has one schema, declared or that of its first rows, and holds to
it for the life of the state. Rows that are emitted are copied: a function may go on changing
its dict.

May import: elements, errors, operators, state, Arrow.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from helios_ray.elements import Batch, Origin
from helios_ray.errors import ConfigError, DataError
from helios_ray.operators.base import OperatorContext, StateTable
from helios_ray.operators.rows import SCHEMA_TABLE, OutputSchema, Row, as_row
from helios_ray.operators.user_functions import DEAD_LETTER, truncated

OUTPUT_ROWS = 65_536
"""Rows per batch of output."""


class Output:
    """One output: rows and tables since the last ``take``.

    Args:
        what: of the operator, and the tag of a side output, for messages.
        schema: declared, or None to take that of the first rows.
        tag: of a side output.
    """

    __slots__ = ("rows", "schema", "tables", "tag")

    def __init__(self, what: str, schema: pa.Schema | None, tag: str | None = None) -> None:
        self.schema = OutputSchema(what, schema)
        self.tag = tag
        self.rows: list[Row] = []
        self.tables: list[pa.Table] = []

    def take(self, origin: Origin | None) -> list[Batch]:
        """What was emitted, as batches."""
        taken = [
            Batch(self.schema.from_table(table), origin, self.tag)
            for table in self.tables
            if table.num_rows
        ]
        self.tables = []
        rows = self.rows
        for start in range(0, len(rows), OUTPUT_ROWS):
            part = rows[start : start + OUTPUT_ROWS]
            data = self.schema.from_rows(part, _describe(part))
            taken.append(Batch(data, origin, self.tag))
        rows.clear()
        return taken


class Outputs:
    """The main output and the side outputs of an operator.

    Args:
        what: the operator's kind, for messages.
        schema: of the main output, or None.
        side_outputs: schema (or None) by tag.

    Raises:
        ConfigError: a tag is no name, or is the one of dead letters.
    """

    def __init__(
        self,
        what: str,
        schema: pa.Schema | None,
        side_outputs: Mapping[str, pa.Schema | None] | None,
    ) -> None:
        self._what = what
        self._uid = "operator"
        self.main = Output(what, schema)
        self._sides: dict[str, Output] = {}
        for tag, declared in (side_outputs or {}).items():
            if not isinstance(tag, str) or not tag or tag == DEAD_LETTER:
                raise ConfigError(
                    f"{what}: a side output's tag must be a name other than {DEAD_LETTER!r}, got "
                    f"{tag!r}."
                )
            self._sides[tag] = Output(f"{what} side output {tag}", declared, tag)

    def open(self, context: OperatorContext) -> None:
        """Learn who speaks."""
        self._uid = context.uid
        for output in (self.main, *self._sides.values()):
            output.schema.open(context)

    def side(self, tag: str) -> Output:
        """A side output.

        Raises:
            DataError: it was not declared.
        """
        output = self._sides.get(tag)
        if output is None:
            near = difflib.get_close_matches(str(tag), self._sides, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{self._what} {self._uid!r}: side output {tag!r} was not declared, there are: "
                f"{sorted(self._sides) or 'none'}.{hint} Pass side_outputs={{{tag!r}: schema}}."
            )
        return output

    def add(self, result: Any) -> None:
        """What a row method returned, other than None."""
        rows = self.main.rows
        if type(result) is dict:
            rows.append(as_row(result).copy())
        elif isinstance(result, (Mapping, str, bytes)) or not isinstance(result, Iterable):
            rows.append(dict(as_row(result)))
        else:
            for row in result:
                rows.append(row.copy() if type(row) is dict else dict(as_row(row)))

    def add_tables(self, result: Any) -> None:
        """What a table method returned, other than None."""
        tables = self.main.tables
        if isinstance(result, (pa.Table, pa.RecordBatch, Mapping)):
            tables.append(as_table(result))
        elif isinstance(result, Iterable) and not isinstance(result, (str, bytes)):
            tables.extend(as_table(each) for each in result)
        else:
            as_table(result)

    def mark(self) -> Callable[[], None]:
        """What takes back all that is emitted from now on."""
        sizes = [(o, len(o.rows), len(o.tables)) for o in (self.main, *self._sides.values())]

        def take_back() -> None:
            for output, rows, tables in sizes:
                del output.rows[rows:]
                del output.tables[tables:]

        return take_back

    def take(self, origin: Origin | None = None) -> list[Batch]:
        """All that was emitted since the last call, main output first."""
        taken = self.main.take(origin)
        for output in self._sides.values():
            taken += output.take(origin)
        return taken

    def snapshot(self) -> dict[str, StateTable]:
        """The schemas that were inferred."""
        state = self.main.schema.snapshot()
        for tag, output in self._sides.items():
            for name, table in output.schema.snapshot().items():
                state[f"{name}.{tag}"] = table
        return state

    def restore(self, state: Mapping[str, StateTable]) -> None:
        """Hold to the schemas of before."""
        self.main.schema.restore(state)
        for tag, output in self._sides.items():
            name = f"{SCHEMA_TABLE}.{tag}"
            if name in state:
                output.schema.restore({SCHEMA_TABLE: state[name]})


def as_table(result: Any) -> pa.Table:
    """A table from what a table method may return.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(result, pa.Table):
        return result
    if isinstance(result, pa.RecordBatch):
        return pa.Table.from_batches([result])
    if isinstance(result, Mapping):
        return pa.table(dict(result))
    raise TypeError(
        f"expected a table, a record batch, a dict of arrays, or an iterable of these, got "
        f"{type(result).__name__} {truncated(result)}"
    )


def _describe(rows: list[Row]) -> Callable[[int], str]:
    return lambda i: f"emitted row {i} ({truncated(rows[i])})"
