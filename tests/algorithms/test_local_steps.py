"""Rounds of local steps, of which the last one is the algorithm's."""

from __future__ import annotations

import pytest
import torch

from cga_lightning import CGA, D2, DPSGD, SGP, Algorithm, LocalSteps, OnePeerExponential, Ring, Topology
from cga_lightning.core import LocalCommunicator, StepDriver
from tests.quadratics import Quadratics, train


@pytest.mark.parametrize("topology", [Ring(5), OnePeerExponential(5)], ids=repr)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_is_local_descent_with_gossip_at_every_kth_step(k: int, topology: Topology) -> None:
    problem, lr = Quadratics(5, heterogeneity=1.0), 0.1
    x, rounds = problem.start.clone(), 0
    for step in range(13):
        gradients = torch.stack([problem.gradient(rank, at) for rank, at in enumerate(x)])
        if step % k == k - 1:  # the last of a round
            x = torch.from_numpy(topology.at(rounds).mixing_matrix()) @ x
            rounds += 1
        x = x - lr * gradients
    torch.testing.assert_close(train(problem, LocalSteps(DPSGD(), k), topology, lambda step: lr, steps=13), x)


@pytest.mark.parametrize("algorithm", [CGA(), SGP(), D2()], ids=repr)
def test_only_every_kth_step_costs_bytes(algorithm: Algorithm) -> None:
    sent = []
    for made, steps in ((algorithm, 3), (LocalSteps(algorithm, 4), 12)):
        problem, communicator = Quadratics(5, heterogeneity=1.0), LocalCommunicator()
        agents = problem.agents(Ring(5))
        driver = StepDriver(made, agents, communicator)
        for _ in range(steps):
            models = driver.begin()
            driver.finish([agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)])
            driver.end()
        sent.append(communicator.traffic)
    assert sent[0] == sent[1] and sum(sent[0].values()) > 0


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"LocalSteps\(k=...\) must be at least 1, got 0"):
        LocalSteps(DPSGD(), 0)
