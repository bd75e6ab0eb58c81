"""SwarmSGD: who meets whom, and where that leads."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from cga_lightning import Bipartite, Complete, ErdosRenyi, Ring, SwarmSGD, Topology
from cga_lightning.algorithms.swarm import draw_partners
from tests.quadratics import Quadratics, consensus_distance, train

TOPOLOGIES = [Ring(2), Ring(5), Complete(6), Bipartite(5), ErdosRenyi(7)]


@pytest.mark.parametrize("pairs", [None, 1, 2])
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=repr)
def test_partners_are_neighbors_and_nobody_has_two(topology: Topology, pairs: int | None) -> None:
    met: Counter[tuple[int, int]] = Counter()
    for step in range(200):
        partners = draw_partners(topology, pairs, 0, step)
        assert all(partners[partner] == rank != partner for rank, partner in partners.items())
        assert len(partners) <= 2 * (pairs or len(partners)) and partners
        met.update(partners.items())
    edges = {(rank, neighbor) for rank in range(topology.agents) for neighbor in topology.neighbors(rank)}
    assert set(met) == edges, "every edge has its turn, and no other pair"


def test_one_pair_is_drawn_uniformly() -> None:
    met = Counter(frozenset(draw_partners(Complete(4), 1, 0, step)) for step in range(600))
    assert len(met) == 6 and min(met.values()) > 60


def test_without_gradients_all_agents_reach_the_average_of_the_start() -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    x = train(problem, SwarmSGD(), Ring(5), lr=lambda step: 0.0, steps=200)
    torch.testing.assert_close(x, problem.start.mean(0).expand_as(x))


@pytest.mark.parametrize("options", [{}, {"pairs": 1}, {"local_steps": 3}], ids=repr)
def test_the_agents_agree_on_the_optimum_of_the_sum_as_the_step_falls(options: dict) -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    x = train(problem, SwarmSGD(**options), Complete(5), lr=lambda step: 2 / (step + 20), steps=1000)
    assert consensus_distance(x) < 0.05
    assert float((x.mean(0) - problem.optimum).norm()) < 0.05


def test_agents_meet_only_after_their_local_steps() -> None:
    problem = Quadratics(2, heterogeneity=1.0)
    alone, met = (
        train(problem, SwarmSGD(local_steps=3), Ring(2), lr=lambda step: 0.1, steps=steps) for steps in (2, 3)
    )
    assert consensus_distance(alone) > 0.1
    assert torch.equal(met[0], met[1])


@pytest.mark.parametrize("name, value", [("local_steps", 0), ("pairs", 0)])
def test_bad_settings_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"SwarmSGD\\({name}=...\\) must be at least 1, got 0"):
        SwarmSGD(**{name: value})
