"""`cga-lightning report`: one web page of the logs of runs.

    cga-lightning report lightning_logs/version_0
    cga-lightning report logs/cga logs/dpsgd --output cga_and_dpsgd.html
    cga-lightning report comparison

A run is a folder that a CSVLogger or a TensorBoardLogger has written, or one of `cga-lightning compare`; a folder of
runs stands for all of them. The page has everything in itself, also what draws the curves: it opens without a network,
and can be sent to others. These callbacks log what it shows beside the module's own values:

    ConsensusMonitor()        consensus distance, conflicts, bytes
    RunRecord(measure)        every agent alone, the graph, the agents' labels, the settings
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cga_lightning.cli.page import comparison, figures, html, logs

Rows = list[list[Any]]


def main(arguments: Sequence[str]) -> None:
    """Write the page, and say where it is."""
    parser = argparse.ArgumentParser(
        prog="cga-lightning report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folders with logs")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="default: %(default)s")
    parser.add_argument("--title", help="of the page; the names of the runs if not given")
    given = parser.parse_args(arguments)
    try:
        write(given.runs, given.output, given.title)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"cga-lightning report: {error}") from error
    print(f"{given.output}: {given.output.stat().st_size / 1e6:.1f} MB, opens in any browser")


def write(folders: Sequence[Path], output: Path, title: str | None = None) -> None:
    """Write one page of all these runs.

    Args:
        folders: of logs, of comparisons, or with such folders in them.
        output: the file to write.
        title: of the page.

    Raises:
        FileNotFoundError: a folder has no logs.
        ValueError: a comparison was written by another version.
    """
    found = [run for folder in folders for run in _runs(Path(folder))]
    tables = {title: rows for folder in folders for title, rows in _tables(Path(folder))}
    heading = title or ", ".join(run.name for run in found)
    tables |= {"Last values": _last_values(found), "Settings": _settings(found)}
    page = html.page(heading, list(figures.parts(found)), {name: rows for name, rows in tables.items() if rows[1:]})
    output.write_text(page, encoding="utf-8")


def _runs(folder: Path) -> Iterator[logs.Run]:
    if (folder / comparison.RUNS).exists():
        yield from comparison.methods(folder)
    else:
        for below in logs.runs_below(folder):
            within = below.relative_to(folder).as_posix()
            yield logs.read_run(below, folder.resolve().name if within == "." else within)


def _tables(folder: Path) -> Iterator[tuple[str, Rows]]:
    if (folder / comparison.RUNS).exists():
        yield from comparison.tables(folder).items()


def _last_values(runs: Sequence[logs.Run]) -> Rows:
    """What was logged last, for readers of tables."""
    last = [
        {name: spread.values[-1] for name, spread in run.spreads.items()}
        | {name: series.values[-1] for name, series in run.series.items()}
        for run in runs
    ]
    names = dict.fromkeys(name for values in last for name in values)
    return [["", *(run.name for run in runs)], *([name, *(_shown(of.get(name)) for of in last)] for name in names)]


def _shown(value: float | list[float] | None) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return f"{sum(value) / len(value):.4g} ({min(value):.4g} to {max(value):.4g})"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.5g}"


def _settings(runs: Sequence[logs.Run]) -> Rows:
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        ["", *(run.name for run in runs)],
        *([name, *(run.settings.get(name, "") for run in runs)] for name in names),
    ]
