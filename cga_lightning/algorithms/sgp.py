"""Stochastic Gradient Push."""

from __future__ import annotations

import torch
from torch import Tensor

from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step, gossip


class SGP(Algorithm):
    """Push-sum: averages on directed graphs too, where agents may have more edges in than out.

    Column-stochastic mixing weights keep the sum of all models, but not each model's share in it. So agent j keeps the
    push-sum numerator x^j and the push-sum weight w^j, 1 at the start. Gradients are taken, and models evaluated, at
    the de-biased z^j = x^j / w^j, which is what `agent.params` holds between steps:

        x^j <- x^j - lr * grad F_j(z^j),    (x^j, w^j) <- sum_l pi_jl (x^l, w^l),    z^j = x^j / w^j.

    Where the weights are doubly stochastic, all w^j stay 1.

    Source: Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019, Algorithm 1.
    """

    exchanges = ("models",)
    graphs = "any"
    averages_models_only = True

    def step(self, agent: Agent) -> Step:
        """Let the optimizer step from the numerator x, with the gradient at z."""
        agent.params = agent.params * _weight(agent)
        yield from ()

    def after_step(self, agent: Agent) -> Step:
        """Push the numerator x and the weight w as one message, and de-bias."""
        own = torch.cat([agent.params, _weight(agent)])
        received = yield gossip(agent, own)
        total = agent.average(own, received)
        numerator, weight = total[:-1], total[-1:]
        agent.state["push_sum_weight"] = weight.clone()
        agent.params = numerator / weight


def _weight(agent: Agent) -> Tensor:
    """The push-sum weight w `[1]`."""
    weight: Tensor = agent.state.get("push_sum_weight", agent.params.new_ones(1))
    return weight
