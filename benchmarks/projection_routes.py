"""Other ways to the same projection, each as its authors do it: what ``benchmarks/projection.py`` compares
with.

A route takes the cross-gradients [K, d], the own gradient [d] and the bounds of the layers, and returns a
gradient [d]. Only the published route looks at the layers. A route is listed if its packages are installed.
"""

from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Route = Callable[[Tensor, Tensor, list[int]], Tensor]


def published_per_layer(rows: Tensor, own: Tensor, bounds: list[int]) -> Tensor:
    """CGA as published: per layer a copy to float64 on the CPU, one column per agent, and quadprog.

    After github.com/yasesf93/CrossGradientAggregation: rows and own gradient times 1 / (K + 1), v >= 0.5.
    """
    layers = [_published_layer(rows[:, low:high], own[low:high]) for low, high in pairwise(bounds)]
    return torch.cat(layers)


def _published_layer(rows: Tensor, own: Tensor) -> Tensor:
    import quadprog

    agents = len(rows) + 1
    columns = torch.zeros(own.numel(), agents, device=own.device)
    for index, row in enumerate([own, *rows]):
        columns[:, index] = row.flatten()
    matrix = np.transpose(columns.cpu().double().numpy())
    for index in range(agents):
        matrix[index, :] = matrix[index, :] / agents
    start = matrix[0, :]
    matrix = np.delete(matrix, 0, axis=0)
    matrix = matrix[~np.all(matrix == 0, axis=1)]
    products = np.dot(matrix, matrix.transpose())
    products = 0.5 * (products + products.transpose()) + 1e-12 * np.eye(len(matrix))
    slope = -np.dot(matrix, start)
    weights = quadprog.solve_qp(products, slope, np.eye(len(matrix)), np.full(len(matrix), 0.5))[0]
    return torch.Tensor(np.dot(weights, matrix) + start).to(own.device)


def gem(rows: Tensor, own: Tensor, bounds: list[int]) -> Tensor:
    """Gradient Episodic Memory: everything to float64 on the CPU, and quadprog with an absolute ridge."""
    import quadprog

    matrix, start = rows.cpu().double().numpy(), own.cpu().contiguous().double().numpy()
    products = np.dot(matrix, matrix.transpose())
    products = 0.5 * (products + products.transpose()) + 1e-3 * np.eye(len(matrix))
    weights = quadprog.solve_qp(products, -np.dot(matrix, start), np.eye(len(matrix)), np.zeros(len(matrix)))[0]
    return torch.Tensor(np.dot(weights, matrix) + start).to(own.device)


def torchjd_dualproj(rows: Tensor, own: Tensor, bounds: list[int]) -> Tensor:
    """TorchJD's DualProj of the own and the cross-gradients, which it wants as one matrix: stacked
    beforehand."""
    from torchjd.aggregation import DualProj

    return DualProj()(rows)


def matmul_nnls(rows: Tensor, own: Tensor, bounds: list[int]) -> Tensor:
    """Products by matmul, non-negative least squares on their Cholesky factor, a matrix-vector product."""
    from scipy.optimize import nnls

    products, slope = _products(rows, own)
    factor = np.linalg.cholesky(products)
    weights = nnls(factor.T, np.linalg.solve(factor, -slope))[0]
    return _combined(rows, own, weights)


def matmul_proxqp(rows: Tensor, own: Tensor, bounds: list[int]) -> Tensor:
    """Products by matmul, ProxQP, a matrix-vector product."""
    import qpsolvers

    products, slope = _products(rows, own)
    weights = qpsolvers.solve_qp(products, slope, lb=np.zeros(len(slope)), solver="proxqp")
    return _combined(rows, own, weights)


def matmul_qpth(rows: Tensor, own: Tensor, bounds: list[int]) -> Tensor:
    """Products by matmul, qpth, a matrix-vector product."""
    from qpth.qp import QPFunction

    products, slope = map(torch.from_numpy, _products(rows, own))
    zero, empty = torch.zeros_like(slope), products.new_empty(0)
    weights = QPFunction(verbose=-1)(products, slope, -torch.eye(len(slope)).double(), zero, empty, empty)
    return _combined(rows, own, weights[0].numpy())


def _products(rows: Tensor, own: Tensor) -> tuple[np.ndarray, np.ndarray]:
    products = (rows @ rows.T).double().cpu().numpy() + 1e-9 * np.eye(len(rows))
    return products, (rows @ own).double().cpu().numpy()


def _combined(rows: Tensor, own: Tensor, weights: np.ndarray) -> Tensor:
    return torch.addmv(own, rows.T, torch.as_tensor(weights, dtype=own.dtype, device=own.device))


_ALL: dict[str, tuple[Route, tuple[str, ...]]] = {
    "torch mm + nnls": (matmul_nnls, ("scipy",)),
    "torch mm + proxqp": (matmul_proxqp, ("qpsolvers", "proxsuite")),
    "torch mm + qpth": (matmul_qpth, ("qpth",)),
    "TorchJD DualProj": (torchjd_dualproj, ("torchjd", "quadprog")),
    "GEM": (gem, ("quadprog",)),
    "published per layer": (published_per_layer, ("quadprog",)),
}


def installed() -> dict[str, Route]:
    """Return the routes whose packages are here."""
    return {name: route for name, (route, needs) in _ALL.items() if all(map(find_spec, needs))}
