"""The command for a first GPU runs here too, on the CPU: nothing of it may fail for another reason than the device."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

CHECK = Path(__file__).parent / "gpu" / "check.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(CHECK.parents[2])}
    command = [sys.executable, str(CHECK), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=290)


def test_every_part_runs_without_a_device(tmp_path: Path) -> None:
    done = run("--dry", "--logs", str(tmp_path))
    assert done.returncode == 0, done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(table) > 20 and all(line.count("|") == 3 for line in table)


WITHOUT_DEVICE = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")


@WITHOUT_DEVICE
def test_tests_of_which_all_are_skipped_have_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECK.parent))
    check = import_module("check")
    (tests,) = [part for part in check.parts(dry=False, build=False) if part.name == "tests"]
    passed, output = check.run(tests, CHECK.parents[2], tmp_path, 200)
    assert " skipped" in output and "no CUDA device" in output and not passed


@WITHOUT_DEVICE
def test_says_that_there_is_no_device() -> None:
    done = run()
    assert done.returncode == 1 and done.stdout.startswith("There is no CUDA device here")
