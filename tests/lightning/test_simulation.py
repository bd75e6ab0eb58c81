"""What is particular to agents that share one process."""

from collections import Counter

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

import cga_lightning as cga
from tests.toys import QUIET, Classifier, OwnData, largest_difference, one_class_each

AGENTS = 4


def trainer(strategy=None, **options):
    return pl.Trainer(strategy=strategy or cga.SimulatedStrategy(AGENTS), **QUIET | {"max_epochs": 2} | options)


def data(batch_size=4):
    return OwnData(one_class_each(AGENTS), batch_size)


class Hooks(pl.Callback):
    """Counts its calls, and where the weights of the module lie."""

    def __init__(self):
        self.calls, self.weights = Counter(), {}


def counted(name):
    def hook(self, trainer, pl_module, *args, **kwargs):
        self.calls[name] += 1
        self.weights.setdefault(name, []).append(pl_module.net[0].weight.data_ptr())

    return hook


PER_AGENT = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
PER_STEP = ("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad")
for name in PER_AGENT + PER_STEP:
    setattr(Hooks, name, counted(name))


def test_callbacks_see_every_agent_once_per_step():
    hooks, steps = Hooks(), 8
    trainer(callbacks=[hooks]).fit(Classifier(), datamodule=data())
    assert hooks.calls == {name: steps * AGENTS for name in PER_AGENT} | {name: steps for name in PER_STEP}
    assert all(len(set(hooks.weights[name][:AGENTS])) == AGENTS for name in PER_AGENT)


def test_the_agents_own_models():
    strategy = cga.SimulatedStrategy(AGENTS)
    with pytest.raises(RuntimeError, match="no agents before the first training step"):
        strategy.agent_state_dicts()
    module = Classifier()
    trainer(strategy).fit(module, datamodule=data())
    states = strategy.agent_state_dicts()
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    assert largest_difference([mean], [dict(module.state_dict())]) <= 1e-6
    assert largest_difference(states[:1], states[1:2]) > 1e-3
    states[0]["net.0.weight"].zero_()
    assert strategy.agent_state_dicts()[0]["net.0.weight"].any()


def test_fit_goes_on_from_the_consensus():
    strategy, module = cga.SimulatedStrategy(AGENTS), Classifier()
    first = trainer(strategy)
    first.fit(module, datamodule=data())
    traffic, start = strategy.traffic, {name: value.clone() for name, value in module.state_dict().items()}
    first.fit_loop.max_epochs = 3
    first.fit(module, datamodule=data())
    assert strategy.traffic["models"] == traffic["models"] // 2  # one epoch more
    assert largest_difference([dict(module.state_dict())], [start]) > 1e-4


class Fails(Classifier):
    def training_step(self, batch, batch_idx):
        if self.global_step == 3:
            raise KeyError("agent down")
        return super().training_step(batch, batch_idx)


def test_an_exception_leaves_the_consensus_in_the_module():
    strategy, module = cga.SimulatedStrategy(AGENTS), Fails()
    pointers = [p.data_ptr() for p in module.parameters()]
    with pytest.raises(KeyError, match="agent down"):
        trainer(strategy).fit(module, datamodule=data())
    states = strategy.agent_state_dicts()
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    assert largest_difference([mean], [dict(module.state_dict())]) <= 1e-6
    assert [p.data_ptr() for p in module.parameters()] == pointers
    module.__class__ = Classifier
    trainer().fit(module, datamodule=data())


class Watched(Classifier):
    def __init__(self):
        super().__init__()
        self.metric = MeanMetric()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.metric(loss.detach())
        self.log("metric", self.metric, on_step=False, on_epoch=True)
        self.log("weighted", float(len(batch[0])), on_step=False, on_epoch=True)
        self.log("given", loss, on_step=False, on_epoch=True, batch_size=1)
        self.log("total", 1.0, on_step=True, reduce_fx="sum")
        self.log("epoch_loss", loss, False, None, False, True, batch_size=1)
        return loss

    def on_before_optimizer_step(self, optimizer):
        self.log("norm", optimizer.param_groups[0]["params"][0].grad.norm())


def test_a_name_that_all_agents_log_is_logged_once():
    run = trainer(max_epochs=1, log_every_n_steps=1)
    sets = one_class_each(AGENTS)
    sets[0] = TensorDataset(*(tensor[:8] for tensor in sets[0].tensors))  # two batches of four, cycled
    run.fit(Watched(), datamodule=OwnData(sets, 4))
    metrics = run.callback_metrics
    assert metrics["metric"] == pytest.approx(float(metrics["epoch_loss"]), abs=1e-6)  # it saw every agent's batch
    assert metrics["weighted"] == 4.0 and metrics["total"] == AGENTS and metrics["norm"] > 0


def under_net(state):
    return {name.removeprefix("net."): value for name, value in state.items()}


def test_validation_with_the_own_models_is_their_mean():
    def val_losses(eval_model):
        strategy = cga.SimulatedStrategy(AGENTS, eval_model=eval_model)
        run, module = trainer(strategy, max_epochs=1, num_sanity_val_steps=1), Classifier()
        loader = DataLoader(one_class_each(AGENTS)[0], batch_size=16)
        run.fit(module, [DataLoader(samples, batch_size=4) for samples in one_class_each(AGENTS)], loader)
        inputs, classes = loader.dataset.tensors
        models = strategy.agent_state_dicts() if eval_model == "own" else [dict(module.state_dict())]
        logits = [torch.func.functional_call(module.net, under_net(state), inputs) for state in models]
        losses = [nn.functional.cross_entropy(output, classes) for output in logits]
        return float(run.callback_metrics["val_loss"]), float(torch.stack(losses).mean())

    for eval_model in ("own", "consensus"):
        logged, expected = val_losses(eval_model)
        assert logged == pytest.approx(expected, abs=1e-5)


def test_new_loaders_every_epoch_have_a_common_length_each():
    class Shrinking(OwnData):
        def train_dataloader(self):
            batches = 3 - self.trainer.current_epoch
            lengths = [4 * batches - 4 * (agent % 2) for agent in range(AGENTS)]
            return [DataLoader(one_class_each(AGENTS, n)[a], batch_size=4) for a, n in enumerate(lengths)]

    run = trainer(reload_dataloaders_every_n_epochs=1)
    run.fit(Classifier(), datamodule=Shrinking(one_class_each(AGENTS)))
    assert run.global_step == 3 + 2


def test_the_monitor_logs_the_network():
    run = trainer(callbacks=[cga.ConsensusMonitor(every_n_steps=2, prog_bar=True)], accumulate_grad_batches=2)
    run.fit(Classifier(), datamodule=data())
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert {"consensus_distance", "gradient_norm", "conflicts", "traffic/models", "traffic/cross_gradients"} <= set(
        found
    )
    assert found["consensus_distance"] > 0 and "consensus_distance" in run.progress_bar_metrics
    assert found["traffic/models"] == run.strategy.traffic["models"] / AGENTS


def test_many_agents_and_an_unbound_topology():
    agents = 12
    strategy = cga.SimulatedStrategy(agents, cga.CGA.reference(), cga.Complete())
    run = pl.Trainer(strategy=strategy, max_steps=2, max_epochs=-1, **QUIET)
    run.fit(Classifier(), datamodule=OwnData(one_class_each(agents)))
    assert len(strategy.agent_state_dicts()) == agents == strategy.topology.agents


class WithExample(Classifier):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.randn(2, 6)

    def forward(self, inputs):
        return self.net(inputs)


def test_the_example_input_of_a_summary_is_no_list_of_batches():
    trainer = pl.Trainer(strategy=cga.SimulatedStrategy(4), max_steps=1, **QUIET | {"enable_model_summary": True})
    trainer.fit(WithExample(), datamodule=OwnData(one_class_each(4)))
    assert trainer.global_step == 1


class Shuffled(OwnData):
    def train_dataloader(self):
        return [DataLoader(dataset, batch_size=4, shuffle=True) for dataset in self.datasets]


class Orders(pl.Callback):
    def __init__(self):
        self.drawn = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.drawn.append([inputs[:, 0].tolist() for inputs, _ in batch])


def test_every_epoch_has_an_order_of_its_own_also_when_seeded_right_before():
    orders, trained = Orders(), {"max_epochs": 3, **QUIET}
    module, data = Classifier(), Shuffled(one_class_each(4))
    torch.manual_seed(0)
    pl.Trainer(strategy=cga.SimulatedStrategy(4), callbacks=[orders], **trained).fit(module, datamodule=data)
    epochs = [orders.drawn[start : start + 4] for start in range(0, len(orders.drawn), 4)]
    for agent in range(4):
        drawn = [tuple(sample for batch in epoch for sample in batch[agent]) for epoch in epochs]
        assert len(set(drawn)) == 3 and len({tuple(sorted(one)) for one in drawn}) == 1
