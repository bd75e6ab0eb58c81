"""What every topology is: edges, and all that follows from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from cga_lightning.topology.links import Edge, Links, pairs_of_ranks
from cga_lightning.topology.mixing import ROUNDING, Matrix, check_fits, metropolis_weights, push_weights, spectral_gap


@dataclass(frozen=True, repr=False)
class Topology(ABC):
    """A graph over N agents with a mixing matrix.

    Entry `[i, j]` of the mixing matrix is the weight that agent i gives to what it receives from agent j:
    `x_i <- sum_j W[i, j] x_j`. Undirected graphs have Metropolis-Hastings weights, `1 / (deg + 1)` where all degrees
    are equal. On directed graphs each agent shares its mass out evenly, itself included: columns sum to 1, which is
    what push-sum needs; rows do too if all agents have equally many edges in and out. Override `mixing_matrix` for
    other weights.

    A graph that varies in time overrides `at` too: then the topology stands for all steps together, with the edges of
    all of them and the mean of their mixing matrices. A run needs a topology that is connected as a whole.

    Args:
        agents: number N of agents; None leaves the topology unbound, see `bind`.

    Raises:
        ValueError: too few agents, an argument out of range, or an edge that is not a pair of ranks.
    """

    agents: int | None = None
    directed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.agents is not None:
            self._check(self.agents)

    @abstractmethod
    def edges(self, agents: int) -> Iterable[Edge]:
        """Pairs (sender, receiver) among that many agents; one direction is enough unless `directed`.

        If the graph varies in time: the pairs of all steps.
        """

    def at(self, step: int) -> Topology:
        """Return the graph of that step, among as many agents: itself, unless the topology varies in time."""
        return self

    def mixing_matrix(self) -> Matrix:
        """Return W, float64 `[N, N]`: doubly stochastic on every topology of this package."""
        if any(graph is self for graph in self.phases):
            return push_weights(self._links) if self.directed else metropolis_weights(self._links)
        total = np.zeros((self._bound(), self._bound()))
        for graph in self.phases:
            total += graph.mixing_matrix()
        return total / len(self.phases)

    def bind(self, agents: int) -> Topology:
        """Return this topology for a run of that many agents: itself if it already describes that many.

        Raises:
            ValueError: it is bound to another number; it is not connected, or its agents swap models for ever without
                agreeing; a step has an edge that `edges` lacks, or no step has one of them; the mixing matrix has
                another shape, or a weight where there is no edge.
        """
        bound = replace(self, agents=agents) if self.agents is None else self
        if bound.agents != agents:
            raise ValueError(
                f"{self!r} describes {self.agents} agents, but the run has {agents}; run {self.agents} "
                f"agents, or build the topology for {agents}."
            )
        bound._check_agreement()
        return bound

    @property
    def phases(self) -> tuple[Topology, ...]:
        """The graphs of the first steps, until every edge had its turn: only itself, unless it varies in time.

        Raises:
            ValueError: a step has an edge that `edges` lacks or another number of agents, or an edge has no step.
        """
        return (self,) if type(self).at is Topology.at else self._first_steps

    @cached_property
    def symmetric(self) -> bool:
        """Whether, at every step, each edge has a way back."""
        return all(graph._links.symmetric for graph in self.phases)

    def neighbors(self, rank: int) -> list[int]:
        """Agents that exchange messages with `rank`, sorted, without itself.

        Raises:
            ValueError: some edge has no way back; ask for `in_neighbors` and `out_neighbors` there.
        """
        if not self.symmetric:
            raise ValueError(f"{self!r} is directed; use in_neighbors(rank) and out_neighbors(rank).")
        return self.in_neighbors(rank)

    def in_neighbors(self, rank: int) -> list[int]:
        """Agents from which `rank` receives, sorted, without itself."""
        return self._links.heard_by(self._known(rank))

    def out_neighbors(self, rank: int) -> list[int]:
        """Agents to which `rank` sends, sorted, without itself."""
        return self._links.reversed.heard_by(self._known(rank))

    def weights(self, rank: int) -> dict[int, float]:
        """The mixing weights of `rank` itself and of those from which it receives: its row of the mixing matrix."""
        own, received = self._weights
        weights = received[self._links.of(self._known(rank))].tolist()
        return {rank: float(own[rank]), **dict(zip(self.in_neighbors(rank), weights, strict=True))}

    def highest_degree(self) -> tuple[int, int]:
        """Return the agent that receives from most others in one step, and from how many."""
        degrees = np.max([graph._links.degrees for graph in self.phases], axis=0)
        rank = int(degrees.argmax())
        return rank, int(degrees[rank])

    @cached_property
    def diameter(self) -> int:
        """How many edges lie between the two agents that are farthest apart, whatever their direction and step."""
        return self._links.diameter

    def spectral_gap(self) -> float:
        """Return 1 - |second largest eigenvalue of W|: 1 agrees in one step, near 0 mixes slowly."""
        return self._gap

    def eigenvalues(self) -> Matrix:
        """Return the eigenvalues of the mixing matrix, float64 `[N]`, in ascending order: the last one is 1.

        Raises:
            ValueError: the mixing matrix is not symmetric.
        """
        eigenvalues: Matrix = self._eigenvalues.copy()
        return eigenvalues

    def __repr__(self) -> str:
        settings = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "agents"]
        count = [] if self.agents is None else [str(self.agents)]
        return f"{type(self).__name__}({', '.join(count + settings)})"

    def __getstate__(self) -> dict[str, object]:
        """Without what follows from the rest."""
        derived = {name for name in vars(self) if isinstance(getattr(type(self), name, None), cached_property)}
        return {name: value for name, value in vars(self).items() if name not in derived}

    def _check(self, agents: int) -> None:
        if agents < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 agents, got {agents}; set devices=2 or more, or use "
                "SimulatedStrategy(agents=...)."
            )
        _ = self._links  # `edges` refuses arguments out of range

    def _check_agreement(self) -> None:
        if not self._links.connected:
            raise ValueError(f"{self!r} is not connected: some agents never hear of others; add edges.")
        given = [graph for graph in (self, *self.phases) if graph._has_own_weights]
        for graph in given:
            check_fits(graph._matrix(), graph._links)
        if given and self._gap < 1e-9:  # default weights always leave some to the agent itself, so they agree
            name = type(self).__name__
            raise ValueError(f"{name} never reaches agreement (spectral gap 0); give the diagonal some weight.")

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
        agents = self._bound()
        return Links.among(agents, pairs_of_ranks(self.edges(agents), agents), both_ways=not self.directed)

    @cached_property
    def _first_steps(self) -> tuple[Topology, ...]:
        """The graphs of the steps 0, 1, 2, ... up to the one by which every link had its turn."""
        links, graphs = self._links, []
        missing = np.ones(len(links.keys), dtype=bool)
        patience = 100 + len(missing) * len(missing).bit_length()  # enough to draw one edge per step
        for step in range(patience):
            graphs.append(self._graph_of(step))
            missing &= ~links.within(graphs[-1]._links)
            if not missing.any():
                return tuple(graphs)
        raise ValueError(
            f"{self!r} has the edge {links.edges(missing)[0]} in edges(), but none of the steps 0 to {patience - 1} "
            "has it; edges() gives the edges of all steps together, and no others."
        )

    def _graph_of(self, step: int) -> Topology:
        graph = self.at(step)
        if not isinstance(graph, Topology) or graph.agents != self._bound():
            raise ValueError(f"{self!r}.at({step}) must return a Topology of {self.agents} agents, got {graph!r}.")
        if graph is not self and graph.at(step) is not graph:
            raise ValueError(f"{self!r}.at({step}) must return the graph of one step, but {graph!r} varies itself.")
        for edge in graph._links.edges(~graph._links.within(self._links)):
            raise ValueError(f"{self!r} has the edge {edge} at step {step}, which edges() lacks; add it there.")
        return graph

    @cached_property
    def _weights(self) -> tuple[Matrix, Matrix]:
        """The weights of the agents themselves `[N]`, and of the links `[E]`."""
        matrix = self._matrix()
        return matrix.diagonal().copy(), matrix[self._links.receivers, self._links.senders]

    @cached_property
    def _gap(self) -> float:
        return spectral_gap(self._matrix())

    @cached_property
    def _eigenvalues(self) -> Matrix:
        matrix = self._matrix()
        if not np.allclose(matrix, matrix.T, atol=ROUNDING):
            raise ValueError(f"The mixing matrix of {self!r} must be symmetric here; use an undirected topology.")
        return np.linalg.eigvalsh(matrix).astype(np.float64)

    @property
    def _has_own_weights(self) -> bool:
        return type(self).mixing_matrix is not Topology.mixing_matrix

    def _matrix(self) -> Matrix:
        return np.asarray(self.mixing_matrix(), dtype=np.float64)


def hops(agents: int, hop: int) -> list[Edge]:
    """Each rank with the one `hop` ranks ahead, around the ring."""
    return [(rank, (rank + hop) % agents) for rank in range(agents)]


def powers_of_two(agents: int) -> list[int]:
    """1, 2, 4, ... below the number of agents."""
    return [1 << k for k in range((agents - 1).bit_length())]
