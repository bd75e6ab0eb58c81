"""The CuPy path on CPU tensors: everything but CuPy itself, which a stand-in replaces by the executor."""

import contextlib
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case, random_case, reference
from executor import DEVICE, SCHEDULES, Executor

from cga_lightning.ops import _nvrtc, _plan

TORCH = {name: dtype for dtype, name in _nvrtc.TYPES.items()}


class _Kernel:
    def __init__(self, name: str, executor: Executor) -> None:
        self.name, self.executor, self.max_dynamic_shared_size_bytes = name, executor, 48 * 1024

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...], *, shared_mem: int) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        assert all(isinstance(value, np.ndarray) and value.shape == (1,) for value in arguments)
        types = (_plan.Problem, _plan.Table)
        structures = tuple(kind.from_buffer_copy(value) for kind, value in zip(types, arguments, strict=False))
        self.executor.launch(_plan.Launch(self.name, *grid, *block, shared_mem, structures), SCHEDULES[0])


@pytest.fixture
def cupy(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for CuPy; ``streams`` and ``modules`` keep what was asked of it."""
    asked = SimpleNamespace(streams=[], modules=[])

    def module(code: str, options: tuple[str, ...]) -> SimpleNamespace:
        asked.modules.append((code, options))
        return SimpleNamespace(get_function=lambda name: _Kernel(name, executor))

    def stream(external: Any) -> contextlib.AbstractContextManager[None]:
        asked.streams.append(external.__cuda_stream__())
        return contextlib.nullcontext()

    cuda = SimpleNamespace(Device=lambda index: contextlib.nullcontext(), Stream=SimpleNamespace(from_external=stream))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=module, cuda=cuda))
    monkeypatch.setattr(_nvrtc, "_device", lambda tensor: DEVICE)
    monkeypatch.setattr(_nvrtc, "_stream", lambda tensor: (0, 1234))
    _nvrtc._module.cache_clear()
    yield asked
    _nvrtc._module.cache_clear()


def _tensors(case: Case) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    rows = [torch.tensor(row, dtype=TORCH[case.dtype]) for row in case.rows]
    return rows[:-1], rows[-1], torch.tensor(case.bounds)


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("cross", [2, 12, 64])
def test_projects(cupy: SimpleNamespace, cross: int, dtype: str) -> None:
    case = random_case(cross, 2000, dtype=dtype, bounds=(0, 1000, 2000), margin=0.25)
    rows, own, offsets = _tensors(case)
    dual, status = _nvrtc.project_(rows, own, offsets, case.margin, float(case.ridge or 0))
    expected, _ = reference(case)
    assert status.tolist() == [0, 0]
    assert dual.shape == (2, cross)
    rounding = {"f16": 5e-4, "bf16": 4e-3}.get(dtype, 1e-6)
    assert np.linalg.norm(own.double().numpy() - expected) < rounding * np.linalg.norm(expected)
    assert set(cupy.streams) == {(0, 1234)}


def test_the_parts_make_up_the_whole(cupy: SimpleNamespace) -> None:
    case = random_case(4, 1500, bounds=(0, 700, 1500))
    rows, own, offsets = _tensors(case)
    whole = own.clone()
    dual, status = _nvrtc.project_(rows, whole, offsets, 0.5, 1e-6)
    products = _nvrtc.gram(rows, own, offsets)
    parts_dual, parts_status = _nvrtc.solve(products, 0.5, 1e-6)
    _nvrtc.combine_(rows, own, offsets, parts_dual)
    assert torch.equal(parts_dual, dual)
    assert torch.equal(parts_status, status)
    assert torch.equal(own, whole)
    assert torch.allclose(_nvrtc.gram(rows, own, offsets, exact=True)[:, :4, :4], products[:, :4, :4])


def test_the_source_is_one_text(cupy: SimpleNamespace) -> None:
    rows, own, offsets = _tensors(random_case(1, 100))
    _nvrtc.project_(rows, own, offsets, 0.0, 1e-6)
    assert len(cupy.modules) == 2  # the common kernels, and those for float32
    for code, options in cupy.modules:
        assert options == ("-std=c++17",)
        assert code.count("struct Problem {") == 1
        assert '#include "' not in code.replace('#include "simt_intrinsics.h"', "")


def test_a_failure_names_the_backend_the_cause_and_the_way_out(
    cupy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise ValueError("no kernel image is available")

    monkeypatch.setattr(sys.modules["cupy"], "RawModule", fail)
    rows, own, offsets = _tensors(random_case(1, 100))
    words = "the backend cupy has failed at prepare: no kernel image is available; set CGA_LIGHTNING_BACKEND=cuda or"
    with pytest.raises(RuntimeError, match=words):
        _nvrtc.project_(rows, own, offsets, 0.0, 1e-6)


class _CuPy(SimpleNamespace):
    """What is asked of CuPy before it is chosen."""

    def __init__(self, cuda_release: int, **stream: Any) -> None:
        runtime = SimpleNamespace(runtimeGetVersion=lambda: cuda_release)
        cuda = SimpleNamespace(Stream=SimpleNamespace(**stream), runtime=runtime)
        super().__init__(__version__="1.2.3", cuda=cuda)


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nvrtc, "find_spec", lambda name: None)
    assert "cga-lightning[cupy]" in str(_nvrtc.missing())
    monkeypatch.setattr(_nvrtc, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _nvrtc.missing() == "this build of torch is without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setitem(sys.modules, "cupy", _CuPy(13010, from_external=None))
    assert _nvrtc.missing() is None
    monkeypatch.setitem(sys.modules, "cupy", _CuPy(12090, from_external=None))
    assert _nvrtc.missing() == "torch is for CUDA 13, CuPy 1.2.3 for CUDA 12"
    monkeypatch.setitem(sys.modules, "cupy", _CuPy(13010))
    assert _nvrtc.missing() == "CuPy 1.2.3 is too old: 14 or later is needed"
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert str(_nvrtc.missing()).startswith("CuPy cannot be used, ModuleNotFoundError: ")
