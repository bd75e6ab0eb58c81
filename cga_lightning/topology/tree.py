"""Spanning trees: the fewest edges over which all agents still hear of all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cga_lightning.topology.base import Topology


@dataclass(frozen=True)
class SpanningTree:
    """A tree among N agents.

    Attributes:
        root: the agent from which it was made.
        parents: of every agent, the neighbor towards the root; the root's is itself.
        order: the agents, each after its parent.
    """

    root: int
    parents: tuple[int, ...]
    order: tuple[int, ...]

    def neighbors(self, rank: int) -> tuple[int, ...]:
        """The agents that `rank` has an edge to, in ascending order."""
        return self._neighbors[rank]

    def beyond(self, rank: int, weights: Sequence[float]) -> dict[int, float]:
        """By neighbor of `rank`: the sum of the weights of that neighbor and of all who are farther that way."""
        below = list(weights)
        for agent in reversed(self.order[1:]):
            below[self.parents[agent]] += below[agent]
        upwards = below[self.root] - below[rank]
        return {other: upwards if self.parents[rank] == other else below[other] for other in self.neighbors(rank)}

    @cached_property
    def diameter(self) -> int:
        """How many edges the longest path has."""
        height, longest = [0] * len(self.parents), 0
        for agent in reversed(self.order[1:]):
            parent, through = self.parents[agent], height[agent] + 1
            longest = max(longest, height[parent] + through)
            height[parent] = max(height[parent], through)
        return longest

    @cached_property
    def _neighbors(self) -> list[tuple[int, ...]]:
        neighbors: list[list[int]] = [[] for _ in self.parents]
        for agent in self.order[1:]:
            neighbors[agent].append(self.parents[agent])
            neighbors[self.parents[agent]].append(agent)
        return [tuple(sorted(ranks)) for ranks in neighbors]


def spanning_tree(topology: Topology) -> SpanningTree:
    """The tree of shortest paths from the root that makes its diameter smallest, the lowest rank of these.

    Whoever has the same topology finds the same tree. Its diameter is at most one above the smallest of all trees.

    Args:
        topology: undirected, the same at every step, and bound to N agents.

    Raises:
        ValueError: it is directed, varies in time, is not connected or not bound.
    """
    if not topology.symmetric:
        raise ValueError(f"{topology!r} has no spanning tree for messages both ways: some edges have no way back.")
    if any(graph is not topology for graph in topology.phases):
        raise ValueError(f"{topology!r} varies in time, so that no spanning tree of it stays; use a fixed topology.")
    tree = _smallest(topology.neighbors, topology.agents or 0)
    if len(tree.order) < len(tree.parents):
        raise ValueError(f"{topology!r} is not connected: some agents never hear of others; add edges.")
    return tree


@lru_cache(maxsize=8)  # one for all simulated agents; a bound method stands for this very topology, not its equals
def _smallest(neighbors: Callable[[int], list[int]], agents: int) -> SpanningTree:
    return min((_shortest_paths(neighbors, agents, root) for root in range(agents)), key=lambda tree: tree.diameter)


def _shortest_paths(neighbors: Callable[[int], list[int]], agents: int, root: int) -> SpanningTree:
    parents, order = {root: root}, [root]
    for agent in order:
        if len(order) == agents:  # in dense graphs long before the last one
            break
        new = [other for other in neighbors(agent) if other not in parents]
        parents.update(dict.fromkeys(new, agent))
        order += new
    return SpanningTree(root, tuple(parents.get(rank, rank) for rank in range(agents)), tuple(order))
