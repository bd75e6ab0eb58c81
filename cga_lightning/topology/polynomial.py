"""Rounds of gossip that come as close to the mean of all agents as a given number of them can, or reach it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cga_lightning.topology.base import Topology
from cga_lightning.topology.mixing import Matrix


def averaging_roots(topology: Topology, rounds: int | None = None) -> tuple[float, ...]:
    """The r of every round x <- (W x - r x) / (1 - r), after all of which agents are close to their mean, or have it.

    Each r takes the part of x away that W multiplies by r. As many rounds as W has distinct eigenvalues besides 1, one
    for each of them, reach the mean: 5 on a ring of 10, 2 or 3 on a bipartite graph of any size, one if all are
    connected. With fewer rounds they are the roots of the Chebyshev polynomial from the least to the second largest of
    them, so that the largest part that any eigenvalue between may leave is as small as possible.

    Args:
        topology: with a symmetric mixing matrix.
        rounds: how many; those that reach the mean if None, or if they are fewer.

    Raises:
        ValueError: the mixing matrix is not symmetric.

    Source: Sandryhaila, Kar and Moura, "Finite-Time Distributed Consensus Through Graph Filters", ICASSP 2014;
    Chebyshev rounds: Scaman et al., "Optimal Algorithms for Smooth and Strongly Convex Distributed Optimization in
    Networks", ICML 2017; their order: Reichel, "The Application of Leja Points to Richardson Iteration and Polynomial
    Preconditioning", Linear Algebra and its Applications 154-156, 1991.
    """
    return _roots(tuple(topology.eigenvalues().tolist()), rounds)


@lru_cache(maxsize=32)
def _roots(eigenvalues: tuple[float, ...], rounds: int | None) -> tuple[float, ...]:
    others = np.array(eigenvalues[:-1])
    distinct = others[np.diff(others, prepend=-np.inf) > SAME]
    if rounds is None or rounds >= len(distinct):
        return _ordered(distinct)
    middle, radius = (distinct[0] + distinct[-1]) / 2, (distinct[-1] - distinct[0]) / 2
    angles = (np.arange(rounds) + 0.5) * np.pi / max(rounds, 1)
    return _ordered(middle + radius * np.cos(angles))


def _ordered(roots: Matrix) -> tuple[float, ...]:
    """Leja's order, in which rounding stays small: each root is the one furthest from those before, by the product."""
    ordered, left, distance = [], roots, 1 - roots
    while len(left):
        best = int(distance.argmax())
        ordered.append(float(left[best]))
        distance = np.delete(distance * np.abs(left - left[best]), best)
        left = np.delete(left, best)
        distance /= max(distance.max(initial=0.0), np.finfo(float).tiny)  # the order is all that counts
    return tuple(ordered)


SAME = 1e-9
"""Eigenvalues closer than that are one, told apart by rounding."""
