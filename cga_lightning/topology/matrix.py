"""The graph of a given mixing matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cga_lightning.topology.base import Edge, Topology
from cga_lightning.topology.mixing import Matrix, check_doubly_stochastic


@dataclass(frozen=True, repr=False, init=False)
class FromMatrix(Topology):
    """The graph of a given mixing matrix: i receives from j where ``matrix[i, j] > 0``.

    Args:
        matrix: doubly stochastic ``[N, N]``, rows and columns summing to 1 within 1e-6; symmetric or not.

    Raises:
        ValueError: not square, not doubly stochastic (names the row, column or entry), not connected, or
            periodic: agents swap models for ever without agreeing (a second eigenvalue of modulus 1).
    """

    matrix: tuple[tuple[float, ...], ...] = ()
    directed = True

    def __init__(self, matrix: Sequence[Sequence[float]] | Matrix) -> None:
        values = np.asarray(matrix, dtype=np.float64)
        check_doubly_stochastic(values)
        object.__setattr__(self, "matrix", tuple(map(tuple, values.tolist())))
        object.__setattr__(self, "agents", len(values))
        self._check(len(values))
        if self._gap < 1e-9:
            raise ValueError("FromMatrix never reaches agreement (spectral gap 0); give the diagonal some weight.")

    def edges(self, agents: int) -> Iterable[Edge]:
        """Sender j and receiver i of every positive entry [i, j]."""
        receivers, senders = np.nonzero(self._mixing)
        return zip(senders.tolist(), receivers.tolist(), strict=True)

    def __repr__(self) -> str:
        return f"FromMatrix({self.agents}x{self.agents})"

    @cached_property
    def _mixing(self) -> Matrix:
        return np.array(self.matrix, dtype=np.float64)
