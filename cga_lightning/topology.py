"""Communication graphs: who talks to whom, and with which weight each agent takes up what it receives.

A topology is an immutable value. It is bound to a number of agents (``Ring(5)``), or left open (``Ring()``)
until ``bind(agents)`` gives it the number of the run. Every other quantity derives from the edges.

A new topology is one subclass with one method::

    class Star(Topology):
        def edges(self, agents):
            return [(0, rank) for rank in range(1, agents)]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import combinations, product
from math import isqrt, log
from typing import ClassVar

import numpy as np

from cga_lightning.mixing import (
    Links,
    Matrix,
    check_doubly_stochastic,
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

    def neighbors(self, rank: int) -> list[int]:
        """Agents that exchange messages with ``rank``, sorted, without itself.

        Raises:
            ValueError: some edge has no way back; ask for ``in_neighbors`` and ``out_neighbors`` there.
        """
        if not np.array_equal(self._links, self._links.T):
            raise ValueError(f"{self!r} is directed; use in_neighbors(rank) and out_neighbors(rank).")
        return self.in_neighbors(rank)

    def in_neighbors(self, rank: int) -> list[int]:
        """Agents from which ``rank`` receives, sorted, without itself."""
        return [int(sender) for sender in np.flatnonzero(self._links[self._known(rank)])]

    def out_neighbors(self, rank: int) -> list[int]:
        """Agents to which ``rank`` sends, sorted, without itself."""
        return [int(receiver) for receiver in np.flatnonzero(self._links[:, self._known(rank)])]

    def mixing_matrix(self) -> Matrix:
        """Return W, float64 ``[N, N]``: doubly stochastic on every topology of this module."""
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


class Ring(Topology):
    """Each agent talks to the next and the previous one; two agents talk to each other."""

    def edges(self, agents: int) -> Iterable[Edge]:
        """Rank r and rank r + 1, around the ring."""
        return _hops(agents, 1)


class Complete(Topology):
    """Everybody talks to everybody (fully connected)."""

    def edges(self, agents: int) -> Iterable[Edge]:
        """All pairs."""
        return combinations(range(agents), 2)


@dataclass(frozen=True, repr=False)
class Bipartite(Topology):
    """Complete bipartite graph: the first ``left`` agents against all others.

    The default is the graph of the published CGA experiments, agents 0 and 1 against the rest. Two agents are
    always one against one.

    Raises:
        ValueError: ``left`` leaves one side empty.
    """

    left: int = 2

    def edges(self, agents: int) -> Iterable[Edge]:
        """All pairs across the two sides."""
        left = 1 if agents == 2 else self.left
        if not 1 <= left < agents:
            raise ValueError(f"Bipartite needs 1 <= left < agents, got left={self.left} of {agents} agents.")
        return product(range(left), range(left, agents))


@dataclass(frozen=True, repr=False)
class Torus(Topology):
    """Grid of ``rows`` x N/rows agents with wrap-around; up to 4 neighbors each.

    Args:
        agents: number N of agents.
        rows: a divisor of N; by default the largest up to sqrt(N). A prime N gives one row, which is a ring.

    Raises:
        ValueError: ``rows`` does not divide N.
    """

    rows: int | None = None

    def edges(self, agents: int) -> Iterable[Edge]:
        """Each agent with its right and its lower neighbor."""
        rows = _most_square(agents) if self.rows is None else self.rows
        if rows < 1 or agents % rows:
            raise ValueError(f"Torus needs rows that divide the agents, got rows={rows} of {agents} agents.")
        grid = np.arange(agents).reshape(rows, -1)
        shifted = [np.roll(grid, -1, axis=axis).ravel().tolist() for axis in (0, 1)]
        return [edge for targets in shifted for edge in enumerate(targets)]


class Exponential(Topology):
    """Each agent talks to those 1, 2, 4, 8, ... ranks away, in both directions: O(log N) neighbors.

    The static exponential graph of Ying et al. 2021, with undirected edges so that gradients can return.
    """

    def edges(self, agents: int) -> Iterable[Edge]:
        """Rank r and rank r + 2^k, for all 2^k < N."""
        return [edge for hop in _powers_of_two(agents) for edge in _hops(agents, hop)]


@dataclass(frozen=True, repr=False)
class ErdosRenyi(Topology):
    """Random graph: each pair is an edge with probability ``p``, drawn anew until the graph is connected.

    The same arguments give the same graph everywhere.

    Raises:
        ValueError: ``p`` is not in (0, 1], or no connected graph in 100 draws.
    """

    p: float = 0.5
    seed: int = 0

    def edges(self, agents: int) -> Iterable[Edge]:
        """Draw the pairs that are connected."""
        if not 0 < self.p <= 1:
            raise ValueError(f"ErdosRenyi needs 0 < p <= 1, got p={self.p}.")
        generator = np.random.default_rng(self.seed)
        for _ in range(100):
            links = np.triu(generator.random((agents, agents)) < self.p, k=1)
            if connected(links | links.T):
                return list(zip(*(axis.tolist() for axis in np.nonzero(links)), strict=True))
        raise ValueError(
            f"ErdosRenyi drew no connected graph of {agents} agents in 100 draws with p={self.p};"
            f" raise p above ln(N)/N = {log(agents) / agents:.2g}."
        )


class DirectedRing(Topology):
    """Each agent sends to the next one only; for push-sum (SGP).

    Its weights, 1/2 kept and 1/2 sent on, are doubly stochastic, so plain gossip averages on it too.
    """

    directed = True

    def edges(self, agents: int) -> Iterable[Edge]:
        """Rank r to rank r + 1, around the ring."""
        return _hops(agents, 1)


class OnePeerExponential(Topology):
    """Time-varying: at step t each agent sends to one peer, 2^(t mod ceil(log2 N)) ranks ahead.

    ``at(step)`` is the graph of one step, which alone need not connect the agents. The topology itself stands
    for a whole period: all its edges, and the mean of its mixing matrices. If N is a power of two, one period
    averages exactly (Ying et al. 2021).
    """

    directed = True

    def edges(self, agents: int) -> Iterable[Edge]:
        """Rank r to rank r + 2^k, for all 2^k < N."""
        return [edge for hop in _powers_of_two(agents) for edge in _hops(agents, hop)]

    def at(self, step: int) -> Topology:
        """Return the graph of that step; the peers repeat after ceil(log2 N) steps."""
        return self._phases[step % len(self._phases)]

    @cached_property
    def _phases(self) -> list[Topology]:
        agents = self._bound()
        return [_Shift(agents, hop) for hop in _powers_of_two(agents)]

    @cached_property
    def _mixing(self) -> Matrix:
        mean: Matrix = np.mean([phase.mixing_matrix() for phase in self._phases], axis=0)
        return mean


@dataclass(frozen=True, repr=False)
class _Shift(Topology):
    """One step of :class:`OnePeerExponential`: rank r sends to rank r + hop. Need not be connected."""

    hop: int = 1
    directed = True

    def edges(self, agents: int) -> Iterable[Edge]:
        return _hops(agents, self.hop)

    def _check(self, agents: int) -> None:
        pass


@dataclass(frozen=True, repr=False, init=False)
class FromMatrix(Topology):
    """The graph of a given mixing matrix: i receives from j where ``matrix[i, j] > 0``.

    Args:
        matrix: doubly stochastic ``[N, N]``, rows and columns summing to 1 within 1e-6; symmetric or not.

    Raises:
        ValueError: not square, not doubly stochastic (names the row, column or entry), not connected, or
            periodic: agents swap models for ever without agreeing (a second eigenvalue of modulus 1).
    """

    matrix: tuple[tuple[float, ...], ...] = ()
    directed = True

    def __init__(self, matrix: Sequence[Sequence[float]] | Matrix) -> None:
        values = np.asarray(matrix, dtype=np.float64)
        check_doubly_stochastic(values)
        object.__setattr__(self, "matrix", tuple(map(tuple, values.tolist())))
        object.__setattr__(self, "agents", len(values))
        self._check(len(values))
        if self._gap < 1e-9:
            raise ValueError("FromMatrix never reaches agreement (spectral gap 0); give the diagonal some weight.")

    def edges(self, agents: int) -> Iterable[Edge]:
        """Sender j and receiver i of every positive entry [i, j]."""
        receivers, senders = np.nonzero(self._mixing)
        return zip(senders.tolist(), receivers.tolist(), strict=True)

    def __repr__(self) -> str:
        return f"FromMatrix({self.agents}x{self.agents})"

    @cached_property
    def _mixing(self) -> Matrix:
        return np.array(self.matrix, dtype=np.float64)


TOPOLOGIES: dict[str, type[Topology]] = {
    "ring": Ring,
    "complete": Complete,
    "bipartite": Bipartite,
    "torus": Torus,
    "exponential": Exponential,
    "erdos_renyi": ErdosRenyi,
    "one_peer_exponential": OnePeerExponential,
    "directed_ring": DirectedRing,
}


def from_name(name: str) -> Topology:
    """Return the unbound topology of that name, with its default settings.

    Raises:
        ValueError: no topology has that name.
    """
    if name not in TOPOLOGIES:
        raise ValueError(f"Unknown topology {name!r}; known: {', '.join(TOPOLOGIES)}, or pass a Topology object.")
    return TOPOLOGIES[name]()


def _hops(agents: int, hop: int) -> list[Edge]:
    return [(rank, (rank + hop) % agents) for rank in range(agents)]


def _powers_of_two(agents: int) -> list[int]:
    """1, 2, 4, ... below the number of agents."""
    return [1 << k for k in range((agents - 1).bit_length())]


def _most_square(agents: int) -> int:
    """The largest divisor up to the square root."""
    return max(rows for rows in range(1, isqrt(agents) + 1) if agents % rows == 0)
