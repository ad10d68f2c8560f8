"""The named streams that ``branch`` returns.

Why it exists: a stream that is split by predicates has several outputs with names, and a
misspelt name should be heard about on the line that misspells it.

May import: plan, errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from helios_ray.errors import PlanError
from helios_ray.plan.schema import nearest

if TYPE_CHECKING:
    from helios_ray.stream.data_stream import DataStream

REST = "rest"
"""The branch of the rows that no predicate wanted."""


class Branches:
    """Streams by name: ``branches.late``, ``branches["late"]``, and ``branches.rest``.

    A row goes to the first branch whose predicate is true, in the order given, and to
    ``rest`` if there is none. The rows of a branch that nobody reads are dropped.

    Example:
        >>> import pyarrow.compute as pc
        >>> from helios_ray import StreamExecutionEnvironment
        >>> numbers = StreamExecutionEnvironment().from_range(10, uid="numbers")
        >>> parts = numbers.branch(small=pc.field("item") < 3, large=pc.field("item") > 7)
        >>> list(parts)
        ['small', 'large', 'rest']
        >>> parts.small.schema.names
        ['item']
    """

    def __init__(self, streams: Mapping[str, DataStream]) -> None:
        self._streams = dict(streams)

    def __getitem__(self, name: str) -> DataStream:
        try:
            return self._streams[name]
        except KeyError:
            raise PlanError(self._unknown(name)) from None

    def __getattr__(self, name: str) -> DataStream:
        if name.startswith("_"):  # copy and pickle look for hooks before there are streams
            raise AttributeError(name)
        try:
            return self._streams[name]
        except KeyError:
            raise AttributeError(self._unknown(name)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams)

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, name: object) -> bool:
        return name in self._streams

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._streams]

    def __repr__(self) -> str:
        return f"Branches({', '.join(self._streams)})"

    def _unknown(self, name: str) -> str:
        guess = nearest(name, self._streams)
        way_out = f"Did you mean {guess!r}?" if guess else "Use one of those."
        return f"there is no branch {name!r}; there are {list(self._streams)}. {way_out}"
