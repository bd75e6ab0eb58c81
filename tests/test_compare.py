"""The networks and the comparison of the examples."""

from __future__ import annotations

import csv
import importlib
import logging
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
PARAMETERS = {"cnn": 96_000, "lenet5": 61_706, "vgg11": 9_200_000, "resnet20": 272_000}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.mark.parametrize("channels, side", [(1, 28), (3, 32)])
@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_size_they_are_known_for(name: str, channels: int, side: int, example) -> None:
    net = example("models").MODELS[name](channels, side)
    assert net(torch.zeros(2, channels, side, side)).shape == (2, 10)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(PARAMETERS[name], rel=0.4 if side == 32 else 0.02)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in net.modules())


def test_lenet_says_how_large_images_must_be(example) -> None:
    with pytest.raises(ValueError, match="at least 12 x 12 pixels, got 8 x 8"):
        example("models").lenet5(1, 8)


def test_cifar_in_its_file_format(tmp_path: Path, example, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5: Path(path).exists())  # not the real checksums
    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": generator.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    train, test = example("data").load("cifar10", str(tmp_path))
    assert train.images.shape == (100, 3, 32, 32) and test.images.shape == (20, 3, 32, 32)
    torch.testing.assert_close(train.images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    red = torch.from_numpy(pickle.loads((folder / "test_batch").read_bytes())["data"][0, :1024]).float().view(32, 32)
    assert torch.corrcoef(torch.stack([red.flatten(), test.images[0, 0].flatten()]))[0, 1] > 0.999
    assert train.labels[:3].tolist() == [0, 1, 2]


def test_missing_data_are_named(tmp_path: Path, example) -> None:
    with pytest.raises(FileNotFoundError, match="There is no FashionMNIST in .*Pass --download to fetch it"):
        example("data").load("fashion_mnist", str(tmp_path))


def compare(example, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", "--steps=4", "--evaluations=2", "--last=1", *map(str, arguments)])
    monkeypatch.setattr(logging.Logger, "setLevel", lambda *_: None)
    example("compare").main()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_comparison_goes_on_where_it_stopped(tmp_path: Path, example, monkeypatch, capsys) -> None:
    algorithms = ["dpsgd", "QuasiGlobalMomentum(CGA())"]
    common = ("--agents", 3, "--output", tmp_path)
    compare(example, monkeypatch, "--algorithms", *algorithms[:1], *common)
    (before,) = rows(tmp_path)
    compare(example, monkeypatch, "--algorithms", *algorithms, *common)
    after = rows(tmp_path)
    assert after[0] == before and [row["algorithm"] for row in after] == algorithms
    assert int(after[1]["bytes"]) == 2 * int(before["bytes"]) > 0
    assert all(0 <= float(row["worst"]) <= float(row["mean"]) <= float(row["best"]) <= 1 for row in after)
    assert all(len(row["curve"].split()) == 2 for row in after)
    table = (tmp_path / "table.md").read_text()
    assert "| `dpsgd` | 0.01 |" in table and "3 agents, ring, by_label" in table
    assert table in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_only_the_best_learning_rate_is_shown(tmp_path: Path, example, monkeypatch) -> None:
    rates = ("--lrs", 1e-6, 0.03, "--best", "--seeds", 0, 1, "--steps", 20)
    compare(
        example,
        monkeypatch,
        "--algorithms",
        "dpsgd",
        "--agents",
        2,
        "--partitions",
        "iid",
        *rates,
        "--output",
        tmp_path,
    )
    assert [row["lr"] for row in rows(tmp_path)] == ["1e-06", "1e-06", "0.03", "0.03"]
    table = (tmp_path / "table.md").read_text()
    assert "| `dpsgd` | 0.03 |" in table and "| `dpsgd` | 1e-06 |" not in table
    assert "the best of 1e-06, 0.03" in table and "the seeds 0, 1;" in table


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data=mnist"], "needs --data-root DIR"),
        (["--data=mnist", "--data-root=nowhere"], "There is no MNIST in 'nowhere'"),
        (["--steps=5"], "must be a multiple"),
        (["--last=9"], "at most --evaluations"),
    ],
)
def test_what_cannot_run_is_said_at_once(arguments: list[str], message: str, tmp_path, example, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        compare(example, monkeypatch, *arguments, "--output", tmp_path)
    assert message in f"{stop.value}{capsys.readouterr().err}"
