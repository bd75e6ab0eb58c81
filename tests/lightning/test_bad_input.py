"""What cannot work is refused, at the earliest moment, with what was found and what to do; it never hangs."""

from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._functional_collectives import all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import cga_lightning as cga
from tests.toys import QUIET

pytestmark = pytest.mark.timeout(90)


def processes(**options):
    return cga.DecentralizedStrategy(start_method="fork", timeout=timedelta(seconds=20), **options)


def simulated(**options):
    return cga.SimulatedStrategy(2, **options)


BOTH = pytest.mark.parametrize("strategy", [processes, simulated])


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(pl.LightningDataModule):
    """One loader per agent, of `lengths[rank]` batches."""

    def __init__(self, lengths=(3, 3), make=lambda x: DataLoader(TensorDataset(x), batch_size=2)):
        super().__init__()
        self.lengths, self.make = lengths, make

    def train_dataloader(self):
        loaders = [self.make(torch.ones(2 * length, 2)) for length in self.lengths]
        ranks = self.trainer.strategy.local_agents
        return loaders if len(ranks) > 1 else loaders[ranks[0]]


def fit(strategy, module=None, data=None, **options):
    devices = 2 if isinstance(strategy, cga.DecentralizedStrategy) else 1
    trainer = pl.Trainer(strategy=strategy, **{**QUIET, "max_epochs": 2, "devices": devices} | options)
    trainer.fit(module or Module(), datamodule=data or Data())


def refuses(message):
    return pytest.raises(Exception, match=f"(?s){message}")


# --- in the constructors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cga.SimulatedStrategy(1), "Ring needs at least 2 agents, got 1"),
        (lambda: cga.SimulatedStrategy("4"), "agents must be the number of agents, an int, got '4'"),
        (lambda: cga.SimulatedStrategy(2.5), "got 2.5"),
        (lambda: cga.SimulatedStrategy(4, topology=cga.Ring(3)), "3 agents, but the run has 4"),
        (lambda: cga.SimulatedStrategy(4, algorithm="adam"), "Unknown algorithm 'adam'; known: cga, compcga"),
        (lambda: cga.DecentralizedStrategy(algorithm=cga.CGA), "algorithm must be .* got <class"),
        (lambda: cga.DecentralizedStrategy(algorithm=None), "algorithm must be .* got None"),
        (lambda: cga.DecentralizedStrategy(topology="line"), "Unknown topology 'line'; known: ring"),
        (lambda: cga.DecentralizedStrategy(topology=cga.Ring), "topology must be .* got <class"),
        (lambda: cga.DecentralizedStrategy(uneven="max"), "uneven must be one of 'cycle', 'min', 'error', got 'max'"),
        (lambda: cga.DecentralizedStrategy(eval_model="mean"), "eval_model must be one of 'consensus', 'own'"),
        (lambda: cga.DecentralizedStrategy(timeout=300), "timeout must be a datetime.timedelta .* got 300"),
        (lambda: cga.ConsensusMonitor(every_n_steps=0), "every_n_steps must be at least 1, got 0"),
        (lambda: cga.PartitionedDataModule([], partition="by_size"), "by_size"),
    ],
)
def test_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


# --- in Trainer(...)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "cga", "devices": 1}, r"at least 2 agents, got 1; set devices=2 or more, or use Simulated"),
        ({"strategy": "cgaa", "devices": 2}, "invalid strategy name"),
        ({"strategy": processes(topology=cga.Ring(3)), "devices": 2}, "3 agents, but the run has 2"),
        ({"strategy": simulated(), "devices": 2}, r"on one device, got Trainer\(devices=2\). Set devices=1"),
        ({"strategy": processes(), "devices": 2, "sync_batchnorm": True}, "sync_batchnorm=True.* Remove it"),
        ({"strategy": simulated(), "sync_batchnorm": True}, "sync_batchnorm=True.* Remove it"),
    ],
)
def test_trainer_arguments(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pl.Trainer(**QUIET | options)


# --- modules


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class FromIterator(Module):
    def training_step(self, dataloader_iter):
        return self.layer(next(dataloader_iter)[0][0]).square().mean()


class ReturnsNone(Module):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) if batch_idx == 0 else None


class ClosureOnly(Module):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()


class Frozen(Module):
    def configure_model(self):
        self.requires_grad_(False)


class TwoTypes(Module):
    def configure_model(self):
        self.second = nn.Parameter(torch.ones(2, dtype=torch.float16))


class Overlapping(Module):
    def configure_model(self):
        self.alias = nn.Parameter(self.layer.weight.detach()[:1])


class TwoOptimizers(Module):
    def configure_optimizers(self):
        return [torch.optim.SGD([p], lr=0.1) for p in self.parameters()]


class Newton(Module):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Calls(torch.optim.SGD):
    """Calls its closure so many times."""

    times = 2

    def step(self, closure=None):
        for _ in range(self.times):
            closure()
        return super().step()


class CallsNever(Calls):
    times = 0


class CallsTwice(Module):
    optimizer = Calls

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=0.1)


class NeverCalls(CallsTwice):
    optimizer = CallsNever


class OwnStep(Module):
    """Optimizes inside of training_step, as tutorials with inner loops do."""

    def optimizer(self):
        return self.optimizers()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        loss.backward()
        self.optimizer().step()
        self.optimizer().zero_grad()


class OwnPlainStep(OwnStep):
    def optimizer(self):
        return self.optimizers(use_pl_optimizer=False)


class Lazy(Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(1)


class LazyStatistics(Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LazyBatchNorm1d(affine=False)


class GrowingBuffer(Module):
    """Grows with every batch, on every agent alike."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bank", torch.zeros(0, 2))

    def training_step(self, batch, batch_idx):
        self.bank = torch.cat([self.bank, batch[0]])
        return super().training_step(batch, batch_idx)


class ShrinkingBuffer(Module):
    """In a submodule, and replaced under the same name as a cache is."""

    def __init__(self):
        super().__init__()
        self.layer.register_buffer("cache", torch.zeros(5), persistent=False)

    def training_step(self, batch, batch_idx):
        self.layer.register_buffer("cache", torch.zeros(len(batch[0])), persistent=False)
        return super().training_step(batch, batch_idx)


@BOTH
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Manual, "Manual uses manual optimization .* Return the loss from training_step"),
        (FromIterator, r"training_step\(dataloader_iter\) draws its batches itself"),
        (ReturnsNone, "training_step"),
        (ClosureOnly, r"must call optimizer.step\(closure=...\)"),
        (Frozen, "at least one trainable parameter .* found none"),
        (TwoTypes, "one dtype, found torch.float16, torch.float32"),
        (Overlapping, "share memory without being the same object"),
        (TwoOptimizers, "multiple optimizers is only supported with manual optimization"),
        (Newton, "LBFGS evaluates the loss several times .* Use a first-order optimizer"),
        (CallsTwice, "called its closure 2 times in one step"),
        (NeverCalls, "called its closure 0 times in one step"),
        (OwnStep, r"OwnStep.training_step has called optimizer.step\(\) itself.* Return the loss from training_step"),
        (OwnPlainStep, r"training_step has called optimizer.step\(\) itself"),
        (Lazy, r"Lazy.layer.weight has no shape before the first batch .* in configure_model\(\), by one pass"),
        (LazyStatistics, "LazyStatistics.norm.running_mean has no shape"),
        (
            GrowingBuffer,
            r"buffer 'bank' depends on the data: it was \(2, 2\), and .* \(4, 2\).* Give the buffer a fixed",
        ),
        (ShrinkingBuffer, r"buffer 'layer.cache' depends on the data: it was \(5,\), and .* is \(2,\)"),
    ],
)
def test_modules(strategy, module, message):
    with refuses(message):
        fit(strategy(), module())


class Initialized(Lazy):
    def configure_model(self):
        self.layer(torch.zeros(1, 2))


class FilledOnce(Module):
    """Gets the shape of its buffer from the first batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.empty(0))

    def training_step(self, batch, batch_idx):
        if not self.center.numel():
            self.center = batch[0].mean(0)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("strategy", "module"),
    [(processes, Initialized), (simulated, Initialized), (simulated, FilledOnce)],  # fork loads into an empty buffer
)
def test_shapes_that_are_known_in_time(strategy, module):
    trained = module()
    fit(strategy(), trained)
    assert trained.layer.weight.shape == (1, 2) and all(len(buffer) == 2 for buffer in trained.buffers())


class OfItsData(Module):
    """A buffer whose shape the agents' first batches decide; `when` is the hook that makes it."""

    def __init__(self, when):
        super().__init__()
        object.__setattr__(self, when, self.make)

    def make(self, *_):
        if self.trainer.global_step == 1:
            self.register_buffer("seen", torch.zeros(1 + self.global_rank))


@pytest.mark.parametrize("when", ["on_train_batch_start", "on_train_batch_end", "on_after_backward"])
def test_buffers_that_differ_are_named_before_they_are_averaged(when):
    with refuses(
        r"agent 0 has buffer seen \(1,\) torch.float32, agent 1 has buffer seen \(2,\).* Give the buffer a fixed"
    ):
        fit(processes(), OfItsData(when))


class TensorParallel(Module):
    def configure_model(self):
        mesh = init_device_mesh("cpu", (2,))
        self.layer.weight = nn.Parameter(distribute_tensor(self.layer.weight.detach(), mesh, [Shard(1)]))


class FullySharded(Module):
    def configure_model(self):
        fully_shard(self.layer, mesh=init_device_mesh("cpu", (2,)))


@pytest.mark.parametrize("module", [TensorParallel, FullySharded])
def test_sharded_modules(module):
    with refuses("layer.weight is sharded over processes .* every agent needs its whole model. Leave the module"):
        fit(processes(), module())


class RankDependent(Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def configure_model(self):
        if self.trainer.global_rank == 1:
            self.change(self)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda module: setattr(module, "layer", nn.Linear(2, 3)),
            r"parameter layer.weight \(1, 2\).*, agent 1 has parameter layer.weight \(3, 2\)",
        ),
        (lambda module: setattr(module.trainer.strategy, "eval_model", "own"), "agent 1 has eval_model 'own'"),
        (lambda module: setattr(module, "more", nn.Linear(1, 1)), "no further tensor, agent 1 has parameter more"),
        (
            lambda module: module.layer.bias.requires_grad_(False),
            "parameter layer.bias .*, agent 1 has frozen layer.bias",
        ),
        (lambda module: module.register_buffer("mean", torch.zeros(2)), "buffer mean"),
        (lambda module: setattr(module.trainer.strategy, "algorithm", cga.DPSGD()), r"agent 1 has algorithm DPSGD\(\)"),
        (lambda module: setattr(module.trainer.strategy.algorithm, "margin", 0.5), r"margin=0.5"),
        (lambda module: setattr(module.trainer.strategy, "topology", cga.Complete(2)), r"topology Complete\(2\)"),
    ],
)
def test_agents_that_differ(change, found):
    with refuses(f"same kind of model with the same settings, but agent 0 has.*{found}"):
        fit(processes(), RankDependent(change))


class FreezesLate(Module):
    """Trains fewer parameters from the third step on."""

    def __init__(self, frozen):
        super().__init__()
        self.frozen = frozen

    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == 2:
            for name in self.frozen[self.global_rank]:
                self.layer.get_parameter(name).requires_grad_(False)


def test_agents_that_train_different_parameters_later():
    with refuses("agent 0 has frozen layer.weight .*, agent 1 has parameter layer.weight"):
        fit(processes(), FreezesLate([["weight"], ["bias"]]))


def test_one_agent_that_trains_fewer_parameters_later():
    """The others do not know, and wait for it: no message is mistaken for another, and nobody waits for ever."""
    strategy = cga.DecentralizedStrategy(start_method="fork", timeout=timedelta(seconds=3))
    with refuses("'agreement on the model, which is new or has changed here' .* at step 2|'models' .* 1 at step 2"):
        fit(strategy, FreezesLate([[], ["bias"]]))


# --- collectives inside training_step


COLLECTIVES = {
    "all_gather": lambda module, loss: module.all_gather(loss),
    "barrier": lambda module, loss: module.trainer.strategy.barrier(),
    "broadcast": lambda module, loss: module.trainer.strategy.broadcast(loss),
}
DIRECT = {
    "allreduce": lambda module, loss: dist.all_reduce(loss.detach()),
    "barrier": lambda module, loss: dist.barrier(),
    "all_reduce": lambda module, loss: all_reduce(loss.detach(), "sum", dist.group.WORLD),
    "allgather": lambda module, loss: dist.all_gather_object([None, None], 1),
    "reduce": lambda module, loss: module.trainer.strategy.reduce(loss.detach()),
    "send": lambda module, loss: dist.isend(loss.detach(), 1 - module.global_rank),
}


class Collective(Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.call(self, loss)
        return loss


@BOTH
@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives_of_lightning(strategy, name):
    with refuses(f"training_step called the collective '{name}'.* Move it to on_train_batch_end"):
        fit(strategy(), Collective(COLLECTIVES[name]))


@pytest.mark.parametrize("name", DIRECT)
def test_collectives_of_torch(name):
    with refuses(f"training_step called the collective '{name}.*Move it to on_train_batch_end"):
        fit(processes(), Collective(DIRECT[name]))


# --- data


class Stream(IterableDataset):
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


class OneShot:
    """A loader that can be read once."""

    def __init__(self, x):
        self.batches = iter([[part] for part in x.split(2)])
        self.length = len(x) // 2

    def __len__(self):
        return self.length

    def __iter__(self):
        return self.batches


@BOTH
@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            Data(make=lambda x: DataLoader(Stream(x))),
            {},
            "agent 0, 1 has no length.* Give the IterableDataset a __len__",
        ),
        (Data((3, 2)), {"uneven": "error"}, 'have 3, 2 batches, but uneven="error"'),
        (Data((3, 0), lambda x: DataLoader(TensorDataset(x))), {}, "agent 1 has no batch"),
        (Data((3, 2), OneShot), {}, "ran dry after 2 of the 3 batches"),
    ],
)
def test_loaders(strategy, data, options, message):
    with refuses(message):
        fit(strategy(**options), data=data)


@pytest.mark.parametrize(
    ("loaders", "found"),
    [
        ([DataLoader(TensorDataset(torch.ones(4, 2)))] * 3, "got 3"),
        (DataLoader(TensorDataset(torch.ones(4, 2))), "got a DataLoader"),
        ({"a": DataLoader(TensorDataset(torch.ones(4, 2)))}, "got a dict"),
    ],
)
def test_a_simulation_needs_a_loader_per_agent(loaders, found):
    trainer = pl.Trainer(strategy=simulated(), max_epochs=1, **QUIET)
    with pytest.raises(ValueError, match=rf"agents=2\) needs a list of 2 train loaders, one per agent, {found}"):
        trainer.fit(Module(), loaders)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no")
def test_a_plain_trainer_has_no_agents():
    data = cga.PartitionedDataModule(TensorDataset(torch.ones(4, 2)), partition="iid")
    with pytest.raises(TypeError, match="needs DecentralizedStrategy or SimulatedStrategy, found SingleDevice"):
        pl.Trainer(max_epochs=1, **QUIET).fit(Module(), datamodule=data)


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ([[0, 1], []], r"2 parts of \[2, 0\] samples, but the run has 2 agents"),
        ([[0, 1]], "1 parts"),
        ([[True, False], [False, True]], "must hold indices into train, integers from 0 to 3, got bool"),
        ([[0, 1], [4]], "Part 1 .* got int64 from 4 to 4"),
        ([[0.5], [1]], "got float64"),
    ],
)
def test_partitions(partition, message):
    data = cga.PartitionedDataModule(TensorDataset(torch.ones(4, 2)), partition=partition)
    with pytest.raises(ValueError, match=message):
        data.parts(2)


def test_the_monitor_needs_agents():
    trainer = pl.Trainer(max_steps=1, callbacks=[cga.ConsensusMonitor(every_n_steps=1)], **QUIET)
    with pytest.raises(TypeError, match="ConsensusMonitor needs DecentralizedStrategy or SimulatedStrategy"):
        trainer.fit(Module(), DataLoader(TensorDataset(torch.ones(4, 2))))
