"""examples/notebook.ipynb runs from top to bottom, kills an actor, and sees no difference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[3] / "examples" / "notebook.ipynb"


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute"),
            *("--output-dir", str(tmp_path), str(NOTEBOOK)),
        ],
        env={
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "HELIOS_KEY_FILE": str(tmp_path / "keys.json"),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    cells = json.loads((tmp_path / NOTEBOOK.name).read_text())["cells"]
    said = "".join(
        "".join(output.get("text", ()))
        for cell in cells
        for output in cell.get("outputs", ())
        if output["output_type"] == "stream"
    )
    assert "epoch 1 -> 2" in said
    assert "20,000 rows, 1 restart" in said
    assert "identical: nothing lost, nothing counted twice" in said


def test_the_notebook_is_stored_without_results() -> None:
    # What stands in the repository was run by nobody in particular.
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
