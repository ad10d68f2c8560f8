"""``python -m helios_ray.simulation``: run many seeds, or replay one.

Why it exists: a failing seed is worth something only if it is printed with the command that
replays it.

    --seeds 2000       this many seeds ...
    --first 0          ... from this one on
    --processes 2      shared out to so many processes
    --seed 17 --trace  replay one, and tell what happens in it

The last line is ``simulation: seeds=… faults=… violations=…``; the exit code is 1 if any
promise was broken.

May import: this room, and processes, which the simulation itself has not.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from helios_ray.simulation.faults import KINDS
from helios_ray.simulation.run import Verdict, run_seed

PROGRESS_EVERY = 5.0
"""Seconds from one line of progress to the next."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helios_ray.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, help="replay this one instead")
    parser.add_argument("--trace", action="store_true", help="with --seed: tell what happens")
    parser.add_argument("--trace-lines", type=int, default=400, help="the last lines to show")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.processes < 1:
        parser.error("--seeds and --processes must be at least 1")
    if options.seed is not None:
        return replay(options.seed, trace=options.trace, lines=options.trace_lines)
    return run_many(range(options.first, options.first + options.seeds), options.processes)


def verdicts(seeds: range, processes: int) -> Iterator[Verdict]:
    """Run seeds in several processes; in order."""
    if processes == 1:
        yield from map(run_seed, seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(run_seed, seeds, chunksize=8)


def run_many(seeds: range, processes: int) -> int:
    """Run seeds, telling how far it is; return the exit code."""
    began = shown = time.monotonic()
    faults: Counter[str] = Counter()
    shapes: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    bad: list[Verdict] = []
    for done, verdict in enumerate(verdicts(seeds, processes), 1):
        faults += verdict.faults
        shapes[verdict.shape] += 1
        statuses += verdict.statuses
        if not verdict.ok:
            bad.append(verdict)
            tell_violation(verdict)
        if time.monotonic() - shown >= PROGRESS_EVERY:
            shown = time.monotonic()
            print(
                f"{done}/{len(seeds)} seeds, {faults.total()} faults, {len(bad)} violations, "
                f"{done / (shown - began):.1f} seeds/s",
                flush=True,
            )
    print("faults: " + ", ".join(f"{kind} {faults[kind]}" for kind in KINDS))
    print("plans: " + ", ".join(f"{shape} {n}" for shape, n in sorted(shapes.items())))
    print("ends: " + ", ".join(f"{status} {n}" for status, n in sorted(statuses.items())))
    for verdict in bad:
        print(f"replay: python -m helios_ray.simulation --seed {verdict.seed} --trace")
    print(f"simulation: seeds={len(seeds)} faults={faults.total()} violations={len(bad)}")
    return 1 if bad else 0


def tell_violation(verdict: Verdict) -> None:
    """Say what went wrong, and how to see it again."""
    print(f"seed {verdict.seed} ({verdict.shape}) broke a promise:", flush=True)
    for violation in verdict.violations[:5]:
        print(f"  {violation}")
    print(f"  replay: python -m helios_ray.simulation --seed {verdict.seed} --trace", flush=True)


def replay(seed: int, *, trace: bool, lines: int) -> int:
    """Run one seed and tell about it; return the exit code."""
    told: list[str] = []
    verdict = run_seed(seed, trace=told.append if trace else None)
    if len(told) > lines:
        print(f"... {len(told) - lines} lines before these; --trace-lines shows more")
    for line in told[-lines:]:
        print(line)
    print(f"plan: {verdict.shape}, {verdict.steps} steps, {verdict.virtual_seconds:.3f} virtual s")
    thrown = ", ".join(f"{kind} {n}" for kind, n in sorted(verdict.faults.items()))
    print(f"faults: {thrown or 'none'}")
    print(f"ends: {', '.join(f'{status} {n}' for status, n in sorted(verdict.statuses.items()))}")
    print(f"digest: {verdict.digest}")
    if not verdict.ok:
        tell_violation(verdict)
    violations = int(not verdict.ok)
    print(f"simulation: seeds=1 faults={verdict.faults.total()} violations={violations}")
    return violations


if __name__ == "__main__":
    sys.exit(main())
