"""D2, exact diffusion and EXTRA: their recursions written out, and where they come to rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cga_lightning import D2, EXTRA, Algorithm, Bipartite, Complete, ErdosRenyi, ExactDiffusion, FromMatrix, Ring
from cga_lightning.algorithms.exact_diffusion import share_needed
from cga_lightning.topology import Topology
from tests.quadratics import Quadratics, train

GRAPHS = [Ring(5), Ring(10), Bipartite(5), ErdosRenyi(8, p=0.3), Complete(4)]
LR = 0.1


def all_equal(agents: int) -> Quadratics:
    problem = Quadratics(agents, heterogeneity=1.0)
    problem.start = problem.start[:1].repeat(agents, 1)
    return problem


def adapt_then_combine(problem: Quadratics, mixing: Tensor, steps: int) -> Tensor:
    """x_{t+1} = W (2 x_t - x_{t-1} - lr g_t + lr g_{t-1}), after x_1 = W (x_0 - lr g_0)."""
    before, taken = problem.start, LR * gradients(problem, problem.start)
    x = mixing @ (before - taken)
    for _ in range(steps - 1):
        step = LR * gradients(problem, x)
        x, before, taken = mixing @ (2 * x - before - step + taken), x, step
    return x


def combine_then_adapt(problem: Quadratics, mixing: Tensor, steps: int) -> Tensor:
    """x_{t+1} = (I + W) x_t - (I + W) / 2 x_{t-1} - lr g_t + lr g_{t-1}, after x_1 = W x_0 - lr g_0."""
    eye = torch.eye(len(mixing), dtype=mixing.dtype)
    before, taken = problem.start, LR * gradients(problem, problem.start)
    x = mixing @ before - taken
    for _ in range(steps - 1):
        step = LR * gradients(problem, x)
        x, before, taken = (eye + mixing) @ x - (eye + mixing) / 2 @ before - step + taken, x, step
    return x


def gradients(problem: Quadratics, x: Tensor) -> Tensor:
    return torch.stack([problem.gradient(rank, at) for rank, at in enumerate(x)])


@pytest.mark.parametrize("topology", [Ring(5), Bipartite(5), ErdosRenyi(8, p=0.3)], ids=repr)
@pytest.mark.parametrize("algorithm", [D2(share=0.2), D2(), ExactDiffusion(), EXTRA()], ids=repr)
def test_it_is_its_recursion(algorithm: Algorithm, topology: Topology) -> None:
    problem, mixing = all_equal(topology.agents), torch.from_numpy(topology.mixing_matrix())
    if isinstance(algorithm, EXTRA):
        expected = combine_then_adapt(problem, mixing, steps=12)
    else:
        share = share_needed(topology) if algorithm.share is None else algorithm.share
        lazy = (1 - share) * mixing + share * torch.eye(topology.agents, dtype=mixing.dtype)
        expected = adapt_then_combine(problem, lazy, steps=12)
    torch.testing.assert_close(train(problem, algorithm, topology, lambda step: LR, steps=12), expected)


@pytest.mark.parametrize("topology", GRAPHS, ids=repr)
@pytest.mark.parametrize("algorithm", [D2(), ExactDiffusion(), EXTRA()], ids=repr)
def test_all_agents_reach_the_optimum_of_the_sum(algorithm: Algorithm, topology: Topology) -> None:
    problem = Quadratics(topology.agents, heterogeneity=1.0)
    x = train(problem, algorithm, topology, lambda step: 0.1, steps=600)
    assert float((x - problem.optimum).norm(dim=1).max()) < 1e-8


def test_d2_keeps_as_much_of_its_own_as_it_needs() -> None:
    assert share_needed(Complete(5)) == share_needed(Ring(5)) == 0
    assert share_needed(Ring(10)) == pytest.approx((1 / 3 - 0.3) / (4 / 3))
    alternating = FromMatrix(0.1 * np.eye(6) + 0.9 * (Ring(6).mixing_matrix() * 3 - np.eye(6)) / 2)
    assert share_needed(alternating) == pytest.approx((0.8 - 0.3) / 1.8)
    problem = Quadratics(6, heterogeneity=1.0)
    none, enough = (train(problem, D2(share=s), alternating, lambda step: 0.1, steps=300) for s in (0.0, None))
    assert not float((none - problem.optimum).norm(dim=1).max()) < 1e3
    assert float((enough - problem.optimum).norm(dim=1).max()) < 1e-8


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_bad_settings_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"D2\(share=...\) must be in \[0, 1\), got"):
        D2(share=share)


@pytest.mark.parametrize("algorithm", [D2(), ExactDiffusion(), EXTRA()], ids=repr)
def test_a_mixing_matrix_that_is_not_symmetric_is_refused(algorithm: Algorithm) -> None:
    cycle = np.roll(np.eye(4), 1, axis=1)
    uneven = FromMatrix(0.4 * np.eye(4) + 0.4 * cycle + 0.2 * cycle.T)
    with pytest.raises(ValueError, match="mixing matrix of FromMatrix.* must be symmetric"):
        algorithm.check(uneven)


def test_names() -> None:
    assert [repr(a) for a in (D2(), ExactDiffusion(), EXTRA())] == ["D2(share=None)", "ExactDiffusion()", "EXTRA()"]
