"""The training run of measure.py, and a watch that notices what waits for a device."""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Net(pl.LightningModule):
    """A CNN for images of 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU()
        self.net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 9, 10))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def module() -> pl.LightningModule:
    return Net()


def data(agents: int, steps: int) -> list[DataLoader[Any]]:
    """A loader for every agent, with `steps` batches of 8."""
    x, y = torch.randn(agents, steps * 8, 3, 16, 16), torch.randint(10, (agents, steps * 8))
    return [DataLoader(TensorDataset(*own), 8) for own in zip(x, y, strict=True)]


class Watch(pl.Callback):
    """Times every step, and in one of them notes the lines that wait for the device."""

    STEP = 4

    def __init__(self) -> None:
        self.times: list[float] = []
        self.found: Counter[str] = Counter()
        self._caught: Any = None

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.STEP and torch.cuda.is_available():
            self._context = warnings.catch_warnings(record=True)
            self._caught = self._context.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        self._begin = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        if self._caught is not None:
            torch.cuda.set_sync_debug_mode("default")
            waited = [one for one in self._caught if "synchroniz" in str(one.message)]
            self.found.update(f"{'/'.join(one.filename.split('/')[-2:])}:{one.lineno}" for one in waited)
            self._context.__exit__(None, None, None)
            self._caught = None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter() - self._begin)
