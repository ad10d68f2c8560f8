"""Runs one seed from start to verdict.

Why it exists: the crash schedule, the operator who restarts a failed job, and the last look
at what is left behind are the same for every scenario.

May import: protocol and this room.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from helios_ray.protocol.instructions import JobStatus
from helios_ray.simulation.faults import FaultPlan
from helios_ray.simulation.scenarios import build
from helios_ray.simulation.world import World


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run went.

    Args:
        digest: of everything that became visible and durable; equal for equal seeds.
    """

    seed: int
    violations: tuple[str, ...]
    faults: Counter[str]
    steps: int
    virtual_seconds: float
    digest: str

    @property
    def ok(self) -> bool:
        """No promise was broken."""
        return not self.violations


def run_seed(seed: int, faults: FaultPlan | None = None) -> Verdict:
    """Simulate one job under the faults of a seed and judge it.

    Args:
        seed: decides everything; the same seed gives the same run, to the digest.
        faults: instead of those the seed would draw.

    Example:
        >>> run_seed(1).violations
        ()
    """
    world = build(seed, faults)
    _schedule_crashes(world)
    world.launch()
    status = world.run()
    for _ in range(20):
        if status is JobStatus.FINISHED or world.judge.violations:
            break
        # A fatal commit, or a cluster that died: a person looks at it and starts it again.
        world.dice.plan.commit_fatal = 0.0
        world.launch()
        status = world.run()
    if status is not JobStatus.FINISHED and not world.judge.violations:
        world.judge.violation(f"the job ended as {status.value}: {_reason(world)}")
    if world.ledger.prepared and not world.judge.violations:
        # Prepared by a zombie after the last look. The next run of the job finds it.
        world.launch()
        world.run()
    world.judge.check_output()
    return Verdict(
        seed=seed,
        violations=tuple(world.judge.violations),
        faults=world.dice.thrown,
        steps=world.steps,
        virtual_seconds=world.now,
        digest=_digest(world),
    )


def _reason(world: World) -> str:
    return world.current.coordinator.core.reason


def _digest(world: World) -> str:
    text = repr((list(world.ledger.committed.items()), sorted(world.storage.records), world.steps))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _schedule_crashes(world: World) -> None:
    plan, rng, dice = world.dice.plan, world.rng, world.dice

    def when() -> float:
        return rng.uniform(0.05, max(0.1, plan.until))

    def on_task(kind: str) -> None:
        cluster = world.current
        if cluster.ended or not cluster.tasks:
            return
        task = rng.choice(sorted(cluster.tasks))
        dice.thrown[kind] += 1
        if kind == "hang_task":
            cluster.hang_task(task)
        else:
            cluster.crash_task(task, zombie=kind == "zombie_task", silent=rng.random() < 0.2)

    def on_coordinator(kind: str) -> None:
        cluster = world.current
        if cluster.ended:
            return
        dice.thrown[kind] += 1
        if kind == "split_brain":
            # Cut off, not dead: it goes on for a while, and its tasks with it.
            world.at(rng.uniform(0.5, 30.0), cluster.crash)
        else:
            cluster.crash()
        world.launch_later(rng.uniform(0.05, 2.0))

    for kind in ("crash_task", "zombie_task", "hang_task"):
        for _ in range(getattr(plan, kind)):
            world.at(when(), lambda kind=kind: on_task(kind))  # type: ignore[misc]
    for kind in ("crash_coordinator", "split_brain", "crash_all"):
        for _ in range(getattr(plan, kind)):
            world.at(when(), lambda kind=kind: on_coordinator(kind))  # type: ignore[misc]
