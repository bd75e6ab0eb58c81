"""N agents with quadratic losses of a known optimum, driven without Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cga_lightning.core import Agent, Algorithm, LocalCommunicator, StepDriver
from cga_lightning.topology import Topology


class Quadratics:
    """F_j(x) = (x - c_j)' A_j (x - c_j) / 2 in float64, with eigenvalues of A_j in [0.5, 2].

    Args:
        agents: number N of agents.
        heterogeneity: the distance scale of the optima c_j of the agents; 0: all have the same optimum.
    """

    def __init__(self, agents: int, heterogeneity: float, d: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        draw = {"generator": generator, "dtype": torch.float64}
        bases = torch.linalg.qr(torch.randn(agents, d, d, **draw))[0]
        scales = 0.5 + 1.5 * torch.rand(agents, 1, d, **draw)
        self.hessians = bases * scales @ bases.mT
        self.centers = torch.randn(d, **draw) + heterogeneity * torch.randn(agents, d, **draw)
        self.start = torch.randn(agents, d, **draw)
        pull = (self.hessians @ self.centers.unsqueeze(-1)).sum(0).squeeze(-1)
        self.optimum = torch.linalg.solve(self.hessians.sum(0), pull)

    def gradient(self, agent: int, x: Tensor) -> Tensor:
        return self.hessians[agent] @ (x - self.centers[agent])

    def agents(self, topology: Topology) -> list[Agent]:
        return [
            Agent(rank, topology, x.clone(), lambda at, rank=rank: self.gradient(rank, at))
            for rank, x in enumerate(self.start)
        ]


def train(
    problem: Quadratics, algorithm: Algorithm, topology: Topology, lr: Callable[[int], float], steps: int
) -> Tensor:
    """The agents' parameters after so many steps of `descent` `[N, d]`."""
    *_, agents = descent(problem, algorithm, topology, lr, steps)
    return torch.stack([agent.params for agent in agents])


def descent(
    problem: Quadratics, algorithm: Algorithm, topology: Topology, lr: Callable[[int], float], steps: int
) -> Iterator[list[Agent]]:
    """Plain gradient descent with the algorithm's directions; yields the agents after every step."""
    agents = problem.agents(topology)
    driver = StepDriver(algorithm, agents, LocalCommunicator())
    for step in range(steps):
        models = driver.begin()
        driver.finish([agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)])
        for agent in agents:
            agent.params -= lr(step) * agent.grad
        driver.end()
        yield agents


def consensus_distance(x: Tensor) -> float:
    return float((x - x.mean(0)).norm(dim=1).square().mean().sqrt())
