"""Planted bugs: the simulator is not blind, and leaves no bug behind."""

from __future__ import annotations

import pytest

from helios_ray.simulation.mutants import Mutant, every_mutant
from helios_ray.simulation.mutants.__main__ import run
from helios_ray.simulation.run import run_seed

MUTANTS = {m.name: m for m in every_mutant()}


def test_there_are_enough_of_them_and_each_says_what_it_breaks() -> None:
    assert len(every_mutant()) >= 14
    assert len(MUTANTS) == len(every_mutant())
    for mutant in MUTANTS.values():
        assert mutant.breaks.startswith(("Rule", "Channels"))
        assert mutant.breaks.endswith(".")


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_mutant_is_planted_for_the_length_of_a_block_and_no_longer(name: str) -> None:
    mutant = MUTANTS[name]
    before = vars(mutant.owner)[mutant.attribute]
    with mutant.planted():
        assert vars(mutant.owner)[mutant.attribute] is not before
    assert vars(mutant.owner)[mutant.attribute] is before


def first_seed(mutant: Mutant, most: int) -> int | None:
    with mutant.planted():
        seeds = range(most)
        return next((n for n in seeds if not run_seed(n, shapes=mutant.shapes).ok), None)


@pytest.mark.parametrize(
    "name",
    [
        "commit-before-manifest",
        "retry-means-done",
        "one-pending-slot",
        "leftovers-kept",
        "timers-lost",
        "requests-lost",
        "watermark-overtakes",
        "late-rows-vanish",
    ],
)
def test_the_coarse_ones_show_within_a_few_seeds(name: str) -> None:
    seed = first_seed(MUTANTS[name], 20)
    assert seed is not None
    assert run_seed(seed, shapes=MUTANTS[name].shapes).violations == ()


def test_the_hunt_reports_what_it_planted_and_caught(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([MUTANTS["commit-before-manifest"]], most_seeds=40, processes=1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "mutants: planted=1 caught=1"
    assert "caught by seed" in lines[1]


def test_a_mutant_that_survives_fails_the_hunt(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([MUTANTS["restore-unchecked"]], most_seeds=1, processes=1) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "mutants: planted=1 caught=0"
