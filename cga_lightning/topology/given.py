"""Graphs and matrices as others make them (networkx, scipy.sparse, torch, numpy), none of which is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from cga_lightning.topology.links import Links
from cga_lightning.topology.mixing import ROUNDING, Matrix, check_doubly_stochastic, metropolis_weights


class Graph(Protocol):
    """A graph of networkx."""

    @property
    def nodes(self) -> Any:
        """The nodes in their order."""

    def edges(self, *, data: str) -> Any:
        """Triples (node, node, weight or None)."""

    def is_directed(self) -> bool:
        """Whether each edge goes one way."""


class Sparse(Protocol):
    """A matrix or an array of scipy.sparse."""

    def toarray(self) -> Matrix:
        """The same, dense."""


Given = Sequence[Sequence[float]] | Matrix | Sparse | Graph


def mixing_matrix_of(given: Given) -> Matrix:
    """The mixing matrix that was given, float64 `[N, N]`, or that of Metropolis and Hastings for the graph that was.

    Raises:
        ValueError: neither; names the row, column or entry.
    """
    if hasattr(given, "is_directed"):
        return _of_graph(given)  # type: ignore[arg-type]
    values = _dense(given)
    if _is_adjacency(values):
        return _metropolis(values)
    check_doubly_stochastic(values)
    return values


def _of_graph(graph: Graph) -> Matrix:
    """Agent i is the i-th node. Weights of edges count if all have one and they make a mixing matrix."""
    place = {node: index for index, node in enumerate(graph.nodes)}
    weights = np.zeros((len(place), len(place)))
    edges = [(place[first], place[second], weight) for first, second, weight in graph.edges(data="weight")]
    for first, second, weight in edges:
        weights[first, second] += 1 if weight is None else weight
    if not graph.is_directed():
        weights = np.maximum(weights, weights.T)
    if not np.array_equal(weights, weights.T):
        raise ValueError(
            "A mixing matrix does not follow from a directed graph; give the matrix itself, or write a Topology with "
            "directed = True and these edges."
        )
    if edges and all(weight is not None for *_, weight in edges) and _is_stochastic(weights):
        return _without_rounding(weights)
    return _metropolis(weights)


def _dense(given: Any) -> Matrix:
    dense = given.toarray() if hasattr(given, "toarray") else given
    dense = dense.detach().cpu().to_dense().numpy() if hasattr(dense, "detach") else dense
    try:
        return _without_rounding(np.asarray(dense, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"A mixing matrix is square [N, N], of numbers; got a {type(given).__name__}. Give rows, an array, a "
            "matrix of scipy.sparse or a graph of networkx."
        ) from error


def _without_rounding(values: Matrix) -> Matrix:
    return np.where(np.abs(values) < ROUNDING, 0, values)


def _is_adjacency(values: Matrix) -> bool:
    """Whether these are whole numbers, the same both ways, and no mixing matrix."""
    whole = np.array_equal(values, np.floor(values)) and bool((values >= 0).all())
    return whole and values.ndim == 2 and np.array_equal(values, values.T) and not _is_stochastic(values)


def _is_stochastic(values: Matrix) -> bool:
    try:
        check_doubly_stochastic(values)
    except ValueError:
        return False
    return True


def _metropolis(adjacency: Matrix) -> Matrix:
    return metropolis_weights(Links.among(len(adjacency), np.argwhere(adjacency != 0), both_ways=True))
