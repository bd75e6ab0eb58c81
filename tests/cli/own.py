"""What a user may have: a module and data of their own, found by their class paths."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cga_lightning import PartitionedDataModule


class Blobs(TensorDataset):
    """Points around the centers of four classes."""

    def __init__(self, samples: int = 200, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(samples) % 4
        points = 3 * torch.eye(4, 6)[labels] + 0.5 * torch.randn(samples, 6, generator=generator)
        super().__init__(points, labels)


class Net(pl.LightningModule):
    """Linear scores."""

    def __init__(self, width: int = 4, lr: float = 0.1) -> None:
        super().__init__()
        self.layer = nn.Linear(6, width)
        self.lr = lr

    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        points, labels = batch
        loss = nn.functional.cross_entropy(self(points), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class NoScores(Net):
    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points).sum(1)


class Data(PartitionedDataModule):
    """Partitioned points."""

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__(Blobs(), partition="iid", batch_size=batch_size)


class WithOptimizersOfItsOwn(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class WithData(Net):
    def train_dataloader(self) -> Any:
        return [DataLoader(Blobs(40, seed), batch_size=8) for seed in range(3)]


class Validated(Net):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        points, labels = batch
        self.log("val_loss", nn.functional.cross_entropy(self(points), labels))
