"""Planted bugs: each breaks one rule of the protocol, and the simulator must notice.

Why it exists: a simulator that finds nothing may be blind. Every mutant here replaces one
method or function of the cores by one that somebody might have written.

    coordinator  decisions about epochs, checkpoints, commits
    tasks        barriers, channels, watermarks, transactions
    operators    what operators keep, and how a task drives them

May import: execution, operators, protocol, checkpoint, and the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from helios_ray.simulation.shapes import basic


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug.

    Args:
        name: short.
        breaks: which rule, in a sentence.
        owner: class or module that is changed.
        attribute: what of it is replaced.
        make: from the original to what takes its place.
        shapes: of plans that can show it.
    """

    name: str
    breaks: str
    owner: Any
    attribute: str
    make: Callable[[Any], Any]
    shapes: tuple[str, ...] = basic.NAMES

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Change the cores for the length of a ``with`` block."""
        replacement = self.make(getattr(self.owner, self.attribute))
        with mock.patch.object(self.owner, self.attribute, replacement):
            yield


def every_mutant() -> list[Mutant]:
    """All of them, in a stable order."""
    from helios_ray.simulation.mutants import coordinator, operators, tasks  # they import this

    return [*coordinator.MUTANTS, *tasks.MUTANTS, *operators.MUTANTS]
