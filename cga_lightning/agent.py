"""An agent: one participant's model as a flat vector, its gradient, and what it knows of its neighborhood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cga_lightning.flat import FlatLayout
from cga_lightning.topology import Topology

GradientAt = Callable[[Tensor], Tensor]


class Agent:
    """What an algorithm sees: agent `rank` of N in a topology, with parameters `[d]`.

    Args:
        rank: which agent this is, 0 to N - 1.
        topology: a graph of N agents.
        params: the flat parameters `[d]`. The agent owns this buffer from now on.
        gradient_at: computes the gradient `[d]` of this agent's loss, on its current data, at parameters `[d]`.
        layout: where each parameter lies in the flat vectors; one parameter without padding if not given.

    Attributes:
        params: this agent's model x^j `[d]`.
        grad: its gradient at `params` `[d]`; an algorithm overwrites it with the direction of the optimizer step.
        step: how many steps this agent has made.
        state: what an algorithm keeps from step to step. Tensors and plain containers, so that it can be saved.
        diagnostics: what an algorithm reports about its last step: scalars by name, on the device of `params`.
    """

    def __init__(
        self,
        rank: int,
        topology: Topology,
        params: Tensor,
        gradient_at: GradientAt,
        layout: FlatLayout | None = None,
    ) -> None:
        self.rank = rank
        self.topology = topology
        self.params = params
        self.layout = FlatLayout([params], alignment=1) if layout is None else layout
        self.step = 0
        self.state: dict[str, Any] = {}
        self.diagnostics: dict[str, Tensor] = {}
        self._gradient_at = gradient_at
        self._grad: Tensor | None = None
        self._mixed = torch.empty_like(params)

    @property
    def grad(self) -> Tensor:
        """The gradient of this step `[d]`; available once the agent has computed it."""
        if self._grad is None:
            raise RuntimeError(
                "This step's own gradient is not computed yet: it is available after the first exchange of a step."
            )
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._grad = value

    @property
    def neighbors(self) -> list[int]:
        """The agents that this one exchanges messages with at this step, in ascending order."""
        return self.topology.at(self.step).neighbors(self.rank)

    @property
    def in_neighbors(self) -> list[int]:
        """The agents that this one receives from at this step, in ascending order: the neighbors, if undirected."""
        return self.topology.at(self.step).in_neighbors(self.rank)

    @property
    def out_neighbors(self) -> list[int]:
        """The agents that this one sends to at this step, in ascending order: the neighbors, if undirected."""
        return self.topology.at(self.step).out_neighbors(self.rank)

    @property
    def weights(self) -> dict[int, float]:
        """The mixing weights pi_jl of itself and of those that this agent receives from, at this step."""
        row = self.topology.at(self.step).mixing_matrix()[self.rank]
        return {rank: float(row[rank]) for rank in (self.rank, *self.in_neighbors)}

    def gradient(self, *, at: Tensor) -> Tensor:
        """The gradient `[d]` of this agent's loss on the data of this step, at the parameters `at` `[d]`."""
        return self._gradient_at(at)

    def average(self, own: Tensor, received: Mapping[int, Tensor], out: Tensor | None = None) -> Tensor:
        """Return sum_l pi_jl m^l over the `own` vector and those `received` from all in-neighbors."""
        weights = self.weights
        mean = torch.mul(own, weights[self.rank], out=out)
        for rank in sorted(received):
            mean.add_(received[rank], alpha=weights[rank])
        return mean

    def mix(self, models: Mapping[int, Tensor]) -> None:
        """Replace `params` by the average of the own model and the received `models`.

        The old buffer is left as it is until the next call, since neighbors may still read it.
        """
        self.params, self._mixed = self.average(self.params, models, out=self._mixed), self.params
