"""Values folded per key: a reduced value, or an accumulator.

May import: state.
"""

from __future__ import annotations

from typing import Any

from helios_ray.state.keyed.declarations import AggregatingState, ReducingState, ValueState
from helios_ray.state.keyed.scope import Scope
from helios_ray.state.keyed.value import ValueHandle


class ReducingHandle(ValueHandle, ReducingState):
    """A :class:`ReducingState` at work."""

    def __init__(self, declaration: ReducingState, scope: Scope) -> None:
        super().__init__(_as_value(declaration), scope)
        self.fn = declaration.fn

    def add(self, value: Any) -> None:
        before = self.value()
        self.update(value if before is None else self.fn(before, value))

    def get(self) -> Any:
        return self.value()


class AggregatingHandle(ValueHandle, AggregatingState):
    """An :class:`AggregatingState` at work."""

    def __init__(self, declaration: AggregatingState, scope: Scope) -> None:
        super().__init__(_as_value(declaration), scope)
        self.aggregator = declaration.aggregator

    def add(self, value: Any) -> None:
        accumulator = self.value()
        if accumulator is None:
            accumulator = self.aggregator.create()
        self.update(self.aggregator.add(accumulator, value))

    def get(self) -> Any:
        accumulator = self.value()
        return None if accumulator is None else self.aggregator.result(accumulator)


def _as_value(declaration: ReducingState | AggregatingState) -> ValueState:
    return ValueState(declaration.kind, name=declaration.name, ttl=declaration.ttl)
