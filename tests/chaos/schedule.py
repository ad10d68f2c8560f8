"""Who is killed, and when: drawn from a seed, so that a run can be had again.

What it promises: from 20 kills on, every step of the crash matrix is reached at least once, and
a source, an operator, a sink and the coordinator each die at a random moment as well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from helios_ray.runtime.failpoints import COORDINATOR, COORDINATOR_STEPS, STEPS
from tests.chaos.job import FILES, ROWS, SOURCE, TOTALS

ROLES = {"source": (SOURCE,), "operator": (TOTALS,), "sink": (ROWS, FILES)}
"""The chains of operators that each kind of task runs."""

TASK_VICTIMS = {
    "before-barrier": (SOURCE, TOTALS, ROWS, FILES),
    "while-aligned": (TOTALS,),  # the only one with several inputs
    "after-snapshot": (SOURCE, TOTALS, ROWS, FILES),
    "after-ack": (SOURCE, TOTALS, ROWS, FILES),
    "after-manifest": (ROWS, FILES),
    "mid-commit": (ROWS, FILES),
    "before-marker": (ROWS, FILES),
    "restoring": (SOURCE, TOTALS, ROWS, FILES),
    "commit-replay": (ROWS, FILES),
}
"""Which tasks come to a step at all."""

WHILE_RECOVERING = ("restoring", "commit-replay")
"""Steps that only a recovery passes: they take another kill to begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One SIGKILL.

    Args:
        victim: ``"coordinator"`` or the uid of a chain; empty for one of ``role``.
        subtask: of the chain, for random moments.
        step: where in the protocol; empty: at a random moment.
        delay: seconds from the end of the last recovery, for random moments.
        skip: how often the step is passed before.
        opens: this kill only starts the recovery in which the next one happens.
    """

    victim: str
    subtask: int = 0
    step: str = ""
    delay: float = 0.0
    skip: int = 0
    opens: bool = False

    def __str__(self) -> str:
        who = (
            self.victim
            if self.step or self.victim == COORDINATOR
            else (f"{self.victim}[{self.subtask}]")
        )
        return f"{self.step or 'random moment'}: {who}"


def draw(kills: int, seed: int) -> list[Kill]:
    """The kills of a run, in order."""
    dice = random.Random(seed)
    turns: list[list[Kill]] = []
    # Each step once, tasks and the coordinator in turn; what the seed leaves out today, the
    # second half below or another seed brings.
    sides = [COORDINATOR, "task"]
    dice.shuffle(sides)
    for number, step in enumerate(STEPS):
        turns.append(_at_step(dice, step, sides[number % 2]))
    turns += [[_random(dice, role)] for role in (*ROLES, COORDINATOR)]
    dice.shuffle(turns)
    chosen = _take(turns, kills)
    while (left := kills - sum(map(len, chosen))) > 0:
        if dice.random() < 0.5:
            turn = _at_step(dice, dice.choice(STEPS), dice.choice(sides))
        else:
            turn = [_random(dice, dice.choice((*ROLES, COORDINATOR)))]
        if len(turn) <= left:
            chosen.insert(dice.randrange(len(chosen) + 1), turn)
    return [kill for turn in chosen for kill in turn]


def _take(turns: list[list[Kill]], kills: int) -> list[list[Kill]]:
    taken: list[list[Kill]] = []
    for turn in turns:
        if sum(map(len, taken)) + len(turn) <= kills:
            taken.append(turn)
    return taken


def _random(dice: random.Random, role: str, *, opens: bool = False) -> Kill:
    victim = role if role == COORDINATOR else dice.choice(ROLES[role])
    return Kill(victim=victim, subtask=dice.randrange(2), delay=dice.uniform(0.0, 1.5), opens=opens)


def _at_step(dice: random.Random, step: str, side: str) -> list[Kill]:
    if side == COORDINATOR and step in COORDINATOR_STEPS:
        kill = Kill(victim=COORDINATOR, step=step, skip=dice.randrange(4))
    else:
        kill = Kill(victim=dice.choice(TASK_VICTIMS[step]), step=step, skip=dice.randrange(4))
    if step not in WHILE_RECOVERING:
        return [kill]
    # A recovery passes these a few times only: once for each subtask that restores, once for
    # each sink that settles, and a sink does so through one of its subtasks.
    passes = {(True, "restoring"): 1, (True, "commit-replay"): 4, (False, "restoring"): 2}
    limit = passes.get((kill.victim == COORDINATOR, step), 1)
    kill = Kill(victim=kill.victim, step=step, skip=kill.skip % limit)
    return [_random(dice, dice.choice((*ROLES, COORDINATOR)), opens=True), kill]
