"""``python -m tests.oracle [NAME…]``: see the package's docstring.

Prints a line per query, and last of all the figure. Ends with 1 if a row differs.

    --seed N         the order in which rows arrive, and how wide each job runs
    --only WORD      queries whose name holds WORD
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from helios_ray import PlanWarning, StreamExecutionEnvironment
from helios_ray.checkpoint import CheckpointConfig, CheckpointConfigWarning, CheckpointStorage
from helios_ray.errors import HeliosError
from tests.oracle import queries as _queries  # noqa: F401 - registers them
from tests.oracle.compare import differences
from tests.oracle.data import Data, prepare
from tests.oracle.query import QUERIES, Query

SHOWN = 3


@dataclass(slots=True)
class Tally:
    """What the last line says."""

    queries: int = 0
    rows: int = 0
    mismatches: int = 0

    def __str__(self) -> str:
        return f"oracle: queries={self.queries} rows={self.rows} mismatches={self.mismatches}"

    def add(self, name: str, rows: int, found: list[str], seconds: float) -> None:
        """Note one comparison and print it."""
        self.queries += 1
        self.rows += rows
        self.mismatches += len(found)
        verdict = f"{len(found)} MISMATCHES" if found else "same"
        print(f"{name:42} {rows:>8} rows  {verdict}  {seconds:.1f} s", flush=True)
        for line in found[:SHOWN]:
            print(f"    {line}")


def run(query: Query, data: Data, directory: Path, parallelism: int) -> tuple[int, list[str]]:
    """Run one query as a job and compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointConfigWarning)
        checkpoints = CheckpointConfig(
            interval=timedelta(milliseconds=500),
            storage=CheckpointStorage.local(str(directory / "checkpoints")),
        )
    env = StreamExecutionEnvironment().with_parallelism(parallelism)
    env.with_checkpoint_config(checkpoints)
    query.build(env, data).collect(uid="answer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlanWarning)
        streamed = env.execute(query.name.replace("_", "-"), progress=False).collect("answer")
    batch = data.con.sql(query.sql).to_arrow_table()
    return streamed.num_rows, differences(streamed, batch, query.near)


@contextlib.contextmanager
def ray_of_our_own() -> Iterator[None]:
    """Two CPUs wide; gone afterwards."""
    import ray

    # Paths of Unix sockets may be 107 bytes long.
    directory = tempfile.mkdtemp(prefix="hr-")
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        object_store_memory=400 << 20, _temp_dir=directory,
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="the run to have again")
    parser.add_argument("--only", default="", help="queries whose name holds this")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}")
    logging.getLogger("helios_ray").setLevel(logging.ERROR)
    chosen = [q for name, q in sorted(QUERIES.items()) if options.only in name]
    rng = random.Random(seed)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="helios-oracle-") as scratch, ray_of_our_own():
        data = prepare(Path(scratch) / "data", seed)
        for query in chosen:
            started = time.monotonic()
            try:
                rows, found = run(query, data, Path(scratch), rng.choice((1, 2, 3)))
            except HeliosError as error:
                rows, found = 0, [f"{type(error).__name__}: {error}"]
            tally.add(query.name, rows, found, time.monotonic() - started)
    print(tally)
    return 1 if tally.mismatches or not tally.queries else 0


if __name__ == "__main__":
    sys.exit(main())
