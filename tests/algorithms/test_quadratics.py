"""Limits of the algorithms on quadratics, where the optimum is known."""

from __future__ import annotations

import numpy as np
import pytest

from cga_lightning import CGA, DPSGD, Algorithm, Bipartite, Complete, FromMatrix, Ring, Topology
from tests.quadratics import Quadratics, consensus_distance, train

ALGORITHMS = [CGA(), CGA(margin=0.0, weights="uniform"), CGA.reference(), DPSGD()]
TOPOLOGIES = [Complete(5), Ring(5), Bipartite(5)]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=repr)
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_agents_with_a_common_optimum_reach_it(algorithm: Algorithm, topology: Topology) -> None:
    problem = Quadratics(5, heterogeneity=0.0)
    x = train(problem, algorithm, topology, lr=lambda step: 0.2, steps=160)
    assert float((x - problem.optimum).norm(dim=1).max()) < 1e-6


def test_an_agent_may_give_no_weight_to_its_own_model() -> None:
    problem = Quadratics(4, heterogeneity=0.0)
    topology = FromMatrix((np.ones((4, 4)) - np.eye(4)) / 3)
    x = train(problem, CGA(), topology, lr=lambda step: 0.2, steps=60)
    assert float((x - problem.optimum).norm(dim=1).max()) < 0.01


def test_cga_reaches_the_optimum_of_the_sum_on_a_complete_graph() -> None:
    """Margin 1 with mixing weights projects the mean gradient, which vanishes at the optimum of the sum."""
    problem = Quadratics(5, heterogeneity=1.0)
    x = train(problem, CGA(), Complete(5), lr=lambda step: 0.2, steps=400)
    assert float((x - problem.optimum).norm(dim=1).max()) < 1e-3


def test_the_plain_program_stops_short_of_the_optimum() -> None:
    """Margin 0 stops where no direction helps all: Pareto-stationary, not optimal for the sum."""
    problem = Quadratics(5, heterogeneity=1.0)
    x = train(problem, CGA(margin=0.0, weights="uniform"), Complete(5), lr=lambda step: 0.2, steps=60)
    assert float((x.mean(0) - problem.optimum).norm()) > 0.1


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=repr)
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_the_consensus_distance_vanishes_with_the_step(algorithm: Algorithm, topology: Topology) -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    early = train(problem, algorithm, topology, lr=lambda step: 1 / (step + 10), steps=20)
    late = train(problem, algorithm, topology, lr=lambda step: 1 / (step + 10), steps=150)
    assert consensus_distance(late) < 0.25 * consensus_distance(early)
    assert consensus_distance(late) < 0.06
