"""The kernels under compute-sanitizer, and their time and bandwidth: printed, not judged."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

TORCH = {"f32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_compute_sanitizer(operators: Any, request: pytest.FixtureRequest, tool: str) -> None:
    program = shutil.which("compute-sanitizer")
    if program is None:
        pytest.skip("compute-sanitizer is not on PATH")
    path = request.node.callspec.params["operators"]
    selected = f"test_every_number_of_rows and {path} and (8- or 33- or 64-)"
    pytest_command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("test_gpu.py")), "-q"]
    pytest_command += ["-k", selected, "-o", "timeout=0"]
    # Without torch's cache every tensor is an allocation of its own, whose ends and contents are watched.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [program, "--tool", tool, "--error-exitcode", "9", *pytest_command]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-4000:]
    assert " passed" in found.stdout


@pytest.mark.parametrize(
    ("cross", "length", "dtype"),
    [(4, 10**6, "f32"), (4, 10**7, "f32"), (8, 10**7, "f32"), (32, 10**7, "f32"), (32, 10**8, "bf16")],
)
def test_bandwidth(operators: Any, cross: int, length: int, dtype: str) -> None:
    """Report both passes, the whole and a plain copy in the same run, in bytes that must at least move."""
    size = length * torch.finfo(TORCH[dtype]).bits // 8
    if torch.cuda.mem_get_info()[0] < 1.5 * (cross + 5) * size:
        pytest.skip("too little memory on the device")
    rows = [torch.randn(length, device="cuda", dtype=TORCH[dtype]) for _ in range(cross)]
    own = -rows[0] - rows[1]
    offsets, gradient = torch.tensor([0, length]), own.clone()
    dual, _ = operators.project_(rows, gradient, offsets, 0.0, 1e-4)
    active = int((dual > 0).sum())
    timed: dict[str, tuple[int, Callable[[], object]]] = {
        "copy": (2, lambda: gradient.copy_(own)),
        "products": (cross + 1, lambda: operators.gram(rows, own, offsets)),
        "combination": (active + 2, lambda: operators.combine_(rows, gradient, offsets, dual)),
        "projection": (cross + active + 3, lambda: operators.project_(rows, gradient, offsets, 0.0, 1e-4)),
    }
    print(f"\nK={cross} d={length:.0e} {dtype}, {active} active, {torch.cuda.get_device_name()}")
    for name, (moved, function) in timed.items():
        milliseconds = _milliseconds(function, lambda: gradient.copy_(own))
        print(f"  {name:12s} {milliseconds:8.3f} ms {moved * size / milliseconds / 1e9:6.2f} TB/s")
    gradient.copy_(own)
    operators.combine_(rows, gradient, offsets, dual)
    whole = own.clone()
    operators.project_(rows, whole, offsets, 0.0, 1e-4)
    assert torch.equal(gradient, whole)


def _milliseconds(function: Callable[[], object], before: Callable[[], object]) -> float:
    """Return the median time on the device: all is queued while it sleeps, so the host does not count."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(12):
        before()
        torch.cuda._sleep(20_000_000)
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)
