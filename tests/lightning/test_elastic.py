"""With torchrun --max-restarts a run that has lost an agent comes back from its last checkpoint by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(400)
def test_a_run_comes_back_as_often_as_it_may(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "tests.lightning.elastic_script"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, timeout=380)
    assert done.returncode == 0
    assert [(tmp_path / f"killed{attempt}").exists() for attempt in range(2)] == [True, True]
    assert [(tmp_path / f"done{rank}").read_text() for rank in range(2)] == ["16", "16"]
