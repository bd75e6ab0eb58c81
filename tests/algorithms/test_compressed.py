"""Compressed cross-gradients: the error memory in the agents' state, and what travels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

import cga_lightning as cga
from cga_lightning.compression import COMPRESSORS as NAMES
from cga_lightning.compression import Compressor, ErrorFeedback, Identity, from_name
from cga_lightning.core import Agent, LocalCommunicator
from tests.quadratics import Quadratics, train
from tests.toys import QUIET, Classifier, OwnData, one_class_each

COMPRESSORS = [cga.ScaledSign(), cga.TopK(0.3), cga.RandomK(0.3), cga.QSGD(bits=8), ErrorFeedback(cga.QSGD())]


class Spy(cga.CGA):
    """Sums up, per directed edge, what was to be sent and what arrived."""

    def __init__(self, compressor: Compressor) -> None:
        super().__init__(compressor=compressor)
        self.meant: Counter[tuple[int, int]] = Counter()
        self.arrived: Counter[tuple[int, int]] = Counter()

    def step(self, agent: Agent) -> cga.algorithms.Step:
        running = super().step(agent)
        models = yield next(running)
        for rank, model in models.items():
            self.meant[agent.rank, rank] += agent.gradient(at=model)
        wires = yield running.send(models)
        for rank, wire in wires.items():
            self.arrived[rank, agent.rank] += self.compressor.decompress(wire, agent.layout)
        with pytest.raises(StopIteration):
            running.send(wires)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_what_an_edge_has_not_delivered_yet_is_its_memory(compressor: Compressor) -> None:
    problem, algorithm, communicator = Quadratics(4, heterogeneity=1.0), Spy(compressor), LocalCommunicator()
    agents = problem.agents(cga.Ring(4))
    for step in range(10):
        for agent in agents:
            agent.grad = agent.gradient(at=agent.params)
        communicator.open_step(step, algorithm.exchanges)
        communicator.run([algorithm.step(agent) for agent in agents])
        for agent in agents:
            agent.params -= 0.05 * agent.grad
    assert len(algorithm.meant) == 8
    for (sender, receiver), meant in algorithm.meant.items():
        memory = agents[sender].state["cross_gradients"][receiver].get("memory")
        if memory is not None:
            torch.testing.assert_close(algorithm.arrived[sender, receiver] + memory, meant)
    assert (memory is None) == (not isinstance(compressor, ErrorFeedback) and not compressor.needs_feedback)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_compressed_agents_come_close_to_the_optimum(compressor: Compressor) -> None:
    """Which cross-gradients of the sign alone, without memory, would not; the start is 4.5 away."""
    problem, algorithm = Quadratics(4, heterogeneity=1.0), cga.CGA(compressor=compressor)
    x = train(problem, algorithm, cga.Complete(4), lr=lambda step: 2 / (step + 10), steps=60)
    assert float((x - problem.optimum).norm(dim=1).max()) < 0.3


def test_edges_draw_from_streams_of_their_own() -> None:
    problem, algorithm = Quadratics(3, heterogeneity=1.0), cga.CGA(compressor=cga.RandomK(0.3))
    agents, communicator = problem.agents(cga.Complete(3)), LocalCommunicator()
    for agent in agents:
        agent.grad = agent.gradient(at=agent.params)
    communicator.open_step(0, algorithm.exchanges)
    communicator.run([algorithm.step(agent) for agent in agents])
    states = [edge["compressor"]["generator"] for agent in agents for edge in agent.state["cross_gradients"].values()]
    assert len({tuple(state.tolist()) for state in states}) == 6


class Wide(Classifier):
    """Large enough that padding and scales weigh nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 256), nn.Tanh(), nn.Linear(256, 64), nn.Tanh(), nn.Linear(64, 4))


class CountHandedOver(pl.Callback):
    """Counts the bytes that this process gives to the process group, and notes the strategy's figures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent = 0
        self.before: Counter[str] = Counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start = dist.isend

        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> dist.Work | None:
            self.sent += tensor.nbytes
            return start(tensor, *args, **kwargs)

        dist.isend = counted
        self.before = trainer.strategy.traffic

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        traffic = trainer.strategy.traffic - self.before
        torch.save((self.sent, dict(traffic)), self.folder / f"{trainer.global_rank}.pt")


def bytes_of_run(strategy: str | cga.DecentralizedStrategy, folder: Path) -> list[tuple[int, dict[str, int]]]:
    folder.mkdir()
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(strategy=strategy, devices=2, max_steps=3, callbacks=[CountHandedOver(folder)], **QUIET)
    trainer.fit(Wide(), datamodule=OwnData(one_class_each(2)))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_signs_take_a_thirtieth_and_traffic_is_what_the_process_group_got(tmp_path: Path) -> None:
    plain, signs = (bytes_of_run(name, tmp_path / name) for name in ("cga_fork", "compcga_fork"))
    for sent, traffic in plain + signs:
        assert sent == sum(traffic.values()) > 0
    for (_, full), (_, few) in zip(plain, signs, strict=True):
        assert few["cross_gradients"] <= full["cross_gradients"] / 30
        assert few["models"] == full["models"] == full["cross_gradients"]


def test_a_shorter_float_on_the_wire_is_one_more_compressor() -> None:
    problem = Quadratics(3, heterogeneity=1.0)
    shorter, exact = (
        train(problem, algorithm, cga.Complete(3), lr=lambda step: 0.1, steps=5)
        for algorithm in (cga.CGA(compressor=Identity("float32")), cga.CGA())
    )
    assert 0 < float((shorter - exact).abs().max()) < 1e-5


COMPRESSED = pytest.mark.parametrize("algorithm", [cga.CGA, cga.NGC])


@COMPRESSED
@pytest.mark.parametrize("name", NAMES)
def test_a_name_stands_for_the_compressor_with_its_defaults(algorithm: type[cga.CGA | cga.NGC], name: str) -> None:
    assert algorithm(compressor=name).compressor == from_name(name)


@COMPRESSED
@pytest.mark.parametrize(
    "compressor, error, message",
    [
        ("zip", ValueError, "Unknown compressor 'zip'; known: identity, scaled_sign, .*, or pass a compressor of your"),
        (cga.ScaledSign, TypeError, "compressor must be a name or an object of a subclass of Compressor, got <class"),
        (16, TypeError, "compressor must be a name or an object of a subclass of Compressor, got 16"),
    ],
)
def test_other_compressors_are_refused(
    algorithm: type[cga.CGA | cga.NGC], compressor: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        algorithm(compressor=compressor)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--algorithm=CGA", "--algorithm.compressor=scaled_sign"], cga.CGA(compressor=cga.ScaledSign())),
        (
            ["--algorithm=NGC", "--algorithm.compressor=QSGD", "--algorithm.compressor.bits=8"],
            cga.NGC(compressor=cga.QSGD(8)),
        ),
        (["--algorithm=CGA"], cga.CGA()),
        (["--algorithm=compngc"], "compngc"),
    ],
)
def test_command_line_builds_algorithms(arguments: list[str], expected: cga.Algorithm | str) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    command_line = getattr(jsonargparse, "auto_cli", None) or jsonargparse.CLI

    def run(algorithm: cga.Algorithm | str = "cga") -> cga.Algorithm | str:
        return algorithm

    assert repr(command_line(run, args=arguments)) == repr(expected)
