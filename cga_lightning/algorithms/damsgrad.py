"""Decentralized AMSGrad: an adaptive method whose agents agree on their step sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step, gossip


class DAMSGrad(Algorithm):
    """AMSGrad in which the second moments are averaged with the neighbors', so that all agents scale alike in the end.

    With g_t^j the own gradient, elementwise, all of m, v and v^ at first 0 but v^ and u at eps,

        m_t = beta1 m_{t-1} + (1 - beta1) g_t,    v_t = beta2 v_{t-1} + (1 - beta2) g_t^2,    v^_t = max(v^_{t-1}, v_t),
        w_t^j = sum_l pi_jl u_{t-1}^l,    u_t^j = w_t^j + v^_t^j - v^_{t-1}^j,
        x_{t+1}^j = sum_l pi_jl x_t^l - lr * m_t^j / sqrt(max(w_t^j, eps)).

    The sum of all u^j is that of all v^j. `DPSGD()` with `torch.optim.Adam` scales on every agent by its own gradients
    instead, which need not go to where the sum of losses is stationary. Use it with `torch.optim.SGD(lr)`, without
    momentum. Moments are float32 where parameters are shorter.

    Args:
        betas: beta1 and beta2, each in [0, 1).
        eps: the least second moment, positive.

    Raises:
        ValueError: for betas or eps out of range.

    Source: Chen, Karimi, Zhao and Li, "On the Convergence of Decentralized Adaptive Gradient Methods", ACML 2022 (PMLR
    189), Algorithm 3.
    """

    exchanges = ("models", "second_moments")
    graphs = "balanced"

    def __init__(self, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"DAMSGrad(betas=...) must be two numbers in [0, 1), got {betas}.")
        if not eps > 0:
            raise ValueError(f"DAMSGrad(eps=...) must be positive, got {eps}.")
        self.betas = betas
        self.eps = eps

    def step(self, agent: Agent) -> Step:
        """Mix models and second moments, then scale the first moment."""
        least = torch.full_like(agent.params, self.eps, dtype=_wide(agent.params))
        u, largest = agent.state.get("u", least), agent.state.get("largest", least)
        models = yield gossip(agent, agent.params)
        received = yield gossip(agent, u)
        mixed = agent.average(u, received)
        gradient = agent.grad.to(u.dtype)
        first = self._moment(agent, "first", gradient, self.betas[0])
        second = self._moment(agent, "second", gradient.square(), self.betas[1])
        agent.state["largest"] = torch.maximum(largest, second)
        agent.state["u"] = mixed + agent.state["largest"] - largest
        agent.grad = (first / mixed.clamp(min=self.eps).sqrt()).to(agent.params.dtype)
        agent.mix(models)

    def _moment(self, agent: Agent, name: str, value: Tensor, beta: float) -> Tensor:
        agent.state[name] = torch.lerp(value, agent.state.get(name, torch.zeros_like(value)), beta)
        return agent.state[name]  # type: ignore[no-any-return]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
