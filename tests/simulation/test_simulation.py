"""The simulator: no promise is broken, runs replay exactly, and misfortune really happens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from helios_ray.simulation.__main__ import main
from helios_ray.simulation.faults import KINDS, FaultPlan
from helios_ray.simulation.plans import SHAPES
from helios_ray.simulation.run import run_seed

SEEDS = range(300)
"""Always the same, and enough for everything to happen; ``make simulate`` runs thousands."""


@pytest.mark.timeout(400)
def test_no_promise_is_broken_though_every_misfortune_strikes_jobs_of_every_shape() -> None:
    runs = [run_seed(seed) for seed in SEEDS]
    assert {v.seed: v.violations for v in runs if v.violations} == {}
    thrown = sum((v.faults for v in runs), Counter[str]())
    assert {kind for kind in KINDS if thrown[kind] == 0} == set()
    assert thrown.total() > 30 * len(SEEDS)
    shapes = Counter(v.shape for v in runs)
    assert {shape for shape in SHAPES if shapes[shape] < 3} == set()
    ends = sum((v.statuses for v in runs), Counter[str]())
    assert ends["finished"] == len(SEEDS)
    assert {end for end in ("stopped", "cancelled", "failed", "fenced") if not ends[end]} == set()


def test_without_faults_a_job_finishes_at_its_first_attempt() -> None:
    for seed in range(20):
        verdict = run_seed(seed, FaultPlan())
        assert verdict.violations == ()
        assert verdict.faults == Counter()
        assert verdict.statuses == Counter({"finished": 1})


DIGESTS = """
from helios_ray.simulation.run import run_seed
for seed in (3, 11, 27, 40):
    print(run_seed(seed).digest)
"""


def test_a_seed_replays_exactly_in_another_process_with_another_hash_seed() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "4711")
    ]
    assert runs[0] == runs[1]
    digests = runs[0].split()
    assert digests == [run_seed(s).digest for s in (3, 11, 27, 40)]
    assert len(set(digests)) == 4


def test_a_trace_tells_what_happened_and_changes_nothing() -> None:
    told: list[str] = []
    assert run_seed(5, trace=told.append).digest == run_seed(5).digest
    assert any("durable: manifest" in line for line in told)
    assert any("commit helios:simulated:" in line for line in told)


def test_the_command_line_ends_with_its_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "3", "--first", "7", "--processes", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    thrown = sum(run_seed(seed).faults.total() for seed in (7, 8, 9))
    assert last == f"simulation: seeds=3 faults={thrown} violations=0"


def test_a_replay_shows_the_run_within_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "7", "--trace", "--trace-lines", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("lines before these; --trace-lines shows more")
    assert f"digest: {run_seed(7).digest}" in lines
    assert lines[-1].startswith("simulation: seeds=1 faults=")
    assert len(lines) < 25
