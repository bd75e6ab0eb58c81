"""Rounds of gossip: what is left of the differences, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cga_lightning.core import LocalCommunicator
from cga_lightning.core.averaging import bring_together
from cga_lightning.topology import Bipartite, Complete, DirectedRing, ErdosRenyi, Exponential, Ring, Topology, Torus
from cga_lightning.topology.polynomial import averaging_roots

GRAPHS = [Ring, Complete, Bipartite, Torus, Exponential, lambda n: ErdosRenyi(n, p=0.6)]


def brought_together(x: Tensor, topology: Topology, rounds: int | None) -> Tensor:
    results: list[Tensor] = []

    def run(rank: int):
        results.append((yield from bring_together(x[rank], rank, topology, averaging_roots(topology, rounds))))

    communicator = LocalCommunicator()
    communicator.open_step(0, [])
    communicator.run([run(rank) for rank in range(len(x))])
    return torch.stack(results)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 24), st.sampled_from(GRAPHS), st.integers(0, 9))
def test_the_mean_is_reached_after_as_many_rounds_as_there_are_eigenvalues(agents: int, graph, seed: int) -> None:
    topology = graph(agents)
    x = torch.randn(agents, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    after = brought_together(x, topology, None)
    torch.testing.assert_close(after, x.mean(0).expand_as(x), atol=1e-10, rtol=0)
    distinct = len(np.unique(topology.eigenvalues()[:-1].round(7)))
    assert len(averaging_roots(topology)) == len(averaging_roots(topology, 10**6)) == distinct


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 24), st.sampled_from(GRAPHS), st.integers(1, 6))
def test_fewer_rounds_leave_what_the_chebyshev_polynomial_leaves(agents: int, graph, rounds: int) -> None:
    topology = graph(agents)
    others = topology.eigenvalues()[:-1]
    bound = 1e-10
    if rounds < len(averaging_roots(topology)):
        middle, radius = (others[0] + others[-1]) / 2, (others[-1] - others[0]) / 2
        bound = 1 / np.cosh(rounds * np.arccosh((1 - middle) / radius)) + 1e-10
    x = torch.randn(agents, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before, after = (y - y.mean(0) for y in (x, brought_together(x, topology, rounds)))
    assert float(after.norm()) <= bound * float(before.norm()) + 1e-10
    torch.testing.assert_close(brought_together(x, topology, rounds).mean(0), x.mean(0))


@pytest.mark.parametrize("topology", [Ring(40), Ring(100), Exponential(40), ErdosRenyi(40, p=0.15)], ids=repr)
def test_rounding_stays_small_over_many_rounds(topology: Topology) -> None:
    x = torch.randn(topology.agents, 4, generator=torch.Generator().manual_seed(0))
    assert float((brought_together(x, topology, None) - x.mean(0)).abs().max()) < 1e-4


def test_what_all_have_alike_stays_to_the_bit() -> None:
    alike = torch.tensor([0.1, torch.finfo(torch.float32).min, -torch.inf, 1e-40]).expand(10, -1).clone()
    after = brought_together(alike, Ring(10), 3)
    assert torch.equal(after, alike)


def test_rounds_need_real_eigenvalues() -> None:
    with pytest.raises(ValueError, match=r"mixing matrix of DirectedRing\(4\) must be symmetric"):
        averaging_roots(DirectedRing(4))
