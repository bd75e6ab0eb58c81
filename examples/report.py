"""What the quickstart measures and shows: accuracies of all agents over the steps, one table and one picture."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from cga_lightning.algorithms import from_name
from cga_lightning.cli.comparison.images import Images

COLORS = ("tab:orange", "tab:blue")
BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontweight": "bold"}

Record = dict[str, Any]
"""Of one method: "curve", pairs of a step and the accuracies of all agents; "consensus", its accuracy; "neighbors" and
"bytes", how many an agent has and sends in a step."""


class ProgressBar(pl.Callback):
    """Shows how far a method is, in the process that shows anything."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar."""
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn())
        self.bar = Progress(TextColumn(f"{self.name:>6}"), *columns, disable=not trainer.is_global_zero)
        self.bar.add_task(self.name, total=trainer.max_steps)
        self.bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Move it."""
        self.bar.update(self.bar.task_ids[0], completed=trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave it as it is."""
        self.bar.stop()


class TestAccuracy:
    """Measures a module on the test images, and before the last step on the first 1,000 of them."""

    def __init__(self, test: Images) -> None:
        self.test = test

    def __call__(self, module: pl.LightningModule) -> dict[str, float]:
        """The share of images whose class has the highest score."""
        quick = module.trainer.global_step < module.trainer.max_steps
        chunks = list(zip(*(part.split(500) for part in self.test), strict=True))[: 2 if quick else None]
        hits = [module(images).argmax(1).eq(labels).float() for images, labels in chunks]
        return {"accuracy": float(torch.cat(hits).mean())}


class SaveConsensus(pl.Callback):
    """Measures the consensus, which the module holds when fit is over. Under some launchers only a file outlives it."""

    def __init__(self, measure: TestAccuracy, path: Path) -> None:
        self.measure, self.path = measure, path

    @torch.no_grad()
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.measure(pl_module.eval())))


def read_record(folder: Path) -> Record:
    """What `RunRecord` and `SaveConsensus` have written into the folder of a run."""
    curve: dict[int, list[float]] = defaultdict(list)
    for row in csv.DictReader((folder / "agents.csv").read_text().splitlines()):
        curve[int(row["step"])].append(float(row["accuracy"]))
    consensus = json.loads((folder / "consensus.json").read_text())["accuracy"]
    matrix = np.array(json.loads((folder / "run.json").read_text())["mixing_matrix"])
    return {
        "curve": list(curve.items()),
        "consensus": consensus,
        "bytes": float(row["bytes"]) / int(row["step"]),
        "neighbors": float((matrix > 0).sum(axis=1).mean()) - 1,
    }


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
    table.add_row(
        "gradients per agent and step",
        "",
        *(f"{gradients:g}" for gradients in map(_gradients, records, records.values())),
    )
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


def _gradients(method: str, record: Record) -> float:
    """An agent computes its own, and one at the model of each neighbor if it sends cross-gradients."""
    return 1 + ("cross_gradients" in from_name(method.lower()).exchanges) * record["neighbors"]


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.1f} %"
