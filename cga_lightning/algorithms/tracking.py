"""Gradient tracking."""

from __future__ import annotations

import torch
from torch import Tensor

from cga_lightning.agent import Agent
from cga_lightning.algorithms.base import Algorithm, Step, gossip


class GradientTracking(Algorithm):
    """Every agent follows an estimate of the mean gradient of all, so data that differ leave no bias.

    The tracker y^j of agent j is averaged with the neighbors' and takes up what is new in the own gradient g^j:

        y_t^j = sum_l pi_jl y_{t-1}^l + g_t^j - g_{t-1}^j,    x_{t+1}^j = sum_l pi_jl x_t^l - lr * y_t^j.

    The sum of all y^j is that of all g^j. It costs a second vector per edge, no second gradient. A gradient that is not
    finite, as half precision may produce, goes to the loss scaler but not into the tracker.

    Source: Nedic, Olshevsky and Shi, "Achieving Geometric Convergence for Distributed Optimization over Time-Varying
    Graphs", SIAM Journal on Optimization 27(4), 2017 (DIGing); for stochastic gradients Koloskova et al., NeurIPS 2021.
    """

    exchanges = ("models", "trackers")
    graphs = "balanced"

    def step(self, agent: Agent) -> Step:
        """Mix models and trackers, add the change of the gradient."""
        tracker, last = _state(agent, "tracker"), _state(agent, "last_gradient")
        models = yield gossip(agent, agent.params)
        trackers = yield gossip(agent, tracker)
        news = torch.where(agent.grad.isfinite().all(), agent.grad, last)
        agent.state["tracker"] = agent.average(tracker, trackers).add_(news).sub_(last)
        agent.state["last_gradient"] = news
        agent.grad = agent.state["tracker"] + (agent.grad - news)  # the tracker; not finite where the gradient is not
        agent.mix(models)


def _state(agent: Agent, name: str) -> Tensor:
    """A vector `[d]` kept from the last step; zeros at first."""
    vector: Tensor = agent.state.get(name, torch.zeros_like(agent.params))
    return vector
