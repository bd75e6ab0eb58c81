"""Any algorithm at every k-th step, with local steps between."""

from __future__ import annotations

from cga_lightning.algorithms.wrapper import Wrapper
from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step


class LocalSteps(Wrapper):
    """Exchanges at every k-th step only: k - 1 steps along the own gradient, then one of the algorithm.

    `LocalSteps(DPSGD(), k)` is decentralized local SGD. Of a graph that varies in time every phase has its turn. Local
    steps lead agents with different data apart, so methods that end at the optimum of the sum of losses end O(k lr)
    away from it here; `KGT` corrects the local steps too.

    Args:
        algorithm: what to do at every k-th step.
        k: how many steps a round has, at least 1.

    Raises:
        ValueError: for k out of range.
        TypeError: for what is no algorithm.

    Source: Koloskova et al., "A Unified Theory of Decentralized SGD with Changing Topology and Local Updates", ICML
    2020, Algorithm 1, with a mixing matrix of I but at every k-th step.
    """

    def __init__(self, algorithm: Algorithm, k: int) -> None:
        super().__init__(algorithm)
        if k < 1:
            raise ValueError(f"LocalSteps(k=...) must be at least 1, got {k}.")
        self.k = k

    def step(self, agent: Agent) -> Step:
        """The algorithm's step at the end of a round, on the graph of that round."""
        if self._ends_round(agent):
            agent.enter(agent.topology.at(agent.step // self.k))
            yield from self.algorithm.step(agent)

    def after_step(self, agent: Agent) -> Step:
        """What the algorithm does after the optimizer step, at the end of a round."""
        if self._ends_round(agent):
            yield from self.algorithm.after_step(agent)

    def _ends_round(self, agent: Agent) -> bool:
        return (agent.step + 1) % self.k == 0
