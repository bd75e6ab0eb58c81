"""A table and a picture of compared runs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Run = dict[str, Any]
ROW = ("algorithm", "lr")
COLUMN = ("topology", "agents", "partition")


def markdown(runs: list[Run], note: str = "") -> str:
    """Test accuracy of the agents and of the consensus for every row and column, and what was sent for it."""
    cells, columns = _cells(runs), list(grouped(runs, COLUMN))
    head = ["algorithm", "learning rate", *(_setting(column) for column in columns), "kB sent per step and agent"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(columns) + 1)]
    for row, group in grouped(runs, ROW).items():
        sent = [float(run["bytes"]) / float(run["steps"]) / 1e3 for run in group]
        accuracies = [_accuracies(cells[row, column]) if (row, column) in cells else "" for column in columns]
        lines.append([f"`{row[0]}`", str(row[1]), *accuracies, " to ".join(f"{x:,.0f}" for x in _range(sent))])
    seeds = list(dict.fromkeys(run["seed"] for run in runs))
    several = f"± standard deviation over the seeds {', '.join(seeds)}"
    about = (
        "{data}, {model}, {optimizer}, {steps} steps with batches of {batch_size}. Test accuracy in percent of the "
        "agents' own models: mean over agents and over the last {last} of {evaluations} evaluations on {test_samples} "
        "images, {spread}; in brackets that of the consensus model in the end."
    ).format(**runs[0], spread=several if len(seeds) > 1 else f"with the seed {seeds[0]}")
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", f"{about} {note}".strip(), ""])


def draw(runs: list[Run], path: Path) -> None:
    """The mean test accuracy of the agents over steps and over bytes; one row of panels per setting."""
    cells, columns = _cells(runs), list(grouped(runs, COLUMN))
    figure = Figure(figsize=(10, 3.4 * len(columns)), layout="constrained")
    panels = figure.subplots(len(columns), 2, squeeze=False, sharey=True)
    for (by_steps, by_bytes), column in zip(panels, columns, strict=True):
        for row in (row for row in grouped(runs, ROW) if (row, column) in cells):
            group = cells[row, column]
            percent = 100 * np.mean([[float(value) for value in run["curve"].split()] for run in group], axis=0)
            progress = np.arange(1, len(percent) + 1) / len(percent)
            megabytes = np.mean([float(run["bytes"]) for run in group]) / 1e6
            by_steps.plot(progress * int(group[0]["steps"]), percent, label=f"{row[0]}, lr {row[1]}")
            by_bytes.plot(progress * megabytes, percent)
        by_steps.set(title=_setting(column), xlabel="step", ylabel="test accuracy (%)", ylim=(0, 100))
        by_bytes.set(title=_setting(column), xlabel="MB sent per agent", xscale="log")
        by_bytes.xaxis.set_major_formatter("{x:g}")
        for axes in (by_steps, by_bytes):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=130)


def grouped(runs: list[Run], names: tuple[str, ...]) -> dict[tuple[str, ...], list[Run]]:
    """The runs by their values of `names`."""
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(run[name] for name in names)].append(run)
    return groups


def _cells(runs: list[Run]) -> dict[tuple[tuple[str, ...], tuple[str, ...]], list[Run]]:
    """The runs of every row and column, one per seed."""
    return {
        (row, column): group
        for row, of_row in grouped(runs, ROW).items()
        for column, group in grouped(of_row, COLUMN).items()
    }


def _setting(column: tuple[str, ...]) -> str:
    topology, agents, partition = column
    return f"{agents} agents, {topology}, {partition}"


def _accuracies(runs: list[Run]) -> str:
    own, consensus = (100 * np.array([float(run[name]) for run in runs]) for name in ("mean", "consensus"))
    spread = f" ± {own.std(ddof=1):.1f}" if len(runs) > 1 else ""
    return f"{own.mean():.1f}{spread} ({consensus.mean():.1f})"


def _range(values: list[float]) -> list[float]:
    return sorted({round(min(values)), round(max(values))})
