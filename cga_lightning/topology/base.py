"""What every topology is: edges, and all that follows from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from cga_lightning.topology.mixing import (
    Links,
    Matrix,
    connected,
    metropolis_weights,
    push_weights,
    spectral_gap,
)

Edge = tuple[int, int]


@dataclass(frozen=True, repr=False)
class Topology(ABC):
    """A connected graph over N agents with a mixing matrix.

    Entry ``[i, j]`` of the mixing matrix is the weight that agent i gives to what it receives from agent j:
    ``x_i <- sum_j W[i, j] x_j``. Undirected graphs have Metropolis-Hastings weights, ``1 / (deg + 1)`` where
    all degrees are equal. On directed graphs each agent shares its mass out evenly, itself included: columns
    sum to 1, which is what push-sum needs; rows do too if all agents have equally many edges in and out.

    Args:
        agents: number N of agents; None leaves the topology unbound, see :meth:`bind`.

    Raises:
        ValueError: too few agents, an argument out of range, or a graph that is not connected.
    """

    agents: int | None = None
    directed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.agents is not None:
            self._check(self.agents)

    @abstractmethod
    def edges(self, agents: int) -> Iterable[Edge]:
        """Pairs (sender, receiver) among that many agents; one direction is enough unless ``directed``."""

    def bind(self, agents: int) -> Topology:
        """Return this topology for that number of agents: itself if it already describes that many.

        Raises:
            ValueError: it is bound to another number.
        """
        if self.agents is None:
            return replace(self, agents=agents)
        if self.agents != agents:
            raise ValueError(
                f"{self!r} describes {self.agents} agents, but the run has {agents}; run {self.agents} "
                f"agents, or build the topology for {agents}."
            )
        return self

    def at(self, step: int) -> Topology:
        """Return the graph of that step: itself, unless the topology varies in time."""
        return self

    @property
    def symmetric(self) -> bool:
        """Whether, at every step, each edge has a way back."""
        return np.array_equal(self._links, self._links.T)

    def neighbors(self, rank: int) -> list[int]:
        """Agents that exchange messages with ``rank``, sorted, without itself.

        Raises:
            ValueError: some edge has no way back; ask for ``in_neighbors`` and ``out_neighbors`` there.
        """
        if not self.symmetric:
            raise ValueError(f"{self!r} is directed; use in_neighbors(rank) and out_neighbors(rank).")
        return self.in_neighbors(rank)

    def in_neighbors(self, rank: int) -> list[int]:
        """Agents from which ``rank`` receives, sorted, without itself."""
        return [int(sender) for sender in np.flatnonzero(self._links[self._known(rank)])]

    def out_neighbors(self, rank: int) -> list[int]:
        """Agents to which ``rank`` sends, sorted, without itself."""
        return [int(receiver) for receiver in np.flatnonzero(self._links[:, self._known(rank)])]

    def mixing_matrix(self) -> Matrix:
        """Return W, float64 ``[N, N]``: doubly stochastic on every topology of this package."""
        return np.array(self._mixing)

    def spectral_gap(self) -> float:
        """Return 1 - |second largest eigenvalue of W|: 1 agrees in one step, near 0 mixes slowly."""
        return self._gap

    def __repr__(self) -> str:
        settings = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "agents"]
        count = [] if self.agents is None else [str(self.agents)]
        return f"{type(self).__name__}({', '.join(count + settings)})"

    def _check(self, agents: int) -> None:
        if agents < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 agents, got {agents}; set devices=2 or more, or use "
                "SimulatedStrategy(agents=...)."
            )
        if not connected(self._links):
            raise ValueError(f"{self!r} is not connected: some agents never hear of others; add edges.")

    def _bound(self) -> int:
        if self.agents is None:
            raise ValueError(
                f"{self!r} is not bound to a number of agents; call bind(agents), or build it with "
                f"{type(self).__name__}(agents=...)."
            )
        return self.agents

    def _known(self, rank: int) -> int:
        agents = self._bound()
        if not 0 <= rank < agents:
            raise ValueError(f"{self!r} has the ranks 0 to {agents - 1}, got {rank}.")
        return rank

    @cached_property
    def _links(self) -> Links:
        """``[N, N]``: True at [i, j] where agent i receives from agent j; False on the diagonal."""
        agents = self._bound()
        links = np.zeros((agents, agents), dtype=bool)
        for sender, receiver in self.edges(agents):
            links[receiver, sender] = True
        np.fill_diagonal(links, False)
        return links if self.directed else links | links.T

    @cached_property
    def _mixing(self) -> Matrix:
        return push_weights(self._links) if self.directed else metropolis_weights(self._links)

    @cached_property
    def _gap(self) -> float:
        return spectral_gap(self._mixing)


def hops(agents: int, hop: int) -> list[Edge]:
    """Each rank with the one ``hop`` ranks ahead, around the ring."""
    return [(rank, (rank + hop) % agents) for rank in range(agents)]


def powers_of_two(agents: int) -> list[int]:
    """1, 2, 4, ... below the number of agents."""
    return [1 << k for k in range((agents - 1).bit_length())]
