"""Any algorithm, with the mean of all models now and then."""

from __future__ import annotations

from cga_lightning.algorithms.wrapper import Wrapper
from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step
from cga_lightning.core.averaging import bring_together
from cga_lightning.topology import Topology
from cga_lightning.topology.polynomial import averaging_roots

MOST_ROUNDS = 1024
"""Of one averaging that have a name in traffic."""


class PeriodicAveraging(Wrapper):
    """After every step whose number is a multiple of the period, all agents go on from the mean of all models.

    `PeriodicAveraging(DPSGD(), period)` is Gossip-PGA. The mean comes by gossip along the edges of the topology, whose
    every round takes away the part of the differences that belongs to one eigenvalue of the mixing matrix:

        x^j <- (sum_l pi_jl x^l - r x^j) / (1 - r)    for every eigenvalue r besides 1, once.

    That is exact up to rounding, and takes as many rounds as there are different ones: 5 on a ring of 10, 3 on a
    bipartite graph, up to N - 1 on an irregular one, each with the bytes of DPSGD.

    Args:
        algorithm: what every step does before.
        period: H, the steps from one mean to the next, at least 1.

    Raises:
        ValueError: for a period out of range.
        TypeError: for what is no algorithm.

    Source: Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021, Algorithm 1.
    """

    def __init__(self, algorithm: Algorithm, period: int) -> None:
        super().__init__(algorithm)
        if period < 1:
            raise ValueError(f"PeriodicAveraging(period=...) must be at least 1, got {period}.")
        self.period = period

    @property
    def exchanges(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the wrapped algorithm sends in each exchange of one step, then the rounds of the averaging."""
        return self.algorithm.exchanges + ("averages",) * MOST_ROUNDS

    def check(self, topology: Topology) -> None:
        """Refuse a mixing matrix without real eigenvalues too."""
        super().check(topology)
        averaging_roots(topology)

    def step(self, agent: Agent) -> Step:
        """The algorithm's step."""
        return self.algorithm.step(agent)

    def after_step(self, agent: Agent) -> Step:
        """What the algorithm does after the optimizer step; at the end of a period the mean of all."""
        yield from self.algorithm.after_step(agent)
        if (agent.step + 1) % self.period == 0:
            roots = averaging_roots(agent.topology)
            agent.params = yield from bring_together(agent.params, agent.rank, agent.topology, roots)
