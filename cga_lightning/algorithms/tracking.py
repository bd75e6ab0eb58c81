"""Gradient tracking."""

from __future__ import annotations

import torch
from torch import Tensor

from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step, gossip


class GradientTracking(Algorithm):
    """Every agent follows an estimate of the mean gradient of all, so data that differ leave no bias.

    The tracker y^j of agent j is averaged with the neighbors' and takes up the change of the own gradient g^j:

        y_t^j = sum_l pi_jl y_{t-1}^l + g_t^j - g_{t-1}^j,    x_{t+1}^j = sum_l pi_jl x_t^l - lr * y_t^j.

    The sum of all y^j is that of all g^j. It costs a second vector per edge, no second gradient.

    Source: Nedic, Olshevsky and Shi, "Achieving Geometric Convergence for Distributed Optimization over Time-Varying
    Graphs", SIAM Journal on Optimization 27(4), 2017 (DIGing); for stochastic gradients Koloskova et al., NeurIPS 2021.
    """

    exchanges = ("models", "trackers")
    graphs = "balanced"

    def step(self, agent: Agent) -> Step:
        """Mix models and trackers, add the change of the gradient."""
        tracker, last_gradient = _kept(agent, "tracker"), _kept(agent, "last_gradient")
        models = yield gossip(agent, agent.params)
        trackers = yield gossip(agent, tracker)
        tracker = agent.average(tracker, trackers).add_(agent.grad).sub_(last_gradient)
        # Copies: whoever clips or scales the direction must not change what is remembered.
        agent.state["tracker"], agent.state["last_gradient"] = tracker, agent.grad.clone()
        agent.grad = tracker.clone()
        agent.mix(models)


def _kept(agent: Agent, name: str) -> Tensor:
    """A vector `[d]` kept from the last step; zeros at first."""
    vector: Tensor = agent.state.get(name, torch.zeros_like(agent.params))
    return vector
