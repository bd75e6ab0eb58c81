"""Neighborhood Gradient Clustering."""

from __future__ import annotations

from cga_lightning.algorithms.compressed import compressed, compressor_of
from cga_lightning.compression import Compressor
from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, LazyMessages, Messages, Step


class NGC(Algorithm):
    """Step along the weighted mean of the own gradient and of all cross-gradients around agent j.

    Model-variant ones, grad F_j(x^l), are of the neighbors' models on the own data; data-variant ones, grad F_l(x^j),
    are of the own model on the neighbors' data:

        direction = sum_l pi_jl ((1 - alpha) grad F_j(x^l) + alpha grad F_l(x^j)),    l = j included.

    Args:
        alpha: the share of the data-variant ones, in [0, 1]; 1 in the published runs. With 0 no gradient is sent.
        compressor: sends the cross-gradients in fewer bytes; an object, or a name for one with its defaults. CompNGC
            is `NGC(compressor="scaled_sign")`.

    Raises:
        ValueError: for alpha out of range, or an unknown name of a compressor.
        TypeError: for a compressor that is neither a name nor a `Compressor`.

    Source: Aketi et al., "Neighborhood Gradient Clustering: An Efficient Decentralized Learning Method for Non-IID Data
    Distributions", arXiv 2209.14390, 2022, Algorithm 1.
    """

    exchanges = ("models", "cross_gradients")

    def __init__(self, *, alpha: float = 1.0, compressor: Compressor | str | None = None) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"NGC(alpha=...) must be in [0, 1], got {alpha}.")
        self.alpha = alpha
        self.compressor = compressor_of(compressor)

    def step(self, agent: Agent) -> Step:
        """Exchange models, return cross-gradients, take the mean of both kinds, mix."""
        models = yield {rank: agent.params for rank in agent.neighbors}
        model_variant = LazyMessages(models, lambda rank: agent.gradient(at=models[rank]), like=agent.params)
        data_variant: Messages = {}
        if self.alpha:
            data_variant = yield from compressed(agent, "cross_gradients", model_variant, self.compressor)
        direction = agent.average(agent.grad, model_variant)
        if self.alpha:
            direction.lerp_(agent.average(agent.grad, data_variant), self.alpha)
        agent.grad = direction
        agent.mix(models)
