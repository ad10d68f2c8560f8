"""What may go wrong in a simulated run, and how often.

Why it exists: one seed decides everything. A :class:`FaultPlan` is drawn from the seed, so
that some runs are stormy in one way and some in another; uniform noise finds less.

May import: nothing of the package.
"""

from __future__ import annotations

import enum
import random
from collections import Counter
from dataclasses import dataclass, field, fields


class StorageFate(enum.Enum):
    """How a storage call ends."""

    DONE = "done"
    REFUSED = "refused"
    """An error, and nothing happened."""
    LOST_REQUEST = "lost-request"
    """No answer, and nothing happened."""
    LOST_REPLY = "lost-reply"
    """No answer, and it happened."""
    LATE = "late"
    """No answer, and it happens long after the caller has given up."""


@dataclass(slots=True, kw_only=True)
class FaultPlan:
    """Probabilities per occasion (floats), and how many times at random moments (ints).

    Args:
        until: virtual seconds after which nothing goes wrong any more, so that every run ends.
    """

    until: float = 0.0
    # mail
    drop_frame: float = 0.0
    drop_confirm: float = 0.0
    duplicate_frame: float = 0.0
    drop_message: float = 0.0
    duplicate_message: float = 0.0
    delay: float = 0.0
    # storage
    storage: float = 0.0
    upload: float = 0.0
    retention: float = 0.0
    # sources, operators and sinks
    slow_reader: float = 0.0
    read: float = 0.0
    process: float = 0.0
    request_slow: float = 0.0
    request_lost: float = 0.0
    request_failed: float = 0.0
    prepare: float = 0.0
    commit_retry: float = 0.0
    commit_lost_reply: float = 0.0
    commit_fatal: float = 0.0
    list_prepared: float = 0.0
    # processes
    crash_task: int = 0
    zombie_task: int = 0
    hang_task: int = 0
    stall_task: int = 0
    crash_coordinator: int = 0
    crash_midway: int = 0
    split_brain: int = 0
    # people
    user_checkpoint: int = 0
    user_stop: int = 0
    user_cancel: int = 0

    @classmethod
    def draw(cls, rng: random.Random) -> FaultPlan:
        """A plan for one run: each kind of fault is absent, rare or frequent."""
        plan = cls(until=rng.uniform(5.0, 40.0))
        for f in fields(cls):
            if f.name == "until":
                continue
            level = rng.choice((0.0, 0.0, 0.3, 1.0))
            if f.type == "int":
                setattr(plan, f.name, round(level * rng.randint(0, 2)))
            else:
                setattr(plan, f.name, level * _WORST[f.name])
        return plan


_WORST = {
    "drop_frame": 0.01,
    "drop_confirm": 0.05,
    "duplicate_frame": 0.1,
    "drop_message": 0.1,
    "duplicate_message": 0.1,
    "delay": 0.1,
    "storage": 0.15,
    "upload": 0.05,
    "retention": 0.3,
    "slow_reader": 0.3,
    "read": 0.01,
    "process": 0.01,
    "request_slow": 0.1,
    "request_lost": 0.05,
    "request_failed": 0.1,
    "prepare": 0.03,
    "commit_retry": 0.2,
    "commit_lost_reply": 0.2,
    "commit_fatal": 0.01,
    "list_prepared": 0.3,
}

CRASHES = tuple(
    f.name for f in fields(FaultPlan) if f.type == "int" and not f.name.startswith("user_")
)
"""Faults that strike a process at a moment."""

REQUESTS = tuple(f.name for f in fields(FaultPlan) if f.name.startswith("user_"))
"""What a user may ask for at any moment."""

KINDS = (*(f.name for f in fields(FaultPlan) if f.name != "until"), "launch_twice")
"""Every kind of fault."""


@dataclass(slots=True)
class Dice:
    """Throws for faults, counts them, and stops throwing when time is up.

    Args:
        rng: the run's only source of randomness.
        plan: how often.
    """

    rng: random.Random
    plan: FaultPlan
    now: float = 0.0
    thrown: Counter[str] = field(default_factory=Counter)

    def happens(self, name: str) -> bool:
        """Whether the named fault strikes here and now."""
        chance: float = getattr(self.plan, name)
        if chance <= 0 or self.now > self.plan.until or self.rng.random() >= chance:
            return False
        self.thrown[name] += 1
        return True

    def storage_fate(self, kind: str = "storage") -> StorageFate:
        """How a storage call ends."""
        if not self.happens(kind):
            return StorageFate.DONE
        return self.rng.choice(
            (
                StorageFate.REFUSED,
                StorageFate.LOST_REQUEST,
                StorageFate.LOST_REPLY,
                StorageFate.LATE,
            )
        )

    def latency(self) -> float:
        """Seconds that something takes on its way; now and then very long."""
        base = self.rng.expovariate(1 / 0.004)
        if self.happens("delay"):
            base += self.rng.uniform(0.1, 3.0)
        return base

    def moment(self) -> float:
        """When something strikes: rather early, while there is still work to disturb."""
        latest = self.plan.until if self.rng.random() < 0.3 else min(3.0, self.plan.until)
        return self.rng.uniform(0.05, max(0.1, latest))
