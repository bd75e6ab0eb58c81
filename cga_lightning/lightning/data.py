"""A data module that gives each agent its own part of a data set, whatever the strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset

from cga_lightning import partition as partitions
from cga_lightning.classes import classes_of
from cga_lightning.lightning import trees
from cga_lightning.lightning.labels import labels_of

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

Partition = Callable[..., Any]
Parts = list[np.ndarray[Any, np.dtype[np.int64]]]


class PartitionedDataModule(LightningDataModule):
    """Train data in disjoint parts, one per agent; validation and test data in full for everyone.

    `train_dataloader()` returns the loader of this process's agent under `DecentralizedStrategy`, and the list of all
    agents' loaders under `SimulatedStrategy`. Both draw the same batches: the order depends on `seed`, the agent's rank
    and the epoch only.

    Args:
        train: map-style dataset: of torch, of Hugging Face, or a list.
        val, test: any datasets.
        partition: a name of `cga_lightning.partition.PARTITIONS`, such as "by_label" or "iid"; a function `(labels,
            agents, seed=...)` such as `functools.partial(cga_lightning.partition.dirichlet, alpha=0.1)`; or N index
            arrays, as a list or as a dict `{agent: indices}`. Parts that are given may overlap.
        batch_size: samples per batch of each agent.
        seed: of the partition and of the shuffling.
        labels: class of every train sample `[n]`, or the column, key or item of the samples that it is; looked for by
            `labels_of` if None. "iid" asks for none.
        eval_batch_size: samples per batch in validation and test; `batch_size` if None.
        loader_options: further arguments of every `DataLoader`, such as `num_workers`; `drop_last` is for train alone.

    Raises:
        ValueError: when labels and data have different lengths, the partition does not give one non-empty part to
            every agent, or `loader_options` has what the module sets itself.
        TypeError: when train is no map-style dataset, has no labels where they are needed, or the Trainer's strategy
            has no agents.
    """

    def __init__(
        self,
        train: Dataset[Any],
        val: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        *,
        partition: str | Partition | Sequence[Any] | Mapping[int, Any] = "by_label",
        batch_size: int = 32,
        seed: int = 0,
        labels: Any = None,
        eval_batch_size: int | None = None,
        loader_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.partition = partitions.from_name(partition) if isinstance(partition, str) else partition
        _check_map_style(train)
        _check_options(loader_options or {})
        self.train, self.val, self.test = train, val, test
        self.batch_size = batch_size
        self.seed = seed
        self.labels = labels
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
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

    def parts(self, agents: int) -> Parts:
        """The indices into `train` of each agent."""
        samples = len(self.train)  # type: ignore[arg-type]
        parts = self.partition
        if callable(parts):
            parts = parts(self._labels(parts, samples), agents, seed=self.seed)
        return _checked(parts, agents, samples)

    def classes(self) -> Any:
        """The class of every train sample `[n]`, given or found.

        Raises:
            TypeError, ValueError: there is nothing that could be the labels.
        """
        return classes_of(self._labels(partitions.by_label, len(self.train)))  # type: ignore[arg-type]

    def _labels(self, partition: Partition, samples: int) -> Any:
        """What the partition asks for: the labels, or just their number."""
        labels = self.labels
        if labels is not None and not isinstance(labels, str | int) and len(labels) != samples:
            raise ValueError(
                f"labels must have one class for each of the {samples} samples of train, got {len(labels)}; for a "
                "Subset give labels[subset.indices]."
            )
        if not partitions.needs_labels(partition):
            return samples
        return labels_of(self.train, labels) if labels is None or isinstance(labels, str | int) else labels

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
        options = {**self.loader_options, "drop_last": False}  # every sample counts
        return DataLoader(dataset, batch_size=self.eval_batch_size, shuffle=False, **options)


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


def _check_map_style(train: Any) -> None:
    if isinstance(train, IterableDataset) or not (hasattr(train, "__len__") and hasattr(train, "__getitem__")):
        raise TypeError(
            f"PartitionedDataModule needs a map-style dataset, with __len__ and __getitem__, got a "
            f"{type(train).__name__}. Give each agent a loader of its own in train_dataloader() of a data module."
        )


def _check_options(options: Mapping[str, Any]) -> None:
    for name in ("dataset", "batch_size", "shuffle", "sampler", "batch_sampler"):
        if name in options:
            raise ValueError(
                f"loader_options cannot have {name!r}: every agent's part is shuffled by the seed of "
                "PartitionedDataModule, which also has batch_size and eval_batch_size."
            )


def _checked(given: Any, agents: int, samples: int) -> Parts:
    """The parts of a partition, of a user or of a function of one, as index arrays."""
    if isinstance(given, Mapping):
        if set(given) != set(range(agents)):
            raise ValueError(
                f"The keys of a partition must be the {agents} agents of the run, 0 to {agents - 1}, got "
                f"{list(given)[:10]}; if they are names, give list(partition.values())."
            )
        given = [given[rank] for rank in range(agents)]
    parts = [np.asarray(part) for part in given]
    sizes = [part.size for part in parts]
    if len(parts) != agents or not all(sizes):
        raise ValueError(
            f"The partition has {len(parts)} parts of {sizes} samples, but the run has {agents} agents that need one "
            "non-empty part each."
        )
    for rank, part in enumerate(parts):
        if part.ndim != 1 or part.dtype.kind not in "iu" or part.min() < 0 or part.max() >= samples:
            numbers = part.ndim == 1 and part.dtype.kind in "biuf"
            found = f"from {part.min()} to {part.max()}" if numbers else f"of the shape {list(part.shape)}"
            raise ValueError(
                f"Part {rank} of the partition must hold indices into train, integers from 0 to {samples - 1}, got "
                f"{part.dtype} {found}."
            )
    return [part.astype(np.int64, copy=False) for part in parts]


def _seed_from(values: Sequence[int]) -> int:
    return int(np.random.SeedSequence(values).generate_state(1, np.uint64)[0] >> 1)
