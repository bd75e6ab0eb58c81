"""Lightning's tuners train for a while and go back: the run that follows is the one without them."""

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder
from pytorch_lightning.tuner import Tuner
from torch.utils.data import DataLoader

import cga_lightning as cga
from tests.toys import QUIET, Classifier, OwnData, SaveOwnWeights, largest_difference, one_class_each

AGENTS = 3
FINDER = {"num_training_steps": 20, "min_lr": 1e-3, "max_lr": 50.0, "early_stop_threshold": None}
pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:.*lr_scheduler.step|.*does not have many")]


class Finder(LearningRateFinder):
    """Finds a rate before training, and again at an epoch; does not change it, so that runs can be compared."""

    def __init__(self, again_at=None):
        super().__init__(**FINDER, update_attr=False)
        self.again_at = again_at

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.again_at:
            self.lr_find(trainer, pl_module)

    def on_train_end(self, trainer, pl_module):
        assert self.optimal_lr.results["loss"]


def fit(kind, folder, *callbacks, module=Classifier, **options):
    """Every agent's own weights at the end."""
    folder.mkdir()
    save = SaveOwnWeights(folder)
    if kind == "simulated":
        strategy, devices = cga.SimulatedStrategy(AGENTS, **options), 1
    else:
        strategy, devices = cga.DecentralizedStrategy(start_method="fork", **options), AGENTS
    run = QUIET | {"max_epochs": 8, "default_root_dir": folder, "callbacks": [*callbacks, save]}
    trainer = pl.Trainer(strategy=strategy, devices=devices, **run)
    trainer.fit(module(), datamodule=OwnData(one_class_each(AGENTS)))
    return strategy.agent_state_dicts() if kind == "simulated" else save.load(AGENTS)


@pytest.mark.parametrize("kind", ["simulated", "processes"])
@pytest.mark.parametrize(("again_at", "resume"), [(None, "agents"), (None, "consensus"), (2, "agents")])
def test_a_learning_rate_finder_leaves_nothing(kind, again_at, resume, tmp_path):
    """Neither before training, when agents are equal, nor at a later epoch, when they differ."""
    plain = fit(kind, tmp_path / "plain")
    tuned = fit(kind, tmp_path / "tuned", Finder(again_at), resume=resume)
    assert largest_difference(plain, tuned) == 0
    assert not list((tmp_path / "tuned").glob(".lr_find*"))


class Limited(Classifier):
    """Has memory for so many samples."""

    def training_step(self, batch, batch_idx):
        if len(batch[0]) > 8:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return super().training_step(batch, batch_idx)


class Batches(OwnData):
    def train_dataloader(self):
        return [DataLoader(dataset, batch_size=self.batch_size) for dataset in self.datasets]

    def val_dataloader(self):
        return DataLoader(self.datasets[0], batch_size=self.batch_size)


@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_a_batch_size_is_found_in_a_simulation(mode, tmp_path):
    """A trial may end in the middle of a step; what comes after it starts anew."""
    data, strategy = Batches(one_class_each(AGENTS, samples=64), batch_size=2), cga.SimulatedStrategy(AGENTS)
    options = QUIET | {"devices": 1, "max_epochs": 2, "default_root_dir": tmp_path}
    finder = BatchSizeFinder(mode, steps_per_trial=2)
    pl.Trainer(strategy=strategy, callbacks=[finder], **options).fit(Limited(), datamodule=data)
    found = strategy.agent_state_dicts()
    assert data.batch_size == finder.optimal_batch_size and 4 <= data.batch_size <= 8
    again, data = cga.SimulatedStrategy(AGENTS), Batches(data.datasets, data.batch_size)
    pl.Trainer(strategy=again, **options).fit(Limited(), datamodule=data)
    assert largest_difference(found, again.agent_state_dicts()) == 0


def tune(strategy, devices, tmp_path):
    trainer = pl.Trainer(strategy=strategy, devices=devices, **QUIET | {"default_root_dir": tmp_path})
    module = Classifier()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    data, steps = OwnData(one_class_each(AGENTS)), FINDER["num_training_steps"]
    found = Tuner(trainer).lr_find(module, datamodule=data, num_training=steps, update_attr=False)
    return found, before, module.state_dict()


def test_a_tuner_leaves_nothing(tmp_path):
    found, before, after = tune(cga.SimulatedStrategy(AGENTS), 1, tmp_path)
    assert found.suggestion() > 0 and largest_difference([before], [after]) == 0


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_tuner_that_would_lose_what_it_finds(start_method, tmp_path):
    strategy = cga.DecentralizedStrategy(start_method=start_method)
    with pytest.raises(ValueError, match=r"reads the result of its LearningRateFinder.* Use Trainer\(callbacks="):
        tune(strategy, AGENTS, tmp_path)
