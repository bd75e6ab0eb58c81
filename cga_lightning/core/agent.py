"""An agent: one participant's model as a flat vector, its gradient, and what it knows of its neighborhood."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cga_lightning.core.layout import FlatLayout
from cga_lightning.core.state import AlgorithmState
from cga_lightning.topology import Topology

GradientAt = Callable[[Tensor], Tensor]


class GradientNotComputed(RuntimeError):
    """An algorithm asked for the own gradient of a step before the agent has seen its data."""


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
        step: how many steps this agent has made.
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
        self.diagnostics: dict[str, Tensor] = {}
        self._gradient_at = gradient_at
        self._grad: Tensor | None = None
        self._own_gradient: Callable[[], Tensor] | None = None
        self._mixed = torch.empty_like(params)
        self._graph, self._graph_step = topology, -1  # that of no step yet
        self._state = AlgorithmState()
        self._running: object = None  # the algorithm whose generator is being resumed

    # --- the gradient

    @property
    def grad(self) -> Tensor:
        """The own gradient of this step `[d]`; an algorithm overwrites it with the direction of the optimizer step.

        Raises:
            GradientNotComputed: before the agent has computed it. Under a `StepDriver` an algorithm never sees that.
        """
        if self._grad is None:
            if self._own_gradient is None:
                raise GradientNotComputed(
                    "This step's own gradient is not computed yet. By hand: it is available after the first exchange "
                    "of a step, once it was assigned; a StepDriver has it whenever an algorithm asks."
                )
            self._grad, self._own_gradient = self._own_gradient(), None  # whose parts may be large
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._grad = value

    def await_gradient(self) -> None:
        """A step begins: there is no own gradient yet."""
        self._grad = self._own_gradient = None

    def offer_gradient(self, own_gradient: Callable[[], Tensor]) -> None:
        """The own gradient is there: `own_gradient()` is called if an algorithm asks for it."""
        self._own_gradient = own_gradient

    @property
    def direction(self) -> Tensor | None:
        """The direction of the optimizer step `[d]`; None where no algorithm has asked for the own gradient."""
        return self._grad

    def gradient(self, *, at: Tensor) -> Tensor:
        """The gradient `[d]` of this agent's loss on the data of this step, at the parameters `at` `[d]`."""
        return self._gradient_at(at)

    # --- the neighborhood

    @property
    def graph(self) -> Topology:
        """The graph of this step."""
        if self._graph_step != self.step:
            self.enter(self.topology.at(self.step))
        return self._graph

    def enter(self, graph: Topology) -> None:
        """Use `graph` as that of this step; agents of one process share it."""
        self._graph, self._graph_step = graph, self.step

    @property
    def neighbors(self) -> list[int]:
        """The agents that this one exchanges messages with at this step, in ascending order."""
        return self.graph.neighbors(self.rank)

    @property
    def in_neighbors(self) -> list[int]:
        """The agents that this one receives from at this step, in ascending order: the neighbors, if undirected."""
        return self.graph.in_neighbors(self.rank)

    @property
    def out_neighbors(self) -> list[int]:
        """The agents that this one sends to at this step, in ascending order: the neighbors, if undirected."""
        return self.graph.out_neighbors(self.rank)

    @property
    def weights(self) -> dict[int, float]:
        """The mixing weights pi_jl of itself and of those that this agent receives from, at this step."""
        return self.graph.weights(self.rank)

    def average(self, own: Tensor, received: Mapping[int, Tensor], out: Tensor | None = None) -> Tensor:
        """Return sum_l pi_jl m^l over the `own` vector and those `received` from all in-neighbors."""
        weights = self.weights
        mean = torch.mul(own, weights[self.rank], out=out)
        for rank in sorted(received):
            mean.add_(received[rank], alpha=weights[rank])
        return mean

    def mix(self, models: Mapping[int, Tensor]) -> None:
        """Replace `params` by the average of the own model and the received `models`.

        The old buffer serves the next call: to allocate one costs more than to mix.
        """
        if self._mixed is self.params:  # an algorithm has gone back to a model of before
            self._mixed = torch.empty_like(self.params)
        self.params, self._mixed = self.average(self.params, models, out=self._mixed), self.params

    # --- what algorithms remember

    @property
    def state(self) -> dict[str, Any]:
        """What the running algorithm keeps from step to step; outside of a step, what the outermost one keeps.

        Tensors and plain containers, so that it can be saved. An algorithm inside another has a state of its own.
        """
        return self._state.own

    @contextmanager
    def running(self, algorithm: object) -> Iterator[None]:
        """Inside, `state` is that of `algorithm`, which the algorithm running now may hold as an attribute."""
        outer = self._running, self._state
        if self._running not in (None, algorithm):
            self._state = self._state.of(algorithm, self._running)
        self._running = algorithm
        try:
            yield
        finally:
            self._running, self._state = outer

    def state_dict(self) -> dict[str, Any]:
        """The step and the states of all algorithms, not copied."""
        return {"step": self.step, "state": self._state.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.step = saved["step"]
        self._state = AlgorithmState.from_state_dict(saved["state"])

    def snapshot(self) -> Callable[[], None]:
        """Remember what an algorithm may replace; calling what is returned puts it back."""
        params, state, diagnostics = self.params, self._state.copy(), dict(self.diagnostics)

        def restore() -> None:
            self.params, self._state, self.diagnostics = params, state, diagnostics

        return restore
