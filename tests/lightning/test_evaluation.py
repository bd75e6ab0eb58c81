"""A validation is one phase with one model: every hook sees the consensus, and what it writes into buffers stays."""

import contextlib
import logging
from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import cga_lightning as cga
from cga_lightning.lightning.swapped import Swapped
from cga_lightning.passes.module_state import ModuleState
from tests.toys import QUIET, Classifier, OwnData, largest_difference, one_class_each

AGENTS = 3
KINDS = pytest.mark.parametrize("kind", ["processes", "simulated"])


class Data(OwnData):
    def val_dataloader(self):
        return DataLoader(torch.utils.data.ConcatDataset(self.datasets), batch_size=7)


def fit(kind, module, callbacks=(), options=None, **settings):
    """The strategy and the Trainer after two epochs of three agents."""
    if kind == "plain":
        strategy = "auto"
    elif kind == "simulated":
        strategy = cga.SimulatedStrategy(AGENTS, "dpsgd", **options or {})
    else:
        patience = timedelta(seconds=30)
        strategy = cga.DecentralizedStrategy("dpsgd", start_method="fork", timeout=patience, **options or {})
    torch.manual_seed(0)
    settings = QUIET | {"max_epochs": 2, "devices": AGENTS if kind == "processes" else 1} | settings
    trainer = pl.Trainer(strategy=strategy, callbacks=list(callbacks), **settings)
    data = Data(one_class_each(1 if kind == "plain" else AGENTS))
    if kind == "plain":
        trainer.fit(module, DataLoader(data.datasets[0], batch_size=4), data.val_dataloader())
    else:
        trainer.fit(module, datamodule=data)
    return strategy, trainer


WHEN = ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")
VALIDATION = [f"on_validation_{when}" for when in WHEN]


class Hooks(pl.Callback):
    """The weights that every hook sees, and what is saved while a model is evaluated."""

    def __init__(self, folder):
        self.folder, self.seen, self.own = folder, {}, []

    def note(self, name, module):
        if not module.trainer.sanity_checking:
            self.seen.setdefault(name, []).append(nn.utils.parameters_to_vector(module.parameters()).detach().clone())

    def on_train_epoch_end(self, trainer, pl_module):
        self.own.append(nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone())

    def on_train_end(self, trainer, pl_module):
        self.note("on_train_end", pl_module)
        own = trainer.strategy.agent_state_dicts()[0]
        torch.save((self.seen, self.own, own), self.folder / f"{trainer.global_rank}.pt")


class Hooked(Classifier):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        note(self.trainer, self, "validation_step")


def note(trainer, module, name):
    next(callback for callback in trainer.callbacks if isinstance(callback, Hooks)).note(name, module)


for hook in VALIDATION:
    setattr(Hooks, hook, lambda self, trainer, module, *_, name=hook: self.note(f"callback.{name}", module))
    setattr(Hooked, hook, lambda self, *_, name=hook: note(self.trainer, self, f"module.{name}"))


@KINDS
def test_every_hook_sees_the_consensus(kind, tmp_path):
    module, hooks = Hooked(), Hooks(tmp_path)
    strategy, _ = fit(kind, module, [hooks])
    end = nn.utils.parameters_to_vector(module.parameters()).detach()
    seen = [torch.load(tmp_path / f"{rank}.pt") for rank in range(AGENTS if kind == "processes" else 1)]
    names = {f"{who}.{hook}" for who in ("callback", "module") for hook in VALIDATION} | {"validation_step"}
    for weights, own, state in seen:
        assert weights.keys() == names | {"on_train_end"}
        for name, values in weights.items():
            assert torch.equal(values[-1], end), name  # the last validation is after the last step
            assert torch.equal(values[0], weights["validation_step"][0]) or name == "on_train_end", name
        assert torch.equal(own[-1], torch.cat([value.flatten() for value in state.values()]))
        assert float((own[-1] - end).abs().max()) > 1e-3
    if kind == "processes":
        mean = torch.stack([own[-1] for _, own, _ in seen]).mean(0)
        torch.testing.assert_close(mean, end, atol=1e-6, rtol=0)


class Counting(Classifier):
    """Counters of a validation as buffers of every kind, set anew, written in place, or never set back."""

    def __init__(self):
        super().__init__()
        self.register_buffer("right", torch.zeros((), dtype=torch.long))
        self.register_buffer("confusion", torch.zeros(4, 4))
        self.register_buffer("ever", torch.zeros((), dtype=torch.float64))
        self.register_buffer("validations", torch.zeros((), dtype=torch.int32), persistent=False)
        self.register_buffer("any", torch.zeros((), dtype=torch.bool))

    def on_validation_start(self):
        self.right = torch.zeros_like(self.right)
        self.confusion.zero_()

    def validation_step(self, batch, batch_idx):
        guesses = self.net(batch[0]).argmax(1)
        self.right += (guesses == batch[1]).sum()
        self.ever = self.ever + len(guesses)
        self.any |= torch.tensor(True)
        self.confusion.index_put_((batch[1], guesses), torch.ones(len(guesses)), accumulate=True)

    def on_validation_epoch_end(self):
        self.validations += 1
        self.log_dict({"right": self.right.float(), "seen": self.confusion.sum(), "ever": self.ever.float()})
        self.log("validations", self.validations.float())


@pytest.mark.parametrize("eval_model", ["consensus", "own"])
@pytest.mark.parametrize("kind", ["plain", "processes", "simulated"])
def test_counters_as_buffers(kind, eval_model, tmp_path):
    module, save = Counting(), ModelCheckpoint(tmp_path, filename="saved")
    options = {"options": {"eval_model": eval_model}, "enable_checkpointing": True, "num_sanity_val_steps": 0}
    _, trainer = fit(kind, module, [save], **options)
    samples = 16 if kind == "plain" else 16 * AGENTS
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "loss"}
    assert metrics | {"right": 0.0} == {"right": 0.0, "seen": samples, "ever": 2 * samples, "validations": 2}
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"]
    for state in (saved, module.state_dict()) if eval_model == "consensus" else ():
        assert state["right"] == state["confusion"].diagonal().sum() == metrics["right"]
        assert state["confusion"].sum() == samples and state["ever"] == 2 * samples and state["any"]


class Filling(Classifier):
    """Writes into a buffer, by which the agents train on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.zeros(4))

    def validation_step(self, batch, batch_idx):
        self.scale.add_(1.0)

    def training_step(self, batch, batch_idx):
        self.log("scale", self.scale.sum())
        return super().training_step(batch, batch_idx)


class Own(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, pl_module):
        torch.save(trainer.strategy.agent_state_dicts(), self.folder / f"{trainer.global_rank}.pt")


@KINDS
def test_buffers_reach_every_agent_and_parameters_none(kind, tmp_path):
    _, trainer = fit(kind, Filling(), [Own(tmp_path)], num_sanity_val_steps=0)
    files = AGENTS if kind == "processes" else 1
    states = [state for rank in range(files) for state in torch.load(tmp_path / f"{rank}.pt")]
    assert len(states) == AGENTS
    batches = -(-16 * AGENTS // 7)
    assert all(state["scale"].tolist() == [2.0 * batches] * 4 for state in states)
    assert float(trainer.callback_metrics["scale"]) == 4.0 * batches  # in the second epoch
    assert largest_difference(states[:1], states[1:2]) > 1e-3


class Low(Classifier):
    """A frozen base with a trained part of low rank, a mask, and constants, on three agents."""

    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)
        self.register_buffer("mask", torch.full((4, 4), torch.finfo(torch.float32).min).triu(1))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("third", torch.tensor([1 / 3, -0.0, float("nan"), float("inf")], dtype=torch.float64))

    def validation_step(self, batch, batch_idx):
        assert self.mask.isfinite().all()


@KINDS
def test_what_agents_have_in_common_stays_to_the_bit(kind):
    module = Low()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(kind, module)
    for name, value in module.state_dict().items():
        if name.startswith("net.2"):
            assert float((value - before[name]).abs().max()) > 1e-3
        else:
            assert value.view(-1).view(torch.uint8).tolist() == before[name].view(-1).view(torch.uint8).tolist(), name


class Failing(Classifier):
    def on_validation_epoch_end(self):
        raise RuntimeError("in validation")


def test_an_exception_in_validation():
    """The module ends with the mean of the agents as they were, in its own tensors."""
    module, strategy = Failing(), cga.SimulatedStrategy(AGENTS, "dpsgd")
    places = [p.data_ptr() for p in module.parameters()]
    trainer = pl.Trainer(strategy=strategy, **QUIET | {"max_epochs": 1, "num_sanity_val_steps": 0})
    with pytest.raises(RuntimeError, match="in validation"):
        trainer.fit(module, datamodule=Data(one_class_each(AGENTS)))
    assert [p.data_ptr() for p in module.parameters()] == places
    states = strategy.agent_state_dicts()
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    assert largest_difference([dict(module.state_dict())], [mean]) <= 1e-6
    assert largest_difference(states[:1], states[1:2]) > 1e-3
    assert [type(callback).__name__ for callback in trainer.callbacks].count("Phases") == 0


class Bank(Classifier):
    def __init__(self):
        super().__init__()
        self.register_buffer("bank", torch.zeros(0, 4))

    def validation_step(self, batch, batch_idx):
        self.bank = torch.cat([self.bank, self.net(batch[0])])


def test_a_buffer_that_grows_is_named():
    with pytest.raises(ValueError, match=r"buffer 'bank' was \(0, 4\) .* and is \(48, 4\) .* plain attribute"):
        fit("simulated", Bank(), num_sanity_val_steps=0)


def test_swapped():
    """Tensors that are one stay one, and what the module has got or lost meanwhile is left alone."""
    module = nn.BatchNorm1d(2)
    module.register_buffer("again", module.running_mean)
    module.register_buffer("gone", torch.zeros(1))
    own = ModuleState(module).capture()
    swapped = Swapped(module, [torch.full_like(tensor, 7) for tensor in own])
    assert module.weight.tolist() == [7.0, 7.0] and module.running_mean is module.again
    module.again += 1.0
    module.weight.data.fill_(3.0)
    module.register_buffer("new", torch.ones(1))
    del module.gone
    swapped.leave()
    assert module.weight.tolist() == [1.0, 1.0] and module.running_mean.tolist() == [8.0, 8.0]
    assert module.running_mean is module.again and module.new == 1 and not hasattr(module, "gone")


class Predicting(Classifier):
    def predict_step(self, batch, batch_idx):
        return batch[1]


class Written(BasePredictionWriter):
    def __init__(self, folder):
        super().__init__("epoch")
        self.folder = folder

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        torch.save(sum(batch_indices[0], []), self.folder / f"{trainer.global_rank}.pt")


class ToPredict(pl.LightningDataModule):
    def __init__(self, split):
        super().__init__()
        self.split = split

    def predict_dataloader(self):
        data = one_class_each(1, samples=12)[0]
        return DataLoader(data, batch_size=4, sampler=DistributedSampler(data, shuffle=False) if self.split else None)


@pytest.mark.parametrize("split", [False, True])
def test_predict_says_that_it_does_not_split(split, tmp_path, monkeypatch):
    handler = logging.FileHandler(tmp_path / "log")
    monkeypatch.setattr(logging.getLogger("cga_lightning"), "handlers", [handler])
    strategy = cga.DecentralizedStrategy(start_method="fork")
    trainer = pl.Trainer(strategy=strategy, callbacks=[Written(tmp_path)], **QUIET | {"devices": AGENTS})
    with contextlib.closing(handler):
        trainer.predict(Predicting(), datamodule=ToPredict(split), return_predictions=False)
    indices = [torch.load(tmp_path / f"{rank}.pt") for rank in range(AGENTS)]
    assert indices == [[*range(rank, 12, AGENTS)] if split else [*range(12)] for rank in range(AGENTS)]
    told = (tmp_path / "log").read_text().count("Each of the 3 agents predicts all of the data of its predict loader")
    assert told == (0 if split else 1)
