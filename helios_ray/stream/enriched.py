"""A stream beside a table: every row gets the columns of its row in the table.

Why it exists: reference data is small, so every subtask holds all of it and the stream stays
where it is; a join of two keyed streams would move both.

May import: plan, operators, base of this room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from helios_ray.errors import PlanError
from helios_ray.operators.joins.columns import SUFFIX
from helios_ray.operators.joins.enrich import EnrichOperator
from helios_ray.plan.graph import Reads
from helios_ray.plan.options import OperatorOptions
from helios_ray.stream.base import BaseStream, made, where

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from helios_ray.stream.data_stream import DataStream

On: TypeAlias = str | Sequence[str] | Mapping[str, str]
"""Columns that both sides have, or the stream's columns with what the table calls them."""


class Enriched(BaseStream):
    """The methods of a stream that look rows up in a table."""

    def enrich(
        self,
        table: DataStream,
        on: On,
        *,
        how: Literal["inner", "left"] = "left",
        suffix: str = SUFFIX,
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Add the columns of a table's row to each row.

        A table that ends is read whole before the first row is looked up. One that goes on
        (slowly changing) is as of now: each row sees the changes that have come in before it.
        Of several rows of a key the last one counts.

        Args:
            table: any stream; every subtask holds all of its rows.
            on: the columns to look up: a name, several, or a mapping of this stream's names
                to the table's.
            how: ``"left"`` keeps rows that are not in the table, ``"inner"`` drops them.
            suffix: for columns of the table whose names this stream has.

        Raises:
            MissingColumnError: a column is not there; offers the nearest.
            PlanError: types or names that do not fit each other.

        Example:
            >>> from helios_ray import StreamExecutionEnvironment
            >>> env = StreamExecutionEnvironment()
            >>> flights = env.from_items([{"tail": "N1", "delay": 3}], uid="flights")
            >>> planes = env.from_items([{"tailnum": "N1", "seats": 55}], uid="planes")
            >>> flights.enrich(planes, {"tail": "tailnum"}, uid="enriched")
            DataStream[tail: string, delay: int64, seats: int64]
        """
        keys, table_keys = _columns(on)
        self._check_same_graph(table, "enrich")
        inputs = self._with(table.broadcast(), "enrich")
        factory = partial(
            EnrichOperator, keys, table_keys, how=how, suffix=suffix,
            table_is_bounded=self._ends(table), input_schemas=(self._schema, table._schema),
        )  # fmt: skip
        left, right = self._schema, table._schema
        operator = made("enrich", factory)
        schema = None
        if left is not None and right is not None:
            schema = made("enrich", lambda: operator.output_schema(left, right))
        return self._operator(
            "enrich",
            factory,
            options,
            inputs=inputs,
            schema=schema,
            detail=f"{how} on {', '.join(keys)}",
            stateful=True,
        )

    def _ends(self, table: BaseStream) -> bool:
        """Whether every source behind ``table`` is bounded."""
        found, seen = [link.upstream for link in table._links], set[int]()
        while found:
            node = self._graph[found.pop()]
            if node.id in seen:
                continue
            seen.add(node.id)
            if isinstance(node.role, Reads) and not node.role.source.bounded:
                return False
            found += [link.upstream for link in node.inputs]
        return True


def _columns(on: On) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(on, str):
        return (on,), (on,)
    if isinstance(on, Mapping):
        keys, table_keys = tuple(on), tuple(on.values())
    else:
        keys = table_keys = tuple(on)
    if not keys or not all(isinstance(name, str) for name in (*keys, *table_keys)):
        raise PlanError(
            f"{where('enrich')}: on must name columns, as in 'id', ['a', 'b'] or "
            f"{{'tail': 'tailnum'}}, got {on!r}."
        )
    return keys, table_keys
