"""The same objects serve users of `pytorch_lightning` and of `lightning.pytorch`, whatever is imported first."""

import pickle
import subprocess
import sys
from pathlib import Path

import lightning.pytorch.cli
import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader

import cga_lightning as cga
from cga_lightning.lightning import trees
from cga_lightning.lightning.launching import PromptLauncher
from tests.lightning.tree_script import QUIET, TREES, Line, samples

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("tree_script.py")

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
tree = pytest.mark.parametrize("pl", [pytorch_lightning, lightning.pytorch], ids=lambda pl: pl.__name__)


class Validated(Line):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))


class Moved(Line):
    moves = 0

    def transfer_batch_to_device(self, *arguments):
        Moved.moves += 1
        return super().transfer_batch_to_device(*arguments)


class Failing(Line):
    def training_step(self, batch, batch_idx):
        raise ValueError("planted")


def module_of(pl, kind=Line):
    return type(kind.__name__, (kind, pl.LightningModule), {})()


def data_of(**options):
    return cga.PartitionedDataModule(samples(), partition="iid", batch_size=2, **options)


def trainer_of(pl, strategy=None, **options):
    return pl.Trainer(
        strategy=strategy or cga.SimulatedStrategy(2), **{"max_epochs": 1, "devices": 1, **QUIET, **options}
    )


# --- what is imported when


@pytest.mark.parametrize(
    ("modules", "strategies"),
    [
        ("alone,cga_lightning,pytorch_lightning", "cga_fork,fork"),
        ("pytorch_lightning,cga_lightning", "cga_spawn"),
        ("cga_lightning,lightning.pytorch", "cga_fork,spawn"),
        ("lightning.pytorch,cga_lightning", "popen"),
        ("lightning.pytorch,cga_lightning,pytorch_lightning", "cga_fork,fork"),
        ("pytorch_lightning,lightning.pytorch,cga_lightning", "fork"),
    ],
)
def test_every_tree_that_is_imported_trains(modules, strategies):
    lines = python(str(SCRIPT), modules, strategies).splitlines()
    expected = [f"trained {t} {s}" for t in TREES if t in modules.split(",") for s in strategies.split(",")]
    assert [line for line in lines if line.startswith("trained")] == expected


LIBRARY = """
import {second}, {first} as pl
from tests.lightning.tree_script import Line, trained

class Model(Line, pl.LightningModule):
    pass

def fit(strategy):
    return trained(pl, Model(), strategy)
"""
USER = """
import {second}
from cga_lightning import CGA, DecentralizedStrategy
import library
for strategy in ("cga_fork", DecentralizedStrategy(CGA(margin=0.5), start_method="fork")):
    print(library.fit(strategy).shape)
"""


@pytest.mark.parametrize("first", TREES)
def test_a_library_that_imports_both_and_trains_with_the_other_one(first, tmp_path):
    (second,) = set(TREES) - {first}
    (tmp_path / "library.py").write_text(LIBRARY.format(first=first, second=second))
    (tmp_path / "user.py").write_text(USER.format(first=first, second=second))
    assert python(str(tmp_path / "user.py")).count("torch.Size([1, 2])") == 2


def python(*arguments):
    """What it prints; it ends well."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    options = {"capture_output": True, "text": True, "timeout": 200, "env": environment}
    done = subprocess.run([sys.executable, *arguments], **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# --- classes


@pytest.mark.parametrize("public", [cga.DecentralizedStrategy, cga.SimulatedStrategy])
def test_a_strategy_is_one_of_pytorch_lightning_and_its_twin_one_of_the_other(public):
    names = [f"{cls.__module__}.{cls.__name__}" for cls in public.__mro__]
    assert not any(name.startswith("lightning") for name in names)
    twin = trees.twin(public)
    theirs = [name.replace("pytorch_lightning", "lightning.pytorch") for name in names]
    assert [f"{cls.__module__}.{cls.__name__}" for cls in twin.__mro__] == [names[0], *theirs]
    assert issubclass(twin, public) and issubclass(public, lightning.pytorch.strategies.Strategy)
    assert (twin.__qualname__, twin.__doc__) == (public.__qualname__, public.__doc__)


@pytest.mark.parametrize("public", [cga.DecentralizedStrategy, cga.PartitionedDataModule, PromptLauncher])
def test_twins_are_unique_and_can_be_pickled_as_what_is_derived_from_them(public):
    twin = trees.twin(public)
    assert trees.twin(public) is twin and trees.twin(twin) is public and pickle.loads(pickle.dumps(twin)) is twin
    derived = type("Derived", (twin,), {"__module__": __name__})
    assert trees.tree_of(derived.__new__(derived)) == "lightning.pytorch"
    twin_of_derived = trees.twin(derived)
    assert trees.tree_of(twin_of_derived.__new__(twin_of_derived)) == "pytorch_lightning"
    globals()["Derived"] = derived
    assert pickle.loads(pickle.dumps([derived, twin_of_derived])) == [derived, twin_of_derived]


class OwnStrategy(cga.DecentralizedStrategy):
    def setup(self, trainer):
        super().setup(trainer)
        self.was_set_up = True


@tree
@pytest.mark.parametrize("cls", [cga.DecentralizedStrategy, OwnStrategy])
def test_a_strategy_joins_the_tree_of_its_trainer(pl, cls):
    strategy = cls(start_method="fork")
    trainer = trainer_of(pl, strategy, devices=2)
    assert (
        trainer.strategy is strategy and isinstance(strategy, cls) and isinstance(strategy, pl.strategies.DDPStrategy)
    )
    assert isinstance(strategy.launcher, PromptLauncher)
    assert trees.tree_of(strategy) == trees.tree_of(strategy.launcher) == pl.__name__
    assert trainer._accelerator_connector.is_distributed


@tree
def test_plugins_of_the_tree(pl):
    trainer = trainer_of(pl, plugins=pl.plugins.AsyncCheckpointIO())
    assert isinstance(trainer.strategy.checkpoint_io.checkpoint_io, pl.plugins.TorchCheckpointIO)


@tree
def test_a_compiled_module(pl):
    module = torch.compile(module_of(pl), backend="eager")
    trainer = trainer_of(pl)
    trainer.fit(module, data_of())
    assert trainer.global_step == 3


# --- data


@tree
@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize(("kind", "options", "batches"), [(Line, {}, []), (Validated, {"val": samples()}, [6])])
def test_data_module(pl, by_keyword, kind, options, batches):
    """Without validation data there is nothing for which Lightning would miss a validation_step."""
    trainer, data = trainer_of(pl), data_of(**options)
    trainer.fit(module_of(pl, kind), **{"datamodule" if by_keyword else "train_dataloaders": data})
    assert trainer.global_step == 3 and trainer.datamodule is data and trainer.num_val_batches == batches
    assert isinstance(data, cga.PartitionedDataModule) and isinstance(data, pl.LightningDataModule)
    overridden = pl.utilities.model_helpers.is_overridden
    assert overridden("train_dataloader", data) and overridden("val_dataloader", data) == bool(options)
    for hook in ("test_dataloader", "predict_dataloader", "prepare_data", "transfer_batch_to_device", "setup"):
        assert not overridden(hook, data)


@pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device` in `LightningModule`")
@tree
def test_hooks_of_the_module_transfer_the_batches_of_the_data_module(pl):
    Moved.moves = 0
    trainer_of(pl).fit(module_of(pl, Moved), data_of())
    assert Moved.moves == 6


def test_one_data_module_and_one_monitor_in_both_trees():
    data, monitor, weights = data_of(), cga.ConsensusMonitor(every_n_steps=1), []
    for pl in (pytorch_lightning, lightning.pytorch, pytorch_lightning):
        trainer, module = trainer_of(pl, callbacks=monitor), module_of(pl)
        trainer.fit(module, data)
        weights.append(module.layer.weight)
        assert trees.tree_of(data) == pl.__name__ and trainer.logged_metrics["gradient_norm"] > 0
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])


# --- callbacks, checkpoints, errors, options


@tree
def test_monitors(pl):
    """Two of them have no state of the same name to save."""
    one, two = cga.ConsensusMonitor(every_n_steps=1), cga.ConsensusMonitor()
    assert isinstance(one, pl.Callback) and one.state_key == "ConsensusMonitor"
    trainer = trainer_of(pl, callbacks=[one, two])
    trainer.fit(module_of(pl), data_of())
    assert {"consensus_distance", "conflicts"} <= set(trainer.logged_metrics)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("saved_by", [pytorch_lightning, lightning.pytorch], ids=lambda pl: pl.__name__)
@tree
def test_a_run_goes_on_from_a_checkpoint_of_either_tree(pl, saved_by, tmp_path):
    def fit(tree, epochs, checkpoint=None):
        save = tree.callbacks.ModelCheckpoint(tmp_path)
        trainer = trainer_of(tree, max_epochs=epochs, callbacks=save, enable_checkpointing=True)
        trainer.fit(module_of(tree), data_of(), ckpt_path=checkpoint)
        return trainer

    checkpoint = fit(saved_by, 1).checkpoint_callback.best_model_path
    resumed, whole = fit(pl, 3, checkpoint), fit(pl, 3)
    found, expected = (trainer.strategy.agent_state_dicts() for trainer in (resumed, whole))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(found, expected, strict=True) for name in a)


@tree
def test_callbacks_hear_of_an_exception_in_a_process_also_where_the_trainer_is_derived(pl, tmp_path):
    class Tell(pl.Callback):
        def on_exception(self, trainer, pl_module, exception):
            (tmp_path / f"{trainer.global_rank}").write_text(str(exception))

    class Trainer(pl.Trainer):
        pass

    strategy = cga.DecentralizedStrategy(start_method="fork")
    with pytest.raises(Exception, match="planted"):
        Trainer(strategy=strategy, devices=2, max_epochs=1, callbacks=Tell(), **QUIET).fit(
            module_of(pl, Failing), data_of()
        )
    assert "planted" in {(tmp_path / f"{rank}").read_text() for rank in range(2)}


class Model(Line, lightning.pytorch.LightningModule):
    def train_dataloader(self):
        return [DataLoader(samples(), batch_size=4)] * 2


def test_the_command_line_of_the_other_tree(monkeypatch):
    options = {
        "strategy": "cga_lightning.SimulatedStrategy",
        "strategy.agents": 2,
        "strategy.algorithm": "cga_lightning.CGA",
    }
    options |= {
        "strategy.algorithm.margin": 0.5,
        "callbacks": "cga_lightning.ConsensusMonitor",
        "max_steps": 2,
        "devices": 1,
    }
    arguments = [f"--trainer.{name}={value}" for name, value in {**options, **QUIET}.items()]
    monkeypatch.setattr("sys.argv", ["script.py", "fit", "--seed_everything=1", *map(str, arguments)])
    trainer = lightning.pytorch.cli.LightningCLI(Model, save_config_callback=None).trainer
    assert trainer.strategy.algorithm.margin == 0.5 and trainer.global_step == 2
    assert isinstance(trainer.callbacks[0], cga.ConsensusMonitor)
