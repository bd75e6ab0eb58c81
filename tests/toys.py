"""Small modules and data that several tests use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import cga_lightning as cga

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}
"""Trainer arguments of a run that leaves nothing behind."""


def mlp(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))


class Classifier(pl.LightningModule):
    """An ordinary module: SGD with momentum and a step schedule."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.net = mlp()
        self.lr = lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, classes = batch
        loss = nn.functional.cross_entropy(self.net(inputs), classes)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        inputs, classes = batch
        self.log("val_loss", nn.functional.cross_entropy(self.net(inputs), classes))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]


def one_class_each(agents: int = 4, samples: int = 16) -> list[TensorDataset]:
    """Agent j holds samples of class j only, around a center of its own."""
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(agents, 6, generator=generator)
    return [
        TensorDataset(
            centers[agent] + 0.5 * torch.randn(samples, 6, generator=generator), torch.full((samples,), agent % 4)
        )
        for agent in range(agents)
    ]


class OwnData(pl.LightningDataModule):
    """Serves `datasets[rank]` to the agent of this process, in order."""

    def __init__(self, datasets: list[TensorDataset], batch_size: int = 4) -> None:
        super().__init__()
        self.datasets = datasets
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        loaders = [DataLoader(dataset, batch_size=self.batch_size) for dataset in self.datasets]
        ranks = self.trainer.strategy.local_agents
        return [loaders[rank] for rank in ranks] if len(ranks) > 1 else loaders[ranks[0]]


class SaveOwnWeights(pl.Callback):
    """Each process writes its agent's own weights; a simulation those of agent 0, see `agent_state_dicts`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.save(trainer.strategy.agent_state_dicts()[0], self.folder / f"{trainer.global_rank}.pt")

    def load(self, agents: int) -> list[dict[str, Tensor]]:
        return [torch.load(self.folder / f"{rank}.pt") for rank in range(agents)]


def largest_difference(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> float:
    """Over all agents and tensors."""
    assert len(first) == len(second) > 0
    return max(float((a[name] - b[name]).abs().max()) for a, b in zip(first, second, strict=True) for name in a)


def simulated(
    algorithm: cga.Algorithm | str, topology: cga.Topology | str, agents: int, steps: int, module: type = Classifier
) -> list[dict[str, Tensor]]:
    """The agents' own weights after so many steps in one process."""
    strategy = cga.SimulatedStrategy(agents, algorithm, topology)
    run = {"max_steps": steps, "max_epochs": -1, **QUIET}
    pl.Trainer(strategy=strategy, devices=1, **run).fit(module(), datamodule=OwnData(one_class_each(agents)))
    return strategy.agent_state_dicts()


def in_processes(
    folder: Path,
    algorithm: cga.Algorithm | str,
    topology: cga.Topology | str,
    agents: int,
    steps: int,
    module: type = Classifier,
) -> list[dict[str, Tensor]]:
    """The same with a process for every agent, which writes its weights into the folder."""
    save, strategy = SaveOwnWeights(folder), cga.DecentralizedStrategy(algorithm, topology, start_method="fork")
    run = {"max_steps": steps, "max_epochs": -1, "callbacks": [save], **QUIET}
    trainer = pl.Trainer(strategy=strategy, devices=agents, **run)
    trainer.fit(module(), datamodule=OwnData(one_class_each(agents)))
    return save.load(agents)
