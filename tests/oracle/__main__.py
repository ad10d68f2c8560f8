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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeAlias

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from helios_ray import JobResult, PlanWarning, StreamExecutionEnvironment
from helios_ray.checkpoint import (
    CheckpointConfig,
    CheckpointConfigWarning,
    CheckpointStorage,
    EncryptionConfig,
    FileKeyProvider,
)
from helios_ray.errors import HeliosError
from tests.oracle import queries as _queries  # noqa: F401 - registers them
from tests.oracle.compare import differences
from tests.oracle.data import Data, prepare
from tests.oracle.examples import Example
from tests.oracle.examples import found as examples
from tests.oracle.query import QUERIES, Query

SHOWN = 3

Compared: TypeAlias = list[tuple[str, int, list[str]]]
"""Of each answer of a job: its name, its rows, and where it differs."""


@dataclass(slots=True)
class Tally:
    """What the last line says."""

    queries: int = 0
    rows: int = 0
    mismatches: int = 0

    def __str__(self) -> str:
        return f"oracle: queries={self.queries} rows={self.rows} mismatches={self.mismatches}"

    def add(self, compared: Compared, seconds: float) -> None:
        """Note what one job gave and print it."""
        for name, rows, found in compared:
            self.queries += 1
            self.rows += rows
            self.mismatches += len(found)
            verdict = f"{len(found)} MISMATCHES" if found else "same"
            print(f"{name:42} {rows:>8} rows  {verdict}  {seconds:.1f} s", flush=True)
            for line in found[:SHOWN]:
                print(f"    {line}")


def environment(directory: Path, parallelism: int) -> StreamExecutionEnvironment:
    """One with checkpoints twice a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointConfigWarning)
        checkpoints = CheckpointConfig(
            interval=timedelta(milliseconds=500),
            storage=CheckpointStorage.local(str(directory / "checkpoints")),
            encryption=EncryptionConfig(key_provider=FileKeyProvider(directory / "keys.json")),
        )
    env = StreamExecutionEnvironment().with_parallelism(parallelism)
    return env.with_checkpoint_config(checkpoints).build()


def execute(env: StreamExecutionEnvironment, name: str) -> JobResult:
    """Run a described job to its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlanWarning)
        return env.execute(name.replace("_", "-"), progress=False)


def answer(query: Query, data: Data, directory: Path, parallelism: int) -> Compared:
    """Run one query as a job and compare."""
    env = environment(directory, parallelism)
    query.build(env, data).collect(uid="answer")
    streamed = execute(env, query.name).collect("answer")
    batch = data.con.sql(query.sql).to_arrow_table()
    return [(query.name, streamed.num_rows, differences(streamed, batch, query.near))]


def rerun(example: Example, directory: Path) -> Compared:
    """Run one example and compare each of its sinks."""
    env = environment(directory, 2)
    example.build(env)
    result = execute(env, f"example_{example.name}")
    compared = []
    for uid, batch in example.batch():
        streamed = result.collect(uid)
        name = f"{example.name}: {uid}"
        compared.append((name, streamed.num_rows, differences(streamed, batch)))
    return compared


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
    rng = random.Random(seed)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="helios-oracle-") as scratch, ray_of_our_own():
        directory = Path(scratch)
        data = prepare(directory / "data", seed)
        jobs: list[tuple[str, Callable[[], Compared]]] = [
            (name, partial(answer, query, data, directory, rng.choice((1, 2, 3))))
            for name, query in sorted(QUERIES.items())
        ]
        jobs += [(e.name, partial(rerun, e, directory)) for e in examples()]
        for name, job in jobs:
            if options.only not in name:
                continue
            started = time.monotonic()
            try:
                compared = job()
            except HeliosError as error:
                compared = [(name, 0, [f"{type(error).__name__}: {error}"])]
            tally.add(compared, time.monotonic() - started)
    print(tally)
    return 1 if tally.mismatches or not tally.queries else 0


if __name__ == "__main__":
    sys.exit(main())
