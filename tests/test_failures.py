"""An agent that dies, raises or stalls ends the run everywhere, soon, with one message that says where to look."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TIMEOUT = 10.0
GRACE = 30.0  # that multiprocessing gives a process which does not react to SIGTERM

pytestmark = pytest.mark.timeout(200)


def run(start_method, event):
    """Return code, and the lines of stderr with the seconds after the event at which they came."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-u", "-m", "tests.failure_script", start_method, event, str(TIMEOUT)]
    lines, begin = [], None
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        for line in process.stderr:
            now = time.monotonic()
            begin = float(line.split()[1]) if line.startswith("failing") else begin
            lines.append((0.0 if begin is None else now - begin, line))
        ended = time.monotonic() - begin
    return process.returncode, ended, lines


def when(lines, text):
    """When the first line that matches came."""
    times = [seconds for seconds, line in lines if re.search(text, line)]
    assert times, "".join(line for _, line in lines)
    return times[0]


# The model of a failing agent may have left it, or not.
EXCHANGE = "'(models|cross_gradients)' with its neighbor 1 at step 2"
LOST = f"could not exchange {EXCHANGE}"
WAITED = f"has waited 1 s to exchange {EXCHANGE}"


@pytest.mark.parametrize("start_method", ["fork", "popen"])
@pytest.mark.parametrize(
    ("event", "message"), [("killed", LOST), ("raising", "the data of agent 1 is gone")], ids=["killed", "raising"]
)
def test_a_dead_agent(start_method, event, message):
    code, ended, lines = run(start_method, event)
    assert code != 0
    if not (start_method == "fork" and event == "killed"):  # there the launcher is faster: "signal SIGKILL"
        assert when(lines, message) < TIMEOUT
    assert ended < TIMEOUT + 10


@pytest.mark.slow  # waits for timeouts of three parties, and was seen to fail beside other work
def test_a_stalled_agent():
    code, ended, lines = run("fork", "stalled")
    assert code != 0
    assert 0.5 < when(lines, WAITED) < TIMEOUT
    assert when(lines, LOST) < TIMEOUT + 10
    assert when(lines, r"\(timeout 10 s\)") < TIMEOUT + 10
    assert ended < TIMEOUT + 10 + GRACE


def test_a_late_agent():
    code, _, lines = run("fork", "late")
    assert code == 0 and when(lines, "finished")
    assert when(lines, WAITED) < TIMEOUT
