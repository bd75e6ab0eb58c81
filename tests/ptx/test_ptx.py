"""What nvcc makes of the kernels, run on the CPU: its PTX, its host code, the launch tables and the plan together.

The executor of tests/simt runs the source; here are inline PTX, the fragments of tensor-core steps, what the compiler
has moved and unrolled, and the launches by address. A run of everything prints its problems, largest errors and time.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from cases import Case, random_case, reference
from checks import assert_solved, same
from executor import CSRC, SCHEDULES
from machine import Machine, build, errors, missing

from cga_lightning.ops import _plan

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.timeout(900),  # half a minute of compiling, but on a busy machine
]
SEGMENTS = (0, 1024, 1024, 1040, 9_013)
TURING = _plan.Device(capability=(7, 5), processors=4)
COUNTS = (1, 2, 4, 8, 9, 12, 20, 33, 64)


@pytest.fixture(scope="session")
def float32() -> Machine:
    return Machine(build(("common", "f32")))


@pytest.fixture(scope="session")
def whole() -> Machine:
    return Machine(build())


def assert_projects(machine: Machine, case: Case, **options: object) -> tuple[float, float]:
    """Solve a case in two schedules with equal bits, the second twice on one workspace; return the largest errors."""
    arrays, plan = machine.run(case, schedule=SCHEDULES[0], **options)
    assert_solved(case, arrays, plan)
    again, plan = machine.run(case, schedule=SCHEDULES[-1], **options)
    assert same(arrays, again)
    again.own[:] = case.encoded()[-1]
    machine.launch(again, plan, "project", SCHEDULES[1])
    assert same(arrays, again)
    return errors(case, arrays, *reference(case))


@pytest.mark.parametrize("cross", [2, 8, 12])
def test_projects(float32: Machine, cross: int) -> None:
    assert_projects(float32, random_case(cross, SEGMENTS[-1], seed=cross, bounds=SEGMENTS, margin=0.5))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite(float32: Machine, value: float) -> None:
    case = random_case(3, 5000, margin=0.25)
    case.rows[1, 7] = value
    arrays, _ = float32.run(case)
    assert arrays.status.tolist() == [2] and arrays.dual[0, 1] == 0 and np.isfinite(arrays.own).all()


def test_the_parts_make_up_the_whole(float32: Machine) -> None:
    case = random_case(4, 5000, bounds=(0, 700, 5000), margin=0.5)
    arrays, plan = float32.run(case)
    parts, _ = float32.run(case, "products")
    for part in ("solve", "combine"):
        float32.launch(parts, plan, part, SCHEDULES[0])
    assert same(arrays, parts)


@pytest.mark.parametrize("cross", [2, 12])
def test_stretches_of_zeros_are_not_read_element_by_element(float32: Machine, cross: int) -> None:
    """The first row of two slots: it is read once more, in 16 bytes, and no other row is."""
    length, stretch = 16_384, 8_192
    case = random_case(cross, length)
    float32.accesses()
    float32.run(case, "products")
    usual = float32.accesses()
    case.rows[0, :stretch] = 0
    float32.run(case, "products")
    found = float32.accesses()
    assert found.pop(16) - usual.pop(16) == stretch // 4
    assert found == usual


def altered(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of the sources with one fault."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    text = (csrc / file).read_text()
    assert old in text, f"csrc/{file} no longer has {old!r}: plant the fault where it is now"
    (csrc / file).write_text(text.replace(old, new))
    return csrc


@pytest.mark.slow
def test_notices_a_function_in_the_launch_table_that_is_no_kernel(tmp_path: Path) -> None:
    csrc = altered(tmp_path, "cuda/kernels_common.cu", "(::prepare)", "(&cga::prepare)")
    machine = Machine(build(("common",), csrc=csrc, root=tmp_path))
    message = "the backend cuda has failed at prepare: invalid device function; set CGA_LIGHTNING_BACKEND=cupy or"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        machine.run(random_case(2, 100), "combine")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("old", "new"),
    [("{%4,%5,%6,%7}", "{%4,%6,%5,%7}"), ("cvt.rna.tf32.f32 %0, %1;", "cvt.rn.tf32.f32 %0, %1; shl.b32 %0, %0, 1;")],
    ids=["registers of a fragment", "bits of tf32"],
)
def test_notices_a_fault_in_inline_ptx(tmp_path: Path, old: str, new: str) -> None:
    """The executor of the source has twins of these lines, and cannot see it."""
    csrc = altered(tmp_path, "kernels/intrinsics.cuh", old, new)
    machine = Machine(build(("common", "f32"), csrc=csrc, root=tmp_path))
    with pytest.raises(AssertionError):
        assert_projects(machine, random_case(12, 9_000))


def problems() -> dict[str, tuple[Case, dict[str, object]]]:
    """Every kernel, both ways to launch, and the data that takes rare branches."""
    found: dict[str, tuple[Case, dict[str, object]]] = {}
    for dtype in ("f32", "bf16", "f16", "f64"):
        for cross in COUNTS:
            case = random_case(cross, SEGMENTS[-1], cross, dtype=dtype, bounds=SEGMENTS, margin=0.5 * (cross % 2))
            found[f"{dtype} K={cross}"] = case, {}
            if dtype == "f32" and cross in (4, 12):
                found[f"{dtype} K={cross} in two passes"] = case, {"passes": 2}
    for dtype in ("f32", "bf16", "f16"):
        found[f"{dtype} on sm_75"] = random_case(12, 9001, seed=3, dtype=dtype), {"device": TURING}
        found[f"{dtype} unaligned"] = random_case(10, 9003, dtype=dtype, offset=1), {}
    found["a small ridge"] = Case(random_case(5, 9003).rows, ridge=1e-9), {}
    bounds = [*range(0, 400 * 64, 64), 400 * 64 + 5]
    found["401 segments"] = random_case(3, bounds[-1], bounds=bounds, margin=0.5), {}
    for cross in (3, 12, 40):
        for exponent in (-30, 25):
            rows = random_case(cross, 5000).rows * 2.0 ** round(exponent * 3.32)
            found[f"1e{exponent} K={cross}"] = Case(rows.astype(np.float32).astype(float), ridge=1e-6), {}
        zeros = random_case(cross, 9000)
        zeros.rows[0, :4096] = zeros.rows[-1, 500:900] = 0
        found[f"stretches of zeros K={cross}"] = zeros, {}
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_everything(whole: Machine) -> None:
    begin, worst = time.perf_counter(), {}
    for name, (case, options) in problems().items():
        try:
            worst[name] = assert_projects(whole, case, **options)
        except (AssertionError, RuntimeError) as error:
            raise AssertionError(f"{name}: {error}") from error
    seconds = time.perf_counter() - begin
    print(f"\n{len(worst)} problems in {seconds:.0f} s; largest errors of inner products and of g~:")
    for dtype in ("f32", "bf16", "f16", "f64"):
        found = [errors for name, errors in worst.items() if name.startswith(dtype)]
        print(f"  {dtype}: {max(products for products, _ in found):.1e}, {max(gap for _, gap in found):.1e}")
    assert len(whole.launched) == 33, whole.launched  # all but that of `solve` alone, which float32 runs above
