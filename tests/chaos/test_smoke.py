"""The chaos run itself, short: three kills on real Ray, PostgreSQL and S3."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_three_kills_lose_nothing_and_repeat_nothing() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--kills", "3", "--seed", "11"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1].startswith(
        "chaos: kills=3 lost=0 duplicated=0 recovery_p50_s="
    )
