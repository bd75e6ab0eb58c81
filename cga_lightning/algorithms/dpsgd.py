"""Gossip averaging with local gradients."""

from __future__ import annotations

from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step, gossip


class DPSGD(Algorithm):
    """Decentralized parallel SGD: average with the neighbors, then step along the own gradient.

    x^j <- sum_l pi_jl x^l - lr * grad F_j(x^j). With `torch.optim.SGD(momentum=...)` it is DPMSGD.

    Source: Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017, Algorithm 1.
    """

    exchanges = ("models",)
    graphs = "balanced"
    averages_models_only = True

    def step(self, agent: Agent) -> Step:
        """Mix the neighbors' models; the gradient was taken before mixing."""
        models = yield gossip(agent, agent.params)
        agent.mix(models)
