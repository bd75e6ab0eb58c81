"""Decentralized AMSGrad against its recursion written out."""

from __future__ import annotations

import pytest
import torch

from cga_lightning import Bipartite, Complete, DAMSGrad, DirectedRing, Ring, Topology
from tests.quadratics import Quadratics, train


@pytest.mark.parametrize("topology", [Ring(5), Bipartite(5), DirectedRing(5)], ids=repr)
def test_it_is_its_recursion(topology: Topology) -> None:
    problem, mixing, lr = Quadratics(5, heterogeneity=1.0), torch.from_numpy(topology.mixing_matrix()), 0.01
    x, m, v = problem.start.clone(), torch.zeros_like(problem.start), torch.zeros_like(problem.start)
    largest = half = torch.full_like(x, 1e-6)
    for _ in range(20):
        g = torch.stack([problem.gradient(rank, at) for rank, at in enumerate(x)])
        m, v = 0.8 * m + 0.2 * g, 0.99 * v + 0.01 * g**2
        before, largest = largest, torch.maximum(largest, v)
        u = mixing @ half
        half = u - before + largest
        x = mixing @ x - lr * m / u.clamp(min=1e-6).sqrt()
    found = train(problem, DAMSGrad(betas=(0.8, 0.99)), topology, lambda step: lr, steps=20)
    torch.testing.assert_close(found, x)


def test_the_mean_comes_nearer_to_the_optimum_of_the_sum_the_shorter_the_step() -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    far, near = (
        float((train(problem, DAMSGrad(), Complete(5), lambda step, lr=lr: lr, 1000).mean(0) - problem.optimum).norm())
        for lr in (0.1, 0.04)
    )
    assert near < 0.03 and near < 0.6 * far


@pytest.mark.parametrize("options", [{"betas": (1.0, 0.9)}, {"eps": 0.0}], ids=str)
def test_bad_settings_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"DAMSGrad\((betas|eps)=...\) must be"):
        DAMSGrad(**options)
