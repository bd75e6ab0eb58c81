"""`cga-lightning compare`: what a row says, how rates are chosen, what happens after an interruption."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cga_lightning import DirectedRing, ErdosRenyi, Ring, Topology
from cga_lightning.cli import main
from cga_lightning.cli.compare import combinations, parse
from cga_lightning.cli.comparison import runs, tables, task, trial
from tests.cli.own import Blobs

COMPARISONS = sorted((Path(__file__).parents[2] / "examples/comparisons").glob("*.yaml"))
OWN = """
model: {class_path: tests.cli.own.Net}
data:
  train: {class_path: tests.cli.own.Blobs}
  test: {class_path: tests.cli.own.Blobs, init_args: {samples: 80, seed: 1}}
agents: [4]
batch_size: 8
steps: 6
evaluations: 3
last: 2
validation: 0.2
"""


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def compare(folder: Path, *arguments: object) -> None:
    (folder / "own.yaml").write_text(OWN)
    main(["compare", str(folder / "own.yaml"), "--output", str(folder), *map(str, arguments)])


@pytest.fixture
def small_task() -> task.Task:
    spec = {"train": {"class_path": "tests.cli.own.Blobs"}, "test": {"class_path": "tests.cli.own.Blobs"}}
    return task.load(spec, None, False, 0.25, 60)


def test_a_comparison_of_own_classes_goes_on_where_it_stopped(tmp_path: Path, capsys) -> None:
    compare(tmp_path, "--algorithms", "dpsgd", "--jobs", 1)
    (before,) = rows(tmp_path)
    compare(tmp_path, "--algorithms", "dpsgd", "{class_path: CGA, init_args: {margin: 0.5}}", "--jobs", 1)
    after = rows(tmp_path)
    assert after[0] == before and '"margin": 0.5' in after[1]["algorithm"]
    assert int(after[1]["bytes"]) == 2 * int(before["bytes"]) > 0
    for row in after:
        assert 0 <= float(row["worst"]) <= float(row["mean"]) <= float(row["best"]) <= 1
        assert len(row["curve"].split()) == 3 and int(row["tested"]) == 80
    text = (tmp_path / "tables.md").read_text()
    assert "### 4 agents, ring, by_label" in text and "| `CGA(margin=0.5)` | 0.01 |" in text
    assert text in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    again = tmp_path / "again"
    main(["compare", str(tmp_path / "comparison.yaml"), "--output", str(again), "--jobs", "1"])
    timeless = [{name: value for name, value in row.items() if name != "seconds"} for row in rows(again)]
    assert timeless == [{name: value for name, value in row.items() if name != "seconds"} for row in after]


def test_processes_are_forked_before_there_are_threads(tmp_path: Path) -> None:
    """As a user starts it, with as many threads as there are cores: a fork after that would hang."""
    grid = ["--steps=2", "--evaluations=1", "--last=1", "--agents", "2", "--seeds", "0", "1", "--algorithms", "dpsgd"]
    command = [sys.executable, "-m", "cga_lightning", "compare", *grid, "--jobs", "2", "--output", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=250)
    assert len(rows(tmp_path)) == 2


def test_processes_make_the_same_rows(tmp_path: Path) -> None:
    grid = ("--algorithms", "cga", "dpsgd", "--lrs", 0.01, 0.1, "--optimizer", "adamw")
    results = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        folder.mkdir()
        compare(folder, *grid, "--jobs", jobs)
        results.append(sorted(tuple(row[name] for name in row if name != "seconds") for row in rows(folder)))
    assert results[0] == results[1] and len(results[0]) == 4


def row(algorithm: str, lr: float, seed: int, validation: float, test: float) -> dict[str, Any]:
    fixed = {"data": "digits", "model": "cnn", "batch_size": 1, "steps": 10, "evaluations": 1, "last": 1}
    setting = {"optimizer": "sgd", "topology": "ring", "agents": 2, "partition": "iid", "validation": 0.1}
    accuracies = dict.fromkeys(("mean", "worst", "best", "gossip", "consensus"), test)
    grid = {"algorithm": algorithm, "lr": lr, "seed": seed, "validation_accuracy": validation}
    return {**fixed, **setting, **grid, **accuracies, "test_samples": 0, "tested": 7, "bytes": 1000, "curve": "0.5"}


RATES = st.lists(st.sampled_from([0.001, 0.01, 0.1, 1.0]), min_size=1, max_size=4, unique=True)
SCORE = st.floats(0, 1).map(lambda value: round(value, 3))


@settings(max_examples=50, deadline=None)
@given(rates=RATES, seeds=st.integers(1, 3), data=st.data())
def test_the_rate_is_the_best_on_validation_data_whatever_the_test_says(rates, seeds: int, data) -> None:
    made = [
        row(algorithm, lr, seed, data.draw(SCORE), data.draw(SCORE))
        for algorithm in ("cga", "dpsgd")
        for lr in rates
        for seed in range(seeds)
    ]
    shown = tables.with_best_rates(made)
    for algorithm in ("cga", "dpsgd"):
        chosen = {run["lr"] for run in shown if run["algorithm"] == algorithm}
        means = {
            lr: np.mean([r["validation_accuracy"] for r in made if (r["algorithm"], r["lr"]) == (algorithm, lr)])
            for lr in rates
        }
        assert len(chosen) == 1 and means[chosen.pop()] == max(means.values())
    flipped = tables.with_best_rates([{**run, "mean": 1 - run["mean"]} for run in made])
    assert [run["lr"] for run in flipped] == [run["lr"] for run in shown]


def test_the_table_marks_what_is_significant_and_says_how() -> None:
    made = [row("cga", 0.1, seed, 0.5, 0.9 + seed / 100) for seed in range(3)]
    made += [row("dpsgd", 0.1, seed, 0.5, 0.4 + seed / 90) for seed in range(3)]
    text = tables.markdown(made, [0.1, 1.0])
    assert "| `cga` | 0.1 | **91.0 ± 1.0** |" in text and "| `dpsgd` | 0.1 | 41.1 ± 1.1 |" in text
    assert "paired t-test" in text and "never on test data" in text and "on 7 samples" in text
    assert "**" not in tables.markdown(made[::3], [])  # one seed


def test_validation_data_are_training_data_that_nobody_trains_on(small_task: task.Task) -> None:
    trained = {tuple(inputs.tolist()) for inputs, _ in small_task.train}
    held_out = {tuple(inputs.tolist()) for batch, _ in small_task.validation for inputs in batch}
    everything = {tuple(inputs.tolist()) for inputs in Blobs().tensors[0]}
    assert len(held_out) == 50 and not trained & held_out and trained | held_out == everything
    assert sum(len(labels) for _, labels in small_task.test) == 60


class Unbalanced(Topology):
    """Agent 0 writes to two, hears of one."""

    directed = True

    def edges(self, agents: int) -> list[tuple[int, int]]:
        return [(0, 1), (1, 2), (2, 0), (0, 2)]


GRAPHS = [Ring(5), ErdosRenyi(6), DirectedRing(4), Unbalanced(3)]


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: type(graph).__name__)
def test_a_round_of_gossip_is_the_mixing_matrix(graph) -> None:
    generator = torch.Generator().manual_seed(0)
    models = torch.randn(graph.agents, 7, dtype=torch.float64, generator=generator)
    states = [{"w": model, "count": torch.tensor(rank)} for rank, model in enumerate(models)]
    mixed = trial.after_gossip(states, graph)
    weights = torch.from_numpy(graph.mixing_matrix())
    expected = (weights @ models) / weights.sum(1, keepdim=True)
    torch.testing.assert_close(torch.stack([state["w"] for state in mixed]), expected)
    assert [int(state["count"]) for state in mixed] == list(range(graph.agents))
    torch.testing.assert_close(trial.mean_of(states)["w"], models.mean(0))


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_committed_comparisons_can_run(path: Path) -> None:
    options = parse([str(path)])
    wanted = combinations(options)
    assert len({runs.key(run) for run in wanted}) == len(wanted) >= 6
    for run in wanted:
        trial.refuse(run)
    assert len({run["lr"] for run in wanted}) > 1 < len({run["seed"] for run in wanted})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data=mnist"], "needs --data_root DIR"),
        (["--data=mnist", "--data_root=nowhere"], "There is no MNIST in 'nowhere'"),
        (["--data=image_folder", "--data_root=nowhere"], "needs nowhere/train and nowhere/test"),
        (["--steps=5"], "must be a multiple"),
        (["--last=9"], "at most evaluations"),
        (["--validation=1"], "must leave data on both sides"),
        (["--algorithms", "cgaa"], "Unknown algorithm 'cgaa'"),
        (["--topologies", "directed_ring"], "no way back"),
        (["--optimizer=momentun"], "Unknown optimizer 'momentun'; known: sgd, momentum"),
        (["--model={class_path: tests.cli.own.Blobs}"], "model must be a LightningModule"),
        (["--model={class_path: tests.cli.own.NoScores}"], r"forward must give the scores of the classes \[80, "),
    ],
)
def test_what_cannot_run_is_said(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        compare(tmp_path, *arguments, "--jobs", 1)
    assert not (tmp_path / "runs.csv").exists()


def test_a_module_may_bring_its_own_optimizer(tmp_path: Path) -> None:
    compare(tmp_path, "--algorithms", "dpsgd", "--optimizer", "module", "--lrs", 0.0, 0.5, "--all_rates", "--jobs", 1)
    still, moving = rows(tmp_path)
    assert len(set(still["curve"].split())) == 1 and float(moving["mean"]) != float(still["mean"])
    text = (tmp_path / "tables.md").read_text()
    assert "| `dpsgd` | 0 |" in text and "| `dpsgd` | 0.5 |" in text


def test_a_table_of_another_version_is_not_mixed_with_ours(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("algorithm,lr\ncga,0.1\n")
    with pytest.raises(SystemExit, match="choose another output folder"):
        compare(tmp_path)
