"""`cga-lightning check`: what it says is what happens."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl

from cga_lightning import SimulatedStrategy
from cga_lightning.cli import main
from tests.cli.own import Data, Net
from tests.toys import QUIET

SCRIPT = str(Path(__file__).with_name("script.py"))


def check(capsys: pytest.CaptureFixture[str], *arguments: str, status: int | None = None) -> str:
    if status is None:
        main(["check", *arguments])
    else:
        with pytest.raises(SystemExit) as stop:
            main(["check", *arguments])
        assert stop.value.code == status
    return capsys.readouterr().out


def test_a_module_and_its_data(capsys) -> None:
    said = check(capsys, "tests.cli.own.Net", "--module_args", '{"width": 5}', "--data", "tests.cli.own.Data")
    assert "works    training Net" in said and "works    cga on the graph ring, 5 agents" in said
    assert "works    a checkpoint of the consensus and of every agent" in said and "refused" not in said
    assert "not tried  validation" in said
    strategy = SimulatedStrategy(5, "cga", "ring")
    pl.Trainer(strategy=strategy, devices=1, max_steps=2, max_epochs=-1, **QUIET).fit(Net(width=5), datamodule=Data())
    for name, sent in strategy.traffic.items():
        assert f"{sent // 2 // 5} B  {name}" in said
    assert "140 B  parameters and buffers" in said  # (6 + 1) * 5 floats


def test_a_script_is_run_up_to_its_fit(capsys) -> None:
    said = check(capsys, SCRIPT, "--agents", "3", "--algorithm", "compcga", "--", "6")
    assert "3 agents, compcga, ring" in said and "the script went on" not in said
    assert "168 B  parameters and buffers" in said and "works    validation with the consensus" in said


def test_a_script_without_fit_is_refused() -> None:
    with pytest.raises(SystemExit, match="ended without a call of Trainer.fit"):
        main(["check", SCRIPT])
    with pytest.raises(SystemExit, match="there is no script nowhere.py"):
        main(["check", "nowhere.py"])


def test_the_fit_of_a_trainer_is_as_before() -> None:
    before = pl.Trainer.fit
    with pytest.raises(SystemExit):
        main(["check", SCRIPT])
    assert pl.Trainer.fit is before


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["tests.cli.own.WithOptimizersOfItsOwn", "--data", "tests.cli.own.Data"], "uses manual optimization"),
        (["tests.cli.own.WithData", "--topology", "directed_ring", "--agents", "3"], "no way back"),
        (["tests.cli.own.WithData", "--agents", "1"], "at least 2 agents"),
    ],
)
def test_what_is_refused_is_said_with_the_reason_and_the_status(arguments: list[str], reason: str, capsys) -> None:
    said = check(capsys, *arguments, status=1)
    (line,) = [line for line in said.splitlines() if line.startswith("  refused")]
    assert reason in line


def test_loaders_of_a_module_for_each_agent(capsys) -> None:
    said = check(capsys, "tests.cli.own.WithData", "--agents", "3", "--algorithm", "dpsgd")
    assert "works    training WithData" in said and "cross_gradients" not in said


def test_a_class_that_is_no_module_is_refused() -> None:
    with pytest.raises(SystemExit, match="must be a LightningModule"):
        main(["check", "tests.cli.own.Blobs"])
