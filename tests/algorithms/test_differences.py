"""Messages as compressed differences: what both ends hold, what travels, and what is left as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cga_lightning as cga
from cga_lightning import CGA, DPSGD, QSGD, SGP, Compressed, Compressor, Ring, Rounded, ScaledSign, Ternary, WireDtype
from cga_lightning.core import Agent
from tests.algorithms.test_compressed import bytes_of_run
from tests.quadratics import Quadratics, descent, train


def run(problem: Quadratics, algorithm: cga.Algorithm, topology: cga.Topology, steps: int) -> Iterator[list[Agent]]:
    """The agents after every step."""
    return descent(problem, algorithm, topology, lambda step: 0.1, steps)


@pytest.mark.parametrize("compressor", [Rounded(4), Rounded(8), ScaledSign(), cga.TopK(0.3)], ids=repr)
def test_gossip_against_the_equations(compressor: Compressor) -> None:
    """x^j <- pi_jj x^j + sum_l pi_jl x_hat^l - lr g^j with x_hat^l <- x_hat^l + C(x^l - x_hat^l), x_hat_0 = x_0."""
    problem, topology = Quadratics(5, heterogeneity=1.0, d=300), Ring(5)
    mixing = torch.from_numpy(topology.mixing_matrix())
    x, replicas = problem.start.clone(), problem.start.clone()
    layout = problem.agents(topology)[0].layout
    for agents in run(problem, Compressed(DPSGD(), compressor), topology, 12):
        replicas += torch.stack(
            [compressor.decompress(compressor.compress(x[j] - replicas[j], layout), layout) for j in range(5)]
        )
        gradients = torch.stack([problem.gradient(j, x[j]) for j in range(5)])
        own = mixing.diagonal()[:, None] * x
        x = own + (mixing - torch.diag(mixing.diagonal())) @ replicas - 0.1 * gradients
        torch.testing.assert_close(torch.stack([agent.params for agent in agents]), x, rtol=0, atol=1e-12)
    assert (x - replicas).abs().max() > 1e-6  # else nothing was compressed


@pytest.mark.parametrize(
    "algorithm, topology",
    [
        (Compressed(CGA(compressor=Ternary())), Ring(4)),
        (Compressed(SGP(), QSGD(8)), cga.DirectedRing(4)),
        (Compressed(DPSGD()), cga.OnePeerExponential(4)),
        (Compressed(cga.SwarmSGD(local_steps=2, pairs=1)), Ring(4)),
        (Compressed(WireDtype(DPSGD())), Ring(4)),
        (WireDtype(Compressed(DPSGD()), torch.float16), Ring(4)),
        (cga.QuasiGlobalMomentum(Compressed(DPSGD()), beta=0.5), Ring(4)),
    ],
    ids=str,
)
def test_around_any_algorithm_and_inside_any_wrapper(algorithm: cga.Algorithm, topology: cga.Topology) -> None:
    problem = Quadratics(4, heterogeneity=0.0)
    *_, agents = run(problem, algorithm, topology, 100)
    assert max(float((agent.params - problem.optimum).norm()) for agent in agents) < 0.05


def replicas(agents: list[Agent], name: str = "models") -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """By sender and receiver: what the one holds of what it has told, and the other of what it has heard."""
    states = [agent.state_dict()["state"]["own"][name] for agent in agents]
    return {
        (sender, receiver): (told, states[receiver]["heard"][sender])
        for sender, state in enumerate(states)
        for receiver, told in state["told"].items()
    }


@pytest.mark.parametrize("compressor", [Rounded(4), QSGD(8), cga.RandomK(0.5)], ids=repr)
@pytest.mark.parametrize("topology", [Ring(4), cga.OnePeerExponential(4)], ids=repr)
def test_both_ends_of_every_edge_hold_the_same(topology: cga.Topology, compressor: Compressor) -> None:
    *_, agents = run(Quadratics(4, heterogeneity=1.0), Compressed(DPSGD(), compressor), topology, 9)
    pairs = replicas(agents)
    assert len(pairs) == 8
    assert all(torch.equal(told, heard) for told, heard in pairs.values())
    one_each = len({id(told) for told, _ in pairs.values()}) == 8
    assert one_each == (compressor != Rounded(4) or topology != Ring(4))  # kept once where all are told the same


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_overflow_arrives_and_is_then_forgotten(value: float) -> None:
    problem, algorithm, seen = Quadratics(4, heterogeneity=1.0), Compressed(DPSGD()), []
    for step, agents in enumerate(run(problem, algorithm, Ring(4), 40)):
        seen.append([bool(agent.params.isfinite().all()) for agent in agents])
        if step == 5:
            agents[1].params = agents[1].params.index_fill(0, torch.tensor([2]), value)
        elif step > 5:
            for agent in agents:
                agent.params = agent.params.nan_to_num(0.0, 0.0, 0.0)
    assert seen[6] == [False, False, False, True] and all(map(all, seen[7:]))
    assert all(told.isfinite().all() and torch.equal(told, heard) for told, heard in replicas(agents).values())


def test_bytes_are_those_that_the_process_group_got(tmp_path: Path) -> None:
    """The first message goes as it is, and two in 4 bits and a float32 per 256 elements; all of CGA is below 1/7."""
    compressed = Compressed(CGA(compressor=Ternary()), Rounded(4))
    strategies = {
        "plain": cga.DecentralizedStrategy(CGA(), start_method="fork"),
        "compressed": cga.DecentralizedStrategy(compressed, start_method="fork"),
        "relay": cga.DecentralizedStrategy(cga.RelaySGD(3, compressor=Rounded(4)), start_method="fork"),
    }
    counted = {name: bytes_of_run(strategy, tmp_path / name) for name, strategy in strategies.items()}
    for runs in counted.values():
        assert all(sent == sum(traffic.values()) > 0 for sent, traffic in runs)
    for (_, plain), (_, few), (_, relay) in zip(*counted.values(), strict=True):
        full = plain["models"] // 3  # of three steps
        count = full // 4
        scales = 4 * -(-count // 256)
        assert few["models"] == full + 2 * (-(-count // 2) + scales)
        assert few["cross_gradients"] == 3 * (-(-count // 5) + scales)
        assert relay["models"] == full + 8 * (-(-count // 2) + scales)
        later = few["models"] - full + few["cross_gradients"] * 2 // 3
        assert later < (plain["models"] + plain["cross_gradients"]) * 2 / 3 / 7


def test_less_is_lost_with_more_bits() -> None:
    problem = Quadratics(4, heterogeneity=1.0)
    exact = train(problem, DPSGD(), Ring(4), lr=lambda step: 0.05, steps=30)
    lost = [
        float((train(problem, Compressed(DPSGD(), Rounded(bits)), Ring(4), lr=lambda s: 0.05, steps=30) - exact).norm())
        for bits in (2, 4, 8)
    ]
    assert lost[0] > 5 * lost[1] > 25 * lost[2] > 0


@pytest.mark.parametrize(
    "build, error, message",
    [
        (
            lambda: Compressed(CGA(), messages=("trackers",)),
            ValueError,
            r"got 'trackers', but CGA\(.*'models', 'cross_gradients'",
        ),
        (lambda: Compressed(DPSGD(), "zip"), ValueError, "Unknown compressor 'zip'"),
        (lambda: Compressed(DPSGD(), None), TypeError, "a name or an object of a subclass of Compressor, got None"),
        (lambda: Compressed("dpsgd"), TypeError, re.escape("goes around an algorithm, as in Compressed(DPSGD())")),
    ],
)
def test_what_does_not_go_is_refused(build: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
