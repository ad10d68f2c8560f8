"""Process functions and their state, by the names people write.

Why it exists: ``from helios_ray.functions import KeyedProcessFunction, ValueState`` is part of
the public face.

    class Fraud(KeyedProcessFunction):
        flagged = ValueState(pa.bool_(), ttl=timedelta(hours=1))

        def process_element(self, row, ctx):
            if self.flagged.value() and row["amount"] > 500:
                yield {"card": row["card"], "amount": row["amount"]}
            if row["amount"] < 1:
                self.flagged.update(True)

May import: operators, state.
"""

from __future__ import annotations

from helios_ray.operators.process.context import BatchContext, ProcessContext, TimerService
from helios_ray.operators.process.function import (
    BroadcastProcessFunction,
    CoProcessFunction,
    KeyedProcessFunction,
)
from helios_ray.state.keyed.declarations import (
    AggregatingState,
    BroadcastState,
    ListState,
    MapState,
    ReducingState,
    ValueState,
)
from helios_ray.state.keyed.ttl import StateTtl

__all__ = [
    "AggregatingState",
    "BatchContext",
    "BroadcastProcessFunction",
    "BroadcastState",
    "CoProcessFunction",
    "KeyedProcessFunction",
    "ListState",
    "MapState",
    "ProcessContext",
    "ReducingState",
    "StateTtl",
    "TimerService",
    "ValueState",
]
