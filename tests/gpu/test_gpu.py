"""What no emulation shows: the kernels on a device. ``make gpu`` runs this, as it stands."""

from typing import Any

import numpy as np
import pytest
import torch
from cases import Case, random_case, reference

from cga_lightning.ops import project

ROWS = (1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 64)
SEGMENTS = (0, 1024, 1024, 1040, 40_013)
TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}
TOLERANCE = {"f32": 2e-6, "f16": 2e-3, "bf16": 1e-2, "f64": 1e-11}


def _tensors(case: Case, device: str = "cuda") -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    memory = [torch.zeros(case.rows.shape[1] + case.offset, dtype=TORCH[case.dtype]) for _ in case.rows]
    for tensor, row in zip(memory, case.rows, strict=True):
        tensor[case.offset :] = torch.tensor(row).to(tensor.dtype)
    rows = [tensor.to(device)[case.offset :] for tensor in memory]
    return rows[:-1], rows[-1], torch.tensor(case.bounds)


def _project(operators: Any, case: Case, device: str = "cuda") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, own, offsets = _tensors(case, device)
    return own, *operators.project_(rows, own, offsets, case.margin, float(case.ridge or 0))


def _assert_projects(operators: Any, case: Case, device: str = "cuda") -> None:
    own, dual, status = _project(operators, case, device)
    expected, _ = reference(case)
    assert not status.any()
    assert (dual >= case.margin).all()
    size = np.linalg.norm(case.rows, axis=1).max() * (1 + case.margin * case.cross)
    assert np.linalg.norm(own.double().cpu().numpy() - expected) < TOLERANCE[case.dtype] * size
    again = _project(operators, case, device)
    assert all(torch.equal(first, second) for first, second in zip((own, dual, status), again, strict=True))


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("cross", ROWS)
def test_every_number_of_rows(operators: Any, cross: int, dtype: str) -> None:
    _assert_projects(operators, random_case(cross, SEGMENTS[-1], seed=cross, dtype=dtype, bounds=SEGMENTS))


@pytest.mark.parametrize("cross", [4, 16, 64])
def test_two_launches(operators: Any, cross: int) -> None:
    """Beyond 20 MB the second pass is a launch of its own; K = 64 needs more than 48 KB of shared memory."""
    _assert_projects(operators, random_case(cross, 24_000_000 // (4 * (cross + 1)), seed=cross))


@pytest.mark.parametrize("cross", [4, 16, 64])
def test_the_parts_make_up_the_whole(operators: Any, cross: int) -> None:
    """To the bit, though the whole is one cooperative launch and the parts are three."""
    case = random_case(cross, SEGMENTS[-1], bounds=SEGMENTS, margin=0.5)
    whole, dual, status = _project(operators, case)
    rows, own, offsets = _tensors(case)
    parts = operators.solve(operators.gram(rows, own, offsets), 0.5, float(case.ridge or 0))
    operators.combine_(rows, own, offsets, parts[0])
    assert torch.equal(own, whole)
    assert torch.equal(parts[0], dual)
    assert torch.equal(parts[1], status)


@pytest.mark.parametrize(("dtype", "offset"), [("f32", 1), ("f16", 1), ("bf16", 2), ("f64", 1)])
def test_unaligned_rows(operators: Any, dtype: str, offset: int) -> None:
    _assert_projects(operators, random_case(10, 20_003, dtype=dtype, offset=offset))


def test_many_segments(operators: Any) -> None:
    bounds = [*range(0, 2000 * 64, 64), 2000 * 64 + 5]
    _assert_projects(operators, random_case(3, bounds[-1], bounds=bounds, margin=0.5))


@pytest.mark.parametrize("cross", [4, 12, 64])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("equal", [False, True])
def test_sums_of_one_sign(operators: Any, equal: bool, dtype: str, cross: int) -> None:
    """Tensor cores cut off low bits when they add: here all of that goes one way."""
    case = random_case(cross, 1_000_000, dtype=dtype)
    terms = torch.full(case.rows.shape, 1.3108) if equal else torch.tensor(1 + 0.3 * case.rows**2)
    case.rows[:] = terms.to(TORCH[dtype]).double().numpy()
    rows, own, offsets = _tensors(case)
    products = operators.gram(rows, own, offsets)[0].cpu().numpy()
    worst = np.abs(products / (case.rows @ case.rows.T) - 1).max()
    print(f"\nK={cross} {dtype}: {worst:.1e} off")
    assert worst < (1e-6 if cross <= 8 and dtype == "f32" else 1e-5)


def test_rows_that_are_not_finite(operators: Any) -> None:
    for cross, value in ((3, np.nan), (12, np.inf)):
        case = random_case(cross, 5000, margin=0.25)
        case.rows[1, 7] = value
        own, dual, status = _project(operators, case)
        assert status.tolist() == [2]
        assert dual[0, 1] == 0
        assert own.isfinite().all()


@pytest.mark.parametrize("cross", [3, 12, 40])
@pytest.mark.parametrize("exponent", [-30, 25])
def test_float32_squares_out_of_range(operators: Any, exponent: int, cross: int) -> None:
    rows = random_case(cross, 5000).rows * 2.0 ** round(exponent * 3.32)
    _assert_projects(operators, Case(rows.astype(np.float32).astype(float), ridge=1e-6))


def test_runs_on_the_current_stream(operators: Any) -> None:
    case = random_case(4, 500_000)
    expected = _project(operators, case)[0]
    rows, own, offsets = _tensors(case)
    source, stream = own.clone(), torch.cuda.Stream()
    own.zero_()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        own.copy_(source)
        operators.project_(rows, own, offsets, 0.0, 1e-6)
    stream.synchronize()
    assert torch.equal(own, expected)


def test_runs_on_the_device_of_the_tensors(operators: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    assert torch.cuda.current_device() == 0
    _assert_projects(operators, random_case(12, 20_000), "cuda:1")
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("length", [100_000, 3_000_000])
def test_does_not_wait_for_the_device(operators: Any, length: int) -> None:
    """The call comes back while the device still sleeps; nor does torch itself ask it for anything."""
    rows, own, offsets = _tensors(random_case(4, length))
    operators.project_(rows, own.clone(), offsets, 0.0, 1e-6)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)
    torch.cuda.set_sync_debug_mode("error")
    try:
        operators.project_(rows, own, offsets, 0.0, 1e-6)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    done.record()
    assert not done.query()
    torch.cuda.synchronize()


@pytest.mark.parametrize("length", [100_000, 3_000_000])
def test_graph_capture_and_replay(operators: Any, length: int) -> None:
    first, second = random_case(4, length, seed=1), random_case(4, length, seed=2)
    rows, own, offsets = _tensors(first)
    operators.project_(rows, own.clone(), offsets, 0.0, 1e-6)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dual, _ = operators.project_(rows, own, offsets, 0.0, 1e-6)
    for case in (first, second, first):
        new_rows, new_own, _ = _tensors(case)
        for target, source in zip([*rows, own], [*new_rows, new_own], strict=True):
            target.copy_(source)
        graph.replay()
        expected = _project(operators, case)
        assert torch.equal(own, expected[0])
        assert torch.equal(dual, expected[1])


def test_the_public_function(operators: Any) -> None:
    """Served by the compiled extension, or else by CuPy or plain torch."""
    case = random_case(5, 10_000, bounds=(0, 4000, 10_000), margin=0.5)
    rows, own, offsets = _tensors(case)
    result = project(rows, own, offsets=offsets, margin=0.5)
    assert np.linalg.norm(result.gradient.double().cpu().numpy() - reference(case)[0]) < 1e-4 * float(own.norm())
    torch.library.opcheck(torch.ops.cga_lightning.project_.default, (rows, own, offsets, 0.5, 1e-6))
    with pytest.raises(ValueError, match=r"cross\[0\] must be on the device of own, cuda:0, found cpu"):
        project([rows[0].cpu()], own)
