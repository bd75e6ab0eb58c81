"""Train loaders of unequal length: all agents must make the same number of steps in an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from cga_lightning.lightning.peers import Peers

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
    _saved: tuple[Any, int] | None

    def __init__(self, loader: Iterable[Any], length: Callable[[], int]) -> None:
        self.__dict__.update(_loader=loader, _length=length, _saved=None)

    @classmethod
    def of(cls, loader: Iterable[Any], length: Callable[[], int]) -> AgreedLoader:
        """One that has a state if the loader has one."""
        return (StatefulAgreedLoader if is_stateful(loader) else AgreedLoader)(loader, length)

    @property
    def wrapped(self) -> Iterable[Any]:
        """The loader that serves the batches."""
        return self._loader

    def __len__(self) -> int:
        return self._length()

    def go_on(self, state: Any, served: int) -> None:
        """In the next epoch, go on from the state of the wrapped loader after it had served so many batches."""
        self.__dict__["_saved"] = state, served

    def _served_already(self, length: int) -> int:
        """Load what `go_on` has noted; not a state amid a pass that has been cut off at the end of an epoch."""
        (state, served), self.__dict__["_saved"] = self._saved or (None, 0), None
        if state is not None and (served or length % (sized_length(self._loader) or 1) == 0):
            self._loader.load_state_dict(state)  # type: ignore[attr-defined]
        return served

    def __iter__(self) -> Iterator[Any]:
        length = len(self)
        served = self._served_already(length)
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


class StatefulAgreedLoader(AgreedLoader):
    """The same around a loader with a state, in whose class Lightning looks for these methods."""

    def state_dict(self) -> Any:
        """That of the wrapped loader."""
        return self._loader.state_dict()  # type: ignore[attr-defined]

    def load_state_dict(self, state: Any) -> None:
        """Go on from there."""
        self._loader.load_state_dict(state)  # type: ignore[attr-defined]


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

    def agree(self, loader: Any) -> Any:
        """The train loader, serving as many batches per epoch as those of all other agents. A collective."""
        own = sized_length(loader)
        length = agreed_length(self._peers.gather(own), self._uneven)
        return loader if own == length else AgreedLoader.of(loader, lambda: length)

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
        return AgreedLoader.of(loader, self._agreed_length)

    def check(self, loader: Any, stage: str) -> None:
        """All agents evaluate with the same loader."""

    def _agreed_length(self) -> int:
        if self._length is None:
            self._length = agreed_length([sized_length(loader) for loader in self._loaders], self._uneven)
        return self._length


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
