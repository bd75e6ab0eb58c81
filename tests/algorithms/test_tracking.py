"""Gradient tracking has no bias, gossip has one that shrinks with the step."""

from __future__ import annotations

import pytest
import torch

from cga_lightning import DPSGD, Bipartite, Complete, DirectedRing, GradientTracking, OnePeerExponential, Ring, Topology
from cga_lightning.core import LocalCommunicator, OwnGradient, StepDriver
from tests.quadratics import Quadratics, train

TOPOLOGIES = [Complete(5), Ring(5), Bipartite(5), DirectedRing(5), OnePeerExponential(5)]


def furthest(problem: Quadratics, x: torch.Tensor) -> float:
    return float((x - problem.optimum).norm(dim=1).max())


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=repr)
def test_all_agents_reach_the_optimum_of_the_sum_with_a_constant_step(topology: Topology) -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    x = train(problem, GradientTracking(), topology, lr=lambda step: 0.05, steps=800)
    assert furthest(problem, x) < 1e-5


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=repr)
def test_the_bias_of_gossip_shrinks_with_the_step(topology: Topology) -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    far, near = (
        furthest(problem, train(problem, DPSGD(), topology, lr=lambda step, lr=lr: lr, steps=round(30 / lr)))
        for lr in (0.2, 0.05)
    )
    assert far > 0.1 and near < 0.5 * far


def test_the_trackers_sum_up_to_the_gradients() -> None:
    problem, communicator, algorithm = Quadratics(5, heterogeneity=1.0), LocalCommunicator(), GradientTracking()
    agents = problem.agents(Ring(5))
    for step in range(10):
        for agent in agents:
            agent.grad = agent.gradient(at=agent.params)
        total = sum(agent.grad for agent in agents)
        communicator.open_step(step, algorithm.exchanges)
        communicator.run([algorithm.step(agent) for agent in agents])
        torch.testing.assert_close(sum(agent.grad for agent in agents), total)
        for agent in agents:
            agent.params -= 0.05 * agent.grad


def scaled(gradient: torch.Tensor) -> OwnGradient:
    """A gradient of half precision, as it is where the loss scale has fallen to 1."""
    return OwnGradient([gradient], lambda: gradient, torch.amp.GradScaler("cpu", init_scale=1.0))


def test_an_overflow_is_seen_and_not_remembered() -> None:
    problem = Quadratics(3, heterogeneity=1.0)
    agents = problem.agents(Ring(3))
    driver = StepDriver(GradientTracking(), agents, LocalCommunicator())
    for overflow in (False, True, False):
        gradients = [agent.gradient(at=agent.params) for agent in agents]
        total = sum(gradients[1:]) if overflow else sum(gradients)
        if overflow:
            gradients[0][2] = float("inf")
        driver.begin()
        directions = driver.finish([scaled(gradient) for gradient in gradients])
        driver.end()
        assert [bool(direction.isfinite().all()) for direction in directions] == [not overflow, True, True]
        assert bool(directions[0].isnan().all()) == overflow
        torch.testing.assert_close(sum(agent.state["tracker"] for agent in agents), total)


def test_what_happens_to_gradient_and_direction_later_is_not_remembered() -> None:
    """Optimizers and clipping change both in place."""
    problem = Quadratics(3, heterogeneity=1.0)
    agents = problem.agents(Ring(3))
    driver = StepDriver(GradientTracking(), agents, LocalCommunicator())
    for _ in range(3):
        gradients = [agent.gradient(at=agent.params) for agent in agents]
        total = sum(gradients)
        driver.begin()
        directions = driver.finish(gradients)
        for tensor in (*gradients, *directions):
            tensor.zero_()
        driver.end()
        torch.testing.assert_close(sum(agent.state["tracker"] for agent in agents), total)
