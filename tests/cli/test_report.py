"""`cga-lightning report`: its numbers are those of the logs, and a browser draws it without a network."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from cga_lightning import ConsensusMonitor, DecentralizedStrategy, PartitionedDataModule, RunRecord, SimulatedStrategy
from cga_lightning.cli import main
from cga_lightning.cli.page.logs import Series, bytes_at, read_run
from tests.cli.own import Blobs, Net

AGENTS = 3


def measure(module: pl.LightningModule) -> dict[str, float]:
    points, labels = Blobs(80, seed=1).tensors
    assert not module.training and not torch.is_grad_enabled()
    return {"accuracy": float((module(points).argmax(1) == labels).double().mean())}


def train(folder: Path, strategy: Any, callbacks: list[pl.Callback], devices: int = 1) -> pl.Trainer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = [CSVLogger(folder, name="csv", version=""), TensorBoardLogger(folder, name="board", version="")]
        quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        common = {"accelerator": "cpu", "devices": devices, "max_steps": 12, "log_every_n_steps": 2, "logger": loggers}
        trainer = pl.Trainer(strategy=strategy, callbacks=callbacks, **common, **quiet)
        pl.seed_everything(1, verbose=False)
        trainer.fit(Net(), datamodule=PartitionedDataModule(Blobs(), partition="by_label", batch_size=8))
    return trainer


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    callbacks = [ConsensusMonitor(every_n_steps=2), RunRecord(measure, every_n_steps=5)]
    train(folder, SimulatedStrategy(AGENTS, "cga", "ring"), callbacks)
    return folder


def figures(page: Path) -> list[dict[str, Any]]:
    (found,) = re.findall(r'<script id="figures" type="application/json">(.*?)</script>', page.read_text())
    return json.loads(found)


def report(output: Path, *arguments: object) -> list[dict[str, Any]]:
    main(["report", *map(str, arguments), "--output", str(output)])
    return figures(output)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_its_numbers_are_those_of_the_csv_files(logged: Path, tmp_path: Path) -> None:
    found = report(tmp_path / "r.html", logged / "csv")
    lines = {
        f["layout"]["yaxis"]["title"]["text"]: f["data"] for f in reversed(found) if "title" in f["layout"]["yaxis"]
    }
    metrics = rows(logged / "csv/metrics.csv")
    for name in ("loss", "consensus_distance", "conflicts", "gradient_norm"):
        (line,) = lines[name]
        logged_values = [(int(row["step"]), float(row[name])) for row in metrics if row[name]]
        assert list(zip(line["x"], line["y"], strict=True)) == logged_values and len(logged_values) == 6
    by_step: dict[int, list[float]] = {}
    for row in rows(logged / "csv/agents.csv"):
        by_step.setdefault(int(row["step"]), []).append(float(row["accuracy"]))
    low, high, mean = lines["accuracy"]
    assert list(by_step) == low["x"] == [0, 5, 10, 12] and all(len(values) == AGENTS for values in by_step.values())
    assert low["y"] == [min(v) for v in by_step.values()] and high["y"] == [max(v) for v in by_step.values()]
    assert mean["y"] == pytest.approx([np.mean(v) for v in by_step.values()])
    for figure in found:
        go.Figure(figure["data"], figure["layout"])  # which refuses what Plotly does not know


def test_tensorboard_gives_the_same_curves(logged: Path, tmp_path: Path) -> None:
    board, csvs = read_run(logged / "board", "b").series, read_run(logged / "csv", "c").series
    assert board.keys() == csvs.keys()
    for name, series in csvs.items():
        assert board[name].steps == series.steps
        assert board[name].values == pytest.approx(series.values, rel=1e-6)  # event files have float32
    assert "does not have them" in (report(tmp_path / "b.html", logged / "board"), (tmp_path / "b.html").read_text())[1]


def test_graph_labels_and_settings_are_those_of_the_run(logged: Path, tmp_path: Path) -> None:
    record = json.loads((logged / "csv/run.json").read_text())
    topology = SimulatedStrategy(AGENTS, "cga", "ring").topology
    np.testing.assert_array_equal(record["mixing_matrix"], topology.mixing_matrix())
    parts = PartitionedDataModule(Blobs(), partition="by_label").parts(AGENTS)
    labels = Blobs().tensors[1].numpy()
    assert record["labels"]["counts"] == [np.bincount(labels[part], minlength=4).tolist() for part in parts]
    found = report(tmp_path / "r.html", logged / "csv")
    heat = [figure["data"][0]["z"] for figure in found if figure["data"][0]["type"] == "heatmap"]
    assert heat == [record["mixing_matrix"], record["labels"]["counts"]]
    text = (tmp_path / "r.html").read_text()
    assert "batch size per agent</td><td>8" in text and "SGD(lr=0.1" in text and "Ring(3)" in text


def test_processes_record_the_same_as_a_simulation(logged: Path, tmp_path: Path) -> None:
    strategy = DecentralizedStrategy("cga", "ring", start_method="fork")
    train(tmp_path, strategy, [RunRecord(measure, every_n_steps=5, folder=tmp_path / "run")], devices=AGENTS)
    theirs, ours = rows(tmp_path / "run/agents.csv"), rows(logged / "csv/agents.csv")
    for row in (*theirs, *ours):
        del row["seconds"]
    assert theirs == ours


def test_a_record_leaves_no_trace_in_training(tmp_path: Path) -> None:
    def with_noise(module: pl.LightningModule) -> dict[str, float]:
        return {"noise": float(torch.randn(()))}

    losses = []
    for place, callbacks in enumerate([[], [RunRecord(with_noise, every_n_steps=1)]]):
        strategy = SimulatedStrategy(AGENTS, "cga", "ring")
        trainer = train(tmp_path / str(place), strategy, callbacks)
        losses.append([state["layer.weight"] for state in strategy.agent_state_dicts()])
        assert trainer.global_step == 12
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 1000)), min_size=1, max_size=6),
    st.lists(st.integers(0, 400), max_size=5),
)
def test_bytes_between_two_known_steps_are_linear(increments: list[tuple[int, int]], asked: list[int]) -> None:
    steps, sent = np.cumsum(increments, axis=0).T.tolist()
    within = [step for step in asked if step <= steps[-1]]
    expected = np.interp(within, [0, *steps], [0, *sent])
    assert bytes_at(Series(steps, sent), within) == pytest.approx(expected.tolist())
    assert bytes_at(Series(steps, sent), [2 * steps[-1]]) == pytest.approx([2 * sent[-1]])


def test_what_a_log_lacks_is_said_with_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,epoch,loss\n1,0,2.5\n3,0,nan\n")
    (figure,) = report(tmp_path / "r.html", tmp_path)
    assert figure["data"][0]["x"] == [1, 3] and figure["data"][0]["y"] == [2.5, None]
    text = (tmp_path / "r.html").read_text()
    for how in ("RunRecord(measure)", "cga_lightning.ConsensusMonitor()", "RunRecord()", "time/"):
        assert how in text


def test_a_folder_without_logs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no metrics.csv of a CSVLogger"):
        main(["report", str(tmp_path)])


def test_names_of_runs_cannot_break_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "<b>&x"
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,</script><script>alert(1)\n1,2\n")
    (figure,) = report(tmp_path / "r.html", folder, "--title", "<img src=x onerror=alert(1)>")
    assert figure["data"][0]["name"] == "<b>&x"
    tags = Tags()
    tags.feed((tmp_path / "r.html").read_text())
    assert "img" not in tags.seen and tags.seen.count("script") == 3


class Tags(HTMLParser):
    """Which elements and addresses a page has."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_asks_for_nothing(logged: Path, tmp_path: Path) -> None:
    report(tmp_path / "r.html", logged / "csv")
    tags = Tags()
    tags.feed((tmp_path / "r.html").read_text())
    assert tags.addresses == ["data:,"]
    assert (tmp_path / "r.html").stat().st_size < 8e6


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_draws_every_picture(width: int, scheme: str, logged: Path, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    count = len(report(tmp_path / "r.html", logged / "csv"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
        page.context.set_offline(True)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((tmp_path / "r.html").as_uri())
        page.wait_for_function("document.body.dataset.drawn > 0", timeout=100_000)
        drawn = page.locator(".plot").evaluate_all("plots => plots.map(p => p.querySelectorAll('.main-svg').length)")
        boxes = page.locator(".plot .main-svg:first-child").evaluate_all("all => all.map(s => s.clientWidth)")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        text = page.locator(".plot .xtick text").first.evaluate("t => getComputedStyle(t).fill")
        overflow = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert said == [] and len(drawn) == count > 8 and all(drawn) and min(boxes) > 200
    assert overflow <= width
    assert contrast(ground, text) > 7


def contrast(first: str, second: str) -> float:
    """The contrast of WCAG 2, 1 to 21, of two colors such as rgb(0, 0, 0)."""

    def luminance(color: str) -> float:
        channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    dark, light = sorted(map(luminance, (first, second)))
    return (light + 0.05) / (dark + 0.05)


def test_a_comparison_is_drawn_with_its_seeds(tmp_path: Path) -> None:
    data = "{train: {class_path: tests.cli.own.Blobs}, test: {class_path: tests.cli.own.Blobs, init_args: {seed: 1}}}"
    small = ("--steps=4", "--evaluations=2", "--last=1", "--jobs=1", "--agents=3", "--seeds", "0", "1")
    model = ("--model={class_path: tests.cli.own.Net}", f"--data={data}", "--algorithms", "cga", "dpsgd")
    main(["compare", *small, *model, "--output", str(tmp_path / "c")])
    over_steps, over_bytes = report(tmp_path / "r.html", tmp_path / "c")
    curves = [
        [float(v) for v in row["curve"].split()] for row in rows(tmp_path / "c/runs.csv") if row["algorithm"] == "cga"
    ]
    low, high, mean = over_steps["data"][:3]
    assert low["x"] == [2, 4] and low["y"] == np.min(curves, 0).tolist() and high["y"] == np.max(curves, 0).tolist()
    assert mean["y"] == pytest.approx(np.mean(curves, 0)) and len(over_steps["data"]) == 6
    sent = [float(row["bytes"]) for row in rows(tmp_path / "c/runs.csv") if row["algorithm"] == "cga"]
    assert over_bytes["data"][0]["x"] == pytest.approx([np.mean(sent) / 2e6, np.mean(sent) / 1e6])
    assert math.isfinite(mean["y"][0]) and "3 agents, ring, by_label" in (tmp_path / "r.html").read_text()
