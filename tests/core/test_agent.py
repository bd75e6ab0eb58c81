from __future__ import annotations

import pytest
import torch

from cga_lightning import Bipartite, Complete, Ring
from cga_lightning.core import Agent


def agent_on(topology, rank: int = 0) -> Agent:
    return Agent(rank, topology, torch.arange(4.0), lambda at: 2 * at)


@pytest.mark.parametrize("topology", [Ring(2), Ring(5), Complete(4), Bipartite(6)], ids=repr)
def test_weights_are_the_row_of_the_mixing_matrix(topology) -> None:
    for rank in range(topology.agents):
        agent = agent_on(topology, rank)
        assert sorted(agent.weights) == sorted([rank, *agent.neighbors])
        assert sum(agent.weights.values()) == pytest.approx(1)


def test_mixing_leaves_the_buffer_that_neighbors_may_read() -> None:
    agent = agent_on(Ring(3))
    before, copy = agent.params, agent.params.clone()
    agent.mix({1: torch.ones(4), 2: torch.full((4,), 2.0)})
    assert torch.equal(before, copy)
    torch.testing.assert_close(agent.params, (copy + 3) / 3)


def test_a_mix_that_is_taken_back_leaves_the_model_as_it_was() -> None:
    agent = agent_on(Ring(3))
    for _ in range(3):
        before, copy = agent.params, agent.params.clone()
        agent.mix({1: torch.ones(4), 2: torch.full((4,), 2.0)})
        assert torch.equal(before, copy)
        agent.params = before


def test_the_own_gradient_is_not_there_before_it_is_computed() -> None:
    agent = agent_on(Ring(3))
    with pytest.raises(RuntimeError, match="after the first exchange"):
        _ = agent.grad
    agent.grad = agent.gradient(at=torch.ones(4))
    assert torch.equal(agent.grad, torch.full((4,), 2.0))
