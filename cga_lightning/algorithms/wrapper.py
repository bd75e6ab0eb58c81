"""Algorithms around another algorithm."""

from __future__ import annotations

from collections.abc import Callable, Generator

from cga_lightning.core.algorithm import Algorithm, Exchange, Graphs, Messages, Step
from cga_lightning.topology import Topology


class Wrapper(Algorithm):
    """Base of those that change something about `algorithm` and leave the rest to it.

    Raises:
        TypeError: `algorithm` is no object of a subclass of `Algorithm`.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        given: object = algorithm  # which nobody has checked
        if not isinstance(given, Algorithm):
            name = type(self).__name__
            raise TypeError(f"{name} goes around an algorithm, as in {name}(DPSGD()), got {given!r}.")
        self.algorithm = algorithm

    @property
    def exchanges(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the wrapped algorithm sends in each exchange of one step."""
        return self.algorithm.exchanges

    @property
    def graphs(self) -> Graphs:  # type: ignore[override]
        """Where the wrapped algorithm runs."""
        return self.algorithm.graphs

    @property
    def averages_models_only(self) -> bool:  # type: ignore[override]
        """Whether agents of the wrapped algorithm agree by averaging models alone."""
        return self.algorithm.averages_models_only

    @property
    def most_neighbors(self) -> int | None:  # type: ignore[override]
        """Of how many neighbors the wrapped algorithm can take messages up."""
        return self.algorithm.most_neighbors

    @property
    def takes_momentum(self) -> bool:  # type: ignore[override]
        """Whether the optimizer may have a momentum of its own under the wrapped algorithm."""
        return self.algorithm.takes_momentum

    def check(self, topology: Topology) -> None:
        """Refuse what the wrapped algorithm refuses; it may have a check of its own."""
        self.algorithm.check(topology)


def carried(running: Step, carry: Callable[[Exchange], Generator[Exchange, Messages, Messages]]) -> Step:
    """The generator `running`, each of whose exchanges is made by `carry`."""
    inbox: Messages | None = None
    while True:
        try:
            exchange = Exchange.of(next(running) if inbox is None else running.send(inbox))
        except StopIteration:
            return
        inbox = yield from carry(exchange)
