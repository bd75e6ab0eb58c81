"""Train loaders of unequal length, or of none: all agents must make the same number of steps in an epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from cga_lightning.lightning.peers import Peers
from cga_lightning.lightning.rounds import CommonEpoch, Report, Source, Uneven, sized_length
from cga_lightning.names import listed

__all__ = ["AgreedLoader", "LoadersOfPeers", "LoadersOfSimulation", "Uneven", "agreed_length", "keeps_its_length"]

_log = logging.getLogger(__name__)


def agreed_length(lengths: Sequence[int | None], uneven: Uneven, settled: bool = False) -> int | None:
    """The number of batches that every agent serves in an epoch; None if that shows only when the loaders end.

    Args:
        lengths: number of batches of each agent's loader, None where it has no length.
        uneven: "cycle": the longest, shorter loaders start again; "min": the shortest; "error": they must be equal.
        settled: whether the Trainer limits the steps of the run, or of an epoch.

    Raises:
        ValueError: when a loader has no length and nothing is settled, or no batch, or the lengths differ under
            "error".
    """
    unsized = [rank for rank, length in enumerate(lengths) if length is None]
    sized = [length for length in lengths if length is not None]
    if unsized and not settled:
        raise ValueError(
            f"The train loader of agent {listed(unsized)} has no length, so the agents cannot agree on the number of "
            "steps in an epoch. Give the IterableDataset a __len__, use a map-style dataset, or set "
            "Trainer(max_steps=...) or Trainer(limit_train_batches=...) to a number of batches."
        )
    if 0 in sized:
        empty = [rank for rank, length in enumerate(lengths) if length == 0]
        raise ValueError(
            f"The train loader of agent {listed(empty)} has no batch. Give every agent data, or lower the batch size "
            "if drop_last=True drops its only batch."
        )
    if unsized:
        return None
    if uneven == "error" and len(set(sized)) > 1:
        raise ValueError(
            f'The train loaders of the agents have {listed(sized)} batches, but uneven="error" asks for equal '
            'lengths. Use uneven="cycle" to repeat the shorter ones or uneven="min" to cut the longer ones.'
        )
    return min(sized) if uneven == "min" else max(sized)


def keeps_its_length(loader: object) -> bool:
    """Whether `len(loader)` cannot be wrong: samples of a map-style dataset in an order of torch's, or in a list."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    makers = {type(part).__module__.partition(".")[0] for part in (loader, loader.sampler, loader.batch_sampler)}
    return makers <= {"torch", "torchdata", "builtins", "cga_lightning"}


class AgreedLoader:
    """A train loader that serves exactly the batches that all agents have agreed on.

    Everything but iteration and length, attributes included, is that of the wrapped loader.

    Args:
        source: the loader to wrap.
        epoch: returns what the agents have agreed on; called when the length or a batch is first needed.
    """

    _source: Source
    _epoch: Callable[[], CommonEpoch]

    def __init__(self, source: Source, epoch: Callable[[], CommonEpoch]) -> None:
        self.__dict__.update(_source=source, _epoch=epoch)
        loader: Any = source.loader
        if is_stateful(loader):  # only where it is an attribute, Lightning takes it for stateful
            self.__dict__.update(state_dict=loader.state_dict, load_state_dict=source.load_state_dict)

    @property
    def wrapped(self) -> Any:
        """The loader that serves the batches."""
        return self._source.loader

    def __len__(self) -> int:
        length = self._epoch().length
        if length is None:
            raise TypeError("This train loader has no length: its epochs end when those of all agents have ended.")
        return length

    def go_on(self, state: Any, served: int) -> None:
        """In the next epoch, go on from the state of the wrapped loader after it had served so many batches."""
        self._source.go_on(state, served)

    def __iter__(self) -> Iterator[Any]:
        return self._epoch().batches(self._source)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # pickling asks before there is a loader
            raise AttributeError(name)
        return getattr(self._source.loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._source.loader, name, value)


def is_stateful(loader: object) -> bool:
    """Whether a loader can tell where it is in its data, as torchdata's StatefulDataLoader can."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


class LoadersOfPeers:
    """Agents in different processes, with one loader each.

    Args:
        peers: the processes, of which every agent has one.
        uneven: see `agreed_length`.
    """

    def __init__(self, peers: Peers, uneven: Uneven) -> None:
        self._peers = peers
        self._uneven = uneven

    def agree(self, loader: Any, settled: bool) -> Any:
        """The train loader, serving as many batches per epoch as those of all other agents. A collective.

        Where a length may be wrong, or there is none, every batch is one too.
        """
        known = self._peers.gather((sized_length(loader), keeps_its_length(loader)))
        length = agreed_length([length for length, _ in known], self._uneven, settled)
        certain = all(keeps for _, keeps in known)
        if certain and sized_length(loader) == length:
            return loader
        source = Source(loader)
        epoch = CommonEpoch([source], length, self._uneven, _own if certain else self._gather)
        return AgreedLoader(source, lambda: epoch)

    def _gather(self, reports: list[Report]) -> list[list[Report]]:
        return self._peers.gather(reports, "agreement on the next batch")

    def check(self, loader: Any, stage: str) -> None:
        """Refuse loaders for validation or test of which only some have batches. A collective.

        Raises:
            ValueError: says which agents have none.
        """
        lengths = self._peers.gather(sized_length(loader))
        empty = [rank for rank, length in enumerate(lengths) if length == 0]
        if 0 < len(empty) < len(lengths):
            raise ValueError(
                f"The {stage} loader of agent {listed(empty)} has no batch, but those of others have. All agents "
                "evaluate together: give every agent data, or none."
            )


def tell_unsplit(loaders: Any, agents: int) -> None:
    """Warn that every process predicts all that its loaders serve, unless a `DistributedSampler` splits them."""
    batches = [getattr(loader, "batch_sampler", None) for loader in tree_leaves(loaders)]
    samplers = [getattr(batch_sampler, "sampler", None) for batch_sampler in batches]
    if any(not isinstance(sampler, DistributedSampler) for sampler in samplers):
        _log.warning(
            f"Each of the {agents} agents predicts all of the data of its predict loader: it is not split, since an "
            "agent's data is its own. To split it, return DataLoader(data, sampler=DistributedSampler(data, "
            "shuffle=False)) from predict_dataloader(); or predict in one process, with Trainer(devices=1)."
        )


class LoadersOfSimulation:
    """All agents in one process: their train loaders come one by one, and are complete once their length is asked for.

    Args:
        uneven: see `agreed_length`.
        drawing: the context in which batches of loader i of all n are drawn, where every agent has the same number.
    """

    def __init__(
        self, uneven: Uneven, drawing: Callable[[int, int], AbstractContextManager[None]] = lambda *_: nullcontext()
    ) -> None:
        self._uneven = uneven
        self._drawing = drawing
        self._sources: list[Source] = []
        self._epoch: CommonEpoch | None = None

    def agree(self, loader: Any, settled: bool) -> Any:
        """The train loader of the next agent, serving as many batches per epoch as those of all others."""
        if self._epoch is not None:
            self._sources, self._epoch = [], None
        self._settled = settled
        sources, place = self._sources, len(self._sources)
        sources.append(Source(loader, lambda: self._drawing(place, len(sources))))
        return AgreedLoader(sources[place], self._agreed)

    def check(self, loader: Any, stage: str) -> None:
        """All agents evaluate with the same loader."""

    def _agreed(self) -> CommonEpoch:
        if self._epoch is None:
            length = agreed_length([source.length for source in self._sources], self._uneven, self._settled)
            self._epoch = CommonEpoch(self._sources, length, self._uneven, _own)
        return self._epoch


def _own(reports: list[Report]) -> list[list[Report]]:
    return [reports]
