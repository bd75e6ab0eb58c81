"""LightningModules as people write them run unchanged, and alike in processes and simulated."""

from collections import Counter
from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel, RandomDataset
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

import cga_lightning as cga
from tests.toys import QUIET, Classifier, SaveOwnWeights, largest_difference, one_class_each

AGENTS = 3
ALGORITHM = cga.CGA(margin=0.0)


def random_samples(agent):
    with torch.random.fork_rng():
        torch.manual_seed(agent)
        return DataLoader(RandomDataset(32, 8), batch_size=2)


class Boring(BoringModel):
    """Lightning's own."""

    train_loader = staticmethod(random_samples)


def samples(agent):
    return DataLoader(one_class_each(AGENTS)[agent], batch_size=4)


class Counting(Classifier):
    """Counts the calls of its overridden hooks."""

    train_loader = staticmethod(samples)

    def __init__(self):
        super().__init__()
        self.calls = Counter()


class DictOutputs(Counting):
    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        return {"loss": nn.functional.cross_entropy(logits, batch[1]), "logits": logits.detach(), "note": "text"}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        assert set(outputs) == {"loss", "logits", "note"}


class TwoLoaders(Counting):
    """Two train loaders of different lengths, and two for validation."""

    @staticmethod
    def train_loader(agent):
        return {"a": samples(agent), "b": DataLoader(one_class_each(AGENTS)[agent], batch_size=8)}

    def training_step(self, batch, batch_idx):
        self.log("size", float(len(batch["b"][0])))
        return super().training_step(batch["a"], batch_idx) + super().training_step(batch["b"], batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx)

    def val_dataloader(self):
        return [samples(0), samples(1)]


class OwnBackward(Counting):
    def backward(self, loss, *args, **kwargs):
        (2 * loss).backward(*args, **kwargs)


class OwnClipping(Counting):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.calls["clipping"] += 1
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")


class OwnStep(Counting):
    """The warm-up of Lightning's documentation."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        self.calls["step"] += 1
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (self.trainer.global_step + 1) / 4)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class OwnHooks(Counting):
    def on_before_optimizer_step(self, optimizer):
        self.calls["before step"] += 1
        for parameter in self.parameters():
            parameter.grad.clamp_(-0.1, 0.1)

    def on_after_backward(self):
        self.calls["after backward"] += 1

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        optimizer.zero_grad(set_to_none=False)


class Compiled(Counting):
    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


class Metrics(Counting):
    def __init__(self):
        super().__init__()
        self.mean = MeanMetric()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.mean(loss.detach())
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        return loss


class WithBuffersAndHparams(Counting):
    def __init__(self, width: int = 12):
        super().__init__()
        self.save_hyperparameters()
        self.register_buffer("scale", torch.ones(6))
        self.example_input_array = torch.zeros(1, 6)

    def forward(self, x):
        return self.net(x * self.scale)


MODULES = [Boring, DictOutputs, TwoLoaders, OwnBackward, OwnClipping, OwnStep, OwnHooks, Compiled, Metrics]
MODULES += [WithBuffersAndHparams]


class Data(pl.LightningDataModule):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def train_dataloader(self):
        loaders = [self.make(agent) for agent in range(AGENTS)]
        ranks = self.trainer.strategy.local_agents
        return loaders if len(ranks) > 1 else loaders[ranks[0]]


class Calls(SaveOwnWeights):
    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        calls = Counter(getattr(pl_module, "calls", {}))
        torch.save(calls, self.folder / f"calls{trainer.global_rank}.pt")


def fit(strategy, module, folder):
    """The calls of the module's hooks in each process."""
    torch.manual_seed(1)
    folder.mkdir()
    devices, save = AGENTS if isinstance(strategy, cga.DecentralizedStrategy) else 1, Calls(folder)
    trainer = pl.Trainer(strategy=strategy, devices=devices, max_epochs=2, callbacks=[save], **QUIET)
    made = module()
    trainer.fit(made, datamodule=Data(module.train_loader))
    assert all(bool(value.isfinite().all()) for value in made.state_dict().values())
    return save, [torch.load(folder / f"calls{rank}.pt", weights_only=False) for rank in range(devices)]


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")
@pytest.mark.parametrize("module", MODULES)
def test_unchanged(module, tmp_path):
    simulated = cga.SimulatedStrategy(AGENTS, ALGORITHM)
    _, (together,) = fit(simulated, module, tmp_path / "simulated")
    processes = cga.DecentralizedStrategy(ALGORITHM, start_method="fork", timeout=timedelta(seconds=30))
    save, calls = fit(processes, module, tmp_path / "processes")
    states = save.load(AGENTS)
    assert largest_difference(states, simulated.agent_state_dicts()) <= 1e-6
    assert largest_difference(states[:1], states[1:2]) > 1e-4
    assert together == calls[0]  # the first agent's
    assert bool(together) is (module in (OwnClipping, OwnStep, OwnHooks))
