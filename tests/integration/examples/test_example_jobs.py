"""The examples that are directories: each is run as its README says, in one Ray for all of them.

What a job's sinks collected is compared, row by row, with what DuckDB answers to the same
question over the finished input: ``ORACLE`` and ``tables()`` of the example. What has no such
question is computed here a second time, by other means.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from helios_ray import CheckpointConfig, CheckpointStorage
from helios_ray.checkpoint import EncryptionConfig, FileKeyProvider
from helios_ray.connectors.files import read_committed
from helios_ray.runtime.collect import read_collected

EXAMPLES = Path(__file__).parents[3] / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/main.py"))


class Run:
    """An example that was run from its command line, and what it said and left behind."""

    def __init__(self, example: ModuleType, place: Path, said: str) -> None:
        self.example = example
        self.state = place / "state"
        self.keys = place / "keys.json"
        self.said = said

    def sink(self, uid: str) -> pa.Table:
        config = CheckpointConfig(
            storage=CheckpointStorage.local(self.state),
            encryption=EncryptionConfig(key_provider=FileKeyProvider(self.keys)),
        )
        return read_collected(config, self.example.JOB, uid)

    def numbers(self) -> dict[str, str]:
        """The last line, ``name: key=value key=value``."""
        return dict(pair.split("=") for pair in self.said.splitlines()[-1].split()[1:])


@pytest.fixture
def run(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    request.getfixturevalue("ray_cluster")
    arguments = ["--state", str(tmp_path / "state"), "--key-file", str(tmp_path / "keys.json")]
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
    example = importlib.import_module(f"examples.{request.param}.main")
    example.main()
    run = Run(example, tmp_path, capsys.readouterr().out.strip())
    # The inputs are always the same: the README shows what everybody sees.
    shown = re.findall(
        rf"^```text\n({request.param}: .*)\n```$",
        (EXAMPLES / request.param / "README.md").read_text(),
        re.MULTILINE,
    )
    assert shown == run.said.splitlines()[-1:]
    return run


def example(name: str) -> Any:
    return pytest.mark.parametrize("run", [name], indirect=True)


def rows_of(table: pa.Table, names: list[str]) -> Counter[tuple[Any, ...]]:
    """The rows, without order. Floats to nine digits, as sums depend on the order of addition;
    times as instants, as Python's local times of one instant may differ."""
    columns = []
    for name in names:
        column = table[name]
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
        values = column.to_pylist()
        columns.append([round(v, 9) if isinstance(v, float) else v for v in values])
    return Counter(zip(*columns, strict=True))


def assert_the_oracle_agrees(run: Run) -> None:
    with duckdb.connect() as oracle:
        oracle.execute("SET TimeZone = 'UTC'")
        for name, table in run.example.tables().items():
            oracle.register(name, table)
        for uid, query in run.example.ORACLE.items():
            collected, answer = run.sink(uid), oracle.sql(query).to_arrow_table()
            assert collected.column_names == answer.column_names, uid
            got, expected = (rows_of(table, answer.column_names) for table in (collected, answer))
            assert expected, uid
            assert got - expected == Counter(), uid
            assert expected - got == Counter(), uid


@example("fraud_detection")
def test_every_planted_fraud_is_found_and_nothing_else(run: Run) -> None:
    assert_the_oracle_agrees(run)
    planted = run.example.scenario()[1]
    alerts = run.sink("alerts")
    found = zip(alerts["tested_by"].to_pylist(), alerts["payment"].to_pylist(), strict=True)
    assert Counter(found) == Counter(planted)
    numbers = run.numbers()
    assert int(numbers["alerts"]) == int(numbers["planted"]) == len(planted) > 20
    assert numbers["missed"] == numbers["false"] == "0"


@example("sessionization")
def test_each_click_is_in_one_visit_or_late(run: Run) -> None:
    assert_the_oracle_agrees(run)
    in_visits = pc.sum(run.sink("numbers")["clicks"]).as_py()
    assert in_visits + run.sink("late").num_rows == run.example.tables()["clicks"].num_rows
    assert run.sink("late").num_rows > 0


@example("enrichment")
def test_each_departure_is_enriched_unregistered_or_dead(run: Run) -> None:
    assert_the_oracle_agrees(run)
    flights = run.example.tables()["flights"]
    letters = [json.loads(row) for row in run.sink("dead-letters")["row"].to_pylist()]
    cancelled = flights.filter(pc.is_null(flights["departed"]))
    told = ["carrier", "flight", "tailnum", "origin", "dest"]
    assert cancelled.num_rows > 0
    assert Counter(tuple(row[name] for name in told) for row in letters) == rows_of(cancelled, told)


@example("flight_delays_by_hour")
def test_hours_days_and_worst_hours_of_a_year(run: Run) -> None:
    assert_the_oracle_agrees(run)
    days = run.sink("days")
    lengths = pc.subtract(days["window_end"].cast("int64"), days["window_start"].cast("int64"))
    hours = Counter(length / 3_600_000_000 for length in lengths.to_pylist())
    assert hours == {24: days.num_rows - 2, 23: 1, 25: 1}
    assert "Sun 10 Mar had 23 hours" in run.said
    assert "Sun 03 Nov had 25 hours" in run.said


@example("model_inference")
def test_each_flight_has_the_prediction_of_the_model(run: Run) -> None:
    predictions = read_committed(run.state / "predictions").sort_by("id")
    flights = run.example.tables()["flights"]
    assert predictions["id"].to_pylist() == list(range(flights.num_rows))
    assert predictions["flight"].to_pylist() == flights["flight"].to_pylist()
    assert len(predictions["instance"].unique()) == 2

    # The weather of the hour and the logistic function, once more, a row at a time.
    weather = {
        (row["origin"], row["time_hour"].timestamp()): row
        for row in run.example.read("weather").to_pylist()
    }
    with np.load(run.state / "model.npz") as model:
        mean, scale, weights = model["mean"], model["scale"], model["weights"]
        bias = float(model["bias"])
    for flight, said in zip(flights.to_pylist(), predictions.to_pylist(), strict=True):
        known = {**flight, **weather.get((flight["origin"], flight["time_hour"].timestamp()), {})}
        known["hour"] = flight["hour"]
        score = bias
        for i, name in enumerate(run.example.NUMBERS):
            if known.get(name) is not None:
                score += weights[i] * (known[name] - mean[i]) / scale[i]
        assert said["probability"] == pytest.approx(1 / (1 + np.exp(-score)), abs=1e-9)
    assert float(run.numbers()["accuracy"]) > 0.85


@example("iot_alerting")
def test_minutes_alerts_and_late_readings_of_the_sensors(run: Run) -> None:
    assert_the_oracle_agrees(run)
    readings = run.example.tables()["readings"].num_rows
    last: dict[tuple[Any, ...], int] = {}
    for row in run.sink("minutes").to_pylist():
        # Versions of a minute only grow.
        minute = row["sensor"], row["window_start"]
        last[minute] = max(last.get(minute, 0), row["readings"])
    assert sum(last.values()) + run.sink("too-late").num_rows == readings
    assert run.sink("minutes").num_rows > len(last)
    kinds = Counter(run.sink("alerts")["alert"].to_pylist())
    assert min(kinds[kind] for kind in ("silent", "back", "hot")) > 0


def test_every_example_is_run_here() -> None:
    tested = set(re.findall(r'^@example\("(\w+)"\)$', Path(__file__).read_text(), re.MULTILINE))
    assert tested == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_readme_says_how_to_run_it_and_names_options_that_exist(name: str) -> None:
    readme = (EXAMPLES / name / "README.md").read_text()
    program = (EXAMPLES / name / "main.py").read_text()
    assert f"python examples/{name}/main.py" in readme
    assert f"python examples/{name}/main.py" in (ast.get_docstring(ast.parse(program)) or "")
    for option in re.findall(r"`(--[a-z-]+)", readme):
        assert f'"{option}"' in program, option
