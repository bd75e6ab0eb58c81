"""What the quickstart measures and shows: accuracies of all agents over the steps, one table and one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from data import Images
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from torch import Tensor
from torch.func import functional_call

from cga_lightning import SimulatedStrategy

COLORS = ("tab:orange", "tab:blue")
BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontweight": "bold"}

Record = dict[str, Any]
"""Of one method: "curve", pairs of a step and the accuracies of all agents; "consensus", its accuracy; "gradients" and
"bytes", how many an agent computes and sends in a step."""


class Recorder(pl.Callback):
    """Tests every agent's own model now and then, and the consensus in the end; writes a file when fit is over."""

    def __init__(self, name: str, test: Images, every: int, path: Path) -> None:
        self.name, self.test, self.every, self.path = name, test, every, path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All agents start from the same model."""
        self.bar = _progress_bar(self.name, trainer.max_steps, shown=trainer.is_global_zero)
        self.curve = [(0, [self._accuracy(pl_module, pl_module.state_dict())] * trainer.strategy.agents)]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Every process comes here at the same step, and adds what its agents can do."""
        step, strategy = trainer.global_step, trainer.strategy
        self.bar.update(self.bar.task_ids[0], completed=step)
        if step % self.every == 0 or step == trainer.max_steps:
            simulated = isinstance(strategy, SimulatedStrategy)
            states = strategy.agent_state_dicts() if simulated else [pl_module.state_dict()]
            accuracies = torch.zeros(strategy.agents)
            for rank, state in zip(strategy.local_agents, states, strict=True):
                accuracies[rank] = self._accuracy(pl_module, state, quick=step < trainer.max_steps)
            self.curve.append((step, strategy.reduce(accuracies, reduce_op="sum").tolist()))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a step costs, as the mean over agents."""
        strategy = trainer.strategy
        here = torch.tensor(sum(strategy.traffic.values()), dtype=torch.float64)
        degrees = [len(strategy.topology.neighbors(rank)) for rank in range(strategy.agents)]
        self.sent = float(strategy.reduce(here, reduce_op="sum")) / len(degrees) / trainer.global_step
        self.gradients = 1 + ("cross_gradients" in strategy.traffic) * sum(degrees) / len(degrees)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The module holds the consensus now. Under some launchers only this file outlives the processes."""
        self.bar.stop()
        consensus = self._accuracy(pl_module, pl_module.state_dict())
        record = {"curve": self.curve, "consensus": consensus, "bytes": self.sent, "gradients": self.gradients}
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(record))

    def read(self) -> Record:
        """What the file holds."""
        return json.loads(self.path.read_text())

    @torch.no_grad()
    def _accuracy(self, module: pl.LightningModule, state: dict[str, Tensor], quick: bool = False) -> float:
        """On the test images, the first 1,000 if `quick`."""
        chunks = list(zip(*(part.split(500) for part in self.test), strict=True))[: 2 if quick else None]
        hits = [functional_call(module, state, images).argmax(1).eq(labels).float() for images, labels in chunks]
        return float(torch.cat(hits).mean())


def print_table(records: dict[str, Record], classes: list[list[int]]) -> None:
    """Test accuracies after the last step, by agent and method, and what each method has sent."""
    table = Table("test accuracy of", "classes", *(Column(name, justify="right") for name in records))
    finals = [record["curve"][-1][1] for record in records.values()]
    for rank, accuracies in enumerate(zip(*finals, strict=True)):
        table.add_row(f"agent {rank}", ", ".join(map(str, classes[rank])), *map(_percent, accuracies))
    table.add_section()
    table.add_row("mean of the agents", "", *(_percent(float(np.mean(final))) for final in finals), style="bold")
    table.add_row("consensus model", "", *(_percent(record["consensus"]) for record in records.values()))
    table.add_section()
    table.add_row("gradients per agent and step", "", *(f"{record['gradients']:g}" for record in records.values()))
    table.add_row("kB sent per agent and step", "", *(f"{record['bytes'] / 1e3:.0f}" for record in records.values()))
    Console().print(table)


def draw(records: dict[str, Record], title: str, path: Path) -> None:
    """The mean test accuracy of the agents' own models over the steps, in a band from the worst to the best."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, record), color in zip(records.items(), COLORS, strict=True):
        steps, accuracies = zip(*record["curve"], strict=True)
        percent = 100 * np.array(accuracies)
        mean = percent.mean(axis=1)
        axes.fill_between(steps, percent.min(axis=1), percent.max(axis=1), color=color, alpha=0.2, linewidth=0)
        axes.plot(steps, mean, color=color, linewidth=2)
        axes.annotate(f"{name}\n{mean[-1]:.1f} %", (steps[-1], mean[-1]), (6, 0), color=color, **BESIDE)
    axes.set(title=title, xlim=(0, steps[-1]), ylim=(0, 100))
    axes.set(xlabel="step (both methods see the same batches)", ylabel="test accuracy of the agents (%)")
    axes.text(0.01, 0.97, "line: mean, band: worst to best agent", color="dimgray", va="top", transform=axes.transAxes)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _progress_bar(name: str, total: int, *, shown: bool) -> Progress:
    """A running bar with one task of `total` steps."""
    columns = (TextColumn(f"{name:>6}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn())
    progress = Progress(*columns, disable=not shown)
    progress.add_task(name, total=total)
    progress.start()
    return progress


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.1f} %"
