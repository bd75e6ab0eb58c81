"""SGP: the average on directed graphs, whatever the degrees."""

from __future__ import annotations

import pytest
import torch

from cga_lightning import CGA, DPSGD, SGP, DirectedRing, OnePeerExponential, Ring, Topology
from cga_lightning.core import Agent
from cga_lightning.core.communication import LocalCommunicator
from tests.quadratics import Quadratics, consensus_distance, train


class Unbalanced(Topology):
    """A directed ring with two shortcuts: some agents have more edges in than out."""

    directed = True

    def edges(self, agents: int) -> list[tuple[int, int]]:
        return [*((rank, (rank + 1) % agents) for rank in range(agents)), (0, 2), (1, 4)]


DIRECTED = [DirectedRing(5), OnePeerExponential(5), Unbalanced(5)]


@pytest.mark.parametrize("topology", [*DIRECTED, Ring(5)], ids=repr)
def test_without_gradients_all_agents_reach_the_average_of_the_start(topology: Topology) -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    x = train(problem, SGP(), topology, lr=lambda step: 0.0, steps=150)
    torch.testing.assert_close(x, problem.start.mean(0).expand_as(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("topology", [*DIRECTED, Ring(5)], ids=repr)
def test_the_sum_of_the_biased_models_moves_by_the_gradients_only(topology: Topology) -> None:
    problem, algorithm, communicator = Quadratics(5, heterogeneity=1.0), SGP(), LocalCommunicator()
    agents, lr = problem.agents(topology), 0.1
    expected = problem.start.sum(0)
    for step in range(10):
        for agent in agents:
            agent.grad = agent.gradient(at=agent.params)
            expected = expected - lr * agent.grad
        communicator.open_step(step, algorithm.exchanges)
        communicator.run([algorithm.step(agent) for agent in agents])
        for agent in agents:
            agent.params -= lr * agent.grad
        communicator.run([algorithm.after_step(agent) for agent in agents])
        for agent in agents:
            agent.step += 1
        weights = [agent.state["push_sum_weight"] for agent in agents]
        torch.testing.assert_close(sum(a.params * w for a, w in zip(agents, weights, strict=True)), expected)
        assert float(torch.cat(weights).sum()) == pytest.approx(5)
    assert (max(weights) - min(weights) > 0.5) == isinstance(topology, Unbalanced)


@pytest.mark.parametrize("topology", DIRECTED, ids=repr)
def test_the_agents_agree_on_the_optimum_of_the_sum_as_the_step_falls(topology: Topology) -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    x = train(problem, SGP(), topology, lr=lambda step: 2 / (step + 20), steps=500)
    assert consensus_distance(x) < 0.05
    assert float((x.mean(0) - problem.optimum).norm()) < 0.05


@pytest.mark.parametrize("topology", DIRECTED[:2], ids=repr)
def test_plain_gossip_averages_where_all_have_as_many_edges_in_as_out(topology: Topology) -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    DPSGD().check(topology)
    x = train(problem, DPSGD(), topology, lr=lambda step: 0.0, steps=150)
    torch.testing.assert_close(x, problem.start.mean(0).expand_as(x), atol=1e-12, rtol=0)


def test_other_graphs_are_refused() -> None:
    SGP().check(Unbalanced(5))
    with pytest.raises(ValueError, match="DPSGD\\(\\) would not reach the average on Unbalanced\\(5\\).*'sgp'|\"sgp\""):
        DPSGD().check(Unbalanced(5))
    for topology in DIRECTED:
        with pytest.raises(ValueError, match="answers those that write to it, but edges of .* have no way back"):
            CGA().check(topology)
    CGA().check(OnePeerExponential(2))


def test_neighbors_of_a_directed_graph() -> None:
    agent = Agent(1, Unbalanced(5), torch.zeros(1), lambda at: at)
    assert (agent.in_neighbors, agent.out_neighbors) == ([0], [2, 4])
    assert agent.weights == {1: pytest.approx(1 / 3), 0: pytest.approx(1 / 3)}
