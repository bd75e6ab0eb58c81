"""The small quadratic programs, one per segment and solved together: Lawson-Hanson in float64.

Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23: an active set grows by the most
violated row and shrinks by the rows whose weight would turn negative. It is exact and finite, takes singular
matrices, and makes about as many steps as rows are active in the end. Each step solves its linear system anew
from the given numbers, so that no rounding accumulates.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

# All apply to a problem of unit diagonal and unit linear term, so they are free of scale. A Schur complement
# below the first is rounding: the row depends on the active ones. A slope above the second plus the third
# times the largest weight is rounding too: the row is optimal.
_DEPENDENT = 1e-14
_OPTIMAL = -1e-12
_OPTIMAL_PER_WEIGHT = -1e-14
# Iteration cap of a problem of K rows: so many steps for each, and so many more.
_STEPS_PER_ROW, _STEPS_MORE = 10, 20


class Status(IntEnum):
    """How the program of a segment was solved."""

    EXACT = 0
    ITERATION_CAP = 1
    NON_FINITE = 2  # rows with NaN or Inf were excluded


class _Problem(NamedTuple):
    """`s` problems min over w >= 0 of 1/2 w'Aw + q'w with unit diagonal (plus ridge) and max |q| = 1."""

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
        v [s, K] float64 and a `Status` for each segment, [s] int32.

    """
    finite = gram.diagonal(dim1=1, dim2=2).isfinite()
    usable = finite[:, :-1] & finite[:, -1:]
    problem = _scaled(gram, usable, margin, eps)
    weights, converged = _lawson_hanson(problem.matrix, problem.linear)
    dual = torch.where(usable, margin + problem.unit * weights, 0.0)
    solved = torch.where(converged, Status.EXACT, Status.ITERATION_CAP)
    return dual, torch.where(finite.all(1), solved, Status.NON_FINITE).int()


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


class _Step(NamedTuple):
    """The problem with the active rows solved for; all [s, K]."""

    target: Tensor  # minimiser over the active rows, 0 elsewhere
    slope: Tensor  # gradient Aw + q there
    schur: Tensor  # what is left of the diagonal of A when the active rows are eliminated


def _lawson_hanson(matrix: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights w [s, K] and whether each problem converged [s].

    Without a GPU the loop ends early; with one it never asks the device.
    """
    weights = torch.zeros_like(linear)
    active = torch.zeros_like(linear, dtype=torch.bool)
    moving = active[:, 0]
    for _ in range(_STEPS_PER_ROW * linear.shape[1] + _STEPS_MORE):
        step = _eliminate(matrix, linear, active)
        weights, leave, blocked = _advance(weights, step.target, active)
        enter, found = _most_violated(step, weights, active)
        moving = blocked | found
        if moving.is_cpu and not moving.any():
            break
        active = active ^ (moving[:, None] & _one_hot(torch.where(blocked, leave, enter), active))
    return weights, ~moving


def _eliminate(matrix: Tensor, linear: Tensor, active: Tensor) -> _Step:
    identity = torch.eye(active.shape[1], dtype=matrix.dtype, device=matrix.device)
    system = torch.where(active[:, :, None] & active[:, None, :], matrix, identity)
    rows = torch.where(active[:, :, None], torch.cat([matrix, linear[:, :, None]], 2), 0.0)
    solved = torch.linalg.solve_ex(system, rows).result
    target = -solved[:, :, -1]
    slope = (matrix @ target[:, :, None])[:, :, 0] + linear
    schur = matrix.diagonal(dim1=1, dim2=2) - (rows * solved)[:, :, :-1].sum(1)
    return _Step(target, slope, schur)


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


def _most_violated(step: _Step, weights: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Return the independent inactive row with the least slope [s], and whether it should enter [s]."""
    candidate = ~active & (step.schur > _DEPENDENT)
    least, enter = torch.where(candidate, step.slope, torch.inf).min(1)
    return enter, least < _OPTIMAL + _OPTIMAL_PER_WEIGHT * weights.amax(1)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device) == index[:, None]
