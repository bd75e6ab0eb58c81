"""Segments, non-finite data, accuracy at length and the environment: the same for every backend."""

import pytest
import torch
from projection_asserts import assert_combines, assert_feasible
from projection_backends import Implementation
from projection_inputs import Case, random_rows

BAD = [float("nan"), float("inf"), float("-inf")]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def problem(rows: int = 3, seed: int = 21, d: int = 1000, dtype: torch.dtype = torch.float32):
    return Case("base", *random_rows(rows, seed, d)).tensors(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_segments_are_independent_problems(run: Implementation, dtype: torch.dtype) -> None:
    rows, own = problem(dtype=dtype)
    bounds = [0, 1, 7, 7, 300, 999, 1000]
    result = run(rows, own, offsets=torch.tensor(bounds), margin=0.25)
    assert result.dual.shape == (6, 3)
    for segment, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if start == stop:
            assert result.dual[segment].tolist() == [0.25] * 3
            continue
        alone = run([row[start:stop].clone() for row in rows], own[start:stop].clone(), margin=0.25)
        torch.testing.assert_close(result.gradient[start:stop], alone.gradient)
        torch.testing.assert_close(result.dual[segment], alone.dual[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_non_finite_row_is_left_out(run: Implementation, bad: float, margin: float, dtype: torch.dtype) -> None:
    rows, own = problem(dtype=dtype)
    rows[1][17] = bad
    result = run(rows, own, margin=margin)
    without = run([rows[0], rows[2]], own, margin=margin)
    assert result.status.tolist() == [2]
    assert result.dual[0, 1] == 0
    torch.testing.assert_close(result.gradient, without.gradient)


def test_a_non_finite_row_counts_in_its_segment_only(run: Implementation) -> None:
    rows, own = problem()
    rows[0][500] = float("nan")
    result = run(rows, own, offsets=torch.tensor([0, 400, 800, 1000]), margin=0.5)
    assert result.status.tolist() == [0, 2, 0]
    assert (result.dual[[0, 2]] >= 0.5).all()
    assert result.gradient.isfinite().all()


@pytest.mark.parametrize("bad", BAD)
def test_a_non_finite_own_gradient_stays_as_it_is(run: Implementation, bad: float) -> None:
    rows, own = problem()
    own[3] = bad
    result = run(rows, own, margin=0.5)
    assert result.status.tolist() == [2]
    assert result.dual.tolist() == [[0.0] * 3]
    torch.testing.assert_close(result.gradient, own, rtol=0, atol=0, equal_nan=True)


def test_only_non_finite_rows(run: Implementation) -> None:
    rows, own = problem()
    for row in rows:
        row[0] = float("inf")
    result = run(rows, own, margin=1.0)
    assert result.status.tolist() == [2]
    torch.testing.assert_close(result.gradient, own, rtol=0, atol=0)


def test_rows_zero_in_one_segment_only(run: Implementation) -> None:
    rows, own = problem()
    for row in rows:
        row[:400] = 0
    result = run(rows, own, offsets=torch.tensor([0, 400, 1000]))
    assert result.status.tolist() == [0, 0]
    torch.testing.assert_close(result.gradient[:400], own[:400], rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1e25, 1e37, 1e-25, 1e-37])
def test_squares_beyond_float32(run: Implementation, scale: float) -> None:
    rows, own = problem()
    result = run([row * scale for row in rows], own * scale)
    base = run(rows, own)
    assert result.status.tolist() == [0]
    torch.testing.assert_close(result.dual, base.dual, rtol=1e-4, atol=1e-5)


def test_aligned_and_unaligned_memory_agree(run: Implementation) -> None:
    rows, own = problem(d=997)
    for shift in (1, 2, 3):
        moved = [torch.cat([row.new_zeros(shift), row])[shift:] for row in [*rows, own]]
        result = run(moved[:-1], moved[-1])
        torch.testing.assert_close(result.gradient, run(rows, own).gradient)


LONG = {
    "one sign, heavy tails": lambda x: x.mul(2).exp(),
    "equal terms": lambda x: torch.full_like(x, 1.3),
    "normal": lambda x: x,
}


@pytest.mark.parametrize("name", LONG)
def test_products_of_ten_million_terms(run: Implementation, name: str) -> None:
    length = 10_000_000
    normal = torch.randn(length, generator=torch.Generator().manual_seed(1))
    rows = [LONG[name](normal), normal.flip(0), normal.abs()]
    products = run.gram(rows[:2], rows[2], torch.tensor([0, length]))[0]
    exact = torch.tensor([[torch.dot(a.double(), b.double()) for a in rows] for b in rows])
    norms = exact.diagonal().sqrt()
    assert ((products - exact).abs() / torch.outer(norms, norms)).max() <= 1e-6


@pytest.mark.parametrize("d", [300, 20_000])
def test_lower_matmul_precision_does_not_reach_the_products(run: Implementation, d: int) -> None:
    rows, own = problem(d=d)
    before = torch.get_float32_matmul_precision()
    base = run(rows, own)
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = run(rows, own)
    finally:
        torch.set_float32_matmul_precision(before)
    assert low.gradient.dtype == torch.float32
    torch.testing.assert_close(low.gradient, base.gradient, rtol=1e-5, atol=1e-5)


def test_many_rows_and_many_segments_at_once(run: Implementation) -> None:
    rows, own = problem(rows=9, d=20_000)
    bounds = torch.tensor([0, 64, 128, 4096, 4100, 12_500, 20_000])
    result = run(rows, own, offsets=bounds)
    for start, stop, segment in zip(bounds[:-1].tolist(), bounds[1:].tolist(), range(6), strict=True):
        part = [row[start:stop] for row in rows]
        piece = type(result)(result.gradient[start:stop], result.dual[segment : segment + 1], result.status)
        assert_feasible(piece, part, own[start:stop], 0.0, 3e-6)
        assert_combines(piece, part, own[start:stop], 1e-6)
