"""Mixing matrices: the weights of a graph, and what makes a matrix of weights valid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cga_lightning.topology.links import Links

Matrix = NDArray[np.float64]

ROUNDING = 1e-8
"""A weight below this stems from rounding: it stands for no edge."""


def metropolis_weights(links: Links) -> Matrix:
    """Return the doubly stochastic weights of Metropolis and Hastings for symmetric links (Xiao & Boyd 2004).

    `1 / (1 + max(deg_i, deg_j))` for neighbors i and j, the rest of each row on the diagonal. With equal degrees that
    is `1 / (deg + 1)` everywhere.
    """
    degree = links.degrees
    weights: Matrix = links.dense() / (1.0 + np.maximum.outer(degree, degree))
    np.fill_diagonal(weights, 1 - weights.sum(axis=1))
    return weights


def push_weights(links: Links) -> Matrix:
    """Return the column-stochastic weights of push-sum: each sender shares out evenly, itself included."""
    shares = links.dense() | np.eye(links.agents, dtype=bool)
    weights: Matrix = shares / shares.sum(axis=0, dtype=np.float64)
    return weights


def spectral_gap(matrix: Matrix) -> float:
    """Return 1 - |second largest eigenvalue|; the largest of a stochastic matrix is 1."""
    return float(1 - np.sort(np.abs(np.linalg.eigvals(matrix)))[-2])


def check_doubly_stochastic(matrix: Matrix) -> None:
    """Check that `matrix` is square and non-negative, with all row and column sums 1 within 1e-6.

    Raises:
        ValueError: names the entry, or the row or column and its sum.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"A mixing matrix is square [N, N], got the shape {list(matrix.shape)}.")
    _check_not_negative(matrix)
    for axis, name in ((1, "row"), (0, "column")):
        sums = matrix.sum(axis=axis)
        for index in np.flatnonzero(np.abs(sums - 1) > 1e-6):
            raise ValueError(
                f"A mixing matrix is doubly stochastic, but {name} {index} sums to {sums[index]:.9g}; every "
                "row and every column must sum to 1."
            )


def check_fits(matrix: Matrix, links: Links) -> None:
    """Check that `matrix` is `[N, N]` and non-negative, with weights on the diagonal and on links only.

    Raises:
        ValueError: names the shape, or the entry.
    """
    agents = links.agents
    if matrix.shape != (agents, agents):
        raise ValueError(f"A mixing matrix of {agents} agents is [{agents}, {agents}], got {list(matrix.shape)}.")
    _check_not_negative(matrix)
    for receiver, sender in np.argwhere((matrix > ROUNDING) & ~links.dense()).tolist():
        if receiver != sender:
            raise ValueError(
                f"The mixing matrix has {matrix[receiver, sender]} at [{receiver}, {sender}], but agent {receiver} "
                f"does not receive from agent {sender}; add the edge ({sender}, {receiver}), or set the entry to 0."
            )


def _check_not_negative(matrix: Matrix) -> None:
    negative = ~(matrix > -ROUNDING)
    if negative.any():
        row, column = np.argwhere(negative)[0]
        raise ValueError(f"A mixing matrix has entries >= 0, got {matrix[row, column]} at [{row}, {column}].")
