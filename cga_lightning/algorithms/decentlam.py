"""DecentLaM: momentum without the bias that it adds to gossip."""

from __future__ import annotations

import torch

from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step, gossip


class DecentLaM(Algorithm):
    """Momentum of the whole change of the model, mixing included, in the order adapt, then combine.

    With psi_t^j = x_t^j - lr * grad F_j(x_t^j), the model after the optimizer's step,

        m_t^j = beta * m_{t-1}^j + (x_t^j - sum_l pi_jl psi_t^l),    x_{t+1}^j = x_t^j - m_t^j.

    The published m is this one over lr; while that is constant, the two are the same. Where data differ, gossip with
    momentum rests further from the optimum of the sum of losses than without; this rests where gossip without momentum
    does. Use it with `torch.optim.SGD(lr)`: it takes the place of the optimizer's momentum.

    Args:
        beta: how much of the last change is gone again, in [0, 1).

    Raises:
        ValueError: for beta out of range.

    Source: Yuan et al., "DecentLaM: Decentralized Momentum SGD for Large-Batch Deep Training", ICCV 2021, Algorithm 2.
    """

    exchanges = ("models",)
    graphs = "fixed"
    averages_models_only = True

    def __init__(self, *, beta: float = 0.9) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"DecentLaM(beta=...) must be in [0, 1), got {beta}.")
        self.beta = beta

    def step(self, agent: Agent) -> Step:
        """No exchange: the optimizer steps from the own model along the own gradient."""
        agent.state["start"] = agent.params.clone()
        yield from ()

    def after_step(self, agent: Agent) -> Step:
        """Mix what the optimizers have reached; the change from the start of the step has a momentum."""
        models = yield gossip(agent, agent.params)
        start = agent.state.pop("start")
        change = start - agent.average(agent.params, models)
        momentum = agent.state.get("momentum", torch.zeros_like(change))
        agent.state["momentum"] = change.add(momentum, alpha=self.beta)
        agent.params = start - agent.state["momentum"]
