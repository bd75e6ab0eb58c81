"""The small quadratic programs, one per segment and solved together: Lawson-Hanson on a sweep tableau.

Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23, with Beaton's sweep operator (1964) in
place of repeated factorisations. The method is exact and finite, needs no positive definite matrix, and makes
about as many pivots as rows are active in the end. One step below is one pivot of every problem that is not
finished.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Both apply to a problem of unit diagonal and unit linear term, so they are free of scale. A Schur complement
# below the first is rounding: the row depends on the active ones. A reduced gradient above the second is
# optimal.
_DEPENDENT = 1e-14
_OPTIMAL = -1e-12


class _Problem(NamedTuple):
    """``s`` problems min over w >= 0 of 1/2 w'Aw + q'w with unit diagonal (plus ridge) and max |q| = 1."""

    matrix: Tensor  # A, [s, K, K]
    linear: Tensor  # q, [s, K]
    unit: Tensor  # v = margin + unit * w, [s, K]


def solve(gram: Tensor, margin: float, eps: float) -> tuple[Tensor, Tensor]:
    """Solve min over v >= margin of 1/2 v'Hv + c'v for every segment.

    Args:
        gram: inner products of the K cross-gradients and the own gradient (last), [s, K + 1, K + 1] float64.
        margin: lower bound of v.
        eps: ridge relative to the diagonal of H.

    Returns:
        v [s, K] float64 and status [s] int32 (0 exact, 1 iteration cap, 2 non-finite rows were excluded).

    """
    finite = gram.diagonal(dim1=1, dim2=2).isfinite()
    usable = finite[:, :-1] & finite[:, -1:]
    problem = _scaled(gram, usable, margin, eps)
    weights, converged = _lawson_hanson(problem.matrix, problem.linear)
    dual = torch.where(usable, margin + problem.unit * weights, 0.0)
    status = torch.where(finite.all(1), (~converged).int(), 2)
    return dual, status.int()


def _scaled(gram: Tensor, usable: Tensor, margin: float, eps: float) -> _Problem:
    products = torch.where(usable[:, :, None] & usable[:, None, :], gram[:, :-1, :-1], 0.0)
    squares = products.diagonal(dim1=1, dim2=2)
    scale = torch.where(squares > 0, squares.rsqrt(), 0.0)
    matrix = products * scale[:, :, None] * scale[:, None, :]
    matrix.diagonal(dim1=1, dim2=2).fill_(1.0 + eps)
    own = torch.where(usable, gram[:, :-1, -1], 0.0)
    linear = scale * (own + margin * products.sum(2))
    peak = linear.abs().amax(1, keepdim=True)
    return _Problem(matrix, torch.where(peak > 0, linear / peak, 0.0), peak * scale)


def _lawson_hanson(matrix: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights w [s, K] and whether each problem converged [s].

    The last column of the tableau always holds the answer: the minimiser on the active rows with its sign
    flipped, and the reduced gradient of the others. Without a GPU the loop ends early; with one it never asks
    the device.
    """
    tableau = _tableau(matrix, linear)
    weights = torch.zeros_like(linear)
    active = torch.zeros_like(linear, dtype=torch.bool)
    moving = active[:, 0]
    for _ in range(10 * linear.shape[1] + 20):
        target = torch.where(active, -tableau[:, :-1, -1], 0.0)
        weights, leave, blocked = _advance(weights, target, active)
        enter, found = _most_violated(tableau, active)
        pivot, moving = torch.where(blocked, leave, enter), blocked | found
        if moving.is_cpu and not moving.any():
            break
        tableau = torch.where(moving[:, None, None], _sweep(tableau, pivot, blocked), tableau)
        active = active ^ (moving[:, None] & _one_hot(pivot, active))
    return weights, ~moving


def _tableau(matrix: Tensor, linear: Tensor) -> Tensor:
    """Return the symmetric [[A, q], [q', 0]], [s, K + 1, K + 1]."""
    upper = torch.cat([matrix, linear[:, :, None]], 2)
    last = torch.cat([linear, torch.zeros_like(linear[:, :1])], 1)
    return torch.cat([upper, last[:, None, :]], 1)


def _advance(weights: Tensor, target: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the weights to the target or up to the first active row that would turn negative.

    Returns the weights [s, K], that row [s], and whether there was one [s]. A row that just entered has a
    positive target, so every blocked move has a positive length: no cycles.
    """
    length = (weights - target).clamp_min(torch.finfo(weights.dtype).tiny)
    ratio = torch.where(active & (target <= 0), weights / length, torch.inf)
    fraction, leave = ratio.min(1)
    blocked = fraction.isfinite()
    partial = (weights + fraction[:, None] * (target - weights)).clamp_min(0.0)
    partial = torch.where(_one_hot(leave, active), 0.0, partial)
    return torch.where(blocked[:, None], partial, target), leave, blocked


def _most_violated(tableau: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Return the independent inactive row with the least reduced gradient [s], and whether it should enter
    [s]."""
    independent = tableau.diagonal(dim1=1, dim2=2)[:, :-1] > _DEPENDENT
    least, enter = torch.where(independent & ~active, tableau[:, :-1, -1], torch.inf).min(1)
    return enter, least < _OPTIMAL


def _sweep(tableau: Tensor, pivot: Tensor, leaving: Tensor) -> Tensor:
    """Sweep row ``pivot`` [s] into the solution, or out of it where ``leaving`` [s]: one rank-1 update
    each."""
    column = tableau.gather(2, pivot[:, None, None].expand(-1, tableau.shape[1], 1))
    corner = column.gather(1, pivot[:, None, None])
    swept = tableau - column * (column / corner).mT
    edge = torch.where(leaving[:, None, None], -column, column) / corner
    hit = _one_hot(pivot, swept[:, 0])[:, :, None]
    swept = torch.where(hit, edge.mT, torch.where(hit.mT, edge, swept))
    return torch.where(hit & hit.mT, -corner.reciprocal(), swept)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device) == index[:, None]
