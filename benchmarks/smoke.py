"""A first honest baseline: ``make bench-smoke``.

Measured, each several times, medians quoted:

- rows/s of source -> filter -> key_by -> aggregate -> sink at parallelism 1 and 2
- age of rows at 10,000 rows/s through the same shape (p50, p99), checkpoints every second
- duration of a checkpoint and latency of its commit in that job
- what two-phase commit adds to writing a batch to PostgreSQL, by batch size
- rows/s of windows, joins and process functions, as jobs and per core (``operators.py``)

Results go to ``benchmarks/results/smoke.json``; the last line repeats the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.operators import OPERATORS, Measured, per_core
from benchmarks.pipelines import ArrivalSink, CountingSink, ages_ms, monotonic_us
from helios_ray import StreamExecutionEnvironment, col
from helios_ray.aggregates import count, max_, sum_
from helios_ray.checkpoint import CheckpointConfig, CheckpointStorage
from helios_ray.connectors.base import Committable, SinkContext
from helios_ray.connectors.generator import DataGenSource
from helios_ray.connectors.postgres import PostgresSink
from helios_ray.testing.servers import PostgresServer

KEYS = 10_000


def make_bids(n: Any) -> dict[str, Any]:
    """Row n, as a function of n: a scattered key, a price."""
    key = (n * 7919) % KEYS
    return {"n": n, "key": key, "price": (n * 31) % 1000}


def make_stamped(n: Any) -> dict[str, Any]:
    """The same with the time at which it was made."""
    return {**make_bids(n), "made": np.full(len(n), monotonic_us())}


def environment(directory: Path, parallelism: int, interval: float) -> StreamExecutionEnvironment:
    """An environment with encrypted checkpoints on local disk."""
    config = CheckpointConfig(
        interval=timedelta(seconds=interval),
        storage=CheckpointStorage.local(directory / "checkpoints"),
    )
    return (
        StreamExecutionEnvironment()
        .with_checkpoint_config(config)
        .with_parallelism(parallelism)
        .build()
    )


def throughput(root: Path, rows: int, parallelism: int) -> dict[str, float]:
    """Rows per second, from the first sign of running to the end."""
    directory = Path(tempfile.mkdtemp(dir=root))
    env = environment(directory, parallelism, 10)
    (
        env.from_source(DataGenSource(make_bids, count=rows), uid="bids")
        .filter(col("price") >= 100, uid="dear")
        .key_by("key")
        .aggregate(bids=count(), total=sum_("price"), top=max_("price"), uid="per-key")
        .sink_to(CountingSink(directory), uid="out")
    )
    seconds, written = run(env, directory, "throughput", rows)
    assert written > 0, "the sink saw nothing"
    return {"rows_per_s": rows / seconds, "seconds": seconds}


def operator_job(root: Path, name: str, measured: Measured) -> dict[str, float]:
    """Rows per second of a job around one operator."""
    directory = Path(tempfile.mkdtemp(dir=root))
    env = environment(directory, 1, 10)
    measured.describe(env, measured.rows).sink_to(CountingSink(directory), uid="out")
    seconds, written = run(env, directory, name.replace("_", "-"), measured.rows)
    assert written > 0, "the sink saw nothing"
    return {"rows_per_s": measured.rows / seconds, "rows_out": written, "seconds": seconds}


def run(
    env: StreamExecutionEnvironment, directory: Path, name: str, rows: int
) -> tuple[float, int]:
    """Run a bounded job; seconds from the first sign of running to the end, and rows out."""
    handle = env.execute_async(name)
    while handle.status().value in ("created", "claiming", "restoring", "deploying", "resolving"):
        time.sleep(0.002)
    begun = time.perf_counter()
    result = handle.wait(timedelta(minutes=10))
    seconds = time.perf_counter() - begun
    written = sum(json.loads(p.read_text())["rows"] for p in directory.glob("*.json"))
    assert result.report.rows_read == rows, (result.report.rows_read, rows)
    return seconds, written


def latency(root: Path, rate: int, seconds: int) -> dict[str, float]:
    """Ages of rows at a fixed rate, and the checkpoints of that job."""
    directory = Path(tempfile.mkdtemp(dir=root))
    env = environment(directory, 1, 1)
    (
        env.from_source(
            DataGenSource(make_stamped, rows_per_second=rate, count=rate * seconds), uid="bids"
        )
        .filter(col("price") >= 0, uid="all")
        .key_by("key")
        .aggregate(n=max_("n"), made=max_("made"), bids=count(), uid="per-key")
        .sink_to(ArrivalSink(directory), uid="out")
    )
    report = env.execute_async("latency").wait(timedelta(minutes=5)).report
    ages = ages_ms(directory, rate, skip_seconds=2)
    done = [c for c in report.checkpoints if c.outcome != "failed"]
    return {
        "p50_ms": float(np.percentile(ages, 50)),
        "p99_ms": float(np.percentile(ages, 99)),
        "checkpoint_ms": 1000 * statistics.median(c.duration for c in done),
        "commit_ms": 1000 * statistics.median(c.commit_latency for c in done),
    }


def two_phase(dsn: str, rows: int, repetitions: int) -> dict[str, float]:
    """Milliseconds per batch: written and committed at once, or prepared and committed."""
    import psycopg

    sink = PostgresSink(dsn, table=f"two_phase_{rows}")
    context = SinkContext(job="bench", sink_uid=f"out-{rows}", subtask=0, parallelism=1, epoch=1)
    sink.open(context)
    batch = pa.record_batch(
        {"id": np.arange(rows), "data": [f"row {i}" for i in range(rows)]},
    )
    plain, both = [], []
    import adbc_driver_postgresql.dbapi as adbc

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create table plain_{rows} (id bigint, data text)")
    direct = adbc.connect(dsn, autocommit=True)
    cursor = direct.cursor()
    for number in range(1, repetitions + 1):
        begun = time.perf_counter()
        cursor.execute("begin")
        cursor.adbc_ingest(f"plain_{rows}", batch, mode="append")
        cursor.execute("commit")
        plain.append(time.perf_counter() - begun)
        transaction = context.transaction_id(number)
        begun = time.perf_counter()
        sink.begin(transaction)
        sink.write(batch)
        payload = sink.prepare()
        sink.commit_transaction(Committable(transaction=transaction, payload=payload))
        both.append(time.perf_counter() - begun)
    cursor.close()
    direct.close()
    sink.close()
    total, once = statistics.median(both), statistics.median(plain)
    return {"total_ms": total * 1000, "plain_ms": once * 1000, "overhead_ms": (total - once) * 1000}


def main() -> None:
    """Run everything; print a table, write the JSON, end with the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=12, help="of each latency run")
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    warnings.simplefilter("ignore")
    root = Path(tempfile.mkdtemp(prefix="helios-bench-"))
    os.environ["HELIOS_KEY_FILE"] = str(root / "keys.json")
    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 2),
        include_dashboard=False,
        object_store_memory=512 << 20,
        log_to_driver=False,
    )
    try:
        results = measure(root, options)
    finally:
        ray.shutdown()
        shutil.rmtree(root, ignore_errors=True)
    path = Path(__file__).parent / "results" / "smoke.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    print(summary(results))


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every figure, with its repetitions."""
    throughput(root, options.rows // 10, 1)  # warm-up: first workers, first imports
    runs: dict[str, list[dict[str, float]]] = {"p1": [], "p2": [], "latency": []}
    for repetition in range(options.repetitions):
        for parallelism in (1, 2):
            figures = throughput(root, options.rows, parallelism)
            runs[f"p{parallelism}"].append(figures)
            print(
                f"throughput p={parallelism} #{repetition + 1}: {figures['rows_per_s']:,.0f} rows/s"
            )
        figures = latency(root, 10_000, options.seconds)
        runs["latency"].append(figures)
        print(
            f"latency #{repetition + 1}: " + ", ".join(f"{k} {v:.2f}" for k, v in figures.items())
        )
    commits = {}
    with PostgresServer() as server:
        for rows in (100, 1_000, 10_000):
            commits[str(rows)] = two_phase(server.dsn, rows, 30)
            shown = ", ".join(f"{k} {v:.2f}" for k, v in commits[str(rows)].items())
            print(f"two-phase commit, {rows} rows: {shown}")
    operators: dict[str, dict[str, Any]] = {}
    for name, measured in OPERATORS.items():
        jobs = [operator_job(root, name, measured) for _ in range(options.repetitions)]
        alone = [per_core(measured) for _ in range(options.repetitions)]
        operators[name] = {"job": jobs, "per_core": alone}
        rate = statistics.median(job["rows_per_s"] for job in jobs)
        print(f"{name}: job {rate:,.0f} rows/s, per core {statistics.median(alone):,.0f} rows/s")
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
            "platform": platform.platform(),
        },
        "rows": options.rows,
        "throughput": {p: runs[p] for p in ("p1", "p2")},
        "latency_10k": runs["latency"],
        "two_phase_commit": commits,
        "operators": operators,
    }


def summary(results: dict[str, Any]) -> str:
    """The last line: medians."""

    def median(runs: list[dict[str, float]], name: str) -> float:
        return statistics.median(run[name] for run in runs)

    p1, p2 = results["throughput"]["p1"], results["throughput"]["p2"]
    latencies = results["latency_10k"]
    commits = results["two_phase_commit"]
    overhead = "/".join(f"{commits[n]['overhead_ms']:.1f}" for n in ("100", "1000", "10000"))
    cores = " ".join(
        f"{name}_per_core={statistics.median(figures['per_core']):.0f}"
        for name, figures in results["operators"].items()
    )
    return (
        f"bench-smoke: rows_per_s_p1={median(p1, 'rows_per_s'):.0f} "
        f"rows_per_s_p2={median(p2, 'rows_per_s'):.0f} "
        f"p50_ms={median(latencies, 'p50_ms'):.2f} p99_ms={median(latencies, 'p99_ms'):.2f} "
        f"checkpoint_ms={median(latencies, 'checkpoint_ms'):.1f} "
        f"two_phase_overhead_ms={overhead} {cores}"
    )


if __name__ == "__main__":
    main()
