"""The public functions: what they return, what they refuse and what they leave alone."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cga_lightning import ops
from cga_lightning.ops import Projection, backend, project, project_

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
OWN = -X.sum(0) + 0.1


def test_project_leaves_its_arguments_alone() -> None:
    cross, own = X.clone(), OWN.clone()
    result = project(cross, own)
    assert isinstance(result, Projection)
    assert result.gradient.data_ptr() != own.data_ptr()
    assert torch.equal(cross, X)
    assert torch.equal(own, OWN)
    assert (result.dual.shape, result.dual.dtype) == ((1, 3), torch.float64)
    assert (result.status.shape, result.status.dtype) == ((1,), torch.int32)


def test_project_in_place_is_the_same() -> None:
    own = OWN.clone()
    result = project_(X, own)
    assert result.gradient.data_ptr() == own.data_ptr()
    assert torch.equal(own, project(X, OWN).gradient)


@pytest.mark.parametrize("form", [list, tuple, lambda x: x, lambda x: torch.cat([x, x], 1)[:, :8]])
def test_forms_of_cross(form) -> None:
    assert torch.equal(project(form(X), OWN).gradient, project(X, OWN).gradient)


def test_nothing_to_do_changes_nothing() -> None:
    own = X.sum(0) + X[0]
    result = project(torch.eye(8)[:3], own.abs())
    assert result.dual.tolist() == [[0.0] * 3]
    assert torch.equal(result.gradient, own.abs())


def test_result_is_detached() -> None:
    parameter = torch.nn.Parameter(OWN.clone())
    cross = X.clone().requires_grad_()
    assert not project(cross, parameter).gradient.requires_grad
    project_(cross, parameter)
    assert parameter.grad_fn is None


def test_margin_is_a_premix() -> None:
    mixed = project(X, OWN, margin=0.5).gradient
    torch.testing.assert_close(mixed, project(X, OWN + 0.5 * X.sum(0)).gradient, rtol=1e-4, atol=1e-5)


def test_numpy_scalars_are_numbers() -> None:
    assert torch.equal(project(X, OWN, margin=np.float32(0.5)).gradient, project(X, OWN, margin=0.5).gradient)


def test_ridge_defaults_follow_the_dtype() -> None:
    twice = torch.stack([X[0], X[0]])
    for dtype, expected in [(torch.float32, 1e-6), (torch.bfloat16, 1e-4), (torch.float64, 1e-12)]:
        default = project(twice.to(dtype), OWN.to(dtype))
        assert torch.equal(default.dual, project(twice.to(dtype), OWN.to(dtype), eps=expected).dual)


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        assert project(X, OWN).gradient.is_inference()


def test_default_device_is_not_used() -> None:
    with torch.device("meta"):
        assert project(X, OWN).gradient.device.type == "cpu"


def test_backend_names_an_implementation() -> None:
    assert backend("cpu") in {"cpp", "torch"}
    assert backend(torch.device("cuda", 0)) in {"cuda", "cupy", "torch"}


def offsets(*bounds: int) -> Tensor:
    return torch.tensor(bounds, dtype=torch.int64)


BAD_VALUES = {
    "no rows": ((X[:0], OWN), {}, "cross must have 1 to 64 rows, found 0"),
    "no rows in a list": (([], OWN), {}, "cross must have 1 to 64 rows, found 0"),
    "65 rows": ((torch.ones(65, 8), OWN), {}, "cross must have 1 to 64 rows, found 65"),
    "empty own": ((X[:, :0], OWN[:0]), {}, r"own must have shape \[d\] with d >= 1, found \[0\]"),
    "own of two axes": ((X, X), {}, r"own must have shape \[d\] with d >= 1, found \[3, 8\]"),
    "cross of one axis": ((OWN, OWN), {}, r"cross must have shape \[K, d\].*found a tensor of shape \[8\]"),
    "unequal length": (
        ([OWN, OWN[:7]], OWN),
        {},
        r"cross\[1\] must have the shape of own, \[8\], found \[7\]",
    ),
    "unequal device": (
        ([OWN.to("meta")], OWN),
        {},
        r"cross\[0\] must be on the device of own, cpu, found meta",
    ),
    "strided row": (([torch.ones(16)[::2]], OWN), {}, r"cross\[0\] must be contiguous, found stride \[2\]"),
    "strided own": ((X, torch.ones(16)[::2]), {}, "own must be contiguous"),
    "negative margin": ((X, OWN), {"margin": -0.5}, "margin must be finite and at least 0, found -0.5"),
    "infinite margin": ((X, OWN), {"margin": float("inf")}, "margin must be finite"),
    "negative eps": ((X, OWN), {"eps": -1.0}, "eps must be finite and at least 0, found -1"),
    "NaN eps": ((X, OWN), {"eps": float("nan")}, "eps must be finite"),
    "offsets from 1": ((X, OWN), {"offsets": offsets(1, 8)}, "offsets must start at 0, found 1"),
    "offsets to 7": ((X, OWN), {"offsets": offsets(0, 7)}, "offsets must end at d = 8, found 7"),
    "offsets decrease": ((X, OWN), {"offsets": offsets(0, 5, 4, 8)}, r"offsets\[1\] = 5, offsets\[2\] = 4"),
    "one offset": ((X, OWN), {"offsets": offsets(0)}, r"shape \[s \+ 1\] with s >= 1, found \[1\]"),
    "offsets elsewhere": (
        (X, OWN),
        {"offsets": offsets(0, 8).to("meta")},
        "offsets must be on the CPU, found meta",
    ),
}
BAD_TYPES = {
    "integer rows": ((X.long(), OWN.long()), {}, "own must be float32, .* found torch.int64"),
    "unequal dtype": (
        (X.double(), OWN),
        {},
        r"cross\[0\] must have the dtype of own, torch.float32, found torch.float64",
    ),
    "own is a list": ((X, [1.0]), {}, "own must be a tensor, found list"),
    "cross is a number": ((1.0, OWN), {}, "cross must be a tensor or a sequence of tensors, found float"),
    "a row is a list": (([[1.0]], OWN), {}, r"cross\[0\] must be a tensor, found list"),
    "sparse own": ((X, OWN.to_sparse()), {}, "own must be a dense tensor"),
    "margin is text": ((X, OWN), {"margin": "0.5"}, "margin must be a number, found str"),
    "eps is a flag": ((X, OWN), {"eps": True}, "eps must be a number, found bool"),
    "offsets are a list": ((X, OWN), {"offsets": [0, 8]}, "offsets must be an int64 tensor, found list"),
    "offsets are int32": (
        (X, OWN),
        {"offsets": offsets(0, 8).int()},
        "offsets must be an int64 tensor, found torch.int32",
    ),
}


@pytest.mark.parametrize("operator", ["project", "project_"])
@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values(operator: str, case: str) -> None:
    arguments, options, message = BAD_VALUES[case]
    with pytest.raises(ValueError, match=f"^{operator}: .*{message}"):
        getattr(ops, operator)(*arguments, **options)


@pytest.mark.parametrize("operator", ["project", "project_"])
@pytest.mark.parametrize("case", BAD_TYPES)
def test_bad_types(operator: str, case: str) -> None:
    arguments, options, message = BAD_TYPES[case]
    with pytest.raises(TypeError, match=f"^{operator}: .*{message}"):
        getattr(ops, operator)(*arguments, **options)
