from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from cga_lightning import PartitionedDataModule, partition
from cga_lightning.lightning.data import EpochSampler, labels_of

LABELS = torch.arange(60) % 10
DATA = TensorDataset(torch.arange(60.0).unsqueeze(1), LABELS)


def served(module, agents: int, local: list[int], epoch: int = 0) -> list[list[int]]:
    """The sample numbers that the loaders of the local agents serve."""
    strategy = SimpleNamespace(agents=agents, local_agents=local)
    module.trainer = SimpleNamespace(strategy=strategy, current_epoch=epoch)
    loaders = module.train_dataloader()
    return [
        [int(x) for batch in loader for x in batch[0].flatten()]
        for loader in (loaders if isinstance(loaders, list) else [loaders])
    ]


@pytest.mark.parametrize("name", ["by_label", "iid", partial(partition.dirichlet, alpha=0.5), "shards"])
def test_one_process_for_all_serves_what_a_process_each_serves(name) -> None:
    together = served(PartitionedDataModule(DATA, partition=name, batch_size=4), 5, [0, 1, 2, 3, 4])
    alone = [served(PartitionedDataModule(DATA, partition=name, batch_size=4), 5, [rank])[0] for rank in range(5)]
    assert together == alone
    assert sorted(sum(together, [])) == list(range(60))


def test_epochs_and_agents_differ_in_order_but_runs_repeat() -> None:
    parts = [range(0, 30), range(30, 60)]
    first, second = (served(PartitionedDataModule(DATA, partition=parts), 2, [0, 1], epoch=e) for e in (0, 1))
    assert first[0] != second[0] and sorted(first[0]) == sorted(second[0]) == list(range(30))
    assert [x - 30 for x in first[1]] != first[0]
    assert served(PartitionedDataModule(DATA, partition=parts), 2, [0, 1]) == first
    assert served(PartitionedDataModule(DATA, partition=parts, seed=1), 2, [0, 1]) != first


def test_the_order_is_a_function_of_the_epoch() -> None:
    sampler = EpochSampler(20, (0, 1))
    first = list(sampler)
    sampler.set_epoch(3)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first and len(sampler) == 20


class Targets(Dataset):
    targets = LABELS.tolist()


class Pairs(Dataset):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int):
        return torch.zeros(1), int(LABELS[index])


@pytest.mark.parametrize("dataset", [DATA, Targets(), Pairs()], ids=lambda dataset: type(dataset).__name__)
def test_labels_are_found(dataset: Dataset) -> None:
    assert np.array_equal(np.asarray(labels_of(dataset)), LABELS.numpy())
    assert np.array_equal(np.asarray(labels_of(Subset(dataset, [3, 1]))), [3, 1])


def test_data_without_labels_is_refused_with_the_ways_out() -> None:
    with pytest.raises(TypeError, match="partition='iid'"):
        PartitionedDataModule(TensorDataset(torch.zeros(8, 2, 2))).parts(2)


def test_a_partition_for_another_number_of_agents_is_refused() -> None:
    with pytest.raises(ValueError, match="has 2 parts of \\[3, 3\\] samples, but the run has 3 agents"):
        PartitionedDataModule(DATA, partition=[[0, 1, 2], [3, 4, 5]]).parts(3)
    with pytest.raises(ValueError, match="one non-empty part each"):
        PartitionedDataModule(DATA, partition=[[0, 1, 2], []]).parts(2)


def test_a_strategy_without_agents_is_refused() -> None:
    module = PartitionedDataModule(DATA)
    module.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match="found SingleDeviceStrategy"):
        module.train_dataloader()
