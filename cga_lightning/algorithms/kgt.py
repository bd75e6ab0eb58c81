"""Gradient tracking with local steps."""

from __future__ import annotations

import torch

from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step, gossip


class KGT(Algorithm):
    """K-GT: K local steps along corrected gradients, then one exchange of models and of the way that they have gone.

    In the steps k = 0, ..., K - 1 of round t the optimizer steps along the own gradient and a correction c^j, at first
    0:

        x_{t,k+1}^j = x_{t,k}^j - lr * (grad F_j(x_{t,k}^j) + c_t^j),
        z_t^j = mean_k (grad F_j(x_{t,k}^j) + c_t^j),    c_{t+1}^j = c_t^j - z_t^j + sum_l pi_jl z_t^l,
        x_{t+1,0}^j = sum_l pi_jl x_{t,K}^l.

    The c^j sum up to 0, so the agents come to rest at the optimum of the sum of losses, also from local steps. z is the
    mean direction itself, so any optimizer will do; with SGD it is (x_{t,0} - x_{t,K}) / (K lr) as published. The
    published eta_s, how much of the common way is gone, is 1.

    Args:
        local_steps: K, at least 1.

    Raises:
        ValueError: for less than one local step.

    Source: Liu, Lin, Koloskova and Stich, "Decentralized Gradient Tracking with Local Steps", Optimization Methods and
    Software, 2024 (arXiv 2301.01313), Algorithm 1.
    """

    exchanges = ("models", "directions")
    graphs = "undirected"

    def __init__(self, local_steps: int = 4) -> None:
        if local_steps < 1:
            raise ValueError(f"KGT(local_steps=...) must be at least 1, got {local_steps}.")
        self.local_steps = local_steps

    def step(self, agent: Agent) -> Step:
        """No exchange: the direction is the own gradient and the correction."""
        nothing = torch.zeros_like(agent.params)
        direction = agent.grad + agent.state.get("correction", nothing)
        agent.state["way"] = agent.state.get("way", nothing) + direction / self.local_steps
        agent.grad = direction
        yield from ()

    def after_step(self, agent: Agent) -> Step:
        """At the end of a round: mix the models, and correct by how the neighbors have gone."""
        if (agent.step + 1) % self.local_steps:
            return
        agent.enter(agent.topology.at(agent.step // self.local_steps))
        models = yield gossip(agent, agent.params)
        way = agent.state.pop("way")
        ways = yield gossip(agent, way)
        correction = agent.state.get("correction", torch.zeros_like(way))
        agent.state["correction"] = correction - way + agent.average(way, ways)
        agent.params = agent.average(agent.params, models)
