"""Algorithms around another algorithm."""

from __future__ import annotations

from cga_lightning.algorithms.base import Algorithm
from cga_lightning.topology import Topology


class Wrapper(Algorithm):
    """Base of those that change something about `algorithm` and leave the rest to it."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm

    @property
    def exchanges(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the algorithm."""
        return self.algorithm.exchanges

    def check(self, topology: Topology) -> None:
        """As the algorithm does."""
        self.algorithm.check(topology)
