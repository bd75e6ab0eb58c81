"""Lightning's features under both strategies: three processes, and the same run simulated, agree in all they show."""

from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import cga_lightning as cga
from tests.toys import QUIET, largest_difference

AGENTS, BATCH = 3, 4


class Averaged(torch.optim.Optimizer):
    """Keeps its counters in the parameter group and averages its iterates, as schedule-free methods do."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "k": 0, "weight_sum": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            group["k"] += 1
            group["weight_sum"] += group["lr"] ** 2
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                z = state.setdefault("z", p.clone())
                z -= group["lr"] * p.grad
                p.lerp_(z, group["lr"] ** 2 / group["weight_sum"] / group["k"] ** 0.5)
        return loss


def plateau(optimizer):
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
    return {"scheduler": scheduler, "monitor": "val_loss"}


def every(interval, optimizer):
    return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5), "interval": interval}


class Module(pl.LightningModule):
    """Dropout, batch statistics, a dict output, and logging of every kind."""

    def __init__(self, optimizer, scheduler=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 4))
        self.optimizer, self.scheduler = optimizer, scheduler
        self.unused = nn.Linear(1, 1)
        nn.init.constant_(self.unused.weight, 0.5)

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log_dict({"epoch": loss, "batch": float(batch_idx)}, on_step=False, on_epoch=True, sync_dist=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True)
        return {"loss": loss, "logits": loss.detach().clone()}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        return (
            optimizer if self.scheduler is None else {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}
        )


class Data(pl.LightningDataModule):
    """Agent j has `batches[j]` batches of its own; every second agent brings a sampler of its own."""

    def __init__(self, batches):
        super().__init__()
        self.batches, self.shapes = batches, set()

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.shapes.add(("before", *batch[0].shape))
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.shapes.add(("transfer", *batch[0].shape))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.shapes.add(("after", *batch[0].shape))
        return batch

    def samples(self, seed, batches):
        generator = torch.Generator().manual_seed(seed)
        samples = BATCH * batches
        return TensorDataset(torch.randn(samples, 6, generator=generator) + seed, torch.arange(samples) % 4)

    def loader(self, agent):
        data, generator = self.samples(agent, self.batches[agent]), torch.Generator().manual_seed(agent)
        if agent % 2:
            sampler = BatchSampler(RandomSampler(data, generator=generator), BATCH, drop_last=False)
            return DataLoader(data, batch_sampler=sampler, generator=torch.Generator())
        return DataLoader(data, BATCH, shuffle=True, generator=generator)

    def train_dataloader(self):
        ranks = self.trainer.strategy.local_agents
        return [self.loader(rank) for rank in ranks] if len(ranks) > 1 else self.loader(ranks[0])

    def val_dataloader(self):
        return DataLoader(self.samples(7, 3), BATCH, generator=torch.Generator())


class Report(pl.Callback):
    """What each process sees."""

    def __init__(self, folder):
        self.folder, self.steps, self.epochs, self.hooks = folder, [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert set(outputs) == {"loss", "logits"}
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.steps.append((trainer.global_step, rates, trainer.progress_bar_metrics.get("loss_step")))

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        norm = torch.stack([p.grad.norm() for p in pl_module.parameters() if p.grad is not None]).norm()
        self.hooks.append(float(norm))

    def on_train_end(self, trainer, pl_module):
        loaders = trainer.train_dataloader
        loaders = loaders if isinstance(loaders, list) else [loaders]
        report = {name: getattr(self, name) for name in ("steps", "epochs", "hooks")} | {
            "state": trainer.strategy.agent_state_dicts()[0],
            "traffic": trainer.strategy.traffic,
            "samplers": [type(loader.batch_sampler.sampler) for loader in loaders],
            "shapes": trainer.datamodule.shapes,
            "distance": float(trainer.strategy.consensus_distance()),
        }
        torch.save(report, self.folder / f"{trainer.global_rank}.pt")


@dataclass
class Case:
    module: Any
    batches: tuple[int, ...] = (3, 3, 3)
    val: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    module: pl.LightningModule
    reports: list[dict[str, Any]]
    strategy: Any


adamw = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
CASES = {
    "AdamW, short last window, clipped, cycled": Case(
        partial(Module, adamw, partial(every, "epoch")),
        batches=(5, 3, 2),
        trainer={"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    ),
    "counters in groups, rate per step, cut": Case(
        partial(Module, partial(Averaged, lr=0.1), partial(every, "step")),
        batches=(5, 3, 2),
        strategy={"uneven": "min", "algorithm": cga.DPSGD(), "topology": "complete"},
    ),
    "plateau, validation on the consensus": Case(partial(Module, adamw, plateau), val=True),
    "validation on the own models": Case(
        partial(Module, adamw), val=True, strategy={"eval_model": "own", "algorithm": cga.CGA(margin=0.0)}
    ),
}


def fit(case, strategy, folder, devices):
    folder.mkdir()
    report = Report(folder)
    options = QUIET | {"max_epochs": 2, "log_every_n_steps": 1, "limit_val_batches": int(case.val) * 3} | case.trainer
    torch.manual_seed(11)
    module = case.module()
    trainer = pl.Trainer(strategy=strategy, devices=devices, callbacks=[report], **options)
    trainer.fit(module, datamodule=Data(case.batches))
    reports = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(devices)]
    return Run(module, reports, strategy)


@pytest.fixture(scope="module", params=CASES)
def runs(request, tmp_path_factory) -> tuple[Case, Run, Run]:
    case: Case = CASES[request.param]
    folder: Path = tmp_path_factory.mktemp("runs")
    processes = cga.DecentralizedStrategy(start_method="fork", timeout=timedelta(seconds=30), **case.strategy)
    simulated = cga.SimulatedStrategy(AGENTS, **case.strategy)
    return case, fit(case, processes, folder / "processes", AGENTS), fit(case, simulated, folder / "simulated", 1)


def test_every_agent_ends_with_the_same_weights(runs):
    _, processes, simulated = runs
    states = [report["state"] for report in processes.reports]
    assert largest_difference(states, simulated.strategy.agent_state_dicts()) <= 1e-6
    assert largest_difference(states[:1], states[1:2]) > 1e-3


def test_the_module_ends_with_the_consensus(runs):
    _, processes, simulated = runs
    states = [report["state"] for report in processes.reports]
    mean = {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}
    mean["net.1.num_batches_tracked"] = states[0]["net.1.num_batches_tracked"]
    for run in (processes, simulated):
        assert largest_difference([dict(run.module.state_dict())], [mean]) <= 1e-6
    # Parameters that no agent uses are left alone, by weight decay too.
    torch.testing.assert_close(processes.module.unused.weight, torch.full((1, 1), 0.5), rtol=0, atol=1e-6)


def test_logged_values_are_means_over_agents(runs):
    case, processes, simulated = runs
    for name in simulated.reports[0]["epochs"][-1]:
        for epoch in range(2):
            seen = [report["epochs"][epoch][name] for report in processes.reports]
            assert seen == pytest.approx([simulated.reports[0]["epochs"][epoch][name]] * AGENTS, abs=1e-5), name
    assert ("val_loss" in simulated.reports[0]["epochs"][-1]) is case.val


def test_steps_rates_and_the_progress_bar(runs):
    case, processes, simulated = runs
    expected = simulated.reports[0]["steps"]
    batches = min(case.batches) if case.strategy.get("uneven") == "min" else max(case.batches)
    assert len(expected) == 2 * batches
    assert expected[-1][0] == 2 * -(-batches // case.trainer.get("accumulate_grad_batches", 1))
    assert (expected[0][1] != expected[-1][1]) is (case.module.args[1:] != ())
    for report in processes.reports:
        for (step, rates, loss), (other_step, other_rates, other_loss) in zip(report["steps"], expected, strict=True):
            assert (step, rates) == (other_step, other_rates)
            assert loss is not None and float(loss) == pytest.approx(float(other_loss), abs=1e-5)


def test_hooks_of_the_optimizer_see_each_agent_once_per_step(runs):
    case, processes, simulated = runs
    norms = [report["hooks"] for report in processes.reports]
    together = [norm for step in zip(*norms, strict=True) for norm in step]  # the agents take turns
    assert simulated.reports[0]["hooks"] == pytest.approx(together, abs=1e-5)
    assert len(norms[0]) == processes.reports[0]["steps"][-1][0]


def test_traffic(runs):
    case, processes, simulated = runs
    steps, size = processes.reports[0]["steps"][-1][0], 4 * 32 * (2 + 2 + 6)  # padded to 128 bytes per tensor
    (total,) = [report["traffic"] for report in simulated.reports]
    together = sum((report["traffic"] for report in processes.reports), type(total)())
    assert {name: together[name] for name in total} == total
    assert together.keys() - total.keys() >= {"notices", "barrier", "broadcast"}
    assert set(total) == set(simulated.strategy.algorithm.exchanges)
    assert all(sent % (steps * AGENTS * 2) == 0 for sent in total.values())
    assert total["models"] // (steps * AGENTS * 2) >= size // 2


def test_samplers_and_batches_are_the_users(runs):
    _, processes, simulated = runs
    expected = [RandomSampler] * AGENTS
    assert sum((report["samplers"] for report in processes.reports), []) == expected
    assert simulated.reports[0]["samplers"] == expected
    shapes = {(hook, BATCH, 6) for hook in ("before", "transfer", "after")}
    assert all(report["shapes"] == shapes for run in (processes, simulated) for report in run.reports)


def test_the_distance_to_the_consensus(runs):
    _, processes, simulated = runs
    distances = [report["distance"] for report in (*processes.reports, *simulated.reports)]
    assert distances == pytest.approx(distances[:1] * (AGENTS + 1), rel=1e-4) and distances[0] > 1e-3
