"""The logs of a run, read back: what a logger has written, and what `RunRecord` adds."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cga_lightning.lightning.run_record import AGENTS, RECORD

METRICS, EVENTS = "metrics.csv", "events.out.tfevents.*"
TRAFFIC = "traffic/"
_NO_METRIC = ("step", "epoch")


class Series(NamedTuple):
    """Values of one quantity over the steps, both as they were logged."""

    steps: list[int]
    values: list[float]


class Spread(NamedTuple):
    """Values of one quantity of all agents, or of all seeds.

    Attributes:
        steps: at which it was measured.
        bytes: that an agent had sent by then, on average.
        values: `[steps][agents]`.
    """

    steps: list[int]
    bytes: list[float]
    values: list[list[float]]


@dataclass
class Run:
    """One run, or all seeds of one method.

    Attributes:
        name: in legends.
        series: logged quantities by name.
        spreads: quantities measured for every agent, or in every run, by name.
        members: what the values of a spread belong to.
        record: what `RunRecord` has written once; None if it did not.
        settings: to show in a table.
    """

    name: str
    series: dict[str, Series] = field(default_factory=dict)
    spreads: dict[str, Spread] = field(default_factory=dict)
    members: str = "agents"
    record: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def traffic(self) -> Series | None:
        """Bytes that an agent has sent, over the steps; None if nobody has logged that."""
        parts = [series for name, series in self.series.items() if name.startswith(TRAFFIC)]
        if parts:
            sums: dict[int, float] = defaultdict(float)
            for part in parts:
                for step, value in zip(*part, strict=True):
                    sums[step] += value
            return Series(list(sums), list(sums.values()))
        for spread in self.spreads.values():
            return Series(spread.steps, spread.bytes)
        return None


def is_run(folder: Path) -> bool:
    """Whether a folder has logs of a run."""
    return any((folder / name).exists() for name in (METRICS, AGENTS, RECORD)) or any(folder.glob(EVENTS))


def runs_below(path: Path) -> list[Path]:
    """The folder, or those below it that have logs.

    Raises:
        FileNotFoundError: there are none.
    """
    if is_run(path):
        return [path]
    found = sorted(folder for folder in path.rglob("*") if folder.is_dir() and is_run(folder))
    if not found:
        raise FileNotFoundError(
            f"{path} has no logs of a run: no {METRICS} of a CSVLogger, no {EVENTS} of a TensorBoardLogger, no "
            f"{RECORD} of RunRecord, and no runs.csv of `cga-lightning compare`."
        )
    return found


def read_run(folder: Path, name: str) -> Run:
    """All that the folder has."""
    run = Run(name, series=_csv_series(folder / METRICS) if (folder / METRICS).exists() else {})
    if not run.series and any(folder.glob(EVENTS)):
        run.series = _event_series(folder)
    if (folder / AGENTS).exists():
        run.spreads = _agent_spreads(folder / AGENTS)
    if (folder / RECORD).exists():
        run.record = json.loads((folder / RECORD).read_text())
        run.settings = _flat(run.record)
    return run


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def _csv_series(path: Path) -> dict[str, Series]:
    """Of a `CSVLogger`: one row per logged step, with empty cells for what was not logged then."""
    series: dict[str, Series] = defaultdict(lambda: Series([], []))
    for number, row in enumerate(_rows(path)):
        step = int(float(row.get("step") or number))
        for name, cell in row.items():
            if cell and name not in _NO_METRIC:
                series[name].steps.append(step)
                series[name].values.append(float(cell))
    return dict(series)


def _event_series(folder: Path) -> dict[str, Series]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"{folder} has the event files of a TensorBoardLogger, which the package tensorboard reads: "
            "pip install tensorboard; or log with a CSVLogger."
        ) from error
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # all of them
    events.Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"] if name not in _NO_METRIC}
    return {name: Series([e.step for e in of], [e.value for e in of]) for name, of in scalars.items()}


def _agent_spreads(path: Path) -> dict[str, Spread]:
    by_step: dict[int, list[dict[str, str]]] = defaultdict(list)
    for row in _rows(path):
        by_step[int(row["step"])].append(row)
    first = next(iter(by_step.values()))[0]
    sent = [float(rows[0]["bytes"]) for rows in by_step.values()]
    names = [name for name in first if name not in ("step", "seconds", "bytes", "agent")]
    return {
        name: Spread(list(by_step), sent, [[float(row[name]) for row in rows] for rows in by_step.values()])
        for name in names
    }


def bytes_at(traffic: Series, steps: Iterable[int]) -> list[float]:
    """Bytes sent by each of these steps, linear between those that are known; from 0 at step 0.

    After the last one that is known: at the mean rate until then.
    """
    known, sent = [0, *traffic.steps], [0.0, *traffic.values]
    rate = sent[-1] / max(known[-1], 1)

    def at(step: int) -> float:
        if step >= known[-1]:
            return sent[-1] + rate * (step - known[-1])
        place = next(i for i, later in enumerate(known) if later >= step)
        if known[place] == step:
            return sent[place]
        share = (step - known[place - 1]) / (known[place] - known[place - 1])
        return sent[place - 1] + share * (sent[place] - sent[place - 1])

    return [at(step) for step in steps]


def finite(values: Iterable[float]) -> list[float | None]:
    """For JSON, which has no NaN: None in its place."""
    return [value if math.isfinite(value) else None for value in values]


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: record[name] for name in ("algorithm", "topology", "agents")}
    settings["spectral gap"] = f"{record['spectral_gap']:.4g}"
    for name, value in record["settings"].items():
        if isinstance(value, Mapping):
            settings |= {f"{name}: {inner}": of for inner, of in value.items()}
        elif value is not None:
            settings[name] = value
    return settings
