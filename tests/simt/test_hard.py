"""Hard cases: dependent, opposite, tiny, huge, zero and non-finite rows."""

import numpy as np
import pytest
from cases import Case, decode, encode, random_case, reference
from checks import assert_solved, project, same
from executor import DEVICE, Executor

from cga_lightning.ops import _plan

LENGTH = 530
TURING = _plan.Device(capability=(7, 5), processors=4)


def _rows(cross: int, rank: int | None = None) -> np.ndarray:
    """Return rows [K + 1, d] that conflict with the own gradient, the last; of the given rank."""
    rows = random_case(cross, LENGTH, seed=17).rows
    if rank is not None:
        random = np.random.default_rng(rank)
        rows[:-1] = random.standard_normal((cross, rank)) @ rows[:rank]
    return rows


def _near_colinear(distance: float) -> np.ndarray:
    rows = _rows(8)
    rows[:-1] = rows[0] + distance * rows[:-1]
    return rows


def _scaled(exponents: np.ndarray) -> np.ndarray:
    return _rows(len(exponents) - 1) * 10.0 ** exponents[:, None]


HARD = {
    "more rows than columns": lambda: _rows(40)[:, :24],
    "rank 10 of 16": lambda: _rows(16, 10),
    "duplicates": lambda: np.vstack([np.repeat(_rows(2)[:2], 4, axis=0), _rows(2)[2:]]),
    "own is the opposite of a row": lambda: np.vstack([_rows(2)[:1], -_rows(2)[:1]]),
    "a pair of opposite rows": lambda: np.vstack([_rows(2)[:1], -_rows(2)[:1], _rows(2)[1:]]),
    "zero rows": lambda: _rows(6) * np.array([1, 0, 1, 0, 0, 1, 1])[:, None],
    "only zero rows": lambda: _rows(3) * np.array([0, 0, 0, 1])[:, None],
    "zero own": lambda: _rows(3) * np.array([1, 1, 1, 0])[:, None],
    "near-colinear 1e-3": lambda: _near_colinear(1e-3),
    "near-colinear 1e-5": lambda: _near_colinear(1e-5),
    "row scales 1e-12 to 1e12": lambda: _scaled(np.array([-12, 12, -6, 6, 0, 9, -9])),
    "all satisfied": lambda: np.abs(_rows(8)),
    "a cone that is a point": lambda: np.vstack([np.eye(6), -np.eye(6), np.arange(1.0, 7.0)]),
    "Hilbert": lambda: np.vstack([1 / (1 + np.add.outer(np.arange(6), np.arange(24.0))), -np.ones((1, 24))]),
}


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", HARD)
def test_hard_case(executor: Executor, name: str, dtype: str) -> None:
    rows = decode(encode(HARD[name](), dtype), dtype)
    for margin, ridge in ((0.0, 0.0), (0.0, 1e-6), (0.5, 1e-6)):
        case = Case(rows, dtype=dtype, margin=margin, ridge=ridge)
        assert_solved(case, *project(executor, case), tolerance=3e-6)


@pytest.mark.parametrize(("cross", "device"), [(3, DEVICE), (12, DEVICE), (12, TURING), (40, DEVICE)])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("exponent", [-30, -20, 12, 25, 35])
def test_float32_squares_out_of_range(
    executor: Executor, exponent: int, dtype: str, cross: int, device: _plan.Device
) -> None:
    rows = random_case(cross, LENGTH, dtype=dtype).rows
    rows[:, : LENGTH // 2] *= 2.0 ** round(exponent * 3.32)
    rows[0] *= 0.5
    case = Case(decode(encode(rows, dtype), dtype), dtype=dtype, ridge=1e-6)
    assert_solved(case, *project(executor, case, device=device))


@pytest.mark.parametrize("cross", [5, 12, 40])
def test_scale_does_not_matter(executor: Executor, cross: int) -> None:
    rows = random_case(cross, LENGTH).rows
    plain = project(executor, Case(rows))[0]
    for exponent in (-100, -40, 40, 100):
        scaled = project(executor, Case(rows * 2.0**exponent))[0]
        assert np.allclose(scaled.own.astype(float) * 2.0**-exponent, plain.own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cross", [3, 12])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "f64"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_left_out(executor: Executor, value: float, dtype: str, cross: int) -> None:
    rows = random_case(cross, LENGTH, dtype=dtype).rows
    rows[1, 7] = value
    case = Case(rows, dtype=dtype, bounds=(0, 264, LENGTH), margin=0.25)
    arrays, _ = project(executor, case)
    without = Case(np.delete(rows, 1, 0), dtype=dtype, bounds=case.bounds, margin=0.25)
    expected = reference(without)[0][:264]
    assert arrays.status.tolist() == [2, 0]
    assert arrays.dual[0, 1] == 0
    assert arrays.dual[1].min() >= 0.25
    result = decode(arrays.own, dtype)[:264]
    rounding = {"f16": 2e-3, "bf16": 2e-2}.get(dtype, 1e-6)
    assert np.linalg.norm(result - expected) <= rounding * np.linalg.norm(expected)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_own_gradient_that_is_not_finite_stays(executor: Executor, value: float) -> None:
    rows = random_case(3, LENGTH).rows
    rows[-1, 300] = value
    arrays, _ = project(executor, Case(rows, bounds=(0, 264, LENGTH), margin=0.5))
    assert arrays.status.tolist() == [0, 2]
    assert (arrays.dual[1] == 0).all()
    assert np.array_equal(arrays.own[264:], rows[-1, 264:].astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("exponent", [70, -70])
def test_weights_beyond_float32(executor: Executor, exponent: int) -> None:
    rows = random_case(2, LENGTH).rows
    rows[:2] *= 2.0**-exponent
    rows[2] *= 2.0**exponent
    case = Case(decode(encode(rows, "f32"), "f32"), ridge=1e-6)
    arrays, plan = project(executor, case)
    beyond = arrays.dual > np.finfo(np.float32).max if exponent > 0 else arrays.dual < np.finfo(np.float32).tiny
    assert beyond[arrays.dual > 0].all()
    assert arrays.dual.max() > 0
    assert_solved(case, arrays, plan)


def test_padding_of_zeros_changes_nothing_else(executor: Executor) -> None:
    rows = random_case(4, 512).rows
    padded = np.hstack([rows, np.zeros((5, 96))])
    short, _ = project(executor, Case(rows))
    long, _ = project(executor, Case(padded))
    assert long.own[:512].tobytes() == short.own.tobytes()
    assert not long.own[512:].any()


def test_the_parts_make_up_the_whole(executor: Executor) -> None:
    case = random_case(6, 3001, bounds=(0, 1000, 3001), margin=0.5)
    whole, plan = project(executor, case)
    parts, _ = project(executor, case)
    parts.own[:] = case.encoded()[-1]
    plan = parts.plan("f32", slot_unit=512, margin=0.5, ridge=1e-6)
    for name in ("dual", "status", "gram"):
        getattr(parts, name).fill(0)
    for launches in (plan.products(), plan.solve(), plan.combine()):
        parts.run(executor, launches)
    assert same(parts, whole)
