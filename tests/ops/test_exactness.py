"""Every backend against exact solutions, over the table of hard cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from projection_asserts import (
    assert_combines,
    assert_complementary,
    assert_equals_exact,
    assert_feasible,
    assert_optimal,
)
from projection_backends import IMPLEMENTATIONS, Implementation
from projection_inputs import CASES, Case, random_rows

from cga_lightning.ops import Projection

HALVES = [torch.float16, torch.bfloat16]
FITS_HALF = [case for case in CASES if np.abs(case.rows).max() < 1e3 and np.abs(case.own).max() < 1e3]


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@named(CASES)
def test_float64_is_the_exact_projection(run: Implementation, case: Case) -> None:
    rows, own = case.tensors(torch.float64)
    result = run(rows, own, margin=case.margin, eps=0.0)
    assert result.status.tolist() == [0]
    assert_feasible(result, rows, own, case.margin, 1e-7)
    assert_complementary(result, rows, own, case.margin, 1e-7)
    assert_combines(result, rows, own, 1e-12)
    assert_optimal(rows, own, result, case.margin, 0.0)
    if case.determined:
        assert_equals_exact(result, rows, own, case.margin, 1e-9)


@named(CASES)
def test_float32_without_ridge_is_the_exact_projection(run: Implementation, case: Case) -> None:
    rows, own = case.tensors(torch.float32)
    result = run(rows, own, margin=case.margin, eps=0.0)
    assert result.status.tolist() == [0]
    assert_feasible(result, rows, own, case.margin, 1e-6)
    assert_combines(result, rows, own, 1e-6)
    if case.determined:
        assert_equals_exact(result, rows, own, case.margin, 1e-6)


@named(CASES)
def test_float32_default(run: Implementation, case: Case) -> None:
    rows, own = case.tensors(torch.float32)
    result = run(rows, own, margin=case.margin)
    assert result.status.tolist() == [0]
    assert result.gradient.isfinite().all()
    assert_feasible(result, rows, own, case.margin, 3e-6)
    assert_complementary(result, rows, own, case.margin, 3e-6)
    assert_combines(result, rows, own, 1e-6)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@named(FITS_HALF)
def test_half_types(run: Implementation, case: Case, dtype: torch.dtype) -> None:
    rows, own = case.tensors(dtype)
    result = run(rows, own, margin=case.margin)
    assert result.gradient.dtype == dtype
    assert result.status.tolist() == [0]
    assert_feasible(result, rows, own, case.margin, torch.finfo(dtype).eps)
    assert_combines(result, rows, own, torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 24), margin=st.sampled_from([0.0, 0.1, 1.0]))
def test_random_problems(name: str, seed: int, count: int, margin: float) -> None:
    rng = np.random.default_rng(seed)
    matrix = _fuzzed_rows(rng, count)
    case = Case("fuzz", matrix, rng.standard_normal(matrix.shape[1]) - rng.uniform(-1, 1) * matrix.sum(0), margin)
    rows, own = case.tensors(torch.float64)
    result = IMPLEMENTATIONS[name](rows, own, margin=margin)
    assert result.status.tolist() == [0]
    assert_feasible(result, rows, own, margin, 1e-6)
    assert_optimal(rows, own, result, margin, 1e-12)


def _fuzzed_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """Rows of any rank, with copies, opposites, zeros and scales over twelve orders of magnitude."""
    d = int(rng.integers(1, 40))
    rank = int(rng.integers(1, min(count, d) + 1))
    matrix = rng.standard_normal((count, rank)) @ rng.standard_normal((rank, d))
    signs = rng.choice([1.0, -1.0, 0.0], size=(count, 1), p=[0.8, 0.1, 0.1])
    return matrix[rng.integers(0, count, count)] * signs * 10.0 ** rng.uniform(-6, 6, (count, 1))


@pytest.mark.parametrize("exponent", [-100, -40, -7, 7, 40, 80])
def test_scale_invariant(run: Implementation, exponent: int) -> None:
    rows, own = Case("base", *random_rows(6, 11)).tensors(torch.float32)
    base = run(rows, own)
    factor = 2.0**exponent
    scaled = run([row * factor for row in rows], own * factor)
    torch.testing.assert_close(
        scaled.gradient, base.gradient * factor, rtol=1e-5, atol=1e-6 * factor * float(own.norm())
    )
    torch.testing.assert_close(scaled.dual, base.dual, rtol=1e-5, atol=1e-6)


def test_order_and_length_of_the_rows_do_not_matter(run: Implementation) -> None:
    rows, own = Case("base", *random_rows(6, 12)).tensors(torch.float64)
    base = run(rows, own).gradient
    changed = run([row * (index + 0.5) for index, row in enumerate(rows[::-1])], own).gradient
    torch.testing.assert_close(changed, base, rtol=1e-9, atol=1e-9)


def test_projection_is_idempotent_and_not_expansive(run: Implementation) -> None:
    rows, own = Case("base", *random_rows(6, 13)).tensors(torch.float64)
    other = random_rows(1, 14)[1]
    first, second = run(rows, own).gradient, run(rows, torch.tensor(other)).gradient
    torch.testing.assert_close(run(rows, first).gradient, first, rtol=0, atol=1e-9)
    assert (first - second).norm() <= (own - torch.tensor(other)).norm()


def test_two_thousand_random_problems(run: Implementation) -> None:
    """As segments of 20 calls: K = 1 to 20, 100 problems each."""
    for count in range(1, 21):
        rng = np.random.default_rng(count)
        pieces = [random_rows(count, int(rng.integers(2**31)), d=40) for _ in range(100)]
        rows = np.concatenate([piece[0] for piece in pieces], 1)
        own = np.concatenate([piece[1] for piece in pieces])
        offsets = torch.arange(0, own.size + 1, 40)
        tensors, start = Case("many", rows, own).tensors(torch.float64)
        result = run(tensors, start, offsets=offsets, margin=0.1, eps=0.0)
        assert result.status.count_nonzero() == 0
        for segment in range(100):
            part = slice(40 * segment, 40 * segment + 40)
            alone = Projection(result.gradient[part], result.dual[[segment]], result.status[[segment]])
            assert_equals_exact(alone, [row[part] for row in tensors], start[part], 0.1, 1e-9)
