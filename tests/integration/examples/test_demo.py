"""examples/demo.py: the verdict is computed, and on the real input it is a good one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

DEMO = Path(__file__).parents[3] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def flights(demo: ModuleType) -> pa.Table:
    table = demo.departures()
    assert table.num_rows == demo.FLIGHTS == 336_776
    return table.slice(0, 2_000)


def carriers_of(flights: pa.Table) -> pa.Table:
    """What the job says per departure, computed row by row."""
    totals: dict[str, tuple[int, int, int | None]] = {}
    rows = []
    for row in flights.select(["carrier", "distance", "arr_delay"]).to_pylist():
        n, miles, worst = totals.get(row["carrier"], (0, 0, None))
        delays = [d for d in (worst, row["arr_delay"]) if d is not None]
        totals[row["carrier"]] = n + 1, miles + row["distance"], max(delays, default=None)
        rows.append((row["carrier"], *totals[row["carrier"]]))
    columns = list(zip(*rows, strict=True))
    return pa.table(
        {
            "carrier": pa.array(columns[0]),
            "flights": pa.array(columns[1], pa.int64()),
            "miles": pa.array(columns[2], pa.int64()),
            "worst": pa.array(columns[3], pa.int64()),
        }
    )


def routes_of(flights: pa.Table) -> pa.Table:
    plain = flights.group_by(["origin", "dest"]).aggregate(
        [([], "count_all"), ("arr_delay", "count"), ("arr_delay", "mean"), ("arr_delay", "max")]
    )
    return plain.rename_columns(["origin", "dest", "flights", "arrived", "mean_delay", "worst"])


def verdict(
    demo: ModuleType, place: Path, flights: pa.Table, carriers: pa.Table, routes: pa.Table
) -> tuple[int, int, bool]:
    for name, table in (("carriers", carriers), ("routes", routes)):
        (place / name).mkdir()
        pq.write_table(table, place / name / "part.parquet")
    lost, duplicated, differences = demo.compare(flights, place)
    return lost, duplicated, bool(differences)


def test_the_right_output_is_called_identical(
    demo: ModuleType, flights: pa.Table, tmp_path: Path
) -> None:
    right = carriers_of(flights), routes_of(flights)
    assert verdict(demo, tmp_path, flights, *right) == (0, 0, False)


def test_a_row_that_is_missing_is_lost_and_one_that_is_there_twice_duplicated(
    demo: ModuleType, flights: pa.Table, tmp_path: Path
) -> None:
    carriers = carriers_of(flights)
    broken = pa.concat_tables([carriers.slice(0, 100), carriers.slice(101), carriers.slice(7, 2)])
    lost, duplicated, _ = verdict(demo, tmp_path, flights, broken, routes_of(flights))
    assert (lost, duplicated) == (1, 2)


@pytest.mark.parametrize(("times", "expected"), [(0, (1, 0)), (2, (0, 1))])
def test_a_flight_that_is_not_counted_once_shows(
    demo: ModuleType, flights: pa.Table, tmp_path: Path, times: int, expected: tuple[int, int]
) -> None:
    # The job read this flight `times` times: every later count of its carrier is shifted.
    read = [flights.slice(0, 500), *[flights.slice(500, 1)] * times, flights.slice(501)]
    wrong = carriers_of(pa.concat_tables(read))
    lost, duplicated, different = verdict(demo, tmp_path, flights, wrong, routes_of(flights))
    assert (lost, duplicated) == expected
    assert different


@pytest.mark.parametrize("column", ["flights", "arrived", "worst"])
def test_a_route_with_one_wrong_number_is_different(
    demo: ModuleType, flights: pa.Table, tmp_path: Path, column: str
) -> None:
    routes = routes_of(flights)
    first = pa.array([1] + [0] * (routes.num_rows - 1), pa.int64())
    at = routes.column_names.index(column)
    wrong = routes.set_column(at, column, pc.add(routes[column], first))
    assert verdict(demo, tmp_path, flights, carriers_of(flights), wrong) == (0, 0, True)


def test_a_null_that_became_a_number_is_different(
    demo: ModuleType, flights: pa.Table, tmp_path: Path
) -> None:
    nowhere = flights.set_column(
        flights.column_names.index("arr_delay"),
        "arr_delay",
        pc.if_else(pc.equal(flights["dest"], "IAH"), None, flights["arr_delay"]),
    )
    routes = routes_of(nowhere)
    assert routes["mean_delay"].null_count > 0
    filled = routes.set_column(
        routes.column_names.index("mean_delay"), "mean_delay", routes["mean_delay"].fill_null(0.0)
    )
    assert verdict(demo, tmp_path, nowhere, carriers_of(nowhere), filled) == (0, 0, True)


def test_a_name_in_plain_text_is_found(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "leak").write_bytes(b"\x00\x01carrier\x02")
    state = {"aggregate": pa.table({"carrier": ["UA"]})}
    monkeypatch.setattr("helios_ray.checkpoint.read_state", lambda *_, **__: state)
    assert demo.inspect(tmp_path) == ["'carrier' stands in the checkpoints in plain text"]


def test_two_kills_in_the_middle_change_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *told, last = done.stdout.splitlines()
    assert re.fullmatch(
        r"demo: flights=336776 kills=2 checkpoints=\d+ lost=0 duplicated=0 result=identical", last
    )
    assert sum("recovered" in line for line in told) == 2
