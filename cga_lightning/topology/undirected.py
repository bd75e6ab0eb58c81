"""Graphs whose edges go both ways, as cross-gradients need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, product
from math import isqrt, log

import numpy as np

from cga_lightning.topology.base import Topology, hops, powers_of_two
from cga_lightning.topology.links import Edge, Links


class Ring(Topology):
    """Each agent talks to the next and the previous one; two agents talk to each other."""

    def edges(self, agents: int) -> Iterable[Edge]:
        """Rank r and rank r + 1, around the ring."""
        return hops(agents, 1)


class Complete(Topology):
    """Everybody talks to everybody (fully connected)."""

    def edges(self, agents: int) -> Iterable[Edge]:
        """All pairs."""
        return combinations(range(agents), 2)


@dataclass(frozen=True, repr=False)
class Bipartite(Topology):
    """Complete bipartite graph: the first `left` agents against all others.

    The default is the graph of the published CGA experiments, agents 0 and 1 against the rest. Two agents are
    always one against one.

    Raises:
        ValueError: `left` leaves one side empty.
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
    """Grid of `rows` x N/rows agents with wrap-around; up to 4 neighbors each.

    Args:
        agents: number N of agents.
        rows: a divisor of N; by default the largest up to sqrt(N). A prime N gives one row, which is a ring.

    Raises:
        ValueError: `rows` does not divide N.
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
        return [edge for hop in powers_of_two(agents) for edge in hops(agents, hop)]


@dataclass(frozen=True, repr=False)
class ErdosRenyi(Topology):
    """Random graph: each pair is an edge with probability `p`, drawn anew until the graph is connected.

    The same arguments give the same graph everywhere.

    Raises:
        ValueError: `p` is not in (0, 1], or no connected graph in 100 draws.
    """

    p: float = 0.5
    seed: int = 0

    def edges(self, agents: int) -> Iterable[Edge]:
        """Draw the pairs that are connected."""
        if not 0 < self.p <= 1:
            raise ValueError(f"ErdosRenyi needs 0 < p <= 1, got p={self.p}.")
        generator = np.random.default_rng(self.seed)
        for _ in range(100):
            pairs = np.argwhere(np.triu(generator.random((agents, agents)) < self.p, k=1))
            if Links.among(agents, pairs, both_ways=True).connected:
                return [(first, second) for first, second in pairs.tolist()]
        raise ValueError(
            f"ErdosRenyi drew no connected graph of {agents} agents in 100 draws with p={self.p};"
            f" raise p above ln(N)/N = {log(agents) / agents:.2g}."
        )


class Star(Topology):
    """Agent 0 talks to everybody, all others to agent 0 only."""

    def edges(self, agents: int) -> Iterable[Edge]:
        """Agent 0 and each other one."""
        return [(0, rank) for rank in range(1, agents)]


@dataclass(frozen=True, repr=False)
class Tree(Topology):
    """Agent 0 is the root, and each agent has up to `branches` children, level by level.

    Raises:
        ValueError: `branches` is less than 1.
    """

    branches: int = 2

    def edges(self, agents: int) -> Iterable[Edge]:
        """Each agent but the root and its parent."""
        if self.branches < 1:
            raise ValueError(f"Tree needs branches of at least 1, got branches={self.branches}.")
        return [((rank - 1) // self.branches, rank) for rank in range(1, agents)]


class Hypercube(Topology):
    """Ranks that differ in one bit are neighbors: log2 N each if N is a power of two, at most as many else."""

    def edges(self, agents: int) -> Iterable[Edge]:
        """Each rank and those with one bit more that exist."""
        pairs = ((rank, rank ^ bit) for bit in powers_of_two(agents) for rank in range(agents))
        return [(rank, other) for rank, other in pairs if rank < other < agents]


@dataclass(frozen=True, repr=False)
class SmallWorld(Topology):
    """A ring with shortcuts: from each agent, with probability `p`, one to an agent drawn at random.

    The same arguments give the same graph everywhere. Source: Newman and Watts, "Renormalization Group Analysis of the
    Small-World Network Model", Physics Letters A 263, 1999.

    Raises:
        ValueError: `p` is not in [0, 1].
    """

    p: float = 0.5
    seed: int = 0

    def edges(self, agents: int) -> Iterable[Edge]:
        """The ring, then the shortcuts that are drawn."""
        if not 0 <= self.p <= 1:
            raise ValueError(f"SmallWorld needs 0 <= p <= 1, got p={self.p}.")
        generator = np.random.default_rng(self.seed)
        drawn = np.flatnonzero(generator.random(agents) < self.p).tolist()
        lengths = generator.integers(1, agents, size=agents).tolist()
        return [*hops(agents, 1), *((rank, (rank + lengths[rank]) % agents) for rank in drawn)]


def _most_square(agents: int) -> int:
    """The largest divisor up to the square root."""
    return max(rows for rows in range(1, isqrt(agents) + 1) if agents % rows == 0)
