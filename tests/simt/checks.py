"""What every run of the kernels must satisfy."""

from typing import Any

import numpy as np
from cases import ROUNDING, Case, decode, reference
from executor import DEVICE, SCHEDULES, Arrays, Executor, Schedule

from cga_lightning.ops import _plan

# Entries of the Gram matrix, relative to the norms of their rows. A short segment has the error of
# float32 sums; a long one less.
GRAM = {"rows": 2e-7, "mma": 4e-7, "tile": 2e-7, "exact": 2e-15}


def project(
    executor: Executor,
    case: Case,
    schedule: Schedule = SCHEDULES[0],
    device: _plan.Device = DEVICE,
    **options: Any,
) -> tuple[Arrays, _plan.Plan]:
    rows = case.encoded()
    arrays = Arrays(rows[:-1], rows[-1], case.bounds)
    options = {"slot_unit": 512, "margin": case.margin, "ridge": case.ridge, **options}
    plan = arrays.plan(case.dtype, device, **options)
    arrays.run(executor, plan.project(), schedule)
    return arrays, plan


def same(first: Arrays, second: Arrays) -> bool:
    """Whether two runs gave the same bits."""
    names = ("own", "dual", "status", "gram")
    return all(getattr(first, name).tobytes() == getattr(second, name).tobytes() for name in names)


def assert_solved(case: Case, arrays: Arrays, plan: _plan.Plan, *, tolerance: float = 1e-6) -> None:
    """Compare the Gram matrices and g~ with the definition, segment by segment."""
    expected, grams = reference(case)
    assert (arrays.status == 0).all()
    assert (arrays.dual >= case.margin).all()
    result = decode(arrays.own, case.dtype)
    kind = plan.gram.kernel.split("_")[1].rstrip("0123456789")
    for segment, (low, high) in enumerate(zip(case.bounds, case.bounds[1:], strict=False)):
        norms = np.sqrt(np.diag(grams[segment]))
        scale = np.maximum(np.outer(norms, norms), 1e-300)
        assert np.abs((arrays.gram[segment] - grams[segment]) / scale).max() < GRAM[kind]
        lengths = np.linalg.norm(case.rows[:, low:high], axis=1)
        size = max(lengths.max(), case.margin * lengths[:-1].sum(), 1e-300)
        gap = np.linalg.norm(result[low:high] - expected[low:high]) / size
        assert gap < tolerance + 2 * ROUNDING[case.dtype], (segment, gap)
        if case.dtype in ("f32", "f64"):
            norm = np.linalg.norm(expected[low:high])
            assert abs(np.linalg.norm(result[low:high]) - norm) <= 1e-6 * size


def assert_sums_equal_terms(executor: Executor, cross: int, device: _plan.Device = DEVICE, *, length: int) -> None:
    """Check a long slot of equal terms, whose float32 sums all round one way: the worst that data can do."""
    case = Case(np.full((cross + 1, length), float(np.float32(1.3108))), ridge=1e-6)
    arrays, _ = project(executor, case, device=device, slot_unit=length + 1)
    assert np.abs(arrays.gram[0] / (case.rows @ case.rows.T) - 1).max() < 1e-6


def assert_projects(executor: Executor, case: Case, **options: Any) -> None:
    """Solve a case in three schedules with equal bits, the last twice on one workspace."""
    runs = [project(executor, case, schedule, **options) for schedule in SCHEDULES]
    assert_solved(case, *runs[0])
    assert all(same(runs[0][0], arrays) for arrays, _ in runs[1:])
    arrays, plan = runs[-1]
    arrays.own[:] = case.encoded()[-1]
    arrays.run(executor, plan.project())
    assert same(arrays, runs[0][0])
