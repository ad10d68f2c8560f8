"""One kill after another, and how long the job takes to get over each.

*Recovery* is the time from the SIGKILL to the moment when a reader of PostgreSQL sees the first
row that an attempt after the kill has processed: everything is in it, detection, new processes,
restoring, settling old transactions, reading the source again, the first checkpoint and its
commit. Where a recovery is itself killed, both kills count from their own moment to that row.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from helios_ray.runtime import failpoints
from tests.chaos.schedule import Kill
from tests.chaos.world import World

PATIENCE = 120.0
"""Seconds after which a job that shows no new output counts as stuck."""
POLL = 0.005


class StuckError(Exception):
    """The job did not do in time what it had to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wound:
    """A kill that has been carried out.

    Args:
        at: seconds since the Unix epoch.
        epoch: the attempt that it ended.
    """

    kill: Kill
    at: float
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A wound that has healed.

    Args:
        output_at: when the first new row was seen; seconds since the Unix epoch.
        epoch: whose row that was.
    """

    wound: Wound
    output_at: float
    epoch: int

    @property
    def seconds(self) -> float:
        """From the kill to new output."""
        return self.output_at - self.wound.at


class Killer:
    """Carries kills out, one turn at a time.

    Args:
        world: where.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def await_first_output(self) -> None:
        """Wait until the job has shown that it works.

        Raises:
            StuckError: it has not.
        """
        self._new_output(0)

    def strike(self, turn: list[Kill]) -> list[Recovery]:
        """Kill, or kill and kill again before the job has recovered; wait until it has.

        Raises:
            StuckError: a step was never reached, or no new output came.
        """
        last = turn[-1]
        # What only a recovery passes must be laid before the kill that starts one.
        if last.step:
            who = last.victim
            failpoints.arm(self._world.failpoints, last.step, who=who, skip=last.skip)
        wounds = [self._at_random(kill) for kill in turn if not kill.step]
        if last.step:
            wounds.append(self._at_step(last))
        newest = max(wound.epoch for wound in wounds)
        output_at, epoch = self._new_output(newest)
        return [Recovery(wound=wound, output_at=output_at, epoch=epoch) for wound in wounds]

    def _at_random(self, kill: Kill) -> Wound:
        time.sleep(kill.delay)
        epoch = self._world.report().epoch
        pid = self._world.pid(kill.victim, kill.subtask)
        at = time.time()
        os.kill(pid, signal.SIGKILL)
        return Wound(kill=kill, at=at, epoch=epoch)

    def _at_step(self, kill: Kill) -> Wound:
        directory = self._world.failpoints
        self._until(
            lambda: failpoints.fired(directory, kill.step) is not None,
            f"nobody has come to {kill}",
        )
        note = failpoints.fired(directory, kill.step)
        assert note is not None
        return Wound(kill=kill, at=note.at, epoch=note.epoch)

    def _new_output(self, than: int) -> tuple[float, int]:
        world = self._world
        self._until(lambda: world.output_epoch() > than, f"no output after epoch {than}")
        return time.time(), world.output_epoch()

    def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise StuckError(f"{otherwise} within {PATIENCE:g} s")
            time.sleep(POLL)
