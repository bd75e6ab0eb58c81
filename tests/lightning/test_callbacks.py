"""Callbacks of Lightning that touch the weights or the optimizer, with agents in processes and simulated."""

from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch.utils.data import DataLoader

import cga_lightning as cga
from tests.toys import QUIET, Classifier, OwnData, SaveOwnWeights, largest_difference, mlp, one_class_each

AGENTS = 3


def processes(**options):
    return cga.DecentralizedStrategy(start_method="fork", timeout=timedelta(seconds=30), **options)


def fit(strategy, module, callbacks=(), data=None, **options):
    devices = AGENTS if isinstance(strategy, cga.DecentralizedStrategy) else 1
    torch.manual_seed(0)
    settings = QUIET | {"devices": devices, "max_epochs": 4, "callbacks": list(callbacks)} | options
    trainer = pl.Trainer(strategy=strategy, **settings)
    trainer.fit(module, datamodule=data or OwnData(one_class_each(AGENTS)))
    return trainer


class Average(pl.Callback):
    """The mean over agents of the weights of each, averaged over time in the plainest way."""

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def note(self, pl_module):
        self.seen.append([p.detach().clone() for p in pl_module.parameters()])

    def on_train_end(self, trainer, pl_module):
        torch.save(self.seen, self.folder / f"seen{trainer.global_rank}.pt")

    def of_all(self, combine):
        agents = [combine(torch.load(self.folder / f"seen{rank}.pt")) for rank in range(AGENTS)]
        return [torch.stack(tensors).mean(0) for tensors in zip(*agents, strict=True)]


class PerEpoch(Average):
    def on_train_epoch_start(self, trainer, pl_module):
        if 1 <= trainer.current_epoch <= 3:
            self.note(pl_module)


class PerStep(Average):
    def on_train_batch_end(self, trainer, pl_module, *_):
        self.note(pl_module)


def test_stochastic_weight_averaging(tmp_path):
    """Every agent averages its own weights; the module ends with the consensus of the averages."""
    average, trained = PerEpoch(tmp_path), Classifier()
    swa = StochasticWeightAveraging(0.05, swa_epoch_start=2, device=None)
    fit(processes(), trained, [average, swa])
    expected = average.of_all(lambda seen: [torch.stack(tensors).mean(0) for tensors in zip(*seen, strict=True)])
    for parameter, value in zip(trained.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, atol=1e-6, rtol=0)


def moving(seen, decay=0.5):
    averages = seen[0]
    for weights in seen[1:]:
        averages = [decay * a + (1 - decay) * w for a, w in zip(averages, weights, strict=True)]
    return averages


class Validated(OwnData):
    def val_dataloader(self):
        return DataLoader(self.datasets[0], batch_size=16)


def test_moving_averages(tmp_path):
    """Validation, checkpoints and the module at the end have the consensus of the agents' moving averages."""
    average, save, trained = PerStep(tmp_path), ModelCheckpoint(tmp_path, filename="last"), Classifier()
    data = Validated(one_class_each(AGENTS))
    callbacks = [average, EMAWeightAveraging(decay=0.5), save]
    trainer = fit(processes(), trained, callbacks, data, enable_checkpointing=True)
    expected = average.of_all(moving)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    for (name, parameter), value in zip(trained.named_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, atol=1e-6, rtol=0)
        torch.testing.assert_close(saved[name], value, atol=1e-6, rtol=0)
    (again,) = pl.Trainer(**QUIET).validate(trained, data.val_dataloader(), verbose=False)
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(again["val_loss"], abs=1e-5)


@pytest.mark.parametrize("callback", [StochasticWeightAveraging(0.05), EMAWeightAveraging()])
def test_averages_of_simulated_agents_are_refused(callback):
    with pytest.raises(ValueError, match="one module for several agents. Remove it, or use DecentralizedStrategy"):
        fit(cga.SimulatedStrategy(AGENTS), Classifier(), [callback])


class Finetuned(Classifier):
    """The first layer is thawed after two epochs."""

    def __init__(self):
        super().__init__()
        self.backbone = self.net[0]

    def configure_optimizers(self):
        trained = [parameter for parameter in self.net[1:].parameters()]
        return torch.optim.AdamW(trained, lr=0.05)


def finetune(strategy, folder):
    save = SaveOwnWeights(folder)
    thaw = BackboneFinetuning(unfreeze_backbone_at_epoch=2, backbone_initial_lr=0.01, lambda_func=lambda epoch: 1.0)
    fit(strategy, Finetuned(), [thaw, save])
    return save


def test_finetuning(tmp_path):
    simulated = cga.SimulatedStrategy(AGENTS, cga.CGA(compressor=cga.TopK(0.5)))
    save = finetune(simulated, tmp_path)
    states = simulated.agent_state_dicts()
    assert float((states[0]["backbone.weight"] - mlp()[0].weight).detach().abs().max()) > 1e-3
    save = finetune(processes(algorithm=cga.CGA(compressor=cga.TopK(0.5))), tmp_path)
    assert largest_difference(save.load(AGENTS), states) <= 1e-5


STEPS = {
    "limit_train_batches": ({"limit_train_batches": 3, "max_epochs": 2}, 6),
    "max_steps": ({"max_steps": 5, "max_epochs": -1}, 5),
    "overfit_batches": ({"overfit_batches": 2, "max_epochs": 2}, 4),
    "val_check_interval": ({"val_check_interval": 2, "max_epochs": 2}, 8),
}


class Validations(pl.Callback):
    def __init__(self, folder):
        self.folder, self.steps = folder, []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.steps.append(trainer.global_step)
        torch.save(self.steps, self.folder / f"validations{trainer.global_rank}.pt")


@pytest.mark.filterwarnings("ignore:You requested to overfit but")
@pytest.mark.parametrize("name", STEPS)
def test_numbers_of_batches(name, tmp_path):
    options, steps = STEPS[name]
    save, validations, simulated = SaveOwnWeights(tmp_path), Validations(tmp_path), cga.SimulatedStrategy(AGENTS)
    data = Validated(one_class_each(AGENTS))
    assert fit(simulated, Classifier(), data=data, **options).global_step == steps
    fit(processes(), Classifier(), [save, validations], data, **options)
    assert largest_difference(save.load(AGENTS), simulated.agent_state_dicts()) <= 1e-6
    if name == "val_check_interval":
        assert torch.load(tmp_path / "validations2.pt") == [2, 4, 6, 8]
