"""In a training batch agents talk to their neighbors only; so does a signal that is to end the run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import hypothesis.strategies as st
import networkx
import pytest
import torch
from hypothesis import given

from cga_lightning import FromMatrix, Ring
from cga_lightning.lightning.signals import Signal

ROOT = Path(__file__).parents[2]
AGENTS = 4
pytestmark = pytest.mark.timeout(200)


def run(what, folder):
    """The return code, and how many seconds it took."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tests.lightning.edges_script", what, str(folder)]
    begin = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, timeout=150)
    return done.returncode, time.monotonic() - begin


def test_steps_are_messages_between_neighbors(tmp_path):
    code, _ = run("calls", tmp_path)
    assert code == 0
    for rank in range(AGENTS):
        calls = torch.load(tmp_path / f"{rank}.pt")
        assert set(calls) == {(name, peer) for name in ("isend", "irecv") for peer in Ring(AGENTS).neighbors(rank)}
        # a notice, a model and a cross-gradient along every edge
        assert {count for (name, _), count in calls.items() if name == "isend"} == {3 * 21}


@pytest.mark.parametrize("agents", ["0", "2", "013"])
def test_sigterm_of_some_agents_ends_all_at_one_step(agents, tmp_path):
    """Sooner than the timeout of 60 s, in which the run would end if they waited for each other."""
    code, seconds = run(agents, tmp_path)
    ends = {int((tmp_path / f"{rank}.end").read_text()) for rank in range(AGENTS)}
    assert len(ends) == 1 and 5 < ends.pop() <= 6 + Ring(AGENTS).diameter
    assert code != 0 and seconds < 59


@st.composite
def graphs(draw):
    agents = draw(st.integers(2, 9))
    tree = [(draw(st.integers(0, rank - 1)), rank) for rank in range(1, agents)]
    ranks = st.integers(0, agents - 1)
    return agents, tree + draw(st.lists(st.tuples(ranks, ranks).filter(lambda edge: edge[0] != edge[1]), max_size=5))


@given(graphs(), st.data())
def test_all_act_at_the_same_steps_however_signals_come(graph, data):
    """As often as the agent that has got most of them, and within the diameter of the graph."""
    agents, edges = graph
    drawn = networkx.Graph()
    drawn.add_nodes_from(range(agents))
    drawn.add_edges_from(edges)
    topology, hops = FromMatrix(drawn), networkx.diameter(drawn)
    assert topology.diameter == hops
    arrivals = data.draw(st.lists(st.tuples(st.integers(0, 12), st.integers(0, agents - 1)), max_size=6))
    signals = [Signal() for _ in range(agents)]
    acted = [[] for _ in range(agents)]
    for step in range(12 + 8 * (hops + 1)):
        for rank, signal in enumerate(signals):
            if signal.due(step):
                signal.answer()
                acted[rank].append(step)
            signal.received += arrivals.count((step, rank))
            signal.take_note(step, hops)
        told = [(signal.number, signal.step) for signal in signals]
        for rank, signal in enumerate(signals):
            for neighbor in topology.neighbors(rank):
                signal.hear(*told[neighbor])
    assert all(steps == acted[0] for steps in acted)
    if arrivals:
        first = min(step for step, _ in arrivals)
        assert first <= acted[0][0] <= first + hops
    else:
        assert not acted[0]
