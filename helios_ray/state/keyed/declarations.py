"""What a user writes to declare state, and what the methods of each kind promise.

Why it exists: state has a declared Arrow type, so that it can be kept, checkpointed and
opened offline as Arrow tables. A declaration is plain data; as an attribute of a function's
class it is replaced, on the instance that runs, by the state itself::

    class Count(KeyedProcessFunction):
        seen = ValueState(pa.int64(), default=0)

        def process_element(self, row, ctx):
            self.seen.update(self.seen.value() + 1)

None is the absence of a value everywhere: writing it clears.

May import: errors, state, Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, NoReturn, Protocol, TypeAlias

import pyarrow as pa

from helios_ray.errors import ConfigError, PlanError
from helios_ray.state.hashing import check_keys, logical_type
from helios_ray.state.keyed.ttl import StateTtl, as_ttl

_Ttl: TypeAlias = StateTtl | timedelta | None


class Aggregator(Protocol):
    """Folds values into an accumulator, for :class:`AggregatingState`."""

    def create(self) -> Any:
        """A fresh accumulator, of the declared Arrow type."""

    def add(self, accumulator: Any, value: Any) -> Any:
        """The accumulator with one more value."""

    def result(self, accumulator: Any) -> Any:
        """What the accumulator stands for."""


class State:
    """Base of the declarations.

    Args:
        kind: Arrow type of a value.
        name: the state's name in checkpoints; the attribute's name where it is None.
        ttl: when a value expires; a timedelta counts processing time from the last write.

    Raises:
        ConfigError: ``kind`` is no Arrow type, or ``ttl`` is neither of these.
    """

    def __init__(self, kind: pa.DataType, *, name: str | None = None, ttl: _Ttl = None) -> None:
        if not isinstance(kind, pa.DataType):
            raise ConfigError(
                f"{type(self).__name__} needs an Arrow type such as pa.int64(), got {kind!r}."
            )
        if ttl is not None and not isinstance(ttl, (StateTtl, timedelta)):
            raise ConfigError(
                f"{type(self).__name__}: ttl must be a timedelta or a StateTtl, got {ttl!r}."
            )
        self.kind: pa.DataType = logical_type(kind)
        self.name = name
        self.ttl = as_ttl(ttl)

    def __set_name__(self, owner: type, name: str) -> None:
        if self.name is None:
            self.name = name

    def _unbound(self) -> NoReturn:
        raise ConfigError(
            f"{type(self).__name__} {self.name!r} is only a declaration here. Use self.{self.name} "
            f"on the function that the stream was given, from process_element, on_timer or "
            f"process_batches; or declare it in open() with ctx.state(...)."
        )


class ValueState(State):
    """One value per key.

    Args:
        kind: Arrow type of the value.
        default: what ``value()`` gives for a key that has none.
        name, ttl: see :class:`State`.
    """

    def __init__(
        self,
        kind: pa.DataType,
        *,
        default: Any = None,
        name: str | None = None,
        ttl: _Ttl = None,
    ) -> None:
        super().__init__(kind, name=name, ttl=ttl)
        self.default = default

    def value(self) -> Any:
        """The current key's value, or the default."""
        self._unbound()

    def update(self, value: Any) -> None:
        """Set the current key's value; None clears it.

        Raises:
            DataError: the value does not fit the declared type.
        """
        self._unbound()

    def clear(self) -> None:
        """The current key has no value any more."""
        self._unbound()

    def get_column(self) -> pa.Array:
        """In ``process_batches``: the values of all keys of the batch, in the order of
        ``ctx.keys``; the default, or null, where a key has none."""
        self._unbound()

    def put_column(self, values: Any) -> None:
        """In ``process_batches``: set the values of all keys of the batch, in the order of
        ``ctx.keys``; null clears.

        Args:
            values: an Arrow or numpy array, one value per key of the batch.

        Raises:
            DataError: another length or another type.
        """
        self._unbound()


class ListState(State):
    """A list per key, in the order in which elements were added. A TTL is per element."""

    def add(self, value: Any) -> None:
        """Append an element; raises DataError where it does not fit."""
        self._unbound()

    def add_all(self, values: Iterable[Any]) -> None:
        """Append several elements."""
        self._unbound()

    def get(self) -> list[Any]:
        """The current key's elements, as a list of its own."""
        self._unbound()

    def update(self, values: Iterable[Any]) -> None:
        """Replace all elements."""
        self._unbound()

    def clear(self) -> None:
        """Remove all elements."""
        self._unbound()


class MapState(State):
    """A map per key, in the order in which its entries were first put. A TTL is per entry.

    Args:
        key_kind: Arrow type of the map's keys: one that can be a key of a stream.
        kind: Arrow type of its values.
        name, ttl: see :class:`State`.

    Raises:
        ConfigError: a type that cannot be a key.
    """

    def __init__(
        self,
        key_kind: pa.DataType,
        kind: pa.DataType,
        *,
        name: str | None = None,
        ttl: _Ttl = None,
    ) -> None:
        super().__init__(kind, name=name, ttl=ttl)
        if not isinstance(key_kind, pa.DataType):
            raise ConfigError(f"{type(self).__name__} needs an Arrow type, got {key_kind!r}.")
        self.key_kind: pa.DataType = logical_type(key_kind)
        try:
            check_keys(pa.schema([("map key", self.key_kind)]), ["map key"])
        except PlanError as error:
            raise ConfigError(f"{type(self).__name__}: {error}") from error

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of an entry."""
        self._unbound()

    def put(self, key: Any, value: Any) -> None:
        """Set an entry; None removes it. Raises DataError where key or value do not fit."""
        self._unbound()

    def remove(self, key: Any) -> None:
        """Remove an entry, if there is one."""
        self._unbound()

    def __contains__(self, key: Any) -> bool:
        self._unbound()

    def __len__(self) -> int:
        self._unbound()

    def __iter__(self) -> Iterator[Any]:
        self._unbound()

    def __bool__(self) -> bool:
        # Without this, a state that is an attribute would be false while it is empty.
        return True

    def keys(self) -> list[Any]:
        """The keys of the entries."""
        self._unbound()

    def values(self) -> list[Any]:
        """The values of the entries."""
        self._unbound()

    def items(self) -> list[tuple[Any, Any]]:
        """The entries."""
        self._unbound()

    def clear(self) -> None:
        """Remove all entries."""
        self._unbound()


class BroadcastState(MapState):
    """A map that every subtask holds alike; written by broadcast elements only."""

    def __init__(
        self, key_kind: pa.DataType, kind: pa.DataType, *, name: str | None = None
    ) -> None:
        super().__init__(key_kind, kind, name=name)


class ReducingState(State):
    """One value per key, folded with a function of two values.

    Args:
        kind: Arrow type of the value.
        fn: given the value so far and one more, returns the new value.
        name, ttl: see :class:`State`.
    """

    def __init__(
        self,
        kind: pa.DataType,
        fn: Callable[[Any, Any], Any],
        *,
        name: str | None = None,
        ttl: _Ttl = None,
    ) -> None:
        super().__init__(kind, name=name, ttl=ttl)
        if not callable(fn):
            raise ConfigError(f"ReducingState needs a function of two values, got {fn!r}.")
        self.fn = fn

    def add(self, value: Any) -> None:
        """Fold in a value; the first is taken as it is."""
        self._unbound()

    def get(self) -> Any:
        """The folded value, or None."""
        self._unbound()

    def clear(self) -> None:
        """Start afresh."""
        self._unbound()


class AggregatingState(State):
    """One accumulator per key.

    Args:
        kind: Arrow type of the accumulator.
        aggregator: an object with ``create()``, ``add(accumulator, value)`` and
            ``result(accumulator)``.
        name, ttl: see :class:`State`.
    """

    def __init__(
        self,
        kind: pa.DataType,
        aggregator: Aggregator,
        *,
        name: str | None = None,
        ttl: _Ttl = None,
    ) -> None:
        super().__init__(kind, name=name, ttl=ttl)
        for method in ("create", "add", "result"):
            if not callable(getattr(aggregator, method, None)):
                raise ConfigError(
                    f"AggregatingState needs an object with create, add and result; "
                    f"{aggregator!r} has no {method}."
                )
        self.aggregator = aggregator

    def add(self, value: Any) -> None:
        """Fold in a value."""
        self._unbound()

    def get(self) -> Any:
        """The result of the accumulator, or None where nothing was added."""
        self._unbound()

    def clear(self) -> None:
        """Start afresh."""
        self._unbound()
