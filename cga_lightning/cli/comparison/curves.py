"""The picture of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cga_lightning.cli.comparison.tables import METHOD, grouped, method_labels, setting_label
from cga_lightning.cli.comparison.trial import SETTING, Run
from cga_lightning.cli.extras import tools


def draw(runs: Sequence[Run], path: Path) -> None:
    """The mean test accuracy of the agents over steps and over bytes; one row of panels per setting."""
    with tools("The picture of a comparison"):
        from matplotlib.figure import Figure
    settings, titles = grouped(runs, SETTING), method_labels(runs)
    figure = Figure(figsize=(10, 3.4 * len(settings)), layout="constrained")
    panels = figure.subplots(len(settings), 2, squeeze=False, sharey=True)
    for (by_steps, by_bytes), (setting, of_setting) in zip(panels, settings.items(), strict=True):
        for (*method, rate), group in grouped(of_setting, (*METHOD, "lr")).items():
            percent = 100 * np.mean([curve_of(run) for run in group], axis=0)
            progress = np.arange(1, len(percent) + 1) / len(percent)
            megabytes = np.mean([run["bytes"] for run in group]) / 1e6
            by_steps.plot(progress * group[0]["steps"], percent, label=f"{titles[tuple(method)]}, lr {rate}")
            by_bytes.plot(progress * megabytes, percent)
        title = setting_label(setting)
        by_steps.set(title=title, xlabel="step", ylabel="test accuracy (%)", ylim=(0, 100))
        by_bytes.set(title=title, xlabel="MB sent per agent", xscale="log")
        by_bytes.xaxis.set_major_formatter("{x:g}")
        for axes in (by_steps, by_bytes):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=130)


def curve_of(run: Run) -> list[float]:
    """The mean test accuracy of the agents at every evaluation."""
    return [float(value) for value in run["curve"].split()]
