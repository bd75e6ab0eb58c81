"""Graphs whose edges go one way, fixed and time-varying."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from cga_lightning.topology.base import Topology, hops, powers_of_two
from cga_lightning.topology.links import Edge


class DirectedRing(Topology):
    """Each agent sends to the next one only; for push-sum (SGP).

    Its weights, 1/2 kept and 1/2 sent on, are doubly stochastic, so plain gossip averages on it too.
    """

    directed = True

    def edges(self, agents: int) -> Iterable[Edge]:
        """Rank r to rank r + 1, around the ring."""
        return hops(agents, 1)


class OnePeerExponential(Topology):
    """Time-varying: at step t each agent sends to one peer, 2^(t mod ceil(log2 N)) ranks ahead.

    If N is a power of two, one period averages exactly (Ying et al. 2021).
    """

    directed = True

    def edges(self, agents: int) -> Iterable[Edge]:
        """Rank r to rank r + 2^k, for all 2^k < N."""
        return [edge for hop in powers_of_two(agents) for edge in hops(agents, hop)]

    def at(self, step: int) -> Topology:
        """Return the graph of that step; the peers repeat after ceil(log2 N) steps."""
        return self._shifts[step % len(self._shifts)]

    @cached_property
    def _shifts(self) -> list[Topology]:
        agents = self._bound()
        return [_Shift(agents, hop) for hop in powers_of_two(agents)]


@dataclass(frozen=True, repr=False)
class _Shift(Topology):
    """One step of `OnePeerExponential`: rank r sends to rank r + hop."""

    hop: int = 1
    directed = True

    def edges(self, agents: int) -> Iterable[Edge]:
        return hops(agents, self.hop)
