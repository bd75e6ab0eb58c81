"""The operators of ``torch.ops.cga_lightning`` as torch sees them, and the compiled library for the CPU."""

import os
import re
import subprocess
import sys

import pytest
import torch
from projection_inputs import Case, random_rows
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cga_lightning.ops import _library, project, project_

OPERATORS = torch.ops.cga_lightning
OFFSETS = torch.tensor([0, 100, 301])
needs_cpp = pytest.mark.skipif(
    _library.backend("cpu") != "cpp", reason=f"no compiled library: {_library.missing().get('cpp')}"
)


def problem(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    return Case("base", *random_rows(3, 31)).tensors(dtype)


def arguments(name: str) -> tuple:
    rows, own = problem()
    return {
        "gram": (rows, own, OFFSETS),
        "solve": (OPERATORS.gram(rows, own, OFFSETS), 0.1, 1e-6),
        "combine_": (rows, own, OFFSETS, torch.rand(2, 3, dtype=torch.float64)),
        "project_": (rows, own, OFFSETS, 0.1, 1e-6),
        "project": (rows, own, OFFSETS, 0.1, 1e-6),
    }[name]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["gram", "solve", "combine_", "project_", "project"])
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(OPERATORS, name).default, arguments(name))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors_have_the_right_shapes(device: str) -> None:
    with FakeTensorMode():
        cross, own = torch.empty(3, 301, device=device), torch.empty(301, device=device)
        result = project(cross, own, offsets=torch.empty(3, dtype=torch.int64))
    assert (result.gradient.shape, result.gradient.dtype) == ((301,), torch.float32)
    assert (result.dual.shape, result.dual.dtype) == ((2, 3), torch.float64)
    assert (result.status.shape, result.status.dtype) == ((2,), torch.int32)
    assert {tensor.device.type for tensor in result} == {device}


@pytest.mark.parametrize("function", [project, project_])
def test_compiles_into_one_graph(function) -> None:
    rows, own = problem()

    def step(cross: list[Tensor], gradient: Tensor) -> Tensor:
        return function(cross, gradient * 2, offsets=OFFSETS).gradient + 1

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(rows, own), step(rows, own))


def bad_arguments() -> dict[str, tuple[str, tuple]]:
    """The operator and its arguments by the message they deserve: argument, rule and what was found."""
    rows, own = problem()
    products, dual = torch.rand(2, 4, 4).double(), torch.ones(2, 3).double()
    numbers = 0.0, 1e-6
    return {
        "rows must have 1 to 64 rows, found 0": ("project_", ([], own, OFFSETS, *numbers)),
        "rows must have 1 to 64 rows, found 65": ("gram", ([own] * 65, own, OFFSETS)),
        "own must have shape [d] with d >= 1, found [0]": ("gram", ([own[:0]], own[:0], torch.tensor([0, 0]))),
        "own must be float32, float16, bfloat16 or float64, found torch.int64": ("gram", (rows, own.long(), OFFSETS)),
        "own must be contiguous, found stride [2]; call .contiguous()": ("gram", (rows, own.repeat(2)[::2], OFFSETS)),
        "rows[0] must have the dtype of own, torch.float32, found torch.float64": (
            "gram",
            ([own.double()], own, OFFSETS),
        ),
        "rows[1] must have the shape of own, [301], found [5]": ("gram", ([own, own[:5]], own, OFFSETS)),
        "rows[0] must be contiguous, found stride [2]": ("gram", ([own.repeat(2)[::2]], own, OFFSETS)),
        "rows[0] must not share memory with own": (
            "project_",
            ([own[:100]], own[50:150], torch.tensor([0, 100]), *numbers),
        ),
        "offsets must be an int64 tensor, found torch.int32": ("gram", (rows, own, OFFSETS.int())),
        "offsets must have shape [s + 1] with s >= 1, found [1]": ("gram", (rows, own, OFFSETS[:1])),
        "offsets must start at 0, found 1": ("project_", (rows, own, torch.tensor([1, 301]), *numbers)),
        "offsets must end at d = 301, found 300": ("gram", (rows, own, torch.tensor([0, 300]))),
        "offsets must not decrease, found offsets[1] = 9, offsets[2] = 8": (
            "gram",
            (rows, own, torch.tensor([0, 9, 8, 301])),
        ),
        "margin must be finite and at least 0, found -0.5": ("project_", (rows, own, OFFSETS, -0.5, 0.0)),
        "eps must be finite and at least 0, found nan": ("project_", (rows, own, OFFSETS, 0.0, float("nan"))),
        "eps must be finite and at least 0, found -1": ("solve", (products, 0.0, -1.0)),
        "products must be float64, found torch.float32": ("solve", (products.float(), *numbers)),
        "products must have shape [s, K + 1, K + 1] with 1 <= K <= 64, found [1, 1, 1]": (
            "solve",
            (products[:1, :1, :1].clone(), *numbers),
        ),
        "products must be contiguous, found stride [16, 1, 4]": ("solve", (products.mT, *numbers)),
        "dual must have shape [s, K] = [2, 3], found [1, 3]": ("combine_", (rows, own, OFFSETS, dual[:1])),
        "dual must be contiguous, found stride [1, 2]": ("combine_", (rows, own, OFFSETS, dual.mT.contiguous().mT)),
    }


@pytest.mark.parametrize("message", bad_arguments())
@pytest.mark.parametrize("operators", [OPERATORS, _library], ids=["served", "torch"])
def test_every_backend_refuses_in_the_same_words(operators, message: str) -> None:
    name, given = bad_arguments()[message]
    kernel = getattr(operators, name if operators is OPERATORS else f"_{name}")
    with pytest.raises((ValueError, TypeError, RuntimeError), match=re.escape(f"cga_lightning::{name}: {message}")):
        kernel(*given)


def test_dispatch_follows_the_device() -> None:
    assert _library.backend("cpu") in {"cpp", "torch"}
    assert _library.backend("meta") == "torch"
    assert ("cpp" in _library.missing()) == (_library.backend("cpu") == "torch")


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("segments", [1, 50])
def test_bitwise_equal_for_any_number_of_threads(dtype: torch.dtype, segments: int) -> None:
    rows, own = Case("long", *random_rows(5, 41, d=300_001)).tensors(dtype)
    offsets = torch.linspace(0, 300_001, segments + 1).long()
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(project(rows, own, offsets=offsets, margin=0.1))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result.gradient, results[0].gradient)
        assert torch.equal(result.dual, results[0].dual)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_value_survives_the_conversions(dtype: torch.dtype) -> None:
    """Adding 0 times something keeps each of the 65536 values; adding a float rounds as torch does."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    ones, offsets = torch.ones_like(every), torch.tensor([0, every.numel()])
    for weight in (1e-30, 1e-3, 0.7):
        own = every.clone()
        OPERATORS.combine_([ones], own, offsets, torch.tensor([[weight]], dtype=torch.float64))
        expected = (every.float() + torch.tensor(weight, dtype=torch.float32)).to(dtype)
        torch.testing.assert_close(own, expected, rtol=0, atol=0)


@needs_cpp
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_older_instruction_sets(capability: str) -> None:
    """The whole table of cases again, in a process in which torch and this library use older instructions."""
    files = [os.path.join(os.path.dirname(__file__), name) for name in ("test_exactness.py", "test_behaviour.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cpp and not random_problems", *files]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_info_names_the_backends() -> None:
    command = [sys.executable, "-m", "cga_lightning", "info"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"cpu: {_library.backend('cpu')}" in text
    for name, reason in _library.missing().items():
        assert f"backend '{name}' is missing: {reason}" in text
