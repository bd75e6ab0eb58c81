"""The tables of a comparison, in Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cga_lightning.cli.comparison.significance import best_of
from cga_lightning.cli.comparison.specs import label
from cga_lightning.cli.comparison.trial import SETTING, Run

METHOD = ("algorithm", "optimizer")
ACCURACIES = {
    "mean": "as trained",
    "worst": "worst agent",
    "gossip": "after one gossip round",
    "consensus": "consensus",
}
"""Test accuracies that tables have, and their titles."""


def grouped(runs: Iterable[Run], names: Sequence[str]) -> dict[tuple[str, ...], list[Run]]:
    """The runs by their values of `names`, as text."""
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(label(run[name]) if name != "lr" else f"{run[name]:g}" for name in names)].append(run)
    return dict(groups)


def with_best_rates(runs: Sequence[Run]) -> list[Run]:
    """Those with the learning rate that is most accurate on the validation data, for each method in each setting.

    The accuracy is the mean over the seeds of that of the agents' own models.
    """
    best: list[Run] = []
    for group in grouped(runs, (*METHOD, *SETTING)).values():
        by_rate = grouped(group, ("lr",)).values()
        best += max(by_rate, key=lambda runs: float(np.mean([run["validation_accuracy"] for run in runs])))
    return best


def markdown(runs: Sequence[Run], rates: Sequence[float]) -> str:
    """One table for each setting, and what the numbers in it are.

    Args:
        runs: those to show.
        rates: the learning rates from which theirs were chosen; none if all are shown.
    """
    sections = [
        f"### {setting_label(setting)}\n\n{_table(group)}\n" for setting, group in grouped(runs, SETTING).items()
    ]
    return "\n".join([*sections, _about(runs, rates)])


def setting_label(setting: Sequence[str]) -> str:
    """Topology, number of agents, partition: as a title."""
    topology, agents, partition = setting
    return f"{agents} agents, {topology}, {partition}"


def method_labels(runs: Sequence[Run]) -> dict[tuple[str, ...], str]:
    """A short title of every method: with its optimizer only if that is not the same for all."""
    methods = list(grouped(runs, METHOD))
    several = len({optimizer for _, optimizer in methods}) > 1
    return {method: f"{method[0]}, {method[1]}" if several else method[0] for method in methods}


def _table(runs: Sequence[Run]) -> str:
    titles = method_labels(runs)
    rows = grouped(runs, (*METHOD, "lr"))
    best = {name: _best(rows, name) for name in ACCURACIES}
    lines = [["algorithm", "learning rate", *ACCURACIES.values(), "kB sent per step and agent"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for (*method, rate), group in rows.items():
        key = (*method, rate)
        cells = [_bold(_spread(group, name), key in best[name]) for name in ACCURACIES]
        sent = np.mean([run["bytes"] / run["steps"] / 1e3 for run in group])
        lines.append([f"`{titles[tuple(method)]}`", rate, *cells, f"{sent:,.0f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _best(rows: Mapping[tuple[str, ...], Sequence[Run]], name: str) -> set[Any]:
    in_order = {key: sorted(group, key=lambda run: run["seed"]) for key, group in rows.items()}
    return best_of({key: [run[name] for run in group] for key, group in in_order.items()})  # type: ignore[misc]


def _bold(text: str, marked: bool) -> str:
    return f"**{text}**" if marked else text


def _spread(runs: Sequence[Run], name: str) -> str:
    percent = 100 * np.array([run[name] for run in runs])
    return f"{percent.mean():.1f}" + (f" ± {percent.std(ddof=1):.1f}" if len(runs) > 1 else "")


def _about(runs: Sequence[Run], rates: Sequence[float]) -> str:
    first, seeds = runs[0], sorted({run["seed"] for run in runs})
    optimizers = ", ".join(dict.fromkeys(label(run["optimizer"]) for run in runs))
    parts = [
        f"{label(first['data'])}, {label(first['model'])}, optimizer {optimizers}, {first['steps']} steps with batches "
        f"of {first['batch_size']} per agent.",
        f"Test accuracy in percent on {first['tested']} samples, the mean over the last {first['last']} "
        f"of {first['evaluations']} evaluations: of the agents' own models as trained (their mean, and the worst), the "
        "mean of these after one more round of gossip, and of the consensus, the mean of all models.",
    ]
    if len(seeds) > 1:
        parts.append(
            f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}. Bold: the best of a column, and "
            "all that are not significantly worse (paired t-test over the seeds, two-sided, 5 %, Holm's correction)."
        )
    else:
        parts.append(f"With the seed {seeds[0]} alone, so nothing is marked as the best.")
    if len(rates) > 1:
        parts.append(
            f"The learning rate of each method is the one of {', '.join(f'{rate:g}' for rate in rates)} with which its "
            f"agents are most accurate on {100 * first['validation']:g} % of the training data, held out for that; "
            "never on test data."
        )
    return " ".join(parts) + "\n"
