"""SwarmSGD."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step
from cga_lightning.topology import Topology


class SwarmSGD(Algorithm):
    """Step along the own gradient; at times, random pairs of neighbors replace their models by the mean of the two.

    After every `local_steps` steps of the optimizer, pairs are drawn along the edges of the topology, no agent in two
    of them; agents not drawn go on locally. All agents draw the same pairs, from `seed` and the number of the step.

    Args:
        local_steps: optimizer steps between two draws.
        pairs: how many pairs to draw; as many as fit if None. The published code draws 1.
        seed: of the draws.

    Raises:
        ValueError: for less than one local step or pair.

    Source: Nadiradze et al., "Asynchronous Decentralized SGD with Quantized and Local Updates", NeurIPS 2021,
    Algorithm 1, in rounds of disjoint pairs.
    """

    exchanges = ("models",)
    averages_models_only = True

    def __init__(self, *, local_steps: int = 1, pairs: int | None = None, seed: int = 0) -> None:
        for name, value in (("local_steps", local_steps), ("pairs", pairs)):
            if value is not None and value < 1:
                raise ValueError(f"SwarmSGD({name}=...) must be at least 1, got {value}.")
        self.local_steps = local_steps
        self.pairs = pairs
        self.seed = seed

    def step(self, agent: Agent) -> Step:
        """No exchange: the optimizer steps from the own model along the own gradient."""
        yield from ()

    def after_step(self, agent: Agent) -> Step:
        """Average with the partner, if there is one."""
        if (agent.step + 1) % self.local_steps:
            return
        partners = draw_partners(agent.graph, self.pairs, self.seed, agent.step)
        if agent.rank in partners:
            partner = partners[agent.rank]
            models = yield {partner: agent.params}
            agent.params = (agent.params + models[partner]) / 2


def draw_partners(topology: Topology, pairs: int | None, seed: int, step: int) -> dict[int, int]:
    """The partner of every agent that is drawn at `step`: edges in random order, each taken if both ends are free."""
    return _draw(topology.in_neighbors, topology.agents or 0, pairs, seed, step)


@lru_cache(maxsize=8)  # one draw for all simulated agents; a bound method stands for this very topology, not its equals
def _draw(
    in_neighbors: Callable[[int], list[int]], agents: int, pairs: int | None, seed: int, step: int
) -> dict[int, int]:
    edges = [(rank, other) for rank in range(agents) for other in in_neighbors(rank) if other > rank]
    partners: dict[int, int] = {}
    for first, second in np.random.default_rng([seed, step]).permutation(edges).tolist():
        if len(partners) == 2 * (pairs or len(edges)):
            break
        if first not in partners and second not in partners:
            partners[first], partners[second] = second, first
    return partners
