"""Sparse gradients: dense where agents exchange them, and sparse again for the optimizer, which may need that."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cga_lightning as cga
from cga_lightning.algorithms import ALGORITHMS
from tests.toys import QUIET, largest_difference

AGENTS = 3
pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:Sparse invariant checks")]


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.3)


def momentum(module):
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def adagrad(module):
    return torch.optim.Adagrad(module.parameters(), lr=0.1)


def sparse_adam(module):
    return torch.optim.SparseAdam(module.parameters(), lr=0.1)


class Embedded(pl.LightningModule):
    def __init__(self, sparse=True, optimizer=sgd, table_only=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = nn.EmbeddingBag(12, 4, mode="sum", sparse=sparse)
            self.head = nn.Identity() if table_only else nn.Linear(4, 4)
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.table(batch[0])), batch[1])

    def configure_optimizers(self):
        return self.optimizer(self)


class Words(pl.LightningDataModule):
    """Agents see words of their own, or all the same; a word may be twice in a sample."""

    def __init__(self, equal=False):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        words = torch.randint(0, 5, (AGENTS, 8, 3), generator=generator)
        classes = torch.randint(0, 4, (AGENTS, 8), generator=generator)
        self.sets = [
            TensorDataset(words[0 if equal else j] + (0 if equal else 3 * j), classes[0 if equal else j])
            for j in range(AGENTS)
        ]

    def train_dataloader(self):
        ranks = getattr(self.trainer.strategy, "local_agents", [0])
        loaders = [DataLoader(self.sets[rank], batch_size=2) for rank in ranks]
        return loaders if len(loaders) > 1 else loaders[0]


def train(strategy, module, data, devices=1, **options):
    pl.Trainer(strategy=strategy, devices=devices, **QUIET | {"max_epochs": 2} | options).fit(module, datamodule=data)
    return module.state_dict()


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_as_dense(algorithm, accumulated):
    """Where the optimizer does the same with rows that are zero."""
    found = []
    for sparse in (True, False):
        strategy = cga.SimulatedStrategy(AGENTS, algorithm, "complete")
        train(strategy, Embedded(sparse), Words(), accumulate_grad_batches=accumulated)
        found.append(strategy.agent_state_dicts())
    largest = max(float(value.abs().max()) for state in found[0] for value in state.values())
    assert largest_difference(*found) < 1e-6 * max(1.0, largest)


@pytest.mark.parametrize("optimizer", [sgd, momentum, adagrad, sparse_adam])
@pytest.mark.parametrize("algorithm", ["cga", "dpsgd"])
def test_agents_with_equal_data_are_a_plain_run(optimizer, algorithm):
    """Optimizers see the same rows: they leave others alone, with their momenta."""
    what = {"optimizer": optimizer, "table_only": optimizer is sparse_adam}
    plain = train("auto", Embedded(**what), Words(equal=True))
    found = train(cga.SimulatedStrategy(AGENTS, algorithm), Embedded(**what), Words(equal=True))
    assert largest_difference([plain], [found]) < 1e-6


@pytest.mark.parametrize("algorithm", ["cga", "compcga", "dpsgd"])
def test_processes_are_the_simulation(algorithm):
    what = {"optimizer": sparse_adam, "table_only": True}
    expected = train(cga.SimulatedStrategy(AGENTS, algorithm), Embedded(**what), Words())
    strategy = cga.DecentralizedStrategy(algorithm, start_method="fork")
    found = train(strategy, Embedded(**what), Words(), devices=AGENTS)
    assert largest_difference([expected], [found]) < 1e-6
