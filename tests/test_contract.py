"""What an algorithm of one's own may rely on, in processes and in a simulation alike, with the same results."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

import cga_lightning as cga
from cga_lightning.algorithms import Step, gossip
from tests.toys import QUIET, Classifier, OwnData, in_processes, largest_difference, one_class_each, simulated

AGENTS = 4


class SendsGradients(cga.Algorithm):
    """Needs the own gradient for its first message."""

    exchanges = ("gradients",)
    graphs = "balanced"

    def step(self, agent: cga.Agent) -> Step:
        received = yield gossip(agent, agent.grad)
        agent.grad = agent.average(agent.grad, received)


class Halves(cga.Algorithm):
    """Overwrites what it has received."""

    exchanges = ("models",)
    graphs = "balanced"

    def step(self, agent: cga.Agent) -> Step:
        models = yield gossip(agent, agent.params)
        for model in models.values():
            model.mul_(0.5)
        agent.params = agent.params * 0.5 + sum(models.values()) / len(models)


class Local(cga.Algorithm):
    """Talks to nobody, or sends nothing."""

    def __init__(self, empty: bool) -> None:
        self.empty = empty

    def step(self, agent: cga.Agent) -> Step:
        if self.empty:
            yield {}
        yield from ()
        agent.grad = agent.grad * 0.5


class Reports(cga.DPSGD):
    """Only some agents report."""

    def step(self, agent: cga.Agent) -> Step:
        yield from super().step(agent)
        if agent.rank < 2:
            agent.diagnostics["rank"] = torch.tensor(float(agent.rank))


class Matching(cga.Topology):
    """One neighbor at a time along the edges of a hypercube, and none at every third step."""

    def edges(self, agents: int) -> list[tuple[int, int]]:
        return [(rank, rank ^ hop) for hop in (1, 2) for rank in range(agents)]

    def at(self, step: int) -> cga.Topology:
        return Phase(self.agents, step % 3)


class Phase(cga.Topology):
    def __init__(self, agents: int, k: int) -> None:
        object.__setattr__(self, "k", k)
        super().__init__(agents)

    def edges(self, agents: int) -> list[tuple[int, int]]:
        return [(rank, rank ^ (1 << self.k)) for rank in range(agents)] if self.k < 2 else []


class Writes(Classifier):
    """Its own pass changes its parameters, while the model before travels."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if not torch.is_inference_mode_enabled() and self.trainer.training:
            with torch.no_grad():
                self.net[2].bias.add_(0.01)
        return loss


class Replaces(Classifier):
    """Gives a parameter other memory while the step is under way."""

    def on_after_backward(self) -> None:
        bias = self.net[2].bias
        bias.data = bias.data + 0.01


STEPS = 6


ALGORITHMS = [SendsGradients(), Halves(), Local(empty=False), Local(empty=True), Reports()]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_processes_equal_the_simulation(algorithm: cga.Algorithm, tmp_path: Path) -> None:
    processes = in_processes(tmp_path, algorithm, "ring", AGENTS, STEPS)
    assert largest_difference(processes, simulated(algorithm, "ring", AGENTS, STEPS)) <= 1e-6


@pytest.mark.parametrize("algorithm", ["cga", "dpsgd", "gradient_tracking", "swarmsgd", "compcga"])
def test_on_a_graph_that_varies_in_time(algorithm: str, tmp_path: Path) -> None:
    processes = in_processes(tmp_path, algorithm, Matching(), AGENTS, STEPS)
    assert largest_difference(processes, simulated(algorithm, Matching(), AGENTS, STEPS)) <= 1e-6


@pytest.mark.parametrize("module", [Writes, Replaces])
def test_a_pass_that_writes_into_parameters_does_not_reach_what_travels(module: type, tmp_path: Path) -> None:
    processes = in_processes(tmp_path, "dpsgd", "ring", AGENTS, STEPS, module)
    writing = simulated("dpsgd", "ring", AGENTS, STEPS, module)
    assert largest_difference(processes, writing) <= 1e-6
    assert largest_difference(simulated("dpsgd", "ring", AGENTS, STEPS), writing) > 1e-2  # what was written is kept


def logged(folder: Path, strategy: cga.SimulatedStrategy | cga.DecentralizedStrategy) -> list[dict[str, str]]:
    devices = AGENTS if isinstance(strategy, cga.DecentralizedStrategy) else 1
    options = {"logger": CSVLogger(folder, name="", version="run"), "log_every_n_steps": 1, "max_steps": 4}
    monitor = cga.ConsensusMonitor(every_n_steps=1)
    trainer = pl.Trainer(strategy=strategy, devices=devices, callbacks=[monitor], **{**QUIET, **options})
    trainer.fit(Classifier(), datamodule=OwnData(one_class_each(AGENTS)))
    with (folder / "run" / "metrics.csv").open() as lines:
        return [row for row in csv.DictReader(lines) if row["consensus_distance"]]


@pytest.mark.parametrize("algorithm", [cga.CGA(margin=0.0), Reports()], ids=["cga", "reports"])
def test_the_monitor_logs_the_same_quantities(algorithm: cga.Algorithm, tmp_path: Path) -> None:
    one_process = logged(tmp_path / "simulated", cga.SimulatedStrategy(AGENTS, algorithm))
    processes = logged(tmp_path / "processes", cga.DecentralizedStrategy(algorithm, start_method="fork"))
    assert len(one_process) == len(processes) == 4
    names = {"consensus_distance", "gradient_norm", "traffic/models"}
    names |= {"rank"} if isinstance(algorithm, Reports) else {"conflicts", "traffic/cross_gradients"}
    for one, other in zip(one_process, processes, strict=True):
        for name in names:
            assert float(one[name]) == pytest.approx(float(other[name]), abs=1e-5), name
    if isinstance(algorithm, Reports):
        assert float(one_process[0]["rank"]) == 0.5  # over the two agents that report it


def test_too_many_neighbors_are_refused_before_a_trainer_exists() -> None:
    with pytest.raises(ValueError, match="at most 64 neighbors, but agent 0 of Complete.66. has 65. Use a sparser"):
        cga.SimulatedStrategy(66, "cga", "complete")
    with pytest.raises(ValueError, match="at most 64 neighbors"):
        cga.SimulatedStrategy(66, cga.QuasiGlobalMomentum(cga.CGA()), "complete")
    cga.SimulatedStrategy(66, "ngc", "complete")
