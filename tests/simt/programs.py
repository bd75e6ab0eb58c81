"""Quadratic programs alone: random Gram matrices, judged by the conditions of optimality."""

import numpy as np
from executor import SCHEDULES, Arrays, Executor

KINDS = ("full", "wide", "duplicate", "opposite", "zeros", "scales", "close")


def _rows(random: np.random.Generator, cross: int, kind: str) -> np.ndarray:
    length = {"wide": max(2, cross // 2)}.get(kind, cross + 5)
    rows = random.standard_normal((cross + 1, length))
    rows[-1] -= random.uniform(0, 2) * rows[:-1].mean(0) * np.sqrt(cross)
    if kind == "duplicate":
        rows[: cross // 2] = rows[0]
    elif kind == "opposite":
        rows[: cross // 2] = -rows[cross - cross // 2 : cross]
    elif kind == "zeros":
        rows[:-1][random.random(cross) < 0.4] = 0
    elif kind == "scales":
        rows *= 10.0 ** random.uniform(-12, 12, (cross + 1, 1))
    elif kind == "close":
        rows[:-1] = rows[0] + 1e-4 * rows[:-1]
    return rows


def _residual(gram: np.ndarray, dual: np.ndarray, margin: float, ridge: float) -> float:
    """Return the largest violation of optimality of the scaled problem, free of units."""
    squares = np.diag(gram)[:-1]
    scale = np.where(squares > 0, 1 / np.sqrt(np.where(squares > 0, squares, 1)), 0)
    matrix = gram[:-1, :-1] * np.outer(scale, scale) + ridge * np.eye(len(scale))
    linear = scale * (gram[:-1, -1] + margin * gram[:-1, :-1].sum(1))
    peak = max(np.abs(linear).max(), 1e-300)
    used = scale > 0
    weights = np.where(used, (dual - margin) / np.where(used, scale, 1), 0) / peak
    slack = matrix @ weights + linear / peak
    return float(np.abs(np.minimum(weights, slack)).max() / max(1, np.abs(weights).max()))


def assert_solves_programs(executor: Executor, cross: int, problems: int, margin: float, ridge: float) -> None:
    """Solve many programs of every kind in one launch."""
    random = np.random.default_rng(cross)
    own = np.zeros(problems, np.float32)
    arrays = Arrays([own] * cross, own, range(problems + 1))
    for problem in range(problems):
        rows = _rows(random, cross, KINDS[problem % len(KINDS)])
        arrays.gram[problem] = rows @ rows.T
    plan = arrays.plan("f32", margin=margin, ridge=ridge)
    arrays.run(executor, plan.solve(), SCHEDULES[cross % 3])
    assert (arrays.status == 0).all()
    assert (arrays.dual >= margin).all()
    worst = max(_residual(*pair, margin, ridge) for pair in zip(arrays.gram, arrays.dual, strict=True))
    assert worst < 1e-9
