"""What makes a gradient the projection, as assertions; and two exact solutions to compare with.

Tolerances are relative to the length of what goes in, |g + margin * sum(G)| and |G'v|.
"""

from itertools import combinations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from cga_lightning.ops import Projection


def in_float64(rows: list[Tensor], own: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What a backend was given, after rounding to its dtype."""
    return torch.stack([row.double() for row in rows]).numpy(), own.double().numpy()


def exact_projection(rows: np.ndarray, own: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """g~ [d] in float64, by enumeration of active sets up to K = 5 and by non-negative least squares
    beyond."""
    start = own + margin * rows.sum(0)
    norms = np.linalg.norm(rows, axis=1)
    size = np.linalg.norm(start)
    if size == 0 or not norms.any():
        return start
    unit = rows[norms > 0] / norms[norms > 0, None]
    solve = _by_enumeration if len(unit) <= 5 else _by_nnls
    return size * solve(unit, start / size)


def _by_nnls(unit: np.ndarray, start: np.ndarray) -> np.ndarray:
    weights, _ = nnls(unit.T, -start, maxiter=100 * len(unit))
    return start + weights @ unit


def _by_enumeration(unit: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The first active set that satisfies the optimality conditions."""
    for size in range(len(unit) + 1):
        for active in map(list, combinations(range(len(unit)), size)):
            weights = np.linalg.lstsq(unit[active].T, -start, rcond=None)[0]
            candidate = start + weights @ unit[active]
            if (weights >= -1e-12).all() and (unit @ candidate >= -1e-12).all():
                return candidate
    raise AssertionError("no active set satisfies the optimality conditions")


def assert_equals_exact(
    result: Projection, rows: list[Tensor], own: Tensor, margin: float, tolerance: float
) -> None:
    matrix, start = in_float64(rows, own)
    gap = np.linalg.norm(result.gradient.double().numpy() - exact_projection(matrix, start, margin))
    assert gap <= tolerance * _size(result, matrix, start, margin)


def assert_feasible(
    result: Projection, rows: list[Tensor], own: Tensor, margin: float, tolerance: float
) -> None:
    """No cross-gradient is opposed, no weight is below the margin."""
    matrix, start = in_float64(rows, own)
    norms = np.linalg.norm(matrix, axis=1)
    products = matrix @ result.gradient.double().numpy()
    assert (products >= -tolerance * norms * _size(result, matrix, start, margin)).all()
    assert (result.dual >= margin).all()


def assert_complementary(
    result: Projection, rows: list[Tensor], own: Tensor, margin: float, tolerance: float
) -> None:
    """A weight is above the margin only where the constraint is tight."""
    matrix, start = in_float64(rows, own)
    size = _size(result, matrix, start, margin)
    slack = (result.dual[0].numpy() - margin) * (matrix @ result.gradient.double().numpy())
    assert (slack <= tolerance * size * size).all()


def assert_combines(result: Projection, rows: list[Tensor], own: Tensor, tolerance: float) -> None:
    """g~ = g + G'v."""
    matrix, start = in_float64(rows, own)
    expected = start + result.dual[0].numpy() @ matrix
    gap = np.linalg.norm(result.gradient.double().numpy() - expected)
    assert gap <= tolerance * _size(result, matrix, start, 0.0)


def assert_optimal(rows: list[Tensor], own: Tensor, result: Projection, margin: float, eps: float) -> None:
    """The KKT residual of the scaled problem, with its ridge, is at most 1e-9."""
    matrix, start = in_float64(rows, own)
    norms = np.linalg.norm(matrix, axis=1)
    used = norms > 0
    unit = matrix[used] / norms[used, None]
    linear = unit @ (start + margin * matrix.sum(0))
    peak = np.abs(linear).max(initial=0.0)
    if peak == 0:
        return
    weights = (result.dual[0].numpy()[used] - margin) * norms[used] / peak
    slope = (unit @ unit.T + eps * np.eye(len(unit))) @ weights + linear / peak
    assert np.abs(np.minimum(weights, slope)).max() <= 1e-9


def _size(result: Projection, rows: np.ndarray, own: np.ndarray, margin: float) -> float:
    weighted = np.linalg.norm(result.dual[0].numpy()[:, None] * rows)
    return np.linalg.norm(own + margin * rows.sum(0)) + weighted
