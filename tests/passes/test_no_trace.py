"""Cross-gradient passes change nothing but gradients: a run with learning rate 0 ends as without neighbors."""

import random
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

import cga_lightning as cga
from cga_lightning.passes.random_state import RandomState, seed_all
from tests.passes.test_snapshot import Net, same
from tests.toys import QUIET

AGENTS = 2  # their weights of 1/2 are exact, so mixing equal models changes no bit


class Everything(pl.LightningModule):
    """Whatever a training step may change, it changes."""

    def __init__(self, width=3):
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(width)
        self.metric = MeanMetric()
        self.seen, self.counts, self.average = [], {"steps": 0}, torch.zeros(width)
        self.calls = 0

    def training_step(self, batch, batch_idx):
        (x,) = batch
        output = self.net(x) + 0.1 * torch.randn(()) + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002
        loss = output.square().mean()
        self.seen.append(loss.item())
        self.counts["steps"] += 1
        self.hparams.changed = batch_idx
        self.average = 0.9 * self.average + 0.1 * output.detach().mean(0)
        self.metric(loss.detach())
        self.log("metric", self.metric)
        self.log_dict({"step": loss, "epoch": loss}, on_step=True, on_epoch=True)
        self.logger.log_metrics({"direct": loss.item()}, step=self.global_step)
        self.logger.experiment.log_metrics({"experiment": loss.item()}, step=self.global_step)
        return {"loss": loss, "output": output.detach()}

    def on_before_backward(self, loss):
        self.calls += 1

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.0, momentum=0.9)


class Lines(Logger):
    """Keeps what it is given, on every rank."""

    name, version = "lines", 0

    def __init__(self):
        super().__init__()
        self.lines = []

    @property
    def experiment(self):
        return self

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, metrics))

    def log_hyperparams(self, *_):
        pass


class Report(pl.Callback):
    """Seeds each agent at the start; at the end writes down all that may have changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer, pl_module):
        seed_all(7 + self.rank(trainer))

    def rank(self, trainer):
        return trainer.global_rank

    def on_train_end(self, trainer, pl_module):
        modules, strategy = list(pl_module.modules()), trainer.strategy
        (state, *_) = (
            strategy.agent_state_dicts() if hasattr(strategy, "agent_state_dicts") else [pl_module.state_dict()]
        )
        report = {
            "random": list(RandomState.capture()),
            "state": {name: value.clone() for name, value in state.items()},
            "grads": {name: p.grad is None for name, p in pl_module.named_parameters()},
            "metric": [pl_module.metric.mean_value, pl_module.metric.weight],
            "attributes": [pl_module.seen, pl_module.counts, pl_module.average, pl_module.calls],
            "names": [sorted(vars(m)) for m in modules],
            "hparams": dict(pl_module.hparams),
            "logged": {name: value.clone() for name, value in trainer.logged_metrics.items()},
            "callback_metrics": dict(trainer.callback_metrics),
            "lines": trainer.logger.lines,
        }
        torch.save(report, self.folder / f"{self.rank(trainer)}.pt")


class Alone(Report):
    """The same for a run of one agent that is not in process number `agent`."""

    def __init__(self, folder: Path, agent: int) -> None:
        super().__init__(folder)
        self.agent = agent

    def rank(self, trainer):
        return self.agent


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader(self.trainer.global_rank)


def loader(agent):
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(agent))
    return DataLoader(TensorDataset(x), batch_size=4, shuffle=True)


def fit(report, data, **options):
    settings = QUIET | {"logger": Lines(), "max_epochs": 2, "log_every_n_steps": 2, "accumulate_grad_batches": 2}
    torch.manual_seed(0)
    trainer = pl.Trainer(callbacks=[report], **settings | options)
    trainer.fit(Everything(), **data)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for agent in range(AGENTS):
        fit(Alone(folder, agent), {"train_dataloaders": loader(agent)}, devices=1)
    return folder


def test_processes(alone, tmp_path):
    fit(Report(tmp_path), {"datamodule": Data()}, strategy="cga_fork", devices=AGENTS)
    for agent in range(AGENTS):
        first, second = (torch.load(folder / f"{agent}.pt", weights_only=False) for folder in (alone, tmp_path))
        assert len(second["attributes"][0]) == 12 and len(second["lines"]) > 24
        for name in first:
            assert same(first[name], second[name]), (agent, name, first[name], second[name])


def test_simulation(tmp_path):
    """Attributes are shared by all agents here, so the run without cross-gradients is one of DPSGD."""
    for algorithm in ("cga", "dpsgd"):
        folder = tmp_path / algorithm
        folder.mkdir()
        strategy = cga.SimulatedStrategy(AGENTS, algorithm)
        fit(Report(folder), {"train_dataloaders": list(map(loader, range(AGENTS)))}, strategy=strategy)
    first, second = (torch.load(tmp_path / name / "0.pt", weights_only=False) for name in ("cga", "dpsgd"))
    for name in first:
        assert same(first[name], second[name]), (name, first[name], second[name])
