"""A data module that gives each agent its own part of a data set, whatever the strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, TensorDataset

from cga_lightning import partition as partitions
from cga_lightning.lightning import trees

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

Partition = Callable[..., list[Any]]


class PartitionedDataModule(LightningDataModule):
    """Train data in disjoint parts, one per agent; validation and test data in full for everyone.

    `train_dataloader()` returns the loader of this process's agent under `DecentralizedStrategy`, and the list of all
    agents' loaders under `SimulatedStrategy`. Both draw the same batches: the order depends on `seed`, the agent's rank
    and the epoch only.

    Args:
        train, val, test: map-style datasets.
        partition: "by_label", "iid", "shards", "dirichlet"; a function `(labels, agents, seed=...)` such as
            `functools.partial(cga_lightning.partition.dirichlet, alpha=0.1)`; or a list of N index arrays.
        batch_size: samples per batch of each agent.
        seed: of the partition and of the shuffling.
        labels: class of every train sample `[n]`; by default `train.targets`, `train.labels`, the last tensor of a
            `TensorDataset`, or the second item of every sample.
        eval_batch_size: samples per batch in validation and test; `batch_size` if None.
        loader_options: further arguments of every `DataLoader`, such as `num_workers`.

    Raises:
        ValueError: when the partition does not give one non-empty part to every agent.
        TypeError: when the Trainer's strategy has no agents.
    """

    def __init__(
        self,
        train: Dataset[Any],
        val: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        *,
        partition: str | Partition | Sequence[Any] = "by_label",
        batch_size: int = 32,
        seed: int = 0,
        labels: Any = None,
        eval_batch_size: int | None = None,
        loader_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.train, self.val, self.test = train, val, test
        self.partition = partitions.from_name(partition) if isinstance(partition, str) else partition
        self.batch_size = batch_size
        self.seed = seed
        self.labels = labels
        self.eval_batch_size = eval_batch_size or batch_size
        self.loader_options = dict(loader_options or {})
        # Only now do these count as defined: Lightning warns of a loader without a validation_step, empty or not.
        if val is not None:
            self.val_dataloader = partial(self._eval_loader, val)  # type: ignore[method-assign]
        if test is not None:
            self.test_dataloader = partial(self._eval_loader, test)  # type: ignore[method-assign]

    @property
    def trainer(self) -> Trainer | None:
        """The Trainer that has taken these data. It says so here before it asks which loaders there are."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        trees.join(self, trainer)
        self._trainer = trainer

    def parts(self, agents: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        """The indices into `train` of each agent."""
        if callable(self.partition):
            labels = labels_of(self.train) if self.labels is None else self.labels
            return self.partition(labels, agents, seed=self.seed)
        parts = [np.asarray(part) for part in self.partition]
        if len(parts) != agents or not all(map(len, parts)):
            raise ValueError(
                f"The partition has {len(parts)} parts of {[len(part) for part in parts]} samples, but the run has "
                f"{agents} agents that need one non-empty part each."
            )
        samples = len(self.train)  # type: ignore[arg-type]
        for rank, part in enumerate(parts):
            if part.dtype.kind not in "iu" or part.min() < 0 or part.max() >= samples:
                raise ValueError(
                    f"Part {rank} of the partition must hold indices into train, integers from 0 to {samples - 1}, got "
                    f"{part.dtype} from {part.min()} to {part.max()}."
                )
        return parts

    def train_dataloader(self) -> Any:
        """The loader of this process's agent, or a list of loaders if it has several."""
        strategy: Any = self.trainer.strategy if self.trainer is not None else None
        if not hasattr(strategy, "local_agents"):
            raise TypeError(
                "PartitionedDataModule gives each agent its own data, so it needs DecentralizedStrategy or "
                f"SimulatedStrategy, found {type(strategy).__name__}."
            )
        parts = self.parts(strategy.agents)
        loaders = [self._train_loader(rank, parts[rank]) for rank in strategy.local_agents]
        return loaders if len(loaders) > 1 else loaders[0]

    def _train_loader(self, rank: int, part: Any) -> DataLoader[Any]:
        sampler = EpochSampler(len(part), (self.seed, rank))
        sampler.set_epoch(self.trainer.current_epoch if self.trainer is not None else 0)
        generator = torch.Generator().manual_seed(_seed_from((self.seed, rank)))
        subset: Dataset[Any] = Subset(self.train, part.tolist())
        options: dict[str, Any] = {"generator": generator, **self.loader_options}
        return DataLoader(subset, batch_size=self.batch_size, sampler=sampler, **options)

    def _eval_loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(dataset, batch_size=self.eval_batch_size, shuffle=False, **self.loader_options)


class EpochSampler(Sampler[int]):
    """A random order of n samples that is a function of the seed and the epoch: nothing to save, nothing to restore."""

    def __init__(self, samples: int, seed: Sequence[int]) -> None:
        self._samples = samples
        self._seed = tuple(seed)
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(_seed_from((*self._seed, self._epoch)))
        return iter(torch.randperm(self._samples, generator=generator).tolist())

    def __len__(self) -> int:
        return self._samples


def labels_of(dataset: Dataset[Any]) -> Any:
    """The class of every sample `[n]` of a classification dataset.

    Raises:
        TypeError: when the samples have no second item.
    """
    if isinstance(dataset, Subset):
        return np.asarray(labels_of(dataset.dataset))[np.asarray(dataset.indices)]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        return dataset.tensors[-1]
    for name in ("targets", "labels"):
        if hasattr(dataset, name):
            return np.asarray(getattr(dataset, name))
    try:
        return np.asarray([int(dataset[i][1]) for i in range(len(dataset))])  # type: ignore[arg-type]
    except (TypeError, IndexError, KeyError) as error:
        raise TypeError(
            f"Cannot find the labels of {type(dataset).__name__}: its samples are no (input, label) pairs. Pass "
            "PartitionedDataModule(labels=...), or partition='iid', or a list of index arrays."
        ) from error


def _seed_from(values: Sequence[int]) -> int:
    return int(np.random.SeedSequence(values).generate_state(1, np.uint64)[0] >> 1)
