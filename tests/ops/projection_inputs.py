"""The input table of every projection backend: the hard cases, as float64 rows and an own gradient."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

D = 301  # ragged: no multiple of a vector width


class Case(NamedTuple):
    name: str
    rows: np.ndarray  # [K, d]
    own: np.ndarray  # [d]
    margin: float = 0.0
    # False where g~ of the rounded data is not determined: dependent rows whose cone changes with the last
    # bit.
    determined: bool = True

    def tensors(self, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        """The rows and the own gradient in ``dtype``, each in memory of exactly its size."""
        return [torch.tensor(row, dtype=dtype) for row in self.rows], torch.tensor(self.own, dtype=dtype)


def random_rows(rows: int, seed: int, d: int = D, correlation: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian rows [K, d] with a shared mean, and an own gradient that about half of them oppose."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, d)) + correlation * rng.standard_normal(d)
    return matrix, rng.standard_normal(d) - 0.3 * matrix.sum(0)


def _random() -> list[Case]:
    cases = [Case(f"random-{k}", *random_rows(k, k)) for k in (1, 2, 3, 4, 7, 8, 9, 16, 31, 32, 33, 64)]
    cases += [Case(f"margin-{k}", *random_rows(k, 100 + k), margin=0.5) for k in (1, 4, 16)]
    cases += [Case(f"shared-mean-{k}", *random_rows(k, 200 + k, correlation=2.0)) for k in (8, 32)]
    return cases


def _conflicts() -> list[Case]:
    rows, noise = random_rows(8, 1)
    return [
        Case("all-in-conflict", rows, -rows.sum(0) + 0.01 * noise),
        Case("all-satisfied", rows, np.linalg.pinv(rows) @ np.ones(8)),
        Case("minus-a-row", rows[:4], -rows[2]),
        Case("pareto-stationary", rows, -rows.sum(0)),
        Case("own-zero", rows, np.zeros(D)),
        Case("own-zero-margin", rows, np.zeros(D), margin=1.0),
        Case("one-opposing", rows[:1], -rows[0] + rows[1]),
    ]


def _dependent() -> list[Case]:
    rows, own = random_rows(6, 2)
    rng = np.random.default_rng(3)
    low = rng.standard_normal((64, 40)) @ rng.standard_normal((40, D))
    return [
        Case("duplicates", np.repeat(rows[:2], 4, 0), own),
        Case("scaled-duplicates", np.concatenate([rows, 2 * rows, 0.125 * rows]), own),
        Case("opposite-pair", np.stack([rows[0], -rows[0]]), own),
        Case("opposite-pair-and-more", np.stack([rows[0], -rows[0], rows[1], rows[2]]), own),
        Case("zero-row", np.stack([rows[0], np.zeros(D), rows[1]]), own),
        Case("zero-row-margin", np.stack([rows[0], np.zeros(D), rows[1]]), own, margin=0.5),
        Case("all-rows-zero", np.zeros((3, D)), own),
        Case("low-rank", low, -low[:20].sum(0) + rng.standard_normal(D)),
        Case("fewer-columns-than-rows", *random_rows(5, 4, d=3)),
        Case("one-column", *random_rows(3, 5, d=1)),
        Case("cone-of-zero", np.concatenate([np.eye(8), -np.eye(8)]), np.arange(1.0, 9.0)),
        Case("zero-sum-rows", np.concatenate([rows, -rows.sum(0, keepdims=True)]), own, determined=False),
    ]


def _near_dependent() -> list[Case]:
    rows, own = random_rows(4, 6)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cases = []
    for gap in (1e-3, 1e-6, 1e-8):
        near = unit[0] + gap * unit[1:]
        cases.append(Case(f"near-colinear-{gap:g}", near, own - 3 * unit[0], determined=gap > 1e-4))
    hilbert = 1.0 / (np.arange(12)[:, None] + np.arange(D)[None, :] + 1.0)
    cases.append(Case("hilbert", hilbert, -hilbert[::2].sum(0) + hilbert[1], determined=False))
    return cases


def _scales() -> list[Case]:
    rows, own = random_rows(5, 7)
    return [
        *(Case(f"all-times-{scale:g}", scale * rows, scale * own) for scale in (1e-30, 1e-12, 1e12, 1e25)),
        Case("row-scales", rows * np.logspace(-12, 12, 5)[:, None], own),
        Case("tiny-rows-large-own", 1e-30 * rows, 1e12 * own),
        Case("large-rows-tiny-own", 1e12 * rows, 1e-30 * own),
    ]


CASES = [*_random(), *_conflicts(), *_dependent(), *_near_dependent(), *_scales()]
