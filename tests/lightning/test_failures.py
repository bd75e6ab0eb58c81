"""An agent that dies, raises or stalls ends the run everywhere, soon, with one message that says where to look."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TIMEOUT = 5.0

pytestmark = pytest.mark.timeout(280)


def run(start_method, event, folder="checkpoints"):
    """Return code, when it ended, and the lines of stderr with the seconds after the event at which they came.

    No process is left behind: the last one would keep stderr open, and this waits for its end.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    arguments = [start_method, event, str(TIMEOUT), str(folder)]
    command = [sys.executable, "-u", "-m", "tests.lightning.failure_script", *arguments]
    lines, begin = [], None
    options = {"stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment, "start_new_session": True}
    with subprocess.Popen(command, **options) as process:
        for line in process.stderr:
            now = time.monotonic()
            if line.startswith("failing"):
                begin = float(line.split()[1])
            lines.append((0.0 if begin is None else now - begin, line))
        ended = time.monotonic() - begin
    return process.returncode, ended, lines


def when(lines, text):
    """When the first line that matches came."""
    times = [seconds for seconds, line in lines if re.search(text, line)]
    assert times, "".join(line for _, line in lines)
    return times[0]


# The model of a failing agent may have left it, or not.
EXCHANGE = r"'(models|cross_gradients)' with its neighbor 1 at step 2"
LOST = f"could not exchange {EXCHANGE}"
WAITED = f"has waited 1 s to exchange {EXCHANGE}"
SPAWN, POPEN = (pytest.param(name, marks=pytest.mark.slow) for name in ("spawn", "popen"))
RAISED = "the data of agent 1 is gone"


@pytest.mark.parametrize(
    ("start_method", "event", "message"),
    [
        ("fork", "killed", LOST),
        ("fork", "raising", RAISED),
        ("popen", "killed", LOST),
        pytest.param("popen", "raising", RAISED, marks=pytest.mark.slow),
        pytest.param("spawn", "killed", LOST, marks=pytest.mark.slow),
        pytest.param("spawn", "raising", RAISED, marks=pytest.mark.slow),
    ],
)
def test_a_dead_agent(start_method, event, message):
    code, ended, lines = run(start_method, event)
    assert code != 0
    assert when(lines, message) < TIMEOUT
    assert ended < TIMEOUT + 10


@pytest.mark.parametrize("start_method", ["fork", "popen", SPAWN])
def test_a_stalled_agent(start_method):
    code, ended, lines = run(start_method, "stalled")
    assert code != 0
    assert when(lines, WAITED) < TIMEOUT
    assert when(lines, LOST) < TIMEOUT + 10
    assert when(lines, r"\(timeout 5 s\)") < TIMEOUT + 10
    assert ended < TIMEOUT + 10


@pytest.mark.parametrize("start_method", ["fork", SPAWN, POPEN])
@pytest.mark.parametrize("event", ["interrupted", "interrupted alone"])
def test_ctrl_c_leaves_a_checkpoint(start_method, event, tmp_path):
    """Also when the signal reaches the main process alone."""
    code, ended, lines = run(start_method, event, tmp_path)
    assert code == 1 and when(lines, "Detected KeyboardInterrupt") < 20
    assert ended < 40
    saved = torch.load(tmp_path / "on_exception.ckpt", weights_only=False)
    assert saved["global_step"] == 2 and "net.0.weight" in saved["state_dict"]


def test_a_late_agent():
    code, _, lines = run("fork", "late")
    assert code == 0 and when(lines, "finished") > 3
    assert when(lines, WAITED) < TIMEOUT
