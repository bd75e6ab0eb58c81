"""A shorter float on the wire, around any algorithm."""

from __future__ import annotations

import pytest
import torch

from cga_lightning import CGA, DPSGD, Complete, DirectedRing, ScaledSign, WireDtype
from cga_lightning.algorithms import ALGORITHMS, Algorithm, from_name
from cga_lightning.core.communication import LocalCommunicator
from tests.quadratics import Quadratics, train


def traffic(algorithm: Algorithm) -> dict[str, int]:
    communicator = LocalCommunicator()
    agents = Quadratics(3, heterogeneity=1.0).agents(Complete(3))
    for agent in agents:
        agent.grad = agent.gradient(at=agent.params)
    communicator.open_step(0, algorithm.exchanges)
    communicator.run([algorithm.step(agent) for agent in agents])
    return dict(communicator.traffic)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_messages_are_rounded_and_nothing_else(name: str) -> None:
    problem = Quadratics(4, heterogeneity=1.0)
    rounded, exact = (
        train(problem, algorithm, Complete(4), lr=lambda step: 0.05, steps=4)
        for algorithm in (WireDtype(from_name(name)), from_name(name))
    )
    assert rounded.dtype == torch.float64
    assert 1e-4 < float((rounded - exact).abs().max()) < 0.1


def test_floats_shrink_and_packed_bits_stay() -> None:
    full, short = traffic(CGA()), traffic(WireDtype(CGA()))
    assert short == {name: sent // 4 for name, sent in full.items()}  # from float64
    packed = traffic(CGA(compressor=ScaledSign()))
    assert traffic(WireDtype(CGA(compressor=ScaledSign()))) == packed | {"models": packed["models"] // 4}


def test_names_and_graphs_are_those_of_the_algorithm() -> None:
    algorithm = WireDtype(DPSGD(), torch.float16)
    assert repr(algorithm) == "WireDtype(algorithm=DPSGD(), dtype=torch.float16)"
    assert algorithm.exchanges == ("models",)
    algorithm.check(DirectedRing(4))
    with pytest.raises(ValueError, match="no way back"):
        WireDtype(CGA()).check(DirectedRing(4))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="floating dtype such as torch.bfloat16, got torch.int8"):
        WireDtype(CGA(), torch.int8)
