"""The graph of a given mixing matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cga_lightning.topology.base import Topology
from cga_lightning.topology.links import Edge
from cga_lightning.topology.mixing import Matrix, check_doubly_stochastic


@dataclass(frozen=True, repr=False, init=False)
class FromMatrix(Topology):
    """The graph of a given mixing matrix: i receives from j where `matrix[i, j] > 0`.

    A run refuses it if it is periodic: agents swap models for ever without agreeing (a second eigenvalue of modulus 1).

    Args:
        matrix: doubly stochastic `[N, N]`, rows and columns summing to 1 within 1e-6; symmetric or not.

    Raises:
        ValueError: not square, or not doubly stochastic (names the row, column or entry).
    """

    matrix: tuple[tuple[float, ...], ...] = ()
    directed = True

    def __init__(self, matrix: Sequence[Sequence[float]] | Matrix) -> None:
        values = np.asarray(matrix, dtype=np.float64)
        check_doubly_stochastic(values)
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
