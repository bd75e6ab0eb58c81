"""The CUDA kernels on the CPU executor, against the definition."""

import numpy as np
import pytest
from cases import random_case
from checks import assert_projects, assert_solved, assert_sums_equal_terms, project, same
from executor import DEVICE, Executor

from cga_lightning.ops import _plan

ROWS = (1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 64)
# Ragged ends, an empty segment, one shorter than a vector step, more slots than resident blocks.
SEGMENTS = (0, 1024, 1024, 1040, 4109)
SHORT = (0, 512, 512, 520, 1301)  # for kernels that are slow on the CPU
TURING = _plan.Device(capability=(7, 5), processors=4)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "f64"])
@pytest.mark.parametrize("cross", ROWS)
def test_every_number_of_rows(executor: Executor, cross: int, dtype: str) -> None:
    bounds = SHORT if dtype == "f64" and cross > 16 else SEGMENTS
    assert_projects(executor, random_case(cross, bounds[-1], seed=cross, dtype=dtype, bounds=bounds))


@pytest.mark.parametrize("cross", [2, 8, 16, 33, 64])
def test_two_passes_give_the_bits_of_one(executor: Executor, cross: int) -> None:
    case = random_case(cross, SEGMENTS[-1], seed=cross, bounds=SEGMENTS)
    one, plan = project(executor, case, passes=1)
    two, other = project(executor, case, passes=2)
    assert (plan.cooperative, other.cooperative) == (True, False)
    assert same(one, two)


@pytest.mark.parametrize("cross", [4, 20])
def test_many_slots(executor: Executor, cross: int) -> None:
    case = random_case(cross, 40 * 512 + 3, seed=cross)
    assert project(executor, case)[1].slots > 32 > 2 * DEVICE.processors
    assert_projects(executor, case)
    assert_projects(executor, case, passes=2)


def test_the_device_does_not_change_the_bits(executor: Executor) -> None:
    case = random_case(5, 20_000)
    small, _ = project(executor, case, device=_plan.Device((8, 0), 2))
    large, _ = project(executor, case, device=_plan.Device((12, 0), 500))
    assert same(small, large)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("cross", [9, 33, 64])
def test_without_tensor_cores(executor: Executor, cross: int, dtype: str) -> None:
    case = random_case(cross, SHORT[-1], seed=cross, dtype=dtype, bounds=SHORT)
    assert project(executor, case, device=TURING)[1].gram.kernel == f"gram_tile_{dtype}"
    assert_projects(executor, case, device=TURING)


@pytest.mark.parametrize(("dtype", "offset"), [("f32", 1), ("f16", 1), ("bf16", 2), ("f64", 1)])
def test_unaligned_rows(executor: Executor, dtype: str, offset: int) -> None:
    assert_projects(executor, random_case(10, 2003, dtype=dtype, offset=offset))


def test_unaligned_segments(executor: Executor) -> None:
    assert_projects(executor, random_case(3, 3001, bounds=(0, 1, 1001, 1001, 2003, 3001)))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_small_ridge_asks_for_exact_products(executor: Executor, dtype: str) -> None:
    case = random_case(9, 3001, dtype=dtype, ridge=0.0)
    assert project(executor, case)[1].gram.kernel == f"gram_exact_{dtype}"
    assert_projects(executor, case)


def test_a_table_of_segments_longer_than_a_launch_carries(executor: Executor) -> None:
    bounds = [*range(0, 400 * 8, 8), 400 * 8 + 5]
    case = random_case(2, bounds[-1], bounds=bounds)
    _, plan = project(executor, case)
    assert [launch.kernel for launch in plan.project()[:3]] == ["prepare"] * 3
    assert_projects(executor, case)


@pytest.mark.parametrize("cross", [1, 5, 12, 64])
@pytest.mark.parametrize("margin", [0.5, 1.0])
def test_margin(executor: Executor, cross: int, margin: float) -> None:
    assert_projects(executor, random_case(cross, 2000, seed=cross, margin=margin))


@pytest.mark.parametrize(
    ("cross", "dtype", "device"),
    [(2, "f32", DEVICE), (9, "f32", DEVICE), (9, "bf16", DEVICE), (9, "f16", TURING)],
)
def test_sums_are_widened_within_a_slot(executor: Executor, cross: int, dtype: str, device: _plan.Device) -> None:
    length = 70_000 if dtype == "f32" and cross == 2 or device == TURING else 12_000
    case = random_case(cross, length, dtype=dtype)
    assert_solved(case, *project(executor, case, device=device, slot_unit=131_072))


@pytest.mark.parametrize(("cross", "device"), [(4, DEVICE), (12, DEVICE), (12, TURING)])
def test_long_sums_of_one_sign(executor: Executor, cross: int, device: _plan.Device) -> None:
    case = random_case(cross, 300_000)
    case.rows[:] = np.float32(1 + 0.3 * case.rows**2)
    arrays, _ = project(executor, case, device=device, slot_unit=524_288)
    exact = case.rows @ case.rows.T
    assert np.abs(arrays.gram[0] / exact - 1).max() < 5e-7


@pytest.mark.parametrize(
    ("cross", "device", "length"),
    [(2, DEVICE, 300_000), (8, DEVICE, 300_000), (12, DEVICE, 60_000), (12, TURING, 300_000), (40, DEVICE, 16_384)],
)
def test_sums_of_equal_terms(executor: Executor, cross: int, device: _plan.Device, length: int) -> None:
    assert_sums_equal_terms(executor, cross, device, length=length)
