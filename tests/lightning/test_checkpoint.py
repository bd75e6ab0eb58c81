"""The consensus in one file, each agent in a file of its own; and going on from there as if nothing had happened."""

import logging
import time
from datetime import timedelta
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import LearningRateFinder, ModelCheckpoint
from pytorch_lightning.plugins.io import AsyncCheckpointIO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cga_lightning as cga
from cga_lightning.algorithms import Algorithm
from cga_lightning.lightning import agent_files as checkpoint
from tests.lightning.test_precision import ScaledFloat32
from tests.lightning.test_strategy import Averaged
from tests.toys import QUIET, SaveOwnWeights, one_class_each

# Lightning wants the ModelCheckpoint of the first run in the second.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")

AGENTS = 3
ADAMW = partial(torch.optim.AdamW, lr=0.02)
KINDS = pytest.mark.parametrize("kind", ["simulated", "processes"])


class Module(pl.LightningModule):
    """Everything random or stateful that a checkpoint has to bring back."""

    def __init__(self, optimizer=ADAMW):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4))
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    test_step = validation_step

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]


class Shuffled(pl.LightningDataModule):
    """The order comes from the random stream of the agent."""

    def train_dataloader(self):
        sets = one_class_each(AGENTS)
        ranks = self.trainer.strategy.local_agents
        loaders = [DataLoader(sets[rank], batch_size=4, shuffle=True) for rank in ranks]
        return loaders if len(loaders) > 1 else loaders[0]


class Remembers(Algorithm):
    """Gossip along an average of the gradients: an algorithm with a state of its own."""

    exchanges = ("models",)

    def step(self, agent):
        models = yield {rank: agent.params for rank in agent.neighbors}
        average = agent.state.setdefault("average", {"gradient": torch.zeros_like(agent.grad)})
        average["gradient"].mul_(0.5).add_(agent.grad)
        agent.grad.copy_(average["gradient"]).mul_(1 / (1 + agent.step))
        agent.mix(models)


class Shortcut(cga.Topology):
    """A directed ring with a second edge into one agent, so that push-sum weights differ."""

    directed = True

    def edges(self, agents):
        return [*((rank, (rank + 1) % agents) for rank in range(agents)), (0, 2)]


def strategy(kind, agents=AGENTS, **options):
    if kind == "simulated":
        return cga.SimulatedStrategy(agents, **options)
    return cga.DecentralizedStrategy(start_method="fork", timeout=timedelta(seconds=30), **options)


def fit(
    kind, folder, epochs, ckpt_path=None, callbacks=(), module=None, agents=AGENTS, plugins=None, data=None, **options
):
    """Every agent's own weights at the end."""
    torch.manual_seed(3)
    folder.mkdir(exist_ok=True)
    own, save = strategy(kind, agents, **options), SaveOwnWeights(folder)
    trainer = pl.Trainer(
        strategy=own,
        devices=1 if kind == "simulated" else agents,
        callbacks=[save, *callbacks],
        plugins=plugins and plugins(),
        **QUIET
        | {"max_epochs": epochs, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)},
    )
    module = module or Module()
    trainer.fit(module, datamodule=data or Shuffled(), ckpt_path=ckpt_path)
    return own.agent_state_dicts() if kind == "simulated" else save.load(agents), module


class AtStart(pl.Callback):
    """The weights of every agent when training starts."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_start(self, trainer, pl_module):
        simulated = isinstance(trainer.strategy, cga.SimulatedStrategy)
        restored = simulated and trainer.strategy.resume == "agents"
        states = trainer.strategy.agent_state_dicts() if restored else [pl_module.state_dict()]
        torch.save(states, self.folder / f"start{trainer.global_rank}.pt")

    def load(self):
        return sum((torch.load(path) for path in sorted(self.folder.glob("start*.pt"))), [])


def every_epoch(folder, **options):
    return ModelCheckpoint(folder, **{"filename": "{epoch}", "save_top_k": -1} | options)


@pytest.fixture(scope="module", params=["simulated", "processes"])
def saved(request, tmp_path_factory):
    """A run of two epochs with its checkpoints."""
    folder = tmp_path_factory.mktemp(request.param)
    states, module = fit(request.param, folder, 2, callbacks=[every_epoch(folder, save_last="link")])
    return request.param, folder, states, module


def equal(first, second):
    return all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)


class SlowIO(TorchCheckpointIO):
    """Files appear long after they were asked for, if that does not wait."""

    def save_checkpoint(self, *args, **options):
        time.sleep(0.1)
        super().save_checkpoint(*args, **options)


CASES = {
    "cga": {},
    "state of the algorithm": {"algorithm": Remembers()},
    "error memories and random streams": {"algorithm": cga.CGA(compressor=cga.RandomK(0.3))},
    "push-sum weights": {"algorithm": cga.SGP(), "topology": Shortcut()},
    "trackers and momentum": {"algorithm": cga.QuasiGlobalMomentum(cga.GradientTracking())},
    "sums and replicas": {"algorithm": cga.RelaySGD(2, True, cga.QSGD(8))},
    "replicas of models": {"algorithm": cga.Compressed(cga.CGA(compressor="ternary"))},
    "loss scale": {"plugins": partial(ScaledFloat32, growth_interval=3)},
    "counters in groups": {"module": partial(Module, partial(Averaged, lr=0.1))},
    "files written by a thread": {"plugins": partial(AsyncCheckpointIO, SlowIO())},
}


@KINDS
@pytest.mark.parametrize("name", CASES)
def test_going_on_is_bit_equal_to_never_having_stopped(kind, name, tmp_path):
    def run(*args, **options):
        case = dict(CASES[name])
        module = case.pop("module", Module)()
        return fit(kind, *args, module=module, **case | options)[0]

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "first", 2, callbacks=[every_epoch(tmp_path / "checkpoints")])
    resumed = run(tmp_path / "resumed", 4, ckpt_path=tmp_path / "checkpoints" / "epoch=1.ckpt")
    assert equal(resumed, whole)


@KINDS
def test_files_written_by_a_thread_are_complete_after_fit(kind, tmp_path):
    """Also where one save replaces the one before, which may still be written."""
    folder = tmp_path / "checkpoints"
    files = every_epoch(folder, filename="{step}", every_n_train_steps=1, save_top_k=1)
    fit(kind, tmp_path / "run", 2, callbacks=[files], plugins=partial(AsyncCheckpointIO, SlowIO()))
    found = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert found == ["step=8.ckpt", *(f"step=8.ckpt.agents/0000{rank}.pt" for rank in range(AGENTS))]


class OneCycle(Module):
    """Asks for the number of steps, and so for the train data, when it makes its scheduler."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StopsAfterTwoEpochs(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


@KINDS
def test_going_on_where_the_number_of_steps_was_asked_for(kind, tmp_path):
    whole, _ = fit(kind, tmp_path / "whole", 4, module=OneCycle())
    files = every_epoch(tmp_path / "checkpoints")
    fit(kind, tmp_path / "first", 4, module=OneCycle(), callbacks=[files, StopsAfterTwoEpochs()])
    path = tmp_path / "checkpoints" / "epoch=1.ckpt"
    resumed, _ = fit(kind, tmp_path / "resumed", 4, module=OneCycle(), ckpt_path=path)
    assert equal(resumed, whole)


@KINDS
def test_a_tuner_before_going_on_keeps_the_agents(kind, tmp_path):
    states, _ = fit(kind, tmp_path / "first", 2, callbacks=[every_epoch(tmp_path / "checkpoints")])
    finder, start = LearningRateFinder(num_training_steps=4, update_attr=False), AtStart(tmp_path)
    path = tmp_path / "checkpoints" / "epoch=1.ckpt"
    fit(kind, tmp_path / "resumed", 3, ckpt_path=path, callbacks=[finder, start])
    assert equal(start.load(), states)


# --- amid an epoch


class Resumable:
    """Shuffles with the random stream of the agent, or a generator, and knows where it is."""

    def __init__(self, samples, generator=None):
        self.samples, self.generator = samples, generator
        self.state = self.loaded = None

    def __len__(self):
        return len(self.samples) // 4

    def __iter__(self):
        if self.loaded is None or self.loaded["at"] == len(self):
            self.loaded = {"order": torch.randperm(len(self.samples), generator=self.generator), "at": 0}
        (order, first), self.loaded = self.loaded.values(), None
        for at in range(first, len(self)):
            self.state = {"order": order, "at": at + 1}
            yield self.samples[order[4 * at : 4 * at + 4]]

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.loaded = dict(state)


class ResumableData(pl.LightningDataModule):
    """Of different lengths, and on agent 1 with a generator of its own."""

    loader = Resumable

    def train_dataloader(self):
        generators = [None, torch.Generator().manual_seed(5), None]
        sets = [TensorDataset(*one_class_each(AGENTS, n)[rank].tensors) for rank, n in enumerate((16, 24, 12))]
        ranks = self.trainer.strategy.local_agents
        loaders = [self.loader(sets[rank], generator=generators[rank]) for rank in ranks]
        return loaders if len(loaders) > 1 else loaders[0]


class Forgetful(ResumableData):
    @staticmethod
    def loader(samples, generator):
        return DataLoader(samples, batch_size=4, shuffle=True, generator=generator)


@KINDS
@pytest.mark.parametrize("uneven", ["cycle", "min"])
@pytest.mark.parametrize("step", [2, 5, 6])
def test_going_on_amid_an_epoch(kind, uneven, step, tmp_path):
    """Bit-equal, with 6 batches in an epoch under "cycle" and 3 under "min"."""
    options = {"data": ResumableData(), "uneven": uneven}
    files = every_epoch(tmp_path / "checkpoints", filename="{step}", every_n_train_steps=1)
    whole, _ = fit(kind, tmp_path / "whole", 4, callbacks=[files], **options)
    resumed, _ = fit(kind, tmp_path / "resumed", 4, ckpt_path=tmp_path / "checkpoints" / f"step={step}.ckpt", **options)
    assert equal(resumed, whole)


@KINDS
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_going_on_amid_an_epoch_without_the_states_of_loaders(kind, tmp_path, monkeypatch):
    """Every agent that draws other samples than it would have says so, and only amid an epoch."""
    handler = logging.FileHandler(tmp_path / "told")
    monkeypatch.setattr(logging.getLogger("cga_lightning"), "handlers", [handler])
    folder, message = tmp_path / "checkpoints", "goes on after 2 batches of an epoch, but its train loader has no state"
    files = every_epoch(folder, filename="{step}", every_n_train_steps=1)
    fit(kind, tmp_path / "whole", 1, callbacks=[files], data=Forgetful())
    for step, told in [(6, 0), (2, AGENTS)]:
        fit(kind, tmp_path / "resumed", 2, ckpt_path=folder / f"step={step}.ckpt", data=Forgetful())
        assert (tmp_path / "told").read_text().count(message) == told
    handler.close()


def test_files(saved):
    _, folder, states, module = saved
    assert sorted(path.name for path in folder.glob("*.ckpt*")) == [
        "epoch=0.ckpt",
        "epoch=0.ckpt.agents",
        "epoch=1.ckpt",
        "epoch=1.ckpt.agents",
        "last.ckpt",
    ]
    shards = sorted((folder / "epoch=1.ckpt.agents").iterdir())
    assert [shard.name for shard in shards] == ["00000.pt", "00001.pt", "00002.pt"]
    weights = [torch.load(shard, weights_only=True)["state_dict"] for shard in shards]
    assert equal(weights, states)
    loaded = Module.load_from_checkpoint(folder / "epoch=1.ckpt", weights_only=False)
    assert equal([loaded.state_dict()], [module.state_dict()])
    assert set(torch.load(folder / "epoch=1.ckpt", weights_only=False)) >= {"state_dict", "loops", "optimizer_states"}


def test_the_link_to_the_last_one_works(saved, tmp_path):
    kind, folder, *_ = saved
    direct, _ = fit(kind, tmp_path / "direct", 3, ckpt_path=folder / "epoch=1.ckpt")
    linked, _ = fit(kind, tmp_path / "linked", 3, ckpt_path=folder / "last.ckpt")
    assert equal(direct, linked)


def test_both_strategies_read_each_others(saved, tmp_path):
    kind, folder, states, _ = saved
    other = "processes" if kind == "simulated" else "simulated"
    start = AtStart(tmp_path)
    fit(other, tmp_path, 3, ckpt_path=folder / "epoch=1.ckpt", callbacks=[start])
    assert equal(start.load(), states)


def test_a_plain_trainer_tests_the_consensus(saved):
    _, folder, _, module = saved
    loader = DataLoader(TensorDataset(*one_class_each(AGENTS)[0].tensors), batch_size=16)
    expected = pl.Trainer(**QUIET).test(module, loader, verbose=False)
    options = {"ckpt_path": folder / "epoch=1.ckpt", "weights_only": False}
    found = pl.Trainer(**QUIET).test(Module(), loader, verbose=False, **options)
    assert found[0]["val_loss"] == pytest.approx(expected[0]["val_loss"], abs=1e-6)


@KINDS
def test_removed_checkpoints_take_their_agents_with_them(kind, tmp_path):
    best = every_epoch(tmp_path, monitor="loss", save_top_k=1)
    fit(kind, tmp_path, 3, callbacks=[best])
    found = sorted(path.name for path in tmp_path.glob("*.ckpt*"))
    assert len(found) == 2 and found[1] == f"{found[0]}.agents"


@KINDS
def test_saving_after_fit(kind, tmp_path):
    """In the main process, which holds the consensus."""
    devices, module = 1 if kind == "simulated" else AGENTS, Module()
    trainer = pl.Trainer(strategy=strategy(kind), devices=devices, max_epochs=1, **QUIET)
    trainer.fit(module, datamodule=Shuffled())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = Module.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    assert equal([loaded.state_dict()], [module.state_dict()])


class Interrupted(Module):
    """Ctrl+C in the last step of the second epoch."""

    def training_step(self, batch, batch_idx):
        if self.global_step == 7 and self.trainer.max_epochs == 2:
            raise KeyboardInterrupt
        return super().training_step(batch, batch_idx)


def test_ctrl_c_leaves_all_simulated_agents(tmp_path):
    callback = every_epoch(tmp_path, save_on_exception=True)
    with pytest.raises(SystemExit):
        fit("simulated", tmp_path, 2, callbacks=[callback], module=Interrupted())
    start = AtStart(tmp_path)
    (path,) = (path for path in tmp_path.glob("*.ckpt") if torch.load(path, weights_only=False)["global_step"] == 7)
    _, module = fit("simulated", tmp_path, 3, ckpt_path=path, module=Interrupted(), callbacks=[start])
    assert module.trainer.global_step == 12 and not equal(start.load()[:1], start.load()[1:2])


# --- what does not fit


def copied(saved, tmp_path):
    kind, folder, *_ = saved
    path = tmp_path / "copy.ckpt"
    path.write_bytes((folder / "epoch=1.ckpt").read_bytes())
    (tmp_path / "copy.ckpt.agents").mkdir()
    for shard in (folder / "epoch=1.ckpt.agents").iterdir():
        (tmp_path / "copy.ckpt.agents" / shard.name).write_bytes(shard.read_bytes())
    return kind, path, tmp_path / "copy.ckpt.agents" / "00001.pt"


def truncate(shard, _):
    shard.write_bytes(shard.read_bytes()[:100])


def swap(shard, _):
    shard.write_bytes(shard.with_name("00002.pt").read_bytes())


def foreign(shard, folder):
    shard.write_bytes((folder / "epoch=0.ckpt.agents" / "00001.pt").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard, _: shard.unlink(), "is missing"),
        (truncate, "cannot be read"),
        (swap, "belongs to another checkpoint"),
        (foreign, "belongs to another checkpoint"),
    ],
)
def test_damaged_files_are_named(saved, tmp_path, damage, message):
    kind, path, shard = copied(saved, tmp_path)
    damage(shard, saved[1])
    with pytest.raises(Exception, match=rf'The file of agent 1, .*00001.pt, {message}.*resume="consensus"'):
        fit(kind, tmp_path / "resumed", 3, ckpt_path=path)


def test_another_number_of_agents(saved, tmp_path):
    kind, folder, _, module = saved
    path = folder / "epoch=1.ckpt"
    with pytest.raises(Exception, match='is of 3 agents, but the run has 2. Run 3 agents. .*resume="consensus"'):
        fit(kind, tmp_path, 3, agents=2, ckpt_path=path)
    start = AtStart(tmp_path)
    fit(kind, tmp_path, 3, agents=2, ckpt_path=path, resume="consensus", callbacks=[start])
    assert equal(start.load(), [module.state_dict()] * len(start.load()))


def test_a_checkpoint_of_another_strategy(tmp_path):
    callback = every_epoch(tmp_path)
    loader = DataLoader(one_class_each(AGENTS)[0], batch_size=4)
    pl.Trainer(callbacks=[callback], **QUIET | {"max_epochs": 1, "enable_checkpointing": True}).fit(Module(), loader)
    with pytest.raises(checkpoint.CheckpointError, match="holds one model but no agents"):
        fit("simulated", tmp_path, 2, ckpt_path=tmp_path / "epoch=0.ckpt")
    fit("simulated", tmp_path, 2, ckpt_path=tmp_path / "epoch=0.ckpt", resume="consensus")


# --- a crash in the middle of a save that overwrites an older one


class Crash(Exception):
    pass


@pytest.mark.parametrize(("function", "epoch"), [("write_shard", 0), ("put_in_place", 1)])
def test_a_save_that_is_cut_off_leaves_a_usable_checkpoint(tmp_path, monkeypatch, function, epoch):
    """Before the consensus is written the old checkpoint counts, afterwards the new one."""
    options = {"filename": "same", "enable_version_counter": False}
    original, calls = getattr(checkpoint, function), []

    def cut_off(*args):
        calls.append(args)
        if len(calls) == (2 if function == "put_in_place" else AGENTS + 2):  # in the second save, within the agents
            if function == "put_in_place":
                original(args[0], [0])
            raise Crash
        original(*args)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(checkpoint, function, cut_off)
        fit("simulated", tmp_path / "cut", 3, callbacks=[every_epoch(tmp_path / "cut", **options)])
    fit("simulated", tmp_path / "good", 2, callbacks=[every_epoch(tmp_path / "good")])
    expected, _ = fit("simulated", tmp_path / "a", 3, ckpt_path=tmp_path / "good" / f"epoch={epoch}.ckpt")
    found, _ = fit("simulated", tmp_path / "b", 3, ckpt_path=tmp_path / "cut" / "same.ckpt")
    assert equal(found, expected)
