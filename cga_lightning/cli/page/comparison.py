"""A folder of `cga-lightning compare` as runs to draw: one for each method in each setting, its seeds as members."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cga_lightning.cli.comparison.curves import curve_of
from cga_lightning.cli.comparison.runs import read
from cga_lightning.cli.comparison.tables import METHOD, grouped, method_labels, setting_label, with_best_rates
from cga_lightning.cli.comparison.trial import FIXED, SETTING
from cga_lightning.cli.comparison.trial import Run as Row
from cga_lightning.cli.page.logs import Run, Spread

RUNS, TABLES = "runs.csv", "tables.md"
ACCURACY = "test accuracy"


def methods(folder: Path) -> list[Run]:
    """Each method of the comparison, with the learning rate that is best on validation data."""
    rows = with_best_rates(read(folder / RUNS))
    settings, titles = grouped(rows, SETTING), method_labels(rows)
    return [
        _method(f"{titles[tuple(method)]}, lr {rate}" + _of(setting, len(settings)), group)
        for setting, of_setting in settings.items()
        for (*method, rate), group in grouped(of_setting, (*METHOD, "lr")).items()
    ]


def _of(setting: Sequence[str], several: int) -> str:
    return f" ({setting_label(setting)})" if several > 1 else ""


def _method(name: str, rows: Sequence[Row]) -> Run:
    curves = [curve_of(row) for row in rows]
    first, count = rows[0], len(curves[0])
    steps = [first["steps"] * (place + 1) // count for place in range(count)]
    sent = float(np.mean([row["bytes"] for row in rows]))
    spread = Spread(
        steps, [sent * step / first["steps"] for step in steps], [list(at) for at in zip(*curves, strict=True)]
    )
    settings = {setting: first[setting] for setting in (*SETTING, *FIXED)} | {"learning rate": first["lr"]}
    return Run(name, spreads={ACCURACY: spread}, members="seeds", settings=settings)


def tables(folder: Path) -> dict[str, list[list[str]]]:
    """The tables that the comparison has written, by their titles."""
    found: dict[str, list[list[str]]] = {}
    for line in (folder / TABLES).read_text().splitlines() if (folder / TABLES).exists() else ():
        if line.startswith("### "):
            title = line.removeprefix("### ")
            found[title] = []
        elif line.startswith("| ") and not line.startswith("| ---"):
            found[title].append([cell.strip(" *`") for cell in line.strip("|").split(" | ")])
    return found
