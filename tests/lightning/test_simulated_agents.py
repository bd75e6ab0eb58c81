"""Every agent of a simulation has what it would have in a process of its own: attributes, buffers, hooks, streams."""

from __future__ import annotations

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import Accuracy, MeanMetric

import cga_lightning as cga
from tests.toys import (
    QUIET,
    Classifier,
    OwnData,
    SaveOwnWeights,
    in_processes,
    largest_difference,
    one_class_each,
    simulated,
)

AGENTS = 3


class Teacher(Classifier):
    """A momentum encoder, which follows in `training_step`."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    @torch.no_grad()
    def follow(self):
        for mine, theirs in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            mine.mul_(0.5).add_(theirs, alpha=0.5)

    def training_step(self, batch, batch_idx):
        self.follow()
        pull = (self.net(batch[0]) - self.teacher(batch[0])).square().mean()
        return super().training_step(batch, batch_idx) + pull


class TeacherInHook(Teacher):
    """The same in a hook, which makes new tensors and looks at its batch and outputs."""

    @torch.no_grad()
    def follow(self):
        pass

    @torch.no_grad()
    def on_train_batch_end(self, outputs, batch, batch_idx):
        inputs, classes = batch
        assert len(set(classes.tolist())) == 1 and outputs["loss"].ndim == 0
        rate = float(outputs["loss"]) / (1 + float(outputs["loss"]))
        for mine, theirs in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            mine.data = (1 - rate) * mine.data + rate * theirs.data


class Remembers(Classifier):
    """A hidden state, a counter, a growing list, buffers and a list that come in the first step, batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.hidden, self.losses, self.calls = None, [], 0

    def training_step(self, batch, batch_idx):
        x = self.norm(batch[0])
        self.calls += 1 + int(batch[1][0])  # every agent at another pace
        if self.hidden is None:
            self.hidden = torch.zeros(6)
            self.register_buffer("center", x.detach().mean(0))
        self.hidden = 0.9 * self.hidden + 0.1 * x.detach().mean(0)
        self.center.mul_(0.5).add_(0.5 * self.hidden)
        loss = super().training_step((x + self.hidden + self.center, batch[1]), batch_idx)
        self.losses.append(loss.item())
        return loss * (1 + self.calls % 3) * (1 + sum(self.losses) / len(self.losses))


class InEveryHook(Classifier):
    """What the hooks write, into attributes and into weights, each in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("trace", torch.zeros(()))

    @torch.no_grad()
    def note(self, factor, value):
        self.trace.mul_(factor).add_(float(value))
        self.net[0].weight.mul_(1 + 0.01 * torch.tanh(self.trace))

    def on_train_start(self):
        self.starts = [1.0]
        self.note(0.5, 1)

    def on_train_epoch_start(self):
        self.starts.append(float(torch.rand(())))
        self.note(0.5, sum(self.starts))

    def on_train_batch_start(self, batch, batch_idx):
        self.note(0.9, batch[0].mean())
        self.trainer.optimizers[0].param_groups[0]["lr"] *= 0.99

    def on_before_zero_grad(self, optimizer):
        self.note(0.8, 0.1)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.note(0.7, outputs["loss"])

    def on_train_epoch_end(self):
        self.note(0.6, 2)


@pytest.mark.parametrize("module", [Teacher, TeacherInHook, Remembers, InEveryHook])
@pytest.mark.parametrize("algorithm", [cga.CGA(margin=0.0), "dpsgd"], ids=["cga", "dpsgd"])
def test_as_in_processes(module, algorithm, tmp_path):
    apart = in_processes(tmp_path, algorithm, "ring", AGENTS, 7, module)
    together = simulated(algorithm, "ring", AGENTS, 7, module)
    assert apart[0].keys() == together[0].keys()
    assert largest_difference(apart, together) <= 1e-6
    assert largest_difference(apart[:1], apart[1:2]) > 1e-3


def test_cross_passes_leave_no_trace_in_what_an_agent_has():
    """With a learning rate of 0 and equal models, the agents end as alone."""

    class Still(Remembers):
        def __init__(self):
            super().__init__()
            self.metric = MeanMetric()
            self.lr = 0.0

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.metric(loss.detach())
            self.log("metric", self.metric, on_step=False, on_epoch=True)
            return loss

    def run(algorithm):
        module, strategy = Still(), cga.SimulatedStrategy(AGENTS, algorithm)
        trainer = pl.Trainer(strategy=strategy, max_epochs=2, **QUIET)
        trainer.fit(module, datamodule=OwnData(one_class_each(AGENTS)))
        return module, strategy.agent_state_dicts(), trainer.callback_metrics["metric"]

    (first, states, metric), (second, others, same) = run("cga"), run("dpsgd")
    assert largest_difference(states, others) == 0 and metric == same
    assert first.losses == second.losses and len(first.losses) == 8 and torch.equal(first.hidden, second.hidden)


class Measured(Classifier):
    """Metrics as people log them, at a model that stays."""

    def __init__(self) -> None:
        super().__init__(lr=0.0)
        self.logged, self.by_hand = (Accuracy("multiclass", num_classes=4) for _ in range(2))
        self.steps = []

    def training_step(self, batch, batch_idx):
        output = self.net(batch[0])
        self.logged(output, batch[1])
        self.by_hand.update(output, batch[1])
        self.log("logged", self.logged, on_step=True, on_epoch=True)
        self.log("plain", (output.argmax(1) == batch[1]).float().mean(), on_step=True, on_epoch=True)
        return nn.functional.cross_entropy(output, batch[1])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        metrics = self.trainer.callback_metrics
        self.steps.append((float(metrics["logged_step"]), float(metrics["plain_step"])))

    def on_train_epoch_end(self):
        self.log("by_hand", self.by_hand.compute())
        self.by_hand.reset()


def test_metrics_are_those_of_all_agents():
    module, data = Measured(), one_class_each(AGENTS)
    trainer = pl.Trainer(strategy=cga.SimulatedStrategy(AGENTS), max_epochs=2, **QUIET)
    trainer.fit(module, datamodule=OwnData(data))
    correct = [(module.net(x).argmax(1) == y).float() for x, y in (samples.tensors for samples in data)]
    for name in ("logged_epoch", "plain_epoch", "by_hand"):
        assert float(trainer.callback_metrics[name]) == pytest.approx(float(torch.cat(correct).mean()), abs=1e-6)
    steps = torch.stack(correct).view(AGENTS, 4, 4).mean((0, 2)).tolist()
    for found in zip(*module.steps, strict=True):
        assert found == pytest.approx(steps * 2, abs=1e-6)
    assert len(set(steps)) > 1


class Draws(Classifier):
    """Keeps the order of its samples."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.zeros(3, 4, 4))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.order[self.current_epoch, batch_idx] = batch[0][:, 0]


class Shuffled(OwnData):
    def train_dataloader(self):
        loaders = [DataLoader(samples, batch_size=4, shuffle=True) for samples in self.datasets]
        ranks = self.trainer.strategy.local_agents
        return loaders if len(ranks) > 1 else loaders[ranks[0]]


def orders(seed=True):
    if seed:
        pl.seed_everything(3, workers=True, verbose=False)
    strategy = cga.SimulatedStrategy(AGENTS)
    pl.Trainer(strategy=strategy, max_epochs=3, **QUIET).fit(Draws(), datamodule=Shuffled(one_class_each(AGENTS)))
    return [state["order"].flatten(1) for state in strategy.agent_state_dicts()]


def test_orders_are_those_of_processes(tmp_path):
    pl.seed_everything(3, workers=True, verbose=False)
    save, strategy = SaveOwnWeights(tmp_path), cga.DecentralizedStrategy(start_method="fork")
    trainer = pl.Trainer(strategy=strategy, devices=AGENTS, max_epochs=3, callbacks=[save], **QUIET)
    trainer.fit(Draws(), datamodule=Shuffled(one_class_each(AGENTS)))
    for found, expected in zip(orders(), save.load(AGENTS), strict=True):
        assert torch.equal(found, expected["order"].flatten(1))


def test_every_epoch_and_fit_has_an_order_of_its_own():
    first, second, again = orders(), orders(seed=False), orders()
    for agent in range(AGENTS):
        epochs = [tuple(epoch.tolist()) for epoch in (*first[agent], *second[agent])]
        assert len(set(epochs)) == 6 and len({tuple(sorted(epoch)) for epoch in epochs}) == 1
        assert torch.equal(first[agent], again[agent])


def test_a_summary_with_an_example_input_and_a_layer_that_comes_late(capsys):
    class Example(Classifier):
        def __init__(self):
            super().__init__()
            self.example_input_array = torch.zeros(2, 6)

        def forward(self, x):
            return self.net(x)

        def on_fit_start(self):
            self.probe = nn.Linear(6, 2)

    module, data = Example(), OwnData(one_class_each(AGENTS))
    settings = QUIET | {"enable_model_summary": True, "max_epochs": 1}
    pl.Trainer(strategy=cga.SimulatedStrategy(AGENTS), **settings).fit(module, datamodule=data)
    assert "[2, 6]" in capsys.readouterr().out and module.probe.weight.isfinite().all()


def test_buffers_that_differ_are_named():
    class Differs(Classifier):
        def training_step(self, batch, batch_idx):
            self.register_buffer("cache", torch.zeros(1 + int(batch[1][0])))
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match=r"'cache' has the shape \(1,\) on agent 0, but \(2,\) on agent 1"):
        simulated("cga", "ring", AGENTS, 2, Differs)


def test_the_module_is_as_before_but_for_what_was_trained():
    """Its own hooks and methods are back, and it can be trained by others."""
    module = InEveryHook()
    before = [id(buffer) for buffer in module.buffers()]
    strategy = cga.SimulatedStrategy(AGENTS)
    pl.Trainer(strategy=strategy, max_epochs=1, **QUIET).fit(module, datamodule=OwnData(one_class_each(AGENTS)))
    assert not {"log", "on_train_batch_end", "_on_before_batch_transfer"} & vars(module).keys()
    assert [id(buffer) for buffer in module.buffers()] == before
    states = strategy.agent_state_dicts()
    pl.Trainer(max_epochs=1, **QUIET).fit(module, DataLoader(one_class_each(1)[0], batch_size=4))
    assert largest_difference(states, strategy.agent_state_dicts()) == 0


class Mode(Classifier):
    """Its loss depends on a mode and a counter that code outside of an agent's turn changes."""

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.seen = 1.0, {"batches": 0}
        self.norm = nn.BatchNorm1d(6)

    def training_step(self, batch, batch_idx):
        return self.phase * super().training_step((self.norm(batch[0]), batch[1]), batch_idx)


class Changes(pl.Callback):
    """Freezes batch statistics and changes an attribute, as callbacks for finetuning do."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            pl_module.norm.eval()
            pl_module.phase = 3.0
        if trainer.global_step == 4:
            pl_module.norm.train()
            pl_module.norm.momentum = 0.5
            pl_module.norm.running_mean.zero_()
            del pl_module.seen["batches"]


def test_what_callbacks_change_changes_for_all_agents(tmp_path):
    def run(strategy, devices, callbacks):
        settings = QUIET | {"max_steps": 6, "max_epochs": -1, "devices": devices}
        trainer = pl.Trainer(strategy=strategy, callbacks=[Changes(), *callbacks], **settings)
        trainer.fit(Mode(), datamodule=OwnData(one_class_each(AGENTS)))
        return strategy

    save = SaveOwnWeights(tmp_path)
    run(cga.DecentralizedStrategy(start_method="fork"), AGENTS, [save])
    together = run(cga.SimulatedStrategy(AGENTS), 1, []).agent_state_dicts()
    apart = save.load(AGENTS)
    for state in (*apart, *together):
        del state["norm.running_mean"]  # the callback writes those of agent 0
    assert largest_difference(apart, together) <= 1e-6
