"""A gradient that is not finite is told with agent and step, and does not reach the directions of the neighbors."""

from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch

import cga_lightning as cga
from cga_lightning.core.finite import FiniteCheck
from tests.toys import QUIET, Classifier, OwnData, SaveOwnWeights, one_class_each

AGENTS = 3


class Broken(OwnData):
    """The third batch of agent 1 is out of range."""

    def __init__(self):
        super().__init__(one_class_each(AGENTS))
        self.datasets[1].tensors[0][8:12] = float("inf")


class Reports(SaveOwnWeights):
    """Also what every process reports about its last step."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        torch.save(trainer.strategy.diagnostics(), self.folder / f"report{trainer.global_rank}.pt")

    def reports(self, processes):
        return [torch.load(self.folder / f"report{rank}.pt") for rank in range(processes)]


def fit(strategy, folder, steps):
    devices, callback = AGENTS if isinstance(strategy, cga.DecentralizedStrategy) else 1, Reports(folder)
    options = QUIET | {"max_steps": steps, "devices": devices, "max_epochs": -1}
    pl.Trainer(strategy=strategy, callbacks=[callback], **options).fit(Classifier(), datamodule=Broken())
    return callback


def finite(state):
    return all(bool(value.isfinite().all()) for value in state.values())


def told(caplog):
    messages = [
        record.message.partition(".")[0] for record in caplog.records if record.name == "cga_lightning.core.finite"
    ]
    caplog.clear()
    return messages


def gradient_of(agent, step):
    return f"The gradient of agent {agent} is not finite at step {step}"


def test_simulated(tmp_path, caplog):
    strategy = cga.SimulatedStrategy(AGENTS)
    (report,) = fit(strategy, tmp_path, 3).reports(1)
    assert told(caplog) == [gradient_of(1, 2)]
    assert [finite(state) for state in strategy.agent_state_dicts()] == [True, False, True]
    assert report["non_finite"] == 1  # the neighbors left out what came from agent 1
    assert report["non_finite_gradients"] == pytest.approx(1 / AGENTS)


def test_it_spreads_with_a_warning_of_every_agent(tmp_path, caplog):
    fit(cga.SimulatedStrategy(AGENTS), tmp_path, 6)
    assert told(caplog) == [gradient_of(1, 2), gradient_of(0, 4), gradient_of(2, 4)]


def test_processes(tmp_path):
    callback = fit(cga.DecentralizedStrategy(start_method="fork", timeout=timedelta(seconds=30)), tmp_path, 3)
    assert [finite(state) for state in callback.load(AGENTS)] == [True, False, True]
    reports = callback.reports(AGENTS)
    assert [float(report["non_finite"]) for report in reports] == [1, 1, 1]
    assert [float(report["non_finite_gradients"]) for report in reports] == [0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_gradients_are_finite(dtype, caplog):
    check = FiniteCheck(0)
    check.look_at(torch.full((1000,), 60000.0, dtype=dtype), 0)
    assert check.count == 0
    for value in (float("nan"), float("inf"), -float("inf")):
        check.look_at(torch.tensor([1.0, value, 2.0], dtype=dtype), 3)
    assert check.count == 3 and told(caplog) == [gradient_of(0, 3)]
