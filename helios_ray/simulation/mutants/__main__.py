"""``python -m helios_ray.simulation.mutants``: plant each bug and see it caught.

Why it exists: it shows that the simulator would notice. The cores as they are must pass
every seed on which a mutant was tried.

May import: this package, and processes, which the simulation itself has not.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from helios_ray.simulation.mutants import Mutant, every_mutant
from helios_ray.simulation.run import run_seed

MOST_SEEDS = 400
"""Seeds on which a mutant has to show itself."""


def hunt(name: str, most_seeds: int) -> tuple[str, int | None, str]:
    """Run a mutant from seed 0 on; return its name, the seed that caught it, and how."""
    mutant = next(m for m in every_mutant() if m.name == name)
    with mutant.planted():
        for seed in range(most_seeds):
            verdict = run_seed(seed, shapes=mutant.shapes)
            if not verdict.ok:
                return name, seed, verdict.violations[0]
    return name, None, ""


def passes(tried: tuple[tuple[str, ...], int]) -> bool:
    """Whether the cores as they are keep every promise on a seed of these shapes."""
    shapes, seed = tried
    return run_seed(seed, shapes=shapes).ok


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helios_ray.simulation.mutants")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seeds", type=int, default=MOST_SEEDS, help="at most, per mutant")
    parser.add_argument("--only", help="plant this one")
    options = parser.parse_args(arguments)
    mutants = [m for m in every_mutant() if options.only in (None, m.name)]
    if not mutants:
        parser.error(f"no mutant is called {options.only!r}")
    return run(mutants, options.seeds, options.processes)


def run(mutants: list[Mutant], most_seeds: int, processes: int) -> int:
    """Plant each mutant; return the exit code."""
    began = time.monotonic()
    caught: dict[str, int] = {}
    tried: set[tuple[tuple[str, ...], int]] = set()
    with ProcessPoolExecutor(processes) as pool:
        hunts = [pool.submit(hunt, m.name, most_seeds) for m in mutants]
        for mutant, found in zip(mutants, hunts, strict=True):
            name, seed, how = found.result()
            print(f"{name}: {mutant.breaks}")
            if seed is None:
                print(f"  SURVIVED {most_seeds} seeds", flush=True)
                continue
            caught[name] = seed
            tried.update((mutant.shapes, n) for n in range(seed + 1))
            print(f"  caught by seed {seed}: {how[:110]}", flush=True)
        sound = list(pool.map(passes, sorted(tried), chunksize=4))
    print(f"without a mutant, {sum(sound)} of {len(sound)} tried seeds keep every promise")
    print(f"took {time.monotonic() - began:.0f} s")
    print(f"mutants: planted={len(mutants)} caught={len(caught)}")
    return 0 if all(sound) and len(caught) == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
