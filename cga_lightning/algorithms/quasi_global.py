"""Quasi-global momentum around any algorithm."""

from __future__ import annotations

import torch

from cga_lightning.algorithms.wrapper import Wrapper
from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step


class QuasiGlobalMomentum(Wrapper):
    """Momentum along the way that the agents go together, instead of along the own gradients.

    With x_t^j the model of agent j at the start of step t, the buffer m^j follows the whole change of the model, mixing
    included, and moves the model before the optimizer does:

        x <- x - beta * m_{t-1}^j,    m_t^j = mu * m_{t-1}^j + (1 - mu) * (x_t^j - x_{t+1}^j).

    It takes the place of the optimizer's momentum: use it with `torch.optim.SGD(lr)`. Since m^j is a change of the
    model, not of the gradient, it needs no learning rate; while that is constant, the two are the same.

    QG-DSGDm is `QuasiGlobalMomentum(DPSGD())`.

    Args:
        algorithm: what to accelerate.
        beta: how much of m^j every step goes, in [0, 1).
        mu: how long m^j remembers, in [0, 1); `beta` if None, as published.

    Raises:
        ValueError: for beta or mu out of range.
        TypeError: for what is no algorithm.

    Source: Lin et al., "Quasi-Global Momentum: Accelerating Decentralized Deep Learning on Heterogeneous Data", ICML
    2021, Algorithm 1.
    """

    def __init__(self, algorithm: Algorithm, *, beta: float = 0.9, mu: float | None = None) -> None:
        super().__init__(algorithm)
        mu = beta if mu is None else mu
        for name, value in (("beta", beta), ("mu", mu)):
            if not 0 <= value < 1:
                raise ValueError(f"QuasiGlobalMomentum({name}=...) must be in [0, 1), got {value}.")
        self.beta = beta
        self.mu = mu

    def step(self, agent: Agent) -> Step:
        """The algorithm's step, then along the momentum."""
        agent.state["start"] = agent.params.clone()
        yield from self.algorithm.step(agent)
        if "momentum" in agent.state:
            agent.params = torch.sub(agent.params, agent.state["momentum"], alpha=self.beta)

    def after_step(self, agent: Agent) -> Step:
        """What the algorithm does after the optimizer step; then learn from the change of the whole step."""
        yield from self.algorithm.after_step(agent)
        change = agent.state.pop("start") - agent.params
        momentum = agent.state.get("momentum", torch.zeros_like(change))
        agent.state["momentum"] = momentum.lerp(change, 1 - self.mu)
