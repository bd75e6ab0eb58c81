"""RelaySGD: what reaches whom and when, the optimum it rests at, and what it refuses."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import cga_lightning as cga
from cga_lightning import RelaySGD, Rounded, Topology
from cga_lightning.algorithms import from_name
from cga_lightning.core import Agent, LocalCommunicator, StepDriver
from cga_lightning.topology import spanning_tree
from tests.graphs import connected
from tests.quadratics import Quadratics, train
from tests.toys import QUIET, Classifier, OwnData, one_class_each

RELAYS = st.builds(lambda hops, gradients: {"hops": hops, "gradients": gradients}, st.integers(1, 4), st.booleans())


def distances(topology: Topology) -> np.ndarray:
    """Along the edges of the tree, by Floyd and Warshall."""
    tree, agents = spanning_tree(topology), topology.agents
    far = np.full((agents, agents), agents)
    np.fill_diagonal(far, 0)
    for rank in range(agents):
        far[rank, list(tree.neighbors(rank))] = 1
    for middle in range(agents):
        far = np.minimum(far, far[:, [middle]] + far[[middle]])
    return far


def spread(history: list[Tensor], start: Tensor, delays: np.ndarray, weights: Tensor) -> Tensor:
    """The weighted mean over all agents, for every agent of what it can know by now."""
    now = len(history) - 1
    known = [
        torch.stack([history[now - late][other] if late <= now else start[other] for other, late in enumerate(row)])
        for row in delays
    ]
    return torch.stack([(weights[:, None] * rows).sum(0) / weights.sum() for rows in known])


@settings(max_examples=40, deadline=None)
@given(topology=connected(), relay=RELAYS, data=st.data())
def test_every_model_reaches_every_agent_with_its_weight_and_the_delay_of_the_distance(
    topology: Topology, relay: dict[str, int], data: st.DataObject
) -> None:
    agents, lr = topology.agents, 0.1
    counts = data.draw(st.none() | st.lists(st.integers(1, 9), min_size=agents, max_size=agents))
    weights = torch.tensor(counts or [1] * agents, dtype=torch.float64)
    problem = Quadratics(agents, heterogeneity=1.0)
    problem.start[:] = problem.start[0]
    delays = np.maximum(np.ceil(distances(topology) / relay["hops"]).astype(int) - 1, 0)
    x, models, gradients = problem.start.clone(), [], []
    for _ in range(8):
        gradients.append(torch.stack([problem.gradient(rank, x[rank]) for rank in range(agents)]))
        direction = gradients[-1]
        if relay["gradients"]:
            direction = spread(gradients, torch.zeros_like(x), delays, weights)
        models.append(x - lr * direction)
        x = spread(models, problem.start, delays, weights)
    found = train(problem, RelaySGD(**relay, weights=counts), topology, lr=lambda step: lr, steps=8)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


def optimum(problem: Quadratics, weights: Sequence[float]) -> Tensor:
    """That of the weighted sum of losses."""
    hessians = torch.tensor(weights, dtype=torch.float64)[:, None, None] * problem.hessians
    return torch.linalg.solve(hessians.sum(0), (hessians @ problem.centers.unsqueeze(-1)).sum(0).squeeze(-1))


@settings(max_examples=8, deadline=None)
@given(topology=connected(6), relay=RELAYS, data=st.data())
def test_agents_rest_at_the_optimum_of_the_sum_wherever_they_start(
    topology: Topology, relay: dict[str, int], data: st.DataObject
) -> None:
    counts = data.draw(st.none() | st.lists(st.integers(1, 9), min_size=topology.agents, max_size=topology.agents))
    problem = Quadratics(topology.agents, heterogeneity=1.0, seed=data.draw(st.integers(0, 99)))
    x = train(problem, RelaySGD(**relay, weights=counts), topology, lr=lambda step: 0.05, steps=900)
    assert float((x - optimum(problem, counts or [1] * topology.agents)).abs().max()) < 1e-10


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("compressor", [Rounded(4), cga.Ternary()], ids=repr)
def test_differences_vanish_at_rest_so_that_compression_does_not_move_it(
    compressor: cga.Compressor, gradients: bool
) -> None:
    problem = Quadratics(3, heterogeneity=1.0)
    algorithm = RelaySGD(1, gradients, compressor)
    x = train(problem, algorithm, cga.Ring(3), lr=lambda step: 0.2, steps=200)
    assert float((x - problem.optimum).abs().max()) < 1e-10


def test_with_enough_hops_it_is_sgd_on_all_data() -> None:
    problem, topology = Quadratics(5, heterogeneity=1.0), cga.Ring(5)
    problem.start[:] = problem.start[0]
    x = problem.start[0].clone()
    for _ in range(20):
        x -= 0.1 * sum(problem.gradient(rank, x) for rank in range(5)) / 5
    for gradients in (False, True):
        found = train(problem, RelaySGD(4, gradients), topology, lr=lambda step: 0.1, steps=20)
        torch.testing.assert_close(found, x.expand(5, -1), rtol=0, atol=1e-13)


def test_names() -> None:
    assert repr(from_name("relaysgd")) == repr(RelaySGD())
    assert repr(from_name("relay")) == repr(RelaySGD(hops=3, gradients=True))
    assert RelaySGD(2, True).exchanges == ("gradients", "gradients", "models", "models")


@pytest.mark.parametrize("compressor", [None, Rounded(4)])
def test_on_another_tree_sums_start_anew(compressor: Rounded | None) -> None:
    """As when an edge is lost: all agents get the new topology between two steps."""
    problem = Quadratics(4, heterogeneity=1.0)
    agents = problem.agents(cga.Ring(4))
    driver = StepDriver(RelaySGD(2, True, compressor), agents, LocalCommunicator())
    star = cga.FromMatrix(np.eye(4)[0] + np.eye(4)[:, [0]] - np.diag([2.0, 0, 0, 0]))
    for step in range(220):
        if step == 20:
            driver.agents = [agent for agent in agents if not setattr(agent, "topology", star)]
        models = driver.begin()
        driver.finish([agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)])
        for agent in agents:
            agent.params = agent.params - 0.2 * agent.grad
        driver.end()
    assert sorted(agents[3].state["sums"]["models"]) == [0]
    assert max(float((agent.params - problem.optimum).abs().max()) for agent in agents) < 1e-10


@pytest.mark.parametrize("compressor", [None, Rounded(4), Rounded(8)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, compressor: Rounded | None) -> None:
    problem = Quadratics(4, heterogeneity=1.0)
    agents = [
        Agent(rank, cga.Ring(4), x.to(dtype), lambda at, rank=rank: problem.gradient(rank, at.double()).to(dtype))
        for rank, x in enumerate(problem.start)
    ]
    driver = StepDriver(RelaySGD(2, True, compressor), agents, LocalCommunicator())
    for _ in range(60):
        models = driver.begin()
        driver.finish([agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)])
        for agent in agents:
            agent.params = agent.params - 0.1 * agent.grad
        driver.end()
    assert all(agent.params.dtype == dtype for agent in agents)
    assert max(float((agent.params.double() - problem.optimum).abs().max()) for agent in agents) < 0.1


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: RelaySGD(0), r"RelaySGD\(hops=...\) must be a whole number of at least 1, got 0"),
        (lambda: RelaySGD(hops=True), "a whole number of at least 1, got True"),
        (lambda: RelaySGD(1.5), "a whole number of at least 1, got 1.5"),
        (lambda: RelaySGD(compressor="zip"), "Unknown compressor 'zip'"),
        (lambda: RelaySGD(weights=[1, -1]), r"at least 0, and not all 0, got \[1, -1\]"),
        (lambda: RelaySGD(weights=[0, 0]), "not all 0"),
        (lambda: RelaySGD(weights=[1, float("nan")]), "must be finite"),
        (lambda: cga.SimulatedStrategy(3, RelaySGD(weights=[1, 1])), "one weight per agent, got 2 for Ring"),
        (lambda: cga.SimulatedStrategy(4, "relay", "directed_ring"), "have no way back"),
        (lambda: cga.SimulatedStrategy(4, "relay", Swinging()), "vary in time. Use a topology that does not"),
        (lambda: RelaySGD().check(Apart(4)), "is not connected"),
    ],
)
def test_what_does_not_go_is_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


class Apart(Topology):
    def edges(self, agents: int) -> list[tuple[int, int]]:
        return [(0, 1), (2, 3)]


class Swinging(Topology):
    def edges(self, agents: int) -> list[tuple[int, int]]:
        return [(rank, rank + 1) for rank in range(agents - 1)]

    def at(self, step: int) -> Topology:
        return cga.FromMatrix(np.eye(self.agents, k=1) + np.eye(self.agents, k=-1)) if step % 2 else Pairs(self.agents)


class Pairs(Topology):
    def edges(self, agents: int) -> list[tuple[int, int]]:
        return [(rank, rank + 1) for rank in range(0, agents - 1, 2)]


class WithOptimizer(Classifier):
    def __init__(self, make: type[torch.optim.Optimizer]) -> None:
        super().__init__()
        self.make = make

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters(), lr=0.01)


ADAMW, SGD = torch.optim.AdamW, torch.optim.SGD


@pytest.mark.parametrize(
    "algorithm, optimizer, clip, told",
    [
        ("dpsgd", ADAMW, None, "AdamW does not step linearly"),
        (cga.QuasiGlobalMomentum(cga.SGP()), torch.optim.RMSprop, None, "RMSprop"),
        ("relaysgd", SGD, 1.0, r"Trainer\(gradient_clip_val=1.0\) does not"),
        ("relaysgd", SGD, None, None),
        ("relay", ADAMW, 1.0, None),
        (cga.Compressed(cga.CGA()), ADAMW, None, None),
    ],
    ids=str,
)
def test_averages_of_steps_that_are_not_linear_are_warned_of_once(
    algorithm: cga.Algorithm | str, optimizer: type, clip: float | None, told: str | None, caplog
) -> None:
    trainer = pl.Trainer(
        strategy=cga.SimulatedStrategy(2, algorithm), max_steps=2, max_epochs=-1, gradient_clip_val=clip, **QUIET
    )
    with caplog.at_level(logging.WARNING, "cga_lightning"):
        for _ in range(2):
            trainer.fit(WithOptimizer(optimizer), datamodule=OwnData(one_class_each(2)))
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("cga_lightning")]
    assert len(messages) == (told is not None)
    if told:
        assert re.search(told, messages[0]) and 'strategy="relay"' in messages[0]
