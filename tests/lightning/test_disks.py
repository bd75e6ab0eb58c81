"""Nodes without a shared disk keep all that they go on from, and no more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.timeout(280), pytest.mark.skipif(os.geteuid() != 0, reason="needs mount namespaces")]


def run(folder, what):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tests.lightning.disks_script", str(folder), what]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 0
    return [(folder / f"{what}{node}").read_text() for node in range(2)]


def test_resume_from_own_disks(tmp_path):
    run(tmp_path, "half")
    for node in range(2):
        disk = tmp_path / f"disk{node}"
        names = {path.name for path in disk.iterdir()}
        assert names == {"epoch=1.ckpt", "epoch=1.ckpt.agents", "last.ckpt", "last.ckpt.agents"}, "of each the last"
        assert [path.name for path in (disk / "last.ckpt.agents").iterdir()] == [f"0000{node}.pt"]
    assert run(tmp_path, "resumed") == run(tmp_path, "whole")
