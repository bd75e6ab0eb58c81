"""What the benchmarks share: networks, a module, random data, a quiet Trainer, two clocks."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from cga_lightning.cli.comparison.networks import Classifier, cnn, lenet5
from cga_lightning.cli.comparison.trial import quietly


def wide() -> nn.Module:
    """A CNN of 996,206 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 300), nn.ReLU(), nn.Linear(300, 10)),
    )


def mlp() -> nn.Module:
    """A small network, for which everything but the arithmetic counts: 50,890 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 64), nn.ReLU(), nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "wide": wide,
    "cnn": lambda: cnn(1, 28),
    "lenet5": lambda: lenet5(1, 28),
    "mlp": mlp,
}
"""For images of 28 x 28, by name; "cnn" is that of the paper."""


def classifier(name: str) -> pl.LightningModule:
    """A LightningModule around a network, trained by SGD with momentum."""
    torch.manual_seed(0)
    return Classifier(NETWORKS[name](), lr=0.01, momentum=0.9)


def random_batches(count: int, size: int) -> DataLoader[Any]:
    """Random images and labels, `count` batches of `size`."""
    images, labels = torch.randn(count * size, 1, 28, 28), torch.randint(10, (count * size,))
    return DataLoader(TensorDataset(images, labels), batch_size=size)


def forward_backward(net: nn.Module, batch: Sequence[Tensor]) -> None:
    """A bare pass: no Lightning, nothing is trained."""
    images, labels = batch
    net.zero_grad()
    cross_entropy(net(images), labels).backward()


def trainer(**options: Any) -> pl.Trainer:
    """One epoch on the CPU that writes nothing."""
    quietly()
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|multi-threaded, use of fork)")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", max_epochs=1, **quiet, **options)


class Instant(NamedTuple):
    """Readings of two clocks in milliseconds: waiting for other programs counts in the first only."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Instant:
        """Read both."""
        return cls(1e3 * time.perf_counter(), 1e3 * time.process_time())

    def elapsed(self) -> Instant:
        """From then to now."""
        now = self.now()
        return Instant(now.wall - self.wall, now.cpu - self.cpu)

    def per(self, count: int) -> Instant:
        """The share of one of `count`."""
        return Instant(self.wall / count, self.cpu / count)


def timed(function: Callable[[], object]) -> Instant:
    """How long one call takes."""
    start = Instant.now()
    function()
    return start.elapsed()


def medians(instants: Sequence[Instant]) -> Instant:
    """By each clock."""
    walls, cpus = zip(*instants, strict=True)
    return Instant(median(walls), median(cpus))


def fail_above(limit: float | None, found: float, what: str) -> None:
    """Exit with status 1 where a limit is given and passed."""
    if limit is not None and found > limit:
        raise SystemExit(f"{what} is {found:.3f}, above the limit of {limit:g}.")
