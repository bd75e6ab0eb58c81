"""Train loaders of unequal length: all agents must make the same number of steps in an epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from torch.utils._pytree import tree_leaves
from torch.utils.data import DistributedSampler

from cga_lightning.lightning.peers import Peers

_log = logging.getLogger(__name__)

Uneven = Literal["cycle", "min", "error"]


def agreed_length(lengths: Sequence[int | None], uneven: Uneven) -> int:
    """The number of batches that every agent serves in an epoch.

    Args:
        lengths: number of batches of each agent's loader, None where it has no length.
        uneven: "cycle": the longest, shorter loaders start again; "min": the shortest; "error": they must be equal.

    Raises:
        ValueError: when a loader has no length or no batch, or the lengths differ under "error".
    """
    unsized = [rank for rank, length in enumerate(lengths) if length is None]
    sized = [length for length in lengths if length is not None]
    if unsized:
        raise ValueError(
            f"The train loader of agent {_listed(unsized)} has no length, so the agents cannot agree on the number of "
            "steps in an epoch. Give the IterableDataset a __len__, or use a map-style dataset."
        )
    if min(sized) == 0:
        empty = [rank for rank, length in enumerate(sized) if length == 0]
        raise ValueError(
            f"The train loader of agent {_listed(empty)} has no batch. Give every agent data, or lower the batch size "
            "if drop_last=True drops its only batch."
        )
    if uneven == "error" and len(set(sized)) > 1:
        raise ValueError(
            f'The train loaders of the agents have {_listed(sized)} batches, but uneven="error" asks for equal '
            'lengths. Use uneven="cycle" to repeat the shorter ones or uneven="min" to cut the longer ones.'
        )
    return min(sized) if uneven == "min" else max(sized)


def sized_length(loader: object) -> int | None:
    """The number of batches of `loader`, or None if it does not know."""
    try:
        length: int = len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
    return length


class AgreedLoader:
    """A train loader that serves exactly the agreed number of batches: cut, or started again when exhausted.

    Everything but iteration and length, attributes included, is that of the wrapped loader.

    Args:
        loader: the loader to wrap.
        length: returns the agreed number of batches; called when the length is first needed.
    """

    _loader: Iterable[Any]
    _length: Callable[[], int]

    def __init__(self, loader: Iterable[Any], length: Callable[[], int]) -> None:
        self.__dict__.update(_loader=loader, _length=length)

    @property
    def wrapped(self) -> Iterable[Any]:
        """The loader that serves the batches."""
        return self._loader

    def __len__(self) -> int:
        return self._length()

    def __iter__(self) -> Iterator[Any]:
        served, length = 0, len(self)
        while served < length:
            before = served
            for batch in self._loader:
                yield batch
                served += 1
                if served == length:
                    break
            if served == before:
                raise RuntimeError(
                    f"The train loader of an agent ran dry after {served} of the {length} batches of this epoch, and "
                    "starting it again gave none. Its iterator must start anew each time it is asked for."
                )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # pickling asks before there is a loader
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._loader, name, value)


class LoadersOfPeers:
    """Agents in different processes, with one loader each.

    Args:
        peers: the processes, of which every agent has one.
        uneven: see `agreed_length`.
    """

    def __init__(self, peers: Peers, uneven: Uneven) -> None:
        self._peers = peers
        self._uneven = uneven

    def agree(self, loader: Any) -> Any:
        """The train loader, serving as many batches per epoch as those of all other agents. A collective."""
        own = sized_length(loader)
        length = agreed_length(self._peers.gather(own), self._uneven)
        return loader if own == length else AgreedLoader(loader, lambda: length)

    def check(self, loader: Any, stage: str) -> None:
        """Refuse loaders for validation or test of which only some have batches. A collective.

        Raises:
            ValueError: says which agents have none.
        """
        lengths = self._peers.gather(sized_length(loader))
        empty = [rank for rank, length in enumerate(lengths) if length == 0]
        if 0 < len(empty) < len(lengths):
            raise ValueError(
                f"The {stage} loader of agent {_listed(empty)} has no batch, but those of others have. All agents "
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
    """

    def __init__(self, uneven: Uneven) -> None:
        self._uneven = uneven
        self._loaders: list[Any] = []
        self._length: int | None = None

    def agree(self, loader: Any) -> Any:
        """The train loader of the next agent, serving as many batches per epoch as those of all others."""
        if self._length is not None:
            self._loaders, self._length = [], None
        self._loaders.append(loader)
        return AgreedLoader(loader, self._agreed_length)

    def check(self, loader: Any, stage: str) -> None:
        """All agents evaluate with the same loader."""

    def _agreed_length(self) -> int:
        if self._length is None:
            self._length = agreed_length([sized_length(loader) for loader in self._loaders], self._uneven)
        return self._length


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
