"""The links of a graph in the form that answers quickly: who hears whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import index

import numpy as np
from numpy.typing import NDArray

Edge = tuple[int, int]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Links:
    """Links among N agents, one way each and none from an agent to itself. E is their number.

    Attributes:
        agents: N.
        keys: `receiver * N + sender` of every link `[E]`, in ascending order.
    """

    agents: int
    keys: Indices

    @classmethod
    def among(cls, agents: int, edges: Indices, *, both_ways: bool) -> Links:
        """The links of edges `[E, 2]`, each a sender and a receiver, and their ways back if they go `both_ways`."""
        pairs = np.concatenate([edges, edges[:, ::-1]]) if both_ways else edges
        senders, receivers = pairs[pairs[:, 0] != pairs[:, 1]].T
        keys = np.sort(receivers * agents + senders)
        return cls(agents, keys[np.diff(keys, prepend=-1) > 0])

    @cached_property
    def senders(self) -> Indices:
        """The sender of every link `[E]`."""
        return self.keys % self.agents

    @property
    def receivers(self) -> Indices:
        """The receiver of every link `[E]`."""
        return self.keys // self.agents

    @cached_property
    def reversed(self) -> Links:
        """The same links, the other way round."""
        return Links(self.agents, np.sort(self.senders * self.agents + self.receivers))

    @property
    def symmetric(self) -> bool:
        """Whether each link has a way back."""
        return np.array_equal(self.keys, self.reversed.keys)

    @property
    def connected(self) -> bool:
        """Whether every agent reaches every other along the links."""
        return self._all_told() and self.reversed._all_told()

    @property
    def diameter(self) -> int:
        """How many links lie between the two agents that are farthest apart, each link taken either way."""
        near = self.dense() | self.dense().T | np.eye(self.agents, dtype=bool)
        reached, hops = near, min(1, self.agents - 1)
        while not reached.all():
            reached, before = reached @ near, reached
            hops += 1
            if np.array_equal(reached, before):
                raise ValueError("Agents that never hear of each other have no distance.")
        return hops

    @property
    def degrees(self) -> Indices:
        """How many others each agent hears `[N]`."""
        return np.diff(self._starts)

    def of(self, receiver: int) -> slice:
        """Where the links to that agent are."""
        return slice(self._starts[receiver], self._starts[receiver + 1])

    def heard_by(self, receiver: int) -> list[int]:
        """The agents that have a link to that one, in ascending order."""
        heard: list[int] = self.senders[self.of(receiver)].tolist()
        return heard

    def dense(self) -> NDArray[np.bool_]:
        """`[N, N]`: True at `[i, j]` where agent i receives from agent j."""
        links = np.zeros((self.agents, self.agents), dtype=bool)
        links.flat[self.keys] = True
        return links

    def within(self, other: Links) -> NDArray[np.bool_]:
        """Which of the links `[E]` are links of `other` too."""
        return np.isin(self.keys, other.keys, assume_unique=True)

    def edges(self, chosen: NDArray[np.bool_]) -> list[Edge]:
        """Sender and receiver of the links that are True in `chosen` `[E]`."""
        return [(key % self.agents, key // self.agents) for key in self.keys[chosen].tolist()]

    @cached_property
    def _starts(self) -> Indices:
        return np.searchsorted(self.keys, np.arange(self.agents + 1) * self.agents)

    def _all_told(self) -> bool:
        """Whether everybody is reached from the first agent, against the direction of the links."""
        reached, waiting = {0}, [0]
        while waiting:
            new = set(self.heard_by(waiting.pop())) - reached
            reached |= new
            waiting.extend(new)
        return len(reached) == self.agents


def pairs_of_ranks(edges: Iterable[Edge], agents: int) -> Indices:
    """The edges as an array `[E, 2]`. A negative rank counts from the last agent, as an index does.

    Raises:
        ValueError: names an edge that is not a pair of ranks.
    """
    pairs = np.array([_pair(edge) for edge in edges], dtype=np.int64).reshape(-1, 2)
    outside = (pairs < -agents) | (pairs >= agents)
    if outside.any():
        edge = tuple(pairs[outside.any(axis=1)][0].tolist())
        raise ValueError(f"Edges of {agents} agents lie between the ranks 0 to {agents - 1}, got {edge}.")
    return pairs % agents


def _pair(edge: Edge) -> Edge:
    try:
        sender, receiver = edge
        return index(sender), index(receiver)
    except (TypeError, ValueError):
        raise ValueError(f"An edge is a pair of ranks (sender, receiver), got {edge!r}.") from None
