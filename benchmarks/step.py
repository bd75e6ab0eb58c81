"""What a simulated CGA step costs beside the gradients that it cannot do without.

    python benchmarks/step.py

Each of the N agents differentiates its own batch at its own model and at those of its neighbors: N + (number of
directed edges) forward and backward passes per step. After each step as many bare passes run in a plain loop over
one copy of the model and the same batches; nothing is trained there. A step counts from the end of these to the end of
the next batch, so it includes Lightning's loop, the batches, the exchange, the projection, mixing and the optimizer.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from cga_lightning import SimulatedStrategy, ops


class Instant(NamedTuple):
    """Readings of two clocks in seconds: waiting for other programs counts in the first only."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Instant:
        """Read both."""
        return cls(time.perf_counter(), time.process_time())

    def elapsed(self) -> Instant:
        """From then to now."""
        now = self.now()
        return Instant(now.wall - self.wall, now.cpu - self.cpu)


class Classifier(pl.LightningModule):
    """A CNN of 996,202 parameters for images of 28 x 28."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 7 * 7, 300), nn.ReLU(), nn.Linear(300, 10)),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Stopwatch(pl.Callback):
    """Times every step, and after each of them the bare passes."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.steps: list[Instant] = []
        self.bare: list[Instant] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The bare passes have a model of their own."""
        self.copy = copy.deepcopy(pl_module.net)
        topology = trainer.strategy.topology
        self.passes = [1 + len(topology.neighbors(rank)) for rank in range(trainer.strategy.agents)]
        self.start = Instant.now()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step is over."""
        self.steps.append(self.start.elapsed())
        start = Instant.now()
        self._bare_passes(batch)
        self.bare.append(start.elapsed())
        self.start = Instant.now()

    def _bare_passes(self, batches: list[list[Tensor]]) -> None:
        for (images, labels), passes in zip(batches, self.passes, strict=True):
            for _ in range(passes):
                self.copy.zero_grad()
                cross_entropy(self.copy(images), labels).backward()

    def medians(self, clock: Callable[[Instant], float]) -> tuple[float, float]:
        """Milliseconds of a step and of its bare passes, without the first steps."""
        steps, bare = ([1e3 * clock(i) for i in instants[self.warmup :]] for instants in (self.steps, self.bare))
        return median(steps), median(bare)


def measure(args: argparse.Namespace) -> Stopwatch:
    """Train the agents on random images for one epoch."""
    pl.seed_everything(0, verbose=False)
    count = (args.warmup + args.steps) * args.batch_size
    data = [TensorDataset(torch.randn(count, 1, 28, 28), torch.randint(10, (count,))) for _ in range(args.agents)]
    stopwatch = Stopwatch(args.warmup)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "callbacks": stopwatch, **quiet}
    trainer = pl.Trainer(strategy=SimulatedStrategy(args.agents, "cga", args.topology), **options)
    trainer.fit(Classifier(), [DataLoader(dataset, batch_size=args.batch_size) for dataset in data])
    return stopwatch


def report(args: argparse.Namespace, stopwatch: Stopwatch) -> float:
    """Print the medians; returns the ratio by CPU time."""
    passes = sum(stopwatch.passes)
    table = Table("median over steps", "CGA step", f"{passes} bare passes", "ratio")
    for name, clock in (("wall time", lambda i: i.wall), ("CPU time", lambda i: i.cpu)):
        step, bare = stopwatch.medians(clock)
        table.add_row(name, f"{step:.1f} ms", f"{bare:.1f} ms", f"{step / bare:.3f}")
    setting = f"{args.agents} agents ({args.topology}), batch {args.batch_size}, {args.threads} thread(s)"
    Console().print(f"{setting}, projection: {ops.backend('cpu')}")
    Console().print(table)
    return step / bare


def main() -> None:
    """Measure, and fail above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--agents", type=int, default=5, help="number of agents (default: %(default)s)")
    add("--topology", default="ring", help="who talks to whom (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="samples per agent and step (default: %(default)s)")
    add("--steps", type=int, default=30, help="steps to measure (default: %(default)s)")
    add("--warmup", type=int, default=5, help="steps before these (default: %(default)s)")
    add("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    add("--limit", type=float, help="exit with status 1 if the ratio of CPU times is above")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec)")
    ratio = report(args, measure(args))
    if args.limit is not None and ratio > args.limit:
        raise SystemExit(f"The ratio {ratio:.3f} is above the limit of {args.limit}.")


if __name__ == "__main__":
    main()
