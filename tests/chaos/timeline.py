"""Where the time of a recovery went, read from the log of the coordinators.

Why it exists: a median says how long, not why. The coordinator logs every change of the job's
status; between two of them lies one part of the recovery.

    noticed     the kill, until the coordinator (the next one, if it was killed) begins anew
    claimed     an epoch is claimed
    restored    a checkpoint is chosen and its manifest read
    deployed    dead processes are replaced, all have loaded their state
    resolved    old transactions are settled, the job runs
    output      the first checkpoint of the new rows, its commit
"""

from __future__ import annotations

import json
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from helios_ray.runtime.failpoints import COORDINATOR
from tests.chaos.killer import Recovery

PARTS = ("noticed", "claimed", "restored", "deployed", "resolved", "output")
_STATUS = ("claiming", "restoring", "deploying", "resolving", "running")


class Change(NamedTuple):
    """The job's status changed, at a time in seconds since the Unix epoch."""

    at: float
    status: str


def read(logs: Path) -> list[Change]:
    """Every change of status that any coordinator has logged, in order of time."""
    changes: list[Change] = []
    for path in logs.glob("worker-*.err"):
        for line in path.read_text(errors="replace").splitlines():
            if '"job ' not in line:
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            words = entry["message"].split()
            if words[:1] == ["job"] and len(words) > 2 and words[2] in _STATUS:
                moment = datetime.strptime(entry["asctime"], "%Y-%m-%d %H:%M:%S,%f")
                changes.append(Change(moment.timestamp(), words[2]))
    return sorted(changes)


def parts(recovery: Recovery, changes: list[Change]) -> dict[str, float] | None:
    """Seconds of each part of a recovery, or None if the log does not tell.

    Only the attempt that succeeded is taken apart; what came before it counts as noticing.
    """
    within = [c for c in changes if recovery.wound.at <= c.at <= recovery.output_at]
    starts = [n for n, change in enumerate(within) if change.status == _STATUS[0]]
    attempts = [within[n : n + len(_STATUS)] for n in starts]
    whole = [a for a in attempts if [c.status for c in a] == list(_STATUS)]
    if not whole:
        return None
    marks = [recovery.wound.at, *(c.at for c in whole[-1]), recovery.output_at]
    spans = zip(PARTS, pairwise(marks), strict=True)
    return {part: after - before for part, (before, after) in spans}


def summary(recoveries: list[Recovery], changes: list[Change]) -> str:
    """The medians of the parts, for kills of tasks and of the coordinator."""
    lines = []
    for name, wanted in (("tasks", False), ("the coordinator", True)):
        chosen = [r for r in recoveries if (r.wound.kill.victim == COORDINATOR) is wanted]
        taken = [p for r in chosen if (p := parts(r, changes)) is not None]
        if taken:
            medians = (f"{part} {median(p[part] for p in taken):.2f}" for part in PARTS)
            total = median(r.seconds for r in chosen)
            lines.append(
                f"recovery from the death of {name}, medians of {len(taken)}: "
                f"{', '.join(medians)}; in all {total:.2f} s"
            )
    return "\n".join(lines)
