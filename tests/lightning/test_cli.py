"""LightningCLI: a strategy by name, or by class path with typed arguments that a config file can hold."""

import pytest
from pytorch_lightning.cli import LightningCLI

import cga_lightning as cga
from tests.toys import Classifier, OwnData, one_class_each

# Lightning's own CLI uses what jsonargparse deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

OPTIONS = ["devices=2", "accelerator=cpu", "max_steps=2", "logger=false", "enable_checkpointing=false"]
OPTIONS += ["enable_progress_bar=false", "enable_model_summary=false"]
SEED = "--seed_everything=1"
BY_CLASS = [
    "strategy=cga_lightning.DecentralizedStrategy",
    "strategy.start_method=fork",
    "strategy.algorithm=cga_lightning.CGA",
    "strategy.algorithm.margin=0.5",
    "strategy.algorithm.compressor=cga_lightning.TopK",
    "strategy.algorithm.compressor.ratio=0.25",
    "strategy.topology=cga_lightning.Exponential",
    "strategy.timeout=0:00:30",
]


class Data(OwnData):
    def __init__(self) -> None:
        super().__init__(one_class_each(2))


@pytest.fixture
def run(monkeypatch):
    def with_arguments(*arguments):
        monkeypatch.setattr("sys.argv", ["script.py", "fit", SEED, *arguments])
        return LightningCLI(Classifier, Data, save_config_callback=None).trainer

    return with_arguments


def trainer_options(*options):
    return [f"--trainer.{option}" for option in (*options, *OPTIONS)]


@pytest.mark.parametrize("strategy", [["strategy=cga_fork"], BY_CLASS])
def test_training(run, strategy):
    trainer = run(*trainer_options(*strategy))
    assert isinstance(trainer.strategy, cga.DecentralizedStrategy) and trainer.state.finished


def test_a_config_file(run, tmp_path, capsys):
    """What --print_config shows gives the same strategy again."""
    with pytest.raises(SystemExit) as end:
        run(*trainer_options(*BY_CLASS), "--print_config")
    config = tmp_path / "config.yaml"
    config.write_text(capsys.readouterr().out)
    assert end.value.code == 0 and "class_path: cga_lightning.CGA" in config.read_text()
    strategy = run(f"--config={config}").strategy
    assert repr(strategy.algorithm) == repr(cga.CGA(margin=0.5, compressor=cga.TopK(0.25)))
    assert repr(strategy.topology) == "Exponential(2)" and strategy.timeout.total_seconds() == 30


def test_a_simulation(run):
    options = ["devices=1", *(option for option in OPTIONS if option != "devices=2")]
    arguments = ["strategy=cga_lightning.SimulatedStrategy", "strategy.agents=2", "strategy.algorithm=compcga"]
    trainer = run(*(f"--trainer.{option}" for option in (*arguments, *options)))
    assert trainer.strategy.agents == 2 and trainer.global_step == 2
