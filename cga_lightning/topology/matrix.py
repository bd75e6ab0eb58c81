"""A topology from a mixing matrix or a graph that is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cga_lightning.topology.base import Topology
from cga_lightning.topology.given import Given, mixing_matrix_of
from cga_lightning.topology.links import Edge
from cga_lightning.topology.mixing import Matrix


@dataclass(frozen=True, repr=False, init=False)
class FromMatrix(Topology):
    """A given mixing matrix, in which i receives from j where `matrix[i, j] > 0`, or a given graph.

    A run refuses it if it is periodic: agents swap models for ever without agreeing (a second eigenvalue of modulus 1).

    Args:
        matrix: doubly stochastic `[N, N]`, rows and columns summing to 1 within 1e-6; symmetric or not; dense, of torch
            or of scipy.sparse. Entries below 1e-8 are taken for 0. Or a graph, which gets Metropolis-Hastings weights:
            a symmetric adjacency matrix of whole numbers, or a graph of networkx, whose i-th node is agent i. Weights
            of its edges count only if they make a mixing matrix.

    Raises:
        ValueError: not square, not doubly stochastic (names the row, column or entry), or a directed graph.
    """

    matrix: tuple[tuple[float, ...], ...] = ()
    directed = True

    def __init__(self, matrix: Given) -> None:
        values = mixing_matrix_of(matrix)
        object.__setattr__(self, "matrix", tuple(map(tuple, values.tolist())))
        super().__init__(len(values))

    def edges(self, agents: int) -> Iterable[Edge]:
        """Sender j and receiver i of every positive entry [i, j]."""
        receivers, senders = np.nonzero(self.mixing_matrix())
        return zip(senders.tolist(), receivers.tolist(), strict=True)

    def mixing_matrix(self) -> Matrix:
        """Return the given matrix, float64 `[N, N]`."""
        return np.array(self.matrix, dtype=np.float64)

    def __repr__(self) -> str:
        return f"FromMatrix({self.agents}x{self.agents})"
