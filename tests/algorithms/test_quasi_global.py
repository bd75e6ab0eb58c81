"""Quasi-global momentum: the published recursion, around any algorithm."""

from __future__ import annotations

import pytest
import torch

from cga_lightning import CGA, DPSGD, Complete, DirectedRing, QuasiGlobalMomentum, Ring
from cga_lightning.algorithms import ALGORITHMS, from_name
from tests.quadratics import Quadratics, train


def test_around_gossip_it_is_the_published_recursion() -> None:
    problem, lr, beta, mu = Quadratics(5, heterogeneity=1.0), 0.1, 0.8, 0.7
    mixing = torch.from_numpy(Ring(5).mixing_matrix())
    x, momentum = problem.start.clone(), torch.zeros_like(problem.start)
    for _ in range(20):
        gradients = torch.stack([problem.gradient(rank, x[rank]) for rank in range(5)])
        before, x = x, mixing @ x - lr * (gradients + beta * momentum)
        momentum = mu * momentum + (1 - mu) * (before - x) / lr
    algorithm = QuasiGlobalMomentum(DPSGD(), beta=beta, mu=mu)
    torch.testing.assert_close(train(problem, algorithm, Ring(5), lr=lambda step: lr, steps=20), x)


@pytest.mark.parametrize("name", sorted({*ALGORITHMS} - {"decentlam", "damsgrad"}))  # with momenta of their own
def test_it_accelerates_every_algorithm(name: str) -> None:
    problem = Quadratics(5, heterogeneity=0.0)
    plain, faster = (
        train(problem, algorithm, Complete(5), lr=lambda step: 0.02, steps=60)
        for algorithm in (from_name(name), QuasiGlobalMomentum(from_name(name), beta=0.6))
    )
    assert (faster - problem.optimum).norm() < 0.6 * (plain - problem.optimum).norm()


def test_it_takes_names_and_graphs_from_the_algorithm() -> None:
    assert QuasiGlobalMomentum(CGA()).exchanges == ("models", "cross_gradients")
    assert repr(QuasiGlobalMomentum(DPSGD())) == "QuasiGlobalMomentum(algorithm=DPSGD(), beta=0.9, mu=0.9)"
    QuasiGlobalMomentum(DPSGD()).check(DirectedRing(5))
    with pytest.raises(ValueError, match="no way back"):
        QuasiGlobalMomentum(CGA()).check(DirectedRing(5))


@pytest.mark.parametrize("name", ["beta", "mu"])
def test_bad_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"QuasiGlobalMomentum\\({name}=...\\) must be in \\[0, 1\\), got 1"):
        QuasiGlobalMomentum(DPSGD(), **{name: 1})
