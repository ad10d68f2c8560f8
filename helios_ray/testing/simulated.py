"""A job of a user in the simulated world: crashes, replays and odd orders in milliseconds.

Why it exists: a job under Ray shows what happens; a simulated one shows what may happen, and
shows it again. No Ray is started.

May import: environment, plan, simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from helios_ray.simulation.faults import FaultPlan
from helios_ray.simulation.programs import SimulatedResult, run_plan

if TYPE_CHECKING:
    from helios_ray.environment.environment import StreamExecutionEnvironment


class SimulationFailed(AssertionError):
    """A simulated job broke a promise; ``result`` tells what it went through.

    Args:
        result: of the run.
    """

    def __init__(self, result: SimulatedResult) -> None:
        told = "\n  ".join(result.violations[:5])
        super().__init__(
            f"the simulated job broke a promise; seed={result.seed} shows it again:\n  {told}"
        )
        self.result = result


def simulate(
    env: StreamExecutionEnvironment,
    *,
    seed: int = 0,
    faults: FaultPlan | None = None,
    name: str = "simulated",
    trace: Callable[[str], None] | None = None,
) -> SimulatedResult:
    """Run the job of an environment in the simulated world, from start to end.

    The job runs on the runtime's own cores in this thread, in virtual time, while processes
    die, messages are lost, delayed and doubled, and storage fails. Its sources must end; they
    come in small pieces. Its sinks are not touched: what would have been committed to them is
    in the result. User functions run in this process; one object serves all attempts, so what
    must survive a crash, and what must not, belongs into state.

    Args:
        env: describes the job.
        seed: decides everything that chance decides; the same seed gives the same run.
        faults: what goes wrong, instead of what the seed would draw; ``FaultPlan()`` is nothing.
        name: of the job.
        trace: takes a line for everything of note that happens: ``print``, say.

    Returns:
        What was committed, by sink uid, and what the job went through.

    Raises:
        SimulationFailed: a promise of exactly-once was broken, or the job cannot finish; the
            message has the seed.
        ConfigError: a source does not end.
        PlanError: as for ``env.execute``.

    Example:
        >>> from helios_ray import StreamExecutionEnvironment
        >>> from helios_ray.aggregates import count
        >>> env = StreamExecutionEnvironment().with_parallelism(2).build()
        >>> words = env.from_items(["to", "be", "or", "not", "to", "be"], uid="words")
        >>> counts = words.key_by("item").aggregate(n=count(), emit="final", uid="counts")
        >>> _ = counts.collect(uid="out")
        >>> for seed in range(5):
        ...     result = simulate(env, seed=seed)
        ...     assert {r["item"]: r["n"] for r in result.rows("out")} == {
        ...         "to": 2, "be": 2, "or": 1, "not": 1}
    """
    compiled = env.compile(name)
    sinks = compiled.plan.sink_uids()
    schemas = {uid: node.input_schema for uid, node in compiled.nodes.items() if uid in sinks}
    result = run_plan(compiled.plan, seed, faults, schemas=schemas, trace=trace)
    if not result.ok:
        raise SimulationFailed(result)
    return result
