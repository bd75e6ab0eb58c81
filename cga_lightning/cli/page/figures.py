"""The figures of a report, as Plotly takes them: plain traces and layouts, without colors of a theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cga_lightning.cli.page.logs import TRAFFIC, Run, Series, bytes_at, finite

COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#06b6d4", "#ec4899", "#84cc16", "#f97316", "#64748b")
"""Of runs, in their order; readable on white and on black."""

BLUES = [[0, "#e8f0fe"], [1, "#1d4ed8"]]
TIME = "time/"
NETWORK = ("consensus_distance", "conflicts", "non_finite", "non_finite_gradients", "gradient_norm")
STEP, SENT = "step", "MB sent per agent"


class Figure(NamedTuple):
    """A picture.

    Attributes:
        title: above it.
        data, layout: of Plotly.
        note: below it; how to read it.
    """

    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    note: str = ""


class Missing(NamedTuple):
    """What cannot be shown, and how to get it."""

    title: str
    why: str


Part = Figure | Missing


def parts(runs: Sequence[Run]) -> Iterator[Part]:
    """All figures of a page, in order."""
    yield from _spreads(runs)
    yield from _logged(runs)
    yield from _network(runs)
    yield _time(runs)
    yield from _records(runs)


def color_of(index: int) -> str:
    """Of the run with that index."""
    return COLORS[index % len(COLORS)]


# --- curves


def _spreads(runs: Sequence[Run]) -> Iterator[Part]:
    """Every quantity that was measured for each agent: over steps and over bytes."""
    names = dict.fromkeys(name for run in runs for name in run.spreads)
    if not names:
        yield Missing(
            "Every agent alone",
            "The log has no measurement of each agent's own model. Add cga_lightning.RunRecord(measure) to the "
            "callbacks; measure(module) returns numbers such as {'accuracy': 0.9}.",
        )
    for name in names:
        members = next(run.members for run in runs if name in run.spreads)
        note = f"Line: the mean of the {members}. Band: from the lowest to the highest of them."
        for axis in (STEP, SENT):
            lines = [_band(run, name, axis, index) for index, run in enumerate(runs) if name in run.spreads]
            yield Figure(f"{name} of the {members} over {_over(axis)}", sum(lines, []), _axes(axis, name), note)


def _over(axis: str) -> str:
    return "steps" if axis == STEP else "bytes"


def _band(run: Run, name: str, axis: str, index: int) -> list[dict[str, Any]]:
    spread = run.spreads[name]
    x = spread.steps if axis == STEP else [sent / 1e6 for sent in spread.bytes]
    low, high = (finite(map(pick, spread.values)) for pick in (min, max))
    common = {"x": x, "type": "scatter", "mode": "lines", "legendgroup": run.name, "hoverinfo": "skip"}
    edge: dict[str, Any] = {**common, "line": {"width": 0}, "showlegend": False}
    mean = finite(float(np.mean(values)) for values in spread.values)
    hover = [[bottom, top] for bottom, top in zip(low, high, strict=True)]
    return [
        {**edge, "y": low, "name": f"{run.name}, lowest"},
        {**edge, "y": high, "name": f"{run.name}, highest", "fill": "tonexty", "fillcolor": f"{color_of(index)}33"},
        {
            **common,
            "y": mean,
            "name": run.name,
            "line": {"color": color_of(index), "width": 2},
            "customdata": hover,
            "hoverinfo": "all",
            "hovertemplate": "%{y:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g})",
        },
    ]


def _logged(runs: Sequence[Run]) -> Iterator[Part]:
    """What the module has logged: over steps, and over bytes if these are known."""
    special = (TRAFFIC, TIME)
    names = dict.fromkeys(
        name for run in runs for name in run.series if name not in NETWORK and not name.startswith(special)
    )
    if not names and not any(run.spreads for run in runs):
        yield Missing("Loss and accuracy", "Nothing was logged: call self.log('loss', loss) in training_step.")
    for name in names:
        yield Figure(f"{name} over steps", _lines(runs, name, STEP), _axes(STEP, name))
        by_bytes = _lines(runs, name, SENT)
        if by_bytes:
            yield Figure(f"{name} over bytes", by_bytes, _axes(SENT, name))
    if names and not any(run.traffic for run in runs):
        yield Missing(
            "Over bytes",
            "The log has no traffic. Add cga_lightning.ConsensusMonitor() or RunRecord() to the callbacks.",
        )


def _lines(runs: Sequence[Run], name: str, axis: str) -> list[dict[str, Any]]:
    lines = []
    for index, run in enumerate(runs):
        series, traffic = run.series.get(name), run.traffic
        if series is not None and (axis == STEP or traffic is not None):
            x = series.steps if axis == STEP else [b / 1e6 for b in bytes_at(traffic, series.steps)]  # type: ignore[arg-type]
            lines.append(_line(run.name, x, series, color_of(index)))
    return lines


def _line(name: str, x: Sequence[float], series: Series, color: str) -> dict[str, Any]:
    mode = "lines" if len(series.steps) > 60 else "lines+markers"
    line = {"color": color, "width": 2}
    return {
        **{"type": "scatter", "mode": mode, "name": name, "x": list(x), "y": finite(series.values), "line": line},
        "hovertemplate": "%{y:.5g}",
    }


def _axes(x: str, y: str, **more: Any) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, **more}, "hovermode": "x unified"}


def _network(runs: Sequence[Run]) -> Iterator[Part]:
    """What ConsensusMonitor logs."""
    titles = {
        "consensus_distance": "Consensus distance: root mean square over agents of |x - mean|",
        "conflicts": "Conflicts: share of cross-gradients that the projection had to give way to",
        "non_finite": "Projections that had to leave out a row, as a share",
        "non_finite_gradients": "Own gradients so far that were not finite",
        "gradient_norm": "Norm of the direction of the step, mean over agents",
    }
    found = [name for name in NETWORK if any(name in run.series for run in runs)]
    for name in found:
        positive = all(value > 0 for run in runs for value in run.series.get(name, Series([], [])).values)
        scale = {"type": "log"} if positive and name in ("consensus_distance", "gradient_norm") else {}
        yield Figure(titles[name], _lines(runs, name, STEP), _axes(STEP, name, **scale))
    if any(run.series or run.spreads for run in runs) and "consensus_distance" not in found:
        yield Missing(
            "Consensus distance, conflicts and projections",
            "They are not in the log. Add cga_lightning.ConsensusMonitor() to the callbacks.",
        )
    elif "conflicts" not in found and any("conflicts" not in run.series for run in runs):
        yield Missing("Conflicts", "Only algorithms with a projection report them, such as CGA.")


def _time(runs: Sequence[Run]) -> Part:
    """Seconds per step by what they were spent on, one bar per run."""
    names = dict.fromkeys(name for run in runs for name in run.series if name.startswith(TIME))
    if not names:
        return Missing(
            "Computing and waiting",
            f"The log has no times. Log seconds per step as {TIME}computing and {TIME}waiting, and they are shown.",
        )
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name.removeprefix(TIME),
            "y": [run.name for run in runs],
            "x": [float(np.mean(run.series[name].values)) if name in run.series else None for run in runs],
        }
        for name in names
    ]
    layout = {"barmode": "stack", "xaxis": {"title": {"text": "seconds per step"}}, "yaxis": {"automargin": True}}
    return Figure("Computing and waiting, mean over the logged steps", bars, layout)


# --- graph and labels


def _records(runs: Sequence[Run]) -> Iterator[Part]:
    """Graph and labels: once for all runs that have the same."""
    by_record: dict[str, list[Run]] = {}
    for run in runs:
        if run.members == "agents":
            same = run.record and [run.record[name] for name in ("mixing_matrix", "labels")]
            by_record.setdefault(repr(same), []).append(run)
    for alike in by_record.values():
        whose = "" if len(by_record) == 1 else f" of {', '.join(run.name for run in alike)}"
        yield from _record(alike[0].record, whose)


def _record(record: Mapping[str, Any] | None, whose: str) -> Iterator[Part]:
    if record is None:
        yield Missing(
            f"Graph, labels and settings{whose}",
            "The log does not have them. Add cga_lightning.RunRecord() to the callbacks.",
        )
        return
    matrix = np.array(record["mixing_matrix"])
    yield Figure(f"Graph{whose}", _graph(matrix), _square(), "Edges are the wider, the larger their mixing weight.")
    yield Figure(f"Mixing matrix{whose}", [_heat(matrix, "agent", "agent")], _heat_axes("from agent", "agent"))
    labels = record["labels"]
    if labels is None:
        yield Missing(
            f"Labels of the agents{whose}",
            "They were not found. They are those of a PartitionedDataModule(labels=...).",
        )
    else:
        heat = _heat(np.array(labels["counts"]), "agent", "class", x=labels["classes"])
        yield Figure(f"Labels of the agents{whose}: samples of each class", [heat], _heat_axes("class", "agent"))


def _graph(matrix: Any) -> list[dict[str, Any]]:
    """Agents on a circle; one trace per edge, since its width is the weight."""
    agents = len(matrix)
    angles = [math.pi / 2 - 2 * math.pi * rank / agents for rank in range(agents)]
    places = [(math.cos(angle), math.sin(angle)) for angle in angles]
    both = np.maximum(matrix, matrix.T)
    largest = max((both[i, j] for i in range(agents) for j in range(i)), default=1.0)
    edges = [_edge(places[i], places[j], both[i, j] / largest) for i in range(agents) for j in range(i) if both[i, j]]
    hover = [_weights_of(matrix, rank) for rank in range(agents)]
    nodes: dict[str, Any] = {
        **{"type": "scatter", "mode": "markers+text", "x": [x for x, _ in places], "y": [y for _, y in places]},
        **{"text": [str(rank) for rank in range(agents)], "textfont": {"color": "white"}, "showlegend": False},
        **{"marker": {"size": 28 if agents <= 16 else 18, "color": COLORS[0]}},
        **{"hovertext": hover, "hovertemplate": "%{hovertext}<extra></extra>"},
    }
    return [*edges, nodes]


def _edge(start: tuple[float, float], end: tuple[float, float], share: float) -> dict[str, Any]:
    return {
        **{"type": "scatter", "mode": "lines", "x": [start[0], end[0]], "y": [start[1], end[1]]},
        **{"line": {"width": 1 + 4 * share, "color": "#94a3b8"}, "hoverinfo": "skip", "showlegend": False},
    }


def _weights_of(matrix: Any, rank: int) -> str:
    weights = [f"{matrix[rank, j]:.4g} from {j}" for j in range(len(matrix)) if matrix[rank, j] and j != rank]
    return "<br>".join([f"agent {rank}", f"{matrix[rank, rank]:.4g} itself", *weights])


def _square() -> dict[str, Any]:
    hidden = {"visible": False, "range": [-1.25, 1.25], "fixedrange": True}
    return {"xaxis": hidden, "yaxis": {**hidden, "scaleanchor": "x"}, "hovermode": "closest"}


def _heat(values: Any, row: str, column: str, x: Iterable[str] | None = None) -> dict[str, Any]:
    heat: dict[str, Any] = {
        **{"type": "heatmap", "z": values.tolist(), "colorscale": BLUES, "xgap": 1, "ygap": 1},
        "y": [str(rank) for rank in range(len(values))],
        "x": list(x) if x is not None else [str(rank) for rank in range(values.shape[1])],
        "hovertemplate": f"{row} %{{y}}, {column} %{{x}}: %{{z:.6g}}<extra></extra>",
    }
    few = values.size <= 200
    return {**heat, "texttemplate": "%{z:.3~g}"} if few else heat


def _heat_axes(x: str, y: str) -> dict[str, Any]:
    category: Mapping[str, Any] = {"type": "category"}
    return {
        "xaxis": {"title": {"text": x}, **category},
        "yaxis": {"title": {"text": y}, "autorange": "reversed", **category},
        "hovermode": "closest",
    }
