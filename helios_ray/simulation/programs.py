"""Runs any compiled job in the simulated world.

Why it exists: what a program computes must not depend on crashes, on where its batches are
cut, or on which split comes first; this shows it for the program itself, not for a model of
it. Sinks are replaced by one that keeps rows as Arrow in the ledger; sources come in small
pieces (see ``pacing``). The runtime's own cores do the rest.

User functions run in this process, and one function object serves all attempts: what it must
remember belongs into state.

May import: plan, and this room.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from helios_ray.identifiers import TransactionId
from helios_ray.plan.physical import Chain, PhysicalPlan
from helios_ray.simulation.faults import CRASHES, Dice, FaultPlan
from helios_ray.simulation.judge import Judge
from helios_ray.simulation.ledger import Ledger, TableSink
from helios_ray.simulation.pacing import PacedSource
from helios_ray.simulation.run import digest, play
from helios_ray.simulation.scenarios import draw_options, draw_rules
from helios_ray.simulation.world import Settings, World

LARGEST_EMISSION = 1 << 30
MOST_STEPS = 5_000_000


@dataclass(frozen=True, slots=True)
class SimulatedResult:
    """What a simulated job left behind, and what it went through.

    Args:
        seed: that decided everything; run it again with the same one.
        tables: by sink uid, the rows that were committed, in the order of their commits.
        violations: broken promises; empty if there are none.
        faults: how many of each kind were thrown.
        attempts: epochs that were begun.
        restores: epochs that resumed from a checkpoint.
        checkpoints: that became durable.
        statuses: how often the job ended in each way before it finished.
        steps: events of the simulation.
        virtual_seconds: that went by.
        digest: of everything that became visible and durable; equal for equal seeds.
    """

    seed: int
    tables: Mapping[str, pa.Table]
    violations: tuple[str, ...]
    faults: Counter[str]
    attempts: int
    restores: int
    checkpoints: int
    statuses: Counter[str]
    steps: int
    virtual_seconds: float
    digest: str

    @property
    def ok(self) -> bool:
        """No promise was broken."""
        return not self.violations

    @property
    def crashes(self) -> int:
        """Processes of tasks and coordinators that died, hung or were cut off."""
        return sum(self.faults[kind] for kind in CRASHES)

    def rows(self, uid: str) -> list[dict[str, Any]]:
        """The rows of a sink as dicts."""
        rows: list[dict[str, Any]] = self.tables[uid].to_pylist()
        return rows


def run_plan(
    plan: PhysicalPlan,
    seed: int,
    faults: FaultPlan | None = None,
    *,
    schemas: Mapping[str, pa.Schema | None] | None = None,
    trace: Callable[[str], None] | None = None,
) -> SimulatedResult:
    """Run a job in the simulated world until it has finished, whatever happens.

    Args:
        plan: any compiled job whose sources end.
        seed: decides settings, faults and their moments, the cuts between batches, delays and
            orders; the same seed gives the same run, to the digest.
        faults: instead of those the seed would draw; ``FaultPlan()`` is none. Those with a
            probability strike until ``FaultPlan.until`` (virtual seconds).
        schemas: by sink uid, for the tables of sinks that get no rows.
        trace: takes a line for everything of note that happens.

    Raises:
        ConfigError: a source does not end.

    Example:
        >>> from helios_ray.connectors.items import ItemsSource
        >>> from helios_ray.connectors.simple import PrintSink
        >>> from helios_ray.plan.physical import SinkSpec, SourceSpec
        >>> numbers = SourceSpec(uid="numbers", name="numbers", source=ItemsSource(range(100)))
        >>> out = SinkSpec(uid="out", name="out", factory=PrintSink)
        >>> copy = Chain(uid="numbers", name="copy", parallelism=2, source=numbers, sink=out)
        >>> result = run_plan(PhysicalPlan(job="copy", chains=(copy,), edges=()), seed=7)
        >>> sorted(result.tables["out"]["item"].to_pylist()) == list(range(100)), result.violations
        (True, ())
    """
    rng = random.Random(seed)
    drawn = FaultPlan.draw(rng)
    dice = Dice(rng, drawn if faults is None else replace(faults))
    ledger = Ledger(dice)
    settings = Settings("program", draw_rules(rng), draw_options(rng), LARGEST_EMISSION, MOST_STEPS)
    staged = _Stage(rng, dice, ledger).plan(plan)
    world = World(staged, settings, dice, ledger, Judge({}))
    world.trace = trace
    statuses = play(world)
    durable = world.judge.durable
    return SimulatedResult(
        seed=seed,
        tables=_tables(plan, ledger, schemas or {}),
        violations=tuple(world.judge.violations),
        faults=dice.thrown,
        attempts=durable["EpochRecord"],
        restores=durable["restores"],
        checkpoints=durable["Manifest"],
        statuses=statuses,
        steps=world.steps,
        virtual_seconds=world.now,
        digest=digest(world),
    )


class _Stage:
    """Puts simulated ends on a plan."""

    def __init__(self, rng: random.Random, dice: Dice, ledger: Ledger) -> None:
        self._dice = dice
        self._ledger = ledger
        self._can_list = rng.random() < 0.6
        self._rows = rng.choice((1, 3, 9, 16))
        self._pace = rng.choice((0.02, 0.1, 0.3))

    def plan(self, plan: PhysicalPlan) -> PhysicalPlan:
        """The same plan with simulated sources and sinks."""
        return replace(plan, chains=tuple(self._chain(chain) for chain in plan.chains))

    def _chain(self, chain: Chain) -> Chain:
        if chain.source is not None:
            paced = PacedSource(chain.source.source, self._dice, self._rows, self._pace)
            chain = replace(chain, source=replace(chain.source, source=paced))
        if chain.sink is not None:
            sink = replace(chain.sink, factory=self._sink)
            chain = replace(chain, sink=sink)
        return chain

    def _sink(self) -> TableSink:
        return TableSink(self._ledger, can_list=self._can_list)


def _tables(
    plan: PhysicalPlan, ledger: Ledger, schemas: Mapping[str, pa.Schema | None]
) -> dict[str, pa.Table]:
    batches: dict[str, list[pa.RecordBatch]] = {uid: [] for uid in plan.sink_uids()}
    for transaction, kept in ledger.committed.items():
        batches[TransactionId.parse(transaction).sink] += kept
    return {uid: _table(found, schemas.get(uid)) for uid, found in batches.items()}


def _table(batches: list[pa.RecordBatch], schema: pa.Schema | None) -> pa.Table:
    if batches:
        tables = [pa.Table.from_batches([batch]) for batch in batches]
        return pa.concat_tables(tables, promote_options="default")
    return pa.table({}) if schema is None else schema.empty_table()
