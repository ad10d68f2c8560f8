"""Runs one seed from start to verdict.

Why it exists: the crash schedule, the person who restarts a job that ended, and the last look
at what is left behind are the same for every scenario.

May import: protocol and this room.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from helios_ray.protocol import instructions as i
from helios_ray.protocol.instructions import JobStatus
from helios_ray.simulation.faults import CRASHES, REQUESTS, FaultPlan
from helios_ray.simulation.plans import SHAPES
from helios_ray.simulation.scenarios import build
from helios_ray.simulation.world import World

MOST_LAUNCHES = 60
"""How often a person starts a job again that ended before it was through."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run went.

    Args:
        shape: of the plan.
        faults: how many of each kind were thrown.
        statuses: how often the job ended in each way.
        digest: of everything that became visible and durable; equal for equal seeds.
    """

    seed: int
    shape: str
    violations: tuple[str, ...]
    faults: Counter[str]
    statuses: Counter[str]
    steps: int
    virtual_seconds: float
    digest: str

    @property
    def ok(self) -> bool:
        """No promise was broken."""
        return not self.violations


def run_seed(
    seed: int,
    faults: FaultPlan | None = None,
    trace: Callable[[str], None] | None = None,
    shapes: Sequence[str] = SHAPES,
) -> Verdict:
    """Simulate one job under the faults of a seed and judge it.

    Args:
        seed: decides everything; the same seed gives the same run, to the digest.
        faults: instead of those the seed would draw.
        trace: takes a line for everything of note that happens.
        shapes: of plans to draw from.

    Example:
        >>> run_seed(1).violations
        ()
    """
    world = build(seed, faults, shapes)
    world.trace = trace
    statuses = play(world)
    return Verdict(
        seed=seed,
        shape=world.settings.shape,
        violations=tuple(world.judge.violations),
        faults=world.dice.thrown,
        statuses=statuses,
        steps=world.steps,
        virtual_seconds=world.now,
        digest=digest(world),
    )


def play(world: World) -> Counter[str]:
    """Run a job to its end under the faults of its world, and judge it.

    Returns:
        How often it ended in each way.
    """
    _schedule_crashes(world)
    _schedule_requests(world)
    statuses: Counter[str] = Counter()
    try:
        _run_to_the_end(world, statuses)
        if not world.judge.violations:
            _run_once_more(world)
    except Exception as error:  # a bug of the cores that shows as an exception is one too
        world.judge.violation(f"{type(error).__name__}: {error}")
    else:
        world.judge.check_output()
    finally:
        world.close()
    return statuses


def _run_to_the_end(world: World, statuses: Counter[str]) -> None:
    mended = False
    for _ in range(MOST_LAUNCHES):
        world.launch()
        status = world.run()
        statuses[status.value] += 1
        if status is JobStatus.FINISHED or world.judge.violations:
            return
        # It was stopped, or its restarts are exhausted, or the cluster died, or a commit was
        # refused for good: a person looks at it, mends that, and starts the job again.
        if mended and status is JobStatus.FAILED and world.refused is not None:
            world.judge.violation(f"the job fails, and would again: {world.refused}")
            return
        mended, world.refused = True, None
        world.dice.plan.commit_fatal = 0.0
    core = world.current.coordinator.core
    world.judge.violation(f"the job never finished; last {core.status.value}: {core.reason}")


def _run_once_more(world: World) -> None:
    """A finished job that is started again ends at once, and adds nothing."""
    leftovers = bool(world.ledger.prepared)  # of zombies that went on after the last look
    if not leftovers and world.rng.random() < 0.7:
        return
    world.dice.plan = FaultPlan()
    world.calm = True
    before = len(world.ledger.committed), len(world.ledger.log)
    began = world.now
    world.launch()
    status = world.run()
    core = world.current.coordinator.core
    if status is not JobStatus.FINISHED or world.now - began > 30.0 or core.restarts:
        world.judge.violation(f"a finished job, run again, is {status.value} at {world.now:.1f}")
    if (len(world.ledger.committed), len(world.ledger.log)) != before:
        world.judge.violation("a finished job, run again, has written something")


def _plain(kept: object) -> object:
    if not isinstance(kept, pa.RecordBatch):
        return kept
    # Arrow's times reach further than Python's.
    instants = [pa.types.is_temporal(field.type) for field in kept.schema]
    columns = [
        column.view(f"int{column.type.bit_width}") if instant else column
        for column, instant in zip(kept.columns, instants, strict=True)
    ]
    return [column.to_pylist() for column in columns]


def digest(world: World) -> str:
    """Of everything that became visible and durable."""
    text = repr(
        (
            [(t, [_plain(r) for r in rows]) for t, rows in world.ledger.committed.items()],
            sorted(world.ledger.log.items()),
            sorted(world.storage.records),
            sorted(world.storage.objects),
            sorted(world.dice.thrown.items()),
            world.steps,
        )
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------- what strikes when


def _schedule_crashes(world: World) -> None:
    for kind in CRASHES:
        for _ in range(getattr(world.dice.plan, kind)):
            strike = _strike_task if kind.endswith("_task") else _strike_coordinator
            world.at(world.dice.moment(), lambda s=strike, k=kind: s(world, k))  # type: ignore[misc]


def _strike_task(world: World, kind: str) -> None:
    cluster = world.current_or_none
    if cluster is None or cluster.ended or not cluster.tasks or world.calm:
        return
    task = world.rng.choice(sorted(cluster.tasks))
    world.thrown(kind, str(task))
    if kind == "hang_task":
        cluster.hang_task(task)
    elif kind == "stall_task":
        cluster.tasks[task].stall(world.now)
    else:
        silent = world.rng.random() < 0.2
        cluster.crash_task(task, zombie=kind == "zombie_task", silent=silent)


def _strike_coordinator(world: World, kind: str) -> None:
    cluster = world.current_or_none
    if cluster is None or cluster.ended or world.calm:
        return
    world.thrown(kind, cluster.owner)
    if kind == "crash_midway":
        # It dies in the middle of what it is about to do, between any two instructions.
        cluster.coordinator.dies_after = world.rng.randint(0, 8)
        return
    if kind == "split_brain":
        # Cut off, not dead: it goes on for a while, and its tasks with it.
        world.at(world.rng.uniform(0.5, 30.0), cluster.crash)
    else:
        cluster.crash()
    later = world.rng.uniform(0.05, 2.0)
    world.launch_later(later)
    if world.rng.random() < 0.3:
        # Two people, or two machines, start it again at the same moment.
        world.thrown("launch_twice", cluster.owner)
        world.launch_later(later + world.rng.uniform(0.0, 0.02))


def _schedule_requests(world: World) -> None:
    events: dict[str, i.Event] = {
        "user_checkpoint": i.CheckpointRequested(),
        "user_stop": i.StopRequested(),
        "user_cancel": i.CancelRequested(),
    }
    for kind in REQUESTS:
        for _ in range(getattr(world.dice.plan, kind)):
            world.at(world.dice.moment(), lambda k=kind: _ask(world, k, events[k]))  # type: ignore[misc]


def _ask(world: World, kind: str, event: i.Event) -> None:
    cluster = world.current_or_none
    if cluster is None or cluster.ended or world.calm:
        return
    world.thrown(kind, cluster.owner)
    cluster.coordinator.on_event(event)
