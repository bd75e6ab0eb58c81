"""The examples run as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.py"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(QUICKSTART.parents[1])}
    command = [sys.executable, str(QUICKSTART), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("strategy", ["simulated", "cga_fork"])
def test_quickstart_prints_a_table_and_draws_the_curves(strategy: str, tmp_path: Path):
    result = run("--steps", "2", "--agents", "3", "--strategy", strategy, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = [line.strip("│ ").split(" │ ")[0].strip() for line in result.stdout.splitlines() if line.startswith("│")]
    assert rows == [
        *("agent 0", "agent 1", "agent 2", "mean of the agents", "consensus model"),
        *("gradients per agent and step", "kB sent per agent and step"),
    ]
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert "plot-10" in (tmp_path / "quickstart.html").read_text()
    assert "Warning" not in result.stderr


def test_quickstart_says_how_to_get_mnist(tmp_path: Path):
    result = run("--data-root", str(tmp_path), cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("There is no MNIST in") and "Pass --download" in result.stderr
