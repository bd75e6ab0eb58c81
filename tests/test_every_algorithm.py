"""What holds for every algorithm: processes = simulation, and a graph either works or is refused at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

import cga_lightning as cga
from cga_lightning.algorithms import ALGORITHMS, from_name
from cga_lightning.topology import TOPOLOGIES
from tests.quadratics import Quadratics, train
from tests.toys import QUIET, Classifier, OwnData, in_processes, largest_difference, one_class_each, simulated

AGENTS = 4

CASES: list[tuple[cga.Algorithm, str]] = [
    *((from_name(name), "ring") for name in ALGORITHMS),
    (cga.CGA(compressor=cga.QSGD()), "complete"),
    (cga.CGA(correction="tracking"), "ring"),
    (cga.CGA(correction="tracking", compressor="scaled_sign"), "bipartite"),
    (cga.CGA(correction="exact_diffusion"), "bipartite"),
    (cga.QuasiGlobalMomentum(cga.CGA()), "ring"),
    (cga.QuasiGlobalMomentum(cga.SGP()), "directed_ring"),
    (cga.WireDtype(cga.CGA(compressor=cga.ScaledSign())), "ring"),
    (cga.SGP(), "directed_ring"),
    (cga.LocalSteps(cga.CGA(), 3), "ring"),
    (cga.PeriodicAveraging(cga.CGA(), 3), "ring"),
    (cga.PeriodicAveraging(cga.SwarmSGD(), 7), "complete"),
    (cga.KGT(3), "bipartite"),
    (cga.LocalSteps(cga.D2(), 2), "ring"),
    (cga.LocalSteps(cga.DPSGD(), 2), "one_peer_exponential"),
    (cga.DPSGD(), "one_peer_exponential"),
    (cga.SwarmSGD(local_steps=3, pairs=1), "bipartite"),
    (cga.RelaySGD(2, True, cga.Rounded(4), weights=[1, 2, 3, 4]), "bipartite"),
    (cga.Compressed(cga.CGA(compressor=cga.Ternary()), cga.Rounded(4)), "ring"),
    (cga.Compressed(cga.DPSGD(), cga.QSGD(8)), "one_peer_exponential"),
]


@pytest.mark.parametrize("algorithm, topology", CASES, ids=lambda value: str(value))
def test_processes_equal_the_simulation(algorithm: cga.Algorithm, topology: str, tmp_path: Path) -> None:
    expected = simulated(algorithm, topology, AGENTS, steps=20)
    processes = in_processes(tmp_path, algorithm, topology, AGENTS, steps=20)
    assert largest_difference(processes, expected) <= 1e-6
    others = expected[1:]
    all_told = isinstance(algorithm, cga.RelaySGD) and algorithm.hops >= AGENTS - 1  # of everything in every step
    assert (largest_difference(expected[:1] * len(others), others) > 1e-4) != all_told


def simulated_epochs(algorithm: cga.Algorithm, topology: str, epochs: int, **options: Any) -> list[dict[str, Tensor]]:
    """The agents' weights after so many epochs of four steps."""
    strategy = cga.SimulatedStrategy(AGENTS, algorithm, topology)
    path = options.pop("ckpt_path", None)
    trainer = pl.Trainer(strategy=strategy, devices=1, max_epochs=epochs, **QUIET | options)
    trainer.fit(Classifier(), datamodule=OwnData(one_class_each(AGENTS)), ckpt_path=path)
    return strategy.agent_state_dicts()


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("algorithm, topology", CASES, ids=lambda value: str(value))
def test_going_on_from_a_checkpoint_is_bit_equal(algorithm: cga.Algorithm, topology: str, tmp_path: Path) -> None:
    files = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}")
    simulated_epochs(algorithm, topology, 1, enable_checkpointing=True, callbacks=[files])
    resumed = simulated_epochs(algorithm, topology, 3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert largest_difference(resumed, simulated_epochs(algorithm, topology, 3)) == 0


@pytest.mark.parametrize("algorithm, topology", CASES, ids=lambda value: str(value))
@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision(algorithm: cga.Algorithm, topology: str, precision: str) -> None:
    short = simulated_epochs(algorithm, topology, 2, precision=precision)
    assert {value.dtype.itemsize for state in short for value in state.values()} == {2}
    expected = simulated_epochs(algorithm, topology, 2)
    size = max(1.0, *(float(value.abs().max()) for state in expected for value in state.values()))
    assert 0 < largest_difference(short, expected) < 0.2 * size  # some take steps far too long for this task


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_runs_on_a_graph_or_refuses_it(name: str, topology: str) -> None:
    algorithm, graph = from_name(name), cga.topology.from_name(topology).bind(6)
    one_way = algorithm.graphs in ("undirected", "fixed") and not graph.symmetric
    if one_way or algorithm.graphs == "fixed" and len(graph.phases) > 1:
        message = "have no way back" if one_way else "vary in time"
        with pytest.raises(ValueError, match=message):
            cga.SimulatedStrategy(6, name, topology)
        with pytest.raises(ValueError, match=message):
            pl.Trainer(strategy=cga.DecentralizedStrategy(name, topology), devices=6, **QUIET)
        return
    problem = Quadratics(6, heterogeneity=0.0)
    lr, steps = (0.05, 200) if name == "damsgrad" else (0.1, 60)  # an adaptive step has the length of its rate
    x = train(problem, algorithm, graph, lr=lambda step: lr, steps=steps)
    start = (problem.start - problem.optimum).norm(dim=1)
    assert torch.all((x - problem.optimum).norm(dim=1) < 0.2 * start)


def test_every_name_is_registered_with_its_launchers() -> None:
    names = {name + suffix for name in ALGORITHMS for suffix in ("", "_fork", "_spawn")}
    assert names <= set(pl.strategies.StrategyRegistry.available_strategies())
