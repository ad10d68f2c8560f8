"""Builds the plan of a simulated job.

Why it exists: shapes should read as what they are, not as dataclasses.

May import: plan, operators, watermarks, and sources, sinks and operators of the simulation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias

from helios_ray.operators.base import Operator
from helios_ray.plan.physical import (
    Chain,
    Edge,
    OperatorSpec,
    Partitioning,
    PhysicalPlan,
    SinkSpec,
    SourceSpec,
)
from helios_ray.simulation.expectations import Expected
from helios_ray.simulation.faults import Dice
from helios_ray.simulation.ledger import Ledger, LedgerSink, LogSink
from helios_ray.simulation.operators import Unlucky
from helios_ray.simulation.source import NumberedSource, TimedSource
from helios_ray.watermarks import WatermarkStrategy


@dataclass(slots=True)
class Builder:
    """A plan in the making, with what the seed decided about it.

    Args:
        shape: its name.
        width: subtasks of sources.
        out_width: subtasks of everything else.
        can_list: whether the external system can list what is prepared.
        timed: whether sources tell event time; some shapes always do.
        chained: whether the sink shares a task with what feeds it.
        keys: how many different keys rows have.
        pace: seconds from one read of a source to the next, at most.
        aligned: whether sources with event time wait for each other.
        patient: barriers may have to wait behind rows that are let in slowly.
    """

    dice: Dice
    ledger: Ledger
    shape: str
    width: int
    out_width: int
    can_list: bool
    timed: bool
    chained: bool
    keys: int
    pace: float
    aligned: bool
    patient: bool = False
    chains: list[Chain] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    def connect(
        self,
        up: Chain,
        down: Chain,
        how: Partitioning,
        key: str = "key",
        *,
        operator: str | None = None,
        tag: str | None = None,
        input_index: int = 0,
    ) -> None:
        """Rows go from ``up`` to ``down``; from its last operator, if no other is named."""
        self.edges.append(
            Edge(
                index=len(self.edges),
                upstream=up.uid,
                operator=operator or up.uids[-1],
                downstream=down.uid,
                partitioning=how,
                tag=tag,
                input_index=input_index,
                keys=(key,) if how is Partitioning.HASH else (),
            )
        )

    def add(self, chain: Chain) -> Chain:
        """One more chain; upstream ones come first."""
        self.chains.append(chain)
        return chain

    def sink(self, uid: str) -> SinkSpec:
        """A sink into the ledger."""
        ledger, can_list = self.ledger, self.can_list
        if uid == "log":
            return SinkSpec(uid=uid, name=uid, factory=lambda: LogSink(ledger))
        return SinkSpec(uid=uid, name=uid, factory=lambda: LedgerSink(ledger, can_list=can_list))

    def sink_chain(self, uid: str, width: int) -> Chain:
        """A sink that has its tasks to itself."""
        return self.add(Chain(uid=uid, name=uid, parallelism=width, sink=self.sink(uid)))

    def head(
        self,
        source: NumberedSource,
        strategy: WatermarkStrategy | None = None,
        sink: SinkSpec | None = None,
        operators: tuple[OperatorSpec, ...] = (),
    ) -> Chain:
        """A source, and what shares its tasks."""
        if strategy is None and self.timed:
            strategy = WatermarkStrategy.monotonic("ts").with_idleness(timedelta(seconds=1))
        uid = f"source-{source.name}"
        return self.add(
            Chain(
                uid=uid,
                name=uid,
                parallelism=self.width,
                source=SourceSpec(uid=uid, name=uid, source=source, watermarks=strategy),
                operators=operators,
                sink=sink,
            )
        )

    def timed_source(
        self, rng: random.Random, name: str = "a", most: int = 60, late_every: int = 0
    ) -> TimedSource:
        """A source whose rows are out of order within a bound, or beyond it now and then."""
        return TimedSource(
            name, rng.randint(1, 3), rng.randint(5, most), self.keys, self.dice, self.pace,
            late_every=late_every,
        )  # fmt: skip

    def timed_head(self, source: TimedSource, operators: tuple[OperatorSpec, ...] = ()) -> Chain:
        """A source with the watermarks that fit its disorder."""
        bound = timedelta(microseconds=source.bound)
        strategy = WatermarkStrategy.bounded_out_of_orderness("ts", bound)
        if self.aligned:
            strategy = strategy.with_alignment(
                "all", max_drift=2 * bound, update_interval=timedelta(milliseconds=200)
            )
        return self.head(source, strategy, operators=operators)

    def operator(
        self,
        uid: str,
        factory: Callable[[], Operator],
        *,
        behind: tuple[OperatorSpec, ...] = (),
        sink: SinkSpec | None = None,
    ) -> Chain:
        """An operator, those behind it in its tasks, and one that fails now and then."""
        dice, luck = self.dice, f"{uid}-luck"
        return self.add(
            Chain(
                uid=uid,
                name=uid,
                parallelism=self.out_width,
                operators=(
                    OperatorSpec(uid=uid, name=uid, factory=factory),
                    *behind,
                    OperatorSpec(uid=luck, name=luck, factory=lambda: Unlucky(dice)),
                ),
                sink=sink,
            )
        )

    def finish(self, last: Chain, uid: str = "out") -> None:
        """Rows of the last chain go to a sink behind an edge."""
        self.connect(last, self.sink_chain(uid, self.out_width), Partitioning.FORWARD)

    def last(
        self, uid: str, factory: Callable[[], Operator], behind: tuple[OperatorSpec, ...] = ()
    ) -> Chain:
        """An operator and the sink ``out``, in one task or in two."""
        sink = self.sink("out") if self.chained else None
        chain = self.operator(uid, factory, behind=behind, sink=sink)
        if not self.chained:
            self.finish(chain)
        return chain

    def plan(self) -> PhysicalPlan:
        """What has been built."""
        return PhysicalPlan(
            job="simulated",
            chains=tuple(self.chains),
            edges=tuple(self.edges),
            max_parallelism=16,
        )


Shape: TypeAlias = Callable[[Builder, random.Random], dict[str, Expected]]


def hashed(heads: Sequence[Chain], down: Chain, builder: Builder, key: str = "key") -> None:
    """Every head goes to ``down`` by key, each on an input of its own."""
    for index, head in enumerate(heads):
        builder.connect(head, down, Partitioning.HASH, key, input_index=index)
