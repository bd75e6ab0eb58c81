"""Corrected CGA against its recursions written out, and where it comes to rest."""

from __future__ import annotations

import logging

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

import cga_lightning as cga
from cga_lightning import CGA, Bipartite, ErdosRenyi, OnePeerExponential, QuasiGlobalMomentum, Ring, Topology
from cga_lightning.core import LocalCommunicator, StepDriver
from tests.quadratics import Quadratics, consensus_distance, train
from tests.toys import QUIET, Classifier, OwnData, one_class_each

GRAPHS = [Ring(5), Bipartite(5), ErdosRenyi(6, p=0.4)]


def furthest(problem: Quadratics, x: Tensor) -> float:
    return float((x - problem.optimum).norm(dim=1).max())


@pytest.mark.parametrize("topology", GRAPHS, ids=repr)
def test_tracking_is_its_recursion(topology: Topology) -> None:
    agents, lr = topology.agents, 0.1
    problem, mixing = Quadratics(agents, heterogeneity=1.0), torch.from_numpy(topology.mixing_matrix())
    x, y = problem.start.clone(), torch.zeros_like(problem.start)
    last = torch.zeros(agents, agents, x.shape[1], dtype=x.dtype)
    for _ in range(15):
        gradients = torch.stack([torch.stack([problem.gradient(sender, at) for sender in range(agents)]) for at in x])
        messages, last = y + gradients - last, gradients
        y = torch.einsum("js,jsd->jd", mixing, messages)
        x = mixing @ x - lr * y
    torch.testing.assert_close(train(problem, CGA(correction="tracking"), topology, lambda step: lr, steps=15), x)


@pytest.mark.parametrize("topology", GRAPHS, ids=repr)
def test_exact_diffusion_is_its_recursion(topology: Topology) -> None:
    """Where no gradients conflict, so that the direction is their weighted mean."""
    agents, lr = topology.agents, 0.1
    problem, mixing = Quadratics(agents, heterogeneity=0.1), torch.from_numpy(topology.mixing_matrix())
    lazy = (torch.eye(agents) + mixing) / 2
    phi, last = problem.start.clone(), None
    for _ in range(6):
        gradients = torch.stack([torch.stack([problem.gradient(sender, at) for sender in range(agents)]) for at in phi])
        x = lazy @ phi
        psi = x - lr * torch.einsum("js,jsd->jd", mixing, gradients)
        phi, last = psi + x - (x if last is None else last), psi
    found = train(problem, CGA(correction="exact_diffusion"), topology, lambda step: lr, steps=6)
    torch.testing.assert_close(found, phi)


@pytest.mark.parametrize("topology", [*GRAPHS, Ring(10), Bipartite(10)], ids=repr)
def test_trackers_lead_every_agent_to_the_optimum_of_the_sum(topology: Topology) -> None:
    problem = Quadratics(topology.agents, heterogeneity=1.0)
    tracking, plain = (train(problem, a, topology, lambda step: 0.1, 400) for a in (CGA(correction="tracking"), CGA()))
    assert furthest(problem, tracking) < 1e-8
    assert float((plain.mean(0) - problem.optimum).norm()) > 0.03  # what is to be corrected


@pytest.mark.parametrize("mu, beta, lr", [(0.0, 0.9, 0.02), (0.0, 0.95, 0.01)])
def test_quasi_global_momentum_leads_there_too(mu: float, beta: float, lr: float) -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    algorithm = QuasiGlobalMomentum(CGA(correction="tracking"), mu=mu, beta=beta)
    assert furthest(problem, train(problem, algorithm, Ring(5), lambda step: lr, 800)) < 1e-8


@pytest.mark.parametrize("compressor", ["scaled_sign", cga.ErrorFeedback(cga.QSGD(bits=4)), cga.TopK(0.5)], ids=repr)
def test_compressed_trackers_lead_there_too(compressor: cga.Compressor | str) -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    x = train(problem, CGA(correction="tracking", compressor=compressor), Ring(5), lambda step: 0.1, 400)
    assert furthest(problem, x) < 1e-8


@pytest.mark.parametrize("topology", GRAPHS, ids=repr)
def test_exact_diffusion_brings_the_agents_together(topology: Topology) -> None:
    problem = Quadratics(topology.agents, heterogeneity=1.0)
    corrected = train(problem, CGA(correction="exact_diffusion"), topology, lambda step: 0.05, 500)
    plain = train(problem, CGA(), topology, lambda step: 0.05, 500)
    assert consensus_distance(corrected) < 1e-8 < 0.1 < consensus_distance(plain)
    assert (corrected.mean(0) - problem.optimum).norm() < (plain.mean(0) - problem.optimum).norm()


@pytest.mark.parametrize("correction", ["tracking", "exact_diffusion"])
def test_a_correction_costs_no_message_and_no_gradient(correction: str) -> None:
    counts, traffic = [], []
    for algorithm in (CGA(), CGA(correction=correction)):
        problem, communicator = Quadratics(5, heterogeneity=1.0), LocalCommunicator()
        calls, agents = 0, problem.agents(Ring(5))
        for agent in agents:
            inner = agent._gradient_at

            def counted(at: Tensor, inner=inner) -> Tensor:
                nonlocal calls
                calls += 1
                return inner(at)

            agent._gradient_at = counted
        driver = StepDriver(algorithm, agents, communicator)
        for _ in range(3):
            models = driver.begin()
            driver.finish([agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)])
            driver.end()
        counts.append(calls)
        traffic.append(dict(communicator.traffic))
    assert counts[0] == counts[1] == 3 * 5 * 3
    assert traffic[0] == traffic[1] and set(traffic[0]) == {"models", "cross_gradients"}


def test_a_cross_gradient_that_is_not_finite_is_not_remembered() -> None:
    problem = Quadratics(4, heterogeneity=1.0)
    agents = problem.agents(Ring(4))
    finite = agents[0]._gradient_at
    driver = StepDriver(CGA(correction="tracking"), agents, LocalCommunicator())
    for step in range(300):
        broken = step == 2
        agents[0]._gradient_at = (lambda at: at * float("inf")) if broken else finite
        models = driver.begin()
        own = [problem.gradient(agent.rank, model) for agent, model in zip(agents, models, strict=True)]
        driver.finish(own)
        for agent in agents:
            agent.params = agent.params - 0.1 * agent.grad
        driver.end()
    assert furthest(problem, torch.stack([agent.params for agent in agents])) < 1e-8


@pytest.mark.parametrize(
    "options, message",
    [
        ({"correction": "both"}, "one of 'tracking', 'exact_diffusion', got 'both'"),
        ({"correction": "tracking", "margin": 0.0}, "without a quadratic program, so margin, .* leave them out"),
        ({"correction": "tracking", "scope": "layer"}, "leave them out"),
        ({"correction": "tracking", "compressor": "qsgd"}, r"errors of QSGD\(.* add up too. .* or ErrorFeedback"),
    ],
)
def test_bad_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CGA(**options)


@pytest.mark.parametrize("correction", ["tracking", "exact_diffusion"])
def test_graphs_that_vary_in_time_are_refused(correction: str) -> None:
    class Alternating(Ring):
        def at(self, step: int) -> Topology:
            return Half(self.agents, step % 2)

    class Half(Topology):
        def __init__(self, agents: int, first: int) -> None:
            object.__setattr__(self, "first", first)
            super().__init__(agents)

        def edges(self, agents: int) -> list[tuple[int, int]]:
            return [(rank, (rank + 1) % agents) for rank in range(self.first, agents, 2)]

    with pytest.raises(ValueError, match="remembers what was said along each edge, but .* vary in time"):
        CGA(correction=correction).check(Alternating(4))
    with pytest.raises(ValueError, match="no way back"):
        CGA(correction=correction).check(OnePeerExponential(4))
    CGA().check(Alternating(4))


class Momentum(Classifier):
    momentum = 0.9

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=self.momentum)


@pytest.mark.parametrize("wrap", [lambda a: a, QuasiGlobalMomentum], ids=["plain", "quasi-global"])
@pytest.mark.parametrize("correction, momentum", [("tracking", 0.9), ("tracking", 0.0), ("exact_diffusion", 0.9)])
def test_momentum_of_the_optimizer_is_told_of_once(
    correction: str, momentum: float, wrap: type, caplog: pytest.LogCaptureFixture
) -> None:
    module = Momentum()
    module.momentum = momentum
    strategy = cga.SimulatedStrategy(4, wrap(CGA(correction=correction)))
    trainer = pl.Trainer(strategy=strategy, devices=1, max_steps=2, **QUIET)
    with caplog.at_level(logging.WARNING, "cga_lightning"):
        trainer.fit(module, datamodule=OwnData(one_class_each()))
    told = [record.message for record in caplog.records if "momentum" in record.message]
    assert len(told) == (correction == "tracking" and momentum > 0)
    assert all("QuasiGlobalMomentum" in message and "mu=0" in message for message in told)
