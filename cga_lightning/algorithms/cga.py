"""Cross-Gradient Aggregation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cga_lightning.algorithms.compressed import compressed, compressor_of
from cga_lightning.compression import Compressor
from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, LazyMessages, Messages, Step
from cga_lightning.names import check_choice
from cga_lightning.ops import MOST_ROWS, Status, project_


class CGA(Algorithm):
    """Step along the direction closest to the own gradient that hurts no neighbor.

    With g^jj the own gradient of agent j and g^jl = grad F_l(x^j) the cross-gradient that neighbor l returns for it,
    the direction is g^jj + sum_l v_l g^jl, where v solves

        min_{v >= margin}  1/2 v' G G' v + (G g^jj)' v,      G = rows g^jl.

    That is the projection of g^jj + margin * sum_l g^jl onto the cone of directions that have a non-negative inner
    product with every cross-gradient.

    Args:
        margin: the lower bound of v, at least 0: how much of every cross-gradient is added before projecting.
        weights: "uniform" takes the gradients as they are; "mixing" scales each by its mixing weight pi_jl first, so
            that margin=1 projects the weighted mean of all gradients.
        scope: "model" solves one problem for all parameters; "layer" one for each parameter tensor.
        eps: relative ridge of the quadratic program; the operator's default for the dtype if None.
        compressor: sends the cross-gradients in fewer bytes; an object, or a name for one with its defaults. CompCGA
            is `CGA(compressor="scaled_sign")`.

    Raises:
        ValueError: for a negative margin or eps, or an unknown weights, scope or name of a compressor.
        TypeError: for a compressor that is neither a name nor a `Compressor`.

    Source: Esfandiari et al., "Cross-Gradient Aggregation for Decentralized Learning from Non-IID Data", ICML 2021
    (PMLR 139:3036-3046), Algorithm 1. `CGA(margin=0, weights="uniform")` is its quadratic program.
    """

    exchanges = ("models", "cross_gradients")
    most_neighbors = MOST_ROWS

    def __init__(
        self,
        *,
        margin: float = 1.0,
        weights: Literal["uniform", "mixing"] = "mixing",
        scope: Literal["model", "layer"] = "model",
        eps: float | None = None,
        compressor: Compressor | str | None = None,
    ) -> None:
        for name, value in (("margin", margin), ("eps", eps)):
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"CGA({name}=...) must be a finite number of at least 0, got {value!r}.")
        for name, choice, allowed in (("weights", weights, _WEIGHTS), ("scope", scope, _SCOPES)):
            check_choice(f"CGA({name}=...)", choice, allowed)
        self.margin = margin
        self.weights = weights
        self.scope = scope
        self.eps = eps
        self.compressor = compressor_of(compressor)

    @classmethod
    def reference(cls) -> CGA:
        """The rule of the published code: gradients scaled by pi, v >= 0.5, one program per parameter tensor."""
        return cls(margin=0.5, weights="mixing", scope="layer")

    def step(self, agent: Agent) -> Step:
        """Exchange models, return cross-gradients, project, mix."""
        models = yield {rank: agent.params for rank in agent.neighbors}
        gradients = LazyMessages(models, lambda rank: agent.gradient(at=models[rank]), like=agent.params)
        cross_gradients = yield from compressed(agent, "cross_gradients", gradients, self.compressor)
        if cross_gradients:  # an agent that has nobody at this step goes along its own gradient
            self._project(agent, cross_gradients)
        agent.mix(models)

    def _project(self, agent: Agent, cross_gradients: Messages) -> None:
        ranks = sorted(cross_gradients)
        rows = [cross_gradients[rank] for rank in ranks]
        weights = agent.weights if self.weights == "mixing" else dict.fromkeys((agent.rank, *ranks), 1.0)
        largest = max(weights.values())
        for rank, gradient in zip((agent.rank, *ranks), (agent.grad, *rows), strict=True):
            _scale(gradient, weights[rank] / largest)  # nothing to do on regular graphs
        offsets = agent.layout.offsets if self.scope == "layer" else None
        projection = project_(rows, agent.grad, margin=self.margin, offsets=offsets, eps=self.eps)
        _scale(agent.grad, largest)
        agent.diagnostics["conflicts"] = (projection.dual > self.margin).mean(dtype=torch.float64)
        agent.diagnostics["non_finite"] = (projection.status == Status.NON_FINITE).mean(dtype=torch.float64)


def _scale(tensor: Tensor, factor: float) -> None:
    if abs(factor - 1) > 1e-12:  # where mixing weights are equal but for their rounding
        tensor.mul_(factor)


_WEIGHTS = ("uniform", "mixing")
_SCOPES = ("model", "layer")
