"""Planted bugs: each breaks one rule of the protocol, and the simulator must notice.

Why it exists: a simulator that finds nothing may be blind. Every mutant here replaces one
method or function of the cores by one that somebody might have written.

    coordinator  decisions about epochs, checkpoints, commits
    tasks        barriers, channels, watermarks, transactions

May import: execution, protocol, checkpoint, and the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug.

    Args:
        name: short.
        breaks: which rule, in a sentence.
        owner: class or module that is changed.
        attribute: what of it is replaced.
        make: from the original to what takes its place.
    """

    name: str
    breaks: str
    owner: Any
    attribute: str
    make: Callable[[Any], Any]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Change the cores for the length of a ``with`` block."""
        replacement = self.make(getattr(self.owner, self.attribute))
        with mock.patch.object(self.owner, self.attribute, replacement):
            yield


def every_mutant() -> list[Mutant]:
    """All of them, in a stable order."""
    from helios_ray.simulation.mutants import coordinator, tasks  # they import this module

    return [*coordinator.MUTANTS, *tasks.MUTANTS]
