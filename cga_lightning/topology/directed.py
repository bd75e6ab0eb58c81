"""Graphs whose edges go one way, fixed and time-varying."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cga_lightning.topology.base import Edge, Topology, hops, powers_of_two
from cga_lightning.topology.mixing import Matrix


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

    ``at(step)`` is the graph of one step, which alone need not connect the agents. The topology itself stands
    for a whole period: all its edges, and the mean of its mixing matrices. If N is a power of two, one period
    averages exactly (Ying et al. 2021).
    """

    directed = True

    def edges(self, agents: int) -> Iterable[Edge]:
        """Rank r to rank r + 2^k, for all 2^k < N."""
        return [edge for hop in powers_of_two(agents) for edge in hops(agents, hop)]

    def at(self, step: int) -> Topology:
        """Return the graph of that step; the peers repeat after ceil(log2 N) steps."""
        return self._phases[step % len(self._phases)]

    @property
    def symmetric(self) -> bool:
        """Only for two agents."""
        return all(phase.symmetric for phase in self._phases)

    @cached_property
    def _phases(self) -> list[Topology]:
        agents = self._bound()
        return [_Shift(agents, hop) for hop in powers_of_two(agents)]

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
        return hops(agents, self.hop)

    def _check(self, agents: int) -> None:
        pass
