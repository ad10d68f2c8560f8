"""What README.md shows works as it stands there, and what it and ARCHITECTURE.md name exists."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import helios_ray
from helios_ray import errors
from helios_ray.simulation.mutants import every_mutant

REPOSITORY = Path(__file__).parents[3]
README = (REPOSITORY / "README.md").read_text()
ARCHITECTURE = (REPOSITORY / "ARCHITECTURE.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_of_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks("python")))
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={
            **os.environ,
            "HELIOS_KEY_FILE": str(tmp_path / "keys.json"),
            "PYTHONPATH": str(REPOSITORY),
            "RAY_ADDRESS": "local",
            "RAY_AUTH_MODE": "disabled",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = next(block for block in blocks("text") if block.startswith("finished"))
    assert shown in done.stdout


def test_the_first_example_is_short() -> None:
    first = blocks("python")[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize("text", [README, ARCHITECTURE], ids=["README", "ARCHITECTURE"])
def test_every_command_is_a_target_of_the_makefile(text: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"make ([a-z][a-z0-9-]*)(?=[ `])", text))
    assert named
    assert named <= targets


@pytest.mark.parametrize("text", [README, ARCHITECTURE], ids=["README", "ARCHITECTURE"])
def test_every_exception_and_file_that_is_named_exists(text: str) -> None:
    for name in re.findall(r"`(\w+Error)`", text):
        assert hasattr(errors, name), name
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (REPOSITORY / link).exists(), link


def test_every_module_and_member_that_the_architecture_names_exists() -> None:
    # `protocol/attempt.py`, `protocol/attempt.Attempt.on_written`, `tests/unit/…/test_x.py`
    package = Path(helios_ray.__file__).parent
    paths = re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]*(?:\.py)?)`", ARCHITECTURE)
    members = re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+)((?:\.[A-Za-z_]\w*)+)`", ARCHITECTURE)
    members = [(path, member) for path, member in members if member != ".py"]
    assert len(paths) > 20
    assert len(members) > 20
    for path in paths:
        assert (package / path).exists() or (REPOSITORY / path).exists(), path
    for path, member in members:
        found: object = importlib.import_module("helios_ray." + path.replace("/", "."))
        for part in member.strip(".").split("."):
            assert hasattr(found, part), f"{path}{member}"
            found = getattr(found, part)


def test_every_mutant_that_the_architecture_names_is_planted() -> None:
    rules = [line for line in ARCHITECTURE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rules) == 18
    named = {name for line in rules for name in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", line)}
    assert named
    assert named <= {mutant.name for mutant in every_mutant()}
