"""K-GT, DecentLaM, GUT and periodic averaging against their recursions written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cga_lightning import (
    CGA,
    DPSGD,
    GUT,
    KGT,
    Bipartite,
    Complete,
    DecentLaM,
    DirectedRing,
    ErdosRenyi,
    FromMatrix,
    GradientTracking,
    PeriodicAveraging,
    Ring,
)
from cga_lightning.algorithms import Algorithm
from cga_lightning.core import LocalCommunicator, StepDriver
from cga_lightning.topology import Topology
from tests.quadratics import Quadratics, consensus_distance, train

LR = 0.1
GRAPHS = [Ring(5), Bipartite(5), ErdosRenyi(6, p=0.4)]


def gradients(problem: Quadratics, x: Tensor) -> Tensor:
    return torch.stack([problem.gradient(rank, at) for rank, at in enumerate(x)])


@pytest.mark.parametrize("topology", GRAPHS, ids=repr)
@pytest.mark.parametrize("k", [1, 3])
def test_kgt_is_its_recursion(k: int, topology: Topology) -> None:
    """In the published form: z from the way gone, over K times the rate."""
    problem = Quadratics(topology.agents, heterogeneity=1.0)
    x, c = problem.start.clone(), torch.zeros_like(problem.start)
    for round in range(4):
        mixing, start = torch.from_numpy(topology.at(round).mixing_matrix()), x
        for _ in range(k):
            x = x - LR * (gradients(problem, x) + c)
        z = (start - x) / (k * LR)
        c = c - z + mixing @ z
        x = mixing @ (start - k * LR * z)
    torch.testing.assert_close(train(problem, KGT(k), topology, lambda step: LR, steps=4 * k), x)


@pytest.mark.parametrize("topology", [*GRAPHS, Complete(4)], ids=repr)
def test_kgt_leads_every_agent_to_the_optimum_of_the_sum(topology: Topology) -> None:
    problem = Quadratics(topology.agents, heterogeneity=1.0)
    x = train(problem, KGT(3), topology, lambda step: 0.05, steps=1500)
    assert float((x - problem.optimum).norm(dim=1).max()) < 1e-8


@pytest.mark.parametrize("topology", GRAPHS, ids=repr)
def test_decentlam_is_its_recursion(topology: Topology) -> None:
    problem, mixing = Quadratics(topology.agents, heterogeneity=1.0), torch.from_numpy(topology.mixing_matrix())
    x, m = problem.start.clone(), torch.zeros_like(problem.start)
    for _ in range(12):
        m = 0.7 * m + (x - mixing @ (x - LR * gradients(problem, x))) / LR
        x = x - LR * m
    torch.testing.assert_close(train(problem, DecentLaM(beta=0.7), topology, lambda step: LR, steps=12), x)


def test_decentlam_rests_where_gossip_without_momentum_does() -> None:
    class AdaptThenCombine(Algorithm):
        exchanges = ("models",)

        def step(self, agent):
            yield from ()

        def after_step(self, agent):
            models = yield {rank: agent.params for rank in agent.neighbors}
            agent.params = agent.average(agent.params, models)

    problem = Quadratics(5, heterogeneity=1.0)
    plain = train(problem, AdaptThenCombine(), Ring(5), lambda step: 0.05, steps=600)
    torch.testing.assert_close(train(problem, DecentLaM(), Ring(5), lambda step: 0.05, steps=600), plain)


@pytest.mark.parametrize("topology", GRAPHS, ids=repr)
@pytest.mark.parametrize("mu", [0.0, 0.6, 0.9])
def test_gut_is_its_recursion(mu: float, topology: Topology) -> None:
    """In the form of the published code: delta is the gradient less what gossip adds, y also what is tracked."""
    problem, mixing = Quadratics(topology.agents, heterogeneity=1.0), torch.from_numpy(topology.mixing_matrix())
    x = problem.start[:1].repeat(topology.agents, 1)
    problem.start, before, delta = x, x, torch.zeros_like(x)
    for _ in range(12):
        heard = mixing @ (x - before) + mixing @ before - before
        now = gradients(problem, mixing @ x) - (mixing @ x - x) / LR
        y = now - mu * (heard / LR + delta)
        x, before, delta = x - LR * y, x, now
    torch.testing.assert_close(train(problem, GUT(mu=mu), topology, lambda step: LR, steps=12), mixing @ x)


def test_gut_tends_to_d2() -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    far, near = (train(problem, GUT(mu=mu), Ring(5), lambda step: LR, steps=800) - problem.optimum for mu in (0.0, 0.9))
    assert float(far.norm()) > 0.1 and float(near.norm()) < 0.2 * float(far.norm())


@pytest.mark.parametrize("topology", [*GRAPHS, Ring(10)], ids=repr)
@pytest.mark.parametrize("algorithm", [DPSGD(), CGA()], ids=repr)
def test_periodic_averaging_is_the_mean_at_every_period(algorithm: Algorithm, topology: Topology) -> None:
    problem = Quadratics(topology.agents, heterogeneity=1.0)
    made = PeriodicAveraging(algorithm, 4)
    assert consensus_distance(train(problem, made, topology, lambda step: LR, steps=4)) < 1e-12
    assert consensus_distance(train(problem, made, topology, lambda step: LR, steps=5)) > 1e-2
    torch.testing.assert_close(
        train(problem, made, topology, lambda step: LR, steps=4).mean(0),
        train(problem, algorithm, topology, lambda step: LR, steps=4).mean(0),
    )


def test_the_rounds_of_an_average_are_counted() -> None:
    problem, communicator = Quadratics(10, heterogeneity=1.0), LocalCommunicator()
    agents = problem.agents(Ring(10))
    driver = StepDriver(PeriodicAveraging(DPSGD(), 2), agents, communicator)
    for _ in range(4):
        models = driver.begin()
        driver.finish([agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)])
        driver.end()
    model = agents[0].params.nbytes
    assert communicator.traffic == {"models": 4 * 10 * 2 * model, "averages": 2 * 5 * 10 * 2 * model}


@pytest.mark.parametrize("topology", GRAPHS, ids=repr)
def test_momentum_tracking_is_gradient_tracking_with_momentum(topology: Topology) -> None:
    """Takezawa et al., TMLR 2023: y_t = W y_{t-1} + u_t - u_{t-1} on the momentum u."""
    problem, mixing = Quadratics(topology.agents, heterogeneity=1.0), torch.from_numpy(topology.mixing_matrix())
    beta, lr = 0.8, 0.02
    x, u, y = problem.start.clone(), torch.zeros_like(problem.start), torch.zeros_like(problem.start)
    for _ in range(30):
        last, u = u, beta * u + gradients(problem, x)
        y = mixing @ y + u - last
        x = mixing @ x - lr * y
    agents = problem.agents(topology)
    driver, momenta = StepDriver(GradientTracking(), agents, LocalCommunicator()), torch.zeros_like(x)
    for _ in range(30):
        models = driver.begin()
        driver.finish([agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)])
        momenta = beta * momenta + torch.stack([agent.grad for agent in agents])
        for agent, momentum in zip(agents, momenta, strict=True):
            agent.params = agent.params - lr * momentum
        driver.end()
    torch.testing.assert_close(torch.stack([agent.params for agent in agents]), x)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: KGT(0), r"KGT\(local_steps=...\) must be at least 1, got 0"),
        (lambda: DecentLaM(beta=1.0), r"DecentLaM\(beta=...\) must be in \[0, 1\), got 1.0"),
        (lambda: GUT(mu=-0.1), r"GUT\(mu=...\) must be in \[0, 1\), got -0.1"),
        (lambda: GUT().check(FromMatrix([[0.2, 0.8], [0.8, 0.2]])), "the eigenvalue -0.6. Use mu below 0.33, or D2"),
        (lambda: PeriodicAveraging(DPSGD(), 0), r"PeriodicAveraging\(period=...\) must be at least 1, got 0"),
        (lambda: PeriodicAveraging(DPSGD(), 2).check(DirectedRing(5)), "must be symmetric"),
    ],
)
def test_bad_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
