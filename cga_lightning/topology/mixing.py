"""Mixing matrices: the weights of a graph, and what makes a matrix of weights valid.

``links`` is bool ``[N, N]``, True at [i, j] where agent i receives from agent j, False on the diagonal.
"""

import numpy as np
from numpy.typing import NDArray

Links = NDArray[np.bool_]
Matrix = NDArray[np.float64]


def metropolis_weights(links: Links) -> Matrix:
    """Return the doubly stochastic weights of Metropolis and Hastings for symmetric links (Xiao & Boyd 2004).

    ``1 / (1 + max(deg_i, deg_j))`` for neighbors i and j, the rest of each row on the diagonal. With equal
    degrees that is ``1 / (deg + 1)`` everywhere.
    """
    degree = links.sum(axis=1)
    weights: Matrix = links / (1.0 + np.maximum.outer(degree, degree))
    np.fill_diagonal(weights, 1 - weights.sum(axis=1))
    return weights


def push_weights(links: Links) -> Matrix:
    """Return the column-stochastic weights of push-sum: each sender shares out evenly, itself included."""
    shares = links | np.eye(len(links), dtype=bool)
    weights: Matrix = shares / shares.sum(axis=0, dtype=np.float64)
    return weights


def spectral_gap(matrix: Matrix) -> float:
    """Return 1 - |second largest eigenvalue|; the largest of a stochastic matrix is 1."""
    return float(1 - np.sort(np.abs(np.linalg.eigvals(matrix)))[-2])


def connected(links: Links) -> bool:
    """Whether every agent reaches every other along the edges (strongly, where they are directed)."""
    return _all_reached(links) and _all_reached(links.T)


def check_doubly_stochastic(matrix: Matrix) -> None:
    """Check that ``matrix`` is square and non-negative, with all row and column sums 1 within 1e-6.

    Raises:
        ValueError: names the entry, or the row or column and its sum.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"A mixing matrix is square [N, N], got the shape {list(matrix.shape)}.")
    if not (matrix >= 0).all():
        row, column = np.argwhere(~(matrix >= 0))[0]
        raise ValueError(f"A mixing matrix has entries >= 0, got {matrix[row, column]} at [{row}, {column}].")
    for axis, name in ((1, "row"), (0, "column")):
        sums = matrix.sum(axis=axis)
        for index in np.flatnonzero(np.abs(sums - 1) > 1e-6):
            raise ValueError(
                f"A mixing matrix is doubly stochastic, but {name} {index} sums to {sums[index]:.6g}; every "
                "row and every column must sum to 1."
            )


def _all_reached(links: Links) -> bool:
    """Whether the first agent's word reaches everybody."""
    reached = np.arange(len(links)) == 0
    while (grown := reached | links[:, reached].any(axis=1)).sum() > reached.sum():
        reached = grown
    return bool(reached.all())
